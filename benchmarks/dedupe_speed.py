"""Hashing and complete near-duplicate search beside imagehash and faiss.

    python benchmarks/dedupe_speed.py                                # all: 10 minutes on 2 idle cores
    python benchmarks/dedupe_speed.py --only hash                    # one core
    python benchmarks/dedupe_speed.py --only join --millions 1 10    # one core; each join in a process of its own
    python benchmarks/dedupe_speed.py --only faiss --millions 1      # a sample of the queries, extrapolated
    python benchmarks/dedupe_speed.py --only crops --millions 4 32   # block hashes; see dedupe_crops.py

Hashes to join are uniform, or real-like: 32 ones each, and bits that are correlated about twice as strongly as those of
perceptual hashes of real photographs (mean |r| 0.04 against 0.02 on RSICD). One in a hundred has a planted neighbour at
2, 4, 6 or 8 bits. Seconds are wall seconds and CPU seconds; memory is the growth of the resident set over the hashes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy works on one core; faiss is told how many

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dedupe_crops import crops

from geomim.corpus.duplicates.fingerprint import block_means, orientations, perceptual_hash
from geomim.corpus.duplicates.hamming import choose_bands, index_band, search_band

RADIUS = 8
PLANTED = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["hash", "join", "faiss", "crops"])
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=2, help="of faiss; joins work on one core")
    parser.add_argument("--rounds", type=int, default=7)
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default, help="holds rsicd/, for crops")
    arguments = parser.parse_args()
    if arguments.only in (None, "hash"):
        hashing(arguments.rounds)
    if arguments.only in (None, "join"):
        bands = int(max(arguments.millions) * 1e6)
        print("join: kind, hashes, bands, wall s, CPU s, growth MB, pairs, recall of planted pairs")
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("uniform", "real-like"):
                for count in (int(millions * 1e6) for millions in arguments.millions):
                    _alone(_write, kind, count, folder)
                    for like in sorted({count, bands}):  # its own bands, and those of the largest join
                        _alone(_join, kind, folder, like)
    if arguments.only in (None, "faiss"):
        for millions in arguments.millions:
            _alone(_faiss, int(millions * 1e6), arguments.threads)
    if arguments.only == "crops":
        crops(arguments.data / "rsicd", arguments.millions, _alone)


def hashing(rounds: int) -> None:
    """One core: tiles of 256 px in memory, no decoding; a round a contender in turn, the median of the rounds."""
    import imagehash
    from PIL import Image

    rng = np.random.default_rng(0)
    for bands, mode in ((1, "grey"), (3, "RGB")):
        tiles = rng.integers(0, 256, (512, bands, 256, 256), dtype=np.uint8)
        images = [Image.fromarray(tile[0] if bands == 1 else tile.transpose(1, 2, 0).copy()) for tile in tiles[:256]]
        contenders: dict[str, tuple[int, Callable[[], object]]] = {
            "imagehash.phash": (256, lambda images=images: [imagehash.phash(image) for image in images]),
            "geomim": (512, lambda tiles=tiles: perceptual_hash(block_means(tiles))),
            "geomim, eight orientations": (
                512,
                lambda tiles=tiles: orientations(perceptual_hash(block_means(tiles))),
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds + 1):
            for name, (count, work) in contenders.items():
                start = time.process_time()
                work()
                rates[name].append(count / (time.process_time() - start))
        peer = statistics.median(rates["imagehash.phash"][1:])
        for name, values in rates.items():
            rate = statistics.median(values[1:])  # the first round compiles
            print(f"hash {mode} 256 px uint8: {name}: {rate:,.0f} tiles/s CPU, {rate / peer:.1f}x")


def hashes_of(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Different hashes, sorted, and the planted pairs `(m, 2)` as hashes."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        base = rng.integers(0, 2**64, count, dtype=np.uint64)
    else:
        loadings = rng.normal(0, 0.5 / np.sqrt(8), (8, 64)).astype(np.float32)
        base = np.concatenate([_weight_32(rng, loadings, size) for size in _sizes(count, 2**18)])
    base = np.unique(base)
    chosen = base[rng.choice(len(base), int(len(base) * PLANTED), replace=False)]
    near = chosen.copy()
    for number in range(4):  # swap a one and a zero, so that 32 ones stay
        some = np.arange(len(near)) % 4 >= number
        for value in (1, 0):
            bit = np.zeros(len(near), np.uint64)
            open_ = some.copy()
            while open_.any():
                draw = rng.integers(0, 64, len(near), dtype=np.uint64)
                fits = open_ & (
                    (((near >> draw) & np.uint64(1)) == value) & (((near ^ chosen) >> draw) & np.uint64(1) == 0)
                )
                bit[fits] = np.uint64(1) << draw[fits]
                open_ &= ~fits
            near ^= bit
    return np.unique(np.concatenate([base, near])), np.stack([chosen, near], 1)


def _sizes(count: int, most: int) -> list[int]:
    return [min(most, count - start) for start in range(0, count, most)]


def _weight_32(rng: np.random.Generator, loadings: np.ndarray, count: int) -> np.ndarray:
    values = rng.normal(size=(count, 8)).astype(np.float32) @ loadings + rng.normal(size=(count, 64)).astype(np.float32)
    bits = values > np.partition(values, 31, axis=1)[:, 31:32]
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _alone(work: Callable[..., None], *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()


def _write(kind: str, count: int, folder: str) -> None:
    for name, values in zip(("hashes", "planted"), hashes_of(kind, count), strict=True):
        np.save(f"{folder}/{name}.npy", values)


def _join(kind: str, folder: str, like: int) -> None:
    """All hashes searched for among themselves, as a build does in each orientation: pairs come from both sides."""
    hashes, planted = np.load(f"{folder}/hashes.npy"), np.load(f"{folder}/planted.npy")
    bands = choose_bands(like, RADIUS)
    for which in range(len(bands)):  # compiles
        search_band(bands, which, index_band(hashes[:100], bands[which]), hashes[:100])
    before = _resident()
    with _Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        found = [search_band(bands, which, index_band(hashes, bands[which]), hashes)[0] for which in range(len(bands))]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pairs = np.concatenate(found)
    places = np.sort(np.searchsorted(hashes, planted), axis=1)
    key, wanted = (np.unique(p[:, 0] * len(hashes) + p[:, 1]) for p in (pairs, places))
    recall = np.isin(wanted, key).mean()
    shape = "+".join(f"{len(band.bits)}/{band.radius}" for band in bands)
    grown = (peak.highest - before) / 2**20
    print(f"join {kind} {len(hashes):,} {shape}: {wall:.2f} {cpu:.2f} {grown:.0f} {len(pairs):,} {recall}", flush=True)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class _Peak:
    """Highest resident set while it is open, looked at every 10 ms."""

    highest = 0

    def __enter__(self) -> _Peak:
        import threading

        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.highest = max(self.highest, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def _faiss(count: int, threads: int) -> None:
    import faiss

    hashes, _ = hashes_of("uniform", count)
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(64)
    index.add(hashes.view(np.uint8).reshape(-1, 8))
    sample = max(200, int(2e9 / count))
    queries = hashes[np.random.default_rng(1).choice(len(hashes), sample, replace=False)].view(np.uint8).reshape(-1, 8)
    index.range_search(queries[:100], RADIUS + 1)  # faiss counts distances below the radius
    wall, cpu = time.perf_counter(), time.process_time()
    index.range_search(queries, RADIUS + 1)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    whole = len(hashes) / sample
    print(
        f"faiss IndexBinaryFlat {len(hashes):,}: {sample:,} queries measured {wall:.2f} s wall {cpu:.2f} s CPU;"
        f" all of them extrapolated {wall * whole:,.0f} s wall {cpu * whole:,.0f} s CPU",
        flush=True,
    )


if __name__ == "__main__":
    main()
