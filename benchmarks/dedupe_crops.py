"""Crops by block hashes at a size nobody has files for: what `dedupe_speed.py --only crops` runs.

The pool is real: block hashes of all photographs of RSICD, as they are and turned by 12 odd angles and enlarged by 1.45
to 2.2 (other pixels under every patch, so other hashes): 3.8 million. Beyond a third of the pool, hashes are made of
it: each of the four symmetry classes of bits (even or odd waves down and across, which real hashes show to be
uncorrelated with one another) from another real hash; and 2.2 % of them, the share of the pool that have a hash within
4 bits, are such hashes as they are or with one bit changed, so that crowds grow with the set as they do in truth.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import Progress

from geomim.corpus.duplicates.blocks import block_hashes
from geomim.corpus.duplicates.hamming import index_band
from geomim.corpus.duplicates.votes import CROWD, RADIUS, choose_form_bands, search_forms, upright
from geomim.corpus.pipeline.candidates import propose
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.staging import BLOCKS

EACH, EDGE = 32, 256  # patches of a tile, and its edge
PLANTED, SHARED, MOVED = 0.01, 8, (70, 40)  # share of tiles that hold patches of another one, how many, and where
SAMPLE, MOST = 1_000_000, 50_000_000  # beyond, a slice of the queries is searched and the rest extrapolated
_CLASSES = [sum(1 << (8 * i + j) for i in range(a, 8, 2) for j in range(b, 8, 2)) for a in (0, 1) for b in (0, 1)]


def make_pool(photographs: Path, target: Path) -> None:
    """Hashes of photographs and of turned and enlarged ones, and those that have others near; 3 minutes."""
    rng, found = np.random.default_rng(0), []
    valid = np.ones((128, 128), bool)
    for file in sorted(photographs.rglob("*.jpg")):
        with Image.open(file) as image:
            grey = Image.fromarray(np.asarray(image.convert("RGB")).astype(np.float32).mean(2))
        found.append(block_hashes(np.asarray(grey), valid)[0])
        for angle in np.radians(np.arange(7.5, 90, 7.5)):
            c, s = np.array([np.cos(angle), np.sin(angle)]) / rng.uniform(1.45, 2.2)
            matrix = (c, s, 64 - 64 * (c + s), -s, c, 64 - 64 * (c - s))
            turned = np.asarray(grey.transform((128, 128), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
            found.append(block_hashes(np.clip(turned, 0, 255), valid)[0])
    pool = np.concatenate(found)
    forms, place = np.unique(upright(pool)[0], return_inverse=True)
    bands, near = choose_form_bands(len(forms), RADIUS), np.zeros(len(forms), bool)
    for which, band in enumerate(bands):
        index = index_band(forms, band)
        for turn in range(8):
            query, other = search_forms(forms, turn, bands, which, index, CROWD)
            near[query[query != other]] = True
    np.savez(target, pool=pool, kin=near[place])


def make_hashes(pool: np.ndarray, kin: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As many hashes, real where they are few."""
    if count <= len(pool):
        return rng.choice(pool, count, replace=False)
    hashes = np.zeros(count, np.uint64)
    for low in range(0, count, 1 << 22):
        some = hashes[low : low + (1 << 22)]
        for bits in _CLASSES:
            some |= rng.choice(pool, len(some)) & np.uint64(bits)
        near = np.flatnonzero(rng.random(len(some)) < kin.mean())
        bit = np.uint64(2) << rng.integers(0, 63, len(near)).astype(np.uint64)
        some[near] = rng.choice(pool[kin], len(near)) ^ np.where(rng.random(len(near)) < 0.5, bit, np.uint64(0))
    return hashes


def stage(folder: Path, hashes: np.ndarray, rng: np.random.Generator) -> tuple[list[Path], list[int], np.ndarray]:
    """Write blocks as cutting does, a source a tile; tasks, their rows, and the planted pairs of tiles."""
    tiles = len(hashes) // EACH
    hashes = hashes[: tiles * EACH].reshape(tiles, EACH)
    xy = rng.integers(16, EDGE - 16, (tiles, EACH, 2)).astype(np.int16)
    planted = rng.choice(tiles, (int(tiles * PLANTED), 2), replace=False)
    planted.sort(axis=1)
    for one, two in planted:
        bit = np.uint64(2) << rng.integers(0, 63, SHARED).astype(np.uint64)
        hashes[two, :SHARED], xy[two, :SHARED] = hashes[one, :SHARED] ^ bit, xy[one, :SHARED] - MOVED
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), folder / "copies.parquet")
    np.save(folder / "sources.npy", np.arange(1, tiles + 1))
    names, rows = [], []
    for number, some in enumerate(np.array_split(np.arange(tiles), max(1, tiles // 10_000))):
        names.append(folder / f"{number:06d}")
        names[-1].mkdir()
        places, size = xy[some].reshape(-1, 2), np.full(len(some) * EACH, EDGE, np.int32)
        columns = [np.repeat(some, EACH), size, hashes[some].ravel(), places[:, 0], places[:, 1]]
        pq.write_table(pa.table(columns, BLOCKS.names).cast(BLOCKS), names[-1] / "blocks.parquet")
        rows.append(len(size))
    return names, rows, planted


class Timed(Workers):
    """Workers that note the seconds of each stage."""

    def run(self, what: str, function: Callable[..., Any], tasks: Sequence[tuple], inline: bool = False) -> list[Any]:
        """As `Workers.run`."""
        wall, cpu = time.perf_counter(), time.process_time()
        results = super().run(what, function, tasks, inline)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"  {what}: {wall:.1f} s, {cpu:.1f} s CPU", flush=True)
        return results


class Peak:
    """Highest private memory in MB while it is open (mapped files are not counted), looked at every 20 ms."""

    highest = 0.0

    def __enter__(self) -> Peak:
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            with open("/proc/self/statm") as file:
                resident, shared = map(int, file.read().split()[1:3])
            self.highest = max(self.highest, (resident - shared) * resource.getpagesize() / 1e6)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def whole(pool_file: str, count: int) -> None:
    """All stages up to the candidates, in one process."""
    rng, stored = np.random.default_rng(1), np.load(pool_file)
    with tempfile.TemporaryDirectory() as folder:
        names, rows, planted = stage(Path(folder), make_hashes(stored["pool"], stored["kin"], count, rng), rng)
        with Progress(disable=True) as progress, Timed(progress, 1) as workers, Peak() as peak:
            cpu, wall = time.process_time(), time.perf_counter()
            propose(Path(folder), names, rows, workers)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        files = sorted(Path(folder).glob("candidates-*.parquet"))
        found = pa.concat_tables(pq.read_table(file, columns=["a", "b", "votes"]) for file in files)
        singles = int((found["votes"].to_numpy() == 1).sum())
        found = found.filter(pa.array(found["votes"].to_numpy() > 1))
        key, tiles = found["a"].to_numpy() << 32 | found["b"].to_numpy(), sum(rows) // EACH
        recall = np.isin(planted[:, 0] << 32 | planted[:, 1], key).mean()
    name = f"crops_{sum(rows) / 1e6:.1f}M"
    print(f"{name}_tiles: {tiles}")
    print(f"{name}_wall_s: {wall:.1f}")
    print(f"{name}_CPU_s: {cpu:.1f}")
    print(f"{name}_CPU_s_a_million: {cpu / sum(rows) * 1e6:.2f}")
    print(f"{name}_private_MB: {peak.highest:.0f}")
    print(f"{name}_recall_of_planted: {recall:.4f}")
    print(f"{name}_pairs_by_chance_of_two_matches: {len(found) - round(recall * len(planted))}")
    print(f"{name}_pairs_by_a_single_match: {singles}", flush=True)


def sampled(pool_file: str, count: int) -> None:
    """The index whole and one slice of the queries in each orientation and band; the rest is extrapolated."""
    stored = np.load(pool_file)
    with Peak() as peak:
        forms = upright(make_hashes(stored["pool"], stored["kin"], count, np.random.default_rng(1)))[0]
        forms.sort()
        bands, search, sort, pairs = choose_form_bands(count, RADIUS), 0.0, 0.0, 0
        low = int(np.random.default_rng(2).integers(0, max(1, count - SAMPLE)))
        for which, band in enumerate(bands):
            start = time.process_time()
            index = index_band(forms, band)
            sort += time.process_time() - start
            for turn in (0, 1, 3):  # 4 is as 0; 2, 5 and 6 are as 1; 7 is as 3
                start = time.process_time()
                query, _ = search_forms(forms[low : low + SAMPLE], turn, bands, which, index, CROWD)
                share = {0: 2, 1: 4, 3: 2}[turn] * count / min(count, SAMPLE)
                search, pairs = search + (time.process_time() - start) * share, pairs + int(len(query) * share)
            del index
    name = f"crops_{count / 1e6:.0f}M"
    print(f"{name}_bands: {'+'.join(f'{len(band.bits)}/{band.radius}' for band in bands)}")
    print(f"{name}_index_CPU_s: {sort:.0f}")
    print(f"{name}_search_CPU_s_extrapolated: {search:.0f} ({SAMPLE:,} queries measured)")
    print(f"{name}_search_CPU_s_a_million: {search / count * 1e6:.2f}")
    print(f"{name}_pairs_extrapolated: {pairs}")
    print(f"{name}_private_MB: {peak.highest:.0f} (hashes included)", flush=True)


def crops(photographs: Path, millions: Sequence[float], alone: Callable[..., None]) -> None:
    """Measure each size in a process of its own.

    Args:
        photographs: Folder of RSICD.
        millions: Block hashes.
        alone: Runs a function in a process.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        file = folder / "pool.npz"
        alone(make_pool, photographs, file)
        for count in (int(size * 1e6) for size in millions):
            alone(whole if count <= MOST else sampled, str(file), count)
    finally:
        shutil.rmtree(folder)
