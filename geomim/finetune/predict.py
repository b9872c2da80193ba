"""What a tuned task says of scenes: it looks at them as maps ask, and tells the classes of whole images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from geomim.errors import CheckpointError, ConfigError
from geomim.evaluate.features import device_of, fast_half
from geomim.evaluate.saved import fingerprint
from geomim.finetune import oriented
from geomim.finetune.progress import watched
from geomim.maps.finder import Finder
from geomim.maps.looker import Looker
from geomim.maps.opening import open_for
from geomim.maps.rasters import aside
from geomim.maps.windows import read_window
from geomim.sensors import Sensor

_UPRIGHT = 0.5  # overlap of two boxes of a class from which on they are one, as torchvision's detectors have it


def open_task(path: Path, tasks: Mapping[str, Any]) -> tuple[Any, int]:
    """A tuned task, and the side in pixels of the windows that it was trained on.

    Args:
        path: A folder of `geomim finetune`, or the task's file.
        tasks: Classes of tasks by name.

    Raises:
        CheckpointError: There is no task.
        ConfigError: It does not tell the side.
    """
    file = path / "task.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"'{file}' does not exist: give a folder of geomim finetune, or a task's file")
    state, beside = torch.load(file, map_location="cpu", weights_only=True), file.with_name("config.yaml")
    task = tasks[state["geomim_task"]].load_from_checkpoint(file, map_location="cpu", weights_only=True).eval()
    task.fitted_at = state.get("geomim_gsd")
    task._looked = True  # scenes are normalised by its contract, and check_scene tells what is odd
    size = state.get("geomim_size")
    if size is None and beside.is_file():  # as the first tasks were kept
        size = yaml.safe_load(beside.read_text())["windows"]["size"]
    if size is None:
        raise ConfigError(f"'{file}' tells no size of windows: leave it in its folder, beside config.yaml")
    return task, int(size)


def segmenter(task: Any, size: int, device: str = "auto") -> Looker:
    """A task of classes of pixels, ready to look at scenes by windows of so many pixels a side."""
    target, own = device_of(device), task.model.eval()
    made_by, own = fingerprint(own), own.to(target)

    def look(images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        with torch.autocast(target.type, torch.bfloat16, enabled=fast_half(target)):
            found: torch.Tensor = own(images)
        return found.float().softmax(1)

    contract, classes = task.contract, tuple(task.hparams["classes"])
    return Looker(contract, size, 1, classes, made_by, look, target, tuple(task.notes), task.fitted_at)


def changer(task: Any, size: int, device: str = "auto") -> Looker:
    """A task of pairs, ready to look at two dates of a place; see `segmenter`."""
    return replace(segmenter(task, size, device), dates=2)


def finder(task: Any, size: int, device: str = "auto") -> Finder:
    """A task of boxes, ready to find objects in windows of so many pixels a side."""
    target, own = device_of(device), task.model.eval()
    made_by, own = fingerprint(own), own.to(target)

    def find(images: torch.Tensor, valid: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        with torch.autocast(target.type, torch.bfloat16, enabled=fast_half(target)):
            found: list[dict[str, torch.Tensor]] = own(images)
        return found

    contract, classes = task.contract, tuple(task.hparams["classes"])
    overlap, notes = oriented.OVERLAP if task.rotated else _UPRIGHT, tuple(task.notes)
    return Finder(contract, size, classes, made_by, find, target, overlap, task.rotated, notes, task.fitted_at)


def write_classes(
    task: Any, uris: Sequence[str], out: Path, size: int, sensor: Sensor | None, bands: Sequence[str] | None
) -> None:
    """Write a table with the class of each scene, looked at whole, and how likely it is; it is whole or not there.

    Args:
        task: Of classification.
        uris: The scenes.
        out: The table.
        size: Side that scenes are brought to.
        sensor: What took them, where they do not say.
        bands: Names of their bands in file order, where they do not name them.
    """
    with aside(out) as part, part.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "class", "probability"])
        for uri in watched(uris, "scenes"):
            table.writerow([uri, *_class(task, uri, size, sensor, bands)])


@torch.inference_mode()
def _class(task: Any, uri: str, size: int, sensor: Sensor | None, bands: Sequence[str] | None) -> tuple[str, str]:
    scene, prepare = open_for(task.contract, uri, sensor, bands)
    with scene:
        numbers, valid = read_window(scene, 0, 0, max(scene.height, scene.width))
    image, _ = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)
    value, place = task(image).softmax(1)[0].max(0)
    return task.hparams["classes"][int(place)], f"{float(value):.4f}"
