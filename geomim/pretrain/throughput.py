"""How much arithmetic a step is, and how much of it a device could do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from geomim.pretrain.objective import MaskedImageModel
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


def peak(device: torch.device) -> float | None:
    """FLOP/s that a device can do at most; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for part, value in PEAKS.items() if part in name), None)


def count_flops(model: MaskedImageModel, batch: dict[str, Any], progress: Tensor) -> float:
    """FLOPs of an image, forward and backward, a multiplication and addition as two; matrix products alone.

    No gradient is kept and no randomness consumed. What is computed again to save memory counts again.

    Args:
        model: The objective.
        batch: A few augmented images.
        progress: Share of training that is done, 0-dim.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    devices = [batch["image"].device] if batch["image"].is_cuda else []
    # fused attention is not counted on every device
    with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        context = model.context(batch, Draws(0, batch["position"]))
        plan = model.plan(context, progress)
        output = model.compare(context, plan, progress, plan.weights.sum(1))
        with torch.autocast(batch["image"].device.type, enabled=False):
            if isinstance(model, FSDPModule):  # what is shared out is not what the loss hangs on
                torch.autograd.backward(output.loss)
                model.zero_grad()
            else:
                torch.autograd.grad(output.loss, trained, allow_unused=True)
    return float(counter.get_total_flops()) / len(batch["image"])
