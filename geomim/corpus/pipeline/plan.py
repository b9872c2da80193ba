"""Which sources there are, what opening them says, and how they are dealt out into tasks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from geomim.corpus.labels import open_masks
from geomim.corpus.pipeline.executor import Rows, Workers
from geomim.corpus.scenes import Scene, scene_name, source_files
from geomim.corpus.scenes.clouds import cloud_file
from geomim.corpus.scenes.meaning import ADDED, is_sentinel2
from geomim.corpus.slicing import Grid, whole, windows
from geomim.corpus.sources.items import Item, open_item
from geomim.errors import BandError, GeomimError, InputError
from geomim.sensors import Sensor

SCENES_PER_TASK = 8192
SCENES_PER_SCAN = 256
BYTES_PER_TASK = 64 * 2**20  # of 8 bits: a shard of small images; worth starting, and losing it loses little
_INLINE_SOURCES = 2000  # below this, starting a process costs more than it saves

GIVEN = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("label", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("licence", pa.string()),
        pa.field("attribution", pa.string()),
        pa.field("card", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("non_commercial", pa.bool_()),
    ]
)
"""What is known of a source before it is opened."""

_FOUND = [
    pa.field("tiles", pa.int64(), nullable=False),
    pa.field("whole", pa.int64(), nullable=False),
    pa.field("found", pa.dictionary(pa.int32(), pa.string()), nullable=False),  # or it were most of the bytes
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("refused", pa.string(), nullable=False),
    pa.field("notes", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("bytes", pa.int64(), nullable=False),
    pa.field("modified", pa.int64(), nullable=False),
]
SOURCES = pa.schema([*GIVEN, *_FOUND])
"""A row a source. `tiles` lie on its grid; `whole` is its edge where it may be one tile, else the shorter one below 0,
and 0 where it cannot be opened; `found` is its sensor as JSON; `refused` says why it cannot be used, or ""; `notes` say
what was guessed or lost, a sentence a line; `bytes` and `modified` (ns) are those of its local files and of
the masks beside them, else -1."""


@dataclass(frozen=True)
class Plan:
    """How scenes are read and cut; the same for every task of a build.

    See `build` for the meaning of each; `options` are `resolution`, `warp`, `clouds` and `harmonise` of `open_scene`.
    """

    grid: Grid
    sensor: Sensor | None
    bands: list[str] | None
    masks: str | None
    crops: bool
    options: dict[str, Any]

    def open(self, uri: str, card: str | None) -> Scene:
        """Open a source.

        Args:
            uri: Where it is.
            card: Which card says what its bands are, or None; the user's own word comes first.
        """
        return open_item(Item(uri, card=card), self.sensor, self.bands, **self.options)

    def described(self) -> str:
        """All that decides what is cut, as JSON, with what the sensor's file says."""
        values = asdict(self) | {"crops": None, "sensor": self.sensor.to_dict() if self.sensor else None}
        values |= {"classes": open_masks(self.masks).classes} if self.masks else {}  # masks hold places among them
        return json.dumps(values, sort_keys=True)

    def beside(self, uri: str) -> list[str]:
        """Files that a source's labels and clouds are read from, where folders of them are given.

        Raises:
            InputError: A folder is not there, or holds several masks for the source.
        """
        clouds = cloud_file(self.options["clouds"], uri)
        return (open_masks(self.masks).files(uri) if self.masks else []) + ([clouds] if clouds else [])


def state(plan: Plan, uri: str) -> tuple[int, int]:
    """Size and last change of the local files that a source's tiles are made of; -1 where there is none."""
    try:
        status = [os.stat(file) for file in source_files(uri) + plan.beside(uri)]
    except (OSError, InputError):
        return -1, -1
    # the sum, not the latest: a file that an older one takes the place of has changed, too
    return sum(one.st_size for one in status) or -1, sum(one.st_mtime_ns for one in status) % 2**62 if status else -1


def scan(plan: Plan, rows: Rows) -> pa.Table:
    """Open sources without reading their pixels: from rows of `GIVEN` to rows of `SOURCES`."""
    given = rows.table
    found: dict[str, list[Any]] = {field.name: [] for field in _FOUND}
    for uri, card in zip(given["uri"].to_pylist(), given["card"].to_pylist(), strict=True):
        tiles, edge, kind, dtype, refused, notes = 0, 0, "", "", "", ""
        try:
            with plan.open(uri, card) as scene:
                tiles = len(windows(scene.height, scene.width, plan.grid, scene_name(uri)))
                edge = whole(scene.height, scene.width, scene.crs is not None) or -min(scene.height, scene.width)
                kind, dtype, notes = _as_json(scene.sensor), scene.dtype.name, "\n".join(scene.notes)
        except GeomimError as error:
            refused = str(error)
        for name, value in zip(found, (tiles, edge, kind, dtype, refused, notes, *state(plan, uri)), strict=True):
            found[name].append(value)
    columns = [*given.select(GIVEN.names).columns, *(pa.array(found[field.name], field.type) for field in _FOUND)]
    return pa.Table.from_arrays(columns, schema=SOURCES)


@lru_cache(maxsize=64)
def _as_json(sensor: Sensor) -> str:
    return json.dumps(sensor.to_dict())


def scan_all(plan: Plan, given: pa.Table, workers: Workers) -> pa.Table:
    """`scan` of all sources, checked to make one corpus.

    Raises:
        BandError: They have different bands.
        InputError: None can be used.
    """
    chunks = [(plan, Rows(given.slice(at, SCENES_PER_SCAN))) for at in range(0, len(given), SCENES_PER_SCAN)]
    tables = workers.run("opening sources", scan, chunks, inline=len(given) < _INLINE_SOURCES)
    sources = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    _check_one_sensor(sources)
    sources = _of_one_type(sources)
    if pc.all(pc.not_equal(sources["refused"], "")).as_py():
        reasons = sources["refused"].unique().to_pylist()
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise InputError(f"none of the {len(sources)} sources can be used: {'; '.join(reasons[:5])}{more}")
    return sources


def _check_one_sensor(sources: pa.Table) -> None:
    kinds = sources.group_by("found").aggregate([("uri", "count"), ("uri", "min")]).to_pylist()
    kinds = [kind for kind in kinds if kind["found"]]  # the others are refused
    if len(kinds) > 1:
        kinds.sort(key=lambda kind: (-kind["uri_count"], kind["uri_min"]))
        named = [(Sensor.from_dict(json.loads(kind["found"])), kind["uri_count"], kind["uri_min"]) for kind in kinds]
        usual, listed = named[0][0], []
        for sensor, count, uri in named:
            listed.append(f"{count} of {sensor.name} ({', '.join(sensor.names)}), such as '{uri}'")
            if sensor.names == usual.names and sensor is not usual:
                listed[-1] += f", with {sensor.deviation(usual)}"
        raise BandError(
            f"a corpus holds one sensor; the sources are of {len(kinds)} kinds: {'; '.join(listed)}. "
            f"{_advice([sensor for sensor, _, _ in named])}"
        )


def _advice(kinds: list[Sensor]) -> str:
    """What brings sources of these kinds into one corpus."""
    usual, *others = {replace(kind, offset=0.0) for kind in kinds}
    if not others and is_sentinel2(usual) and {kind.offset for kind in kinds} == {0.0, -ADDED * usual.scale}:
        return "Give --harmonise to take off the 1000 that Sentinel-2 adds since processing baseline 04.00"
    return "Build a corpus of each, or choose common bands with --sensor or --bands"


def noted(sources: pa.Table) -> list[str]:
    """What was guessed or lost of the sources, a line a sentence with how many it is said of."""
    groups = sources.group_by("notes").aggregate([("uri", "count"), ("uri", "min")]).to_pylist()
    said: dict[str, tuple[int, str]] = {}
    for group in sorted(groups, key=lambda group: group["uri_min"]):
        for note in filter(None, group["notes"].split("\n")):
            count, first = said.get(note, (0, group["uri_min"]))
            said[note] = count + group["uri_count"], first
    return [f"note: {count} source{'s' * (count > 1)}, such as '{uri}': {note}" for note, (count, uri) in said.items()]


def _of_one_type(sources: pa.Table) -> pa.Table:
    """Skip the scenes whose numbers are of another type than most: one array holds one type, and none is converted."""
    counts = {row["values"]: row["counts"] for row in pc.value_counts(sources["dtype"]).to_pylist() if row["values"]}
    if len(counts) < 2:
        return sources
    (usual, count), *_ = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    other = pc.invert(pc.is_in(sources["dtype"], pa.array(["", usual])))
    why = f" and {count} other sources {usual}, and a corpus holds one type: build a corpus of its own, or convert it"
    uris, kinds = (sources[name].filter(other) for name in ("uri", "dtype"))
    reasons = pc.binary_join_element_wise("'", uris, "' stores ", kinds, why, "").combine_chunks()  # of these alone
    refused = pc.replace_with_mask(sources["refused"].combine_chunks(), other.combine_chunks(), reasons)
    new = {"refused": refused, "tiles": pc.if_else(other, 0, sources["tiles"])}
    for name, column in new.items():
        sources = sources.set_column(sources.column_names.index(name), SOURCES.field(name), column)
    return sources


@dataclass(frozen=True)
class Task:
    """A run of consecutive sources that one worker cuts.

    Attributes:
        name: Number and digest: the same name means the same outcome, so a finished task is never done again, and
            one whose source changed is.
        sources: Of `SOURCES`.
        first_id: Id of its first tile.
    """

    name: str
    sources: Rows
    first_id: int


def tasks(plan: Plan, sources: pa.Table) -> list[Task]:
    """Deal the usable sources out; depends on plan and sources alone, so that a resumed build finds its own."""
    usable = sources.filter(pc.equal(sources["refused"], ""))
    bands = len(json.loads(usable["found"][0].as_py())["bands"])
    dealt = deal(usable["tiles"].to_numpy(), max(plan.grid.sizes) ** 2 * bands)
    first = np.concatenate([[0], np.cumsum(usable["tiles"].to_numpy())])
    how = plan.described()
    result = []
    for number, (start, end) in enumerate(dealt):
        rows = usable.slice(start, end - start)
        digest = xxhash.xxh3_64_hexdigest((how + json.dumps(rows.to_pylist())).encode())
        result.append(Task(f"{number:06d}-{digest}", Rows(rows), int(first[start])))
    return result


def deal(tiles: np.ndarray, pixels: int) -> list[tuple[int, int]]:
    """First source of each task and one behind its last, of sources that have so many tiles of so many numbers."""
    dealt, start, size = [], 0, 0
    for row, more in enumerate(np.minimum(tiles * pixels, BYTES_PER_TASK + 1).tolist()):
        if row > start and (row - start == SCENES_PER_TASK or size + more > BYTES_PER_TASK):
            dealt.append((start, row))
            start, size = row, 0
        size += more
    return [*dealt, (start, len(tiles))]
