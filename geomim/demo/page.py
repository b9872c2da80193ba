"""The demo's page: scenes, tiles, sentences, training, scores and maps, in the order of the work."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from rasterio.windows import Window

from geomim.corpus.report.page import html_figure, html_page, html_table
from geomim.corpus.report.pictures import composite, display_limits, save_picture, shrink
from geomim.corpus.report.report import funnel, kind_of
from geomim.corpus.scenes import open_scene
from geomim.corpus.store import Corpus
from geomim.demo.truth import ClassMap, agreement, words_found
from geomim.evaluate.intervals import LEVEL, mcnemar
from geomim.evaluate.scores import MAJORITY, PIXELS, RANDOM, Row, Scores
from geomim.sensors import get_sensor
from geomim.verbs.plot import read_figures

if TYPE_CHECKING:
    from geomim.demo.run import Chapter

_SIDE = 640  # pixels of a drawn scene
_COLOURS = ("#2471a3", "#8e44ad")
_FLOORS = {RANDOM: ("/random", "#7f8c8d"), PIXELS: ("/pixels", "#d35400")}
_FAIR = (
    "selective_rils learns from sentences that were made of the same kind of map as the classes of this table, of the "
    "training scenes alone; mae learns from pictures alone. What the first has more is what such a map is worth."
)
_SAID = 6  # tiles with their sentences


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
    told = [_Sections(chapter, part, folder, several=len(chapters) > 1) for chapter in chapters]
    sections = [(title, text) for one in told for title, text in one.all()]
    answers = "".join(one.answer() for one in told)
    skipped = [(sentence,) for chapter in chapters for sentence in chapter.group.skipped]
    answers += f"<p>Not usable:</p>{html_table((), skipped)}" if skipped else ""
    short = [("In short", f"{answers}<p>All of it took {seconds / 60:.1f} minutes on this machine.</p>")]
    text = html_page("From scenes to a map", short + sections)
    (part / "index.html").write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target / "index.html"


class _Sections:
    """The sections of one sensor; each is empty where there is nothing to show."""

    def __init__(self, chapter: Chapter, folder: Path, root: Path, several: bool) -> None:
        self.chapter, self.folder, self.root = chapter, folder, root
        self.prefix = f"{chapter.group.name}: " if several else ""
        self.corpus = Corpus.open(chapter.corpus)
        self.counts = funnel(self.corpus)
        self.curves = {name: read_figures(run / "metrics.csv", "minutes") for name, run in chapter.runs.items()}
        self.made = ClassMap.of_map(chapter.map)
        self.truth = ClassMap.of_labels(chapter.scene, chapter.labels, self.made) if chapter.labels else None
        self.found = words_found(chapter.found, self.truth) if chapter.found and self.truth else []

    def all(self) -> list[tuple[str, str]]:
        """Headings and contents in the order of the work."""
        sections = {
            "The scenes": self.scenes(),
            "Tiles kept and dropped": self.tiles(),
            "What is said of them": self.captions(),
            "Training": self.training(),
            "What the encoder sees, and what it makes of it": self.reconstructions(),
            "How good are the frozen features?": self.scores(),
            "A map": self.map(),
            "Words on a scene": self.words(),
            "Two tiles that are nearly one": self.near(),
            "What to type next": self.next(),
        }
        return [(self.prefix + title, text) for title, text in sections.items()]

    def answer(self) -> str:
        """What came of it, in figures."""
        counts, chapter = self.counts, self.chapter
        said = [
            f"{self.prefix}{len(chapter.group.scenes)} scenes gave {counts['tiles']:,} tiles, {counts['kept']:,} of "
            "them kept."
        ]
        said += [chapter.note] if chapter.note else []
        if chapter.scores:
            said = [*_verdict(chapter.scores), *said]
        if self.truth:
            share, count = agreement(self.made, self.truth)
            said.append(f"Its map of a held-out scene has {share:.0%} of {count:,} labelled map pixels right.")
        if chapter.cover:
            own, random, pixels = (f"{one:.0%}" for one in chapter.cover.right.values())
            said.append(
                f"Of all held-out scenes {own} are right, {random} with as much training from random weights and "
                f"{pixels} from band values alone."
            )
        if self.found:
            best = self.found[0]
            said.append(
                f"The word '{best.word}' finds its land in that scene with an average precision of "
                f"{best.precision:.2f}, where chance has {best.share:.2f}."
            )
        return _paragraphs(said)

    def scenes(self) -> str:
        """Up to three of them."""
        some = self.chapter.group.scenes[:3]
        pictures = [self._picture(f"scene-{n}", self._scene(uri), Path(uri).name) for n, uri in enumerate(some)]
        return f"<div class=wide>{''.join(pictures)}</div>"

    def tiles(self) -> str:
        """Counts, and the corpus's own pictures of kept and dropped tiles."""
        whole, counts = max(1, self.counts["tiles"]), self.counts.items()
        table = html_table((), [(name, f"{count:,}", f"{100 * count / whole:.1f} %") for name, count in counts])
        kept = self._copy(self._report / "kept.png", "Kept tiles, a sample.", strip=True)
        dropped = "".join(
            text for kind, figures in self._dropped().items() for text in figures[:2] if "valid" not in kind
        )
        every = self._link("Every reason, band and licence")
        return f"{table}{kept}<div class=pairs>{dropped}</div><p>{every} is on the corpus page.</p>"

    def captions(self) -> str:
        """Some tiles with what is said of them, drawn evenly from those with most to say."""
        rows = self.corpus.table(["id", "slot", "kept", "split", "valid_fraction", "captions", "size"]).to_pylist()
        rows = [row for row in rows if row["kept"] and row["captions"]]
        if not rows:
            return ""
        count = sum(len(row["captions"]) for row in rows)
        whole = [row for row in rows if row["split"] == "train" and row["valid_fraction"] == 1] or rows
        figures, limits = [], self._limits()
        for row in whole[:: -(-len(whole) // _SAID)]:
            image, mask = (self.corpus.array(name, row["size"]) for name in ("image", "valid"))
            assert image is not None
            valid = None if mask is None else mask.read([row["slot"]])[0].astype(bool)
            shown = composite(image.read([row["slot"]])[0], self.corpus.sensor, valid, limits)
            words = f"Tile {row['id']}: {' '.join(list(dict.fromkeys(row['captions']))[:2])}"
            figures.append(self._picture(f"said-{row['id']}", shrink(shown, 192), words, strip=False))
        return (
            f"<p>{count:,} sentences of {len(rows):,} tiles, written by <code>geomim corpus caption</code> from the "
            f"label rasters and map layers that came with the scenes. {self._link('More of them')}.</p>"
            f"<div class=pairs>{''.join(figures)}</div>"
        )

    def training(self) -> str:
        """KNN accuracy over time beside its floors, and the loss."""
        first = next(iter(self.curves.values()))
        errors = {name: error for name, curve in self.curves.items() if (error := _error(curve))}
        drawn = self._curve("error", "error of predicted patches", errors, {}) if errors else ""
        if "knn/random" not in first:
            return drawn + self._collapse()
        for probe, words in (("linear", "linear probe"), ("knn", "kNN")):
            floors = {name: first[probe + end][1][0] for name, (end, _) in _FLOORS.items()}
            lines = {
                name: (np.r_[0, curve[probe][0]], np.r_[floors[RANDOM], curve[probe][1]])
                for name, curve in self.curves.items()
            }
            drawn = self._curve(probe, f"accuracy, {words}", lines, floors) + drawn
        return f"<div class=pairs>{drawn}</div>{self._collapse()}"

    def _collapse(self) -> str:
        names = ("embedding_cosine", "embedding_std", "embedding_rank")
        rows = [
            (name, *(f"{curve[one][1][-1]:.3f}" for one in names))
            for name, curve in self.curves.items()
            if all(one in curve for one in names)
        ]
        words = "<p>A cosine near 1 or a rank near 1 would mean collapse.</p>" if rows else ""
        return html_table(("at the end", "mean cosine of two images", "spread", "effective rank"), rows) + words

    def reconstructions(self) -> str:
        """The last picture of each run, and its error."""
        figures = []
        for name, run in self.chapter.runs.items():
            pictures, error = sorted((run / "reconstructions").glob("*.png")), _error(self.curves[name])
            words = f"{name}: error of predicted patches {error[1][-1]:.2f}." if error else name
            figures += [self._copy(pictures[-1], words, strip=True, name=name)] if pictures else []
        note = (
            "<p>Input, the patches that are seen, and the patches that are predicted (each with its own mean and "
            "contrast given back). Grey was neither seen nor asked for. 1 is the error of the mean of a patch over its "
            "pixels and bands.</p>"
        )
        return f"<div class=wide>{''.join(figures)}</div>{note}"

    def scores(self) -> str:
        """The table beside its floors, and a plain word where the encoder falls short."""
        if not self.chapter.scores:
            return "<p>Nothing to score: --labels FOLDER needs label rasters of at least two scenes.</p>"
        first, *others = self.chapter.scores
        own = [row for row in first.rows if row.encoder not in _FLOORS]
        beside = [row for one in others for row in one.rows]
        both = replace(first, rows=(*own, *beside, *(row for row in first.rows if row.encoder in _FLOORS)))
        head, *rows = both.cells()
        protocol = first.protocol
        text = (
            f"{protocol['classes']} classes; {protocol['train_images']:,} tiles of some scenes to fit on, "
            f"{protocol['test_images']:,} of other scenes to score, which no encoder has seen; "
            f"{len(protocol['seeds'])} seeds; intervals: {protocol['interval']}. p: {protocol['test']}."
        )
        said = [f"{one}." for one in both.sentences()] + [text]
        said += [_FAIR] if others else []
        return html_table(head, rows) + _paragraphs(said)

    def map(self) -> str:
        """Scene, map, and labels."""
        panels = {"The scene.": self._scene(self.chapter.scene), "The map.": self.made.picture(_SIDE)}
        words = "k-means of patch embeddings: colours are clusters, not land cover."
        if self.truth:
            panels["What the labels say."] = self.truth.picture(_SIDE)
            share, count = agreement(self.made, self.truth)
            words = (
                f"A scene that nothing was trained on: {share:.1%} of {count:,} labelled map pixels "
                "have the right class."
            )
        figures = [self._picture(f"map-{n}", panel, title) for n, (title, panel) in enumerate(panels.items())]
        where = html.escape(os.path.relpath(self.chapter.map, self.root))
        told = f"{self._legend()}{_paragraphs([words])}{self._fitted()}"
        return f"<div class=wide>{''.join(figures)}</div>{told}<p>File: {where}</p>"

    def _fitted(self) -> str:
        """What the map's task learned from, and how good it is on all held-out scenes beside its floors."""
        cover = self.chapter.cover
        if cover is None:
            return ""
        steps, batch = cover.steps
        text = (
            f"The encoder was tuned on labels of the training scenes, cut into {cover.train:,} windows, for {steps:,} "
            f"steps of {batch}, under a linear head that reads what it says of a pixel, and band values. The table has "
            f"it on {cover.pixels:,} labelled pixels of the held-out scenes, beside as many steps from random weights, "
            "a linear head on band values alone, and what the most frequent class would have right."
        )
        rows = [(one, f"{cover.right[one]:.1%}", f"{cover.mean_iou[one]:.3f}") for one in cover.right]
        rows.append((MAJORITY, f"{cover.most_frequent:.1%}", ""))
        return _paragraphs([text]) + html_table(("from", "right", "mean IoU"), rows)

    def _legend(self) -> str:
        present = [number for number in np.unique(self.made.ids) if number < len(self.made.names)]
        chips = (
            f'<span><i style="background: rgb({",".join(map(str, self.made.colours[number]))})"></i>'
            f"{html.escape(self.made.names[number])}</span>"
            for number in present
        )
        return f"<p class=legend>{' '.join(chips)}</p>"

    def words(self) -> str:
        """Where the scene fits the best found, the middle and the worst found word, and where the labels say so."""
        if not self.found:
            return ""
        figures = []
        for one in dict.fromkeys((0, len(self.found) // 2, len(self.found) - 1)):
            found = self.found[one]
            words = f"'{found.word}': average precision {found.precision:.2f}, chance {found.share:.2f}."
            figures.append(self._picture(f"word-{one}", shrink(_heat(found.scores), _SIDE), words))
            truth = np.where(found.there, 255, 40).astype(np.uint8)[..., None].repeat(3, 2)
            figures.append(self._picture(f"word-{one}-labels", shrink(truth, _SIDE), f"'{found.word}' in the labels."))
        rows = [(one.word, f"{one.precision:.2f}", f"{one.share:.2f}") for one in self.found]
        return (
            "<p>The same scene, asked with typed words alone: no probe, no label. Shown are the word that finds its "
            f"land best, the middle one and the worst one.</p><div class=wide>{''.join(figures)}</div>"
            + html_table(("word", "average precision", "chance"), rows)
        )

    def near(self) -> str:
        """Near duplicates, each beside the tile that was kept."""
        figures = self._dropped().get("near duplicates", [])[:2]
        return f"<div class=pairs>{''.join(figures)}</div>" if figures else ""

    def next(self) -> str:
        """The encoder outside geomim, and the same verbs by hand."""
        chapter, scene = self.chapter, self.chapter.scene
        last = next(iter(chapter.runs.values())) / "checkpoints" / "last.ckpt"
        lines = [
            f"timm.create_model('local-dir:{chapter.encoder}', pretrained=True)",
            "geomim demo --scenes MY_RASTERS --labels MY_LABELS --out mine",
            f"geomim corpus inspect {chapter.corpus}",
        ]
        lines += [f'geomim query {scene} --model {last} --text "orchard" --out orchard.tif'] if chapter.found else []
        code = "".join(f"<p><code>{html.escape(line)}</code></p>" for line in lines)
        return (
            f"{code}<p>The first line is plain timm, no geomim: its output differs from geomim's by at most "
            f"{chapter.difference:.1e}. Bands, units, statistics and licences are in the folder's config.json.</p>"
        )

    @property
    def _report(self) -> Path:
        return self.chapter.corpus / "report"

    def _link(self, words: str) -> str:
        link = os.path.relpath(self._report / "index.html", self.root / "report")
        return f'<a href="{html.escape(link)}">{words}</a>'

    def _dropped(self) -> dict[str, list[str]]:
        """Dropped tiles of each kind of reason, beside their keepers; largest files first: clouds show little."""
        table = self.corpus.table(["id", "reason"])
        reasons = dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
        shown: dict[str, list[str]] = {}
        for picture in sorted(self._report.glob("dropped-*.png"), key=lambda one: (-one.stat().st_size, one.name)):
            reason = reasons[int(picture.stem.removeprefix("dropped-"))]
            shown.setdefault(kind_of(reason), []).append(self._copy(picture, f"Dropped: {reason}."))
        return shown

    def _limits(self) -> np.ndarray:
        """Of one stretch for all tiles."""
        size = self.corpus.sizes[0]
        image, mask = (self.corpus.array(name, size) for name in ("image", "valid"))
        assert image is not None
        slots = [s for s in self.corpus.table(["slot"])["slot"].to_pylist() if s >= 0][::8]
        pixels = image.read(slots)
        valid = np.ones((len(slots), *pixels.shape[2:]), bool) if mask is None else mask.read(slots).astype(bool)
        return display_limits(pixels, valid)

    def _scene(self, uri: str) -> np.ndarray:
        group = self.chapter.group
        with open_scene(uri, get_sensor(group.sensor) if group.sensor else None, group.bands) as scene:
            numbers, valid = scene.read_valid(Window(0, 0, scene.width, scene.height))
            limits = display_limits(numbers[None], valid[None])
            step = max(1, max(scene.height, scene.width) // _SIDE)
            return composite(numbers[:, ::step, ::step], scene.sensor, valid[::step, ::step], limits)

    def _picture(self, name: str, picture: np.ndarray, words: str, strip: bool = True) -> str:
        name = f"{self.chapter.group.name}-{name}.png"
        save_picture(self.folder / name, picture)
        return _figure(words, name, strip)

    def _copy(self, picture: Path, words: str, strip: bool = False, name: str = "") -> str:
        target = f"{self.chapter.group.name}-{name}{picture.name}"
        shutil.copyfile(picture, self.folder / target)
        return _figure(words, target, strip)

    def _curve(self, name: str, label: str, lines: Mapping[str, Any], floors: Mapping[str, float]) -> str:
        name = f"{self.chapter.group.name}-{name}.png"
        figure = Figure(figsize=(5, 3.2), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel="minutes of training", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        for colour, (title, points) in zip(_COLOURS, lines.items(), strict=False):
            axes.plot(*points, marker="o" if floors else "", color=colour, label=title)
        for floor, value in floors.items():
            axes.axhline(value, linestyle="--", linewidth=1, color=_FLOORS[floor][1], label=floor)
        figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=2)
        figure.savefig(self.folder / name, dpi=130)
        return _figure(f"{label[0].upper()}{label[1:]}.", name)


def _verdict(scores: Sequence[Scores]) -> list[str]:
    """KNN of the first encoder beside its floors and beside the others, with a plain word on who is ahead."""
    first = scores[0]
    own = [_row(one, "knn") for one in scores]
    floors = [row for floor in (RANDOM, PIXELS) if (row := first.find(floor, "knn"))]
    beside = ", ".join(f"{row.encoder} {row.accuracy:.0%}" for row in floors)
    said = [
        f"The frozen encoder of {own[0].encoder} has {own[0].accuracy:.0%} of held-out tiles right (kNN); {beside}."
    ]
    for other in own[1:]:
        assert own[0].correct is not None and other.correct is not None
        p = mcnemar(own[0].correct, other.correct)
        more = own[0].accuracy > other.accuracy
        word = "no difference is shown" if p >= LEVEL else f"{own[0].encoder} is {'ahead' if more else 'behind'}"
        said.append(f"{other.encoder}, which had the same time and no sentences, has {other.accuracy:.0%}: {word}.")
    return [*said, *(f"{one}." for one in first.warnings())]


def _error(curve: Mapping[str, Any]) -> Any:
    """Minutes and error of predicted pixels: of a recipe with other terms in its own column, else the loss."""
    return curve.get("pixels", curve.get("loss"))


def _figure(words: str, name: str, strip: bool = True) -> str:
    text = html_figure(words, name)
    return text.replace("<figure>", "<figure class=strip>") if strip else text


def _row(scores: Scores, probe: str) -> Row:
    return next(row for row in scores.rows if row.probe == probe)


def _paragraphs(sentences: Iterable[str]) -> str:
    return "".join(f"<p>{html.escape(one)}</p>" for one in sentences if one)


def _heat(scores: np.ndarray) -> np.ndarray:
    """Scores `(h, w)` in colours, grey where there is none."""
    seen = np.isfinite(scores)
    low, high = np.percentile(scores[seen], [1, 99.5])
    colours = colormaps["inferno"](np.clip((np.nan_to_num(scores) - low) / max(high - low, 1e-9), 0, 1))
    return np.where(seen[..., None], 255 * colours[..., :3], 96).astype(np.uint8)
