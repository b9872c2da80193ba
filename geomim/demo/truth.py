"""What a map and an answer to words are held against: the label raster of the scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from geomim.corpus.labels import Masks
from geomim.evaluate.retrieval import average_precision

NONE = 255
"""Id of no class."""


@dataclass(frozen=True)
class ClassMap:
    """Class ids on a grid, with names and colours.

    Attributes:
        ids: `(H, W)` uint8, 255 where there is none.
        names: Class names; the place is the id.
        colours: `(N, 3)` uint8 by id.
        transform: From column and row to the ground.
    """

    ids: np.ndarray
    names: list[str]
    colours: np.ndarray
    transform: Affine

    @classmethod
    def of_map(cls, path: Path) -> ClassMap:
        """A file that `geomim predict` wrote."""
        with rasterio.open(path) as raster:
            tags, colours = raster.tags(1), raster.colormap(1)
            names = [tags[f"CLASS_{number}"] for number in range(sum(key.startswith("CLASS_") for key in tags))]
            table = np.array([colours[number][:3] for number in range(len(names))], np.uint8)
            return cls(raster.read(1), names, table, raster.transform)

    @classmethod
    def of_labels(cls, uri: str, folder: Path, like: ClassMap) -> ClassMap:
        """The label raster of a scene, in the classes and colours of a map."""
        masks = Masks(folder)
        with rasterio.open(uri) as raster:
            ids, transform = masks.read(uri, raster.height, raster.width), raster.transform
        table = np.full(256, NONE, np.uint8)
        for place, name in enumerate(masks.classes):
            if name in like.names:
                table[place] = like.names.index(name)
        return cls(table[ids], like.names, like.colours, transform)

    def at(self, shape: tuple[int, int], transform: Affine) -> np.ndarray:
        """`shape` uint8: the ids at the middles of the cells of another grid; none beyond the own one."""
        rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
        x, y = ~self.transform * (transform * (columns, rows))
        height, width = self.ids.shape
        ids = self.ids[np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)]
        return np.where((x >= 0) & (x < width) & (y >= 0) & (y < height), ids, NONE)

    def picture(self, edge: int) -> np.ndarray:
        """`(h, w, 3)` uint8 of about so many pixels a side, grey where there is no class."""
        step = max(1, max(self.ids.shape) // edge)
        table = np.full((256, 3), 96, np.uint8)
        table[: len(self.colours)] = self.colours
        return table[self.ids[::step, ::step]]


def agreement(made: ClassMap, truth: ClassMap) -> tuple[float, int]:
    """Share of labelled map pixels whose class is the one at their middle in the labels, and how many they are."""
    expected = truth.at(made.ids.shape, made.transform)
    usable = (made.ids != NONE) & (expected != NONE)
    return float((made.ids == expected)[usable].mean()), int(usable.sum())


@dataclass(frozen=True)
class Found:
    """How well a word finds its class in a scene.

    Attributes:
        word: The class.
        precision: Average precision over labelled patches, highest score first.
        share: Share of them that are of the class, which is the average precision of chance.
        scores: `(h, w)`, NaN without image.
        there: `(h, w)` bool, where the labels say it is.
    """

    word: str
    precision: float
    share: float
    scores: np.ndarray
    there: np.ndarray


def words_found(path: Path, truth: ClassMap) -> list[Found]:
    """Each band of what `geomim query` wrote against the labels; of classes that the scene shows, best first."""
    with rasterio.open(path) as raster:
        scores, words, transform = raster.read(), raster.descriptions, raster.transform
    expected = truth.at(scores.shape[1:], transform)
    usable = np.isfinite(scores[0]) & (expected != NONE)
    there = np.stack([expected == truth.names.index(word) for word in words])
    chosen = (torch.from_numpy(values[:, usable].T.copy()) for values in (scores, there))
    precision, share = average_precision(*chosen).tolist(), there[:, usable].mean(1).tolist()
    found = [Found(*one) for one in zip(words, precision, share, scores, there, strict=True)]
    return sorted((one for one in found if one.share), key=lambda one: -one.precision)
