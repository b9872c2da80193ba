"""Labels and scenes in, batches of windows out, normalised by the contract of the encoder that reads them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import shapely
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.finetune.labels import UNLABELLED, Item, Labels
from geomim.finetune.labels.items import Asked
from geomim.finetune.labels.rasters import counted, inside, read_mask
from geomim.finetune.looks import Looks
from geomim.finetune.places import Split, divide, ground_of, outlines_of, told_parts
from geomim.finetune.progress import watched
from geomim.finetune.rotated import from_corners
from geomim.maps.scenes.opening import open_for
from geomim.maps.walk.windows import Walk, read_window
from geomim.models.inputs import ContractInput
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor

_OPEN = 16  # scenes at a time
_FAR = 1.5  # times the metres a pixel that are worth a warning


class Cut(NamedTuple):
    """A square window: the place of its image among the items, its first row and column, its side."""

    item: int
    top: int
    left: int
    side: int

    def core(self, item: Item) -> tuple[int, int, int, int]:
        """First row and column, height and width of what no other window of its image answers for."""
        firsts, sides = [], []
        for start, length in ((self.top, item.height), (self.left, item.width)):
            last = max(length - self.side, 0)
            before = (last - 1) // self.side * self.side  # others begin at multiples of their side
            border = (before + self.side + last) // 2  # in the middle of what those two share
            firsts.append(border if start == last else start)
            sides.append((border if start == before else start + self.side) - firsts[-1])
        return firsts[0], firsts[1], sides[0], sides[1]


class Windows(pl.LightningDataModule):
    """Windows of one size cut from labelled scenes, train and test by place.

    They lie side by side, the last of a row or column moved inside; what of a window lies beyond a smaller scene is not
    valid. Images of one class are read as the square around them and resized.

    Each pixel and each box, by its middle, is in the core of one window, where ground that two share is divided. Cores
    of windows of masks hold a labelled pixel. In a test and in validation a window answers for its core alone: pixels
    around it are not labelled, and `beside` `(M, 4)` are the upright rectangles, x1, y1, x2, y2, of all that another
    window answers for, where what is found is neither right nor wrong. In training a window has the labels of all its
    pixels, and all boxes whose middle lies in it: ground that two windows share is seen in both. An upright box is cut
    off at the window's border.

    Windows for training are mirrored and turned by quarters, addressed by epoch and window.

    Args:
        labels: From `open_labels`, whose `sensor` and `bands` say what the scenes are.
        contract: Bands and numbers that the encoder expects.
        size: Side of a window in pixels.
        split: How places are shared out.
        batch_size: Windows of a batch.
        workers: Reading processes.
        turn: Mirror and turn windows for training.
        empty: Greatest share of windows without a box in training.
        seed: Of order and turns.
        gsds: Metres a pixel of the encoder's sensors; that of the contract's where nobody says.
        trained_at: Metres a pixel that the encoder was trained at, where it says.

    Attributes:
        parts: Windows of `train`, `val` and `test`.
        notes: What is to be said of labels, split and resolution.

    Raises:
        InputError: No window holds a label, all lie in one place, or train and test are of one place.
        BandError: A scene lacks a band of the contract.
    """

    def __init__(
        self,
        labels: Labels,
        contract: BandContract,
        size: int = 224,
        split: Split = Split(),  # noqa: B008  # it never changes
        batch_size: int = 16,
        workers: int = 0,
        turn: bool = True,
        empty: float = 0.5,
        seed: int = 0,
        gsds: Sequence[float] = (),
        trained_at: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.labels, self.contract, self.size, self.batch_size = labels, contract, size, batch_size
        self.workers, self.turn, self.seed = workers, turn, seed
        self.prepare_data_per_node = False
        self.empty, self.gsds, self.trained_at = empty, gsds or [contract.sensor.gsd or 0], trained_at
        told_parts(labels.items, split.test)  # which may be refused before anything is read
        looks, items = Looks(len(labels.items)), enumerate(watched(labels.items, "reading labels"))
        rows = [row for number, item in items for row in self._survey(number, item, looks)]
        if labels.kind == "class" and not rows:
            raise InputError(f"no image is left: {'; '.join(looks.notes)}")
        if not any(row[1].any() for row in rows):
            masks = f"no pixel of {len(labels.items)} scenes is labelled: polygons may be smaller than one"
            boxes = f"no box is left in {len(labels.items)} images: {'; '.join(labels.notes) or 'none has one'}"
            raise InputError(boxes if labels.kind in ("boxes", "oboxes") else masks)
        cuts, counts, frames, outlines, metres = map(list, zip(*rows, strict=True))
        places = [labels.items[cut.item].place or "" for cut in cuts]
        self._surveyed = cuts, np.array(counts), ground_of(frames, outlines, places)
        self._known = [*labels.notes, *looks.notes, *self._far(metres), *self._cut_off(cuts)]
        self._share_out(split)

    def shared(self, split: Split) -> Windows:
        """The same windows, shared out otherwise."""
        other = copy.copy(self)
        other._share_out(split)
        return other

    def undivided(self) -> Windows:
        """The same windows, of which all train, and none tests; without a box no more than their greatest share."""
        other = copy.copy(self)
        other._part(np.full(len(self._surveyed[0]), "train"))
        return other

    def _share_out(self, split: Split) -> None:
        (cuts, counts, ground), told = self._surveyed, told_parts(self.labels.items, split.test)
        parts, said = divide(ground, counts, np.array([told[cut.item] for cut in cuts]), split, self.labels.classes)
        self._part(parts)
        who = "you say" if split.test else "their folder says"
        tested = [f"{told.count('test')} of {len(told)} images are the test, as {who}"] if "test" in told else []
        sizes = ", ".join(f"{len(own)} {part}" for part, own in self.parts.items())
        self.notes = [*self._known, *tested, *said, f"windows of {self.size} x {self.size} pixels: {sizes}"]

    def _part(self, parts: np.ndarray) -> None:
        cuts, counts, _ = self._surveyed
        if self.labels.kind in ("boxes", "oboxes"):
            parts = self._fewer(parts, counts.any(1), self.empty)
        self.parts = {part: [cuts[at] for at in np.flatnonzero(parts == part)] for part in ("train", "val", "test")}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"trainer": None}  # reading processes that are spawned have no use for it

    def _survey(self, number: int, item: Item, looks: Looks) -> list[tuple[Cut, np.ndarray, str, Any, float]]:
        """Windows of an image, of each the labels a class, frame and outline on the ground, and metres a pixel."""
        scene, _ = self.open(item.image)
        if self.labels.kind == "class":
            cuts = [Cut(number, 0, 0, max(item.height, item.width))]
            if looks.empty(scene, *cuts[0][1:]):
                return []
        else:
            cuts = [Cut(number, *at, self.size) for at in Walk(item.height, item.width, 1, self.size, 0).places]
        for uri in filter(None, (item.image, item.after)):
            looks.at(number, *self.open(uri), [cut[1:3] for cut in cuts], cuts[0].side)
        counts = {cut: counted(self.labels, item, *cut.core(item)) for cut in cuts}
        kept = [cut for cut in cuts if self.labels.kind != "mask" or counts[cut].any()]
        frame, shapes = outlines_of(item, scene, [Window(cut.left, cut.top, cut.side, cut.side) for cut in kept])
        gsd = (scene.gsd or np.nan) * cuts[0].side / self.size
        return [(cut, counts[cut], frame, shape, gsd) for cut, shape in zip(kept, shapes, strict=True)]

    def open(self, uri: str) -> tuple[Scene, ContractInput]:
        """A scene, and what brings it to the contract."""
        return _open(self.contract, uri, self.labels.asked, os.getpid())

    def _fewer(self, parts: np.ndarray, held: np.ndarray, empty: float) -> np.ndarray:
        """Training windows without boxes as many as their greatest share allows."""
        none = np.random.default_rng(self.seed).permutation(np.flatnonzero((parts == "train") & ~held))
        most = int(((parts == "train") & held).sum() * empty / max(1 - empty, 1e-9))
        parts[none[most:]] = "spare"
        return parts

    def _cut_off(self, cuts: Sequence[Cut]) -> list[str]:
        """How many boxes reach beyond the window that answers for them."""
        both = [(cut, self.labels.items[cut.item]) for cut in cuts if self.labels.kind in ("boxes", "oboxes")]
        own = [item.corners[inside(item, *cut.core(item))] - [cut.left, cut.top] for cut, item in both]
        beyond = sum(int(((one < 0) | (one > self.size)).any((1, 2)).sum()) for one in own)
        said = f"{beyond} of {sum(map(len, own))} boxes reach beyond their window, in which alone a test has them"
        return [said] if beyond else []

    def _far(self, gsds: Sequence[float]) -> list[str]:
        known = [gsd for gsd in gsds if np.isfinite(gsd)]
        self.gsd = float(np.median(known)) if known else None
        there = self.trained_at or self.gsds
        if self.gsd is None or not all(there):
            return []
        gsd = self.gsd
        usual = min(there, key=lambda one: abs(np.log(gsd / one)))
        if 1 / _FAR <= gsd / usual <= _FAR:
            return []
        how = f"was trained at {usual:.3g} m" if self.trained_at else f"is for {usual:.3g} m, which its sensor has"
        said = f"images have {gsd:.3g} m a pixel, and the encoder {how}"
        return [f"{said}: it may not know what things look like here"]

    def sample(self, cut: Cut, train: bool = False) -> dict[str, Any]:
        """A window as it lies: `image`, `valid`, `id`, and its label, labels and their `corners`, or mask."""
        item = self.labels.items[cut.item]
        top, left, height, width = core = (cut.top, cut.left, cut.side, cut.side) if train else cut.core(item)
        image, valid = self._image(item.image, cut)
        sample: dict[str, Any] = {"id": f"{item.image}#{cut.top},{cut.left}", "image": image, "valid": valid}
        if item.after is not None:
            after, seen = self._image(item.after, cut)
            sample |= {"image": torch.stack([image, after]), "valid": valid & seen}
        if self.labels.kind == "class":
            return sample | {"label": torch.tensor(item.label)}
        if self.labels.kind in ("boxes", "oboxes"):
            own = inside(item, *core)
            corners = torch.from_numpy(item.corners[own] - [cut.left, cut.top])
            sample |= {"corners": corners, "label": torch.from_numpy(item.labels[own])}
            return sample if train else sample | {"beside": torch.from_numpy(_beside(item, cut, own)).float()}
        mask = torch.full((cut.side, cut.side), UNLABELLED)
        rows, columns = slice(top - cut.top, top - cut.top + height), slice(left - cut.left, left - cut.left + width)
        mask[rows, columns] = torch.from_numpy(read_mask(self.labels, item, *cut[1:]))[rows, columns]
        return sample | {"mask": torch.where(sample["valid"][0], mask, UNLABELLED)}

    def _image(self, uri: str, cut: Cut) -> tuple[Tensor, Tensor]:
        scene, prepare = self.open(uri)
        numbers, valid = read_window(scene, *cut[1:])
        size = None if cut.side == self.size else self.size
        image, seen = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)
        return image[0], seen[0]

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows to train on, every epoch in another order."""
        most = _OPEN // 2 if self.labels.kind == "change" else _OPEN
        order = Order([cut.item for cut in self.parts["train"]], self.seed, most)
        return self._loader("train", True, sampler=order, drop_last=len(order) > self.batch_size)

    def val_dataloader(self) -> Any:
        """Windows for validation, if there are any."""
        return self._loader("val", False) if self.parts["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Windows of the test."""
        return self._loader("test", False)

    predict_dataloader = test_dataloader

    def _loader(self, part: str, train: bool, **options: Any) -> DataLoader[Any]:
        options |= {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return DataLoader(Samples(self, self.parts[part], train), self.batch_size, collate_fn=together, **options)


def _beside(item: Item, cut: Cut, own: np.ndarray) -> np.ndarray:
    """`(M, 4)` parts of a window around its core, and of the boxes in it that are not its own."""
    top, left, height, width = cut.core(item)
    x, y, x2, y2 = whole = cut.left, cut.top, cut.left + cut.side, cut.top + cut.side
    around = [(x, y, left, y2), (left + width, y, x2, y2), (x, y, x2, top), (x, top + height, x2, y2)]
    others = np.setdiff1d(item.tree.query(shapely.box(*whole), "intersects"), own)
    boxes = shapely.bounds(shapely.clip_by_rect(item.tree.geometries[others], *whole))
    found = np.concatenate([around, boxes]) - [x, y, x, y]
    return found[(found[:, 2:] > found[:, :2]).all(1)]


@lru_cache(_OPEN)
def _open(contract: BandContract, uri: str, asked: Asked, process: int) -> tuple[Scene, ContractInput]:
    """Open a scene; a process does not read by what another one opened."""
    return open_for(contract, uri, get_sensor(asked.sensor) if asked.sensor else None, asked.bands)


class Order(Sampler[int]):
    """Positions of an epoch, `epoch * count + window`, shuffled; a position is the address of a window's turn.

    Images are shuffled, and windows among so many images at a time: an image is opened once an epoch, not for a window.
    """

    def __init__(self, images: Sequence[int], seed: int, most: int = _OPEN) -> None:
        self.images, self.seed, self.most, self.epoch = torch.tensor(images), seed, most, 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        positions = torch.arange(len(self)) + self.epoch * len(self)
        images = self.images + self.epoch * (int(self.images.max()) + 1)
        order = Draws(self.seed, positions)("order", 1)[:, 0]
        groups = Draws(self.seed, images)("images", 1)[:, 0].unique(return_inverse=True)[1] // self.most
        return iter(positions[np.lexsort((order, groups))].tolist())


class Samples(Dataset[dict[str, Any]]):
    """Windows by position, which goes on from epoch to epoch."""

    def __init__(self, windows: Windows, cuts: list[Cut], train: bool) -> None:
        self.windows, self.cuts, self.train = windows, cuts, train

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.windows.sample(self.cuts[position % len(self.cuts)], self.train)
        if self.train and self.windows.turn:
            mirror, quarter = Draws(self.windows.seed, torch.tensor([position]))("turn", 2)[0].tolist()
            sample = turned(sample, mirror < 0.5, int(4 * quarter))
        corners = sample.pop("corners", None)
        if self.windows.labels.kind == "boxes":
            boxes = torch.cat([corners.amin(1), corners.amax(1)], 1).clamp(0, self.windows.size).float()
            sample["bbox_xyxy"] = boxes
        elif corners is not None:
            sample["obox"] = from_corners(corners).float()
        return sample


def turned(sample: dict[str, Any], mirror: bool, quarter: int) -> dict[str, Any]:
    """A window mirrored left and right, then turned by quarters counterclockwise, with all that lies in it."""
    found, side = dict(sample), sample["image"].shape[-1]
    for key in sample.keys() & {"image", "valid", "mask"}:
        found[key] = torch.rot90(sample[key].flip(-1) if mirror else sample[key], quarter, (-2, -1))
    if "corners" in sample:
        x, y = sample["corners"].unbind(-1)
        x = side - x if mirror else x
        for _ in range(quarter):
            x, y = y, side - x
        found["corners"] = torch.stack([x, y], -1)
    return found


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch; boxes and their labels are a list, as their number differs."""
    lists = {"id", "bbox_xyxy", "obox", "beside"} | ({"label"} if samples[0].keys() & {"bbox_xyxy", "obox"} else set())
    both = {key: [one[key] for one in samples] for key in samples[0]}
    return {key: values if key in lists else torch.stack(values) for key, values in both.items()}
