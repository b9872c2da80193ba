"""`geomim labels check`: what was understood of labels, in words and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from rasterio.windows import Window
from rich.console import Console
from rich.table import Table

from geomim.corpus.report.pictures import composite
from geomim.finetune.labels.items import Item, Labels, Outside, open_image
from geomim.finetune.labels.opening import open_labels
from geomim.finetune.labels.rasters import counted, read_mask
from geomim.finetune.pictures import draw, legend
from geomim.sheets import contact_sheet

_MOST, _EDGE = 12, 1024


def check(
    scenes: list[str],
    labels: str | None = None,
    out: str = "labels.png",
    class_column: str | None = None,
    outside: Outside = "auto",
    places: str | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Labels:
    """Say what was understood of labels, what was guessed, what is left out and why, and draw some of them.

    Args:
        scenes: Images, or folders of them.
        labels: A file or a folder of labels, FILE:LAYER of a vector file of several layers; looked for among the scenes
            if not given.
        out: Picture to write.
        class_column: Column of a vector file that holds the class.
        outside: What no polygon covers: `unlabelled`, `background`, or the latter where there is one class (`auto`).
        places: Table of columns `path` and `place`: images of one place are never divided.
        sensor: What took the scenes.
        bands: Names of their bands in file order.

    Raises:
        InputError: They cannot be used; the sentence says why.
    """
    opened = open_labels(scenes, labels, class_column, outside, places, sensor, bands)
    counts = np.stack([_counts(opened, item) for item in opened.items])
    unit = {"class": "images", "boxes": "boxes", "oboxes": "boxes"}.get(opened.kind, "pixels")
    table = Table("class", unit, "share", "in images", title=f"labels of kind {opened.kind} on {len(counts)} images")
    for name, own in zip(opened.classes, counts.T, strict=True):
        table.add_row(name, str(own.sum()), f"{own.sum() / max(counts.sum(), 1):.1%}", str((own > 0).sum()))
    console = Console(highlight=False, markup=False)
    console.print(table)
    said = [f"note: {note}" for note in opened.notes]
    said += [f"left out: '{name}': {why}" for name, why in opened.refused[:_MOST]]
    said += [f"left out: {len(opened.refused) - _MOST} more"] if len(opened.refused) > _MOST else []
    for one in said:
        console.print(one, soft_wrap=True)
    chosen = [opened.items[at] for at in np.unique(np.linspace(0, len(counts) - 1, _MOST).astype(int))]
    panels = [panel for item in chosen for panel in _panels(opened, item)]
    contact_sheet(Path(out), [(legend(opened.classes), panels)], len(panels) // len(chosen))
    print(f"wrote {out}")
    return opened


def _counts(labels: Labels, item: Item) -> np.ndarray:
    """Labels of each class, block by block: a scene may be larger than memory."""
    if item.counts is not None:
        return item.counts
    if labels.kind != "mask":
        return counted(labels, item, 0, 0, max(item.height, item.width) + 1)
    places = [(top, left) for top in range(0, item.height, _EDGE) for left in range(0, item.width, _EDGE)]
    return np.sum([counted(labels, item, *place, _EDGE) for place in places], 0)


def _panels(labels: Labels, item: Item) -> list[tuple[np.ndarray, str]]:
    """The image, or of a large one the part around its first label, and the same with its labels."""
    some = item.corners.reshape(-1, 2) if item.shapes is None else shapely.get_coordinates(item.shapes)
    size = np.array([item.width, item.height])
    side = size.clip(max=_EDGE)
    left, top = ((some[0] if len(some) else size / 2) - side / 2).clip(0, size - side).astype(int).tolist()
    found = []
    for uri in filter(None, (item.image, item.after)):
        scene = open_image(uri, labels.asked)
        pixels, valid = scene.read_valid(Window(left, top, *side.tolist()))
        found.append((composite(pixels, scene.sensor, valid), Path(uri).name[-28:]))
    if labels.kind == "class":
        return [(found[0][0], labels.classes[item.label])]
    if labels.kind in ("boxes", "oboxes"):
        return [*found, (draw(found[0][0], (item.corners - [left, top], item.labels)), f"{len(item.labels)} boxes")]
    mask = read_mask(labels, item, top, left, side.max())[: side[1], : side[0]]
    return [*found, (draw(found[-1][0], mask), f"{(mask >= 0).mean():.0%} labelled")]
