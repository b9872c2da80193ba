"""What a corpus holds, printed in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from geomim.corpus.report.facts import Facts, funnel, gather
from geomim.corpus.report.sections import audit_row, ordered_splits, origin_rows, read_audit
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
    if corpus.meta.get("shared") is not None and corpus.meta["statistics"]["split"] == "all":
        console.print(
            "no tile is left to train on: each shares something with val or test; try corpus split --by cluster"
        )
    console.print(f"corpus: {corpus.path}\nlook at: {corpus.path / 'report' / 'index.html'}", soft_wrap=True)


def print_summary(corpus: Corpus, console: Console) -> None:
    """Print the funnel, sizes, sensor, statistics, classes, benchmarks, licences and skipped sources."""
    from geomim.corpus.report.facts import as_funnel

    facts = gather(corpus)
    _print_counts(corpus, console, as_funnel(facts.tiles, facts.kinds))
    sizes = ", ".join(f"{size} px: {values['tiles']:,} stored" for size, values in corpus.meta["sizes"].items())
    console.print(f"sizes: {sizes}", soft_wrap=True)
    console.print(_statistics_table(corpus))
    _print_classes(corpus, facts, console)
    groups, dropped = facts.grouped
    if groups:
        largest = len(facts.clusters[0][1])
        console.print(f"duplicates: {dropped:,} dropped for {groups:,} kept tiles, up to {largest:,} for one")
    _print_audit(corpus, console)
    table = Table("dataset", "licence", "commercial use", "tiles", "kept", title="origins", title_justify="left")
    for row in origin_rows(facts):
        table.add_row(*row)
    console.print(table)
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


def _print_classes(corpus: Corpus, facts: Facts, console: Console) -> None:
    splits = ordered_splits(facts)
    if not corpus.classes:
        console.print("kept: " + ", ".join(f"{split} {facts.classes[split].total():,}" for split in splits))
        return
    table = Table("class", *(f"kept, {split}" for split in splits), title="classes", title_justify="left")
    for name in [*corpus.classes, None]:
        if name is not None or any(facts.classes[split][None] for split in splits):
            table.add_row(name or "(none)", *(f"{facts.classes[split][name]:,}" for split in splits))
    console.print(table)


def _print_audit(corpus: Corpus, console: Console) -> None:
    records = read_audit(corpus)
    if not records:
        return
    table = Table("benchmark", "splits", "images", "tiles that touch it", "", title="benchmarks", title_justify="left")
    for record in records:
        table.add_row(*audit_row(record))
    console.print(table)
    console.print(f"evidence: {corpus.path / 'audit' / 'index.html'}", soft_wrap=True)
