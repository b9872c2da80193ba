"""`geomim labels check`: what was understood of labels, in words and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from rasterio.windows import Window
from rich.console import Console
from rich.table import Table

from geomim.corpus.report.pictures import composite
from geomim.finetune.labels.items import Item, Kind, Labels, open_image
from geomim.finetune.labels.opening import open_labels
from geomim.finetune.labels.rasters import counted, read_mask
from geomim.finetune.pictures import drawn
from geomim.maps.pictures import contact_sheet

_MOST, _EDGE = 12, 1024


def check(
    scenes: list[str],
    labels: str | None = None,
    out: str = "labels.png",
    kind: Kind | None = None,
    class_column: str | None = None,
    outside: Literal["auto", "unlabelled", "background"] = "auto",
    places: str | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Labels:
    """Say what was understood of labels, what was guessed, left out and why, and draw some of them.

    Args:
        scenes: Images, or folders of them.
        labels: A file or a folder of labels; looked for among the scenes if not given.
        out: Picture to write.
        kind: `boxes` or `oboxes` take polygons of a vector file as boxes.
        class_column: Column of a vector file that holds the class.
        outside: What no polygon covers: `unlabelled`, `background`, or the latter where there is one class (`auto`).
        places: Table of columns `path` and `place`: images of one place are never divided.
        sensor: What took the scenes.
        bands: Names of their bands in file order.

    Raises:
        InputError: They cannot be used; the sentence says why.
    """
    opened = open_labels(scenes, labels, kind, class_column, outside, places, sensor, bands)
    console = Console(highlight=False, markup=False)
    console.print(
        f"labels of kind {opened.kind}: {len(opened.items)} images, {len(opened.classes)} classes", soft_wrap=True
    )
    counts = np.stack([_counts(opened, item) for item in opened.items])
    unit = "images" if opened.kind == "class" else "boxes" if opened.kind.endswith("boxes") else "pixels"
    table = Table("class", unit, "share", "in images")
    for name, own in zip(opened.classes, counts.T, strict=True):
        table.add_row(name, str(own.sum()), f"{own.sum() / max(counts.sum(), 1):.1%}", str((own > 0).sum()))
    console.print(table)
    for note in opened.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for name, why in opened.refused[:_MOST]:
        console.print(f"left out: '{name}': {why}", soft_wrap=True)
    if more := opened.refused[_MOST:]:
        console.print(f"left out: {len(more)} more")
    chosen = [opened.items[at] for at in np.unique(np.linspace(0, len(opened.items) - 1, _MOST).astype(int))]
    contact_sheet(Path(out), [(", ".join(opened.classes), [look for item in chosen for look in _drawn(opened, item)])])
    print(f"wrote {out}")
    return opened


def _counts(labels: Labels, item: Item) -> np.ndarray:
    if labels.kind not in ("mask", "change"):
        return counted(labels, item, 0, 0, max(item.height, item.width))
    places = [(top, left) for top in range(0, item.height, _EDGE) for left in range(0, item.width, _EDGE)]
    return np.sum([counted(labels, item, top, left, _EDGE) for top, left in places], 0)


def _drawn(labels: Labels, item: Item) -> list[tuple[np.ndarray, str]]:
    """The image, or of a large one the window around its first label, and its labels."""
    some = item.corners.reshape(-1, 2) if item.shapes is None else shapely.get_coordinates(item.shapes)
    middle = some[0] if len(some) else np.array([item.width / 2, item.height / 2])
    side = (min(item.width, _EDGE), min(item.height, _EDGE))
    left, top = (
        int(np.clip(at - n / 2, 0, all_ - n))
        for at, n, all_ in zip(middle, side, (item.width, item.height), strict=True)
    )
    found = []
    for uri in filter(None, (item.image, item.after)):
        scene = open_image(uri, labels.asked.sensor, labels.asked.bands)
        pixels, valid = scene.read_valid(Window(left, top, *side))
        found.append((composite(pixels, scene.sensor, valid), Path(uri).name[-28:]))
    picture = found[-1][0]
    if labels.kind == "class":
        return [(picture, labels.classes[item.label])]
    if labels.kind.endswith("boxes"):
        return [found[0], (drawn(picture, item.corners - [left, top], item.labels), f"{len(item.labels)} boxes")]
    mask = read_mask(labels, item, top, left, max(side))[: side[1], : side[0]]
    return [*found, (drawn(picture, mask), f"{(mask >= 0).mean():.0%} labelled")]
