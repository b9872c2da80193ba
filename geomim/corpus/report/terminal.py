"""What a corpus holds, printed in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from geomim.corpus.report import sections
from geomim.corpus.report.facts import as_funnel, funnel, gather
from geomim.corpus.store import Corpus


def print_funnel(corpus: Corpus, console: Console) -> None:
    """Print what became of the tiles, and where to look."""
    _print_counts(corpus, console, funnel(corpus))


def _print_counts(corpus: Corpus, console: Console, counts: dict[str, int]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, count in counts.items():
        share = 100 * count / max(counts["tiles"], 1)
        table.add_row(name, f"{count:,}", "" if name == "tiles" else f"{share:.2f} %")
    if corpus.meta.get("shared") is not None:
        table.add_row("kept pairs in two splits", f"{corpus.meta['shared']:,}", "train beside val or test")
    skipped = len(corpus.skipped())
    table.add_row("sources skipped", f"{skipped:,}", "listed in skipped.parquet" if skipped else "")
    console.print(table)
    shares = pc.starts_with(pc.field("reason"), "shares ")
    if corpus.meta["statistics"]["split"] == "all" and corpus.rows().count_rows(filter=shares):
        console.print(
            "no tile is left to train on: each shares something with val or test; try corpus split --by cluster"
        )
    console.print(f"corpus: {corpus.path}\nlook at: {corpus.path / 'report' / 'index.html'}", soft_wrap=True)


def print_summary(corpus: Corpus, console: Console) -> None:
    """Print the funnel, sizes, sensor, statistics, classes, benchmarks, licences and skipped sources."""
    facts = gather(corpus)
    _print_counts(corpus, console, as_funnel(facts.tiles, facts.kinds))
    sizes = ", ".join(f"{size} px: {values['tiles']:,} stored" for size, values in corpus.meta["sizes"].items())
    console.print(f"sizes: {sizes}", soft_wrap=True)
    statistics = corpus.meta["statistics"]
    title = f"{corpus.sensor.name}, {statistics['pixels']:,} pixels a band ({statistics['split']})"
    console.print(table_of(title, sections.BAND_HEAD, sections.band_rows(corpus)))
    if corpus.classes:
        head, *rows = sections.class_rows(corpus, facts, "(none)")
        console.print(table_of("classes", head, rows))
    else:
        console.print("kept: " + ", ".join(f"{s} {facts.classes[s].total():,}" for s in sections.ordered_splits(facts)))
    groups, dropped = facts.grouped
    if groups:
        largest = len(facts.clusters[0][1])
        console.print(f"duplicates: {dropped:,} dropped for {groups:,} kept tiles, up to {largest:,} for one")
    if rows := sections.audit_rows(corpus):
        console.print(table_of("benchmarks", sections.AUDIT_HEAD, rows))
        console.print(f"evidence: {corpus.path / 'audit' / 'index.html'}", soft_wrap=True)
    console.print(table_of("origins", sections.ORIGIN_HEAD, sections.origin_rows(facts)))
    if corpus.contract.attributions:
        console.print(f"attributions: {', '.join(corpus.contract.attributions)}", soft_wrap=True)
    for row in corpus.skipped().slice(0, 20).to_pylist():
        console.print(f"skipped {row['source']}: {row['reason']}", soft_wrap=True, markup=False)
    if len(corpus.skipped()) > 20:
        console.print(f"... and {len(corpus.skipped()) - 20:,} more in {corpus.path / 'skipped.parquet'}")


def table_of(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text."""
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
