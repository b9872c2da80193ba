"""`geomim corpus semantic`, `balance`: which tiles stay, by what an encoder says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from geomim.corpus.duplicates.embedding import Subset, semantic_pairs
from geomim.corpus.duplicates.embedding import balance as choose
from geomim.corpus.store import Corpus
from geomim.errors import InputError
from geomim.verbs.corpus_embed import read_embedding
from geomim.verbs.tile_vectors import stored


def semantic(
    corpus: str,
    threshold: float,
    embedding: str | None = None,
    clusters: int | None = None,
    probes: int = 2,
    seed: int = 0,
) -> Path:
    """Drop tiles that an encoder cannot tell apart, one of each such pair staying; no pixel is read.

    Pairs are sought among all tiles but those of low information, which have a quota instead. k-means bounds the work,
    so a few pairs are missed: more `probes` find more.

    Args:
        corpus: Folder of a corpus with vectors of `geomim corpus embed`.
        threshold: Least cosine of two vectors that say the same; above 1 takes an earlier pass back. What is a high
            cosine depends on the encoder: look at the report before training.
        embedding: Name of the vectors; may be left out where there is one.
        clusters: Of k-means; the square root of the number of tiles where not given.
        probes: Clusters that each tile is compared with.
        seed: Of k-means.

    Returns:
        The folder.

    Raises:
        CorpusError: There are no such vectors, they are of other tiles, or there are too many pairs.
        InputError: The threshold is out of range.
    """
    folder = _open(corpus)
    edges = pq.read_table(folder / "catalogue" / "edges.parquet")
    found = edges.slice(0, 0)
    if threshold <= 1:
        _, ids, features = read_embedding(folder, embedding)
        low = stored(Corpus.open(folder))["low_information"]
        rows = np.flatnonzero(~pc.fill_null(low, False).to_numpy(zero_copy_only=False))
        clusters = clusters or max(round(len(rows) ** 0.5), 1)
        pairs, cosine = semantic_pairs(Subset(features, rows), threshold, clusters, seed, probes)
        found = _edge_table(ids[rows][pairs], cosine)
    others = edges.filter(pc.not_equal(edges["kind"], "embedding"))
    asked = {"threshold": threshold, "embedding": embedding, "clusters": clusters, "probes": probes, "seed": seed}
    tables = {"edges": pa.concat_tables([others, found])}
    return _conclude(folder, {"semantic": asked if threshold <= 1 else None}, tables)


def balance(
    corpus: str,
    keep: float,
    embedding: str | None = None,
    levels: list[int] | None = None,
    seed: int = 0,
) -> Path:
    """Keep a choice of the train tiles in which all kinds count alike, however common they are; no pixel is read.

    Hierarchical k-means on an encoder's vectors, and as many tiles from every cluster as there are. Tiles of val and
    test stay, and so do tiles that other thresholds let in later.

    Args:
        corpus: Folder of a corpus with vectors of `geomim corpus embed`.
        keep: Train tiles to keep: a number, or below 1 a share; 0 takes an earlier choice back.
        embedding: Name of the vectors; may be left out where there is one.
        levels: Numbers of clusters, the finest level first; where not given the square root of the number of tiles,
            and the square root of that.
        seed: Of k-means and of the draw.

    Returns:
        The folder.

    Raises:
        CorpusError: There are no such vectors, or they are of other tiles.
        InputError: There are not as many tiles.
    """
    folder = _open(corpus)
    if keep == 0:
        return _conclude(folder, {"balance": None}, {"balance": None})
    _, ids, features = read_embedding(folder, embedding)
    in_train = pc.equal(pc.field("split"), "train") & (pc.field("kept") | pc.starts_with(pc.field("reason"), "balance"))
    train = Corpus.open(folder).table(["id"], where=in_train)["id"].to_numpy()
    count = round(keep * len(train)) if keep < 1 else int(keep)
    if not 0 < count <= len(train):
        raise InputError(
            f"--keep {keep:g} asks for {count} of {len(train)} train tiles: give a number or share of them"
        )
    wanted = [round(len(train) ** 0.5), round(len(train) ** 0.25)] if levels is None else levels
    chosen = choose(Subset(features, np.searchsorted(ids, train)), count, wanted, seed)
    asked = {"keep": keep, "embedding": embedding, "levels": levels, "seed": seed}
    return _conclude(folder, {"balance": asked}, {"balance": pa.table({"id": train, "chosen": chosen})})


def _open(corpus: str) -> Path:
    """Folder of a corpus that can be changed. Imported here: `embed` needs no rasterio."""
    from geomim.corpus.pipeline.conclude import open_to_change

    folder: Path = open_to_change(corpus).path
    return folder


def _edge_table(ids: np.ndarray, cosine: np.ndarray) -> pa.Table:
    from geomim.corpus.pipeline.edges import edge_table

    return edge_table(ids[:, 0], ids[:, 1], "embedding", correlation=cosine)


def _conclude(folder: Path, change: dict[str, Any], tables: dict[str, pa.Table | None]) -> Path:
    """Decide again and show it. Imported here: `embed` needs no rasterio."""
    from geomim.corpus.pipeline.conclude import conclude
    from geomim.corpus.report.report import print_funnel, write_report

    conclude(folder, change, tables)
    write_report(folder)
    print_funnel(Corpus.open(folder), Console(stderr=True, markup=False, highlight=False))
    return folder
