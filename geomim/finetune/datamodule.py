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

_LISTS = ("bbox_xyxy", "obox", "id")
_FAR = 1.5  # times the metres a pixel that are worth a warning


class Cut(NamedTuple):
    """A window: the place of its image among the items, and its first row and column."""

    item: int
    top: int
    left: int


class Windows(pl.LightningDataModule):
    """Windows of one size cut from labelled scenes; parts share no place.

    They lie side by side, the last of a row or column moved inside; what of a window lies beyond a smaller scene is not
    valid. Windows of masks hold at least one labelled pixel. A box belongs to the window that its middle lies in; an
    upright one is cut off at the border. Images of a class are read whole and resized. Training windows are mirrored
    and turned by quarters, addressed by epoch and window.

    Args:
        labels: From `open_labels`.
        contract: Bands and numbers that the encoder expects.
        size: Side of a window in pixels.
        split: How places are shared out.
        batch_size: Windows of a batch.
        workers: Reading processes.
        sensor: What took the scenes; see `geomim predict`.
        bands: Names of their bands in file order.
        turn: Mirror and turn training windows.
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
        split: Split = Split(),  # noqa: B008  # frozen
        batch_size: int = 16,
        workers: int = 0,
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        turn: bool = True,
        empty: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.labels, self.contract, self.size, self.batch_size = labels, contract, size, batch_size
        self.workers, self.turn, self.seed = workers, turn, seed
        self.opened = (sensor, None if bands is None else tuple(bands))
        self.prepare_data_per_node = False
        cuts, counts, frames, outlines, gsds = [], [], [], [], []
        for number, item in enumerate(labels.items):
            scene, prepare = self.open(item.image)
            own = self._cuts(number, item)
            labelled = [counted(labels, item, cut.top, cut.left, size) for cut in own]
            kept = [at for at, count in enumerate(labelled) if labels.kind != "mask" or count.any()]
            cuts += [own[at] for at in kept]
            counts += [labelled[at] for at in kept]
            frame, shapes = outlines_of(item, scene, [self._window(item, own[at]) for at in kept])
            frames += [frame] * len(kept)
            outlines += list(shapes)
            shrunk = max(item.height, item.width) / size if labels.kind == "class" else 1
            gsds.append((scene.gsd or np.nan) * shrunk)
            if not number:
                check_scene(scene, prepare, [(cut.top, cut.left) for cut in own], min(size, item.height, item.width))
        if not cuts:
            raise InputError(
                f"no window of {len(labels.items)} scenes holds a labelled pixel: polygons may be smaller than one"
            )
        told = [self._told(item, split) for item in labels.items]
        if split.test and "test" not in told:
            raise InputError(
                f"--test names none of the {len(told)} images ({some(split.test)}): the first is '{labels.items[0].image}'"
            )
        number, said_of = np.array(counts), "you say" if split.test else "folders are called so"
        tested = [f"{told.count('test')} of {len(told)} images are the test, as {said_of}"] if "test" in told else []
        parts, said = divide(
            ground_of(frames, outlines),
            number,
            np.array([told[cut.item] for cut in cuts], "<U5"),
            split,
            labels.classes,
        )
        self.parts = {part: [cuts[at] for at in np.flatnonzero(parts == part)] for part in ("train", "val", "test")}
        if labels.kind.endswith("boxes"):
            self.parts["train"] = self._fewer(self.parts["train"], number[parts == "train"], empty)
        held = ", ".join(f"{len(own)} {part}" for part, own in self.parts.items())
        self.notes = [
            *labels.notes,
            *self._far(np.array(gsds)),
            *tested,
            *said,
            f"windows of {size} x {size} pixels: {held}",
        ]

    def open(self, uri: str) -> tuple[Scene, ContractInput]:
        """A scene, and what brings it to the contract."""
        return _open(self.contract, uri, *self.opened)

    def _cuts(self, number: int, item: Item) -> list[Cut]:
        if self.labels.kind == "class":
            return [Cut(number, 0, 0)]
        return [Cut(number, *place) for place in Walk(item.height, item.width, 1, self.size, 0).places]

    def _window(self, item: Item, cut: Cut) -> Window:
        if self.labels.kind == "class":
            return Window(0, 0, item.width, item.height)
        return Window(cut.left, cut.top, self.size, self.size)

    def _told(self, item: Item, split: Split) -> str:
        path = os.path.abspath(item.image)
        inside = [path == one or path.startswith(one.rstrip("/") + "/") for one in map(os.path.abspath, split.test)]
        named = os.path.basename(item.image) in split.test
        return "test" if any(inside) or named else "" if split.test or item.split == "train" else item.split or ""

    def _fewer(self, cuts: list[Cut], counts: np.ndarray, empty: float) -> list[Cut]:
        """All windows with boxes, and as many without as the share allows."""
        some_, none = np.flatnonzero(counts.any(1)), np.flatnonzero(~counts.any(1))
        most = int(len(some_) * empty / (1 - empty)) if empty < 1 else len(none)
        kept = np.random.default_rng(self.seed).permutation(none)[:most]
        return [cuts[at] for at in np.sort(np.r_[some_, kept])]

    def _far(self, gsds: np.ndarray) -> list[str]:
        usual = self.contract.sensor.gsd
        if usual is None or np.isnan(gsds).all():
            return []
        gsd = float(np.nanmedian(gsds))
        if 1 / _FAR <= gsd / usual <= _FAR:
            return []
        return [
            f"images of {gsd:.3g} m a pixel, and the encoder was trained at {usual:.3g} m: it may not know what things look like here; bring the scenes nearer to that"
        ]

    def sample(self, cut: Cut) -> dict[str, Any]:
        """A window as it lies: `image` `(C, S, S)`, `valid` `(1, S, S)`, `id`, and what its labels are; see `placed`."""
        item = self.labels.items[cut.item]
        images = [self._image(uri, cut, item) for uri in (item.image, item.after) if uri]
        image, valid = images[0] if item.after is None else map(torch.stack, zip(*images, strict=True))
        sample: dict[str, Any] = {"id": f"{item.image}#{cut.top},{cut.left}", "image": image}
        sample["valid"] = valid if item.after is None else valid.all(0)
        if self.labels.kind == "class":
            sample["label"] = torch.tensor(item.label)
        elif self.labels.kind.endswith("boxes"):
            own = inside(item, cut.top, cut.left, self.size)
            sample["corners"] = torch.from_numpy(item.corners[own] - [cut.left, cut.top])
            sample["label"] = torch.from_numpy(item.labels[own])
        else:
            mask = torch.from_numpy(read_mask(self.labels, item, cut.top, cut.left, self.size))
            sample["mask"] = torch.where(sample["valid"][0], mask, UNLABELLED)
        return sample

    def _image(self, uri: str, cut: Cut, item: Item) -> tuple[Tensor, Tensor]:
        scene, prepare = self.open(uri)
        if self.labels.kind == "class":
            side = max(item.height, item.width)
            numbers, valid = scene.read_valid()
            numbers = (
                numbers.astype(np.float32) if numbers.dtype.kind in "ui" and numbers.dtype != np.uint8 else numbers
            )
            images, seen = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], self.size)
        else:
            numbers, valid = read_window(scene, cut.top, cut.left, self.size)
            images, seen = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None])
        return images[0], seen[0]

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless order, epoch by epoch."""
        order = Order(len(self.parts["train"]), self.seed)
        return self._loader("train", self.turn, sampler=order, drop_last=len(order) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Windows for validation, if there are any."""
        return self._loader("val", False) if self.parts["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Windows of the test."""
        return self._loader("test", False)

    predict_dataloader = test_dataloader

    def _loader(self, part: str, turned: bool, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            Samples(self, self.parts[part], turned),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=together,
            persistent_workers=self.workers > 0,
            **options,
        )


@lru_cache(16)  # windows of a scene are often read one after another
def _open(
    contract: BandContract, uri: str, sensor: str | None, bands: tuple[str, ...] | None
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
        yield from positions[Draws(self.seed, positions)("order", 1)[:, 0].argsort(stable=True)].tolist()


class Samples(Dataset[dict[str, Any]]):
    """Windows by position, of which any number of epochs follow each other."""

    def __init__(self, windows: Windows, cuts: list[Cut], turned: bool) -> None:
        self.windows, self.cuts, self.turned = windows, cuts, turned

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.windows.sample(self.cuts[position % len(self.cuts)])
        if self.turned:
            mirror, quarter = Draws(self.windows.seed, torch.tensor([position]))("turn", 2)[0].tolist()
            sample = turned(sample, mirror < 0.5, int(4 * quarter))
        return placed(sample, self.windows.labels.kind, self.windows.size)


def turned(sample: dict[str, Any], mirror: bool, quarter: int) -> dict[str, Any]:
    """A window mirrored left and right, then turned by quarters counterclockwise, with all that lies in it."""
    found, side = dict(sample), sample["image"].shape[-1]
    for key in ("image", "valid", "mask"):
        if key in found:
            found[key] = torch.rot90(found[key].flip(-1) if mirror else found[key], quarter, (-2, -1))
    if "corners" in found:
        x, y = found["corners"].unbind(-1)
        x = side - x if mirror else x
        for _ in range(quarter):
            x, y = y, side - x
        found["corners"] = torch.stack([x, y], -1)
    return found


def placed(sample: dict[str, Any], kind: str, side: int) -> dict[str, Any]:
    """A window whose corners are `bbox_xyxy` `(N, 4)`, cut off at its border, or `obox` `(N, 5)`."""
    corners = sample.pop("corners", None)
    if kind == "boxes":
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1).clamp(0, side).float()
        use = (boxes[:, 2:] - boxes[:, :2] > 0).all(1)
        sample |= {"bbox_xyxy": boxes[use], "label": sample["label"][use]}
    elif kind == "oboxes":
        sample["obox"] = from_corners(corners).float()
    return sample


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch; what has another length in each window is a list."""
    lists = (*_LISTS, *(("label",) if samples[0].keys() & {"bbox_xyxy", "obox"} else ()))
    return {
        key: [one[key] for one in samples] if key in lists else torch.stack([one[key] for one in samples])
        for key in samples[0]
    }
