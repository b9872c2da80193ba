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

from geomim.corpus.assemble import masked, report
from geomim.corpus.duplicates.keep import components
from geomim.corpus.labels import SPLITS, by_tables
from geomim.corpus.pipeline.conclude import conclude, open_to_change
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
        min_valid: Share of a tile's pixels that must be measurements, 0 to 1, no less than the build asked for; what is
            not given stays as it is.
        max_cloud: Largest share of clouds, 0 to 1; 1 lets all in.
        where: SQL condition on the catalogue's columns that a tile must meet; `true` lets all in.
        quota: Tiles of low information that are kept of each scene.
        near: Bits in which near duplicates may differ, up to those the build looked for; -1 keeps near duplicates.
        overlap: Share of the smaller of two overlapping tiles from which one is dropped; above 1 keeps both.
        only_licence: Licences to keep, as the catalogue spells them; an empty list lets all in, tiles without one, too.
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
    compared = opened.meta.get("searched_valid", 0.0)
    if min_valid is not None and 0 <= min_valid < compared:
        raise InputError(
            f"the build compared tiles of which {compared:g} or more is valid, and those of --min-valid {min_valid:g} "
            f"may be duplicates unseen: build again with --min-valid {min_valid:g}; `decide` can raise it then"
        )
    if not labels and not split:
        conclude(opened.path, **given)
    else:
        asked = {"labels": labels, "split": split, "allow_unmatched": allow_unmatched}
        small, said = _join(opened, **asked)
        conclude(opened.path, {"join": asked}, small, said=said, **given)
    report(opened.path)
    return opened.path


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

    Groups are drawn whole: copies, overlaps and crops of each other, whatever `by` says; and beyond that the tiles of
    one place, source or cluster. Then no kept tile of train shares ground, at any time, or a pixel with a kept one of
    val or test: those at the border of a group that would (by a stride, another date, another file) are dropped from
    train with that reason. This is checked on the outcome.

    Args:
        corpus: Folder of the corpus.
        by: `place`: all tiles whose middle lies in one square of the Earth, so that neighbours stay together (tiles
            without a place: by source). `source`: all tiles of one file. `cluster`: only what is alike, and what
            lies on one tile's ground.
        test_share: Share of the kept tiles to hold out as test, 0 to 1.
        val_share: Share of the kept tiles to hold out as val, 0 to 1.
        block: Edge of a square of `place` in kilometres.
        seed: Which groups are drawn.

    Returns:
        The folder.

    Raises:
        CorpusError: It is no corpus, or one that holds no edges between its tiles.
        InputError: A share is out of range, there are too few groups to divide, or nothing would be left to train on.
    """
    if not (0 <= test_share and 0 <= val_share and 0 < test_share + val_share < 1 and 0 < block < np.inf):
        raise InputError(
            f"shares must lie in 0..1 and leave something to train on, and a block have an edge; given test "
            f"{test_share}, val {val_share}, block {block} km"
        )
    asked = {"by": by, "test_share": test_share, "val_share": val_share, "block": block, "seed": seed}
    opened = open_to_change(corpus)
    tiles = opened.table(["id", "source", "row", "col", "size", "geometry", "reason"])
    joined = _joined(opened.path, tiles["id"].to_numpy())
    # What left train for the split before is there again.
    kept = pc.or_(pc.equal(tiles["reason"], ""), pc.starts_with(tiles["reason"], "shares ")).to_numpy()
    shares = {"test": test_share, "val": val_share}
    names = _draw(group := _together(joined, _places(tiles, by, block)), kept, shares, seed)
    if names is None:
        finer = _draw(_together(joined, _places(tiles, "cluster", block)), kept, shares, seed)
        raise InputError(_undivided(group, kept, shares, by != "cluster" and finer is not None))
    conclude(opened.path, {"split": asked}, {"split": pa.table({"id": tiles["id"], "split": names})})
    report(opened.path)
    return opened.path


def _places(tiles: pa.Table, by: str, block: float) -> list[str]:
    """The name of the group that each tile starts in."""
    sources = tiles["source"].to_pylist()
    if by == "source":
        return list(sources)
    outlines = shapely.from_wkb(np.array(tiles["geometry"].to_pylist(), object))
    missing = shapely.is_missing(outlines)
    names = np.array(sources, object)
    if by == "cluster":  # squares as large as a tile, in pixels of its source
        row, col, size = (tiles[name].to_numpy() for name in ("row", "col", "size"))
        names = np.array([f"{s} {r} {c}" for s, r, c in zip(sources, row // size, col // size, strict=True)], object)
    # A tile across the antimeridian has a part on either side: the middle of both would lie on the other side of the
    # Earth.
    first = shapely.get_geometry(outlines[~missing], 0)
    middle = shapely.get_coordinates(shapely.centroid(first))
    edge = np.full(len(first), block)
    if by == "cluster":
        heights = np.ptp(shapely.bounds(first)[:, 1::2], axis=1) * _KM_A_DEGREE
        edge = 2 ** np.round(np.log2(np.maximum(heights, 1e-9)))  # the same for tiles whose grids lie otherwise
    row = np.floor(middle[:, 1] * _KM_A_DEGREE / edge)
    # Squares of a row of latitude are equally wide on the ground.
    width = edge / (_KM_A_DEGREE * np.cos(np.radians((row + 0.5) * edge / _KM_A_DEGREE)).clip(0.01))
    squares = np.stack([row, np.floor(middle[:, 0] / width)], 1).astype(int).tolist()
    names[~missing] = ["{} {} {:g}".format(*square, size) for square, size in zip(squares, edge, strict=True)]
    return names.tolist()


_KM_A_DEGREE = 111.2  # of latitude


def _joined(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Places of tiles that an edge joins, or that are exact copies, `(m, 2)`."""
    pairs = []
    for file, ends in (("edges", ("a", "b")), ("copies", ("id", "original"))):
        table = pq.read_table(folder / "catalogue" / f"{file}.parquet", columns=list(ends))
        pairs.append(np.stack([np.searchsorted(ids, table[end].to_numpy()) for end in ends], 1))
    return np.concatenate(pairs)


def _together(joined: np.ndarray, names: list[str]) -> np.ndarray:
    """Groups of tiles that must not be divided, `(n,)`: those of one name, and those that are joined."""
    _, first, own = np.unique(names, return_index=True, return_inverse=True)
    return components(len(names), np.concatenate([np.stack([np.arange(len(names)), first[own]], 1), joined]))


def _draw(group: np.ndarray, kept: np.ndarray, shares: dict[str, float], seed: int) -> list[str] | None:
    """Whole groups to test, then to val, in an order drawn by `seed`, until each has its share of the kept tiles.

    A group that would overfill a split stays in train. None where a split would stay empty, or train.
    """
    names, place = np.unique(group, return_inverse=True)
    weight = np.bincount(place, kept.astype(float), len(names))
    order = sorted(range(len(names)), key=lambda one: xxhash.xxh3_64_intdigest(f"{seed} {names[one]}".encode()))
    split = np.full(len(names), SPLITS.index("train"))
    for name, share in shares.items():
        room = share * weight.sum() + 1e-9
        for one in order:
            if split[one] == 0 and 0 < weight[one] <= room:
                split[one] = SPLITS.index(name)
                room -= weight[one]
        if share and not (split == SPLITS.index(name)).any():
            return None
    return [SPLITS[one] for one in split[place]] if weight[split == 0].any() else None


def _undivided(group: np.ndarray, kept: np.ndarray, shares: dict[str, float], finer: bool) -> str:
    """Why nothing can be drawn, and what to do."""
    sizes = np.bincount(group[kept])
    sizes, wanted = np.sort(sizes[sizes > 0]) / len(group[kept]), [f"--{name}-share" for name in shares if shares[name]]
    way = "try --by cluster" if finer else "add other scenes"
    if not finer and len(sizes) > len(wanted):
        way = f"raise {' and '.join(wanted)} to {np.ceil(sizes[len(wanted) - 1] * 1000) / 1000:g}"
    return f"no group is small enough: the smallest of {len(sizes)} holds {sizes[0]:.3g} of the kept tiles; {way}"
