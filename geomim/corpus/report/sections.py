"""Sections of the report in words and numbers."""

from __future__ import annotations

import html
from pathlib import Path

from geomim.corpus.report.facts import Facts, as_funnel
from geomim.corpus.report.page import html_table
from geomim.corpus.store import Corpus

_LISTED = 200  # rows of a table
BAND_HEAD = ("band", "wavelength (nm)", "mean", "std")
ORIGIN_HEAD = ("dataset", "licence", "commercial use", "tiles", "kept")
AUDIT_HEAD = ("benchmark", "splits", "images", "tiles that touch it", "")


def funnel_html(facts: Facts) -> str:
    """What became of the tiles, as bars."""
    rows = []
    for name, count in as_funnel(facts.tiles, facts.kinds).items():
        share = 100 * count / max(facts.tiles, 1)
        style = "kept" if name == "kept" else "all" if name == "tiles" else "out"
        bar = f'<div class="bar {style}" style="width:{share:.2f}%"></div>' if count else ""
        numbers = f"<td class=n>{count:,}</td><td class=n>{share:.2f} %</td>"
        rows.append(f"<tr><td>{html.escape(name)}</td>{numbers}<td class=w>{bar}</td></tr>")
    kept, low = facts.low_information
    words = (
        f"<p>Tiles with little to see (water, sand, haze): {low:,}, of which {kept:,} are kept. They are never called "
        "near duplicates of each other.</p>"
    )
    return f"<table>{''.join(rows)}</table>{words if low else ''}"


def sizes_html(corpus: Corpus) -> str:
    """Tiles by size, where there are several."""
    sizes = corpus.meta["sizes"]
    if len(sizes) < 2:
        return ""
    rows = [
        (f"{size} x {size}", f"{n['tiles']:,}", f"{n['kept']:,}" if "kept" in n else "") for size, n in sizes.items()
    ]
    return html_table(("pixels", "stored", "kept"), rows)


def bands_html(corpus: Corpus) -> str:
    """Bands with wavelength, mean and standard deviation."""
    which = "kept tiles of the train split" if corpus.meta["statistics"]["split"] == "train" else "all kept tiles"
    name = html.escape(corpus.sensor.name)
    text = f"<p>Sensor {name}; mean and standard deviation of stored numbers over {which}.</p>"
    return text + html_table(BAND_HEAD, band_rows(corpus))


def band_rows(corpus: Corpus) -> list[tuple[str, ...]]:
    """The same of each band in words."""
    numbers = zip(corpus.sensor.bands, corpus.contract.mean, corpus.contract.std, strict=True)
    return [
        (band.name, "" if band.wavelength is None else f"{band.wavelength:g}", f"{mean:.5g}", f"{std:.5g}")
        for band, mean, std in numbers
    ]


def classes_html(corpus: Corpus, facts: Facts) -> str:
    """Kept tiles by class and split."""
    head, *rows = class_rows(corpus, facts, "(no class)")
    if len(rows) > 1:
        rows.append(("together", *(f"{facts.classes[split].total():,}" for split in ordered_splits(facts))))
    return html_table(head, rows)


def class_rows(corpus: Corpus, facts: Facts, unnamed: str) -> list[tuple[str, ...]]:
    """The same as rows of words, the head first; `unnamed` stands for no class."""
    splits = ordered_splits(facts)
    names: list[str | None] = [*corpus.classes]
    if not corpus.classes or any(facts.classes[split][None] for split in splits):
        names.append(None)
    rows = [(name or unnamed, *(f"{facts.classes[split][name]:,}" for split in splits)) for name in names]
    return [("class", *(f"kept, {split}" for split in splits)), *rows]


def ordered_splits(facts: Facts) -> list[str]:
    """The splits that occur, in the usual order."""
    usual = [split for split in ("train", "val", "test") if split in facts.classes]
    return usual + sorted(facts.classes.keys() - set(usual))


def joined_html(corpus: Corpus) -> str:
    """How tables and folders of rasters were joined with the sources."""
    return "".join(f"<p>{html.escape(said)}</p>" for said in corpus.meta.get("joined", []))


def skipped_html(corpus: Corpus) -> str:
    """Sources that could not be used."""
    rows = [(Path(row["source"]).name, row["reason"]) for row in corpus.skipped().to_pylist()]
    more = f"<p>And {len(rows) - _LISTED:,} more in skipped.parquet.</p>" if len(rows) > _LISTED else ""
    return html_table(("source", "why"), rows[:_LISTED]) + more if rows else ""


def licences_html(corpus: Corpus, facts: Facts) -> str:
    """Where the tiles come from and what may be done with them."""
    origins = html_table(ORIGIN_HEAD, origin_rows(facts))
    rows = [
        ("sources", f"{facts.sources:,} cut, {len(corpus.skipped()):,} skipped"),
        ("given as", ", ".join(map(str, corpus.meta["recipe"].get("source") or []))),
        ("attributions", ", ".join(corpus.contract.attributions) or "none stated"),
        ("made by", f"geomim {corpus.meta['geomim_version']}"),
    ]
    warning = (
        "" if corpus.contract.licences else "<p>No licence is stated: find out before you share tiles or weights.</p>"
    )
    return origins + warning + html_table((), rows)


def origin_rows(facts: Facts) -> list[tuple[str, ...]]:
    """Dataset, licence, commercial use, tiles and kept tiles, most tiles first."""
    rows: list[tuple[str, ...]] = []
    for (dataset, licence, closed), (tiles, kept) in sorted(facts.origins.items(), key=lambda one: -one[1][0]):
        allowed = "not allowed, or not known to be" if closed else "allowed" if licence else "not known"
        rows.append((dataset or "files", licence or "none stated", allowed, f"{tiles:,}", f"{kept:,}"))
    return rows[:_LISTED]


def audit_html(corpus: Corpus) -> str:
    """Which benchmarks the corpus was kept clear of, and where the evidence lies."""
    if not (rows := audit_rows(corpus)):
        return "<p>This corpus was not compared with any benchmark: <code>geomim corpus exclude</code> does that.</p>"
    link = '<p><a href="../audit/index.html">The evidence</a>, with pictures of the matches.</p>'
    return html_table(AUDIT_HEAD, rows) + link


def audit_rows(corpus: Corpus) -> list[tuple[str, ...]]:
    """Benchmarks that the corpus was compared with, in words."""
    rows = []
    for record in corpus.evidence():
        done = "excluded" if record["excluded"] else "reported only"
        unreadable = len(record["unreadable"])
        state = f"{done}; {unreadable} images not readable" if unreadable else done
        splits = ", ".join(record["splits"]) or "all"
        rows.append((record["benchmark"], splits, f"{record['images']:,}", f"{record['tiles']:,}", state))
    return rows
