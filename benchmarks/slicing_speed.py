"""Cutting scenes into tiles of 256 pixels, beside plain rasterio reads in the same row order with as many processes.

A deflate GeoTIFF of 4 bands uint16 in blocks of 512, and a folder of JPEG photographs of 512 pixels; both are drawn
(1/f fields) into a temporary folder. geomim also finds validity and place of every tile, rasterio only reads its
pixels. Every process cuts the whole GeoTIFF, or its share of the photographs. Contenders take turns within a round, in
processes of their own that have cut it once before the clock starts; the median of the rounds counts, and the median of
their ratios. Figures come last, one `name: value` a line.

    python benchmarks/slicing_speed.py            # 5 minutes on 2 idle cores
    python benchmarks/slicing_speed.py --quick    # does it run
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import re
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from rich.progress import Progress

from geomim.corpus.scenes import open_scene
from geomim.corpus.slicing import Grid, slice_scene

TILE = 256


def field(size: int, seed: int) -> np.ndarray:
    """A random field with the 1/f amplitudes of landscapes, zero mean, unit deviation: `(size, size)`."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((size, size)))
    spectrum /= np.maximum(np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]), 1 / size)
    values = np.fft.irfft2(spectrum, s=(size, size))
    return (values - values.mean()) / values.std()


def draw_scene(path: Path, size: int) -> None:
    part = np.stack([field(size // 4, seed) for seed in range(4)])
    pixels = np.clip(2000 + 600 * part, 0, 65535).astype(np.uint16)
    pixels = np.pad(pixels, ((0, 0), *[(0, size - size // 4)] * 2), mode="symmetric")
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 54e5)}
    shape = {"count": 4, "height": size, "width": size, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **tiling, **place) as file:
        file.write(pixels)
        file.descriptions = ("blue", "green", "red", "nir")


def draw_photographs(folder: Path, count: int) -> list[Path]:
    part = np.clip(128 + 40 * np.stack([field(1024, seed) for seed in range(3)]), 0, 255).astype(np.uint8)
    places = np.random.default_rng(0).integers(0, 512, (count, 2))
    paths = []
    for number, (row, col) in enumerate(places):
        paths.append(folder / f"{number:05d}.jpg")
        pixels = part[:, row : row + 512, col : col + 512]
        with rasterio.open(paths[-1], "w", driver="JPEG", count=3, height=512, width=512, dtype="uint8") as file:
            file.write(pixels)
    return paths


def by_geomim(paths: list[Path]) -> int:
    count = 0
    for path in paths:
        with open_scene(path) as scene:
            count += sum(1 for _ in slice_scene(scene, Grid((TILE,))))
    return count


def by_rasterio(paths: list[Path]) -> int:
    count = 0
    for path in paths:
        with rasterio.open(path) as file:
            for row in range(0, file.height, TILE):
                for col in range(0, file.width, TILE):
                    file.read(window=Window(col, row, TILE, TILE))
                    count += 1
    return count


def cut(cutter: Callable[[list[Path]], int], paths: list[Path]) -> tuple[int, int]:
    """Tiles, and the largest memory of this process so far in MB; runs in a worker."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    return cutter(paths), _peak_memory()


def _peak_memory() -> int:
    """Of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before the process was started
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Contender:
    """A cutter with processes of its own and what each of them cuts."""

    def __init__(self, cutter: Callable[[list[Path]], int], shares: list[list[Path]]) -> None:
        self._cutter, self._shares = cutter, shares
        self._pool = ProcessPoolExecutor(len(shares), mp_context=multiprocessing.get_context("spawn"))
        self.rates: list[float] = []
        self.memory = 0
        self.round(timed=False)

    def round(self, timed: bool = True) -> None:
        start = time.perf_counter()
        done = list(self._pool.map(cut, [self._cutter] * len(self._shares), self._shares))
        if timed:
            self.rates.append(sum(count for count, _ in done) / (time.perf_counter() - start))
        self.memory = max(self.memory, *(memory for _, memory in done))

    def close(self) -> None:
        self._pool.shutdown()


def compare(name: str, shares: list[list[Path]], rounds: int, progress: Progress) -> dict[str, float]:
    """Median tiles a second, spread and memory of both cutters, and the ratio."""
    bar = progress.add_task(name, total=rounds)
    contenders = {"geomim": Contender(by_geomim, shares), "rasterio": Contender(by_rasterio, shares)}
    for _ in range(rounds):
        for contender in contenders.values():
            contender.round()
        progress.advance(bar)
    figures = {}
    for who, contender in contenders.items():
        contender.close()
        median = statistics.median(contender.rates)
        figures[f"{name}_{who}_tiles_per_second"] = median
        figures[f"{name}_{who}_spread"] = (max(contender.rates) - min(contender.rates)) / median
        figures[f"{name}_{who}_peak_mb"] = contender.memory
    rates = zip(contenders["geomim"].rates, contenders["rasterio"].rates, strict=True)
    figures[f"{name}_ratio"] = statistics.median(ours / theirs for ours, theirs in rates)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small scene and few photographs: does it run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    size, photographs = (2048, 40) if arguments.quick else (8192, 1000)
    rounds = 1 if arguments.quick else arguments.rounds
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = Path(folder) / "scene.tif"
        draw_scene(scene, size)
        paths = draw_photographs(Path(folder), photographs)
        for count in arguments.processes:
            figures |= compare(f"deflate_{count}_processes", [[scene]] * count, rounds, progress)
            figures |= compare(f"jpeg_{count}_processes", [paths[n::count] for n in range(count)], rounds, progress)
    print(f"machine: {platform.processor() or platform.machine()}, rasterio {rasterio.__version__}")
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
