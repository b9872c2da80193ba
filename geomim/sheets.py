"""Pictures in rows on one sheet, with words: pasted, for a figure with an axis each takes a hundred times as long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten

import numpy as np

ACROSS = 6
"""Pictures in a row of a sheet."""
_GAP = 8  # between two pictures, in pixels
_TOLD = "Software", "geomim"  # by which a sheet is known again


def contact_sheet(
    path: Path,
    groups: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]],
    item: int = 1,
    across: int = ACROSS,
    side: int = 240,
) -> None:
    """Draw pictures with words below each, a headed block of rows a group, as a PNG: written aside and then renamed.

    Args:
        path: The file.
        groups: A head, shortened to the sheet's width, and pictures `(H, W, 3)` of one group after the other: uint8,
            or floats in [0, 1]. Those of other sizes are scaled alike.
        item: Pictures that belong together: they stand in one row.
        across: Pictures in a row, at most, where an item has no more.
        side: The longer side of a picture, in pixels.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text(*_TOLD)
    across = min(max(1, across // item) * item, max(len(pictures) for _, pictures in groups))
    rows = [
        _row("" if at else head, pictures[at : at + across], side, across * (side + _GAP) + _GAP)
        for head, pictures in groups
        for at in range(0, len(pictures), across)
    ]
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(np.concatenate(rows)).save(part, format="PNG", pnginfo=told)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_sheet(path: Path) -> bool:
    """Whether a file is a sheet that `contact_sheet` drew."""
    from PIL import Image

    name, value = _TOLD
    try:
        with Image.open(path) as picture:
            return bool(picture.info.get(name) == value)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # as Pillow says that it cannot be read
        return False


def _row(head: str, pictures: Sequence[tuple[np.ndarray, str]], side: int, width: int) -> np.ndarray:
    """A row of the sheet, `(H, width, 3)` uint8."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    size = max(11, side // 26)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # they know more letters than the one that Pillow has
    small, bold = (ImageFont.truetype(fonts / f"DejaVuSans{name}.ttf", size) for name in ("", "-Bold"))
    line, letter = size * 5 // 4, size * 2 / 3  # height and, on average, width
    drawn = [_scaled(picture, side) for picture, _ in pictures]
    words = ["\n".join(fill(one, int(side / letter)) for one in said.splitlines()) for _, said in pictures]
    top = _GAP + (2 * line if head else 0)
    ends = [top + len(one) + line * (said.count("\n") + 1) for one, said in zip(drawn, words, strict=True)]
    row = Image.new("RGB", (width, max(ends) + _GAP), "white")
    draw = ImageDraw.Draw(row)
    draw.text((_GAP, _GAP), shorten(head, int(width / letter), placeholder=" ..."), "black", bold)
    for number, (picture, said) in enumerate(zip(drawn, words, strict=True)):
        centre = _GAP + number * (side + _GAP) + side // 2
        row.paste(Image.fromarray(picture), (centre - picture.shape[1] // 2, top))
        draw.multiline_text(
            (centre, top + len(picture) + 2), said, "black", small, anchor="ma", align="center", spacing=2
        )
    return np.asarray(row)


def _scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """As uint8, its longer side that of all; pixels of small ones stay squares."""
    from PIL import Image

    if picture.dtype != np.uint8:
        picture = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    factor = side / max(picture.shape[:2])
    height, width = (max(1, round(length * factor)) for length in picture.shape[:2])
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((width, height), method))
