"""Can the numbers be what their sensor says? A look at a few windows before anything is cut, against physics."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rasterio.windows import Window
from rich.console import Console

from geomim.corpus.pipeline.plan import Plan
from geomim.errors import BandError, GeomimError
from geomim.sensors import Sensor

_SOURCES, _SIDE = 16, 256  # looked at, and the side of the windows in them
_DARKEST, _USUAL = 0.002, (0.02, 1.0)
"""Mean reflectance of the brightest band: below the first, before the offset, nothing was measured."""


def check_numbers(plan: Plan, sources: pa.Table, console: Console) -> None:
    """Hold means against what can be; print them where the order of the bands is assumed.

    Raises:
        BandError: The numbers cannot be what the sensor says, or the bands not come in the order that is assumed.
    """
    usable = sources.filter(pc.equal(sources["refused"], ""))
    rows = np.unique(np.linspace(0, len(usable) - 1, _SOURCES).round().astype(int))
    totals, pixels, assumed = np.zeros(1), 0, ""
    for source in usable.take(rows).to_pylist():
        try:
            with plan.open(source["uri"], source["card"]) as scene:
                sensor, assumed = scene.sensor, assumed or (source["uri"] if scene.assumed else "")
                wide, tall = min(_SIDE, scene.width), min(_SIDE, scene.height)
                for share in (0.2, 0.5, 0.8):
                    corner = int(share * (scene.width - wide)), int(share * (scene.height - tall))
                    numbers, valid = scene.read_valid(Window(*corner, wide, tall))
                    totals, pixels = totals + numbers[:, valid].sum(1, dtype=float), pixels + int(valid.sum())
        except GeomimError:
            continue  # cutting lists it
    if not pixels:
        return
    mean = totals / pixels
    if assumed:
        listed = ", ".join(f"{name} {value:.4g}" for name, value in zip(sensor.names, mean, strict=True))
        order = f"that they come in the order of sensor '{sensor.name}' is assumed"
        console.print(f"'{assumed}' names no bands: {order}. Means: {listed}", soft_wrap=True)
    refusals, notes = doubts(sensor, usable["dtype"][0].as_py(), mean, bool(assumed))
    for sentence in notes:
        console.print(f"note: {sentence}", soft_wrap=True)
    if refusals:
        raise BandError("; ".join(refusals))


def doubts(sensor: Sensor, dtype: str, mean: np.ndarray, assumed: bool) -> tuple[list[str], list[str]]:
    """What cannot be, and what is odd.

    Args:
        sensor: What the numbers are said to be.
        dtype: Type of the numbers.
        mean: Mean of the numbers of each band.
        assumed: Nothing but the flag of the sensor says which band is which.
    """
    refusals, notes = [], []
    names = {band.alias or band.name: band.name for band in sensor.bands}
    bands = [(s * held + o, held, s, o, unit) for (unit, s, o), held in zip(sensor.meanings, mean, strict=True)]
    meant = dict(zip(names, (band[0] for band in bands), strict=True))
    if light := [band for band in bands if band[-1] == "reflectance"]:
        brightest, held, scale, offset, _ = max(light)
        said = f"sensor '{sensor.name}' says that reflectance is number * {scale:g} + {offset:g}"
        largest = np.iinfo(dtype).max * scale + offset if dtype[0] in "ui" else np.inf
        way = "give a YAML file with what the numbers mean (--sensor FILE)"
        if largest < 0.1:
            refusals.append(f"{said}, and no {dtype} number means more than {largest:.2g}: {way}")
        elif brightest - offset < _DARKEST:
            refusals.append(f"{said}, and the brightest band holds {held:.2g} on average, next to nothing: {way}")
        elif not _USUAL[0] <= brightest <= _USUAL[1]:
            notes.append(f"{said}; the mean of the brightest band is {brightest:.2g}: is that so?")
    # at 1375 nm none but high clouds are seen, and those are as bright in all colours
    if {"green", "cirrus"} <= meant.keys() and meant["cirrus"] > 1.1 * meant["green"]:
        way = "name them in file order with --bands (- ignores one), or give the dataset's card (CARD@FOLDER)"
        cannot = f"{names['cirrus']} (cirrus) is brighter than {names['green']} (green), which cannot be: {way}"
        (refusals if assumed else notes).append(f"band {cannot}")
    return refusals, notes
