"""Labels and scenes in, batches of windows out, normalised by the contract of the encoder that reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.finetune.labels import UNLABELLED, Item, Labels
from geomim.finetune.labels.items import some
from geomim.finetune.labels.rasters import counted, inside, read_mask
from geomim.finetune.places import Split, divide, ground_of, outlines_of
from geomim.finetune.rotated import from_corners
from geomim.maps.opening import check_scene, open_for
from geomim.maps.windows import Walk, read_window
from geomim.models.inputs import ContractInput
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor

_FAR = 1.5  # times the metres a pixel that are worth a warning


class Cut(NamedTuple):
    """A square window: the place of its image among the items, its first row and column, its side."""

    item: int
    top: int
    left: int
    side: int


class Windows(pl.LightningDataModule):
    """Windows of one size cut from labelled scenes, train and test by place.

    They lie side by side, the last of a row or column moved inside; what of a window lies beyond a smaller scene is not
    valid. Windows of masks hold a labelled pixel. A box belongs to the window that its middle lies in; an upright one
    is cut off at the window's border. Images of one class are read as the square around them and resized. Windows for
    training are mirrored and turned by quarters, addressed by epoch and window.

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
    ) -> None:
        super().__init__()
        self.labels, self.contract, self.size, self.batch_size = labels, contract, size, batch_size
        self.workers, self.turn, self.seed = workers, turn, seed
        self.prepare_data_per_node = False
        cuts: list[Cut] = []
        counts, frames, outlines, gsds = [], [], [], []
        for number, item in enumerate(labels.items):
            scene, prepare = self.open(item.image)
            own = self._cuts(number, item)
            if not number:
                check_scene(scene, prepare, [one[1:3] for one in own], own[0].side)
            labelled = [(one, counted(labels, item, *one[1:])) for one in own]
            labelled = [(one, count) for one, count in labelled if labels.kind != "mask" or count.any()]
            frame, shapes = outlines_of(
                item, scene, [Window(one.left, one.top, one.side, one.side) for one, _ in labelled]
            )
            cuts += [one for one, _ in labelled]
            counts += [count for _, count in labelled]
            frames += [frame] * len(labelled)
            outlines += list(shapes)
            gsds.append((scene.gsd or np.nan) * own[0].side / size)
        if not cuts:
            raise InputError(
                f"no pixel of {len(labels.items)} scenes is labelled: polygons may be smaller than a pixel"
            )
        told = [self._told(item, split.test) for item in labels.items]
        if split.test and "test" not in told:
            first = labels.items[0].image
            raise InputError(
                f"none of {len(told)} images, such as '{first}', is in {some(split.test)}: name test images"
            )
        held, number = np.array([told[one.item] for one in cuts]), np.array(counts)
        parts, said = divide(ground_of(frames, outlines), number, held, split, labels.classes)
        if labels.kind in ("boxes", "oboxes"):
            parts = self._fewer(parts, number.any(1), empty)
        self.parts = {part: [cuts[at] for at in np.flatnonzero(parts == part)] for part in ("train", "val", "test")}
        who = "you say" if split.test else "their folder says"
        tested = [f"{told.count('test')} of {len(told)} images are the test, as {who}"]
        sizes = ", ".join(f"{len(own)} {part}" for part, own in self.parts.items())
        self.notes = [*labels.notes, *self._far(np.array(gsds)), *(tested if "test" in told else ()), *said]
        self.notes.append(f"windows of {size} x {size} pixels: {sizes}")

    def open(self, uri: str) -> tuple[Scene, ContractInput]:
        """A scene, and what brings it to the contract."""
        return _open(self.contract, uri, self.labels.asked.sensor, self.labels.asked.bands)

    def _cuts(self, number: int, item: Item) -> list[Cut]:
        if self.labels.kind == "class":
            return [Cut(number, 0, 0, max(item.height, item.width))]
        return [Cut(number, *at, self.size) for at in Walk(item.height, item.width, 1, self.size, 0).places]

    def _told(self, item: Item, test: Sequence[str]) -> str:
        """The part that an image is said to be of."""
        if not test:
            return "" if item.split in (None, "train") else str(item.split)
        path = os.path.abspath(item.image)
        inside_ = any((path + "/").startswith(os.path.abspath(one) + "/") for one in test)
        return "test" if inside_ or os.path.basename(path) in test else ""

    def _fewer(self, parts: np.ndarray, some_: np.ndarray, empty: float) -> np.ndarray:
        """Training windows without boxes as many as their greatest share allows."""
        none = np.random.default_rng(self.seed).permutation(np.flatnonzero((parts == "train") & ~some_))
        most = int(((parts == "train") & some_).sum() * empty / max(1 - empty, 1e-9))
        parts[none[most:]] = "spare"
        return parts

    def _far(self, gsds: np.ndarray) -> list[str]:
        usual = self.contract.sensor.gsd
        gsd = float(np.nanmedian(gsds)) if np.isfinite(gsds).any() else usual
        if usual is None or gsd is None or 1 / _FAR <= gsd / usual <= _FAR:
            return []
        said = f"images have {gsd:.3g} m a pixel, and the encoder was trained at {usual:.3g} m"
        return [f"{said}: it may not know what things look like here"]

    def sample(self, cut: Cut) -> dict[str, Any]:
        """A window as it lies: `image`, `valid`, `id`, and its label, labels and their `corners`, or mask."""
        item = self.labels.items[cut.item]
        image, valid = self._image(item.image, cut)
        sample: dict[str, Any] = {"id": f"{item.image}#{cut.top},{cut.left}", "image": image, "valid": valid}
        if item.after is not None:
            after, seen = self._image(item.after, cut)
            sample |= {"image": torch.stack([image, after]), "valid": valid & seen}
        if self.labels.kind == "class":
            return sample | {"label": torch.tensor(item.label)}
        if self.labels.kind in ("boxes", "oboxes"):
            own = inside(item, *cut[1:])
            corners = torch.from_numpy(item.corners[own] - [cut.left, cut.top])
            return sample | {"corners": corners, "label": torch.from_numpy(item.labels[own])}
        mask = torch.from_numpy(read_mask(self.labels, item, *cut[1:]))
        return sample | {"mask": torch.where(sample["valid"][0], mask, UNLABELLED)}

    def _image(self, uri: str, cut: Cut) -> tuple[Tensor, Tensor]:
        scene, prepare = self.open(uri)
        numbers, valid = read_window(scene, *cut[1:])
        size = None if cut.side == self.size else self.size
        image, seen = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)
        return image[0], seen[0]

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows to train on, every epoch in another order."""
        order = Order(len(self.parts["train"]), self.seed)
        return self._loader("train", self.turn, sampler=order, drop_last=len(order) > self.batch_size)

    def val_dataloader(self) -> Any:
        """Windows for validation, if there are any."""
        return self._loader("val", False) if self.parts["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Windows of the test."""
        return self._loader("test", False)

    predict_dataloader = test_dataloader

    def _loader(self, part: str, turn: bool, **options: Any) -> DataLoader[Any]:
        options |= {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return DataLoader(Samples(self, self.parts[part], turn), self.batch_size, collate_fn=together, **options)


@lru_cache(16)  # windows of a scene are often read one after another
def _open(
    contract: BandContract, uri: str, sensor: str | None, bands: Sequence[str] | None
) -> tuple[Scene, ContractInput]:
    return open_for(contract, uri, get_sensor(sensor) if sensor else None, bands)


class Order(Sampler[int]):
    """Positions of an epoch, `epoch * count + window`, shuffled; a position is the address of a window's turn."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        positions = torch.arange(self.count) + self.epoch * self.count
        return iter(positions[Draws(self.seed, positions)("order", 1)[:, 0].argsort(stable=True)].tolist())


class Samples(Dataset[dict[str, Any]]):
    """Windows by position, which goes on from epoch to epoch."""

    def __init__(self, windows: Windows, cuts: list[Cut], turn: bool) -> None:
        self.windows, self.cuts, self.turn = windows, cuts, turn

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.windows.sample(self.cuts[position % len(self.cuts)])
        if self.turn:
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
    lists = {"id", "bbox_xyxy", "obox"} | ({"label"} if samples[0].keys() & {"bbox_xyxy", "obox"} else set())
    both = {key: [one[key] for one in samples] for key in samples[0]}
    return {key: values if key in lists else torch.stack(values) for key, values in both.items()}
