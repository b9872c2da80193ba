"""Planted copies on real pixels: which near-duplicates are found, by kind, and what else is matched.

    python benchmarks/dedupe_quality.py [FOLDER] [--tiles 1000]    # 3 minutes on one core

FOLDER holds `rsicd/` (photographs of 128 px) and `airbus/` (scenes of 2560 px, cut to 256 px); default is
$GEOMIM_TEST_DATA, or ../shared/data. Of each kind, originals and copies are searched together: by the hash of the whole
tile in eight orientations within 8 bits, verified by correlation, and by patches around corners, verified over the
overlap. Tiles of low information take no part in the hash of the whole, as in a build. A Markdown table comes last.

Sets hold copies that nobody planted, and Airbus shows airports at several dates in equal frames. So a further match
counts as one place where windows of one scene overlap, or where two scenes match upright at windows that would; any
other is named, to be looked at: it is false, or the two scenes have frames that differ.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from geomim.corpus.duplicates import blocks, verify, votes
from geomim.corpus.duplicates.fingerprint import (
    ORIENTATIONS,
    block_means,
    orient,
    orientations,
    perceptual_hash,
    signature,
)
from geomim.corpus.duplicates.hamming import cross_pairs
from geomim.corpus.quality import assess

RADIUS = 8
MIN_SHARE = 0.2
Pair = tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--tiles", type=int, default=1000)
    arguments = parser.parse_args()
    rows = []
    for name, windows, edge in (
        ("rsicd", photographs(arguments.folder / "rsicd", arguments.tiles), 124),
        ("airbus", scene_windows(arguments.folder / "airbus", arguments.tiles), 256),
    ):
        for kind in KINDS:
            print(f"{name}, {kind}", flush=True)
            rows.append(measure(name, kind, windows, edge))
    print("\n| tiles | kind | copies | by whole tile | by crop | by either | further pairs of one place | to look at |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def photographs(folder: Path, count: int) -> list[tuple[str, np.ndarray]]:
    """Named images `(3, 128, 128)`."""
    files = sorted(folder.rglob("*.jpg"))
    chosen = np.random.default_rng(0).choice(len(files), min(count, len(files)), replace=False)
    return [(files[place].stem, _read(files[place])) for place in sorted(chosen)]


def scene_windows(folder: Path, count: int) -> list[tuple[str, np.ndarray]]:
    """Named windows of scenes, wide enough for a 256 px tile and one that overlaps its half: `(3, 260, 384)`."""
    files, result = sorted(folder.glob("*.jpg")), []
    for file in files:
        pixels = _read(file)
        places = [(y, x) for y in range(0, 2300, 256) for x in range(0, 2176, 256)]
        for y, x in np.random.default_rng(0).permutation(places)[: -(-count // len(files))]:
            result.append((f"{file.stem[:8]}/{y},{x}", pixels[:, y : y + 260, x : x + 384].copy()))
    return result[:count]


def _read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def _noise(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels + _NOISE.normal(0, 2.55, pixels.shape)), 0, 255).astype(np.uint8)


_NOISE = np.random.default_rng(0)


def _gain(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * 0.85 + 12).astype(np.uint8)


def _of_tile(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    return lambda window, edge: (window[:, :edge, :edge], change(window[:, :edge, :edge]))


def _shift(window: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    return window[:, :edge, :edge], window[:, 4 : edge + 4, 4 : edge + 4]


def _half(window: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    edge = min(edge, 2 * (window.shape[2] // 3))
    return window[:, :edge, :edge], window[:, :edge, edge // 2 : edge // 2 + edge]


def _half_turned(window: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    one, two = _half(window, edge)
    return one, _jpeg(orient(two, 5))


KINDS: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]] = {
    "exact": _of_tile(lambda tile: tile),
    "rotated by 90 degrees": _of_tile(lambda tile: orient(tile, 5)),
    "flipped": _of_tile(lambda tile: orient(tile, 1)),
    "gain 0.85, offset 12": _of_tile(_gain),
    "JPEG, quality 50": _of_tile(_jpeg),
    "noise of 1 %": _of_tile(_noise),
    "shifted by 4 px, both ways": _shift,
    "half-overlapping crop": _half,
    "the same, rotated, JPEG 50": _half_turned,
}


TURNED = {"rotated by 90 degrees": 6, "flipped": 1, "the same, rotated, JPEG 50": 6}
"""How copies must be turned to look like their originals, where they must."""


def measure(name: str, kind: str, windows: list[tuple[str, np.ndarray]], edge: int) -> tuple[str, ...]:
    """Search originals and copies of one kind together.

    Args:
        name: Of the set.
        kind: One of `KINDS`.
        windows: Named pixels to cut originals and copies from.
        edge: Of the tiles.
    """
    made = [KINDS[kind](window, edge) for _, window in windows]
    tiles = np.stack([one for one, _ in made] + [two for _, two in made])
    count = len(windows)
    whole, crops = by_whole(tiles), by_crops(tiles)
    either = crops | whole
    planted = [(place, place + count) for place in range(count)]
    missed = [windows[one][0] for one, two in planted if (one, two) not in either]
    if missed:
        print(f"  missed: {', '.join(missed)}")
    same, doubtful = set(), set()
    for (one, two), turn in either.items():
        if one % count == two % count:
            continue
        names = windows[one % count][0], windows[two % count][0]
        upright = turn == (TURNED.get(kind, 0) if one < count <= two else 0)
        if upright and _could_overlap(*names):
            same.add(tuple(sorted(names)))
        else:
            doubtful.add(tuple(sorted(names)))
            print(f"  to look at: {names[0]} and {names[1]}, {ORIENTATIONS[turn]}")
    shares = [f"{sum(pair in found for pair in planted) / count:.3f}" for found in (whole, crops, either)]
    edge = tiles.shape[2]
    return (f"{name}, {edge} px", kind, f"{count:,}", *shares, str(len(same)), str(len(doubtful)))


def _could_overlap(one: str, two: str) -> bool:
    """Whether windows of scenes in one frame overlap, by their names."""
    if "/" not in one:
        return False
    places = [np.array(name.split("/")[1].split(","), int) for name in (one, two)]
    return bool((np.abs(places[0] - places[1]) < (260, 384)).all())


def by_whole(tiles: np.ndarray) -> dict[Pair, int]:
    """Pairs of tiles whose hashes are near and whose detail correlates, and how the second one is turned."""
    valid = np.ones((len(tiles), *tiles.shape[2:]), bool)
    means = block_means(tiles, valid)
    places = np.flatnonzero(~assess(tiles, valid).low_information)
    hashes, signatures = perceptual_hash(means)[places], signature(means)[places]
    found = {}
    for k in range(8):
        near, _ = cross_pairs(orientations(hashes)[k], hashes, RADIUS)
        two, one = near[near[:, 1] < near[:, 0]].T
        alike = verify.correlation(signatures[one], signatures[two], np.full(len(one), k)) >= verify.MIN_CORRELATION
        found |= dict.fromkeys(zip(places[one[alike]].tolist(), places[two[alike]].tolist(), strict=True), k)
    return found


def by_crops(tiles: np.ndarray) -> dict[Pair, int]:
    """Pairs of tiles that overlap by a fifth or more and show the same there."""
    grays = tiles.mean(1, dtype=np.float32)
    valid = np.ones(grays.shape[1:], bool)
    corners = max(32, 32 * grays[0].size // 256**2)
    parts = [blocks.block_hashes(gray, valid, corners) for gray in grays]
    counts = [len(hashes) for hashes, _ in parts]
    everything = votes.Blocks(
        np.repeat(np.arange(len(tiles)), counts),
        np.concatenate([hashes for hashes, _ in parts]),
        np.concatenate([xy for _, xy in parts]),
        np.tile(np.array(grays.shape[1:]), (sum(counts), 1)),
    )
    crops, found = votes.crop_pairs(everything, min_votes=1), {}  # as a build of few tiles does
    least = np.where(crops.votes > 1, blocks.MIN_CORRELATION, blocks.MIN_SINGLE_CORRELATION)
    columns = (crops.one, crops.two, crops.orientation, crops.offset.tolist(), least)
    for one, two, turn, (x, y), sure in zip(*columns, strict=True):
        share, alike = blocks.overlap(grays[one], grays[two], int(turn), (x, y))
        if share >= MIN_SHARE and alike >= sure:
            found[int(one), int(two)] = int(turn)
    return found


if __name__ == "__main__":
    main()
