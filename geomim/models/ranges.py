"""Whether numbers can be what an encoder was trained on: in another unit they give a map of one class, not an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from geomim.errors import BandError, InputError
from geomim.models.inputs import ContractInput

LOOKS, PIXELS = 64, 4096
"""Images with a valid pixel that are looked at, and about how many pixels of each."""

# No scene is fifty times darker than usual in all its bands, nor is one band thirty deviations brighter: snow and
# cloud reach some twenty in visible light, and lakes are dark and flat, but hardly so in the blue.
_DARKER, _FARTHER, _BEYOND_BITS = 50, 30, 8
_ODD, _FLATTER, _ONE_CLASS = 5, 8, 2000
_FACTORS = (10000, 1000, 255, 100, 10000 / 255)


@dataclass(frozen=True)
class _Seen:
    """Valid pixels as deviations from the contract's means: a value for each band that varies, `(K,)` float64.

    Attributes:
        places: Of these bands in the contract.
        eight_bit: The numbers are stored in 8 bits.
        mean: Their mean; likewise `std`, `low` and `high`.
        usual: The contract's mean, in its stored numbers; likewise `spread`, its deviation.
        unit: The contract's deviation in the numbers that are given; `zero` is its mean in them.
    """

    places: list[int]
    eight_bit: bool
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    usual: Tensor
    spread: Tensor
    unit: Tensor
    zero: Tensor

    def stored(self, deviations: Tensor) -> Tensor:
        """Deviations as stored numbers of the contract."""
        return self.usual + deviations * self.spread

    @property
    def smaller(self) -> Tensor:
        """By which factor the numbers are smaller than they should be, as they are given: an offset comes after it."""
        given = self.mean * self.unit + self.zero
        return (self.zero.square() + self.unit.square()).sqrt() / torch.hypot(given, self.std * self.unit)

    @property
    def flat(self) -> bool:
        """Whether they vary, but thousands of times too little; not by rounding alone, nor by single counts."""
        given, std = (self.mean * self.unit + self.zero).abs(), self.std * self.unit.abs()
        fractional = ((self.high - self.low) * self.unit.abs() < 1).all()
        return bool((self.std < 1 / _ONE_CLASS).all() & (std > 1e-6 * given).any() & fractional)


def check_range(prepare: ContractInput, sample: Iterable[tuple[Tensor, Tensor | None]], what: str) -> tuple[str, ...]:
    """Compare images with the statistics of the contract that they are prepared for.

    Args:
        prepare: Brings them to the contract.
        sample: Stored numbers `(B, C, H, W)` and validity `(B, H, W)` bool or None, from all over the images; read on
            until `LOOKS` of them hold a valid pixel.
        what: The images, in words.

    Returns:
        A sentence where they are unusual; nothing where they are not, or no pixel is valid.

    Raises:
        InputError: They must be in another unit; the sentence names both ranges, the likely factor, and the flag that
            tells geomim of it.
    """
    seen = _look(prepare, sample)
    if seen and not any(bool(one.std.any()) for one in seen):
        return (f"{what}: every pixel that was looked at holds the same number",)
    return tuple(word for one in seen for word in _judged(prepare, one, what))


def _judged(prepare: ContractInput, seen: _Seen, what: str) -> tuple[str, ...]:
    """`check_range` of bands of one unit."""
    band, ranges = _ranges(prepare, seen)
    fault = _fault(prepare, seen)
    if fault is not None:
        raise InputError(f"{what}: band {band} holds {ranges}: {fault}")
    if bool((seen.mean.abs() > _ODD).any() | (seen.std < 1 / _FLATTER).all() | (seen.std > _FLATTER).all()):
        return (f"{what} is far from what the encoder was trained on: band {band} holds {ranges}",)
    usual = seen.stored(torch.full_like(seen.mean, -2.0))
    tenthousandths = set(prepare.contract.sensor.meanings) == {("reflectance", 1e-4, 0.0)}
    if tenthousandths and bool((seen.stored(seen.low) >= 1000).all() & (usual < 1000).any()):
        return (
            f"{what}: no number is below 1000 in any band: where it carries the offset of newer Sentinel-2 products, "
            "give a sensor with offset: -0.1 (--sensor FILE.yaml)",
        )
    return ()


def _look(prepare: ContractInput, sample: Iterable[tuple[Tensor, Tensor | None]]) -> list[_Seen]:
    """What they hold, of bands of one unit at a time; nothing where no pixel is valid."""
    parts: list[Tensor] = []
    looks, bits = 0, True
    for numbers, valid in sample:
        images, seen = prepare(numbers, valid)
        pixels = images.transpose(0, 1)[:, seen[:, 0]]
        parts.append(pixels[:, :: max(1, pixels.shape[1] // (PIXELS * len(images)))].double().cpu())
        bits &= numbers.dtype == torch.uint8
        looks += int(seen.flatten(1).any(1).sum())
        if looks >= LOOKS:
            break
    known = torch.tensor(prepare.contract.std) > 0
    pixels = torch.cat(parts, 1)[known] if parts else torch.empty(0, 0)
    if not pixels.numel():
        return []
    usual, spread = (torch.tensor(values).double()[known] for values in (prepare.contract.mean, prepare.contract.std))
    factor, shift = (value.flatten().double()[known] for value in (prepare.factor, prepare.shift))
    low, high = pixels.aminmax(dim=1)
    tensors = (pixels.mean(1), pixels.std(1, correction=0), low, high, usual, spread, 1 / factor, -shift / factor)
    places = known.nonzero().flatten()
    units = [prepare.contract.sensor.meaning(place)[0] for place in places.tolist()]
    # that bands of one unit are as they should be says nothing of those of another
    groups = [[at for at, one in enumerate(units) if one == unit] for unit in dict.fromkeys(units)]
    return [_Seen(places[group].tolist(), bits, *(one[group] for one in tensors)) for group in groups]


def _fault(prepare: ContractInput, seen: _Seen) -> str | None:
    """Why the numbers cannot be right, and what to do; None where they can."""
    contract, spread = prepare.contract, seen.spread
    mean, low, high = (seen.stored(value) for value in (seen.mean, seen.low, seen.high))
    if bool((low > 0).all() & (seen.usual + 2 * spread < 0).all()):
        if bool(((10 * mean.log10() - seen.usual).abs() < 3 * spread).all()):
            return "these are linear numbers for an encoder of decibels: give 10 * log10 of them"
    if bool((high < 0).all() & (seen.usual > 0).all()):
        if bool(((10 ** (mean / 10) / seen.usual).log10().abs() < 1).all()):
            return "these are decibels for an encoder of linear numbers: give 10 ** (number / 10)"
    most = (255 - seen.zero) / seen.unit  # of 8 bits
    if (
        bool((seen.mean.abs() > _FARTHER).any() | (seen.smaller > _DARKER).all())
        or (contract.eight_bit and bool(((mean > 255) & (seen.mean > _BEYOND_BITS)).all()))
        or (seen.eight_bit and bool((most < 0).all()))
    ):
        return _remedy(prepare, seen)
    if seen.flat:
        varies = f"every band varies more than {_ONE_CLASS:,} times less, which makes a map of one class"
        return f"{varies}. Look at how the numbers were scaled, and say what they mean with --sensor FILE.yaml"
    return None


def _remedy(prepare: ContractInput, seen: _Seen) -> str:
    """The likely cause, and the file that says what the numbers mean, band by band where they do not mean one thing."""
    cause, scaling = _cause(prepare, seen)
    meanings, bands, keys = list(prepare.sensor.meanings), _bands(prepare), ("unit", "scale", "offset")
    unit = prepare.contract.sensor.meaning(seen.places[0])[0]
    for place, one in zip(seen.places, scaling, strict=True):
        meanings[prepare.indices[place]] = (unit, *one)
    means: dict[str, Any] = {"name": "mine"}
    if {one[0] for one in prepare.contract.sensor.meanings} == {unit} and len(set(scaling)) == 1:
        means |= {**dict(zip(keys, (unit, *scaling[0]), strict=True)), "bands": bands}
    else:
        named = [band if isinstance(band, dict) else {"name": band} for band in bands]
        means["bands"] = [band | dict(zip(keys, one, strict=True)) for band, one in zip(named, meanings, strict=True)]
    text = yaml.safe_dump(means, default_flow_style=True, sort_keys=False, width=9999).strip()
    return f"{cause}. Say what the numbers mean in a file, given as --sensor FILE.yaml: {text}"


def _bands(prepare: ContractInput) -> list[Any]:
    """The given bands for a file: names, and what else finds them where names alone would find others, or none."""
    names = list(prepare.sensor.names)
    try:
        if prepare.contract.indices(names) == prepare.indices:
            return names
    except BandError:
        pass
    keys = ("name", "alias", "wavelength", "bandwidth", "polarisation")
    return [{key: vars(band)[key] for key in keys if vars(band)[key] is not None} for band in prepare.sensor.bands]


def _cause(prepare: ContractInput, seen: _Seen) -> tuple[str, list[tuple[float, float]]]:
    """In what the numbers differ: in words, and the scale and offset of each band that would be right."""
    own = [prepare.contract.sensor.meaning(place) for place in seen.places]
    told = [prepare.sensor.meaning(prepare.indices[place]) for place in seen.places]
    own_scale, own_offset = torch.tensor([one[1:] for one in own]).double().T
    meant = (seen.mean * seen.unit + seen.zero - own_offset) / own_scale  # were they of the unit itself
    if {one[1:] for one in told} != {(1.0, 0.0)} and bool(((meant - seen.usual).abs() < _ODD * seen.spread).all()):
        _, scale, offset = told[0]
        words = f"as {own[0][0]} itself does, not number * {scale:g} + {offset:g}"
        return words, [(1.0, 0.0)] * len(told)
    if bool(((seen.std > 0.2) & (seen.std < 5)).all()):
        shift = float((-seen.mean * seen.spread * own_scale).median())
        words = f"about {abs(_short(shift)):,g} too {'small' if shift > 0 else 'large'}"
        return words, [(scale, _short(offset + shift)) for _, scale, offset in told]
    smaller = float(seen.smaller[seen.smaller.isfinite()].median())
    times = _usual_factor(max(smaller, 1 / smaller))
    words = f"about {f'{times:,.0f}' if times > 99 else f'{times:.3g}'} times too {'small' if smaller > 1 else 'large'}"
    return words, [(_short(one * times if smaller > 1 else one / times, 6), offset) for _, one, offset in told]


def _usual_factor(times: float) -> float:
    """The nearest factor between units that are in use, or the one found in two digits."""
    near = min(_FACTORS, key=lambda usual: max(usual / times, times / usual))
    return near if max(near / times, times / near) < 1.7 else _short(times)


def _short(value: float, digits: int = 2) -> float:
    return float(f"{value:.{digits}g}")


def _ranges(prepare: ContractInput, seen: _Seen) -> tuple[str, str]:
    """The band that is farthest off; what it holds and what it should, in the numbers that are given."""
    place = int((seen.mean.abs() + seen.std.clamp_min(1e-9).log().abs()).argmax())
    low, high, mean, least, most, usual = (
        f"{float(value * seen.unit[place] + seen.zero[place]):.4g}"
        for value in (seen.low[place], seen.high[place], seen.mean[place], -2.0, 2.0, 0.0)
    )
    return prepare.contract.names[
        seen.places[place]
    ], f"{low} to {high} (mean {mean}), where the encoder knows {least} to {most} (mean {usual})"
