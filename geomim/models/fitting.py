"""An encoder of any sensor, fitted to one: which bands and statistics its input must have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.vit import ViT
from geomim.models.weights import IMAGENET, Loaded, contract_of
from geomim.sensors import Band, BandContract, Sensor, find_band, get_sensor, polarisation_of, stated_contract

Chosen = tuple[BandContract, tuple[str, ...]]
"""The contract that an encoder is used with, and what was assumed, in sentences."""


def fitted(
    encoder: Encoder, contract: BandContract | None, gsd: float | None = None, patch_size: int | None = None
) -> Encoder:
    """The encoder as a plain one of one sensor; arguments as for `ViT.bake`, no contract for published ones of RGB."""
    if not isinstance(encoder, ViT):
        if patch_size:
            raise ConfigError("the patches of a hierarchical encoder are of one size: leave out --patch-size")
        return encoder
    changes = encoder.config.get("spectral") or encoder.config.get("gsd_positions") or patch_size
    return encoder.bake(contract or IMAGENET, gsd, patch_size) if changes else encoder


def contract_for(
    loaded: Loaded, name: str, sensor: Sensor, own: BandContract | None = None, all_bands: bool = False
) -> Chosen:
    """What an encoder is to be given of some images: their bands as it was trained on, or all of them.

    Args:
        loaded: The encoder. A plain one keeps its contract.
        name: Its file, for the sentences.
        sensor: What the images' numbers are.
        own: Statistics of the images themselves, or that a user states, for a sensor that the encoder never saw.
        all_bands: All of their bands, though only some were trained on; of a spectral encoder.

    Raises:
        ConfigError: All bands are asked of a plain encoder.
        BandError: The encoder names no bands, or the sensor has one that no kernel or no statistics are known for.
    """
    if not loaded.encoder.config.get("spectral"):
        if all_bands:
            raise ConfigError(f"'{name}' is a plain encoder of its own bands: leave out --all_bands")
        return contract_of(loaded, name)

    def suits(contract: BandContract) -> bool:
        try:
            places = contract.indices(sensor.bands)
        except BandError:
            return False
        if all_bands and len(places) < len(sensor.bands):
            return False
        # numbers of no stated unit may be the contract's, where nothing else is known of them
        unknown = Sensor.unit if own is None else None
        units = zip(contract.sensor.meanings, map(sensor.meaning, places), strict=True)
        return all(given[0] in (wanted[0], unknown) for wanted, given in units)

    known = {key: contract for key, contract in loaded.contracts.items() if suits(contract)}
    if known:
        best = max(known, key=lambda key: (known[key].sensor.name == sensor.name, len(known[key].names)))
        said = f"trained on {', '.join(loaded.contracts)}: the images are seen as '{best}'"
        said += f" ({', '.join(known[best].names)})"
        used = {sensor.names[place] for place in known[best].indices(sensor.bands)}
        if others := [band for band in sensor.names if band not in used]:
            said += f"; {', '.join(others)} of their bands are left out, and where a verb has it --all_bands takes them"
        return known[best], (*loaded.notes, said)
    return _never_seen(loaded, sensor, own if own and own.sensor == sensor else None, "the images")


def named_contract(loaded: Loaded, name: str, sensor: str | None, bands: Sequence[str] | None) -> Chosen:
    """The contract of a spectral encoder that a user names.

    Args:
        loaded: The encoder.
        name: Its file, for the sentences.
        sensor: One that it was trained on, another one, or a YAML file, which may hold `mean` and `std` too; its only
            one where None.
        bands: Some of the bands; all where None.

    Raises:
        CheckpointError: It is of several sensors and none is named.
        BandError: There are no such bands, or nothing is known of their statistics.
    """
    contracts = loaded.contracts
    if sensor is None and len(contracts) > 1:
        raise CheckpointError(f"'{name}' is of several sensors ({', '.join(contracts)}): name one with --sensor")
    if sensor is None and not contracts:
        raise CheckpointError(f"'{name}' names no sensor: say which with --sensor, a name or a YAML file")
    key = sensor or next(iter(contracts))
    if key in contracts:
        said = f"trained on {', '.join(contracts)}; this is it for '{key}'"
        return contracts[key].select(bands) if bands else contracts[key], (*loaded.notes, said)
    return _never_seen(loaded, get_sensor(key, bands), stated_contract(key, bands), f"'{key}'")


def _never_seen(loaded: Loaded, sensor: Sensor, own: BandContract | None, source: str) -> Chosen:
    """All bands of a sensor, with its own statistics or those of bands that were trained on."""
    contracts = loaded.contracts
    just = "just these bands of " if any(one.sensor.name == sensor.name for one in contracts.values()) else ""
    said = f"never trained on {just}'{sensor.name}' ({', '.join(sensor.names)}), only on {', '.join(contracts)}"
    contract, statistics = (own, f"its mean and std are those of {source}") if own else borrowed(contracts, sensor)
    return contract, (*loaded.notes, f"{said}: its kernels are made from wavelengths, {statistics}")


def borrowed(contracts: Mapping[str, BandContract], sensor: Sensor) -> tuple[BandContract, str]:
    """Statistics of the same band of one unit, or of the nearest in wavelength."""
    known = [(key, contract, place) for key, contract in contracts.items() for place in range(len(contract.names))]
    mean, std, said = [], [], []
    for band, (unit, scale, offset) in zip(sensor.bands, sensor.meanings, strict=True):
        alike = [(key, one, place) for key, one, place in known if one.sensor.meaning(place)[0] == unit]
        found = nearest_band(band, [one.sensor.bands[place] for _, one, place in alike])
        if found is None:
            raise BandError(
                f"'{sensor.name}': no band that the encoder knows tells mean and std of {band.name} in {unit}: "
                "give them as 'mean' and 'std' in the YAML file of the sensor, a number a band (--sensor FILE.yaml)"
            )
        key, one, place = alike[found]
        _, times, plus = one.sensor.meaning(place)
        mean.append((one.mean[place] * times + plus - offset) / scale)
        std.append(one.std[place] * abs(times / scale))
        said.append(f"{band.name} as {one.names[place]} of {key}")
    return BandContract(sensor, tuple(mean), tuple(std)), f"its mean and std are borrowed: {', '.join(said)}"


def nearest_band(band: Band, offered: Sequence[Band]) -> int | None:
    """Where the same band stands, or the one of nearest wavelength; None for radar and bands without wavelength."""
    found, length = find_band(band, offered), band.wavelength
    if found is not None or polarisation_of(band) or not length:
        return found
    apart = [
        (abs(math.log(one.wavelength / length)), place)
        for place, one in enumerate(offered)
        if one.wavelength and not polarisation_of(one)
    ]
    return min(apart)[1] if apart else None
