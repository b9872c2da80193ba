"""List the scenes of folders, patterns and addresses."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from geomim.corpus.scenes.files import is_remote
from geomim.errors import InputError

SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")
"""What `find_scenes` picks up inside a folder, in lower case."""


def find_scenes(sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[str]:
    """List rasters: files as given, folders searched recursively for `SUFFIXES`, patterns expanded.

    Hidden files, and folders that are a corpus, are left out. Addresses (`https://`, `/vsi...`) pass unchecked.

    Returns:
        Sorted, each once.

    Raises:
        InputError: A path does not exist, or nothing was found.
    """
    given = [str(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    found: set[str] = set()
    for source in given:
        if os.path.isdir(source):
            found.update(_walk(source))
        elif os.path.isfile(source) or is_remote(source):
            found.add(source)
        elif matches := glob.glob(source, recursive=True):
            found.update(find_scenes(matches))
        else:
            raise InputError(f"'{source}' does not exist: give a raster, a folder of rasters or a pattern")
    if not found:
        raise InputError(f"no raster in {', '.join(given) or 'nothing'}: looked for {', '.join(SUFFIXES)}")
    return sorted(found)


def _walk(folder: str) -> Iterable[str]:
    for parent, folders, names in os.walk(folder):
        if "corpus.json" in names:  # a corpus is made of scenes and is none
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)
