"""Corpora leave as WebDataset shards: `pack`."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.assemble import ARRAYS, working
from geomim.corpus.remote import aside
from geomim.corpus.store import Corpus, write_json
from geomim.errors import CorpusError, InputError

_META = "__corpus__/corpus.json"  # a name that readers of WebDataset pass over


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
    return folder


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
            told = {name: value for name, value in row.items() if name != "slot" and value is not None}
            _add(tar, f"{key}.json", json.dumps(told, ensure_ascii=False, default=_plain).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same tiles give the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values, values.dtype.newbyteorder("<")), allow_pickle=False)
    return stream.getvalue()


def _plain(value: bytes | datetime) -> str:
    """A footprint or a time in what JSON knows."""
    return value.hex() if isinstance(value, bytes) else value.isoformat()
