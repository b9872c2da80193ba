"""A scene opened for a band contract, and what is assumed of its numbers, said aloud."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from geomim.corpus.scenes import Scene, open_scene
from geomim.errors import BandError, GeomimError
from geomim.maps.walk.windows import read_window
from geomim.models.fitting import Chosen, contract_for
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.models.weights import Loaded, contract_of
from geomim.sensors import BandContract, Sensor, get_sensor, match_bands, stated_contract


def chosen_for(
    loaded: Loaded, name: str, uri: str, sensor: str | None, bands: Sequence[str] | None, all_bands: bool = False
) -> Chosen:
    """The contract that an encoder sees a scene with: its own, or of a spectral one the one for the scene's bands.

    Arguments and errors as of `contract_for`; `sensor` and `bands` are what the user says of the scene.
    """
    if not loaded.encoder.config.get("spectral") and not all_bands:
        return contract_of(loaded, name)
    with open_scene(uri, None if sensor is None else get_sensor(sensor), bands) as first:
        stated = sensor and stated_contract(sensor, first.sensor.names)
        same = stated and stated.sensor.meanings == first.sensor.meanings
        own = replace(stated, sensor=first.sensor) if stated and same else None
        return contract_for(loaded, name, first.sensor, own, all_bands)


def open_for(
    contract: BandContract, uri: str, sensor: Sensor | None, bands: Sequence[str] | None
) -> tuple[Scene, ContractInput]:
    """Open a scene that has the contract's bands; numbers of no stated unit are taken to be the contract's.

    Other bands are left out, as a pixel is nodata where any band is; where they cannot be, a note of the scene says so.

    Raises:
        BandError: It lacks a band, by name.
    """
    scene = _open(contract, uri, sensor, bands)
    try:
        scene = _of_needed(contract, scene, sensor, bands)
        untold = sensor is None and set(scene.sensor.meanings) == {(Sensor.unit, 1.0, 0.0)}
        given = contract.as_stored(scene.sensor) if untold else scene.sensor
        return scene, ContractInput(contract, given)
    except BandError as error:
        scene.close()
        raise BandError(f"'{uri}': {error}") from error


def _open(contract: BandContract, uri: str, sensor: Sensor | None, bands: Sequence[str] | None) -> Scene:
    try:
        return open_scene(uri, sensor, bands)
    except BandError as error:
        if sensor is None and bands is None:  # the encoder's own names and wavelengths may say what the file does not
            with suppress(GeomimError):
                return open_scene(uri, contract.sensor)
        if sensor is None or bands:
            raise _named(uri, error) from error
        # a product that names its bands may lack some that the encoder does not need
        needed = sensor.select([sensor.names[place] for place in contract.indices(sensor.bands)])
        with suppress(GeomimError), open_scene(uri) as named:
            match_bands(needed.bands, named.sensor.bands)
            return open_scene(uri, needed)
        raise _named(uri, error) from error


def _of_needed(contract: BandContract, scene: Scene, sensor: Sensor | None, bands: Sequence[str] | None) -> Scene:
    """The scene opened again with the bands alone that the contract needs, where it then differs in nothing else."""
    places = {*contract.indices(scene.sensor.bands)}
    others = [name for place, name in enumerate(scene.sensor.names) if place not in places]
    if not others:
        return scene
    needed = replace(scene.sensor, bands=tuple(scene.sensor.bands[place] for place in sorted(places)))
    for asked in [] if bands else _ways(scene, sensor, needed):
        with suppress(GeomimError):
            again = open_scene(scene.uri, *asked)
            if (again.sensor, again.notes, _lie(again)) == (needed, scene.notes, _lie(scene)):
                scene.close()
                return replace(again, assumed=scene.assumed)
            again.close()
    said = f"the model does not need {', '.join(others)}, but where nodata stands there, the map is nodata, too"
    return replace(scene, notes=(*scene.notes, f"{said}{': --bands may leave that out' if bands else ''}"))


def _ways(scene: Scene, sensor: Sensor | None, needed: Sensor) -> list[tuple[Sensor | None, Sequence[str] | None]]:
    """Sensors and bands by which a scene may be opened with some bands of it.

    Bands of the user's are not among them: they may be in file order, and some of them names of others in the file.
    """
    if scene.assumed:  # in file order, too
        return [(sensor, [name if name in needed.names else "-" for name in scene.sensor.names])]
    return [(None, needed.names), (needed, None)] if sensor is None else [(sensor.select(needed.names), None)]


def _lie(scene: Scene) -> tuple[object, ...]:
    return scene.crs, scene.transform, scene.height, scene.width


def _named(uri: str, error: BandError) -> BandError:
    """The error with the file that it speaks of: of many scenes it may be any."""
    return error if uri in str(error) else BandError(f"'{uri}': {error}")


def check_scene(
    scene: Scene, prepare: ContractInput, places: Sequence[tuple[int, int]], side: int, also: Sequence[str] = ()
) -> None:
    """Refuse a scene whose numbers are far from the contract's; say what was assumed of them, and what is unusual.

    Args:
        scene: Opened by `open_for`.
        prepare: As it gave it.
        places: Top and left of the windows that some are looked at of.
        side: Of the windows, in pixels.
        also: What else is to be said.

    Raises:
        InputError: The numbers must be in another unit.
    """
    for note in (*(f"'{scene.uri}'{said}" for said in assumed_of(scene, prepare)), *also):
        print(f"note: {note}")
    for note in check_range(prepare, looks(scene, places, side), f"'{scene.uri}'"):
        print(f"note: {note}")


def assumed_of(scene: Scene, prepare: ContractInput) -> list[str]:
    """What was assumed of a scene that `open_for` gave, and its notes: what follows its name in a sentence."""
    said = []
    if prepare.sensor != scene.sensor:
        told = dict.fromkeys(f"{u} = number * {s:g} + {o:g}" for u, s, o in prepare.contract.sensor.meanings)
        meant = f"{', '.join(told)} is assumed, as the encoder was trained on"
        said.append(f" states no unit: {meant}; --sensor says otherwise")
    if scene.assumed:
        names = ", ".join(scene.sensor.names)
        said.append(f" names no bands: they are assumed to be {names}, in this order; --bands says otherwise")
    return [*said, *(f": {note}" for note in scene.notes)]


def looks(scene: Scene, places: Sequence[tuple[int, int]], side: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows as `check_range` takes them, of `(top, left)` in an order drawn by chance, always the same."""
    for place in np.random.default_rng(0).permutation(places).tolist():
        numbers, valid = read_window(scene, *place, side)
        yield torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None]


def gsd_note(scene: Scene, contract: BandContract, fitted_at: float | None = None) -> tuple[str, ...]:
    """That a scene is far finer or coarser than what a model was fitted on, or else than its sensor, in a sentence."""
    gsd = fitted_at or contract.sensor.gsd
    if not gsd or not scene.gsd or 1 / 1.5 <= scene.gsd / gsd <= 1.5:
        return ()
    how = f"was fitted at {gsd:.3g} m" if fitted_at else f"is for {gsd:.3g} m, which its sensor has"
    said = f"'{scene.uri}' has {scene.gsd:.3g} m a pixel, and the model {how}"
    return (f"{said}: things are of another size to it; resample the scene, or look at the map with care",)


def scale_note(scene: Scene, contract: BandContract, fitted_at: float | None = None) -> str:
    """For which metres a pixel positions are made that follow them, and whether a probe that was fitted knows such."""
    gsd = scene.gsd or contract.sensor.gsd
    if gsd is None:
        return f"'{scene.uri}': nothing tells its metres a pixel: positions are those of unknown ones"
    said = f"'{scene.uri}': positions follow the metres a pixel: they are made for {gsd:.3g} m"
    said += ", which its sensor has, as the scene has no place" if scene.crs is None else ""
    if fitted_at and not 1 / 1.5 <= gsd / fitted_at <= 1.5:
        said += f"; the probe was fitted at {fitted_at:.3g} m, and may not know what things look like here"
    return said
