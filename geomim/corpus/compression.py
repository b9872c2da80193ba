"""Compressions of single tiles, for archives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import blosc, zstd


def zarr_python() -> Any:
    """zarr-python, once it is needed: it takes longer to import than all else here, and most workers never do."""
    import zarr.codecs

    return zarr


@dataclass(frozen=True)
class Codec:
    """A compression of single tiles.

    Attributes:
        name: Of the codec in `zarr.json`.
        for_zarr: The codec for numbers of so many bytes.
        encode: A tile to bytes.
        decode: Bytes into a buffer.
    """

    name: str
    for_zarr: Callable[[int], Any]
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[Any, Any], Any]


CODECS = {
    "lz4": Codec(
        "blosc",
        lambda size: zarr_python().codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=size),
        lambda tile: blosc.compress(tile, b"lz4", 5, blosc.SHUFFLE),
        blosc.decompress,
    ),
    "zstd": Codec(
        "zstd",
        lambda size: zarr_python().codecs.ZstdCodec(level=3),
        lambda tile: zstd.compress(tile, 3),
        zstd.decompress,
    ),
}
"""Compressions on offer."""
blosc.use_threads = False  # with several its bytes would not repeat
