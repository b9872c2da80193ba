"""A whole corpus build beside slicing alone, and its memory, both at two sizes.

Scenes are deflate GeoTIFFs of 4 bands uint16 with 512 px blocks, made of smooth fields and noise. Slicing alone reads
the same scenes with the same number of processes, which are started before the clock, and keeps nothing; a build
starts its own, and writes its report. Figures come last, one `name: value` a line.

    python benchmarks/build_speed.py            # 15 minutes on 2 idle cores, 15 GB on disk
    python benchmarks/build_speed.py --quick    # does it run: small scenes, 1 minute
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rasterio

TILES_OF_OPTICALRS = 13_000_000


def write_scene(path: Path, edge: int, seed: int) -> None:
    """A scene that deflate halves, as it does satellite images: smooth fields and noise, another place each."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (4, edge // 32, edge // 32)).astype(np.float32)
    profile = {"driver": "GTiff", "count": 4, "dtype": "uint16", "height": edge, "width": edge, "crs": "EPSG:32633"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "nodata": 0}
    place = rasterio.transform.from_origin(400_000 + 10 * edge * seed, 5_000_000, 10, 10)
    with rasterio.open(path, "w", transform=place, **profile, **layout) as raster:
        for band in range(4):
            smooth = np.kron(coarse[band], np.ones((32, 32), np.float32))
            raster.write((3000 + 500 * smooth + rng.normal(0, 30, smooth.shape)).clip(1, 65535).astype("u2"), band + 1)
        for number, name in enumerate(("red", "green", "blue", "nir"), start=1):
            raster.set_band_description(number, name)


def slice_one(path: str) -> int:
    """Read one scene as tiles and forget them."""
    from geomim.corpus.scenes import open_scene
    from geomim.corpus.slicing import Grid, slice_scene

    with open_scene(path) as scene:
        return sum(1 for _ in slice_scene(scene, Grid((256,))))


def slicing(scenes: list[str], workers: int) -> float:
    """Seconds; processes are started before the clock."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(slice_one, scenes[:1] * workers))
        start = time.perf_counter()
        list(pool.map(slice_one, scenes))
        return time.perf_counter() - start


BUILD = """
import resource, sys, time
from geomim.corpus.build import build
start = time.perf_counter()
build([sys.argv[1]], sys.argv[2], workers=int(sys.argv[3]))
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(time.perf_counter() - start, *peaks)
"""


def build(scenes: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Seconds, and peak memory in MB of the main process and of the largest worker."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", BUILD, str(scenes), str(out), str(workers)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, own, child = map(float, words[-3:])
    return seconds, own / 1024, child / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scenes, one round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    edge, few, many, rounds = (1024, 2, 4, 1) if arguments.quick else (8192, 4, 12, arguments.rounds)
    workers = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(many):
            group = Path(folder) / ("few" if number < few else "many")
            group.mkdir(exist_ok=True)
            paths.append(str(group / f"202406{number + 1:02d}.tif"))  # a date: footprints of another one are no copies
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(write_scene, map(Path, paths), [edge] * many, range(many)))  # its memory ends with it
        small, out = Path(folder) / "few", Path(folder) / "corpus"
        build(small, out, workers)  # compiles what is compiled once
        print(f"4x256x256 uint16, {workers} processes")
        for count, where in ((few, small), (many, Path(folder))):
            alone, whole = [], []
            for _ in range(rounds):
                alone.append(slicing(paths[:count], workers))
                whole.append(build(where, out, workers))
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
            report(count * (edge // 256) ** 2, workers, alone, whole, size)


def report(tiles: int, workers: int, alone: list[float], whole: list[tuple[float, ...]], size: int) -> None:
    """Print the figures of one size."""
    seconds, slicing_s = statistics.median(one[0] for one in whole), statistics.median(alone)
    print(f"tiles: {tiles}")
    print(f"slicing_alone_s: {slicing_s:.2f} (rounds {', '.join(f'{one:.2f}' for one in alone)})")
    print(f"build_s: {seconds:.2f} (rounds {', '.join(f'{one[0]:.2f}' for one in whole)})")
    print(f"build_over_slicing_speed: {slicing_s / seconds:.2f}")
    print(f"tiles_a_second_a_core: {tiles / seconds / workers:.0f}")
    print(f"memory_MB: main {whole[0][1]:.0f}, largest worker {whole[0][2]:.0f}")
    print(f"hours_for_13M_tiles: {TILES_OF_OPTICALRS / (tiles / seconds) / 3600:.1f}")
    print(f"terabytes_for_13M_tiles: {size / tiles * TILES_OF_OPTICALRS / 1e12:.2f}")


if __name__ == "__main__":
    main()
