"""What a tuned task says of scenes: it looks at them as maps ask, and tells the classes of whole images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from geomim import __version__
from geomim.errors import CheckpointError, ConfigError, GeomimError, InputError
from geomim.evaluate.features import device_of, fast_half
from geomim.evaluate.saved import fingerprint
from geomim.finetune import oriented
from geomim.finetune.progress import watched
from geomim.finetune.run import TASKS
from geomim.maps.classes import Attempts
from geomim.maps.files.rasters import aside
from geomim.maps.scenes.opening import check_scene, open_for
from geomim.maps.walk.finder import Finder
from geomim.maps.walk.looker import Looker
from geomim.maps.walk.windows import Walk, read_window
from geomim.models.weights import fill, read_checkpoint
from geomim.sensors import Sensor

_UPRIGHT = 0.5  # overlap of two boxes of a class from which on they are one, as torchvision's detectors have it
_HEAD = ("image", "class", "probability")


class Stored(NamedTuple):
    """A tuned task, its name in `TASKS`, and the side in pixels of the windows that it was trained on."""

    task: Any
    name: str
    size: int


def open_task(path: Path) -> Stored:
    """The tuned task of a file, in evaluation mode, for images that are normalised by its contract.

    Args:
        path: A folder of `geomim finetune`, or the task's file.

    Raises:
        CheckpointError: There is no task, or it is damaged or of another version.
        ConfigError: It does not tell the side.
    """
    file = path / "task.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"'{file}' does not exist: give a folder of geomim finetune, or a task's file")
    state = read_checkpoint(file)
    name, beside = state.get("geomim_task"), file.with_name("config.yaml")
    task, size = _made(file, name, state), state.get("geomim_size")
    task.fitted_at, task.normalised = state.get("geomim_gsd"), True  # check_scene tells what is odd
    if size is None and beside.is_file():  # as the first tasks were kept
        size = yaml.safe_load(beside.read_text())["windows"]["size"]
    if size is None:
        raise ConfigError(f"'{file}' tells no size of windows: leave it in its folder, beside config.yaml")
    return Stored(task, str(name), int(size))


def _made(file: Path, name: Any, state: Mapping[str, Any]) -> Any:
    """A task as its file says, which Lightning would read once more."""
    if name not in TASKS:
        what = "no tuned task" if name is None else f"a task of '{name}', which geomim {__version__} does not know"
        raise CheckpointError(f"'{file}' holds {what}: expected {', '.join(TASKS)}, from geomim finetune")
    known = signature(TASKS[name]).parameters
    try:
        given = state["hyper_parameters"].items()
        task = TASKS[name](**{key: value for key, value in given if key in known})
        fill(file, task, state["state_dict"], f"the task of {name} that it describes")
    except GeomimError:
        raise
    except Exception as error:  # values of any kind may be missing or be others
        raise CheckpointError(
            f"'{file}' cannot be made a task of {name} ({type(error).__name__}: {error}): it is damaged or of a "
            f"version that geomim {__version__} does not know"
        ) from error
    return task


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
    task: Any,
    uris: Sequence[str],
    out: Path,
    size: int,
    sensor: Sensor | None,
    bands: Sequence[str] | None,
    device: str = "auto",
) -> None:
    """Write a table with the class of each scene, looked at whole, and how likely it is; it is whole or not there.

    Each scene is read into memory whole, at its full resolution: such tasks are for images, not for whole acquisitions.

    Args:
        task: Of classification.
        uris: The scenes.
        out: The table; an older one there is replaced.
        size: Side that scenes are brought to.
        sensor: What took them, where they do not say.
        bands: Names of their bands in file order, where they do not name them.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Raises:
        InputError: The file there is no such table, or scenes cannot be read or hold numbers in another unit. Of
            several scenes the others are written; why was said as it came.
        BandError: The only scene lacks bands that the task needs.
    """
    if out.exists() and not _is_table(out):
        raise InputError(f"'{out}' is there and is no table of classes that geomim wrote: name another file with --out")
    task, attempts = task.to(device_of(device)), Attempts(len(uris), "class")
    found = [
        (uri, attempts.make(uri, partial(_class, task, uri, size, sensor, bands))) for uri in watched(uris, "scenes")
    ]
    if rows := [(uri, *one) for uri, one in found if one]:
        with aside(out) as part, part.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([_HEAD, *rows])
        print(f"wrote {out}: {len(rows)} scene{'s' * (len(rows) > 1)}")
    attempts.close()


def _is_table(path: Path) -> bool:
    """Whether a file begins as `write_classes` begins one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(100).rstrip() == ",".join(_HEAD).encode()


@torch.inference_mode()
def _class(task: Any, uri: str, size: int, sensor: Sensor | None, bands: Sequence[str] | None) -> tuple[str, str]:
    scene, prepare = open_for(task.contract, uri, sensor, bands)
    with scene:
        check_scene(scene, prepare, Walk(scene.height, scene.width, 1, size, 0).places, size)
        numbers, valid = read_window(scene, 0, 0, max(scene.height, scene.width))
    image, _ = prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)
    target = task.device
    with torch.autocast(target.type, torch.bfloat16, enabled=fast_half(target)):
        found = task(image.to(target))
    value, place = found.float().softmax(1)[0].max(0)
    return task.hparams["classes"][int(place)], f"{float(value):.4f}"
