"""Vectors of tiles that are stored, beside their corpus or in a file of their own, read piece by piece."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus
from geomim.errors import ConfigError, CorpusError
from geomim.maps.embeddings.vectors import TileFile
from geomim.verbs.corpus_embed import read_embedding
from geomim.verbs.tile_vectors import digest, stored

_BLOCK = 2**15  # vectors in memory at a time


class TileVectors(Protocol):
    """Vectors of tiles, wherever they are.

    Attributes:
        card: What made them.
    """

    card: dict[str, Any]

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids `(n,)`, rising, whether training reads the tiles `(n,)` bool, and vectors `(n, D)` float32."""
        ...

    def of(self, number: int) -> np.ndarray | None:
        """The vector `(D,)` of a tile by its id; None where there is no such tile."""
        ...

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Id, source and footprint (`geometry`, as WKB) of tiles by their ids."""
        ...


class CorpusVectors:
    """Those beside a corpus, by `geomim corpus embed`."""

    def __init__(self, corpus: Corpus, embedding: str | None) -> None:
        self._corpus = corpus
        self.card, self._ids, self._vectors = read_embedding(corpus.path, embedding)
        self._kept = corpus.table(["kept"], where=pc.field("slot") >= 0)["kept"].to_numpy()

    def __len__(self) -> int:
        return len(self._ids)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """As of `TileVectors`."""
        for start in range(0, len(self), _BLOCK):
            some = slice(start, start + _BLOCK)
            yield self._ids[some], self._kept[some], np.asarray(self._vectors[some], np.float32)

    def of(self, number: int) -> np.ndarray | None:
        """As of `TileVectors`."""
        row = int(np.searchsorted(self._ids, number))
        there = row < len(self) and self._ids[row] == number
        return np.asarray(self._vectors[row], np.float32) if there else None

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """As of `TileVectors`."""
        where = pc.field("id").isin(pa.array(numbers, pa.int64()))
        rows: list[dict[str, Any]] = self._corpus.table(["id", "source", "geometry"], where).to_pylist()
        return rows


def open_vectors(source: str, embedding: str | None) -> tuple[Corpus | None, TileVectors]:
    """Vectors of tiles, and the corpus that has their pixels where it is at hand."""
    if not source.lower().endswith(".parquet"):
        corpus = Corpus.open(source)
        return corpus, CorpusVectors(corpus, embedding)
    if embedding:
        raise ConfigError("--embedding names vectors beside a corpus: leave it out with a file of vectors")
    file = TileFile(source)
    try:
        corpus = Corpus.open(file.card["source"])
    except CorpusError:
        corpus = None
    same = corpus is not None and digest(stored(corpus)) == file.card["tiles"]
    return corpus if same else None, file
