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
  AP50 on what was trained on, from the encoder's weights alone.

Windows are 128 to 200 px of scenes that `finetune_sets.py` brings to a size that encoders of 64 px images know.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetune_sets import (
    aircraft,
    buildings,
    landsat,
    pairs,
    random_data,
    roads,
    trees,
    turned_aircraft,
    vehicles,
    water,
)
from recipes import append, random_pictures, rows_of

from geomim.data.datamodule import TileDataModule
from geomim.finetune.datamodule import Windows
from geomim.finetune.labels import Labels
from geomim.finetune.labels.check import check
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
SIDES = ("pretrained", "random", "pixels")
MOVES, STILL = Training(layer_decay=0.9), Training("all")
"""At a rate of 2e-3, 64 steps of UPerNet end at background everywhere; chosen on images that are not the test."""
RARE = [1.0, 3.0]
"""Weights of two classes, the second of which covers a fifth of the pixels and is wanted all the same."""
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
        cutting, running = (
            Cutting(self.size, self.batch_size, turn=self.split != "none", empty=0.2),
            Running(probe=self.probe),
        )
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


def all_rows(work: Path) -> dict[str, Row]:
    """Every row by its name, which begins with the name of its set."""
    found, narrow, aircrafts = {}, Model(channels=64), ("aircraft", "AP50")
    dense = replace(narrow, class_weights=RARE)
    for images in (10, 5, 40):
        given: Any = (roads, "rgb", ("foreground", "IoU"), 136)
        found[f"epfl_roads-upernet-{images}"] = Row(*given, 45, dense, images=images)
        linear: dict[str, Any] = {"model": Model(head="linear"), "training": STILL, "probe": True}
        found[f"epfl_roads-linear-{images}"] = Row(*given, 0, images=images, **linear)
    found["airbus"] = Row(aircraft, "rgb", aircrafts, 160, 60, Model(channels=32), batch_size=2)
    found["airbus_turned"] = Row(turned_aircraft, "rgb", aircrafts, 160, 60, replace(narrow, head="oriented"))
    found["change"] = Row(pairs, "rgb", ("change", "F1"), 128, 60, dense, split="folds")
    sensor = str(work / "water" / "sensor.yaml")
    for encoder, bands in (("all_bands", None), ("only_rgb", ["red", "green", "blue"])):
        model = replace(dense, sensor=sensor, bands=bands)
        found[f"water-{encoder}"] = Row(water, encoder, ("foreground", "IoU"), 128, 45, model, split="folders")
    found["landsat7"] = Row(landsat, "all_bands", ("all", "mean IoU"), 128, 0, split="verb")
    found["buildings"] = Row(buildings, "rgb", ("building", "IoU"), 152, 0, split="verb")
    found["obb"] = Row(vehicles, "rgb", ("all", "AP50"), 128, 60, replace(narrow, head="oriented"), split="none")
    found["trees"] = Row(trees, "rgb", ("Tree", "AP50"), 200, 60, Model(channels=32), split="none", batch_size=2)
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
            starts = ("", RANDOM, PIXELS)[: 1 if row.split == "none" else 3 if row.probe else 2]
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
