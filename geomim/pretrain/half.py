"""bfloat16 in training, where the hardware has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.nn.attention import SDPBackend, sdpa_kernel

from geomim.errors import ConfigError
from geomim.evaluate.features import fast_half


def arithmetic(precision: str, accelerator: str) -> str:
    """What `auto` precision is on the devices asked for: `bf16-mixed` where they have it in hardware, else `32-true`.

    CPUs with AVX-512 BF16 have it too: a step of a small encoder is 1.6 times as fast there. On a Mac it is `32-true`.

    Args:
        precision: As in `Training`; anything but `auto` is what it is.
        accelerator: As in `Training`.
    """
    if precision != "auto":
        return precision
    kind = _kind(accelerator)
    fast = kind != "mps" and (fast_half(kind) or (kind == "cpu" and _has_avx512_bf16()))
    return "bf16-mixed" if fast else "32-true"


def computing(precision: str, accelerator: str) -> dict[str, Any]:
    """What the trainer is told of a precision that is not `auto`; see `Training`."""
    own = precision == "bf16-mixed" and _kind(accelerator) == "cpu" and not fast_half("cpu")
    return {"precision": None, "plugins": [HalfOnCpu()]} if own else {"precision": precision, "plugins": []}


class OnePrecision(pl.Callback):
    """Refuses ranks that would compute in different precisions, as `auto` may make of unlike machines."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask all ranks.

        Raises:
            ConfigError: They differ.
        """
        first = trainer.strategy.broadcast(self.precision)
        if not trainer.strategy.reduce_boolean_decision(first == self.precision):
            raise ConfigError(
                "training.precision auto: some machines of this run have bfloat16 in hardware and others not: give "
                "--training.precision 32-true or bf16-mixed"
            )


def in_training(precision: str, device: str) -> AbstractContextManager[None]:
    """What the forward pass of a step runs in, outside a trainer.

    Args:
        precision: `bf16-mixed` or `32-true`.
        device: Its kind.
    """
    own = computing(precision, "cpu" if device == "cpu" else "gpu")["plugins"]
    # no cache: of what was cast without gradient first, as a masking does, the weights would get none
    plain = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False)
    return own[0].forward_context() if own else plain


class HalfOnCpu(MixedPrecision):
    """bfloat16 on a CPU without AMX, with attention made of two plain products.

    PyTorch's fused attention in bfloat16 is 1.7 to 5 times slower there, at 16 to 256 tokens and with its gradient. The
    plain one keeps its weights, `(B, heads, L, L)`.
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Around each step."""
        switch: Any = torch.backends.cuda  # of all devices, in spite of its name
        before = switch.fp16_bf16_reduction_math_sdp_allowed()
        switch.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with super().forward_context(), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            switch.allow_fp16_bf16_reduction_math_sdp(before)


def _kind(accelerator: str) -> str:
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    mps = accelerator == "mps" or (accelerator in ("auto", "gpu") and torch.backends.mps.is_available())
    return "mps" if mps else "cpu"


def _has_avx512_bf16() -> bool:
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())  # not public, and not in every torch
