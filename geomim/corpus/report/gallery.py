"""Sections of the report with pictures of tiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.captions.origins import files_of
from geomim.corpus.duplicates.fingerprint import ORIENTATIONS, inverse
from geomim.corpus.report.facts import SAMPLE, Facts, as_funnel, crossing, rows_of
from geomim.corpus.report.page import html_figure, html_table
from geomim.corpus.store import Corpus

_SHEET = 800 * 800 * 4  # pixels of a sheet of kept tiles
_POOL = 2**27  # numbers of the tiles that histograms and limits are taken from,
_NUMBERS = 2**23  # and of those that are taken, evenly over each tile
_EDGE = 224  # pixels of a tile beside others
_MEMBERS = 11  # of a group of duplicates, beside its keeper
_FOOTPRINTS = 4000  # outlines on the map
_CROSSING = 60  # pairs of tiles of different splits
_COUNTED = "(train beside val or test: ground, copies, near copies, crops), counted on the catalogue."


class Gallery:
    """Draws tiles into the folder of a report; each section is empty where there is nothing to show.

    Args:
        corpus: What is shown.
        folder: Of the page.
        facts: Which tiles to show.
    """

    def __init__(self, corpus: Corpus, folder: Path, facts: Facts) -> None:
        from geomim.corpus.report import pictures  # here: matplotlib takes a second, and most verbs draw nothing

        self._draw = pictures
        self._corpus, self._folder, self._facts = corpus, folder, facts
        self._arrays = {size: (corpus.array("image", size), corpus.array("valid", size)) for size in corpus.sizes}
        self._pool = self._read_pool()
        self._limits = pictures.display_limits(*self._pool) if self._pool else None

    def _read_pool(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Some kept tiles of the size that has most of them."""
        size, rows = max(self._facts.sample.items(), key=lambda one: (len(one[1]), -one[0]), default=(0, []))
        count = min(len(rows), SAMPLE, max(4, _POOL // max(1, len(self._corpus.sensor.bands) * size**2)))
        if not rows:
            return None
        pixels, valid = self._read([row["slot"] for row in rows[:count]], size)
        step = max(1, math.ceil((pixels.size / _NUMBERS) ** 0.5))
        return pixels[..., ::step, ::step], valid[..., ::step, ::step]

    def _read(self, slots: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
        image, valid = self._arrays[size]
        assert image is not None  # a corpus has the pixels of its sizes
        pixels = image.read(slots)
        return pixels, np.ones((len(slots), *pixels.shape[2:]), bool) if valid is None else valid.read(slots)

    def _tile(self, row: dict[str, Any]) -> np.ndarray:
        pixels, valid = self._read([row["slot"]], row["size"])
        return self._draw.composite(pixels[0], self._corpus.sensor, valid[0].astype(bool), self._limits)

    def kept(self) -> str:
        """A sheet of kept tiles for every size."""
        sheets = []
        for size in self._corpus.sizes:
            rows = sorted(self._facts.sample.get(size, []), key=lambda row: -(row["valid_fraction"] or 0))
            rows = sorted(rows[: max(8, min(48, _SHEET // size**2))], key=lambda row: row["id"])
            if not rows:
                continue
            name = "kept.png" if len(self._corpus.sizes) == 1 else f"kept-{size}.png"
            tiles = [self._draw.shrink(self._tile(row), min(size, 256)) for row in rows]
            self._draw.save_picture(self._folder / name, self._draw.contact_sheet(tiles, 12 if size <= 128 else 6))
            words = "" if len(self._corpus.sizes) == 1 else f"<p>{size} x {size} pixels</p>"
            sheets.append(f'{words}<div class="card"><img src="{name}" alt="sample of kept tiles"></div>')
        return "".join(sheets)

    def dropped(self) -> list[tuple[str, str]]:
        """A section a kind: dropped tiles, each beside its keeper where it has one."""
        examples = self._facts.examples
        every = [row for rows in examples.values() for row in rows]
        keepers = rows_of(self._corpus, (row["duplicate_of"] for row in every if row["duplicate_of"] is not None))
        turns = self._turns([*(row["id"] for row in every), *keepers])
        sections = []
        counts = as_funnel(self._facts.tiles, self._facts.kinds).items()
        for kind, count in sorted(counts, key=lambda one: "valid" in one[0]):  # what is mostly empty comes last
            rows = examples.get(kind, [])
            if not rows:
                continue
            figures = "".join(self._dropped(row, keepers.get(row["duplicate_of"]), turns) for row in rows)
            shown = f"<p>{len(rows)} of {count:,}, evenly drawn.</p>" if count > len(rows) else ""
            sections.append((f"Dropped: {kind}", f'{shown}<div class="pairs">{figures}</div>'))
        return sections

    def _dropped(self, row: dict[str, Any], keeper: dict[str, Any] | None, turns: dict[tuple[int, int], int]) -> str:
        caption = f"{row['id']} ({Path(row['source']).name}): {row['reason']}"
        turn = turns.get((row["id"], keeper["id"]), 0) if keeper else 0
        shown = []
        if row["slot"] >= 0:
            shown.append(self._draw.turn_picture(self._tile(row), turn))
            caption += f"; shown {ORIENTATIONS[turn]}" if turn else ""
        if keeper is not None and keeper["slot"] >= 0:
            shown.append(self._tile(keeper))
        if row["slot"] < 0:
            caption += "; its pixels are those of the tile shown" if shown else "; same pixels as another such tile"
        return self._figure(f"dropped-{row['id']}.png", shown, caption)

    def _figure(self, name: str, tiles: Sequence[np.ndarray], caption: str) -> str:
        if not tiles:
            return html_figure(caption)
        small = [self._draw.shrink(tile, _EDGE) if max(tile.shape) > _EDGE else tile for tile in tiles]
        self._draw.save_picture(self._folder / name, self._draw.beside(small))
        return html_figure(caption, name)

    def _turns(self, ids: Sequence[int]) -> dict[tuple[int, int], int]:
        """How the first tile of a pair must be turned to look like the second, for pairs among some tiles."""
        file = self._corpus.path / "catalogue" / "edges.parquet"
        if not ids or not file.is_file():
            return {}
        wanted = pa.array(sorted(set(ids)), pa.int64())
        among = pc.field("a").isin(wanted) & pc.field("b").isin(wanted) & (pc.field("orientation") > 0)
        turns = {}
        for row in pq.read_table(file, columns=["a", "b", "orientation"], filters=among).to_pylist():
            turns[row["a"], row["b"]] = row["orientation"]
            turns[row["b"], row["a"]] = inverse(row["orientation"])
        return turns

    def captions(self) -> str:
        """How many sentences there are of each origin, and the first of each under some tiles."""
        captioned, lacking = (self._facts.captioned[has] for has in (True, False))
        if not captioned:
            return ""
        counted = []
        for name, count in sorted(self._facts.captions.items()):
            files = files_of(self._corpus.meta, name)
            told = (", ".join(dict.fromkeys(one[what] for one in files)) for what in ("file", "licence"))
            counted.append((name, f"{count:,}", *told))
        figures = []
        for row in {row["id"]: row for rows in self._facts.said.values() for row in rows}.values():
            origins = row["caption_origins"] or ["human"] * len(row["captions"])
            firsts = dict(zip(reversed(origins), reversed(row["captions"]), strict=True))
            said = " ".join(f"{origin}: {text}" for origin, text in sorted(firsts.items()))
            tiles = [self._tile(row)] if row["slot"] >= 0 else []
            figures.append(self._figure(f"said-{row['id']}.png", tiles, said))
        words = f"<p>{captioned:,} kept tiles have sentences, {lacking:,} have none.</p>"
        table = html_table(("origin", "sentences", "from", "licence"), counted)
        return f'{words}{table}<div class="pairs">{"".join(figures)}</div>'

    def clusters(self) -> str:
        """The largest groups of duplicates as strips, the tile that was kept first."""
        groups = [(keeper, ids[:_MEMBERS], len(ids)) for keeper, ids in self._facts.clusters if len(ids) > 1]
        ids = [number for keeper, members, _ in groups for number in (keeper, *members)]
        rows, turns = rows_of(self._corpus, ids), self._turns(ids)
        strips = []
        for keeper, members, count in groups:
            tiles = [self._tile(rows[keeper])] if rows[keeper]["slot"] >= 0 else []
            stored = [number for number in members if rows[number]["slot"] >= 0]
            for number in stored:
                tiles.append(self._draw.turn_picture(self._tile(rows[number]), turns.get((number, keeper), 0)))
            tiles = [self._draw.shrink(tile, 96) for tile in tiles]
            same = len(members) - len(stored)
            copies = f", {same} of the first of them exact copies" if same else ""
            words = f"{keeper} ({Path(rows[keeper]['source']).name}) stands for {count:,} tiles{copies}"
            strips.append(self._figure(f"group-{keeper}.png", tiles, words))
        many, tiles_ = self._facts.grouped
        text = f"<p>{tiles_:,} tiles are dropped for {many:,} kept ones. In each strip the kept one is the first.</p>"
        return text + "".join(strips).replace("<figure>", '<figure class="strip">') if strips else ""

    def between_splits(self) -> str:
        """How many kept tiles of train share something with val or test, and which tiles went for it."""
        pairs, shared = crossing(self._corpus), self._corpus.meta.get("shared")
        said = "" if shared is None else f"<p><b>{shared:,} kept pairs in two splits</b> {_COUNTED}</p>"
        if not len(pairs):
            return said
        columns = (pairs[name].to_pylist() for name in ("split_a", "split_b", "kind"))
        counts = Counter((" and ".join(sorted((one, two))), kind) for one, two, kind in zip(*columns, strict=True))
        table = html_table(("splits", "how", "pairs"), [(*key, f"{count:,}") for key, count in sorted(counts.items())])
        rank = pc.index_in(pairs["kind"], value_set=pa.array(["exact", "perceptual", "crop", "pixels", "footprint"]))
        shown = pairs.take(pc.sort_indices(rank)[:_CROSSING]).to_pylist()
        ids = [row[end] for row in shown for end in ("a", "b")]
        rows, turns = rows_of(self._corpus, ids), self._turns(ids)
        figures = "".join(self._dropped(rows[row["a"]], rows[row["b"]], turns) for row in shown)
        more = f"<p>{len(shown)} of {len(pairs):,} pairs, the most certain ones.</p>" if len(pairs) > len(shown) else ""
        return (
            f'{said}<p>What was dropped for a tile of another split:</p>{table}{more}<div class="pairs">{figures}</div>'
        )

    def histograms(self) -> str:
        """How the numbers of each band are distributed over kept tiles."""
        if self._pool is None:
            return ""
        pixels, valid = self._pool
        self._draw.save_histograms(self._folder / "histograms.png", pixels, valid.astype(bool), self._corpus.sensor)
        return '<div class="card"><img src="histograms.png" alt="histogram of each band"></div>'

    def footprints(self) -> str:
        """A map, where tiles have a place on Earth."""
        step = max(1, -(-self._facts.tiles // _FOOTPRINTS))
        chosen, first, placed = [], 0, 0
        for batch in self._corpus.rows().to_batches(columns=["kept", "geometry"]):
            table = pa.Table.from_batches([batch])
            placed += len(table) - table["geometry"].null_count
            chosen.append(table.take(np.arange(-first % step, len(table), step)))
            first += len(table)
        drawn = pa.concat_tables(chosen)
        drawn = drawn.filter(drawn["geometry"].is_valid())
        if not len(drawn):
            return ""
        kept = drawn.filter(drawn["kept"])["geometry"].to_pylist()
        dropped = drawn.filter(pc.invert(drawn["kept"]))["geometry"].to_pylist()
        self._draw.save_footprints(self._folder / "footprints.png", kept, dropped)
        note = f"<p>Every {step}. tile is drawn.</p>" if step > 1 else ""
        lost = self._facts.tiles - placed
        note += f"<p>{lost:,} tiles have no place on Earth.</p>" if lost else ""
        return f'<div class="card"><img src="footprints.png" alt="map of footprints"></div>{note}'
