"""From stored numbers of any bands to what an encoder was trained on, as its band contract says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import BandError
from geomim.sensors import BandContract, Sensor


class ContractInput:
    """Picks the contract's bands by name or wavelength, brings them to its numbers and normalises them.

    Args:
        contract: What the encoder expects.
        sensor: What is given, bands in the order of the channels.

    Raises:
        BandError: A band is missing, or the units cannot be brought together.
    """

    def __init__(self, contract: BandContract, sensor: Sensor) -> None:
        self.contract, self.sensor = contract, sensor
        self.indices = contract.indices(sensor.bands)
        wanted, scales, offsets = contract.sensor.meanings, [], []
        for name, own, given in zip(contract.names, wanted, map(sensor.meaning, self.indices), strict=True):
            if own[0] != given[0]:
                raise BandError(
                    f"expected numbers in {own[0]} as sensor '{contract.sensor.name}' stores them; given {given[0]} "
                    f"of '{sensor.name}' for {name}: name the sensor of the images, or describe it in a YAML file"
                )
            scales.append(given[1] / own[1])
            offsets.append((given[2] - own[2]) / own[1])
        # stored number of the image -> unit -> stored number of the contract -> normalised, as one factor and offset
        mean, std = torch.tensor(contract.mean), torch.tensor(contract.divisor)
        self.factor = (torch.tensor(scales) / std)[:, None, None]
        self.shift = ((torch.tensor(offsets) - mean) / std)[:, None, None]

    def __call__(self, numbers: Tensor, valid: Tensor | None = None, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalise a batch.

        Args:
            numbers: `(B, C, H, W)` stored numbers of the given sensor, any dtype.
            valid: `(B, H, W)` bool; all pixels where None. Pixels that are not finite are never valid.
            size: Side to resize to (bilinear with anti-aliasing); the images' own where None.

        Returns:
            `(B, K, S, S)` float32, 0 where not valid, and the validity `(B, 1, S, S)` bool.
        """
        every = [*range(numbers.shape[1])] == [*self.indices]
        images = (numbers if every else numbers[:, self.indices]).float()
        seen = images.sum(1, keepdim=True).isfinite()  # a sum is finite only where all bands are
        if valid is not None:
            seen &= valid[:, None]
        images = images.mul(self.factor.to(images.device)).add_(self.shift.to(images.device))
        images.masked_fill_(~seen, 0.0)
        return resize(images, seen, (size, size)) if size is not None else (images, seen)


def resize(images: Tensor, valid: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Resize images and their validity, mixing valid pixels only.

    Args:
        images: `(B, C, H, W)` float, 0 where not valid.
        valid: `(B, 1, H, W)` bool.
        size: Rows and columns wanted.

    Returns:
        `(B, C, *size)` and `(B, 1, *size)`; a pixel is valid where at least half of what it is made of is.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images, valid
    size = tuple(size)
    images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    if bool(valid.all()):
        return images, valid.new_ones(valid.shape[0], 1, *size)
    share = F.interpolate(valid.float(), size, mode="bilinear", antialias=True, align_corners=False)
    seen = share >= 0.5
    return torch.where(seen, images / share.clamp_min(0.5), 0.0), seen


def patch_validity(valid: Tensor, patch_size: int) -> Tensor:
    """Which patches hold at least as much image as nodata.

    Args:
        valid: `(B, 1, H, W)` bool, sides multiples of `patch_size`.
        patch_size: Side of a patch in pixels.

    Returns:
        `(B, L)` bool in raster order.
    """
    return F.avg_pool2d(valid.float(), patch_size).flatten(1) >= 0.5
