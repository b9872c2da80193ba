"""Corpora leave and come back as WebDataset shards: `pack` and `unpack`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from glob import escape, glob
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.assemble import (
    ARRAYS,
    BY_ID,
    INLINE_SHARDS,
    decide_anew,
    new_corpus,
    originals,
    read_small,
    working,
    write_copies,
    write_edges,
)
from geomim.corpus.duplicates.fingerprint import content_hash
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.remote import aside
from geomim.corpus.shards import ArrayLayout, copy_runs, create_array, write_groups, write_shard
from geomim.corpus.store import CATALOGUE, SKIPPED, Corpus, write_json, write_table
from geomim.errors import CorpusError, InputError

_META = "__corpus__/corpus.json"  # a name that readers of WebDataset pass over
_DECIDED = ("slot", "kept", "reason", "duplicate_of", "cluster")
_FACTS = pa.schema([field for field in CATALOGUE if field.name not in _DECIDED])
_STAGED = pa.schema(
    [
        *_FACTS,
        ("dtype", pa.string()),
        ("beside", pa.string()),
        ("pixels", pa.int64()),
        ("mean", pa.list_(pa.float64())),
        ("squares", pa.list_(pa.float64())),
        *((name, pa.int64()) for name in ARRAYS),
    ]
)
"""Facts of an archived tile, a hash of its validity and mask (exact copies share both), moments of its bands, and the
byte of the archive at which each of its arrays starts."""


def pack(corpus: str, out: str, per_shard: int = 1000, kept_only: bool = True) -> Path:
    """Write a corpus as WebDataset shards: for each tile its pixels (.image.npy), and its row of the catalogue (.json).

    Validity (.valid.npy) and labels (.mask.npy) come where a tile has some. The same corpus gives the same bytes; a
    shard that is there is not written again.

    Args:
        corpus: Folder or address of the corpus.
        out: Folder of the shards.
        per_shard: Tiles a shard.
        kept_only: Leave out the tiles that training does not read.

    Returns:
        The folder.

    Raises:
        CorpusError: It is no corpus, or `out` holds something else.
        InputError: `per_shard` is below 1.
    """
    if per_shard < 1:
        raise InputError(f"--per-shard is a number of tiles, 1 or more; given {per_shard}")
    opened, folder = Corpus.open(corpus), Path(out)
    packed = {"corpus": opened.meta, "per_shard": per_shard, "kept_only": kept_only}
    mark = folder / "corpus.json"
    if folder.exists() and any(folder.iterdir()) and (not mark.exists() or json.loads(mark.read_text()) != packed):
        raise CorpusError(f"'{out}' holds something else already: give another --out, or remove it")
    write_json(mark, packed)
    ids = opened.table(["id"], pc.field("kept") if kept_only else None)["id"].to_numpy()
    with working() as workers:
        groups = [ids[start : start + per_shard] for start in range(0, len(ids), per_shard)]
        calls = [(str(opened.path), folder / f"tiles-{place:06d}.tar", group) for place, group in enumerate(groups)]
        workers.run("packing tiles", pack_shard, calls, inline=len(ids) < 2000)
    for name in ("edges", *BY_ID, "sources"):
        if (table := _small(opened, name)) is not None:
            write_table(folder / f"{name}.parquet", _within(table, ids))
    write_table(folder / "skipped.parquet", opened.skipped())
    return folder


def _small(corpus: Corpus, name: str) -> pa.Table | None:
    return read_small(corpus, name) if isinstance(corpus.path, Path) else None


def _within(table: pa.Table, ids: np.ndarray) -> pa.Table:
    """The rows of a small table that are about some tiles."""
    for column in {"a", "b", "id"} & set(table.column_names):
        table = table.filter(pc.is_in(table[column], pa.array(ids)))
    return table


def pack_shard(corpus: str, file: Path, ids: np.ndarray) -> None:
    """Write one shard; a task. Nothing happens where it is there."""
    if file.exists():
        return
    opened = Corpus.open(corpus)
    low, high = int(ids[0]), int(ids[-1])
    rows = opened.table(where=(pc.field("id") >= low) & (pc.field("id") <= high))
    rows = rows.filter(pc.is_in(rows["id"], pa.array(ids)))
    arrays = {(name, size): opened.array(name, size) for name in ARRAYS for size in opened.sizes}
    with aside(file) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, _META, json.dumps(opened.meta).encode())
        for row in rows.to_pylist():
            key = f"{row['id']:012d}"
            for name, (_, fill) in ARRAYS.items():
                array = arrays[name, row["size"]]
                values = None if array is None else array.read([row["slot"]])[0]
                if values is not None and (name == "image" or not (values == fill).all()):
                    _add(tar, f"{key}.{name}.npy", _npy(values))
            _add(tar, f"{key}.json", json.dumps(_plain(row), ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same tiles give the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values, values.dtype.newbyteorder("<")), allow_pickle=False)
    return stream.getvalue()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the catalogue in what JSON knows."""
    geometry, time = row["geometry"], row["time"]
    return {name: value for name, value in row.items() if name != "slot" and value is not None} | {
        name: value
        for name, value in (("geometry", geometry and geometry.hex()), ("time", time and time.isoformat()))
        if value
    }


def unpack(archive: list[str], out: str) -> Path:
    """Turn shards that `pack` wrote back into a corpus with the same tiles.

    Nothing is ever written to a path that an archive names.

    Args:
        archive: Folder of shards, shards, or patterns.
        out: Folder of the corpus.

    Returns:
        The folder.

    Raises:
        InputError: An archive is no such shard, is damaged, or holds a path that leads out of it.
        CorpusError: They are of several corpora, or `out` holds something.
    """
    files = _archives(archive)
    with new_corpus(out) as folder, working() as workers:
        read = workers.run("reading archives", read_archive, [(file,) for file in files], inline=len(files) < 4)
        tables, meta = [table for table, _ in read], read[0][1]
        if any(other != meta for _, other in read):
            raise CorpusError("the archives are of several corpora: unpack each, then put them together by merge")
        ids = np.concatenate([table["id"].to_numpy() for table in tables])
        if not len(ids) or (np.diff(ids) <= 0).any():
            raise CorpusError("the archives hold no tiles, or one twice: give the shards of one corpus, each once")
        _write_unpacked(folder, files, tables, meta, workers)
        beside = Path(files[0]).parent
        _write_beside(folder, beside, pa.concat_tables([table.select(["id", "source"]) for table in tables]))
        recipe = meta["recipe"] | {"unpacked": [Path(file).name for file in files]}
        decide_anew(folder, meta | {"recipe": recipe}, workers)
    return Path(out)


def _archives(given: Sequence[str]) -> list[str]:
    files: list[str] = []
    for one in [given] if isinstance(given, str) else given:
        found = sorted(glob(f"{escape(one)}/*.tar")) if Path(one).is_dir() else sorted(glob(one))
        if not found:
            raise InputError(f"'{one}' is no folder of .tar files, no .tar file and no pattern of them")
        files += found
    return files


def read_archive(file: str) -> tuple[pa.Table, dict[str, Any]]:
    """Read and check all tiles of a shard; a task.

    Returns:
        A row of `_STAGED` a tile, and the `corpus.json` of the corpus it was made of.
    """
    meta: dict[str, Any] = {}
    try:
        with open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            rows = [_checked(file, key, sample) for key, sample in _samples(file, tar, meta)]
        if "recipe" not in meta or "sensor" not in meta:
            raise ValueError("it holds no corpus.json")
        return pa.Table.from_pylist(rows, _STAGED), meta
    except InputError:
        raise
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"'{file}' is no shard that `geomim corpus pack` wrote, or damaged ({error})") from error


def _samples(file: str, tar: tarfile.TarFile, meta: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each tile's files, which lie behind each other: pixels, the byte at which they start, and the row."""
    current, sample = "", dict[str, Any]()
    for member in tar:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not member.isfile():
            raise InputError(f"'{file}' holds '{member.name}', which leads out of it or is no file: it is not unpacked")
        stream = tar.extractfile(member)
        data = stream.read() if stream else b""
        if member.name == _META:
            meta |= json.loads(data)
            continue
        key, _, kind = member.name.partition(".")
        if key != current:
            if sample:
                yield current, sample
            current, sample = key, {}
        if kind == "json":
            sample["row"] = json.loads(data)
        elif kind.removesuffix(".npy") in ARRAYS:
            values = np.load(io.BytesIO(data), allow_pickle=False)
            sample[kind.removesuffix(".npy")] = values, member.offset_data + member.size - values.nbytes
    if sample:
        yield current, sample


def _checked(file: str, key: str, sample: dict[str, Any]) -> dict[str, Any]:
    """The row of one tile, with the moments of its pixels; its hash must be the one in the row."""
    from geomim.corpus.statistics import moments

    row: dict[str, Any] = sample["row"]
    image = sample["image"][0]
    if content_hash(image) != row["xxh3"]:
        raise InputError(f"'{file}': the pixels of tile '{key}' were changed: copy it again")
    valid = sample["valid"][0] if "valid" in sample else np.ones(image.shape[1:], bool)
    mean, squares, pixels = moments(image[None], valid[None])
    row |= {"geometry": bytes.fromhex(row["geometry"])} if "geometry" in row else {}
    row |= {"time": datetime.fromisoformat(row["time"])} if "time" in row else {}
    row |= {"pixels": int(pixels[0]), "mean": mean[0].tolist(), "squares": squares[0].tolist()}
    beside = content_hash(valid) + (content_hash(sample["mask"][0]) if "mask" in sample else "")
    return (
        row
        | {"dtype": image.dtype.name, "beside": beside}
        | {name: sample[name][1] for name in ARRAYS if name in sample}
    )


def _write_unpacked(
    folder: Path, files: Sequence[str], tables: Sequence[pa.Table], meta: dict[str, Any], workers: Workers
) -> None:
    """Write arrays and tables of tiles; pixels go from the archives to the shards as they are."""
    light = ["id", "size", "xxh3", "beside", "dtype", *ARRAYS]
    tiles = pa.concat_tables([table.select(light) for table in tables])
    archive = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    ids, sizes, original = tiles["id"].to_numpy(), tiles["size"].to_numpy(), originals(tiles, "beside")
    slots, calls = np.zeros(len(ids), np.int64), []
    (dtype, *others) = tiles["dtype"].unique().to_pylist()
    if others:
        raise InputError(f"the archives hold {dtype} and {others[0]}, and a corpus holds one type")
    for size in np.unique(sizes).tolist():
        own = np.flatnonzero((sizes == size) & (original == ids))
        slots[own] = np.arange(len(own))
        shape, per_shard = (len(own), len(meta["sensor"]["bands"]), size, size), None
        for name, (dimensions, fill) in ARRAYS.items():
            starts = tiles[name].take(own)
            if starts.null_count == len(own):
                continue
            kind = {"image": dtype, "valid": "bool", "mask": "uint8"}[name]
            of = shape if name == "image" else (len(own), size, size)
            path = folder / "tiles.zarr" / str(size) / name
            layout = create_array(path, of, kind, dimensions, fill, per_shard=per_shard)
            per_shard = layout.per_shard
            where = list(zip([files[place] for place in archive[own].tolist()], starts.to_pylist(), strict=True))
            for number in range(layout.shards):
                span = layout.slots(number)
                calls.append((path, layout, number, where[span.start : span.stop]))
    workers.run("copying tiles", unpack_shard, calls, inline=len(calls) < INLINE_SHARDS)
    write_groups(folder / "tiles.zarr")
    slots = slots[np.searchsorted(ids, original)]
    for number, table in enumerate(tables):
        rows = np.flatnonzero(archive == number)
        part = table.drop_columns(["dtype", *ARRAYS]).append_column("slot", pa.array(slots[rows]))
        part = part.append_column("original", pa.array(original[rows]))
        write_table(folder / "catalogue" / f"tiles-{number:06d}.parquet", part)
    write_copies(folder / "catalogue", ids, original)


def unpack_shard(path: Path, layout: ArrayLayout, number: int, where: Sequence[tuple[str, int | None]]) -> None:
    """Write one shard of an array from archives; a task.

    Args:
        path: Folder of the array.
        layout: Its layout.
        number: Of the shard.
        where: For each of its tiles the archive and the byte at which it starts, None where it is all fill.
    """
    size = layout.tile_bytes
    if all(start is not None for _, start in where):
        copy_runs(path, layout, number, [(Path(file), start, size) for file, start in where if start is not None])
        return

    def tiles() -> Iterator[np.ndarray | None]:
        for file, start in where:
            if start is None:
                yield None
            else:
                yield np.fromfile(file, layout.dtype, size // np.dtype(layout.dtype).itemsize, offset=start).reshape(
                    layout.tile
                )

    write_shard(path, layout, number, tiles())


def _write_beside(folder: Path, beside: Path, tiles: pa.Table) -> None:
    """Write the small tables: those that lie beside the archives, about these tiles; else empty ones."""
    ids = tiles["id"].to_numpy()

    def read(name: str) -> pa.Table | None:
        file = beside / f"{name}.parquet"
        return _within(pq.read_table(file), ids) if file.exists() else None

    edges = read("edges")
    write_edges(folder / "catalogue", [edges] if edges is not None else [])
    for name in BY_ID:
        if (table := read(name)) is not None:
            write_table(folder / "catalogue" / f"{name}.parquet", table)
    skipped = read("skipped")
    write_table(folder / "skipped.parquet", SKIPPED.empty_table() if skipped is None else skipped)
    known = read("sources")
    rows = {row["uri"]: row for row in known.to_pylist()} if known is not None else {}
    runs = [name for name, _ in groupby(tiles["source"].to_pylist())]
    unknown = {"bytes": -1, "xxh3": None, "file": None}
    listed = [unknown | rows.get(uri, {}) | {"uri": uri} for uri in runs]
    schema = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("xxh3", pa.string()), ("file", pa.string())])
    write_table(folder / "catalogue" / "sources.parquet", pa.Table.from_pylist(listed, schema))
