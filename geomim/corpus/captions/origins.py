"""Where sentences come from: the names of their origins, and the files and licences that a corpus states of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORIGINS = ("human", "b2c", "m2b", "landcover", "index", "vector", "b2c-placed", "m2b-placed")
"""Origins that sentences of a file cannot have."""
OF_TILES = {"file": "came with the imagery", "licence": "the imagery's licence"}
_UNKNOWN = {"file": "a file that is not stated", "licence": "unknown"}


def files_of(meta: Mapping[str, Any], origin: str) -> list[dict[str, Any]]:
    """`file` and `licence` of what the sentences of an origin come from; those of files also have their hash.

    Args:
        meta: All of a `corpus.json`. What it states no file of came of tiles, their labels or bands; sentences of
            `vector` and of files cannot, and older corpora state none.
        origin: Of the sentences.
    """
    of_tiles = origin in ORIGINS and origin != "vector"
    return list(meta.get("sentences", {}).get(origin, ())) or [OF_TILES if of_tiles else _UNKNOWN]
