"""Pictures in class folders: what is read of them, what is refused, and which are copies."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomim.errors import InputError

_NODATA = 42113  # the tag that GDAL writes into a TIFF


def fifth(found: Mapping[str, Sequence[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The pictures of each class shared out to train and, a fifth of them, to test, by a hash of the file's name.

    Equal files go to one side, also those of several classes.
    """
    every = [file for files in found.values() for file in files]
    copies, held = dict(zip(every, copies_of(every), strict=True)), dict[object, bool]()
    for files in found.values():
        order = sorted(files, key=lambda file: zlib.crc32(f"{file.parent.name}/{file.name}".encode()))
        new = [one for one in dict.fromkeys(copies[file] for file in order) if one not in held]
        held |= {one: not place % 5 for place, one in enumerate(new)}
    train, test = (
        {name: [file for file in files if held[copies[file]] == side] for name, files in found.items()}
        for side in (False, True)
    )
    return train, test


def copies_of(paths: Sequence[Path]) -> list[object]:
    """What files have in common that are equal byte by byte, and others do not; those of one size alone are read."""

    def content(path: Path, size: int) -> object:
        if often[size] < 2:
            return size
        with suppress(OSError), path.open("rb") as file:
            return size, hashlib.file_digest(file, "blake2b").digest()
        return path

    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]  # those out of reach are told when opened
    often = Counter(sizes)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(content, paths, sizes))


def look_at_pictures(paths: Sequence[Path]) -> tuple[float, tuple[str, ...]]:
    """The usual side of pictures, from their headers, and what a reader of the scores should know of them."""

    def look(path: Path) -> tuple[bool, float]:
        with _open(path) as image:
            return image.mode in ("L", "LA"), math.sqrt(image.width * image.height)

    with ThreadPoolExecutor(4) as pool:
        grey, sides = np.array(list(pool.map(look, paths))).T
    notes = [f"{int(grey.sum())} of {len(paths)} pictures are grey: red, green and blue are the same"] * bool(
        grey.any()
    )
    if sides.min() < sides.max():
        notes.append(f"pictures of {sides.min():.0f} to {sides.max():.0f} px are brought to one size")
    return float(np.median(sides)), tuple(notes)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """A picture of 8 bits a band, in colours or grey."""
    try:
        with Image.open(path) as image:
            # Pillow cuts 16 bits a band down to 8 where there are several
            deep = image.mode.startswith(("I", "F")) or (image.format == "PNG" and "16" in str(image.tile[0][3]))
            if deep:
                raise InputError(f"'{path}' has more than 8 bits a band: build a corpus of such images")
            if image.format == "TIFF" and image.mode not in ("L", "P", "RGB"):
                raise InputError(f"'{path}' is a TIFF of {image.mode}: expected grey or RGB; build a corpus of others")
            if image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA"):
                raise InputError(f"'{path}' is a picture in {image.mode}: expected grey, a palette or RGB; convert it")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        advice = "build a corpus" if path.suffix[:4].lower() == ".tif" else "take it away"
        raise InputError(f"'{path}' cannot be read as a picture ({error}): fetch it again, or {advice}") from error


def read_picture(path: Path) -> Tensor:
    """`(3, H, W)` uint8, or `(4, H, W)` where some pixels may be transparent or nodata."""
    with _open(path) as image:
        transparent = "A" in image.getbands() or "transparency" in image.info
        pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
        if told := getattr(image, "tag_v2", {}).get(_NODATA):
            # a pixel is none where one of its bands, or its place in the palette, has the number
            missing = (np.array(image).reshape(*pixels.shape[:2], -1) == float(str(told).strip("\0 "))).any(2)
            pixels = np.dstack([pixels[..., :3], np.where(missing, 0, 255).astype(np.uint8)])
        return torch.from_numpy(pixels).permute(2, 0, 1)
