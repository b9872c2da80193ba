"""Pictures of tiles and of a corpus, as small PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from geomim.corpus.duplicates.fingerprint import orient
from geomim.errors import BandError
from geomim.sensors import Sensor, match_bands

_COLOURS = (("red", "green", "blue"), ("nir", "red", "green"), ("swir1", "nir", "red"))
_NO_DATA = 96  # grey of invalid pixels
_LINES = ("#c0392b", "#27ae60", "#2471a3", "#8e44ad", "#d68910", "#16a085", "#7f8c8d", "#2c3e50")


def display_bands(sensor: Sensor) -> list[int]:
    """Which bands to show as red, green and blue: true colour, else a usual false colour, else the first band."""
    for names in _COLOURS:
        try:
            return match_bands(names, sensor.bands)
        except BandError:
            continue
    return [0, 0, 0]


def display_limits(tiles: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Limits for `composite` that suit all tiles of a corpus, and that some cloud does not spoil.

    Args:
        tiles: `(n, C, H, W)`, a sample.
        valid: `(n, H, W)` bool.

    Returns:
        `(C, 2)` lowest and highest number of each band.
    """
    return np.array([_stretch(band[np.isfinite(band)]) for band in tiles.transpose(1, 0, 2, 3)[:, valid]])


def _stretch(values: np.ndarray) -> tuple[float, float]:
    """Limits of one band's `values (n,)`, in which neither much water nor some cloud drowns the land.

    No narrow range of values counts for more than a fiftieth, so that land is seen beside a large lake.
    """
    if not len(values):
        return 0.0, 1.0
    first, last = np.percentile(values, [0.1, 99.9])
    spread = float(last - first)
    if not spread > 0:
        return float(first), float(last)
    counts, edges = np.histogram((values - first) / spread, 256, (0, 1))
    weight = np.cumsum(np.minimum(counts, max(1, len(values) // 50)))
    shares = np.array([0.01, 0.25, 0.5, 0.75, 0.99]) * weight[-1]
    low, quarter, middle, three_quarters, high = np.interp(shares, np.r_[0, weight], edges)
    reach = 2 * (three_quarters - quarter)
    return float(first + spread * max(low, middle - reach)), float(first + spread * min(high, middle + reach))


def composite(
    tile: np.ndarray, sensor: Sensor, valid: np.ndarray | None = None, limits: np.ndarray | None = None
) -> np.ndarray:
    """A tile in colours.

    Args:
        tile: `(C, H, W)`, bands in the sensor's order.
        sensor: Says which bands are red, green and blue.
        valid: `(H, W)` bool; other pixels are grey. All valid where None.
        limits: `(C, 2)` numbers shown as black and full colour; those that suit the tile where None.

    Returns:
        `(H, W, 3)` uint8.
    """
    valid = np.isfinite(tile).all(0) if valid is None else valid & np.isfinite(tile).all(0)
    shown = np.full((*tile.shape[1:], 3), _NO_DATA, np.uint8)
    if not valid.any():
        return shown
    for channel, band in enumerate(display_bands(sensor)):
        values = tile[band].astype(np.float64)
        low, high = _stretch(values[valid]) if limits is None else limits[band]
        scaled = np.clip((np.where(valid, values, low) - low) / max(high - low, 1e-12), 0, 1)
        shown[..., channel] = np.where(valid, np.round(255 * scaled), _NO_DATA)
    return shown


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Pictures of one size side by side.

    Args:
        pictures: `(H, W, 3)` uint8 each.
        columns: Pictures in a row.
        gap: White pixels between them.

    Returns:
        `(h, w, 3)` uint8.
    """
    rows = [beside(pictures[start : start + columns], gap) for start in range(0, len(pictures), columns)]
    return beside([row.swapaxes(0, 1) for row in rows], gap).swapaxes(0, 1)


def shrink(picture: np.ndarray, edge: int) -> np.ndarray:
    """A picture whose longer edge is about so long; smaller ones are enlarged by whole pixels.

    Args:
        picture: `(H, W, 3)` uint8.
        edge: Pixels.

    Returns:
        `(h, w, 3)` uint8.
    """
    longer = max(picture.shape[:2])
    if longer <= edge:
        times = edge // longer
        return picture.repeat(times, 0).repeat(times, 1)
    step = -(-longer // edge)
    height, width = (max(1, length // step) for length in picture.shape[:2])
    whole = picture[: height * step, : width * step]
    return whole.reshape(height, -1, width, whole.shape[1] // width, 3).mean((1, 3)).round().astype(np.uint8)


def beside(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures of any size in a row, white below the shorter ones.

    Args:
        pictures: `(H, W, 3)` uint8 each.
        gap: White pixels between them.

    Returns:
        `(h, w, 3)` uint8.
    """
    height = max(len(picture) for picture in pictures)
    width = sum(picture.shape[1] + gap for picture in pictures) - gap
    row, left = np.full((height, width, 3), 255, np.uint8), 0
    for picture in pictures:
        row[: len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return row


def turn_picture(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A picture `(H, W, 3)` turned as `fingerprint.orient` turns pixels."""
    return orient(picture.transpose(2, 0, 1), orientation).transpose(1, 2, 0)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write `(H, W, 3)` uint8 as PNG or JPEG, as the name says."""
    quick = {"compress_level": 1} if path.suffix == ".png" else {}
    matplotlib.image.imsave(path, np.ascontiguousarray(picture), pil_kwargs=quick)


def save_histograms(path: Path, tiles: np.ndarray, valid: np.ndarray, sensor: Sensor) -> None:
    """Draw how the numbers of each band are distributed.

    Args:
        path: PNG file.
        tiles: `(n, C, H, W)`.
        valid: `(n, H, W)` bool.
        sensor: Names the bands.
    """
    figure, axes = _figure(7.5, 3)
    values = [tiles[:, band][valid] for band in range(tiles.shape[1])]
    values = [band[np.isfinite(band)] if band.dtype.kind == "f" else band for band in values]
    ends = np.array([np.percentile(band, [0.2, 99.8]) for band in values if len(band)])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    whole = tiles.dtype.kind in "iu" and high - low < 256
    bins = np.arange(low, high + 2) - 0.5 if whole else np.linspace(low, max(high, low + 1e-9), 128)
    for number, band in enumerate(values):
        style = {"color": _LINES[number % len(_LINES)], "linestyle": "-" if number < len(_LINES) else "--"}
        counts, _ = np.histogram(band, len(bins) - 1, (bins[0], bins[-1]))  # even bins are not searched for
        shares = np.r_[0, counts / max(len(band), 1), 0]  # a line of steps, which is drawn ten times as fast as stairs
        axes.plot(np.r_[bins, bins[-1]], shares, drawstyle="steps-pre", label=sensor.names[number], lw=1.2, **style)
    meant = [u if (s, o) == (1, 0) else f"{u} = {s:g} x number + {o:g}" for u, s, o in sensor.meanings]
    axes.set(xlabel=f"stored number ({'; '.join(dict.fromkeys(meant))})", yticks=[])
    axes.set_ylabel("share of pixels")
    _save(path, figure, axes)


def save_footprints(path: Path, kept: Sequence[bytes], dropped: Sequence[bytes]) -> None:
    """Draw where the tiles lie.

    Args:
        path: PNG file.
        kept: Footprints as WKB, longitude and latitude.
        dropped: The same, of dropped tiles.
    """
    figure, axes = _figure(7.5, 4.5)
    corners = []
    for footprints, colour, label in ((dropped, "#c0392b", "dropped"), (kept, "#2471a3", "kept")):
        outlines = [shapely.get_coordinates(part) for part in shapely.get_parts(shapely.from_wkb(list(footprints)))]
        corners += outlines
        style = {"facecolor": (colour, 0.25), "edgecolor": colour, "linewidth": 0.6}
        if outlines:
            axes.add_collection(PolyCollection(outlines, label=label, **style))
    axes.autoscale_view()
    axes.set(xlabel="longitude", ylabel="latitude")
    if corners:
        wide, high = np.ptp(np.concatenate(corners), axis=0)
        stretch = 1 / max(np.cos(np.radians(np.concatenate(corners)[:, 1].mean())), 0.1)
        axes.set_aspect(stretch, adjustable="datalim")
        figure.set_figheight(np.clip(0.8 + 6 * stretch * high / max(wide, 1e-9), 2, 4.5))  # a strip needs no square
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=8)
    _save(path, figure, axes)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own: no global state, no window system."""
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 0.8, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(path: Path, figure: Figure, axes: Axes) -> None:
    """With names beside it, cut to what is drawn: layouts that are solved for take longer than a small corpus."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    around = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    figure.savefig(path, bbox_inches=around.padded(0.1))  # "tight" would draw all twice
