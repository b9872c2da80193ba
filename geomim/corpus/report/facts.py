"""What became of the tiles of a corpus: counts, and a few rows of everything, gathered piece by piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus

KINDS = {
    "valid fraction": "too few valid pixels",
    "no valid pixel": "too few valid pixels",
    "cloud fraction": "too cloudy",
    "licence": "licence not asked for",
    "where": "left out by a condition",
    "quota": "low information, over the quota",
    "exact duplicate": "exact duplicates",
    "near duplicate": "near duplicates",
    "overlap": "overlaps and crops",
    "crop": "overlaps and crops",
    "embedding": "alike in embedding space",
    "shares": "shared with val or test",
    "balance": "thinned out for balance",
    "touches": "touching a benchmark",
}
"""How a reason begins, and the words for all tiles that have it."""

EXAMPLES = 12
"""Rows kept of each kind of reason."""
SPOKEN = 4
"""Rows kept of each origin of sentences."""
SAMPLE = 128
"""Rows kept of each size among the kept tiles."""
CLUSTERS = 12
"""Largest groups of duplicates that are shown."""
_COLUMNS = ("id", "slot", "size", "source", "kept", "reason", "duplicate_of", "split", "label", "dataset", "licence")
_SAID = ("captions", "caption_origins")
_ROWS = 65536  # of the catalogue in memory at a time


@dataclass
class Facts:
    """Everything the report says of the tiles, except for what their pixels show.

    Attributes:
        tiles: How many tiles there are.
        kinds: Tiles dropped for each kind of reason.
        examples: Some rows of each kind, evenly drawn by their ids.
        sample: Some rows of the kept tiles, by size.
        classes: Kept tiles by split, then by class (None for tiles without one).
        origins: All and kept tiles by dataset, licence and whether commercial use is forbidden.
        sources: Files that gave tiles.
        low_information: Kept tiles with little to see, and all of them.
        clusters: Id of a kept tile and the ids of tiles that it stands for, largest groups first.
        grouped: Number of such groups, and of the tiles dropped in them.
        captions: Sentences of kept tiles by their origin.
        captioned: Kept tiles with and without sentences.
        said: Some rows of kept tiles that have sentences of an origin, by origin.
    """

    tiles: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sample: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    classes: dict[str, Counter[str | None]] = field(default_factory=dict)
    origins: dict[tuple[str | None, str | None, bool | None], np.ndarray] = field(default_factory=dict)
    sources: int = 0
    low_information: tuple[int, int] = (0, 0)
    clusters: list[tuple[int, list[int]]] = field(default_factory=list)
    grouped: tuple[int, int] = (0, 0)
    captions: Counter[str] = field(default_factory=Counter)
    captioned: Counter[bool] = field(default_factory=Counter)
    said: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def kind_of(reason: str) -> str:
    """The kind that a tile's reason belongs to; the reason itself where it belongs to none."""
    return next((words for begin, words in KINDS.items() if reason.startswith(begin)), reason)


def funnel(corpus: Corpus) -> dict[str, int]:
    """How many tiles were seen, dropped for each kind of reason, and kept, in this order."""
    kinds: Counter[str] = Counter()
    tiles = 0
    for batch in corpus.rows().to_batches(columns=["kept", "reason"], batch_size=_ROWS):
        tiles += len(batch)
        kinds += _count_kinds(batch)
    return as_funnel(tiles, kinds)


def as_funnel(tiles: int, kinds: Counter[str]) -> dict[str, int]:
    """Counts in the order in which tiles are dropped; kinds that do not occur are 0 if every corpus could have them."""
    always = ("too few valid pixels", "exact duplicates", "near duplicates")
    known = [kind for kind in dict.fromkeys(KINDS.values()) if kinds[kind] or kind in always]
    dropped = {kind: kinds[kind] for kind in [*known, *sorted(kinds.keys() - set(KINDS.values()))]}
    return {"tiles": tiles, **dropped, "kept": tiles - sum(dropped.values())}


def _count_kinds(batch: pa.RecordBatch) -> Counter[str]:
    dropped = batch.filter(pc.invert(batch["kept"]))["reason"]
    kinds: Counter[str] = Counter()
    for row in pc.value_counts(dropped).to_pylist():
        kinds[kind_of(row["values"])] += row["counts"]
    return kinds


def gather(corpus: Corpus) -> Facts:
    """Read the catalogue once, a piece at a time."""
    facts = Facts()
    keepers: list[np.ndarray] = []
    last = None
    columns = [*_COLUMNS, "non_commercial", "low_information", "valid_fraction", *_SAID]
    for batch in corpus.rows().to_batches(columns=columns, batch_size=_ROWS):
        if not len(batch):
            continue
        table = pa.Table.from_batches([batch])
        facts.tiles += len(table)
        facts.kinds += _count_kinds(batch)
        last = _count_sources(facts, table["source"], last)
        _count_classes(facts, table)
        _count_origins(facts, table)
        _draw(facts, table.drop_columns(_SAID))
        _count_captions(facts, table.filter(table["kept"]))
        keepers.append(pc.drop_null(table["duplicate_of"]).to_numpy())
    _group(facts, corpus, np.concatenate([np.empty(0, np.int64), *keepers]))
    return facts


def _count_sources(facts: Facts, sources: pa.ChunkedArray, last: str | None) -> str:
    """Tiles of one source lie together, so its beginning is where the name changes."""
    names = sources.combine_chunks()
    changes = pc.sum(pc.not_equal(names[1:], names[:-1])).as_py() or 0
    facts.sources += changes + (names[0].as_py() != last)
    return names[-1].as_py()


def _count_classes(facts: Facts, table: pa.Table) -> None:
    kept = table.filter(table["kept"])
    low = table["low_information"].fill_null(False)
    some, whole = facts.low_information
    more = pc.sum(pc.and_(low, table["kept"])).as_py() or 0
    facts.low_information = (some + more, whole + (pc.sum(low).as_py() or 0))
    for row in kept.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist():
        facts.classes.setdefault(row["split"] or "train", Counter())[row["label"]] += row["count_all"]


def _count_captions(facts: Facts, kept: pa.Table) -> None:
    some = kept.filter(pc.greater(pc.list_value_length(kept["captions"]), 0))
    facts.captioned += Counter({True: len(some), False: len(kept) - len(some)})
    captions, told = (some[name].combine_chunks() for name in _SAID)
    tile = pc.list_parent_indices(captions).to_numpy()
    origin = np.full(len(tile), "human", object)  # where none is told
    origin[told.is_valid().to_numpy(zero_copy_only=False)[tile]] = told.flatten().to_numpy(zero_copy_only=False)
    coded = pa.array(origin, pa.string()).dictionary_encode()
    for number, name in enumerate(coded.dictionary.to_pylist()):
        here = tile[coded.indices.to_numpy() == number]
        facts.captions[name] += len(here)
        facts.said[name] = _lowest(facts.said.get(name, []), some.take(np.unique(here)), SPOKEN)


def _count_origins(facts: Facts, table: pa.Table) -> None:
    keys = ["dataset", "licence", "non_commercial"]
    counted = table.append_column("one", table["kept"].cast(pa.int64())).group_by(keys)
    for row in counted.aggregate([([], "count_all"), ("one", "sum")]).to_pylist():
        key = (row["dataset"], row["licence"], row["non_commercial"])
        facts.origins[key] = facts.origins.get(key, 0) + np.array([row["count_all"], row["one_sum"]])


def _draw(facts: Facts, table: pa.Table) -> None:
    """Keep the rows whose scrambled id is lowest: evenly spread, and the same whatever the pieces are."""
    kept = table.filter(table["kept"])
    for size in pc.unique(kept["size"]).to_pylist():
        rows = kept.filter(pc.equal(kept["size"], size))
        facts.sample[size] = _lowest(facts.sample.get(size, []), rows, SAMPLE)
    dropped = table.filter(pc.invert(table["kept"]))
    kinds = np.array([kind_of(reason) for reason in dropped["reason"].to_pylist()], object)
    for kind in dict.fromkeys(kinds.tolist()):
        facts.examples[kind] = _lowest(facts.examples.get(kind, []), dropped.filter(pa.array(kinds == kind)), EXAMPLES)


def _lowest(known: list[dict[str, Any]], rows: pa.Table, count: int) -> list[dict[str, Any]]:
    order = np.argsort(scramble(rows["id"].to_numpy()), kind="stable")[:count]
    both = known + rows.take(order).to_pylist()
    return sorted(both, key=lambda row: int(scramble(np.array([row["id"]]))[0]))[:count]


def scramble(ids: np.ndarray) -> np.ndarray:
    """Numbers that look random, the same for the same ids (Fibonacci hashing, then a fold)."""
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


def _group(facts: Facts, corpus: Corpus, keepers: np.ndarray) -> None:
    """The largest groups of duplicates with a few of their tiles."""
    unique, counts = np.unique(keepers, return_counts=True)
    facts.grouped = (len(unique), len(keepers))
    largest = unique[np.lexsort((unique, -counts))[:CLUSTERS]]
    if not len(largest):
        return
    where = pc.field("duplicate_of").isin(largest.tolist())
    members = corpus.table(["id", "duplicate_of"], where=where)
    of, ids = members["duplicate_of"].to_numpy(), members["id"].to_numpy()
    facts.clusters = [(int(keeper), ids[of == keeper].tolist()) for keeper in largest]


def rows_of(corpus: Corpus, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Rows of the catalogue by id."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    table = corpus.table(list(_COLUMNS), where=pc.field("id").isin(wanted))
    return {row["id"]: row for row in table.to_pylist()}


def crossing(corpus: Corpus) -> pa.Table:
    """Tiles `a` that went for a tile `b` of another split: columns `a`, `b`, `kind`, `split_a` and `split_b`.

    `kind` is exact, perceptual, footprint, crop or embedding, or what they share: ground or pixels.
    """
    tiles = corpus.table(["id", "split", "reason", "duplicate_of"])
    ids, splits = tiles["id"].to_numpy(), tiles["split"].fill_null("train")
    said = pc.struct_field(pc.extract_regex(tiles["reason"], _SHARES), "other")
    other = pc.coalesce(tiles["duplicate_of"], pc.cast(said, pa.int64()))
    places = np.flatnonzero(other.is_valid().to_numpy())
    others = np.searchsorted(ids, other.take(places).to_numpy())
    across = pc.not_equal(splits.take(places), splits.take(others)).to_numpy()
    places, others = places[across], others[across]
    begin = [reason.removeprefix("shares ").split()[0] for reason in tiles["reason"].take(places).to_pylist()]
    columns = {
        "a": ids[places],
        "b": ids[others],
        "kind": pa.array([_KINDS.get(one, one) for one in begin], pa.string()),
    }
    return pa.table(columns | {"split_a": splits.take(places), "split_b": splits.take(others)})


_SHARES = r"^shares .* tile (?P<other>\d+)$"
_KINDS = {"near": "perceptual", "overlap": "footprint"}
