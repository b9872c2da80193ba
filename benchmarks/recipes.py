"""Every recipe on one corpus at equal wall time, then its frozen encoder on the published test split.

Each recipe that needs no second date and no teacher from elsewhere trains for the same minutes, with the encoder, data
and optimiser of one config. First a few steps of each are timed: that is what needs an idle machine. The rates go to
calibration.csv of the folder of runs (one machine and one config a folder) and fix the steps of every run, so the whole
schedule is run, however busy the machine is later. Then kNN, linear and efficient probe as `geomim evaluate` fits them,
and below them the floors: random initialisation, pixel statistics and the most frequent class. A recipe with sentences
is also asked for the class and for the sentences of each test image, beside chance; its corpus needs captions. Every
finished run is a row of recipes.csv and is not run again, a stopped one goes on. Figures come last, one `name: value` a
line: the mean over seeds, and behind it the lowest and the highest. With `--looks` runs are probed as they train, too,
and curves.png draws that over the minutes; the time of looking does not count.

    geomim corpus build RSICD/classes RSICD/unlabelled --out corpora/rsicd --tile 128 --sensor rgb \
      --split RSICD/captions.jsonl
    geomim corpus build RSICD/classes --out corpora/rsicd_labelled --tile 128 --sensor rgb \
      --split RSICD/captions.jsonl --labels folder --allow-unmatched
    geomim corpus caption corpora/rsicd --imported RSICD/captions.jsonl
    python benchmarks/recipes.py --minutes 0                    # times the steps, no more; an idle machine, please
    python benchmarks/recipes.py --minutes 5                    # all recipes, one seed
    python benchmarks/recipes.py --minutes 10 --seeds 0 1 2 --recipes mae cross_mae latent_mim
    python benchmarks/recipes.py --sentences RSICD/captions.jsonl --recipes remote_clip rils selective_rils
    python benchmarks/recipes.py --quick                        # does it run: random pictures, a few steps
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import inspect
import io
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from geomim.data.datamodule import TileDataModule
from geomim.data.described import open_described
from geomim.errors import GeomimError
from geomim.evaluate.figures import CHANCE
from geomim.evaluate.scores import MAJORITY, PIXELS, RANDOM
from geomim.pretrain.recipes import RECIPES
from geomim.verbs.config import read_config
from geomim.verbs.evaluate import evaluate
from geomim.verbs.language import evaluate_text
from geomim.verbs.plot import FLOORS, read_figures
from geomim.verbs.pretrain import Training, build, train

PROBES = ("knn", "linear", "efficient")
SAID = {"zeroshot": "top-1", "retrieval": "mean recall"}
COLUMNS = (
    "recipe", "seed", "minutes", "steps", *PROBES, *SAID, *(f"{task}_chance" for task in SAID),
    *(f"{probe}_balanced" for probe in PROBES),
)  # fmt: skip
RATES = ("recipe", "images_per_second", "threads")
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "rsicd_cpu.yaml"

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "flip": ("remote_clip", {"visible": 0.5}),
    "rils_without_gate": ("rils", {"gate": False}),
    "selective_rils_without_language": ("selective_rils", {"weight": 0.0}),
}
"""What is compared besides the recipes as they are: a recipe, and what it has otherwise."""

METHODS: dict[str, dict[str, Any]] = {
    "can_inspired": {"visible": 0.25, "temperature": 0.2},
    "simmim": {"unit": 16},
    "selective_mae": {"visible": 0.4, "score": "published"},
    "latent_mim": {"visible": 0.25, "projector_width": 1024},
    "selective_latent": {"visible": 0.25, "projector_width": 1024},
    "rils": {"decoder_depth": 1, "decoder_width": 192},
}
DATA: dict[str, dict[str, Any]] = {"can_inspired": {"scale": (0.2, 1.0), "jitter": 0.5}}
"""What a recipe is fed otherwise: crops with less in common, where they are told by what they have in common."""
WORDS = {
    "bareland": "bare land", "baseballfield": "baseball field", "denseresidential": "dense residential area",
    "mediumresidential": "medium residential area", "sparseresidential": "sparse residential area",
    "railwaystation": "railway station", "storagetanks": "storage tanks", "parking": "parking lot",
    "industrial": "industrial area", "commercial": "commercial area",
}  # fmt: skip
"""Classes of RSICD whose names are no words."""

ENCODERS: dict[str, dict[str, Any]] = {
    "satvision": {"family": "swinv2", "patch_size": 4, "width": 48, "depth": 2, "heads": 3}
}
"""What a recipe has besides the config's: units of two patches; shares of 64 patches that are as many as the published
ones of 196, as the config says; a projector five times as wide as the encoder, as published; a decoder as wide as the
encoder, as published; a Swin, which answers by 32 px."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    Attributes:
        config: As `read_config` gives it.
        method: What the config itself says of the method, without the defaults of its recipe.
        corpus: The corpus to train on.
        labelled: The corpus or folders to evaluate on.
        sentences: What to evaluate recipes with sentences on.
        out: Folder of runs.
        minutes: Training time of each run.
        probe_seeds: Seeds of the probes of each run.
        calibration: Steps that are timed.
        test_split: What is scored.
        looks: How often a run is probed while it trains.
    """

    config: Any
    method: Mapping[str, Any]
    corpus: str
    labelled: str
    sentences: str
    out: Path
    minutes: float
    probe_seeds: int
    calibration: int = 24
    test_split: str = "test"
    looks: int = 0

    def parts(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """A recipe, its arguments and those of its encoder: of what the config says of its own, what this one takes."""
        recipe, own = VARIANTS.get(name, (name, {}))
        taken = parameters(name)
        method = {key: value for key, value in self.method.items() if key in taken}
        encoder = ENCODERS.get(recipe) or self.config.encoder.as_dict()
        method |= METHODS.get(recipe, {}) | own
        return recipe, method, {key: value for key, value in encoder.items() if key != "image_size"}

    @property
    def other(self) -> str:
        """What names of files have behind them where another split than the test split is scored."""
        return "" if self.test_split == "test" else f"-{self.test_split}"

    def folder(self, recipe: str, seed: int) -> Path:
        """Where a run goes."""
        return self.out / f"{recipe}-{self.minutes:g}min-{seed}{self.other}"

    def fed(self, recipe: str) -> dict[str, Any]:
        """What a run reads, and how."""
        own = {"corpus": self.corpus, "image_size": self.config.encoder.image_size}
        return self.config.data.as_dict() | own | DATA.get(recipe, {})

    def data(self, recipe: str, seed: int) -> TileDataModule:
        """Its batches."""
        return TileDataModule(**self.fed(recipe), seed=seed)

    def train(self, recipe: str, seed: int, steps: int, folder: Path) -> tuple[Path, list[dict[str, str]]]:
        """Train, or go on where a run of these settings was stopped; the checkpoint, and the table of figures."""
        training = replace(
            self.config.training,
            max_steps=steps,
            log_every=max(1, min(10, steps // 4)),
            checkpoint_every=max(1, steps // 8),
            progress_bar=False,
        )
        shared = (self.config.optimizer, training, seed)
        watch = replace(self.config.watch, every=steps)
        if self.looks:
            given = {"data": self.labelled, "limit": 1_000_000, "test_split": self.test_split}
            watch = replace(watch, every=max(1, steps // self.looks), **given)
        parts = (*self.parts(recipe), *shared)
        asked = folder / "asked.txt"
        text = repr((self.fed(recipe), parts, watch))
        if not asked.is_file() or asked.read_text() != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            asked.write_text(text)
        last = train(self.data(recipe, seed), folder, *parts, resume="last", watch=watch)
        with (folder / "metrics.csv").open(newline="") as file:
            return last, list(csv.DictReader(file))

    def rate(self, recipe: str) -> float:
        """Images a second: as timed before, or by a short run that is thrown away."""
        table = self.out / "calibration.csv"
        for row in rows_of(table):
            if row["recipe"] == recipe:
                return float(row["images_per_second"])
        print(f"{recipe}: timing {self.calibration} steps", flush=True)
        folder = self.out / f"{recipe}-calibration"
        shutil.rmtree(folder, ignore_errors=True)  # of a stopped call: its rates are another hour's
        _, rows = replace(self, looks=0).train(recipe, 0, self.calibration, folder)
        shutil.rmtree(folder)
        seconds = [1 / float(row["images_per_second"]) for row in rows if row.get("images_per_second")]
        quarter = len(seconds) // 4
        # the first quarter warms up, so the next counts for it; what a term costs that begins late counts by its share
        found = float(1 / np.mean(seconds[quarter : 2 * quarter] + seconds[quarter:]))
        row = {"recipe": recipe, "images_per_second": f"{found:.1f}", "threads": torch.get_num_threads()}
        append(table, RATES, row)
        return found

    def steps(self, recipe: str) -> int:
        """How many steps fill the minutes."""
        return max(4, round(60 * self.minutes * self.rate(recipe) / self.config.data.batch_size))


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """What the recipe of a comparison takes."""
    return inspect.signature(RECIPES[VARIANTS.get(name, (name,))[0]]).parameters


def usable(setting: Setting, recipe: str) -> str:
    """Why a recipe cannot be compared here; empty where it can."""
    required = [
        name for name, one in parameters(recipe).items() if name != "encoder" and one.default is inspect.Parameter.empty
    ]
    if required:
        return f"it needs {', '.join(required)}"
    try:
        module = build(setting.data(recipe, 0), *setting.parts(recipe), training=setting.config.training)
        asks = setting.minutes and "text" in parameters(recipe)
        if asks and not open_described(setting.sentences, test_split=setting.test_split).texts:
            return f"'{setting.sentences}' has no sentence of a test image: give --sentences"
    except GeomimError as error:
        return str(error)
    return "it needs another date" if "date" in module.model.needs else ""


def rows_of(path: Path) -> list[dict[str, str]]:
    """What is finished."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, columns: Sequence[str], row: dict[str, Any]) -> None:
    """Add a row; the file is written aside and renamed."""
    rows = [*rows_of(path), row]
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def key(recipe: str, seed: int, minutes: float) -> tuple[str, str, str]:
    return recipe, str(seed), f"{minutes:g}"


def run(setting: Setting, recipe: str, seed: int, table: Path, floors: bool) -> None:
    """One run: trained, probed, and written down."""
    steps = setting.steps(recipe)
    folder = setting.folder(recipe, seed)
    last = setting.train(recipe, seed, steps, folder)[0]
    with contextlib.redirect_stdout(io.StringIO()):
        scores = evaluate(
            str(last), setting.labelled, str(folder / "evaluation"), probes=list(PROBES), seeds=setting.probe_seeds,
            test_split=setting.test_split, floors=floors,
        )  # fmt: skip
    for encoder in [*dict.fromkeys(row.encoder for row in scores.rows), MAJORITY]:
        own = {probe: one for probe in PROBES if (one := scores.find(encoder, probe))}
        found = {probe: f"{one.accuracy:.4f}" for probe, one in own.items()}
        found |= {f"{probe}_balanced": f"{one.balanced:.4f}" for probe, one in own.items()}
        if encoder not in (RANDOM, PIXELS, MAJORITY):
            about = {"recipe": recipe, "seed": seed, "minutes": f"{setting.minutes:g}", "steps": steps}
            append(table, COLUMNS, about | found | said(setting, last, folder, recipe))
        elif not any(row["recipe"] == encoder for row in rows_of(table)):
            append(table, COLUMNS, {"recipe": encoder, "seed": seed, "minutes": ""} | found)


def said(setting: Setting, last: Path, folder: Path, recipe: str) -> dict[str, str]:
    """What a recipe with sentences makes of the test images in words, and chance; nothing of another."""
    if "text" not in parameters(recipe):
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        scores = evaluate_text(
            str(last), setting.sentences, list(SAID), str(folder / "evaluation-text"), test_split=setting.test_split,
            names=WORDS if setting.sentences != setting.labelled else None,
        )  # fmt: skip
    found = {one.task: one for one in scores.figures if SAID[one.task] == one.metric}
    return {
        key: f"{value:.4f}"
        for task, one in found.items()
        for key, value in ((task, one.value), (f"{task}_chance", one.beside[CHANCE]))
    }


def figures(table: Path, minutes: float) -> Iterator[str]:
    """Mean over seeds of what was trained as long, and of the floors, best efficient probe first."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(table):
        if row["minutes"] in ("", f"{minutes:g}"):
            groups.setdefault(row["recipe"], []).append(row)
    for name, rows in groups.items():
        label = name.replace(" ", "_")
        for probe in COLUMNS[4:]:
            values = [float(row[probe]) for row in rows if row.get(probe)]
            if values:
                spread = f"  ({min(values):.4f} to {max(values):.4f}, {len(values)} seeds)" if len(values) > 1 else ""
                yield f"{label}_{probe}: {np.mean(values):.4f}{spread}"
        if rows[0]["steps"]:
            yield f"{label}_steps: {rows[0]['steps']}"


def draw(setting: Setting, recipes: Sequence[str], seed: int) -> Path | None:
    """KNN and linear probe over the minutes of the runs of one seed that were looked at, over their floors."""
    tables = {recipe: setting.folder(recipe, seed) / "metrics.csv" for recipe in recipes}
    runs = {recipe: read_figures(table, "steps") for recipe, table in tables.items() if table.is_file()}
    runs = {recipe: run for recipe, run in runs.items() if "knn" in run}
    if not runs:
        return None
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    colours = {recipe: colormaps["tab20"](place % 20) for place, recipe in enumerate(runs)}
    for axes, probe in zip(figure.subplots(1, 2), ("knn", "linear"), strict=True):
        for recipe, run in runs.items():
            steps, values = run[probe]
            minutes = steps / run["loss"][0][-1] * setting.minutes
            axes.plot(minutes, values, marker=".", color=colours[recipe], label=recipe)
        for (floor, label), style in zip(list(FLOORS.items())[1:], ("--", ":"), strict=True):
            axes.axhline(run[f"{probe}{floor}"][1][-1], color="0.4", ls=style, label=label)
        axes.set(title=f"{'kNN' if probe == 'knn' else 'linear probe'}: accuracy", xlabel="minutes", xlim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(picture := setting.out / "curves.png")
    return picture


def random_pictures(folder: Path) -> Path:
    """A corpus of two kinds of noise, each called so in a sentence, half of it to test on."""
    from geomim.corpus.build import build as build_corpus
    from geomim.corpus.captions.caption import caption

    random, sentences = np.random.default_rng(0), folder / "said.csv"
    names = [(kind, f"{kind}/{number}.png") for kind in ("coarse", "fine") for number in range(24)]
    sentences.write_text("image,caption\n" + "".join(f"{name},some {kind} noise\n" for kind, name in names))
    for kind, side in (("coarse", 8), ("fine", 2)):
        (folder / "pictures" / kind).mkdir(parents=True)
        for number in range(24):
            cells = random.integers(0, 255, (64 // side, 64 // side, 3), np.uint8)
            Image.fromarray(cells.repeat(side, 0).repeat(side, 1)).save(folder / "pictures" / kind / f"{number}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        built = build_corpus([str(folder / "pictures")], str(folder / "corpus"), 64, labels="folder", test_share=0.5)
        return caption(str(built), imported=str(sentences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="corpus to train on; the config's where not given")
    parser.add_argument("--data", help="labelled corpus to evaluate on; the corpus with _labelled behind its name")
    parser.add_argument("--sentences", help="RSICD/captions.jsonl, for recipes with sentences; the data if not given")
    parser.add_argument("--config", type=Path, default=CONFIG, help="encoder, data and optimiser of all runs")
    parser.add_argument(
        "--recipes", nargs="+", choices=[*RECIPES, *VARIANTS], help="all that can be run where not given"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run; 0: only time the steps")
    parser.add_argument("--probe_seeds", type=int, default=3)
    parser.add_argument("--looks", type=int, default=0, help="probe runs so often as they train, and draw curves.png")
    parser.add_argument("--test_split", default="test", help="what is scored; `val` to choose settings by")
    parser.add_argument("--threads", type=int, help="torch's own number where not given")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), help="folder of runs and of recipes.csv")
    parser.add_argument("--quick", action="store_true", help="random pictures and a few steps: does it run")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        if given.quick:
            given.corpus = given.data = str(random_pictures(Path(temporary)))
            given.out = Path(temporary) / "runs"
            given.minutes, given.probe_seeds = 0.01, 1
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Run what is not in the table yet, and print it."""
    words = ["--config", str(given.config), "--recipe", "mae", "--data.batch_size", "16"][: 6 if given.quick else 4]
    config = read_config(words)
    assert isinstance(config.training, Training)
    corpus = given.corpus or config.data.corpus
    data = given.data or f"{corpus}_labelled"
    for folder in (corpus, data):
        if not Path(folder).is_dir():
            print(f"'{folder}' is not there, nothing measured: build it as the first lines of this script say")
            return
    method = yaml.safe_load(given.config.read_text()).get("method") or {}
    sentences = given.sentences or data
    setting = Setting(
        config, method, corpus, data, sentences, given.out, given.minutes, given.probe_seeds,
        test_split=given.test_split, looks=given.looks,
    )  # fmt: skip
    if given.quick:
        setting = replace(setting, calibration=4)
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / f"recipes{setting.other}.csv"
    chosen = given.recipes or list(RECIPES)
    reasons = {recipe: usable(setting, recipe) for recipe in chosen}
    for recipe, reason in reasons.items():
        if reason:
            print(f"{recipe} is left out: {reason}")
    chosen = [recipe for recipe in chosen if not reasons[recipe]]
    for recipe in chosen:
        print(f"{recipe}: {setting.rate(recipe):.1f} images/s, as '{setting.out / 'calibration.csv'}' says", flush=True)
    for seed in given.seeds if given.minutes else []:
        for recipe in chosen:
            done = {(row["recipe"], row["seed"], row["minutes"]) for row in rows_of(table)}
            if key(recipe, seed, given.minutes) in done:
                print(f"{recipe}, seed {seed}: done before")
                continue
            floors = recipe not in ENCODERS and RANDOM not in {name for name, *_ in done}
            print(f"{recipe}, seed {seed}: {given.minutes:g} minutes", flush=True)
            run(setting, recipe, seed, table, floors)
    print(f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(f"tables: {setting.out / 'calibration.csv'}, {table}")
    if given.looks and given.minutes:
        picture = draw(setting, chosen, given.seeds[0])
        print(f"curves of seed {given.seeds[0]}: {picture or 'none; runs that are done were not looked at'}")
    for line in figures(table, given.minutes):
        print(line)


if __name__ == "__main__":
    main()
