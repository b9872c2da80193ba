"""An encoder of any sensor, fitted to one: which bands and statistics its input must have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import yaml

from geomim.errors import BandError, CheckpointError
from geomim.models.vit import ViT
from geomim.models.weights import IMAGENET, Loaded, contract_of
from geomim.sensors import Band, BandContract, Sensor, find_band, get_sensor

Chosen = tuple[BandContract, tuple[str, ...]]


def fitted(encoder: ViT, contract: BandContract | None, gsd: float | None = None, patch_size: int | None = None) -> ViT:
    """The encoder as a plain one of one sensor; arguments as for `ViT.bake`, and None for published weights of RGB."""
    config = encoder.config
    if not (config.get("spectral") or config.get("gsd_positions") or patch_size):
        return encoder
    return encoder.bake(contract or IMAGENET, gsd, patch_size)


def contract_for(loaded: Loaded, name: str, sensor: Sensor, own: BandContract | None = None) -> Chosen:
    """What an encoder is to be given of some images, and what was assumed, in sentences.

    Args:
        loaded: The encoder. A plain one keeps its contract.
        name: Its file, for the sentences.
        sensor: What the images' numbers are.
        own: Statistics of the images themselves, for a sensor that the encoder never saw.

    Raises:
        BandError: The encoder names no bands, or the sensor has one that no kernel or no statistics are known for.
    """
    if not loaded.encoder.config.get("spectral"):
        return contract_of(loaded, name)
    contract, notes = _for_images(loaded.contracts, sensor, own)
    return contract, (*loaded.notes, *notes)


def named_contract(
    loaded: Loaded, name: str, sensor: str | None, bands: Sequence[str] | None
) -> tuple[BandContract | None, tuple[str, ...]]:
    """The contract that a user names, and what was assumed.

    Args:
        loaded: The encoder.
        name: Its file, for the sentences.
        sensor: One that it was trained on, another one, or a YAML file; its only one where None.
        bands: Some of the bands; all where None.

    Returns:
        The contract, None for weights that name no bands; and sentences.

    Raises:
        CheckpointError: It is of several sensors and none is named, or it is a plain one and something is.
        BandError: There are no such bands, or nothing is known of their statistics.
    """
    if not loaded.encoder.config.get("spectral"):
        if sensor or bands:
            raise CheckpointError(f"'{name}' is a plain encoder of its own bands: leave out --sensor and --bands")
        return loaded.contract, ()
    contracts = loaded.contracts
    if sensor is None:
        if loaded.contract is None:
            raise CheckpointError(f"'{name}' is of several sensors ({', '.join(contracts)}): name one with --sensor")
        sensor = next(iter(contracts))
    if sensor in contracts:
        contract = contracts[sensor].select(bands) if bands else contracts[sensor]
        return _of_all(contract, contracts), (f"trained on {', '.join(contracts)}; this is it for '{sensor}'",)
    given, statistics = _read(sensor)
    if statistics is None:
        given = given.select(bands) if bands else given
        contract, notes = _never_seen(contracts, given)
    else:
        contract, notes = statistics.select(bands) if bands else statistics, ("mean and std are those of the file",)
    said = f"never trained on '{given.name}', only on {', '.join(contracts)}: its kernels are made from wavelengths"
    return _of_all(contract, contracts), (said, *notes)


def _read(sensor: str) -> tuple[Sensor, BandContract | None]:
    """A sensor, and where its file holds `mean` and `std` too, its contract."""
    path = Path(sensor)
    values = yaml.safe_load(path.read_text()) if path.suffix in (".yaml", ".yml") and path.is_file() else None
    if not isinstance(values, Mapping) or not {"mean", "std"} & set(values):
        given = get_sensor(sensor)
        return given, None
    given = Sensor.from_dict({key: value for key, value in values.items() if key not in ("mean", "std")})
    mean, std = (tuple(map(float, values.get(key) or ())) for key in ("mean", "std"))
    return given, BandContract(given, mean, std)


def _for_images(contracts: Mapping[str, BandContract], sensor: Sensor, own: BandContract | None) -> Chosen:
    """The contract for images: one trained on whose bands they have, else one of their own bands."""

    def suits(contract: BandContract) -> bool:
        try:
            places = contract.indices(sensor.bands)
        except BandError:
            return False
        # numbers of no stated unit may be the contract's, where nothing else is known of them
        unknown = Sensor.unit if own is None else None
        units = zip(contract.sensor.meanings, map(sensor.meaning, places), strict=True)
        return all(given[0] in (wanted[0], unknown) for wanted, given in units)

    known = [name for name, contract in contracts.items() if suits(contract)]
    if known:
        best = max(known, key=lambda name: (contracts[name].sensor.name == sensor.name, len(contracts[name].names)))
        note = (
            f"trained on {', '.join(contracts)}: the images are seen as '{best}' ({', '.join(contracts[best].names)})"
        )
        return contracts[best], (note,)
    said = f"never trained on '{sensor.name}' ({', '.join(sensor.names)}), only on {', '.join(contracts)}"
    if own is not None and own.sensor == sensor:
        return own, (f"{said}: its kernels are made from wavelengths, its mean and std are those of the images",)
    contract, notes = _never_seen(contracts, sensor)
    return contract, (f"{said}: its kernels are made from wavelengths", *notes)


def _never_seen(contracts: Mapping[str, BandContract], sensor: Sensor) -> Chosen:
    """Statistics from bands that were trained on, of one unit: the same band, or the nearest in wavelength."""
    known = [
        (band, name, contract.sensor.meaning(place), contract.mean[place], contract.std[place])
        for name, contract in contracts.items()
        for place, band in enumerate(contract.sensor.bands)
    ]
    mean, std, said = [], [], []
    for place, band in enumerate(sensor.bands):
        unit, scale, offset = sensor.meaning(place)
        alike = [one for one in known if one[2][0] == unit]
        found = nearest_band(band, [one[0] for one in alike])
        if found is None:
            raise BandError(
                f"'{sensor.name}': no band that the encoder knows tells mean and std of {band.name} in {unit}: "
                "give them as 'mean' and 'std' in the YAML file of the sensor, a number a band"
            )
        other, name, (_, times, plus), centre, spread = alike[found]
        mean.append((centre * times + plus - offset) / scale)
        std.append(spread * abs(times / scale))
        said.append(f"{band.name} as {other.name} of {name}")
    return BandContract(sensor, tuple(mean), tuple(std)), (f"mean and std are borrowed: {', '.join(said)}",)


def nearest_band(band: Band, offered: Sequence[Band]) -> int | None:
    """Where the same band stands, or the one of nearest wavelength; None for radar and bands without wavelength."""
    found = find_band(band, offered)
    if found is not None or band.polarisation or not band.wavelength:
        return found
    optical = [place for place, one in enumerate(offered) if one.wavelength and not one.polarisation]
    ratio = band.wavelength
    return min(optical, key=lambda place: abs(math.log((offered[place].wavelength or 1) / ratio)), default=None)


def _of_all(contract: BandContract, contracts: Mapping[str, BandContract]) -> BandContract:
    """With the rights and corpora of everything that the weights were trained on."""
    licences, attributions, corpora = (
        tuple(dict.fromkeys(chain.from_iterable(getattr(one, key) for one in contracts.values())))
        for key in ("licences", "attributions", "corpora")
    )
    return replace(contract, licences=licences, attributions=attributions, corpora=corpora)
