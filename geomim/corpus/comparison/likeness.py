"""Do two views really show the same? Correlation of their details, which broad shapes cannot feign.

Two beaches have block means that correlate at 0.95: half is sand and half is sea. What two pictures of one place share
and two beaches do not is detail. So a view is brought to 64 x 64 cells, its broad shapes are taken away, and the middle
of one is moved over the other by a few cells to allow for a small shift (template matching by normalised
cross-correlation; Lewis, "Fast Normalized Cross-Correlation", Vision Interface 1995).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from geomim.corpus.duplicates.fingerprint import orient

CELLS = 64
"""Edge of the grid of details."""
MIN_LIKENESS = 0.41
"""From here on two views show the same. In RSICD's 10,921 images 46 pairs of views or parts score as much; by eye 45 of
them show one place, and one two stadiums. Candidates that score 0.3 to 0.4 are mostly true too, but no longer all."""
_SHIFT = 4  # cells, a sixteenth of the edge
_BROAD = 2.0  # cells, standard deviation of the blur that holds the broad shapes, and of what is around
_FAINT = 0.02  # of the mean contrast: fainter details are noise and stay faint
_AT_ONCE = 512  # pairs


def details(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """What a view looks like without its broad shapes and without its scale.

    Args:
        pixels: `(C, h, w)`, any real numbers.
        valid: `(h, w)` bool; other pixels have no details.

    Returns:
        `(64, 64)` float32.
    """
    blur, (down, across) = _blur(), (_cells(length) for length in valid.shape)
    whole = bool(valid.all())
    gray = np.nan_to_num(pixels.mean(0, dtype=np.float32))
    means = down @ (gray if whole else np.where(valid, gray, 0)) @ across.T
    broad = blur @ means @ blur.T
    if whole:
        found = means - broad
    else:
        weight = down @ valid.astype(np.float32) @ across.T
        broad /= np.maximum(blur @ weight @ blur.T, 1e-6)
        found = np.where(weight > 0.5, means / np.maximum(weight, 1e-6) - broad, 0)
    found[np.abs(found) < 1e-5 * np.abs(means).max()] = 0  # rounding: all there is in a flat view
    power = found**2
    around = np.sqrt(np.maximum(blur @ power @ blur.T, 0)) + _FAINT * np.sqrt(power.mean())
    return np.divide(found, around, out=np.zeros_like(found), where=around > 0).astype(np.float32)


def likeness(one: np.ndarray, two: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """How well details agree, at the best shift of up to a sixteenth of the edge.

    Args:
        one: `(n, 64, 64)` from `details`.
        two: `(n, 64, 64)`.
        orientation: `(n,)` 0..7: how `two` must be turned to look like `one`.

    Returns:
        `(n,)` float32, -1..1; 0 where one of the two has no details.
    """
    result = np.empty(len(one), np.float32)
    for start in range(0, len(one), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        turns = zip(two[some], orientation[some], strict=True)
        result[some] = _slide(one[some], np.stack([orient(view, int(turn)) for view, turn in turns]))
    return result


def _slide(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Best correlation of the middle of `two` with equal windows of `one`."""
    inner = slice(_SHIFT, CELLS - _SHIFT)
    middle = two[:, inner, inner].astype(np.float64)
    middle -= middle.mean((1, 2), keepdims=True)
    template = np.zeros(two.shape)
    template[:, : middle.shape[1], : middle.shape[2]] = middle
    spectrum = np.fft.rfft2(one) * np.conj(np.fft.rfft2(template))
    steps = 2 * _SHIFT + 1
    product = np.fft.irfft2(spectrum, s=(CELLS, CELLS))[:, :steps, :steps]
    count = middle.shape[1] * middle.shape[2]
    spread = _box(one.astype(np.float64) ** 2) - _box(one.astype(np.float64)) ** 2 / count
    scale = np.sqrt(np.maximum(spread, 0) * (middle**2).sum((1, 2))[:, None, None])
    return np.divide(product, scale, out=np.zeros(product.shape), where=scale > 1e-9).max((1, 2))


def _box(views: np.ndarray) -> np.ndarray:
    """Sums over the windows that the middle can lie on, `(n, 9, 9)`."""
    sums = np.pad(views, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    edge, steps = CELLS - 2 * _SHIFT, 2 * _SHIFT + 1
    low, high = slice(0, steps), slice(edge, edge + steps)
    return sums[:, high, high] - sums[:, low, high] - sums[:, high, low] + sums[:, low, low]


@lru_cache(256)
def _cells(length: int) -> np.ndarray:
    """Mean over each cell as a matrix `(64, length)`; a pixel on a border counts for both cells by its share."""
    edges = np.linspace(0, length, CELLS + 1)
    pixel = np.arange(length)
    low, high = np.maximum(edges[:-1, None], pixel), np.minimum(edges[1:, None], pixel + 1)
    return (np.maximum(high - low, 0) * (CELLS / length)).astype(np.float32)


@lru_cache(1)
def _blur() -> np.ndarray:
    """A Gaussian along one axis as a matrix `(64, 64)`."""
    apart = np.arange(CELLS)[:, None] - np.arange(CELLS)
    weight = np.exp(-0.5 * (apart / _BROAD) ** 2)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)
