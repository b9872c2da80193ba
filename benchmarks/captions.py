"""Boxes to captions on one core: draw labels of aerial scenes, write the five sentences of every tile.

    python benchmarks/captions.py          # a million boxes
    python benchmarks/captions.py --quick

Measured is what `geomim corpus caption --of boxes` does with a part of the catalogue: boxes from Arrow, sentences, and
the small table of them. Time is that of the process on its core, so that other work beside it does not count; the
wall's is printed, too.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from functools import partial

import numpy as np
import pyarrow as pa

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.objects import from_boxes
from geomim.corpus.captions.table import table_of
from geomim.corpus.captions.templates import by_boxes, placed
from geomim.corpus.store import CATALOGUE

CLASSES = ("plane", "ship", "storage-tank", "baseball-diamond", "tennis-court", "harbor", "bridge", "large-vehicle",
           "small-vehicle", "roundabout", "swimming-pool", "ground-track-field")  # fmt: skip
SIDE, PART = 512, 16_384  # pixels of a tile; tiles a part


def part(random: np.random.Generator, first: int, boxes_a_tile: float) -> pa.Table:
    """Tiles with turned boxes: a few classes a tile, and counts with a long tail, as detection sets have them."""
    counts = random.geometric(1 / boxes_a_tile, PART)
    total = int(counts.sum())
    size, turn = random.uniform(8, 60, (total, 2)), random.uniform(0, np.pi, total)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size[:, None] / 2
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    turned = np.stack([corners[..., 0] * cos - corners[..., 1] * sin, corners[..., 0] * sin + corners[..., 1] * cos], 2)
    polygons = (turned + random.uniform(0, SIDE, (total, 1, 2))).reshape(total, 8)
    kinds = (random.integers(0, len(CLASSES), PART).repeat(counts) + random.integers(0, 3, total)) % len(CLASSES)
    flat = pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(np.arange(total + 1, dtype=np.int32) * 8, polygons.ravel().astype(np.float32)),
         pa.array(np.array(CLASSES)[kinds])], ["polygon", "label"])  # fmt: skip
    boxes = pa.ListArray.from_arrays(np.concatenate([[0], counts.cumsum()]).astype(np.int32), flat)
    columns = {"id": np.arange(first, first + PART), "size": [SIDE] * PART, "slot": [0] * PART,
               "source": ["a.png"] * PART, "valid_fraction": [1.0] * PART}  # fmt: skip
    arrays = {name: pa.array(values, CATALOGUE.field(name).type) for name, values in columns.items()}
    return pa.table(arrays | {"boxes": boxes})


def write(tiles: pa.Table, richer: bool) -> pa.Table:
    """Sentences of a part, as `geomim.corpus.captions.writing.write_part` has them."""
    ids, rows = tiles["id"].to_pylist(), []
    for place, objects in from_boxes(None, tiles, {}, Counter()).by_tile():  # type: ignore[arg-type]
        chance = partial(Chance, 0, ids[place], "b2c")
        said = [(text, "b2c") for text in by_boxes(objects, SIDE, 0.5, chance)]
        if richer:
            said += [(text, "b2c-placed") for text in placed(objects, SIDE, 0.5, chance)]
        rows.append((ids[place], said))
    return table_of(rows)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--boxes_a_tile", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="does it run")
    given = parser.parse_args()
    wanted = 100_000 if given.quick else given.boxes
    for name, richer in (("faithful", False), ("both_families", True)):
        random, boxes, sentences, tiles, spent, passed = np.random.default_rng(0), 0, 0, 0, 0.0, 0.0
        while boxes < wanted:
            table = part(random, tiles, given.boxes_a_tile)
            core, wall = time.process_time(), time.perf_counter()
            written = write(table, richer)
            spent, passed = spent + time.process_time() - core, passed + time.perf_counter() - wall
            boxes += len(table["boxes"].combine_chunks().flatten())
            sentences += len(written["captions"].combine_chunks().flatten())
            tiles += PART
        print(f"{name}_seconds_a_million_boxes: {spent / boxes * 1e6:.1f}")
        print(f"{name}_wall_seconds_a_million_boxes: {passed / boxes * 1e6:.1f}")
        print(f"{name}: {boxes} boxes of {tiles} tiles, {sentences} sentences")


if __name__ == "__main__":
    main()
