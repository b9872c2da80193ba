"""Fine-tuning on labels as people have them: an encoder's weights beside random ones, as many steps for both.

    python benchmarks/finetune.py --work WORK --rgb RUN --seconds 0          # times the steps, no more; one core
    python benchmarks/finetune.py --work WORK --rgb RUN --rows epfl_roads airbus --seeds 0 1 2
    python benchmarks/finetune.py --work WORK --all_bands 'runs/all-{seed}' --only_rgb 'runs/rgb-{seed}' --rows water
    python benchmarks/finetune.py --quick                                    # does it run: random data, two steps

A row is a set of labels, a head and a number of training images. Both sides of a row have the same windows in the same
order, the same head, learning rate and number of steps, at most 60 s by the row's own rate: a few steps are timed, in
CPU seconds of this process, so that a busy machine does as well (give it one thread: seconds of several are added up).
The rates go to calibration.csv of the folder of runs, one machine a folder, and every run is a row of finetune.csv and
is not run again. Seeds are of head, order and random weights, and of what is said below. Figures come last, one
`name: value` a line: the mean over seeds, and behind it the lowest and the highest.

- `epfl_roads`: IoU of roads; every fifth of 50 images is the test, of the others 5, 10 or 40 train, drawn by seed. All
  trains under UPerNet; the linear head is fitted on the encoder as it is, by logistic regression, and on pixels alone.
- `airbus`, `airbus_turned`: AP50 of Faster R-CNN, and of the oriented head on boxes that are rotated ones because each
  image is turned by an angle of its own (so they are as wide as upright ones: the angle of a square is any of four).
  Every fifth of 50 images is the test. Cut-off aircraft count as aircraft.
- `change`: F1 of change; 21 pairs of LEVIR and DSIFN, a third of the places is the test, another one for each seed.
- `water`: IoU of water; a third of the places is the test, that third which `twins.py` holds out, too: no encoder of
  its folder of runs has seen them. All bands with one encoder, red, green and blue with its twin.
- `landsat7`, `buildings`: 30 polygons of five classes on two dates (mean IoU), and 43 buildings on a panchromatic scene
  (IoU), by the one-line call, `geomim finetune`, which fits so few at once and tests each once, in folds by place.
- `obb`, `trees`: 64 rotated and 61 upright boxes on an image each, drawn as `geomim labels check` does and overfitted:
  AP50 on what was trained on.

Objects are to be a few patches of 8 px large, for encoders of 64 px images. So some scenes are brought to another size,
by `SCALES`, into the folder of runs; the others are read where they lie. Windows are 128 to 256 px.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import Resampling
from recipes import append, random_pictures, rows_of
from water import SENSOR

from geomim.data.datamodule import TileDataModule
from geomim.finetune.datamodule import Windows
from geomim.finetune.labels import Labels
from geomim.finetune.labels.check import check
from geomim.finetune.labels.items import Asked
from geomim.finetune.places import Split
from geomim.finetune.run import PIXELS, RANDOM, Model, Running
from geomim.finetune.training import Training
from geomim.pretrain.module import Optimisation
from geomim.verbs.finetune import finetune
from geomim.verbs.finetune_stages import Cutting, Job, Opened
from geomim.verbs.pretrain import Training as Pretraining
from geomim.verbs.pretrain import train

COLUMNS = ("row", "weights", "seed", "steps", "value", "train_seconds", "test_seconds", "encoder")
RATES = ("row", "seconds_a_step")
SCALES = {"airbus": 0.25, "water": 2, "landsat7": 4, "obb": 2}
"""Aircraft of 80 to 140 px become 20 to 35; tiles of water were pretrained on at twice their size; a field of Landsat
is smaller than a patch; cars are of 9 x 20 px."""
SIDES = ("pretrained", "random", "pixels")
MOVES, STILL = Training(learning_rate=1e-3, layer_decay=0.9), Training("all")
WATER = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2", *"-" * 5)
PAN = "name: pan\nbands:\n  - {name: pan, wavelength: 675, bandwidth: 450}\nmean: [457]\nstd: [263]\n"
"""Statistics of the scene itself: an encoder of pictures knows none of such numbers."""
_WARM, _TIMED = 3, 6


@dataclass(frozen=True)
class Row:
    """What is compared.

    Attributes:
        data: From the folder of data and that of runs, the arguments of `Job` that say what scenes and labels are.
        encoder: Which of those given.
        figure: Class and metric of the task's figures.
        size: Side of windows in pixels.
        seconds: Training time of each run.
        model: Head, and what the encoder is given.
        training: What trains.
        split: `fifth`: every fifth image is the test; `folders`, as they are called; `folds`, one by the seed; `none`:
            all windows train, and all are the test; `verb`: all is left to `geomim finetune`.
        images: So many of the images train.
        batch_size: Windows of a step.
        probe: A linear head is fitted by logistic regression, in place of steps; then the pixels alone are scored, too.
    """

    data: Callable[[Path, Path], dict[str, Any]]
    encoder: str
    figure: tuple[str, str]
    size: int
    seconds: float
    model: Model = Model()  # noqa: RUF009  # frozen
    training: Training = MOVES
    split: str = "fifth"
    images: int | None = None
    batch_size: int = 4
    probe: bool = False

    def opened(self, data: Path, work: Path, encoder: str, seed: int) -> Opened:
        """Labels, encoder and task."""
        cutting, running = Cutting(self.size, self.batch_size, empty=0.2), Running(probe=self.probe)
        given = {"encoder": encoder, "seed": seed, "model": self.model, "training": self.training}
        return Opened(Job(**given | self.data(data, work), windows=cutting, run=running))

    def windows(self, opened: Opened, seed: int) -> Windows:
        """Windows that train, and those of the test."""
        if self.split == "fifth":
            opened.labels, test = fewer(opened.labels, self.images, seed)
            return opened.windows(Split(test=test, val=False))
        windows = opened.windows(Split(val=False, folds=3, fold=seed % 3))
        if self.split == "none":
            every = [cut for part in windows.parts.values() for cut in part]
            windows.parts |= {"train": every, "test": every}
        return windows


def fewer(labels: Labels, images: int | None, seed: int) -> tuple[Labels, tuple[str, ...]]:
    """The labels of every fifth image and of so many of the others, drawn by seed; and the names of the former."""
    items = sorted(labels.items, key=lambda item: item.image)
    order = np.random.default_rng(seed).permutation([at for at in range(len(items)) if at % 5])[:images]
    return replace(labels, items=(*items[::5], *(items[at] for at in order))), tuple(one.image for one in items[::5])


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
    def make(folder: Path) -> None:
        scale, lines = SCALES["obb"], []
        rescaled(data / "obb" / "images" / "P1888.png", folder / "images" / "P1888.tif", scale)
        for words in map(str.split, (data / "obb" / "labelTxt" / "P1888.txt").read_text().splitlines()):
            if len(words) == 10:
                lines.append(" ".join([*(f"{float(one) * scale:g}" for one in words[:8]), *words[8:]]))
        (folder / "labels").mkdir()
        (folder / "labels" / "P1888.txt").write_text("\n".join(lines) + "\n")

    folder = once(work / "obb", make)
    return {"scenes": [str(folder / "images")], "labels": str(folder / "labels")}


def trees(data: Path, work: Path) -> dict[str, Any]:
    return {"scenes": [str(data / "trees" / "OSBS_029.tif")], "labels": str(data / "trees" / "OSBS_029.csv")}


def write(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def all_rows(work: Path) -> dict[str, Row]:
    """Every row by its name, which begins with the name of its set."""
    found, narrow, aircrafts = {}, Model(channels=64), ("aircraft", "AP50")
    for images in (10, 5, 40):
        given: Any = (roads, "rgb", ("foreground", "IoU"), 136)
        found[f"epfl_roads-upernet-{images}"] = Row(*given, 45, replace(narrow, head="upernet"), images=images)
        linear: dict[str, Any] = {"model": Model(head="linear"), "training": STILL, "probe": True}
        found[f"epfl_roads-linear-{images}"] = Row(*given, 0, images=images, **linear)
    found["airbus"] = Row(aircraft, "rgb", aircrafts, 160, 60, Model(channels=32), batch_size=2)
    found["airbus_turned"] = Row(turned_aircraft, "rgb", aircrafts, 160, 60, replace(narrow, head="oriented"))
    found["change"] = Row(pairs, "rgb", ("change", "F1"), 128, 60, narrow, split="folds")
    sensor = str(work / "water" / "sensor.yaml")
    for encoder, bands in (("all_bands", None), ("only_rgb", ["red", "green", "blue"])):
        model = replace(narrow, sensor=sensor, bands=bands)
        found[f"water-{encoder}"] = Row(water, encoder, ("foreground", "IoU"), 128, 45, model, split="folders")
    found["landsat7"] = Row(landsat, "all_bands", ("all", "mean IoU"), 128, 0, split="verb")
    found["buildings"] = Row(buildings, "rgb", ("building", "IoU"), 152, 0, split="verb")
    found["obb"] = Row(vehicles, "rgb", ("all", "AP50"), 256, 60, replace(narrow, head="oriented"), split="none")
    found["trees"] = Row(trees, "rgb", ("Tree", "AP50"), 200, 60, narrow, split="none")
    return found


@dataclass(frozen=True)
class Bench:
    """Where all lies, and how long runs are.

    Attributes:
        data: Folder of the images.
        work: Folder of runs and tables.
        encoders: By the name that rows give them; `{seed}` stands for the seed.
        seconds: Of each run, in place of the rows' own.
        quick: A step or two.
    """

    data: Path
    work: Path
    encoders: dict[str, str]
    seconds: float | None = None
    quick: bool = False

    def steps(self, name: str, row: Row, opened: Opened, windows: Windows) -> int:
        """How many fill the seconds, by the row's rate: as timed before, or by a few steps that are thrown away."""
        table = self.work / "calibration.csv"
        if row.probe or self.quick:
            return 0 if row.probe else 2
        rates = [float(one["seconds_a_step"]) for one in rows_of(table) if one["row"] == name]
        if not rates:
            print(f"{name}: timing {_TIMED} steps", flush=True)
            spent = [cpu(lambda n=n: opened.tuning.train(windows, n))[1] for n in (_WARM, _WARM + _TIMED)]
            rates = [(spent[1] - spent[0]) / _TIMED]
            append(table, RATES, {"row": name, "seconds_a_step": f"{rates[0]:.4f}"})
        return max(2, int((self.seconds or row.seconds) / rates[0]))

    def run(self, name: str, row: Row, seed: int) -> None:
        """Both sides of a row, written down."""
        encoder = self.encoders[row.encoder].format(seed=seed)
        if row.split == "verb":
            found = self.called(name, row, encoder, seed)
        else:
            opened = row.opened(self.data, self.work, encoder, seed)
            windows = row.windows(opened, seed)
            steps = self.steps(name, row, opened, windows)
            print(f"{name}, seed {seed}: {windows.notes[-1]}; {steps} steps", flush=True)
            if self.seconds == 0:
                return
            if row.split == "none":
                check(**row.data(self.data, self.work), out=str(self.work / f"{name}.png"))
            starts = ("", RANDOM, PIXELS)[: 3 if row.probe else 2]
            found = [self.trained(row, opened, windows, steps, start) for start in starts]
        for weights, own in zip(SIDES, found, strict=False):
            about = {"row": name, "weights": weights, "seed": seed, "encoder": encoder}
            append(self.work / "finetune.csv", COLUMNS, about | own)
            print(f"{name}, seed {seed}, {weights}: {own['value']}", flush=True)

    def trained(self, row: Row, opened: Opened, windows: Windows, steps: int, start: str) -> dict[str, Any]:
        """Figure and seconds of a side."""
        task, spent = cpu(lambda: opened.tuning.train(windows, steps, start))
        _, tested = cpu(lambda: opened.tuning.test(task, windows.test_dataloader()))
        seconds = {"train_seconds": f"{spent:.1f}", "test_seconds": f"{tested:.1f}"}
        return {"steps": steps, "value": picked(task.figures(), row.figure), **seconds}

    def called(self, name: str, row: Row, encoder: str, seed: int) -> list[dict[str, Any]]:
        """The same of all sides by the one-line call, which fits so few labels at once."""
        out = self.work / f"{name}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        given: dict[str, Any] = {"encoder": encoder, "out": str(out), "size": row.size, "seed": seed}
        given |= row.data(self.data, self.work)
        found, spent = cpu(lambda: finetune(**given))
        seconds = {"train_seconds": f"{spent / len(found):.1f}"}
        return [{"steps": 0, "value": picked(one.figures, row.figure), **seconds} for one in found.values()]


def picked(figures: list[dict[str, Any]], figure: tuple[str, str]) -> str:
    return next(f"{one['value']:.4f}" for one in figures if (one["class"], one["metric"]) == figure)


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the CPU seconds that it took."""
    start = time.process_time()
    return call(), time.process_time() - start


def figures(table: Path) -> Iterator[str]:
    """Of each row both sides, the mean over seeds, and how much the encoder's weights are ahead."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for one in rows_of(table):
        groups.setdefault(one["row"], {}).setdefault(one["weights"], {})[one["seed"]] = float(one["value"])
    for name, sides in groups.items():
        for weights, values in sides.items():
            yield f"{name}_{weights}: {spread(list(values.values()))}"
        both = sides["pretrained"].keys() & sides.get("random", {}).keys()
        if both:
            yield f"{name}_ahead_of_random: {spread([sides['pretrained'][one] - sides['random'][one] for one in both])}"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f}  ({min(values):.4f} to {max(values):.4f}, {len(values)} seeds)"


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


def random_encoder(folder: Path) -> str:
    """A run of two steps."""
    data = TileDataModule(str(random_pictures(folder)), 8, 64, workers=0)
    training = Pretraining(max_steps=2, log_every=1, checkpoint_every=2, progress_bar=False)
    small = {"patch_size": 8, "width": 32, "depth": 4, "heads": 2}
    return str(train(data, folder / "run", "mae", {"decoder_depth": 1}, small, Optimisation(), training, 0))


def main() -> None:
    """Read the arguments, and run what is not in the table yet."""
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default, help="folder of the images")
    parser.add_argument("--work", type=Path, default=Path("bench-finetune"), help="folder of runs and tables")
    parser.add_argument("--rgb", help="encoder of red, green and blue; {seed} in a path stands for the seed")
    parser.add_argument("--all_bands", help="spectral encoder, see twins.py")
    parser.add_argument("--only_rgb", help="its twin of red, green and blue")
    parser.add_argument("--rows", nargs="+", help="rows, or how their names begin; all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="of each run, in place of the rows' own; 0: only time the steps")
    parser.add_argument("--quick", action="store_true", help="random data and two steps: does it run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if given.quick:
            given.data, given.work = random_data(Path(temporary) / "data"), Path(temporary) / "work"
            given.rgb, given.seeds = random_encoder(Path(temporary)), [0]
            given.rows = ["epfl_roads-upernet-5", "epfl_roads-linear-5", "airbus", "airbus_turned", "change"]
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Run what is not in the table yet, and print it."""
    if not given.data.is_dir():
        print(f"'{given.data}' is not there: nothing measured")
        return
    encoders = {name: one for name in ("rgb", "all_bands", "only_rgb") if (one := getattr(given, name))}
    bench, table = Bench(given.data, given.work, encoders, given.seconds, given.quick), given.work / "finetune.csv"
    given.work.mkdir(parents=True, exist_ok=True)
    for name, row in all_rows(given.work).items():
        if given.rows and not any(name == one or name.startswith(f"{one}-") for one in given.rows):
            continue
        if row.encoder not in encoders:
            print(f"{name} is left out: it needs --{row.encoder}")
            continue
        for seed in given.seeds if given.seconds != 0 else given.seeds[:1]:
            if any((one["row"], one["seed"]) == (name, str(seed)) for one in rows_of(table)):
                print(f"{name}, seed {seed}: done before")
            else:
                bench.run(name, row, seed)
    print(f"tables: {given.work / 'calibration.csv'}, {table}")
    for line in figures(table):
        print(line)


if __name__ == "__main__":
    main()
