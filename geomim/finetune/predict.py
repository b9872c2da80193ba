"""What a tuned task says of scenes without labels, as files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
import torch
import yaml
from torchvision.ops import batched_nms

from geomim.corpus.scenes import Scene
from geomim.corpus.store import write_text
from geomim.errors import CheckpointError, ConfigError, InputError
from geomim.evaluate.features import device_of, fast_half
from geomim.evaluate.saved import fingerprint
from geomim.finetune import rotated
from geomim.finetune.change import Change
from geomim.finetune.classification import Classification
from geomim.finetune.detection import Detection
from geomim.finetune.progress import watched
from geomim.maps.looker import Looker
from geomim.maps.opening import open_for
from geomim.maps.rasters import NODATA, aside, create, name_classes, placed
from geomim.maps.windows import Walk, blend, read_window
from geomim.models.inputs import ContractInput
from geomim.sensors import Sensor

_OVERLAP = 0.5  # of two boxes of a class, found in neighbouring windows, from which on they are one


def predicted(
    task: Any,
    uris: Sequence[str],
    out: Path,
    size: int,
    sensor: Sensor | None,
    bands: Sequence[str] | None,
    since: float = 0.0,
) -> Iterator[list[str]]:
    """Write, scene by scene, a map of classes and how sure it is, or a table of boxes; of classes one table for all.

    Scenes are read by windows. Boxes over a scene with a place are polygons of a GeoPackage, too. Each file is whole or
    not there, and what was written after `since`, a time of the system's clock, stays; `scenes.json` tells of which
    scene it is. The table of classes is written anew.

    Yields:
        Files that were written.

    Raises:
        ConfigError: The task is of pairs, or has more classes than a map of bytes can hold.
        InputError: There is no scene, or two, of which one may be done, would give the same file.
    """
    classes, stems = task.hparams["classes"], [Path(uri).stem for uri in uris]
    if isinstance(task, Change) or len(classes) > NODATA:
        raise ConfigError("predict reads single scenes and up to 255 classes; of pairs use the task from Python")
    if not uris:
        raise InputError("no scene is found")
    if isinstance(task, Classification):
        rows = (
            _class(task, uri, *open_for(task.contract, uri, sensor, bands), size) for uri in watched(uris, "scenes")
        )
        yield [_table(out / "classes.csv", ["image", "class", "probability"], rows)]
        return
    write, ending = (_boxes, ".csv") if isinstance(task, Detection) else (_map, ".tif")
    ledger, files = out / "scenes.json", {uri: out / f"{stem}{ending}" for uri, stem in zip(uris, stems, strict=True)}
    done: dict[str, str] = json.loads(ledger.read_text()) if ledger.exists() else {}
    done = {name: uri for name, uri in done.items() if _newer(out / name, since)}
    for uri, path in files.items():
        if (other := done.setdefault(path.name, os.path.abspath(uri))) != os.path.abspath(uri):
            raise InputError(f"'{path}' is of '{other}', '{uri}' has the same name: rename it, or move the file away")
    out.mkdir(parents=True, exist_ok=True)
    write_text(ledger, json.dumps(done))
    for uri, path in files.items():
        if not _newer(path, since):
            scene, prepare = open_for(task.contract, uri, sensor, bands)
            with scene, torch.inference_mode():
                written = write(task, path, scene, prepare, size)
            yield written


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
    return Looker(contract, size, 1, classes, made_by, look, target, tuple(task.notes), contract.sensor.gsd)


def _newer(path: Path, since: float) -> bool:
    return path.exists() and path.stat().st_mtime >= since


def _map(task: Any, path: Path, scene: Scene, prepare: ContractInput, size: int) -> list[str]:
    looker = segmenter(task, size, "cpu")
    profile = {"count": 1, "dtype": "uint8", "nodata": NODATA, "height": scene.height, "width": scene.width}
    profile |= placed(scene, 1)
    other = path.with_name(f"{path.stem}_confidence.tif")
    with aside(path) as part, aside(other) as beside:
        with create(part, profile) as raster, create(beside, profile) as sure:
            name_classes(raster, task.hparams["classes"])
            for top, values in blend(scene, looker.walk(scene, 0.25), looker.on(prepare), len(looker.classes)):
                unseen, known = np.isnan(values[0]), np.nan_to_num(values)
                window = ((top, top + len(unseen)), (0, scene.width))
                for file, numbers in ((raster, known.argmax(0)), (sure, (100 * known.max(0)).round())):
                    file.write(np.where(unseen, NODATA, numbers).astype(np.uint8), 1, window=window)
    return [str(path), str(other)]


@torch.inference_mode()
def _class(task: Any, uri: str, scene: Scene, prepare: ContractInput, size: int) -> list[Any]:
    with scene:
        image, _ = _read(scene, prepare, 0, 0, max(scene.height, scene.width), size)
    value, place = task(image).softmax(1)[0].max(0)
    return [uri, task.hparams["classes"][int(place)], f"{float(value):.4f}"]


def _boxes(task: Any, path: Path, scene: Scene, prepare: ContractInput, size: int) -> list[str]:
    found = []
    for top, left in watched(Walk(scene.height, scene.width, 1, size, size // 4).places, f"looking at {path.stem}"):
        (one,) = task(_read(scene, prepare, top, left, size, None)[0])
        shift = torch.tensor([left, top, 0, 0, 0] if task.rotated else [left, top, left, top])
        found.append((one["boxes"].cpu() + shift, one["scores"].cpu(), one["labels"].cpu()))
    boxes, scores, labels = map(torch.cat, zip(*found, strict=True))
    kept = (rotated.nms if task.rotated else batched_nms)(boxes, scores, labels, _OVERLAP)
    shapes = (rotated.corners(boxes) if task.rotated else boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]])[kept].numpy()
    table = {"class": [task.hparams["classes"][one] for one in labels[kept].tolist()], "score": scores[kept].tolist()}
    also = []
    if scene.transform is not None and scene.crs is not None:
        ground = shapely.polygons(np.stack(scene.transform * (shapes[..., 0], shapes[..., 1]), -1))
        frame = geopandas.GeoDataFrame(table, geometry=ground, crs=scene.crs.to_wkt())
        with aside(path.with_suffix(".gpkg")) as part:
            frame.to_file(part, driver="GPKG", layer=path.stem, geometry_type="Polygon")
        also = [str(path.with_suffix(".gpkg"))]
    rows = zip(table["class"], (f"{one:.4f}" for one in table["score"]), shapes.reshape(-1, 8).round(2), strict=True)
    head = ["image", "class", "score", *(f"{axis}{n}" for n in range(1, 5) for axis in "xy")]
    return [_table(path, head, ([scene.uri, kind, score, *corners] for kind, score, corners in rows)), *also]


def _read(scene: Scene, prepare: ContractInput, top: int, left: int, side: int, size: int | None) -> Any:
    numbers, valid = read_window(scene, top, left, side)
    return prepare(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None], size)


def _table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    with aside(path) as part, part.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return str(path)
