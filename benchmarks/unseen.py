"""The order of recipes on two sets that no setting was chosen on: land cover of EuroSAT, and water in seven bands.

    python benchmarks/unseen.py                         # an idle machine, please
    python benchmarks/unseen.py --quick                 # does it run

EuroSAT: 120 Sentinel-2 tiles of 13 bands in ten classes; places of 10 km are held out. Water: 100 tiles of seven bands;
asked is whether a tile shows water (1 % of it), and location groups are held out. The places of a set are divided in
three, and each third is held out once, from pretraining and from the probes, so that every tile is a test once; figures
are over all of them. Encoder, data, optimiser and what a recipe has otherwise are those of `recipes.py`, chosen on
RSICD. Recipes with sentences are not asked: the sets have none.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data). Corpora, runs and tables go to WORK; what is done is not done
again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from recipes import CONFIG, PROBES, compare, rows_of
from water import SENSOR

from geomim.corpus.build import build
from geomim.corpus.store import Corpus

FOLDS = 3
RECIPES = ("mae", "selective_mae", "latent_mim", "selective_latent", "can_inspired")


@dataclass(frozen=True)
class Tiles:
    """A set: files, the class and the place of each, and what `build` must know."""

    files: Sequence[Path]
    classes: Sequence[str]
    places: Sequence[str]
    told: dict[str, Any]

    def corpus(self, fold: int, work: Path) -> Path:
        """A corpus whose test tiles are those of a third of the places."""
        folder = work / "corpus"
        if (folder / "corpus.lock").is_file():
            return folder
        work.mkdir(parents=True, exist_ok=True)
        held = set(np.random.default_rng(0).permutation(sorted(set(self.places)))[fold::FOLDS].tolist())
        with (work / "tiles.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image", "label", "split"))
            for path, kind, place in zip(self.files, self.classes, self.places, strict=True):
                table.writerow((path, kind, "test" if place in held else "train"))
        listed = str(work / "tiles.csv")
        with contextlib.redirect_stderr(io.StringIO()):
            build([str(path) for path in self.files], str(folder), labels=listed, split=listed, near=None, **self.told)
        return folder


def eurosat(data: Path, _: Path) -> Tiles:
    """Sentinel-2 tiles with their land cover."""
    with (data / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bands = "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split()
    files = [data / row["class"] / Path(row["file"]).name for row in rows]
    told = {"tile": 64, "sensor": "sentinel2", "bands": bands}
    return Tiles(files, [row["class"] for row in rows], [row["group10km"] for row in rows], told)


def water(data: Path, work: Path) -> Tiles:
    """Tiles of seven bands, told whether they show water."""
    with (data / "location_groups.csv").open(newline="") as file:
        places = {row["tile"]: row["location_group"] for row in csv.DictReader(file)}
    names, classes = sorted(places), []
    for name in names:
        with rasterio.open(data / "labels" / Path(name).with_suffix(".png").name) as label:
            classes.append("water" if (label.read(1) > 0).mean() >= 0.01 else "land")
    work.mkdir(parents=True, exist_ok=True)
    (work / "sensor.yaml").write_text(SENSOR)
    bands = ["coastal", "blue", "green", "red", "nir", "swir1", "swir2", *"-" * 5]
    told = {"tile": 128, "sensor": str(work / "sensor.yaml"), "bands": bands}
    return Tiles([data / "images" / name for name in names], classes, [places[name] for name in names], told)


def pooled(folds: Sequence[Path], asked: Sequence[int], minutes: float) -> dict[str, dict[str, float]]:
    """Accuracy over all tiles, by recipe of so many minutes, or floor, and probe."""
    every = [[row for row in rows_of(fold / "recipes.csv") if row["minutes"] in ("", f"{minutes:g}")] for fold in folds]
    tables = [{row["recipe"]: row for row in rows} for rows in every]
    found: dict[str, dict[str, float]] = {}
    for name in tables[0]:
        for probe in PROBES:
            values = [table[name][probe] for table in tables if name in table and table[name][probe]]
            if len(values) == len(folds):
                found.setdefault(name, {})[probe] = float(np.average(np.array(values, float), weights=asked))
    return found


def main() -> None:
    """Train and score fold by fold, then print."""
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default, help="folder of the images")
    parser.add_argument("--work", type=Path, default=Path("bench-unseen"), help="folder of corpora, runs and tables")
    parser.add_argument("--sets", nargs="+", default=["eurosat", "water"], choices=["eurosat", "water"])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run")
    parser.add_argument("--threads", type=int, help="torch's own number where not given")
    parser.add_argument("--quick", action="store_true", help="one recipe and a few steps: does it run")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.quick:
        given.minutes, given.recipes, given.work = 0.01, ["mae"], given.work / "quick"
    for name in given.sets:
        if not (given.data / name).is_dir():
            print(f"'{given.data / name}' is not there: nothing measured")
            continue
        tiles = {"eurosat": eurosat, "water": water}[name](given.data / name, given.work / name)
        folds, asked = [given.work / name / f"fold-{fold}" for fold in range(FOLDS)], []
        for fold, folder in enumerate(folds):
            corpus = tiles.corpus(fold, folder)
            rows = Corpus.open(corpus).table(["split", "kept"]).to_pylist()
            asked.append(sum(row["kept"] and row["split"] == "test" for row in rows))
            if fold and (folds[0] / "calibration.csv").is_file():
                shutil.copy(folds[0] / "calibration.csv", folder)  # the steps of a recipe are the same in all
            compare(
                argparse.Namespace(
                    corpus=str(corpus), data=str(corpus), sentences=None, config=CONFIG, recipes=[*given.recipes],
                    seeds=[fold], minutes=given.minutes, probe_seeds=1, looks=0, test_split="test", out=folder,
                    quick=given.quick,
                )
            )  # fmt: skip
        print(f"{name}: {sum(asked)} of {len(tiles.files)} tiles tested, {asked} a fold")
        for recipe, scores in pooled(folds, asked, given.minutes).items():
            for probe, value in scores.items():
                print(f"{name}_{recipe.replace(' ', '_')}_{probe}: {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
