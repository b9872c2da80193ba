"""How much arithmetic a step is, and how much of it a device could do."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.scaling import is_sharded
from geomim.pretrain.step import Said, Step
from geomim.randomness import Draws

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}
"""Dense bfloat16 FLOP/s by what the name of a device holds; NVIDIA's data sheets."""


_KEPT = 0.95
"""What a step counts of the one after it in the recent pace, which so is that of some 20 steps."""


class Pace:
    """How fast a run is, and how long it will take.

    Attributes:
        idle: Seconds that were not spent training: they are no part of a step, but of what is left, except those
            before the first step was done, which do not come again.
    """

    def __init__(self, step: int = 0) -> None:
        self.idle, self._first, self._once = 0.0, step, 0.0
        self._steps, self._seconds, self._last = 0.0, 0.0, self.clock()

    def clock(self) -> float:
        """Seconds of training, from some time on."""
        return time.perf_counter() - self.idle

    def note(self) -> None:
        """A step is done."""
        now = self.clock()
        self._once = self._once if self._steps else self.idle
        self._steps, self._seconds = _KEPT * self._steps + 1, _KEPT * self._seconds + now - self._last
        self._last = now

    @property
    def recent(self) -> float | None:
        """Seconds that one of the last steps took; None before the first."""
        return self._seconds / self._steps if self._steps else None

    def left(self, step: int, steps: int) -> float:
        """Seconds from the end of a step to that of the last one of `steps`."""
        return (steps - step) * ((self.recent or 0.0) + (self.idle - self._once) / max(1, step - self._first))


def peak(device: torch.device) -> float | None:
    """FLOP/s that a device can do at most; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for part, value in PEAKS.items() if part in name), None)


def few(batch: dict[str, Any], count: int = 4) -> dict[str, Any]:
    """The first images of a batch, and of its sentences as large a share."""
    some: dict[str, Any] = apply_to_collection(batch, Tensor, lambda values: values[:count] if values.ndim else values)
    if text := batch.get("text"):
        rows = max(1, round(len(text["key"]) * len(some["image"]) / len(batch["image"])))
        some["text"] = {name: text[name][:rows] for name in ("tokens", "key")}
        some["text"]["of"] = text["of"][:count].clamp(max=rows - 1)
    return some


class _Repeated(Step):
    """A step of a few images over and over; they compute their own share of what all read."""

    @property
    def rows(self) -> Tensor:
        """Those of the batch."""
        return self.own

    def gather(self, rows: Tensor) -> Tensor:
        """As if others had said the same."""
        return torch.cat([rows] * (self.weights.shape[1] // len(self.own)))


def count_flops(
    model: MaskedImageModel, batch: dict[str, Any], progress: Tensor, images: int = 0, divided: bool = False
) -> float:
    """FLOPs of an image, forward and backward, a multiplication and addition as two; matrix products alone.

    No gradient is kept and no randomness consumed. What is computed again to save memory counts again.

    Args:
        model: The objective.
        batch: A few augmented images.
        progress: Share of training that is done, 0-dim.
        images: How many an optimiser step has, each of which is compared with all; these alone where fewer.
        divided: A step has several micro-batches on a device: what they say of themselves is computed first.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    devices, count = [batch["image"].device] if batch["image"].is_cuda else [], len(batch["image"])
    draws, step, before = Draws(0, batch["position"]), None, 0
    # fused attention is not counted on every device
    with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        context = model.context(batch, draws)
        plan = model.plan(context, progress)
        if model.shared:
            before = counter.get_total_flops()
            if not divided:  # `compare` says all of it anew: both times come off, prototypes are computed once
                model.said(model.context(batch, draws), plan, prototypes=False)
            before = 2 * (counter.get_total_flops() - before)
            said, _ = model.said(model.context(batch, draws), plan)
            times = max(1, images // count)
            every = {name: Said.of([one] * times, torch.cat) for name, one in said.items()}
            step = _Repeated(every, plan.weights.repeat(1, times), torch.arange(count, device=progress.device))
        output = model.compare(context, plan, progress, plan.weights.sum(1), step)
        with torch.autocast(batch["image"].device.type, enabled=False):
            if is_sharded(model):  # what is shared out is not what the loss hangs on
                torch.autograd.backward(output.loss)
                model.zero_grad()
            else:
                torch.autograd.grad(output.loss, trained, allow_unused=True)
    return float(counter.get_total_flops() - before) / count
