"""What was kept and dropped, and why, as a page to look at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from geomim.corpus.report import sections
from geomim.corpus.report.facts import KINDS, funnel, gather, kind_of
from geomim.corpus.report.gallery import Gallery
from geomim.corpus.report.page import html_page
from geomim.corpus.report.terminal import print_funnel, print_summary
from geomim.corpus.store import Corpus

__all__ = ["KINDS", "funnel", "kind_of", "print_funnel", "print_summary", "write_report"]


def write_report(path: str | Path) -> Path:
    """Write `report/index.html` with its pictures into a corpus.

    The catalogue is read once, a piece at a time, and a bounded number of tiles is drawn, so that the time a large
    corpus takes is that of reading its catalogue.

    Args:
        path: Folder of the corpus.

    Returns:
        The page.
    """
    corpus = Corpus.open(path)
    home = Path(str(corpus.path))
    part, folder = home / "report.part", home / "report"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    facts = gather(corpus)
    gallery = Gallery(corpus, part, facts)
    content = [
        ("What became of the tiles", sections.funnel_html(facts)),
        ("Kept tiles, a sample", gallery.kept()),
        *gallery.dropped(),
        ("The largest groups of duplicates", gallery.clusters()),
        ("Between splits", gallery.between_splits()),
        ("Benchmarks", sections.audit_html(corpus)),
        ("Bands", sections.bands_html(corpus) + gallery.histograms()),
        ("Where they lie", gallery.footprints()),
        ("Sizes", sections.sizes_html(corpus)),
        ("Classes and splits", sections.classes_html(corpus, facts)),
        ("Captions", gallery.captions()),
        ("Tables joined", sections.joined_html(corpus)),
        ("Skipped sources", sections.skipped_html(corpus)),
        ("Sources and licences", sections.licences_html(corpus, facts)),
    ]
    (part / "index.html").write_text(html_page(f"Corpus {home.resolve().name}", content), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder / "index.html"
