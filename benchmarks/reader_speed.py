"""Random batches out of a corpus's shards beside a plain copy in memory and zarr-python, interleaved in one process.

Tiles of 12 x 256 x 256 uint16 with the spectrum of natural images (so that compression means something), more than
1 GB, in the page cache; batches of 16 at random into one preallocated array. Every contender reads once a round; the
median of the rounds counts. Figures come last, one `name: value` a line.

    python benchmarks/reader_speed.py            # 2 minutes, 4 GB of disk, 2 GB of memory
    python benchmarks/reader_speed.py --quick    # does it run: 50 MB
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from rich.progress import Progress

from geomim.corpus.reader import TileArray
from geomim.corpus.shards import create_array, write_shard

SHAPE, BATCH = (12, 256, 256), 16
NAMES = ("tile", "band", "y", "x")


def natural(seed: int) -> np.ndarray:
    """A tile whose amplitude falls with frequency, with sensor noise, `SHAPE` uint16."""
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(SHAPE[1]), np.fft.rfftfreq(SHAPE[2]), indexing="ij")
    phase = np.exp(2j * np.pi * random.random(y.shape)) / np.maximum(np.hypot(x, y), 1 / SHAPE[1])
    field = np.fft.irfft2(phase, SHAPE[1:])
    field = 1500 + 400 * field / field.std() * random.uniform(0.5, 1.5, (SHAPE[0], 1, 1))
    return np.clip(field + random.normal(0, 8, SHAPE), 0, 65535).astype(np.uint16)


def write(path: Path, count: int, compression: str | None, progress: Progress) -> float:
    """Write the tiles and return the seconds that writing took, without making them."""
    layout = create_array(path, (count, *SHAPE), "uint16", NAMES, compression=compression)
    spent = 0.0
    for number in progress.track(range(layout.shards), description=f"writing {path.name}"):
        tiles = [natural(slot) for slot in layout.slots(number)]
        start = time.perf_counter()
        write_shard(path, layout, number, tiles)
        spent += time.perf_counter() - start
    return spent


def contenders(folder: Path, names: list[str], out: np.ndarray) -> dict[str, Callable[[np.ndarray], None]]:
    """A function a contender that reads a batch into `out`."""
    memory = TileArray(folder / "plain")
    held = memory.read(np.arange(len(memory)))

    def copy(batch: np.ndarray) -> None:
        for row, slot in enumerate(batch):
            out[row] = held[slot]

    def own(name: str) -> Callable[[np.ndarray], None]:
        array = TileArray(folder / name)

        def read(batch: np.ndarray) -> None:
            array.read(batch, out)

        return read

    def peer(name: str) -> Callable[[np.ndarray], None]:
        array = zarr.open_array(str(folder / name), mode="r")

        def read(batch: np.ndarray) -> None:
            for row, slot in enumerate(batch.tolist()):  # `oindex` over scattered tiles is 20 times slower still
                out[row] = array[slot]

        return read

    found = {"memcpy": copy}
    for name in names:
        found |= {f"geomim_{name}": own(name), f"zarr_{name}": peer(name)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=704, help="1.57 MB each")
    parser.add_argument("--batches", type=int, default=40, help="a round and contender; zarr-python reads a quarter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    tiles, batches, rounds = (32, 4, 2) if given.quick else (given.tiles, given.batches, given.rounds)
    names, out = ["plain", "lz4", "zstd"], np.empty((BATCH, *SHAPE), np.uint16)
    random = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, Progress() as progress:
        folder = Path(temporary)
        written = {name: write(folder / name, tiles, None if name == "plain" else name, progress) for name in names}
        sizes = {name: sum(file.stat().st_size for file in (folder / name).rglob("*")) for name in names}
        readers = contenders(folder, names, out)
        for name, read in readers.items():  # correct, and in the page cache
            batch = random.integers(0, tiles, BATCH)
            read(batch)
            assert all((out[row] == natural(slot)).all() for row, slot in enumerate(batch.tolist())), name
        for _ in progress.track(range(rounds), description="reading"):
            for name, read in readers.items():
                some = random.integers(0, tiles, (max(1, batches // (4 if name.startswith("zarr") else 1)), BATCH))
                start = time.perf_counter()
                for batch in some:
                    read(batch)
                speeds.setdefault(name, []).append(some.size / (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    size = tiles * int(np.prod(SHAPE)) * 2
    print(f"python {platform.python_version()}, numpy {np.__version__}, zarr {zarr.__version__}")
    print(f"tiles: {tiles} of {SHAPE}, {size / 1e9:.2f} GB, {rounds} rounds")
    for name, value in median.items():
        spread = (max(speeds[name]) - min(speeds[name])) / value
        print(f"{name}_tiles_per_s: {value:.0f}  (spread {spread:.0%})")
    for name in names:
        print(f"{name}_size: {sizes[name] / size:.3f}  written at {size / written[name] / 1e6:.0f} MB/s")
    print(f"geomim_over_memcpy: {median['geomim_plain'] / median['memcpy']:.2f}")
    for name in names:
        print(f"geomim_over_zarr_{name}: {median[f'geomim_{name}'] / median[f'zarr_{name}']:.1f}")


if __name__ == "__main__":
    main()
