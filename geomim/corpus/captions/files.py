"""The files that sentences come from, as `corpus.lock` states them: name, hash of all their parts, and licence."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geomim.corpus.captions.vector import file_of
from geomim.corpus.lock import files_hash
from geomim.corpus.scenes import source_files

_SHAPEFILE = (".shp", ".shx", ".dbf", ".prj", ".cpg")


def files_asked(asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of a call of `caption`, by the origin of their sentences."""
    cover, table = asked["landcover"], asked["imported"]
    found = {"vector": list(asked["vector"] or ()), "landcover": [cover] if cover else []}
    return {origin: files for origin, files in found.items() if files} | ({Path(table).stem: [table]} if table else {})


def stated(origin: str, file: str, licence: str | None) -> dict[str, str | None]:
    """What the lock says of a file; `xxh3` is None where it is not on this machine."""
    path = Path(file_of(file)[0] if origin == "vector" else file)
    parts = _parts(path, origin)
    return {"file": path.name, "xxh3": files_hash(parts) if parts else None, "licence": licence or "unknown"}


def _parts(path: Path, origin: str) -> list[str]:
    """All files that say something: the table of a Shapefile, the names of a map's classes, a folder's content."""
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        return []
    beside = [path]
    if path.suffix.lower() == ".shp":
        files = path.parent.glob(f"{glob.escape(path.stem)}.*")
        beside = [file for file in files if file.suffix.lower() in _SHAPEFILE]
    elif origin == "landcover":
        beside = [*map(Path, source_files(str(path))), path.with_name("classes.json")]
    return sorted(str(file) for file in beside if file.is_file())
