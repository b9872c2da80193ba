"""What a tuned task says of scenes without labels, as files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from geomim.corpus.scenes import Scene
from geomim.errors import ConfigError, InputError
from geomim.finetune import rotated
from geomim.finetune.change import Change
from geomim.finetune.classification import Classification
from geomim.finetune.detection import Detection
from geomim.maps.opening import open_for
from geomim.maps.rasters import NODATA, aside, create, name_classes, placed
from geomim.maps.windows import Walk, blend, read_window
from geomim.models.inputs import ContractInput
from geomim.sensors import Sensor

_OVERLAP = 0.5  # of two boxes of a class, found in neighbouring windows, from which on they are one


@torch.inference_mode()
def predicted(
    task: Any, uris: Sequence[str], out: Path, size: int, sensor: Sensor | None, bands: Sequence[str] | None
) -> list[str]:
    """Write a map of classes for each scene, or one table of boxes or classes for all; scenes are read by windows.

    Raises:
        ConfigError: The task is of pairs, or has more classes than a map of bytes can hold.
        InputError: There is no scene, or two would give the same file.
    """
    classes, stems = task.hparams["classes"], [Path(uri).stem for uri in uris]
    if isinstance(task, Change) or len(classes) > NODATA:
        raise ConfigError("predict reads single scenes and up to 255 classes; of pairs use the task from Python")
    if not uris or len({*stems}) < len(stems):
        raise InputError("no scene is found" if not uris else "two scenes have one name: predict them one by one")
    opened = ((uri, *open_for(task.contract, uri, sensor, bands)) for uri in uris)
    if isinstance(task, Classification):
        return [_table(out / "classes.csv", ["image", "class", "probability"], _classes(task, opened, size))]
    if isinstance(task, Detection):
        head = ["image", "class", "score", *(f"{axis}{n}" for n in range(1, 5) for axis in "xy")]
        return [_table(out / "boxes.csv", head, _boxes(task, opened, size))]
    return [_map(task, out / f"{Path(uri).stem}.tif", scene, prepare, size) for uri, scene, prepare in opened]


def _map(task: Any, path: Path, scene: Scene, prepare: ContractInput, size: int) -> str:
    def look(numbers: Any, valid: Any) -> Any:
        image, seen = prepare(numbers, valid)
        return task(image).softmax(1).numpy(), seen[:, 0].numpy()

    profile = {"count": 1, "dtype": "uint8", "nodata": NODATA, "height": scene.height, "width": scene.width}
    with aside(path) as part:
        with create(part, profile | placed(scene, 1)) as raster:
            name_classes(raster, task.hparams["classes"])
            for top, values in blend(scene, Walk(scene.height, scene.width, 1, size, size // 4), look):
                unseen = np.isnan(values[0])
                named = np.where(unseen, NODATA, np.nan_to_num(values).argmax(0)).astype(np.uint8)
                raster.write(named, 1, window=((top, top + len(named)), (0, scene.width)))
    return str(path)


def _classes(task: Any, opened: Iterable[tuple[str, Scene, ContractInput]], size: int) -> Iterable[list[Any]]:
    for uri, scene, prepare in opened:
        image, _ = _read(scene, prepare, 0, 0, max(scene.height, scene.width), size)
        value, place = task(image).softmax(1)[0].max(0)
        yield [uri, task.hparams["classes"][int(place)], f"{float(value):.4f}"]


def _boxes(task: Any, opened: Iterable[tuple[str, Scene, ContractInput]], size: int) -> Iterable[list[Any]]:
    for uri, scene, prepare in opened:
        found = []
        for top, left in Walk(scene.height, scene.width, 1, size, size // 4).places:
            (one,) = task(_read(scene, prepare, top, left, size, None)[0])
            shift = torch.tensor([left, top, 0, 0, 0] if task.rotated else [left, top, left, top])
            found.append((one["boxes"].cpu() + shift, one["scores"].cpu(), one["labels"].cpu()))
        boxes, scores, labels = map(torch.cat, zip(*found, strict=True))
        kept = (rotated.nms if task.rotated else batched_nms)(boxes, scores, labels, _OVERLAP)
        shapes = rotated.corners(boxes) if task.rotated else boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
        for at in kept.tolist():
            numbers = [f"{one:.2f}" for one in shapes[at].flatten().tolist()]
            yield [uri, task.hparams["classes"][int(labels[at])], f"{float(scores[at]):.4f}", *numbers]


def _read(scene: Scene, prepare: ContractInput, top: int, left: int, side: int, size: int | None) -> Any:
    numbers, valid = read_window(scene, top, left, side)
    return prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)


def _table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    with aside(path) as part, part.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return str(path)
