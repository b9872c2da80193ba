"""`geomim corpus audit A B`: what two sets of images have in common, with pictures to judge it by."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from geomim import __version__
from geomim.corpus.assemble import working
from geomim.corpus.comparison.collection import Collection, collect
from geomim.corpus.comparison.matching import Footprint, check_buffer, match
from geomim.corpus.comparison.parts import Crops
from geomim.corpus.comparison.sides import Side, common_bands, same_corpus, side
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import stage_folder
from geomim.corpus.report.matches import counts, counts_html, counts_table, describe, figures, unreadable_html
from geomim.corpus.report.page import html_page, html_table
from geomim.corpus.store import holds_corpus, write_json, write_table
from geomim.errors import CorpusError, InputError
from geomim.sensors import match_bands


def audit(
    a: str,
    b: str,
    out: str = "audit",
    radius: int = 8,
    crops: Crops = "thorough",
    footprint: Footprint = "any",
    buffer: float = 0.0,
    tile: int = 256,
    sensor: str | None = None,
    bands: list[str] | None = None,
    skip_unreadable: bool = False,
    workers: int | None = None,
) -> Path:
    """Find what two sets of images have in common: copies, near-copies in any orientation, overlaps, equal places.

    Either set is a folder, a pattern, a raster, CARD@ROOT, or a corpus; `:train+test` behind it takes some of its
    splits, `NAME=` before it names it. A set beside itself is searched for pairs within it.

    Args:
        a: One set.
        b: The other.
        out: Folder for the page, the pictures and the list of matches; an earlier audit there is replaced.
        radius: Bits, 0 to 12, in which perceptual hashes may differ.
        crops: How to look for parts that overlap at any offset: `thorough`, `fast` (finds the larger ones) or `off`.
        footprint: Which footprints count: `any`, those of one `acquisition` (same sensor, same day), or `off`.
        buffer: Metres by which the footprints of `b` grow.
        tile: Pixels; larger images are also compared in tiles of this size.
        sensor: Name of a built-in sensor or a YAML file, for rasters that do not name their bands.
        bands: Names of the rasters' bands in file order (`-` ignores one).
        skip_unreadable: Be content where images cannot be read; the page lists them all the same.
        workers: Processes; one a core where not given. Does not change the outcome.

    Returns:
        The page.

    Raises:
        InputError: There is no such set, or nothing of it can be read; or a part of it cannot, so that the outcome,
            which is written, is not complete; or `buffer` or `tile` makes no sense.
        CorpusError: `out` holds something else, or is where a corpus keeps the evidence of its exclusions.
    """
    folder = Path(out)
    _check_free(folder)
    check_buffer(buffer)
    if tile < 1:
        raise InputError(f"--tile is a number of pixels, 1 or more; given {tile}")
    console = Console(stderr=True, markup=False, highlight=False)
    left, right = side(a, sensor=sensor, bands=bands), side(b, sensor=sensor, bands=bands)
    with working(workers) as pool:
        one, two = collect_both(left, right, tile, pool)
        found = match(one, two, pool, radius, crops, footprint, buffer)
        asked = {"radius": radius, "crops": crops, "footprint": footprint, "buffer": buffer, "tile": tile}
        described = describe(found, one, two)
        title = f"Pairs within {one.name}" if one is two else f"{one.name} and {two.name}"
        sides = {"a": facts(one)} if one is two else {"a": facts(one), "b": facts(two)}
        record = {"geomim_version": __version__, "asked": asked, **sides}
        write_evidence(folder, title, record, found, described, one, two)
    Console(markup=False, highlight=False).print(counts_table(described, f"{one.name} and {two.name}"))
    console.print(f"look at: {folder / 'index.html'}", soft_wrap=True)
    check_readable([one, two], skip_unreadable, folder)
    return folder / "index.html"


def _check_free(folder: Path) -> None:
    """Refuse to write over what is no outcome of an earlier audit."""
    here = folder.resolve()
    if any(one.name == "audit" and holds_corpus(one.parent) for one in (here, *here.parents)):
        raise CorpusError(f"'{folder}' is where a corpus keeps the evidence of its exclusions: give another --out")
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        mine = "a" in json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        mine = not os.path.lexists(folder)
    if not mine:
        raise CorpusError(f"'{folder}' holds files that are no audit: give another --out")


def collect_both(left: Side, right: Side, tile: int, workers: Workers) -> tuple[Collection, Collection]:
    """Fingerprints of two sides over the bands that both have; one collection where both are the same."""
    first, second = left.found(), right.found()
    bands = common_bands(first, second)
    one = collect(left, bands, tile, workers)
    if _same(left, right):
        return one, one
    theirs = common_bands(second, first)  # the other side may call the same bands otherwise
    if len(theirs) != len(bands):
        raise InputError(
            f"the bands of '{left.given}' and '{right.given}' cannot be told apart: name them with --bands"
        )
    if first and second and bands:
        theirs = tuple(second.bands[place].name for place in match_bands(first.select(bands).bands, second.bands))
    return one, collect(right, theirs, tile, workers)


def _same(left: Side, right: Side) -> bool:
    if left.corpus is not None or right.corpus is not None:
        return same_corpus(left.corpus, right.corpus) and left.splits == right.splits
    uris = [[os.path.realpath(item.uri) for item in one.items] for one in (left, right)]
    return uris[0] == uris[1]


def check_readable(sides: Sequence[Collection], accept: bool, where: Path) -> None:
    """Refuse to call an outcome whole for which images could not be read.

    Raises:
        InputError: Some could not, and nobody said that this is fine.
    """
    for one in sides:
        if one.unreadable and not accept:
            uri, reason = one.unreadable[0]
            raise InputError(
                f"{len(one.unreadable)} of {one.items + len(one.unreadable)} images of '{one.name}' cannot be read, "
                f"such as '{uri}' ({reason}): what was found is in '{where}', but it is not complete; mend them, or "
                "accept it with --skip-unreadable"
            )


def facts(one: Collection) -> dict[str, Any]:
    """What was looked at on one side, for the record."""
    return {
        "name": one.name,
        "images": one.items,
        "views": len(one),
        "unreadable": [{"image": Path(uri).name, "reason": reason} for uri, reason in one.unreadable],
    }


def write_evidence(
    folder: Path,
    title: str,
    record: dict[str, Any],
    found: pa.Table,
    described: pa.Table,
    one: Collection,
    two: Collection,
    lead: Sequence[tuple[str, str]] = (),
    matches: str = "Matches",
) -> None:
    """Page, pictures and lists of one comparison, aside and then renamed.

    Args:
        folder: Where to; what is there is replaced.
        title: Of the page.
        record: Goes to `audit.json` with the counts; its `asked` says how the sides were compared.
        found: Rows of `MATCHES`.
        described: The same from `describe`.
        one: One side.
        two: The other.
        lead: Sections of the page before the usual ones.
        matches: Heading of the pictures.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    part = stage_folder(folder)
    for sentence in _undated(one, two, record["asked"]):
        Console(stderr=True, markup=False, highlight=False).print(sentence, soft_wrap=True)
    write_table(part / "matches.parquet", described)
    sections = [
        *lead,
        ("What was compared", _compared_html(one, two, record["asked"])),
        ("What was found", counts_html(described)),
        ("Not readable", unreadable_html([one] if one is two else [one, two])),
        (matches, figures(found, one, two, part, "matches.parquet")),
    ]
    (part / "index.html").write_text(html_page(title, sections), encoding="utf-8")
    names = ("kind", "distance", "windows", "images")
    counted = [dict(zip(names, row, strict=True)) for row in counts(described)]
    write_json(part / "audit.json", record | {"found": counted})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


_CROPS = {
    "off": "; overlapping parts were not looked for.",
    "fast": "; parts that overlap at any offset, where two corners agree.",
    "thorough": "; parts that overlap at any offset, where a corner agrees.",
}


def _undated(one: Collection, two: Collection, asked: dict[str, Any]) -> list[str]:
    """What was not compared by place because nobody knows its day, in words."""
    said = []
    for each in ([one] if one is two else [one, two]) if asked["footprint"] == "acquisition" else []:
        placed = each.views["geometry"].is_valid()
        if lacking := pc.sum(pc.and_(placed, each.views["time"].is_null())).as_py():
            said.append(
                f"{lacking:,} of {pc.sum(placed).as_py():,} windows of {each.name} with a place have no date, so that "
                "`acquisition` finds none of their footprints (`any` does)"
            )
    return said


def _compared_html(one: Collection, two: Collection, asked: dict[str, Any]) -> str:
    """Both sides, and how they were compared, in words."""
    rows, sides = [], [one] if one is two else [one, two]
    for each in sides:
        placed = each.views["geometry"].null_count < len(each)
        rows.append(
            (
                each.name,
                f"{each.items:,} images seen as {len(each):,} windows",
                f"{len(each.unreadable):,} not readable" if each.unreadable else "all readable",
                "with a place on Earth" if placed else "without a place on Earth",
            )
        )
    if one.sensor is None:
        how = "The two have no band in common, so only places were compared."
    else:
        how = (
            f"Bands compared: {', '.join(one.sensor.names)}. Perceptual hashes within {asked['radius']} bits in eight "
            f"orientations, each candidate checked on its pixels" + _CROPS[asked["crops"]]
        )
    low = sum(sum(each.views["low_information"].to_pylist()) for each in sides)
    if low and one.sensor is not None:
        how += f" Windows with too little to see (water, sand, nodata), compared exactly and by place only: {low:,}."
    how += "".join(f" {sentence}." for sentence in _undated(one, two, asked))
    if one is two:
        how += " A file is never compared with itself."
    return html_table((), rows) + f"<p>{how}</p>"
