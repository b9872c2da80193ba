"""The files that sentences come from, as `corpus.lock` states them: name, hash of their parts, and licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geomim.corpus.captions.vector import file_of
from geomim.corpus.lock import files_hash
from geomim.corpus.scenes import source_files
from geomim.corpus.scenes.files import is_remote

_BESIDE = {".shp": (".shx", ".dbf", ".prj", ".cpg"), ".tab": (".dat", ".map", ".id", ".ind"), ".mif": (".mid",)}


def files_asked(asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of a call of `caption`, by the origin of their sentences."""
    cover, table = asked["landcover"], asked["imported"]
    found = {"vector": list(asked["vector"] or ()), "landcover": [cover] if cover else []}
    return {origin: files for origin, files in found.items() if files} | ({Path(table).stem: [table]} if table else {})


def stated(origin: str, file: str, licence: str | None) -> dict[str, str | None]:
    """What the lock says of a file; `xxh3_parts` is None where it is not on this machine."""
    path = _path(origin, file)
    parts = _parts(path, origin)
    return {"file": path.name, "xxh3_parts": files_hash(parts) if parts else None, "licence": licence or "unknown"}


def hash_of(known: Mapping[str, Any]) -> str | None:
    """The hash in what a lock says of a file; older ones have `xxh3`, of the file without its other parts."""
    return known.get("xxh3_parts") or known.get("xxh3")


def became(origin: str, file: str, known: Mapping[str, Any]) -> str:
    """What became of a file since the lock said so of it: "" where nothing did, or it is there and no hash is known."""
    path, before = _path(origin, file), hash_of(known)
    try:
        parts = [str(path)] if known.get("xxh3") and path.is_file() else _parts(path, origin)
        if not parts:
            return "" if before is None and is_remote(file) else "vanished"
        return "" if before in (None, files_hash(parts)) else "was changed"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _path(origin: str, file: str) -> Path:
    return Path(file_of(file)[0] if origin == "vector" else file)


def _parts(path: Path, origin: str) -> list[str]:
    """Files that say something, not `.aux.xml`, which other programs write into, nor locks.

    Of a folder all; of a Shapefile or MapInfo's forms those of the table; of a map the parts of a VRT, world file,
    header and names of classes.
    """
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.is_file() and file.suffix != ".lock")
    if not path.is_file():
        return []
    form = path.suffix.lower()
    parts, endings = [path], _BESIDE.get(form, ())
    if origin == "landcover":
        parts += [*map(Path, source_files(str(path))), path.with_name("classes.json")]
        endings = (".hdr", ".wld", f"{form}w", f".{form[1:2]}{form[-1:]}w")  # .tifw and .tfw
    parts += [file for file in path.parent.iterdir() if file.stem == path.stem and file.suffix.lower() in endings]
    return sorted({str(file) for file in parts if file.is_file()})
