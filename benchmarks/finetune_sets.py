"""Sets of images and labels that `finetune.py` compares encoders on; each gives what `Job` or the one-line call takes.

Objects are to be a few patches of 8 px large, for encoders of 64 px images. So some scenes are brought to another size,
by `SCALES`, into the folder of runs; the others are read where they lie.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import Resampling
from recipes import rows_of
from water import SENSOR

from geomim.finetune.labels.items import Asked

SCALES = {"airbus": 0.25, "water": 2, "landsat7": 4}
"""Aircraft of 80 to 140 px become 20 to 35; tiles of water were pretrained on at twice their size; a field of Landsat
is smaller than a patch. The others are as they are: roads are 20 px wide, houses 30, crowns 35, buses 10 x 50."""
WATER = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2", *"-" * 5)
PAN = "name: pan\nbands:\n  - {name: pan, wavelength: 675, bandwidth: 450}\nmean: [457]\nstd: [263]\n"
"""Statistics of the scene itself: an encoder of pictures knows none of such numbers."""


def rescaled(source: Path, target: Path, scale: float, nearest: bool = False) -> tuple[int, int]:
    """Write an image at another size, as a GeoTIFF that lies where it lay; its columns and rows."""
    how = Resampling.nearest if nearest else Resampling.average if scale < 1 else Resampling.bilinear
    with rasterio.open(source) as scene:
        shape = round(scene.height * scale), round(scene.width * scale)
        names = scene.descriptions
        numbers = scene.read(out_shape=(scene.count, *shape), resampling=how)
        where = {"transform": scene.transform @ scene.transform.scale(1 / scale)} if scene.crs else {}
        profile = {"count": scene.count, "dtype": numbers.dtype, "nodata": scene.nodata, "crs": scene.crs, **where}
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", driver="GTiff", height=shape[0], width=shape[1], **profile) as copy:
        copy.write(numbers)
        copy.descriptions = names
    return shape[1], shape[0]


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made if it is not there yet."""
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.{os.getpid()}")
        part.mkdir(parents=True)
        make(part)
        with contextlib.suppress(OSError):  # another process may have been quicker
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def roads(data: Path, work: Path) -> dict[str, Any]:
    return {"scenes": [str(data / "epfl_roads")]}


def aircraft(data: Path, work: Path) -> dict[str, Any]:
    """Images at a quarter of their size, and their boxes."""

    def make(folder: Path) -> None:
        scale, rows = SCALES["airbus"], []
        for path in sorted((data / "airbus").glob("*.jpg")):
            rescaled(path, folder / f"{path.stem}.tif", scale)
        for row in rows_of(data / "airbus" / "boxes.csv"):
            sides = [float(row[key]) * scale for key in ("x1", "y1", "x2", "y2")]
            rows.append([f"{Path(row['image']).stem}.tif", *sides, "aircraft"])
        write(folder / "boxes.csv", ["image", "x1", "y1", "x2", "y2", "class"], rows)

    return {"scenes": [str(once(work / "airbus", make))]}


def turned_aircraft(data: Path, work: Path) -> dict[str, Any]:
    """These images turned, each by an angle of its own, and cut to the largest square without an empty corner."""

    def make(folder: Path) -> None:
        upright, rows = Path(aircraft(data, work)["scenes"][0]), []
        angles, sides = np.random.default_rng(0), {}
        for path in sorted(upright.glob("*.tif")):
            with Image.open(path) as picture:
                angle, side = np.radians(angles.uniform(5, 85)), picture.width
                inner = int(side / (abs(np.cos(angle)) + abs(np.sin(angle))))
                low = (side - inner) // 2
                turned = picture.rotate(np.degrees(angle), Image.Resampling.BILINEAR)
                turned.crop((low, low, low + inner, low + inner)).save(folder / path.name)
            sides[path.name] = angle, side / 2, low
        for row in rows_of(upright / "boxes.csv"):
            angle, middle, low = sides[row["image"]]
            x1, y1, x2, y2 = (float(row[key]) - middle for key in ("x1", "y1", "x2", "y2"))
            points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])  # y is down: the picture turns against it
            matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            rows.append([row["image"], *(points @ matrix.T + middle - low).ravel().round(2), "aircraft"])
        head = [f"{axis}{corner}" for corner in (1, 2, 3, 4) for axis in "xy"]
        write(folder / "boxes.csv", ["image", *head, "class"], rows)

    return {"scenes": [str(once(work / "airbus_turned", make))]}


def pairs(data: Path, work: Path) -> dict[str, Any]:
    """Both sets in one folder, and of which scene each pair is cut."""

    def make(folder: Path) -> None:
        rows = []
        for name in ("change_levir", "change_dsifn"):
            shutil.copytree(data / name, folder / name)
            for path in sorted((data / name / "A").iterdir()):
                scene = "_".join(path.stem.split("_")[: 2 if "levir" in name else 1])
                rows.append([f"{name}/A/{path.name}", f"{name} {scene}"])
        write(folder / "places.csv", ["path", "place"], rows)

    folder = once(work / "change", make)
    return {"scenes": [str(folder)], "labels": str(folder), "places": str(folder / "places.csv")}


def water(data: Path, work: Path) -> dict[str, Any]:
    """Tiles and masks at twice their size, in folders `train` and `test` by place."""

    def make(folder: Path) -> None:
        rows = rows_of(data / "water" / "location_groups.csv")
        groups = sorted({int(row["location_group"]) for row in rows})
        held = set(np.random.default_rng(0).permutation(groups)[: len(groups) // 3].tolist())
        for row in rows:
            part, name = folder / ("test" if int(row["location_group"]) in held else "train"), Path(row["tile"])
            rescaled(data / "water" / "images" / name, part / "images" / name, SCALES["water"])
            mask = data / "water" / "labels" / f"{name.stem}.png"
            rescaled(mask, part / "labels" / name, SCALES["water"], nearest=True)
        (folder / "sensor.yaml").write_text(SENSOR + "unit: reflectance\nscale: 0.0001\n")

    folder = once(work / "water", make)
    return {
        "scenes": [str(folder / part / "images") for part in ("train", "test")],
        "labels": str(folder),
        "reading": Asked(sensor=str(folder / "sensor.yaml"), bands=WATER),
    }


def landsat(data: Path, work: Path) -> dict[str, Any]:
    def make(folder: Path) -> None:
        for path in sorted((data / "landsat7").iterdir()):
            rescaled(path, folder / f"{path.stem}.tif", SCALES["landsat7"])

    polygons = data / "landsat7_polygons" / "training_data.shp"
    given = {"scenes": str(once(work / "landsat7", make)), "labels": str(polygons)}
    return given | {"sensor": "landsat7"}


def buildings(data: Path, work: Path) -> dict[str, Any]:
    folder = data / "solaris_vectors"
    sensor = once(work / "buildings", lambda folder: None) / "pan.yaml"
    sensor.write_text(PAN)
    given = {"scenes": str(folder / "sample_geotiff.tif"), "labels": str(folder / "geotiff_labels.geojson")}
    return given | {"class_column": "building", "sensor": str(sensor)}


def vehicles(data: Path, work: Path) -> dict[str, Any]:
    return {"scenes": [str(data / "obb" / "images")], "labels": str(data / "obb" / "labelTxt")}


def trees(data: Path, work: Path) -> dict[str, Any]:
    return {"scenes": [str(data / "trees" / "OSBS_029.tif")], "labels": str(data / "trees" / "OSBS_029.csv")}


def write(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def random_data(folder: Path) -> Path:
    """Noise for the sets of pictures, in folders called as theirs are."""
    random = np.random.default_rng(0)

    def save(path: Path, side: int, mask: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = random.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(numbers[..., 0] // 128 * 255 if mask else numbers).save(path)

    for number in range(10):
        for part in ("images", "groundtruth"):
            save(folder / "epfl_roads" / part / f"{number}.png", 64, part != "images")
        save(folder / "airbus" / f"{number}.jpg", 512)
        for name in ("change_levir", "change_dsifn"):
            for part in ("A", "B", "label"):
                save(folder / name / part / f"{name}_{number}.png", 64, part == "label")
    boxes = [[f"{number}.jpg", 180, 200, 300, 310, "Airplane"] for number in range(10)]
    write(folder / "airbus" / "boxes.csv", ["image", "x1", "y1", "x2", "y2", "class"], boxes)
    return folder
