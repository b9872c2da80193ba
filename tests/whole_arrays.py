"""Arrays that are in memory, written as a build writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geomim.corpus.shards import ArrayLayout, create_array, write_shard


def write_array(
    path: Path, tiles: np.ndarray, names: Sequence[str], fill: Any = 0, compression: str | None = None
) -> ArrayLayout:
    """Write a whole array `(N, *tile)` that is in memory; tiles that are all `fill` take no bytes."""
    layout = create_array(path, tiles.shape, tiles.dtype, names, fill, compression)
    for number in range(layout.shards):
        parts = (tiles[slot] for slot in layout.slots(number))
        write_shard(path, layout, number, (None if (part == fill).all() else part for part in parts))
    return layout
