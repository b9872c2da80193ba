"""Which of several near-copies stays."""

from __future__ import annotations

import numba
import numpy as np


def keep_one(edges: np.ndarray, rank: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """Greedily keep tiles so that every dropped one has an edge to a kept one.

    Tiles are visited in the order of their rank; one is dropped if an edge leads to a tile that is already kept, and
    the best ranked of those stands for it. Unlike connected components this never chains: where A is like B and B like
    C, but A unlike C, dropping B for A keeps C.

    Args:
        edges: `(m, 2)` int64 places, verified; in any order, repeated or not.
        rank: `(n,)` numbers, the lower the rather kept; among equals the lower place. It alone decides.
        protected: `(n,)` bool, tiles that are never dropped; they are visited first.

    Returns:
        `(n,)` int64: the place of the kept tile that stands for each one; its own where it is kept.
    """
    order = np.lexsort((rank, ~protected))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order))
    # Only the earlier end of an edge can stand for the later one: list them by the later end, then by the earlier one.
    turns = np.sort(turn[edges.reshape(-1, 2)], axis=1)
    turns = turns[np.lexsort((turns[:, 0], turns[:, 1]))]
    keeper = np.arange(len(order))
    _keep(np.ascontiguousarray(turns), np.ascontiguousarray(protected[order]), keeper)
    result = np.empty_like(keeper)
    result[order] = order[keeper]
    return result


@numba.njit(cache=True, nogil=True)
def _keep(turns, protected, keeper):  # pragma: no cover - compiled
    for n in range(len(turns)):
        early, late = turns[n]
        if early != late and keeper[late] == late and keeper[early] == early and not protected[late]:
            keeper[late] = early


def components(count: int, edges: np.ndarray) -> np.ndarray:
    """Groups of tiles that edges join, directly or by way of others: what a split must not divide.

    Args:
        count: Number of tiles.
        edges: `(m, 2)` int64 places.

    Returns:
        `(count,)` int64: the lowest place of the group that each tile belongs to.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return first[group].astype(np.int64)
