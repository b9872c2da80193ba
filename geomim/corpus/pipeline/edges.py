"""Pairs of tiles that hold the same, whichever way they were found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from geomim.corpus.duplicates.fingerprint import inverse

EDGES = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("kind", pa.string()),
        ("distance", pa.int16()),
        ("orientation", pa.int8()),
        ("correlation", pa.float32()),
        ("share", pa.float32()),
    ]
)
"""A row a pair of tiles `a < b` that hold the same: `kind` is perceptual, footprint, crop or embedding; `distance` in
bits, -1 where it is no hash; `orientation` turns `a` into `b` (`fingerprint.orient`); `share` of the smaller one that
both hold."""


def edge_table(
    a: np.ndarray,
    b: np.ndarray,
    kind: str,
    distance: Any = -1,
    orientation: Any = 0,
    correlation: Any = np.nan,
    share: Any = 1.0,
) -> pa.Table:
    """Rows of `EDGES` of one kind; numbers count for all pairs, arrays hold one a pair."""
    columns = (a, b, kind, distance, orientation, correlation, share)
    return pa.table([np.broadcast_to(one, np.shape(a)) for one in columns], EDGES.names).cast(EDGES)


def led(edges: pa.Table, a: np.ndarray, b: np.ndarray) -> pa.Table:
    """The edges between other tiles, which took the place of theirs; none from a tile to itself."""
    turn = edges["orientation"].to_numpy()
    turn = np.where(a < b, turn, np.array([inverse(k) for k in range(8)])[turn])
    new = {"a": np.minimum(a, b), "b": np.maximum(a, b), "orientation": turn}
    columns = [pa.array(new[field.name], field.type) if field.name in new else edges[field.name] for field in EDGES]
    return pa.table(columns, EDGES).filter(pa.array(a != b))
