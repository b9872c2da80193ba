"""What a torchgeo sample says about its image, in geomim's words: class, sentences, boxes and mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import rasterio

from geomim.corpus.scenes.annotations import Annotations, Box
from geomim.corpus.sources.cards import Card
from geomim.errors import InputError

_UNLABELLED = 255  # as `Annotations.mask` has it


def numbers(tensor: Any) -> np.ndarray:
    """A tensor, array or list as a NumPy array."""
    return np.asarray(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def annotate(values: Mapping[str, Any], card: Card | None, dataset: Any = None) -> Annotations:
    """Read the labels of a sample.

    Args:
        values: The sample.
        card: Names the classes by number.
        dataset: Its `class_to_idx` goes before the card, for it numbers the classes that are there; its `classes`
            stand in for a card that names none.

    Returns:
        Label, captions, boxes and mask. Several classes of one image, as multi-label sets have, are left out unless
        there is just one; a mask is left out where nothing names its numbers.
    """
    captions, polygons = _captions(values), _polygons(values)
    if polygons is not None:  # a label beside boxes is theirs, a mask beside boxes one of instances
        names = _numbered(dataset) or _names(card, dataset, "oriented_boxes", "boxes")
        return Annotations(captions=captions, boxes=_boxes(polygons, values, names))
    label = _label(values.get("label"), _numbered(dataset) or _names(card, dataset, "classes"))
    mask, classes = _mask(values, _names(card, dataset, "masks"))
    return Annotations(label=label, captions=captions, mask=mask, classes=classes)


def _numbered(dataset: Any) -> dict[int, str]:
    """Names of the classes that a dataset found on the disk and numbered itself."""
    return {int(number): str(name) for name, number in (getattr(dataset, "class_to_idx", None) or {}).items()}


def _names(card: Card | None, dataset: Any, *kinds: str) -> dict[int, str]:
    """Names by number: the card's, else those of the dataset class."""
    given = next((card.names(kind) for kind in kinds if card.names(kind)), None) if card else None
    if given:
        return given
    own = getattr(dataset, "classes", None)
    listed = isinstance(own, list | tuple) and all(isinstance(name, str) for name in own)
    return dict(enumerate(own)) if listed and own is not None else {}


def _label(value: Any, names: Mapping[int, str]) -> str | None:
    """The one class of an image: a number, a list of one, or a row of zeros with a single one."""
    if value is None or isinstance(value, Mapping):
        return None
    found = numbers(value)
    if found.dtype.kind == "f" and not (found == np.floor(found)).all():
        return None  # a quantity, no class
    if found.ndim == 1 and len(found) == len(names) and len(found) > 1 and set(np.unique(found)) <= {0, 1}:
        found = np.flatnonzero(found)
    if found.size != 1:
        return None
    number = int(found.reshape(-1)[0])
    return names.get(number, str(number))


def _captions(values: Mapping[str, Any]) -> tuple[str, ...]:
    given = values.get("captions", values.get("caption"))
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(map(str, given))


def _polygons(values: Mapping[str, Any]) -> np.ndarray | None:
    """`(N, 8)` float, four corners a box; None where the sample has no boxes."""
    given = next((values[key] for key in ("bbox_xyxy", "bbox", "boxes") if values.get(key) is not None), None)
    if given is None:
        return None
    boxes = numbers(given).astype(np.float64)
    if boxes.size == 0:
        return np.zeros((0, 8))
    if boxes.ndim == 3:  # polygons, of which some publishers repeat the first point at the end
        return boxes[:, :4].reshape(len(boxes), 8)
    if boxes.shape[1] == 8:
        return boxes
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]]


def _boxes(polygons: np.ndarray, values: Mapping[str, Any], names: Mapping[int, str]) -> tuple[Box, ...]:
    given = next((values[key] for key in ("labels", "label") if values.get(key) is not None), None)
    labels = numbers(given).reshape(-1) if given is not None else None
    if labels is not None and len(labels) != len(polygons):
        labels = None
    only = next(iter(names.values())) if len(names) == 1 else None  # a source of one class numbers no box
    return tuple(
        Box(
            tuple(map(float, polygon)),
            only if labels is None else names.get(int(labels[place]), str(int(labels[place]))),
        )
        for place, polygon in enumerate(polygons)
    )


def _mask(values: Mapping[str, Any], names: Mapping[int, str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if values.get("mask") is None or not names:
        return None, ()
    found = numbers(values["mask"])
    if found.ndim == 3 and len(found) == 1:
        found = found[0]
    return (place_classes(found, names), _ordered(names)) if found.ndim == 2 else (None, ())


def _ordered(names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[number] for number in sorted(names))


def place_classes(found: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """A mask of a publisher's numbers as places in the list of classes, sorted by number.

    Args:
        found: `(H, W)` numbers.
        names: Class by number; numbers without a name mean "not labelled".

    Returns:
        `(H, W)` uint8, 255 where a pixel has no class.
    """
    mask = np.full(found.shape, _UNLABELLED, np.uint8)
    for place, number in enumerate(sorted(names)):
        mask[found == number] = place
    return mask


def read_mask(file: str, card: Card) -> Annotations | None:
    """Annotations from a mask in a raster file of its own, on the scene's pixel grid; None where nothing names it.

    Raises:
        InputError: The file cannot be read.
    """
    names = card.names("masks")
    if not names:
        return None
    try:
        with rasterio.open(file) as raster:
            found = raster.read(1)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise InputError(f"label raster '{file}' of {card.name} cannot be read ({error})") from error
    return Annotations(mask=place_classes(found, names), classes=_ordered(names))
