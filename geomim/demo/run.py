"""`geomim demo`: from scenes to a page, on scenes it draws itself or on the user's own."""

import dataclasses
import fnmatch
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console

from geomim.corpus.build import build
from geomim.corpus.captions.caption import caption
from geomim.corpus.changes import decide
from geomim.corpus.scenes import find_scenes, open_scene
from geomim.corpus.store import Corpus, write_json
from geomim.corpus.synthetic import Planted, write_scenes
from geomim.data.datamodule import TileDataModule
from geomim.demo.cover import Cover, fit_cover
from geomim.demo.page import write_page
from geomim.errors import GeomimError, InputError, Interrupted, MissingExtraError
from geomim.evaluate.scores import Scores
from geomim.maps.cluster import cluster
from geomim.maps.query import query
from geomim.models.weights import read_encoder
from geomim.pretrain.optimisation import Optimisation
from geomim.sensors import Sensor, get_sensor
from geomim.verbs.evaluate import evaluate
from geomim.verbs.export import export
from geomim.verbs.plot import read_figures
from geomim.verbs.predict import predict
from geomim.verbs.pretrain import Training, train
from geomim.verbs.watching import Watching

DRAWN = (20, 576)
"""Scenes, and their side in pixels. Sun, haze and season differ by scene: of few, little is learned for another one."""
IMAGE = 64
"""Side of the training image in pixels."""
ENCODER = {"width": 192, "depth": 4, "heads": 3, "patch_size": 8}
METHOD = {"decoder_depth": 1, "decoder_width": 96, "decoder_heads": 3}
BATCH = 64
LOOKS = 4
"""How often a run is looked at."""
TUNED = 1.8
"""Steps of 16 windows in which the encoder is tuned for the map, for each step of its pretraining."""
PROMPT = "Almost all of the picture is covered by {}."
"""A sentence as the demo's own captions are, which a text tower of two minutes knows."""


@dataclass
class Group:
    """Scenes of one sensor, and what became of them.

    Attributes:
        name: Sensor and bands in words; the folder's name.
        scenes: Rasters, with the sensor and bands to open them with.
        sensor: What the user said took them, for the verbs.
        bands: What the user said their bands are.
        skipped: Scenes that could not be opened, with a sentence each.
    """

    name: str
    scenes: list[str]
    sensor: str | None = None
    bands: list[str] | None = None
    skipped: list[str] = field(default_factory=list)


@dataclass
class Chapter:
    """The results of one group, for the page.

    Attributes:
        group: Its scenes.
        folder: Everything that was written.
        corpus: The corpus.
        note: What was left out for the sake of the scores.
        runs: The training run of each recipe: `metrics.csv`, `reconstructions/`, `checkpoints/`; first the one that the
            rest is made with.
        scores: Final scores of each run, the first one's beside their floors; none without labels.
        cover: How good what the map is made with is on the held-out scenes; none without labels.
        encoder: The exported folder.
        difference: Greatest difference between geomim's and timm's output.
        scene: What is mapped.
        map: Its map.
        labels: Folder of label rasters where there is one.
        found: Raster of where the scene fits the names of the classes, where sentences were learned.
    """

    group: Group
    folder: Path
    corpus: Path
    note: str = ""
    runs: dict[str, Path] = field(default_factory=dict)
    scores: list[Scores] = field(default_factory=list)
    cover: Cover | None = None
    encoder: Path = Path()
    difference: float = 0.0
    scene: str = ""
    map: Path = Path()
    labels: Path | None = None
    found: Path | None = None


def demo(
    scenes: list[str] | None = None,
    labels: str | None = None,
    sensor: list[str] | None = None,
    bands: list[str] | None = None,
    out: str = "demo",
    steps: int = 300,
    tile: int = IMAGE,
    seed: int = 0,
) -> Path:
    """Go the whole way once: scenes become a corpus, an encoder, its scores, and a map, on one page to look at.

    Without arguments it draws multispectral scenes of mountains, farmland, towns and desert: twelve kinds of land
    cover, several of which share a spectrum and differ in layout. Sentences are made of their map, an encoder learns
    from pictures and sentences (`selective_rils`), and another from pictures alone (`mae`) in the same time. With
    --scenes it works on your own rasters, one corpus for each sensor; without --labels there are no sentences and no
    scores, and the map is a k-means of patch embeddings. Started again, it goes on where it stopped.

    Args:
        scenes: Rasters or folders of rasters.
        labels: Folder of label rasters named like the scenes, with `classes.json`.
        sensor: For rasters that do not name their bands: a sensor (`naip`, or a YAML file), or `SENSOR=TEXT` for the
            rasters whose path contains TEXT or matches it as a pattern.
        bands: Names of the rasters' bands in file order, if all have the same.
        out: Folder for everything it makes.
        steps: Training steps of the first recipe, shared between the sensors; the second one has the same time.
        tile: Edge of a tile in pixels, at least 64.
        seed: Seed of everything random.

    Returns:
        The page, `report/index.html`.

    Raises:
        InputError: No scene can be opened.
        MissingExtraError: There would be sentences, and open_clip is not installed.
    """
    if tile < IMAGE:
        raise InputError(f"--tile: expected at least {IMAGE} pixels, the side of the training image; given {tile}")
    if (scenes is None or labels) and find_spec("open_clip") is None:
        raise MissingExtraError(
            "geomim demo learns from sentences with open_clip: pip install 'geomim[maps,finetune,language]'"
        )
    start, console, folder = time.monotonic(), Console(stderr=True), Path(out)
    given = {"scenes": scenes, "labels": labels, "sensor": sensor, "bands": bands}
    _claim(folder, given | {"steps": steps, "tile": tile, "seed": seed})
    drawn = None
    if scenes is None:
        console.print("[bold]Drawing scenes[/bold] of twelve kinds of land cover")
        drawn = write_scenes(folder / "drawn", *DRAWN, seed=seed)
        labels = str(drawn.labels[0].parent)
        groups = [Group(drawn.sensor.name, [str(path) for path in drawn.scenes])]
    else:
        groups = group_by_sensor(find_scenes(scenes), sensor or [], bands)
    share = max(1, steps // len(groups))
    chapters = []
    for group in groups:
        chapter = Chapter(group, folder / group.name, folder / group.name / "corpus")
        chapter.labels = _corpus(chapter, labels, drawn, tile, console)
        _train(chapter, share, seed, console)
        _results(chapter, share, console)
        chapters.append(chapter)
    page = write_page(folder, chapters, time.monotonic() - start)
    _farewell(console, page, chapters, time.monotonic() - start)
    return page


def _claim(folder: Path, arguments: dict[str, object]) -> None:
    """Mark a folder as made with these arguments; what others made is not mixed with it.

    Raises:
        InputError: The folder was made with other arguments.
    """
    file = folder / "demo.json"
    if file.is_file() and json.loads(file.read_text()) != arguments:
        raise InputError(f"'{folder}' holds a demo made with other arguments: give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, arguments)


def group_by_sensor(paths: Iterable[str], sensors: Sequence[str], bands: list[str] | None) -> list[Group]:
    """Sort rasters by what took them, so that each corpus holds one kind of number.

    Args:
        paths: Rasters.
        sensors: `SENSOR` or `SENSOR=TEXT`, see `demo`.
        bands: Names of the bands in file order.

    Returns:
        Groups in the order of their first scene.

    Raises:
        InputError: No raster can be opened.
    """
    groups: dict[tuple[object, ...], Group] = {}
    skipped: list[str] = []
    for path in paths:
        said = _sensor_for(path, sensors)
        try:
            with open_scene(path, get_sensor(said) if said else None, bands) as scene:
                key = (dataclasses.replace(scene.sensor, nodata=None), str(scene.dtype))
        except GeomimError as error:
            skipped.append(str(error))
            continue
        if key not in groups:
            groups[key] = Group(_name(key[0], [group.name for group in groups.values()]), [], said, bands)
        groups[key].scenes.append(path)
    if not groups:
        raise InputError("no scene can be used:\n" + "\n".join(skipped))
    next(iter(groups.values())).skipped = skipped
    return list(groups.values())


def _sensor_for(path: str, sensors: Sequence[str]) -> str | None:
    for entry in sensors:
        name, _, text = entry.partition("=")
        if not text or text in path or fnmatch.fnmatch(path, text):
            return name
    return None


def _name(sensor: Sensor, taken: Sequence[str]) -> str:
    name = sensor.name
    return name if name not in taken else f"{name}-{sum(other.startswith(name) for other in taken) + 1}"


def _corpus(chapter: Chapter, labels: str | None, drawn: Planted | None, tile: int, console: Console) -> Path | None:
    """Scenes into a corpus, with sentences where labels tell what they show; the labels, if they can be scored on."""
    group = chapter.group
    console.print(f"\n[bold]{group.name}: scenes into a corpus[/bold] ({len(group.scenes)} scenes)")
    if not (chapter.corpus / "corpus.json").is_file():  # a finished one may have another condition by now, see below
        build(
            group.scenes,
            str(chapter.corpus),
            tile=tile,
            sensor=group.sensor,
            bands=group.bands,
            min_valid=0.9,
            masks=labels,
            test_share=0.34 if labels else 0.0,
        )
    if not labels:
        return None
    scorable, chapter.note = _scorable(chapter.corpus)
    if chapter.note:
        console.print(chapter.note, soft_wrap=True)
    if scorable and not any(Corpus.open(chapter.corpus).table(["captions"])["captions"].to_pylist()):
        console.print(f"\n[bold]{group.name}: sentences of the map[/bold]")
        caption(str(chapter.corpus), of=["cover"], vector=[str(drawn.map), str(drawn.boxes)] if drawn else None)
    return Path(labels) if scorable else None


def _train(chapter: Chapter, steps: int, seed: int, console: Console) -> None:
    """The corpus into an encoder, and into a second one in the time that the first one took."""
    corpus, labels = str(chapter.corpus), chapter.labels
    training = Training(steps, log_every=min(10, steps))
    for recipe in ["selective_rils", "mae"] if labels else ["mae"]:
        console.print(f"\n[bold]{chapter.group.name}: the corpus into an encoder[/bold] ({recipe})")
        # gentle crops: scale is part of what tells one kind of land from another
        how: dict[str, Any] = {"scale": (0.5, 1.0), "turn": True, "jitter": 0.3, "workers": 0, "seed": seed}
        if recipe == "selective_rils":
            how["captions"] = ["landcover"]  # in two minutes few words are learned: those of the land come first
        data = TileDataModule(corpus, batch_size=BATCH, image_size=IMAGE, **how)
        run = chapter.runs[recipe] = chapter.folder / recipe
        every = max(1, steps // LOOKS) * (
            1 if training.minutes is None else 2
        )  # mae makes twice the steps in that time
        watch = Watching(every=every, data=corpus if labels else None)
        model = (recipe, METHOD, ENCODER, Optimisation(base_learning_rate=3e-3), training, seed)
        try:
            train(data, run, *model, resume="last", watch=watch)
        except Interrupted as stop:
            raise Interrupted(stop.signal, "stopped while it trained: the same command goes on where it was") from stop
        took = read_figures(run / "metrics.csv", "minutes")["loss"][0][-1]
        training = dataclasses.replace(training, max_steps=Training.max_steps, minutes=round(float(took), 2))


def _results(chapter: Chapter, steps: int, console: Console) -> None:
    """The encoder into scores, an export, a map, and an answer to words."""
    group, folder = chapter.group, chapter.folder
    console.print(f"\n[bold]{group.name}: the encoder into scores and maps[/bold]")
    checkpoints = {name: str(run / "checkpoints" / "last.ckpt") for name, run in chapter.runs.items()}
    for name, checkpoint in checkpoints.items() if chapter.labels else ():
        first, to = not chapter.scores, str(folder / f"scores-{name}")
        chapter.scores.append(evaluate(checkpoint, str(chapter.corpus), to, probes=["knn", "linear"], floors=first))
    name, last = next(iter(checkpoints.items()))
    chapter.encoder = export(last, str(folder / "encoder"))
    chapter.difference = _timm_difference(chapter.encoder)
    rows = Corpus.open(chapter.corpus).table(["source", "split", "label"]).to_pylist()
    rows = [row for row in rows if row["label"] is not None or not chapter.labels]
    learned, held_out = (sorted({row["source"] for row in rows if row["split"] == one}) for one in ("train", "test"))
    chapter.scene = (held_out or group.scenes)[0]
    maps, told = folder / "maps" / Path(chapter.scene).stem, {"sensor": group.sensor, "bands": group.bands}
    maps.parent.mkdir(parents=True, exist_ok=True)
    if not chapter.labels:
        [chapter.map] = cluster(last, [chapter.scene], f"{maps}_clusters.tif", **told)
        return
    head = folder / "land-cover"
    chapter.cover = fit_cover(
        learned, held_out, str(chapter.labels), last, name, head, IMAGE, round(TUNED * steps), **told
    )
    [chapter.map] = predict([chapter.scene], str(head), f"{maps}_land_cover.tif", **told)
    words = Corpus.open(chapter.corpus).classes
    [chapter.found, *_] = query(
        chapter.scene, last, words, f"{maps}_words.tif", prompt=PROMPT, background=words, overlap=0.5, **told
    )


def _scorable(corpus: Path) -> tuple[bool, str]:
    """Whether there is something to score on, and in words what stands in the way.

    Held-out tiles of classes that no training tile has are left out: no probe can know them.
    """
    rows = Corpus.open(corpus).table(["kept", "reason", "split", "label"]).to_pylist()
    rows = [row for row in rows if row["label"] is not None and (row["kept"] or row["reason"].startswith("where "))]
    seen = {(row["split"], row["label"]) for row in rows}
    train, test = ({label for split, label in seen if split == name} for name in ("train", "test"))
    unknown = sorted(test - train)
    if not train & test or len(train) < 2:
        return False, "Labels show one class alone, or no two scenes that share one, so there is nothing to score on."
    if not unknown:
        return True, ""
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in unknown)
    if any(row["kept"] for row in rows if row["label"] in unknown):  # else it is done already
        decide(str(corpus), where=f"split = 'train' OR label IS NULL OR label NOT IN ({names})")
    return True, f"Only held-out scenes show {', '.join(unknown)}: those tiles are left out."


def _timm_difference(folder: Path) -> float:
    """Load the export as anyone without geomim would, and compare."""
    theirs = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    ours = read_encoder(folder).encoder.eval()
    images = torch.randn(2, ours.in_chans, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((theirs.forward_features(images) - ours(images).tokens).abs().max())


def _farewell(console: Console, page: Path, chapters: Sequence[Chapter], seconds: float) -> None:
    """Where to look, and what to type next."""
    first = chapters[0]
    probe = first.folder / "land-cover" if first.cover else "PROBE"
    console.print(f"\nDone in {seconds / 60:.1f} minutes. Look at [bold]{page}[/bold]\n\nNext:")
    for line in (
        "geomim demo --scenes MY_RASTERS --out mine     the same on your own scenes",
        f"geomim corpus inspect {first.corpus}     what was kept and dropped",
        f"geomim predict SCENE --model {probe} --out map.tif     a map of another scene",
        f"timm.create_model('local-dir:{first.encoder}', pretrained=True)     the encoder, anywhere",
    ):
        console.print(f"  {line}", soft_wrap=True, highlight=False)
