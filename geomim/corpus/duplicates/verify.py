"""Verification of candidate pairs: do the block means really show the same place?"""

from __future__ import annotations

import numpy as np

from geomim.corpus.duplicates.fingerprint import GRID, orient

MIN_CORRELATION = 0.9
"""Normalised cross-correlation of block means from which a candidate pair is taken for a near-copy."""
_AT_ONCE = 4096  # pairs: 32 MB of numbers


def correlation(one: np.ndarray, two: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation of signatures, the second one turned.

    Args:
        one: `(n, 1024)` float16 from `fingerprint.signature`.
        two: `(n, 1024)` float16.
        orientation: `(n,)` 0..7: how `two` must be turned (`fingerprint.orient`) to look like `one`.

    Returns:
        `(n,)` float32, -1..1; 0 where one of the two is flat.
    """
    result = np.empty(len(one), np.float32)
    for start in range(0, len(one), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        turned = np.take_along_axis(np.asarray(two[part], np.float32), _PLACES[np.asarray(orientation[part])], 1)
        result[part] = np.einsum("np,np->n", np.asarray(one[part], np.float32), turned)
    return result


_PLACES = np.stack([orient(np.arange(GRID * GRID).reshape(GRID, GRID), k).reshape(-1) for k in range(8)])
