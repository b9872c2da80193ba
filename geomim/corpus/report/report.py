"""What was kept and dropped, and why: in the terminal, and as a page to look at."""

from __future__ import annotations

import html
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from geomim.corpus.report.page import html_page, html_table
from geomim.corpus.store import Corpus

KINDS = {
    "valid fraction": "too few valid pixels",
    "no valid pixel": "too few valid pixels",
    "exact duplicate": "exact duplicates",
    "near duplicate": "near duplicates",
}
"""How a reason begins, and the words for all tiles that have it."""
_EXAMPLES = 12  # of each kind on the page
_SAMPLE = 48  # kept tiles on the page
_PIXELS = 128  # tiles of the histograms
_FOOTPRINTS = 4000  # outlines on the map


def funnel(corpus: Corpus) -> dict[str, int]:
    """How many tiles were seen, dropped for each kind of reason, and kept, in this order."""
    table = corpus.table(["kept", "reason"])
    counts = Counter(map(kind_of, table.filter(pc.invert(table["kept"]))["reason"].to_pylist()))
    kinds = dict.fromkeys(KINDS.values())
    dropped = {kind: counts[kind] for kind in [*kinds, *sorted(counts.keys() - kinds.keys())]}
    return {"tiles": len(table), **dropped, "kept": len(table) - sum(dropped.values())}


def kind_of(reason: str) -> str:
    """The kind that a tile's reason belongs to; the reason itself where it belongs to none."""
    return next((words for begin, words in KINDS.items() if reason.startswith(begin)), reason)


def print_funnel(corpus: Corpus, console: Console) -> None:
    """Print what became of the tiles, and where to look."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    counts = funnel(corpus)
    for name, count in counts.items():
        share = 100 * count / max(counts["tiles"], 1)
        table.add_row(name, f"{count:,}", "" if name == "tiles" else f"{share:.2f} %")
    skipped = len(corpus.skipped())
    table.add_row("sources skipped", f"{skipped:,}", "listed in skipped.parquet" if skipped else "")
    console.print(table)
    console.print(f"corpus: {corpus.path}\nlook at: {corpus.path / 'report' / 'index.html'}", soft_wrap=True)


def print_summary(corpus: Corpus, console: Console) -> None:
    """Print the funnel, sizes, sensor, statistics, classes, licences and skipped sources."""
    print_funnel(corpus, console)
    sizes = ", ".join(f"{size} px: {values['tiles']:,} stored" for size, values in corpus.meta["sizes"].items())
    console.print(f"sizes: {sizes}", soft_wrap=True)
    console.print(_statistics_table(corpus))
    counts = class_counts(corpus)
    if corpus.classes:
        table = Table("class", *(f"kept, {split}" for split in counts), title="classes", title_justify="left")
        for name in [*corpus.classes, None]:
            cells = [f"{counts[split][name]:,}" for split in counts]
            if name is not None or any(counts[split][None] for split in counts):
                table.add_row(name or "(none)", *cells)
        console.print(table)
    else:
        console.print("kept: " + ", ".join(f"{split} {sum(number.values()):,}" for split, number in counts.items()))
    console.print(f"licences: {', '.join(corpus.contract.licences) or 'none stated'}", soft_wrap=True)
    if corpus.contract.attributions:
        console.print(f"attributions: {', '.join(corpus.contract.attributions)}", soft_wrap=True)
    for row in corpus.skipped().slice(0, 20).to_pylist():
        console.print(f"skipped {row['source']}: {row['reason']}", soft_wrap=True, markup=False)
    if len(corpus.skipped()) > 20:
        console.print(f"... and {len(corpus.skipped()) - 20:,} more in {corpus.path / 'skipped.parquet'}")


def _statistics_table(corpus: Corpus) -> Table:
    statistics = corpus.meta["statistics"]
    title = f"{corpus.sensor.name}, {statistics['pixels']:,} pixels a band ({statistics['split']})"
    table = Table("band", "wavelength (nm)", "mean", "std", title=title, title_justify="left")
    for band, mean, std in zip(corpus.sensor.bands, corpus.contract.mean, corpus.contract.std, strict=True):
        table.add_row(band.name, "" if band.wavelength is None else f"{band.wavelength:g}", f"{mean:.5g}", f"{std:.5g}")
    return table


def class_counts(corpus: Corpus) -> dict[str, Counter[str | None]]:
    """Kept tiles by split, then by class (None for tiles without one)."""
    table = corpus.table(["split", "label"], where=pc.field("kept"))
    counts: dict[str, Counter[str | None]] = {}
    for split in ("train", "val", "test"):
        labels = table.filter(pc.equal(table["split"], split))["label"]
        if len(labels):
            counts[split] = Counter(labels.to_pylist())
    return counts


def write_report(path: str | Path) -> Path:
    """Write `report/index.html` with its pictures into a corpus.

    Args:
        path: Folder of the corpus.

    Returns:
        The page.
    """
    corpus = Corpus.open(path)
    part, folder = corpus.path / "report.part", corpus.path / "report"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    columns = ["id", "slot", "size", "kept", "reason", "duplicate_of", "source", "label"]
    table = corpus.table(columns)
    pictures = _Pictures(corpus, part, table)
    sections = [
        ("What became of the tiles", _funnel_html(corpus)),
        ("Kept tiles, a sample", pictures.kept()),
        *pictures.dropped(),
        ("Bands", _bands_html(corpus) + pictures.histograms()),
        ("Where they lie", pictures.footprints()),
        ("Classes and splits", _classes_html(corpus)),
        ("Skipped sources", _skipped_html(corpus)),
        ("Sources and licences", _licences_html(corpus, table)),
    ]
    title = f"Corpus {corpus.path.resolve().name}"
    (part / "index.html").write_text(html_page(title, sections), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder / "index.html"


class _Pictures:
    """Sections with pictures; each is empty where there is nothing to show."""

    def __init__(self, corpus: Corpus, folder: Path, table: pa.Table) -> None:
        from geomim.corpus.report import (
            pictures,  # here: matplotlib takes a second, and most runs of a verb draw nothing
        )

        self._draw = pictures
        self._corpus, self._folder, self._table = corpus, folder, table
        self._slots = dict(zip(table["id"].to_pylist(), table["slot"].to_pylist(), strict=True))
        self._size = corpus.sizes[0]
        image = corpus.array("image", self._size)
        assert image is not None
        self._image, self._valid = image, corpus.array("valid", self._size)
        self._limits = pictures.display_limits(*self._read(self._sample(_PIXELS)))

    def _read(self, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        pixels = self._image.read(slots)
        valid = self._valid.read(slots) if self._valid else np.ones((len(slots), *pixels.shape[2:]), bool)
        return pixels, valid

    def _tiles(self, slots: Sequence[int]) -> list[np.ndarray]:
        pixels, valid = self._read(slots)
        return [
            self._draw.composite(tile, self._corpus.sensor, mask, self._limits)
            for tile, mask in zip(pixels, valid, strict=True)
        ]

    def _sample(self, count: int) -> list[int]:
        slots = self._table.filter(self._table["kept"])["slot"].to_numpy()
        return slots[np.unique(np.linspace(0, len(slots) - 1, min(count, len(slots))).astype(int))].tolist()

    def kept(self) -> str:
        """Tiles spread evenly over the corpus."""
        size = self._size
        count = max(8, min(_SAMPLE, 800 * 800 * 4 // size**2))
        self._draw.save_picture(
            self._folder / "kept.png",
            self._draw.contact_sheet(self._tiles(self._sample(count)), 12 if size <= 128 else 6),
        )
        return '<div class="card"><img src="kept.png" alt="sample of kept tiles"></div>'

    def dropped(self) -> list[tuple[str, str]]:
        """A section a kind: dropped tiles, each beside its keeper where it has one."""
        rows = self._table.filter(pc.invert(self._table["kept"])).to_pylist()
        sections = []
        for kind in dict.fromkeys(kind_of(row["reason"]) for row in rows):
            some = [row for row in rows if kind_of(row["reason"]) == kind]
            figures = "".join(map(self._pair, some[:_EXAMPLES]))
            more = f"<p>{len(some):,} in all.</p>" if len(some) > _EXAMPLES else ""
            sections.append((f"Dropped: {kind}", f'<div class="pairs">{figures}</div>{more}'))
        return sections

    def _pair(self, row: dict) -> str:
        keeper = self._slots.get(row["duplicate_of"], -1)
        slots = [slot for slot in (row["slot"], keeper) if slot >= 0]
        caption = html.escape(f"{row['id']} ({Path(row['source']).name}): {row['reason']}")
        if row["slot"] < 0:
            caption += "; its pixels are those of the tile shown" if slots else "; same pixels as another such tile"
        if not slots:
            return f"<figure><figcaption>{caption}</figcaption></figure>"
        name = f"dropped-{row['id']}.png"
        self._draw.save_picture(self._folder / name, self._draw.contact_sheet(self._tiles(slots), 2))
        return f'<figure><img src="{name}" alt="tile {row["id"]}"><figcaption>{caption}</figcaption></figure>'

    def histograms(self) -> str:
        """How the numbers of each band are distributed over kept tiles."""
        pixels, valid = self._read(self._sample(_PIXELS))
        self._draw.save_histograms(self._folder / "histograms.png", pixels, valid, self._corpus.sensor)
        return '<div class="card"><img src="histograms.png" alt="histogram of each band"></div>'

    def footprints(self) -> str:
        """A map, where tiles have a place on Earth."""
        table = self._corpus.table(["kept", "geometry"], where=pc.field("geometry").is_valid())
        if not len(table):
            return ""
        step = -(-len(table) // _FOOTPRINTS)
        table = table.take(np.arange(0, len(table), step))
        kept = table.filter(table["kept"])["geometry"].to_pylist()
        dropped = table.filter(pc.invert(table["kept"]))["geometry"].to_pylist()
        self._draw.save_footprints(self._folder / "footprints.png", kept, dropped)
        note = f"<p>Every {step}. footprint is drawn.</p>" if step > 1 else ""
        return f'<div class="card"><img src="footprints.png" alt="map of footprints"></div>{note}'


def _funnel_html(corpus: Corpus) -> str:
    counts = funnel(corpus)
    rows = []
    for name, count in counts.items():
        share = 100 * count / max(counts["tiles"], 1)
        style = "kept" if name == "kept" else "all" if name == "tiles" else "out"
        bar = f'<div class="bar {style}" style="width:{share:.2f}%"></div>' if count else ""
        rows.append(
            f"<tr><td>{name}</td><td class=n>{count:,}</td><td class=n>{share:.2f} %</td><td class=w>{bar}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _bands_html(corpus: Corpus) -> str:
    statistics = corpus.meta["statistics"]
    sensor = corpus.sensor
    rows = [
        (band.name, "" if band.wavelength is None else f"{band.wavelength:g}", f"{mean:.5g}", f"{std:.5g}")
        for band, mean, std in zip(sensor.bands, corpus.contract.mean, corpus.contract.std, strict=True)
    ]
    which = "kept tiles of the train split" if statistics["split"] == "train" else "all kept tiles"
    text = f"<p>Sensor {html.escape(sensor.name)}; mean and standard deviation of stored numbers over {which}.</p>"
    return text + html_table(("band", "wavelength (nm)", "mean", "std"), rows)


def _classes_html(corpus: Corpus) -> str:
    counts = class_counts(corpus)
    names: list[str | None] = [*corpus.classes]
    if not corpus.classes or any(number[None] for number in counts.values()):
        names.append(None)
    rows = [(name or "(no class)", *(f"{counts[split][name]:,}" for split in counts)) for name in names]
    return html_table(("class", *(f"kept, {split}" for split in counts)), rows)


def _skipped_html(corpus: Corpus) -> str:
    rows = [(Path(row["source"]).name, row["reason"]) for row in corpus.skipped().to_pylist()]
    more = f"<p>And {len(rows) - 200:,} more in skipped.parquet.</p>" if len(rows) > 200 else ""
    return html_table(("source", "why"), rows[:200]) + more if rows else ""


def _licences_html(corpus: Corpus, table: pa.Table) -> str:
    rows = [
        ("sources", f"{len(table['source'].unique()):,} cut, {len(corpus.skipped()):,} skipped"),
        ("given as", ", ".join(corpus.meta["recipe"]["source"])),
        ("licences", ", ".join(corpus.contract.licences) or "none stated: find out before you share tiles or weights"),
        ("attributions", ", ".join(corpus.contract.attributions) or "none stated"),
        ("made by", f"geomim {corpus.meta['geomim_version']}"),
    ]
    return html_table((), rows)
