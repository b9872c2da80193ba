"""What one GPU trains a second: ViT-B/16, 224 px, bf16, by recipe and number of bands, and what holds it back.

Forward, backward and optimiser step (fused AdamW), masking and selection included, on batches that lie on the device.
All contenders step once a round in turn; the median of the rounds counts. The model FLOPs of a step are counted by
torch, and MFU is their rate over the dense bf16 peak of the device. A profile of a few steps says what the time goes
to. With --corpus the same steps once more from a corpus on disk: read, sent, augmented and trained on, and the data
path alone. Figures come last, one `name: value` a line.

    python benchmarks/gpu_speed.py                              # 3 minutes on one GPU of 80 GB
    python benchmarks/gpu_speed.py --corpus CORPUS --workers 12
    python benchmarks/gpu_speed.py --compile                    # torch.compile, whose first steps take minutes
    python benchmarks/gpu_speed.py --quick                      # does it run: tiny networks on a CPU
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from geomim.data.datamodule import TileDataModule
from geomim.models.vit import ViT
from geomim.pretrain.module import parameter_groups
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import mae, selective_mae
from geomim.randomness import Draws

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
}
"""Dense bf16 FLOP a second by a part of the device's name, the first that fits, from the makers' data sheets."""

KINDS = {
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "addmm", "::mm", "bmm", "linear", "cublas"),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "optimiser": ("multi_tensor", "fused_adam", "adamw"),
    "sorting and gathering": ("sort", "topk", "gather", "scatter", "index"),
    "norms": ("layer_norm", "layernorm"),
    "copies and casts": ("memcpy", "memset", "copy", "_to_copy", "cat"),
}
"""Kernels by words in their names, the first that fits."""


NAMES = ("mae", "selective_mae_d12")


class Contender:
    """A recipe with its optimiser.

    Args:
        model: The objective.
        device: Where it trains.
        compiled: Compile what comes before the gradient.
    """

    def __init__(self, model: MaskedImageModel, device: torch.device, compiled: bool) -> None:
        self.model, self.device = model.to(device), device
        groups = parameter_groups(self.model, 0.05)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.progress = torch.tensor(0.2, device=device)
        self.forward: Callable[[Tensor, Tensor], Tensor] = torch.compile(self.loss) if compiled else self.loss

    def loss(self, images: Tensor, positions: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.model({"image": images}, self.progress, Draws(0, positions)).loss

    def step(self, images: Tensor) -> None:
        self.forward(images, torch.arange(len(images), device=self.device)).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def seconds(self, images: Tensor) -> float:
        start = now(self.device)
        self.step(images)
        return now(self.device) - start

    def flops(self, images: Tensor) -> float:
        """Model FLOPs of an image: forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.loss(images, torch.arange(len(images), device=self.device)).backward()
        self.optimiser.zero_grad(set_to_none=True)
        return counter.get_total_flops() / len(images)

    def profile(self, images: Tensor, steps: int) -> tuple[dict[str, float], list[tuple[str, float]]]:
        """Shares of the device's time by kind, and of the dearest kernels by name."""
        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                self.step(images)
            now(self.device)
        spent = {
            one.key: float(one.self_device_time_total if on_gpu else one.self_cpu_time_total)
            for one in profiler.key_averages()
        }
        total = sum(spent.values()) or 1.0
        shares: dict[str, float] = {}
        for name, value in spent.items():
            kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")
            shares[kind] = shares.get(kind, 0.0) + value / total
        dearest = sorted(spent.items(), key=lambda item: -item[1])[:12]
        return dict(sorted(shares.items(), key=lambda item: -item[1])), [
            (name, value / total) for name, value in dearest
        ]


Contenders = dict[tuple[str, int], Contender]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def recipe(name: str, bands: int, size: dict[str, int]) -> MaskedImageModel:
    encoder = ViT(bands, size["image"], 16, size["width"], size["depth"], size["heads"])
    if name == "mae":
        return mae(encoder, decoder_depth=size["decoder"])
    return selective_mae(encoder, decoder_depth=size["deep"])


def label(name: str, bands: int) -> str:
    return f"{name}_{bands}bands"


def synthetic(contenders: Contenders, pictures: dict[int, Tensor], rounds: int) -> dict[tuple[str, int], float]:
    """Median images a second of each, interleaved; the first rounds are not timed."""
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    for number in range(rounds + 3):
        for key, one in contenders.items():
            taken = one.seconds(pictures[key[1]])
            if number >= 3:
                seconds[key].append(taken)
    return {key: len(pictures[key[1]]) / statistics.median(values) for key, values in seconds.items()}


def rates(
    contenders: Contenders, speeds: dict[tuple[str, int], float], images: dict[int, Tensor], peak: float | None
) -> dict[str, float]:
    """Speeds, what they are of the device, and their ratios."""
    figures: dict[str, float] = {}
    for key, speed in speeds.items():
        flops = contenders[key].flops(images[key[1]][:8])
        figures[f"{label(*key)}_images_per_second"] = speed
        figures[f"{label(*key)}_gigaflops_per_image"] = flops / 1e9
        figures[f"{label(*key)}_teraflops_per_second"] = flops * speed / 1e12
        if peak:
            figures[f"{label(*key)}_mfu"] = flops * speed / peak
    first, *others = images
    for name, bands in itertools.product(NAMES, others):
        figures[f"{label(name, bands)}_over_{first}bands"] = speeds[name, bands] / speeds[name, first]
    for bands in images:
        figures[f"selective_over_mae_{bands}bands"] = speeds[NAMES[1], bands] / speeds[NAMES[0], bands]
    return figures


def batches(data: TileDataModule, device: torch.device) -> Iterator[Tensor]:
    """Endless augmented batches on the device."""
    for raw in data.train_dataloader():
        yield data.on_after_batch_transfer(move_data_to_device(raw, device), 0)["image"]


def from_disk(contender: Contender, data: TileDataModule, steps: int) -> dict[str, float]:
    """Images a second of the data path alone and of training from it, and the share of the time spent waiting."""
    source, device = batches(data, contender.device), contender.device
    for _ in range(3):
        contender.step(next(source))
    start = now(device)
    for _ in range(steps):
        next(source)
    alone = now(device) - start
    waited, start = 0.0, now(device)
    for _ in range(steps):
        before = time.perf_counter()  # kernels that are queued run on meanwhile: only what the loop waits for counts
        images = next(source)
        waited += time.perf_counter() - before
        contender.step(images)
    took = now(device) - start
    images_of = steps * data.batch_size
    return {"data_alone": images_of / alone, "trained": images_of / took, "waiting_share": waited / took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks, few rounds: does it run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bands", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--compile", action="store_true", help="torch.compile of forward and loss")
    parser.add_argument("--corpus", help="train from it too, with the bands it has")
    parser.add_argument("--workers", type=int, default=8, help="reading processes with --corpus")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cpu" and not given.quick:
        print("no GPU here, nothing measured: --quick checks on a CPU that it runs, pretrain_speed.py measures CPUs")
        return
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    size = {"image": 224, "width": 768, "depth": 12, "heads": 12, "decoder": 8, "deep": 12}
    if given.quick:
        size |= {"width": 96, "depth": 2, "heads": 3, "decoder": 1, "deep": 2}
        given.batch, given.rounds, given.workers = 8, 2, 0
    data, stored = None, 0
    if given.corpus:
        data = TileDataModule(given.corpus, given.batch, size["image"], workers=given.workers)
        if len(data.contracts) > 1:
            raise SystemExit(f"a plain encoder knows one sensor, these corpora are of {', '.join(data.contracts)}")
        stored = len(next(iter(data.contracts.values())).names)
        given.bands = sorted({*given.bands, stored})
    contenders = {
        (name, bands): Contender(recipe(name, bands, size), device, given.compile)
        for name, bands in itertools.product(NAMES, given.bands)
    }
    images = {
        bands: torch.randn(given.batch, bands, size["image"], size["image"], device=device) for bands in given.bands
    }
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    peak = next((value for word, value in PEAKS.items() if word in kind), None) if device.type == "cuda" else None
    speeds = synthetic(contenders, images, given.rounds)
    figures = rates(contenders, speeds, images, peak)
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    said = "unknown" if peak is None else f"{peak / 1e12:.0f} teraflops"
    print(f"device: {kind}, peak {said}, batch {given.batch}, compiled: {given.compile}")
    for key, one in contenders.items():
        shares, dearest = one.profile(images[key[1]], 2 if given.quick else 5)
        print(f"\n{label(*key)}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()))
        for kernel, share in dearest:
            print(f"  {share:6.1%}  {kernel[:100]}")
    print()
    for name in NAMES if data is not None else ():
        key = name, stored
        found = from_disk(contenders[key], data, 4 if given.quick else 40)
        figures |= {f"{label(*key)}_disk_{what}": value for what, value in found.items()}
        figures[f"{label(*key)}_disk_over_synthetic"] = found["trained"] / speeds[key]
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
