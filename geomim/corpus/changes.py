"""What may change about a finished corpus without reading a pixel: thresholds and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
import xxhash
from rich.console import Console

from geomim.corpus.assemble import masked
from geomim.corpus.duplicates.keep import components
from geomim.corpus.labels import SPLITS, by_tables
from geomim.corpus.pipeline.conclude import conclude, open_to_change
from geomim.corpus.report.report import print_funnel, write_report
from geomim.corpus.store import Corpus
from geomim.errors import InputError


def decide(
    corpus: str,
    min_valid: float | None = None,
    max_cloud: float | None = None,
    where: str | None = None,
    quota: int | None = None,
    near: int | None = None,
    overlap: float | None = None,
    only_licence: list[str] | None = None,
    non_commercial: bool | None = None,
    labels: str | None = None,
    split: str | None = None,
    allow_unmatched: bool = False,
) -> Path:
    """Decide again which tiles of a corpus training reads, with other thresholds, labels or splits.

    No scene is cut again.

    Args:
        corpus: Folder of the corpus.
        min_valid: Share of a tile's pixels that must be measurements, 0 to 1; what is not given stays as it is.
        max_cloud: Largest share of clouds, 0 to 1; 1 lets all in.
        where: SQL condition on the catalogue's columns that a tile must meet; `true` lets all in.
        quota: Tiles of low information that are kept of each scene.
        near: Bits in which near duplicates may differ, up to those the build looked for; -1 keeps near duplicates.
        overlap: Share of the smaller of two overlapping tiles from which one is dropped; above 1 keeps both.
        only_licence: Licences to keep, as the catalogue spells them.
        non_commercial: Keep sources whose licence forbids commercial use.
        labels: `folder` (the class is the name of the folder), or a CSV or JSONL file with columns `image` and `label`.
        split: CSV or JSONL file with columns `image` and `split` (train, val, test), as for a build.
        allow_unmatched: Be content where rows of val or test name no source, or several.

    Returns:
        The folder.

    Raises:
        CorpusError: It is no corpus, or one that holds no edges between its tiles.
        InputError: A threshold is wrong, or no tile would be kept.
    """
    given = {name: value for name, value in locals().items() if name not in _NO_RULES and value is not None}
    given |= {name: None for name, off in (("near", near == -1), ("overlap", (overlap or 0) > 1)) if off}
    opened = open_to_change(corpus)
    searched = opened.meta.get("searched", 0)
    if near is not None and not -1 <= near <= searched:
        raise InputError(
            f"the build looked for near duplicates within {searched} bits, and -1 keeps them; --near {near} needs a "
            "new build"
        )
    if not labels and not split:
        conclude(opened.path, **given)
    else:
        asked = {"labels": labels, "split": split, "allow_unmatched": allow_unmatched}
        small, said = _join(opened, **asked)
        conclude(opened.path, {"join": asked}, small, said=said, **given)
    return _shown(opened.path)


_NO_RULES = ("corpus", "labels", "split", "allow_unmatched")


def _join(
    opened: Corpus, labels: str | None, split: str | None, allow_unmatched: bool
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Small tables of labels and splits by source, and what `corpus.json` says of them."""
    tiles = opened.table(["id", "source"])
    source = pc.dictionary_encode(tiles["source"].cast(pa.string())).combine_chunks()
    if labels and masked(opened):
        raise InputError(f"'{opened.path}' has label rasters, whose classes count: build another one with --labels")
    columns, joined = by_tables(source.dictionary.to_pylist(), labels, split, allow_unmatched)
    for one in joined:
        Console(stderr=True, markup=False, highlight=False).print(str(one), soft_wrap=True)
    said: dict[str, Any] = {"joined": [*opened.meta.get("joined", []), *map(str, joined)]}
    said |= ({"classes": []} if labels else {}) | ({"protect": True} if split else {})
    by_tile = {name: pa.array(values, pa.string()).take(source.indices) for name, values in columns.items()}
    return {name: pa.table({"id": tiles["id"], name: column}) for name, column in by_tile.items()}, said


def split(
    corpus: str,
    by: Literal["place", "source", "cluster"] = "place",
    test_share: float = 0.1,
    val_share: float = 0.0,
    block: float = 20.0,
    seed: int = 0,
) -> Path:
    """Divide a corpus into train, val and test, and compute its statistics from train alone.

    Tiles that belong together are never divided: exact and near copies, overlaps, crops of each other, whatever `by`
    says; and beyond that the tiles of one place, source or cluster.

    Args:
        corpus: Folder of the corpus.
        by: `place`: all tiles whose middle lies in one square of the Earth, so that neighbours stay together (tiles
            without a place: by source). `source`: all tiles of one file. `cluster`: only what is alike.
        test_share: Share of the kept tiles to hold out as test, 0 to 1.
        val_share: Share of the kept tiles to hold out as val, 0 to 1.
        block: Edge of a square of `place` in kilometres.
        seed: Which groups are drawn.

    Returns:
        The folder.

    Raises:
        CorpusError: It is no corpus, or one that holds no edges between its tiles.
        InputError: A share is out of range, or there are too few groups to divide.
    """
    if not (0 <= test_share and 0 <= val_share and 0 < test_share + val_share < 1) or block <= 0:
        raise InputError(
            f"shares must lie in 0..1 and leave something to train on, and a block have an edge; given test "
            f"{test_share}, val {val_share}, block {block} km"
        )
    asked = {"by": by, "test_share": test_share, "val_share": val_share, "block": block, "seed": seed}
    opened = open_to_change(corpus)
    tiles = opened.table(["id", "source", "geometry", "kept"])
    group = _together(opened.path, tiles["id"].to_numpy(), _places(tiles, by, block))
    kept = tiles["kept"].to_numpy(zero_copy_only=False)
    names = _draw(group, kept, test_share, val_share, seed)
    conclude(opened.path, {"split": asked}, {"split": pa.table({"id": tiles["id"], "split": names})})
    return _shown(opened.path)


def _shown(folder: Path) -> Path:
    """Write the report anew, and print the short one."""
    write_report(folder)
    print_funnel(Corpus.open(folder), Console(stderr=True, markup=False, highlight=False))
    return folder


def _places(tiles: pa.Table, by: str, block: float) -> list[str]:
    """The name of the group that each tile starts in."""
    sources, numbers = tiles["source"].to_pylist(), tiles["id"].to_pylist()
    if by == "cluster":
        return [str(number) for number in numbers]
    if by == "source":
        return list(sources)
    outlines = shapely.from_wkb(np.array(tiles["geometry"].to_pylist(), object))
    # A tile across the antimeridian has a part on either side: the middle of both would lie on the other side of the
    # Earth.
    first = shapely.get_geometry(outlines[~shapely.is_missing(outlines)], 0)
    middle = shapely.get_coordinates(shapely.centroid(first))
    row = np.floor(middle[:, 1] * _KM_A_DEGREE / block)
    # Squares of a row of latitude are equally wide on the ground.
    width = block / (_KM_A_DEGREE * np.cos(np.radians((row + 0.5) * block / _KM_A_DEGREE)).clip(0.01))
    squares = iter(np.stack([row, np.floor(middle[:, 0] / width)], 1).astype(int).tolist())
    return [
        source if missing else "{} {}".format(*next(squares))
        for source, missing in zip(sources, shapely.is_missing(outlines).tolist(), strict=True)
    ]


_KM_A_DEGREE = 111.2  # of latitude


def _together(folder: Path, ids: np.ndarray, names: list[str]) -> np.ndarray:
    """Groups of tiles that must not be divided, `(n,)`: those of one name, and those that an edge joins."""
    _, first, own = np.unique(names, return_index=True, return_inverse=True)
    pairs = [np.stack([np.arange(len(ids)), first[own]], 1)]
    for file, ends in (("edges", ("a", "b")), ("copies", ("id", "original"))):
        table = pq.read_table(folder / "catalogue" / f"{file}.parquet", columns=list(ends))
        pairs.append(np.stack([np.searchsorted(ids, table[end].to_numpy()) for end in ends], 1))
    return components(len(ids), np.concatenate(pairs))


def _draw(group: np.ndarray, kept: np.ndarray, test: float, val: float, seed: int) -> list[str]:
    """Whole groups to test, then to val, in an order drawn by `seed`, until each has its share of the kept tiles.

    A group that would overfill a split stays in train.
    """
    names, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
    weight = np.bincount(place, kept.astype(float), len(names))
    if len(names) < 2:
        raise InputError(f"all {sizes.sum()} tiles belong together: there is nothing to divide; try --by cluster")
    order = sorted(range(len(names)), key=lambda one: xxhash.xxh3_64_intdigest(f"{seed} {names[one]}".encode()))
    split = np.full(len(names), SPLITS.index("train"))
    wanted = {"test": test * weight.sum(), "val": val * weight.sum()}
    for name, room in wanted.items():
        for one in order:
            if split[one] == 0 and 0 < weight[one] <= room:
                split[one] = SPLITS.index(name)
                room -= weight[one]
        if wanted[name] and not (split == SPLITS.index(name)).any():
            raise InputError(
                f"no group is small enough for a {name} share of {wanted[name] / weight.sum():g}: the smallest of "
                f"{len(names)} holds {weight[weight > 0].min() / weight.sum():.3g} of the kept tiles; raise the share, "
                "or divide by something smaller (--by, --block)"
            )
    return [SPLITS[one] for one in split[place]]
