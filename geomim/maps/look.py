"""Scenes, maps and outlines to look at in a notebook: as a picture, or on a map to move."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from pandas.api.types import is_numeric_dtype
from PIL import Image
from pyogrio.errors import DataSourceError
from rasterio.enums import ColorInterp
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window, from_bounds, transform

from geomim.corpus.report.pictures import composite
from geomim.corpus.scenes import open_scene
from geomim.errors import InputError, MissingExtraError
from geomim.maps.files.pictures import thinned
from geomim.maps.files.rasters import open_map
from geomim.sensors import get_sensor

Layers = str | Path | Sequence[str | Path]
"""A raster, or a raster and vector files to be drawn over it."""

_EDGE = 900  # pixels of a panel's longer side, at most
_INCHES = 4.2  # of a panel
_COLUMNS = ("class", "change", "label", "name")  # of a vector file, by which its outlines are coloured
_LINES = "#ffe119 #e6194b #42d4f4 #f032e6 #3cb44b #f58231 #000000 #4363d8".split()
_VALUES = 5  # of a raster of numbers, in its legend


@dataclass(frozen=True)
class _Layer:
    """A raster in colours.

    Attributes:
        name: Of the file.
        picture: `(H, W, 4)` uint8.
        transform: From column and row of the picture to the ground; None without a place.
        crs: Of the ground.
        legend: Colours by what they mean.
    """

    name: str
    picture: np.ndarray
    transform: Affine | None
    crs: Any
    legend: Mapping[str, Any]


def look(
    *panels: Layers,
    titles: Sequence[str] = (),
    across: int = 3,
    bounds: Sequence[float] | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Image.Image:
    """Draw rasters beside one another, with vector files over them: scenes, maps of classes, maps of numbers.

    Args:
        panels: Each a raster, or a raster followed by vector files. A raster with a palette is shown in its own colours
            with the names of its classes, of which one has the same colour in all panels, that of the first; a single
            band as numbers, all others as scenes in true or false colour.
            Outlines are coloured by their column `class`, `change`, `label` or `name`.
        titles: Of the panels; names of the files where not given.
        across: Panels in a row.
        bounds: Left, bottom, right and top of the part to be shown, in the reference system of each raster; all of it
            where not given.
        sensor: Name or YAML file of what took the scenes, where they do not say it.
        bands: Names of their bands in file order, where they do not name them.

    Returns:
        The picture, which a notebook shows and `.save("FILE.png")` writes.

    Raises:
        InputError: A file cannot be read, or does not lie within `bounds`.
        BandError: A scene does not say what its bands are.
    """
    rows = [[one] if isinstance(one, str | Path) else list(one) for one in panels]
    if not rows or not all(rows):
        raise InputError("look: expected a raster, or several; given none")
    named: dict[str, Any] = {}
    layers = [_layer(Path(raster), bounds, sensor, bands, named) for raster, *_ in rows]
    across = min(across, len(rows))
    down = -(-len(rows) // across)
    aspect = max(layer.picture.shape[0] / layer.picture.shape[1] for layer in layers)
    figure = Figure(
        figsize=(_INCHES * across, (_INCHES * min(max(aspect, 0.3), 3) + 0.9) * down), dpi=110, layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for place, (panel, layer, (_, *vectors)) in enumerate(zip(axes, layers, rows, strict=False)):
        panel.imshow(layer.picture, interpolation="nearest", interpolation_stage="rgba")
        panel.set_title(titles[place] if place < len(titles) else layer.name, fontsize=9, parse_math=False)
        legend = {name: Patch(facecolor=colour, edgecolor="0.6") for name, colour in layer.legend.items()}
        for file in vectors:
            legend |= _outlined(panel, layer, Path(file))
        if legend:
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 3 if len(legend) > 3 else 5}
            panel.legend(legend.values(), legend.keys(), fontsize=7, frameon=False, handlelength=1.1, **where)
    for panel in axes:
        panel.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def web_map(
    *layers: str | Path,
    background: str | None = "OpenStreetMap",
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Any:
    """Lay rasters and vector files over one another on a map to move, with a switch for each.

    Args:
        layers: Rasters as `look` draws them, and vector files, from below to above. All need a place.
        background: What folium calls it; none where None, for ground that is nowhere.
        sensor: As for `look`.
        bands: As for `look`.

    Returns:
        A `folium.Map`, which a notebook shows and `.save("FILE.html")` writes.

    Raises:
        MissingExtraError: folium is not installed.
        InputError: A file cannot be read, or has no place.
    """
    try:
        import folium
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "a map to move needs 'folium', which is not installed: pip install 'geomim[notebooks]'"
        ) from error
    shown = folium.Map(tiles=background, control_scale=True)
    for file in map(Path, layers):
        if file.suffix.lower() in (".gpkg", ".geojson", ".json", ".shp", ".parquet"):
            frame, colours = _frame(file)
            if frame.empty:  # which has no bounds and no fields
                continue
            column = next((one for one in _COLUMNS if one in frame), None)

            def style(feature: Any, colours: Any = colours, column: Any = column) -> dict[str, Any]:
                return {"color": colours[str(feature["properties"].get(column))], "weight": 2, "fillOpacity": 0.1}

            told = folium.GeoJsonTooltip([name for name in frame.columns if name != frame.geometry.name])
            folium.GeoJson(frame.to_crs(4326), name=file.name, style_function=style, tooltip=told).add_to(shown)
            continue
        picture, (west, south, east, north) = _mercator(_layer(file, None, sensor, bands, {}))
        where = [[south, west], [north, east]]
        folium.raster_layers.ImageOverlay(picture, where, name=file.name, pixelated=True).add_to(shown)
        shown.fit_bounds(where)
    folium.LayerControl(collapsed=False).add_to(shown)
    return shown


def _layer(
    path: Path, bounds: Sequence[float] | None, sensor: str | None, bands: list[str] | None, named: dict[str, Any]
) -> _Layer:
    """A raster in colours; classes have those that are known by name, and add their own."""
    try:
        raster = open_map(path)
    except rasterio.errors.RasterioIOError:  # a product folder, a cube
        return _scene(path, bounds, sensor, bands)
    with raster:
        palette = raster.colorinterp[0] == ColorInterp.palette
        if not palette and raster.count > 1:
            return _scene(path, bounds, sensor, bands)
        window, step = _part(path, raster.height, raster.width, raster.transform, bounds)
        size = tuple(max(1, math.ceil(length / step)) for length in (window.height, window.width))
        values = raster.read(1, window=window, out_shape=size, masked=True)
        picture, legend = _classes(raster, values, named) if palette else _numbers(values)
        placed = None if raster.crs is None else transform(window, raster.transform) @ Affine.scale(step)
        return _Layer(path.name, picture, placed, raster.crs, legend)


def _scene(path: Path, bounds: Sequence[float] | None, sensor: str | None, bands: list[str] | None) -> _Layer:
    with open_scene(path, None if sensor is None else get_sensor(sensor), bands) as scene:
        window, step = _part(path, scene.height, scene.width, scene.transform, bounds)
        pixels, valid = thinned(scene, window, _EDGE)
        picture = np.dstack([composite(pixels, scene.sensor, valid), np.where(valid, 255, 0).astype(np.uint8)])
        placed = None if scene.transform is None else transform(window, scene.transform) @ Affine.scale(step)
        return _Layer(path.name, picture, placed, scene.crs, {})


def _part(
    path: Path, height: int, width: int, placed: Affine | None, bounds: Sequence[float] | None
) -> tuple[Window, int]:
    """The window to read, and every how many pixels."""
    window = Window(0, 0, width, height)
    if bounds is not None:
        if placed is None:
            raise InputError(f"'{path}' has no place that bounds could be of: leave them out")
        try:
            window = from_bounds(*bounds, transform=placed).intersection(window).round_offsets().round_lengths()
        except rasterio.errors.WindowError as error:
            raise InputError(f"'{path}' does not lie within the bounds {', '.join(map(str, bounds))}") from error
    return window, max(1, math.ceil(max(window.height, window.width) / _EDGE))


def _classes(raster: Any, ids: np.ma.MaskedArray, named: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    colours, tags = raster.colormap(1), raster.tags(1)
    listed = dict(enumerate(json.loads(raster.tags().get("CLASSES", "[]"))))
    names = {value: tags.get(f"CLASS_{value}", listed.get(value, f"{value}")) for value in colours}
    colours = {value: named.setdefault(names[value], own) if own[3] else own for value, own in colours.items()}
    table = np.zeros((max(colours) + 2, 4), np.uint8)  # the last is that of all numbers without a colour
    table[list(colours)] = list(colours.values())
    places = ids.filled(0).astype(np.int64)
    places[(places < 0) | (places > max(colours))] = len(table) - 1
    there = [value for value in np.unique(ids.compressed()).tolist() if colours.get(value, (0,) * 4)[3]]
    picture = np.where(np.ma.getmaskarray(ids)[..., None], 0, table[places]).astype(np.uint8)
    return picture, {names[value]: np.divide(colours[value], 255) for value in there}


def _numbers(values: np.ma.MaskedArray) -> tuple[np.ndarray, dict[str, Any]]:
    seen = np.ma.masked_invalid(values)
    low, high = np.percentile(seen.compressed(), [1, 99.5]) if seen.count() else (0.0, 1.0)
    cmap, spread = colormaps["viridis"], max(float(high - low), 1e-9)
    picture = cmap(np.clip((seen.filled(low) - low) / spread, 0, 1), bytes=True)
    picture[np.ma.getmaskarray(seen)] = 0
    return picture, {f"{value:.3g}": cmap((value - low) / spread) for value in np.linspace(low, high, _VALUES)}


def _frame(path: Path) -> tuple[geopandas.GeoDataFrame, dict[str, str]]:
    """Outlines, and a colour for each value of the column that names them; dates and the like as text, lists not."""
    read = geopandas.read_parquet if path.suffix.lower() == ".parquet" else geopandas.read_file
    try:
        frame = read(path)
    except (DataSourceError, OSError, ValueError) as error:
        raise InputError(f"vector file '{path}' cannot be read ({error})") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"vector file '{path}' holds no geometry")
    if frame.crs is None:
        raise InputError(f"'{path}' has no reference system: it cannot be laid over a raster")
    column = next((one for one in _COLUMNS if one in frame), None)
    for name in [name for name in frame.columns if name != frame.geometry.name]:
        values = frame[name].astype(object)
        if name == column:
            frame[name] = values.where(values.notna(), "none").map(str)
        elif any((not isinstance(one, str) and np.iterable(one)) or hasattr(one, "geom_type") for one in values):
            frame = frame.drop(columns=name)
        elif not is_numeric_dtype(frame[name]):
            frame[name] = values.map(str, na_action="ignore")
    named = sorted(set(frame[column])) if column else ["None"]
    return frame, {value: _LINES[place % len(_LINES)] for place, value in enumerate(named)}


def _outlined(panel: Any, layer: _Layer, path: Path) -> dict[str, Any]:
    """Draw outlines over a picture; what they are called."""
    if layer.transform is None:
        raise InputError(f"'{layer.name}' has no place: '{path}' cannot be laid over it")
    frame, colours = _frame(path)
    column = next((one for one in _COLUMNS if one in frame), None)
    ground = frame.to_crs(layer.crs)
    inverse = ~layer.transform

    def to_picture(points: np.ndarray) -> np.ndarray:
        return np.stack(inverse * (points[:, 0], points[:, 1]), 1) - 0.5

    height, width = layer.picture.shape[:2]
    legend = {}
    for value, colour in colours.items():
        own = ground.geometry[ground[column].astype(str) == value] if column else ground.geometry
        shapes = shapely.transform(own.to_numpy(), to_picture)
        shapes = shapes[shapely.intersects(shapes, shapely.box(0, 0, width, height))]
        lines = shapely.get_parts(np.where(shapely.get_dimensions(shapes) == 2, shapely.boundary(shapes), shapes))
        if len(lines):
            panel.add_collection(LineCollection(list(map(shapely.get_coordinates, lines)), colors=colour, linewidths=1))
            legend[value if column else path.name] = Patch(facecolor="none", edgecolor=colour, linewidth=1.5)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return legend


def _mercator(layer: _Layer) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A picture on the grid of web maps, and its bounds in longitude and latitude."""
    if layer.transform is None or layer.crs is None:
        raise InputError(f"'{layer.name}' has no place: look() shows it")
    height, width = layer.picture.shape[:2]
    edges = rasterio.transform.array_bounds(height, width, layer.transform)
    grid, columns, rows = calculate_default_transform(layer.crs, "EPSG:3857", width, height, *edges)
    picture = np.zeros((4, rows, columns), np.uint8)
    to = {"dst_transform": grid, "dst_crs": "EPSG:3857", "resampling": Resampling.nearest}
    reproject(layer.picture.transpose(2, 0, 1), picture, src_transform=layer.transform, src_crs=layer.crs, **to)
    corners = rasterio.transform.array_bounds(rows, columns, grid)
    return picture.transpose(1, 2, 0), rasterio.warp.transform_bounds("EPSG:3857", "EPSG:4326", *corners)
