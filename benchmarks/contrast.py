"""geomim's contrast of images and sentences beside open_clip's, its memory, and a `rils` step beside its parts.

Figures come last, one `name: value` a line. Ratios are geomim's time over the other's, each step of both in turn, the
median of the rounds. Memory is what a process of its own had in use at most, all in all (its `ru_maxrss`). The plain
form does not fit at 32,768 x 32,768: it is measured smaller, and what it has above a process with next to nothing to do
grows with the square, so `..._by_the_square` is reckoned, not measured. The parts of `rils` are the whole pass with
sentences and contrast (`remote_clip`), and the masked pass with a decoder of the same size (`mae`), each with its own
gradient.

    python benchmarks/contrast.py             # 10 minutes on 2 idle cores
    python benchmarks/contrast.py --memory    # memory alone, which a busy machine does not change
    python benchmarks/contrast.py --quick     # does it run: small ones, 1 minute
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from geomim.models.build import build_encoder
from geomim.models.text import Text
from geomim.pretrain.contrast import Contrast
from geomim.pretrain.losses import reduce
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.step import Said, join
from geomim.pretrain.targets import Answer
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor

WIDTH = 512
MANY = 32768


def features(count: int) -> list[Tensor]:
    """Images, sentences and the logarithm of the scale, to learn."""
    draw = torch.Generator().manual_seed(0)
    both = [F.normalize(torch.randn(count, WIDTH, generator=draw), dim=1) for _ in range(2)]
    return [one.requires_grad_() for one in (*both, torch.tensor(2.66))]


def ours(images: Tensor, sentences: Tensor, log: Tensor) -> Tensor:
    """The loss of a batch that is a whole step."""
    key, weight = torch.arange(len(images)), torch.ones(len(images))
    (step,) = join([({"contrast": Said(images.detach(), sentences.detach(), key)}, weight[None])])
    loss = Contrast(SimpleNamespace(scale=log.exp()))  # type: ignore[arg-type]
    return reduce(loss(images[:, None], Answer(sentences[:, None], key=key), None, step), weight)


def plain(images: Tensor, sentences: Tensor, log: Tensor) -> Tensor:
    """That of open_clip."""
    loss: Tensor = ClipLoss()(images, sentences, log.exp())
    return loss


LOSSES: dict[str, Callable[..., Tensor]] = {"geomim": ours, "open_clip": plain}


def turns(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one after the other every round; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def beside_open_clip(count: int, rounds: int) -> dict[str, float]:
    """Time, and the greatest difference of value and gradients."""
    given = features(count)
    taken = turns({name: lambda loss=loss: loss(*given).backward() for name, loss in LOSSES.items()}, rounds)
    values = [loss(*given) for loss in LOSSES.values()]
    grads = [torch.autograd.grad(value, given) for value in values]
    apart = [float((one - other).detach().abs().max()) for one, other in zip(*grads, strict=True)]
    figures = {f"{name}_{count}_seconds": value for name, value in taken.items()}
    figures[f"geomim_over_open_clip_{count}"] = taken["geomim"] / taken["open_clip"]
    figures[f"value_apart_{count}"] = float((values[0] - values[1]).detach().abs())
    return figures | {f"gradient_apart_{count}": max(apart)}


def _peak(name: str, count: int, out: Any) -> None:
    torch.set_num_threads(1)
    LOSSES[name](*features(count)).backward()
    out.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def memory(name: str, count: int) -> float:
    """GB that a process of its own has in use at most, for a loss and its gradient."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_peak, args=(name, count, out))
    process.start()
    process.join()
    return float(out.get(timeout=10))


def rils_beside_its_parts(batch: int, rounds: int, width: int, depth: int) -> dict[str, float]:
    """Forward and backward of `rils`, and of its parts alone: of 64 px, patches of 8, as many sentences as images."""
    contracts = {"rgb": BandContract(get_sensor("rgb"), (0.0,) * 3, (1.0,) * 3)}
    text = Text()
    decoder = {"decoder_depth": 1, "decoder_width": width, "decoder_heads": width // 64}
    given = {"rils": decoder | {"text": text}, "remote_clip": {"text": text}, "mae": decoder}
    models = {
        name: RECIPES[name](
            build_encoder(contracts, 64, patch_size=8, width=width, depth=depth, heads=width // 64), **one
        )
        for name, one in given.items()
    }
    tokens = models["rils"].joint.text.tokenize([f"{number} planes stand near a road" for number in range(batch)])[
        :, :16
    ]
    said = {"tokens": tokens, "key": torch.arange(batch), "of": torch.arange(batch)}
    images = torch.randn(batch, 3, 64, 64)

    def step(model: MaskedImageModel) -> None:
        given = {"image": images, "sensor": "rgb", "text": said}
        model(given, torch.tensor(0.5), Draws(0, torch.arange(batch))).loss.backward()
        model.zero_grad()

    taken = turns({name: lambda model=model: step(model) for name, model in models.items()}, rounds)
    figures = {f"{name}_step_seconds": value for name, value in taken.items()}
    return figures | {"rils_over_its_parts": taken["rils"] / (taken["remote_clip"] + taken["mae"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small ones and two rounds: does it run")
    parser.add_argument("--memory", action="store_true", help="memory alone")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    sizes, many, fits, rounds = [256, 1024, 4096], MANY, MANY // 4, given.rounds
    if given.quick:
        sizes, many, fits, rounds = [64, 256], 2048, 1024, 2
    # first of all: a new process counts what the one that starts it had in use as its own
    least, some = memory("open_clip", 8), memory("open_clip", fits)
    figures = {"process_gigabytes": least, f"open_clip_{fits}_gigabytes": some}
    figures[f"open_clip_{many}_gigabytes_by_the_square"] = least + (some - least) * (many / fits) ** 2
    figures[f"geomim_{many}_gigabytes"] = memory("geomim", many)
    if not given.memory:
        for count in sizes:
            figures |= beside_open_clip(count, rounds)
        figures |= rils_beside_its_parts(*((16, rounds, 64, 2) if given.quick else (128, rounds, 192, 6)))
    print(f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
