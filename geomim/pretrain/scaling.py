"""What lets a larger model train: blocks that are computed again, and weights that ranks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn, random
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from geomim.models.build import from_config
from geomim.models.hierarchical import Encoder


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of encoder, decoders and teachers."""
    for part in model.modules():
        listed = getattr(part, "blocks", None)
        if isinstance(listed, (nn.ModuleList, nn.Sequential)):
            yield from listed


def recompute(model: nn.Module) -> None:
    """Keep what goes into a block and not what is inside it: computed again for the gradient, in less memory."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Give every rank a share of all weights, which are gathered block by block when they are needed (FSDP2)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("plan", "said", "survey", "compare"):  # instead of `forward`
        register_fsdp_forward_method(model, name)


@contextmanager
def alone(wrapped: nn.Module | None, model: nn.Module) -> Iterator[None]:
    """While gradients only add up, ranks keep theirs to themselves; `wrapped` is what a strategy made of the model."""
    with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext():
        synchronise: Any = getattr(model, "set_requires_gradient_sync", lambda _: None)
        synchronise(False)
        yield
        synchronise(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has it: told by what an `FSDPModule` can do, as to load that class takes half a second."""
    return hasattr(model, "set_requires_gradient_sync")


def gathered(encoder: Encoder) -> Encoder:
    """A plain encoder, in evaluation mode, with all weights of one whose weights are shared out; asked by all ranks."""
    with random.fork_rng(devices=[]):
        plain = from_config(encoder.config, encoder.contracts)
    plain.load_state_dict({name: whole(value) for name, value in encoder.state_dict().items()})
    return plain.eval()


def whole(value: Tensor) -> Tensor:
    """A tensor that may be shared out, a `DTensor`, on every rank."""
    every: Tensor = getattr(value, "full_tensor", lambda: value)()
    return every


def local(value: Tensor) -> Tensor:
    """The share that this rank has of a tensor, itself and no copy; all of it where it is not shared out."""
    own: Tensor = getattr(value, "to_local", lambda: value)()
    return own
