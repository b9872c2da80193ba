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
        wanted = contract.sensor
        if wanted.unit != sensor.unit:
            raise BandError(
                f"expected numbers in {wanted.unit} as sensor '{wanted.name}' stores them; given {sensor.unit} "
                f"of '{sensor.name}': name the sensor of the images, or describe it in a YAML file"
            )
        # stored number of the image -> unit -> stored number of the contract -> normalised, as one factor and offset
        mean, std = torch.tensor(contract.mean), torch.tensor(contract.divisor)
        self.factor = (sensor.scale / wanted.scale / std)[:, None, None]
        self.shift = (((sensor.offset - wanted.offset) / wanted.scale - mean) / std)[:, None, None]

    def __call__(self, numbers: Tensor, valid: Tensor | None = None, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalise a batch.

        Args:
            numbers: `(B, C, H, W)` stored numbers of the given sensor, any dtype.
            valid: `(B, H, W)` bool; all pixels where None. Pixels that are not finite are never valid.
            size: Side to resize to (bilinear with anti-aliasing); the images' own where None.

        Returns:
            `(B, K, S, S)` float32, 0 where not valid, and the validity `(B, 1, S, S)` bool.
        """
        images = numbers[:, self.indices].float()
        seen = torch.isfinite(images).all(1, keepdim=True)
        if valid is not None:
            seen &= valid[:, None]
        images = images * self.factor.to(images.device) + self.shift.to(images.device)
        images = torch.where(seen, images, 0.0)
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
