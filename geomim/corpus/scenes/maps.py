"""Maps that geomim made of scenes: they lie beside them, and are none."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

MADE = "GEOMIM_MAP"
"""Tag of every raster that is made of a scene."""
_METADATA = 42112  # of GDAL, in a TIFF
_MOST = 4096  # entries of a directory


def without_maps(uris: Iterable[str]) -> set[str]:
    """What is no map; how many are left out is said."""
    given = set(uris)
    if made := sorted(uri for uri in given if uri.lower().endswith((".tif", ".tiff", ".zarr")) and is_map(uri)):
        said = "1 map that geomim made is" if len(made) == 1 else f"{len(made)} maps that geomim made are"
        print(f"note: {said} left out, such as '{made[0]}'")
    return given - set(made)


def is_map(path: str) -> bool:
    """Whether a TIFF or zarr says that it is a map, read without GDAL, which takes a hundred times as long."""
    try:
        if path.lower().endswith(".zarr"):
            return MADE in json.loads((Path(path) / "zarr.json").read_bytes()).get("attributes", {})
        with Path(path).open("rb") as file:
            for number, tag, length, value, _ in entries(file):
                if number or tag >= _METADATA:
                    file.seek(value)
                    return not number and tag == _METADATA and MADE.encode() in file.read(length)
    except (OSError, ValueError, AttributeError, struct.error):
        pass  # neither, or a broken one, which is told where it is opened
    return False


def entries(file: BinaryIO) -> Iterator[tuple[int, int, int, int, int]]:
    """Entries of a TIFF's directories: which directory, tag, length, value or its place, and where the value stands.

    Raises:
        ValueError: It is no TIFF.
    """
    head = file.read(16)
    end = {b"II": "<", b"MM": ">"}.get(head[:2])
    if end is None or len(head) < 16:
        raise ValueError("no TIFF")
    big = struct.unpack(end + "H", head[2:4])[0] == 43
    form, number = end + ("HHQQ" if big else "HHII"), 0
    word, size, start = end + ("Q" if big else "I"), struct.calcsize(form), head[8:16] if big else head[4:8]
    while place := struct.unpack(word, start)[0]:
        file.seek(place)
        (count,) = struct.unpack(end + ("Q" if big else "H"), file.read(8 if big else 2))
        first, content = file.tell(), file.read(min(count, _MOST) * size)
        start = file.read(struct.calcsize(word))
        for at, (tag, _, length, value) in enumerate(struct.iter_unpack(form, content)):
            yield number, tag, length, value, first + at * size + struct.calcsize(form) - struct.calcsize(word)
        number += 1
