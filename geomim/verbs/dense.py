"""What `geomim evaluate --dense` scores: patches of tiles with masks, in place of whole images."""

import numpy as np
import torch
from torch import Tensor

from geomim.data.labelled import Labelled, LabelledData
from geomim.data.masked import open_masked, spread
from geomim.errors import InputError
from geomim.evaluate.dense import patch_labels

TILES = 8192
"""Tiles of a split that are looked at, at most."""
PATCHES = 20_000
"""Patches of a split, at most; with them memory and the fit are bounded, however large a corpus is."""


def open_dense(path: str, train_split: str, test_split: str, size: int | None) -> LabelledData:
    """Open a corpus with masks; arguments and errors as of `open_masked`."""
    return open_masked(path, train_split, test_split, size, TILES)


def choose_patches(images: LabelledData, grid: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Labels of the patches that are fitted on and scored, and what tiles stand together in.

    To fit on, classes share evenly, and of each the scenes; a probe's strength is chosen on whole scenes, where there
    are several. Scored are patches as they come, which tiles stand for.

    Args:
        images: From `open_dense`.
        grid: Rows and columns of patches.

    Returns:
        By split `(N, L)` int64 labels, -1 where a patch is not chosen, and `(N,)` int64 groups.

    Raises:
        InputError: No patch of a split has a class, or all of train have one.
    """
    chosen = {}
    for name, part in (("train", images.train), ("test", images.test)):
        labels = _labels(part, grid, len(images.classes))
        tile, place = (labels >= 0).nonzero(as_tuple=True)
        kinds, tiles = labels[tile, place].numpy(), tile.numpy()
        shown = [images.classes[kind] for kind in np.unique(kinds)]
        if len(shown) < (2 if name == "train" else 1):
            given = f"{shown[0]} alone" if shown else "no class"
            raise InputError(f"the masks of {images.name}, {name}, show {given}: expected patches of several classes")
        assert part.sources is not None
        sources = torch.from_numpy(part.sources)
        keys = [kinds, part.sources[tiles]] if name == "train" else []
        kept = spread(len(kinds), PATCHES, keys)
        found = torch.full_like(labels, -1)
        found[tile[kept], place[kept]] = labels[tile[kept], place[kept]]
        several = name == "train" and len(sources[tile[kept]].unique()) > 1
        chosen[name] = found, sources if several else torch.arange(len(labels))
    return chosen


def _labels(part: Labelled, grid: tuple[int, int], classes: int, batch: int = 256) -> Tensor:
    assert part.masks is not None
    rows = np.split(np.arange(len(part)), range(batch, len(part), batch))
    return torch.cat([patch_labels(*part.masks(some), grid, classes) for some in rows])
