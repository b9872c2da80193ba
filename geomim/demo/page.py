"""The page at the end of a demo: what came in, what came out, and how it compares."""

from __future__ import annotations

import csv
import html
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from affine import Affine
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rasterio.windows import Window

from geomim.corpus.labels import Masks
from geomim.corpus.report.page import html_page, html_table
from geomim.corpus.report.pictures import composite, display_limits
from geomim.corpus.report.report import funnel, kind_of
from geomim.corpus.scenes import open_scene
from geomim.corpus.store import Corpus
from geomim.evaluate.scores import PIXELS, RANDOM, Scores
from geomim.sensors import get_sensor

if TYPE_CHECKING:
    from geomim.demo.run import Chapter

_SIDE = 700  # pixels of a drawn scene
_FLOORS = {RANDOM: "#7f8c8d", PIXELS: "#d35400"}


def write_page(folder: Path, chapters: Sequence[Chapter], seconds: float) -> Path:
    """Write `report/index.html` with its pictures, aside and then renamed.

    Args:
        folder: The demo's folder.
        chapters: What became of each sensor's scenes.
        seconds: How long everything took.

    Returns:
        The page.
    """
    part, target = folder / "report.part", folder / "report"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    sections = [("In short", _summary(chapters, seconds))]
    for chapter in chapters:
        sections += _Sections(chapter, part, folder, several=len(chapters) > 1).all()
    text = html_page("From scenes to a map", sections)
    (part / "index.html").write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target / "index.html"


def _summary(chapters: Sequence[Chapter], seconds: float) -> str:
    sentences = []
    for chapter in chapters:
        counts = funnel(Corpus.open(chapter.corpus))
        sentences.append(
            f"{chapter.group.name}: {len(chapter.group.scenes)} scenes gave {counts['tiles']:,} tiles, "
            f"{counts['kept']:,} of them kept."
        )
        sentences += [chapter.note] if chapter.note else []
        if chapter.scores is not None:
            sentences += [f"{sentence}." for sentence in chapter.scores.sentences()]
    skipped = [sentence for chapter in chapters for sentence in chapter.group.skipped]
    body = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    if skipped:
        body += "<p>Not usable:</p>" + html_table((), [(sentence,) for sentence in skipped])
    return f"{body}<p>All of it took {seconds / 60:.1f} minutes.</p>"


class _Sections:
    """The sections of one sensor."""

    def __init__(self, chapter: Chapter, folder: Path, root: Path, several: bool) -> None:
        self.chapter, self.folder, self.root = chapter, folder, root
        self.prefix = f"{chapter.group.name}: " if several else ""
        self.figures = _read_figures(chapter.run / "metrics.csv")

    def all(self) -> list[tuple[str, str]]:
        """Headings and contents in the order of the work."""
        sections = [
            ("Scenes into a corpus", self.corpus()),
            ("Pretraining: what the encoder sees, and what it makes of it", self.pretraining()),
            ("How good are the frozen features?", self.scores()),
            ("The encoder outside geomim", self.export()),
            ("A map", self.maps()),
        ]
        return [(self.prefix + title, text) for title, text in sections]

    def corpus(self) -> str:
        """Counts, and the corpus's own pictures of kept and dropped tiles."""
        corpus = Corpus.open(self.chapter.corpus)
        counts = funnel(corpus)
        whole = max(1, counts["tiles"])
        rows = [(name, f"{count:,}", f"{100 * count / whole:.1f} %") for name, count in counts.items()]
        report = self.chapter.corpus / "report"
        link = os.path.relpath(report / "index.html", self.root / "report")
        return (
            html_table((), rows)
            + self._copy(report / "kept.png", "Kept tiles, a sample.", wide=True)
            + f"<div class=pairs>{''.join(self._dropped(corpus, report))}</div>"
            + f'<p><a href="{html.escape(link)}">Every reason, band and licence</a> is on the corpus page.</p>'
        )

    def _dropped(self, corpus: Corpus, report: Path) -> list[str]:
        """Up to three dropped tiles of each kind of reason, beside their keepers."""
        table = corpus.table(["id", "reason"])
        reasons = dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
        shown: dict[str, list[str]] = {}
        for picture in sorted(report.glob("dropped-*.png")):
            reason = reasons[int(picture.stem.removeprefix("dropped-"))]
            examples = shown.setdefault(kind_of(reason), [])
            if len(examples) < 3:
                examples.append(self._copy(picture, f"Dropped: {reason}."))
        return [example for examples in shown.values() for example in examples]

    def pretraining(self) -> str:
        """Reconstructions, loss, and collapse figures."""
        pictures = sorted((self.chapter.run / "reconstructions").glob("*.png"))
        losses = [(step, row["loss"]) for step, row in self.figures.items() if "loss" in row]
        curve = self._curve("loss.png", "pixel loss (1 = the mean of the patch)", {"loss": losses})
        ranks = [(step, row) for step, row in self.figures.items() if "embedding_rank" in row]
        rows = [
            (f"{step:,}", *(f"{row[name]:.3f}" for name in ("embedding_cosine", "embedding_std", "embedding_rank")))
            for step, row in ranks
        ]
        collapse = html_table(("step", "mean cosine of two images", "spread", "effective rank"), rows)
        note = (
            "<p>Input, the patches that are seen, and the patches that are predicted (each with its own mean and "
            "contrast given back). Grey was neither seen nor asked for. The loss is the squared error of normalised "
            "patches: 1 is what the mean of a patch would score. A cosine near 1 or a rank near 1 would mean collapse."
            "</p>"
        )
        words = f"After {int(pictures[-1].stem.split('-')[1]):,} steps." if pictures else ""
        shown = self._copy(pictures[-1], words, wide=True) if pictures else ""
        return f"{shown}{note}{curve}{collapse}"

    def scores(self) -> str:
        """The table beside its floors, the curve over training, and a plain word where the encoder falls short."""
        scores = self.chapter.scores
        if scores is None:
            return "<p>Nothing to score: --labels FOLDER needs label rasters of at least two scenes.</p>"
        head, *rows = scores.cells()
        protocol = scores.protocol
        text = (
            f"{protocol['classes']} classes; {protocol['train_images']:,} tiles of some scenes to fit on, "
            f"{protocol['test_images']:,} of other scenes to score; {len(protocol['seeds'])} seeds; "
            f"intervals: {protocol['interval']}. p: {protocol['test']}."
        )
        said = "".join(f"<p><b>{html.escape(sentence)}.</b></p>" for sentence in scores.sentences())
        return html_table(head, rows) + said + f"<p>{text}</p>" + self._score_curves(scores)

    def _score_curves(self, scores: Scores) -> str:
        drawn = []
        for probe in ("knn", "linear"):
            floors = {name: row.accuracy for name in _FLOORS if (row := scores.find(name, probe))}
            points = [(0, floors[RANDOM])] if RANDOM in floors else []
            points += [
                (step, row.accuracy) for step, one in self.chapter.curve for row in one.rows if row.probe == probe
            ]
            drawn.append(self._curve(f"{probe}.png", f"accuracy, {probe} probe", {"encoder": points}, floors))
        return f"<div class=pairs>{''.join(drawn)}</div>"

    def export(self) -> str:
        """How to load it, and that this gives the same numbers."""
        chapter = self.chapter
        assert chapter.encoder is not None
        code = f"timm.create_model('local-dir:{chapter.encoder}', pretrained=True)"
        return (
            f"<p><code>{html.escape(code)}</code></p><p>Plain timm, no geomim: its output differs from geomim's by at "
            f"most {chapter.difference:.1e}. Bands, units, statistics and licences are in the folder's config.json.</p>"
        )

    def maps(self) -> str:
        """Scene, map, and labels side by side."""
        blocks = []
        for uri, path, labels in self.chapter.maps:
            drawn = ClassMap.of_map(path)
            panels = [("scene", self._scene(uri)), ("map", drawn.picture())]
            words = "k-means of patch embeddings: colours are clusters, not land cover."
            if labels is not None:
                truth = ClassMap.of_labels(uri, labels, drawn)
                panels.append(("labels", truth.picture()))
                words = f"A scene that neither encoder nor probe was fitted to; {_agreement(drawn, truth)}."
            name = f"map-{self.chapter.group.name}.png"
            _draw_panels(self.folder / name, panels, drawn.legend())
            where = html.escape(os.path.relpath(path, self.root))
            blocks.append(f'<img src="{name}" alt="scene and map"><p>{html.escape(words)} File: {where}</p>')
        return "".join(blocks)

    def _scene(self, uri: str) -> np.ndarray:
        group = self.chapter.group
        with open_scene(uri, get_sensor(group.sensor) if group.sensor else None, group.bands) as scene:
            numbers, valid = scene.read_valid(Window(0, 0, scene.width, scene.height))
            limits = display_limits(numbers[None], valid[None])
            step = max(1, max(scene.height, scene.width) // _SIDE)
            return composite(numbers[:, ::step, ::step], scene.sensor, valid[::step, ::step], limits)

    def _copy(self, picture: Path, words: str, wide: bool = False) -> str:
        if not picture.is_file():
            return ""
        name = f"{self.chapter.group.name}-{picture.name}"
        shutil.copyfile(picture, self.folder / name)
        style, text = (' style="height: auto"' if wide else ""), html.escape(words)
        return f'<figure><img src="{name}"{style} alt="{text}"><figcaption>{text}</figcaption></figure>'

    def _curve(
        self,
        name: str,
        label: str,
        lines: dict[str, list[tuple[int, float]]],
        floors: dict[str, float] | None = None,
    ) -> str:
        name = f"{self.chapter.group.name}-{name}"
        figure = Figure(figsize=(5, 3), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        for title, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 12 else "", color="#2471a3", label=title)
        for floor, value in (floors or {}).items():
            axes.axhline(value, linestyle="--", linewidth=1, color=_FLOORS[floor], label=floor)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if floors:
            axes.legend(frameon=False, fontsize=8)
        figure.savefig(self.folder / name, dpi=110)
        return f'<figure><img src="{name}" style="height: auto" alt="{html.escape(label)}"></figure>'


def _read_figures(path: Path) -> dict[int, dict[str, float]]:
    with path.open() as file:
        return {
            int(row["step"]): {name: float(value) for name, value in row.items() if value and name != "step"}
            for row in csv.DictReader(file)
        }


@dataclass(frozen=True)
class ClassMap:
    """Class ids on a grid, with names and colours.

    Attributes:
        ids: `(H, W)` uint8, 255 where there is none.
        names: Class names; the place is the id.
        colours: `(N, 3)` uint8 by id.
        transform: From column and row to the ground.
    """

    ids: np.ndarray
    names: list[str]
    colours: np.ndarray
    transform: Affine

    @classmethod
    def of_map(cls, path: Path) -> ClassMap:
        """A file that `geomim predict` wrote."""
        with rasterio.open(path) as raster:
            tags, colours = raster.tags(1), raster.colormap(1)
            names = [tags[f"CLASS_{number}"] for number in range(sum(key.startswith("CLASS_") for key in tags))]
            table = np.array([colours[number][:3] for number in range(len(names))], np.uint8)
            return cls(raster.read(1), names, table, raster.transform)

    @classmethod
    def of_labels(cls, uri: str, folder: Path, like: ClassMap) -> ClassMap:
        """The label raster of a scene, in the classes and colours of a map."""
        masks = Masks(folder)
        with rasterio.open(uri) as raster:
            ids, transform = masks.read(uri, raster.height, raster.width), raster.transform
        table = np.full(256, 255, np.uint8)
        for place, name in enumerate(masks.classes):
            if name in like.names:
                table[place] = like.names.index(name)
        return cls(table[ids], like.names, like.colours, transform)

    def picture(self) -> np.ndarray:
        """`(h, w, 3)` uint8, grey where there is no class."""
        step = max(1, max(self.ids.shape) // _SIDE)
        ids = self.ids[::step, ::step]
        table = np.full((256, 3), 96, np.uint8)
        table[: len(self.colours)] = self.colours
        return table[ids]

    def legend(self) -> list[Patch]:
        """A coloured patch for every class that occurs."""
        present = [number for number in np.unique(self.ids) if number < len(self.names)]
        return [Patch(color=self.colours[number] / 255, label=self.names[number]) for number in present]


def _agreement(made: ClassMap, truth: ClassMap) -> str:
    """Share of map pixels whose class is the one at their centre in the labels."""
    rows, columns = np.mgrid[: made.ids.shape[0], : made.ids.shape[1]] + 0.5
    x, y = ~truth.transform * (made.transform * (columns, rows))  # a map's last row may reach past the scene
    height, width = truth.ids.shape
    expected = truth.ids[np.minimum(y, height - 1).astype(int), np.minimum(x, width - 1).astype(int)]
    usable = (x < width) & (y < height) & (made.ids != 255) & (expected != 255)
    share = (made.ids == expected)[usable].mean()
    return f"{100 * share:.1f} % of {usable.sum():,} labelled map pixels have the right class"


def _draw_panels(path: Path, panels: list[tuple[str, np.ndarray]], legend: list[Patch]) -> None:
    figure = Figure(figsize=(4.2 * len(panels), 4.8), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, picture) in zip(axes, panels, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
