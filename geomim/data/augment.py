"""From raw tiles to normalised images, on the device: crop, scale, flip, turn and normalise a whole batch at once.

Crop, scale and flip of an image are two small matrices, one for its rows and one for its columns, so a batch is
two batched matrix products: static shapes, no synchronisation, and the anti-aliased triangle filter that Pillow and
torchvision use (a plain `grid_sample` aliases wherever it shrinks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from geomim.randomness import Draws
from geomim.sensors import BandContract

_CHUNK = 32  # images at a time on a CPU: their float copies stay in its cache (2.5 times faster)


def resampling(start: Tensor, length: Tensor, size: int, out: int, flip: Tensor | None = None) -> Tensor:
    """Weights that cut `[start, start + length)` out of an axis and scale it to `out` pixels.

    Args:
        start: `(B,)` float, first pixel edge of the cut.
        length: `(B,)` float, its length in pixels, above 0.
        size: Length of the axis.
        out: Length of the result.
        flip: `(B,)` bool, mirrored where True.

    Returns:
        `(B, out, size)` float32, rows sum to 1; bilinear, widened to the scale when it shrinks (anti-aliased).
    """
    scale = length / out
    centres = start[:, None] + (torch.arange(out, device=start.device) + 0.5) * scale[:, None]  # (B, out)
    if flip is not None:
        centres = torch.where(flip[:, None], centres.flip(1), centres)
    reach = scale.clamp(min=1.0)[:, None, None]
    pixels = torch.arange(size, device=start.device) + 0.5
    weights = (pixels - centres[..., None]).abs_().div_(-reach).add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def resample(images: Tensor, rows: Tensor, columns: Tensor, valid: Tensor | None = None) -> Tensor:
    """Apply `resampling` weights.

    Args:
        images: `(B, C, H, W)`, any number type.
        rows: `(B, h, H)`.
        columns: `(B, w, W)`.
        valid: `(B, 1, H, W)` bool; other pixels count as 0, whatever they hold (a NaN would spread).

    Returns:
        `(B, C, h, w)` float32.
    """
    size = len(images) if images.is_cuda else _CHUNK
    parts = []
    for place in (slice(start, start + size) for start in range(0, len(images), size)):
        part = images[place].float()
        part = part if valid is None else torch.where(valid[place], part, 0.0)
        parts.append(rows[place, None] @ part @ columns[place, None].transpose(-1, -2))
    return torch.cat(parts)


Boxes = tuple[Tensor, Tensor, Tensor, Tensor]


def crop_boxes(
    draws: Draws, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], view: str = ""
) -> Boxes:
    """Draw one random box an image, as `RandomResizedCrop` does but not rounded to whole pixels.

    A box longer than the image is shortened to it, where torchvision draws again.

    Args:
        draws: Randomness of the batch.
        size: Height and width of the images.
        scale: Least and greatest share of the area.
        ratio: Least and greatest width over height; drawn log-uniformly.
        view: Start of the purposes of the draws.

    Returns:
        Top, left, height and width, `(B,)` float32 in pixels.
    """
    height, width = size
    area, aspect, y, x = draws(f"{view}crop", 4).unbind(1)
    area = (scale[0] + area * (scale[1] - scale[0])) * height * width
    aspect = torch.exp(math.log(ratio[0]) + aspect * (math.log(ratio[1]) - math.log(ratio[0])))
    box_height = (area / aspect).sqrt().clamp(max=height)
    box_width = (area * aspect).sqrt().clamp(max=width)
    return y * (height - box_height), x * (width - box_width), box_height, box_width


def boxes_on_both(boxes: Boxes, size: tuple[int, int], offset: Tensor) -> tuple[Boxes, Boxes]:
    """Boxes of one ground in tiles of `size` and in others, which lie `offset (B, 2)` pixels below and to the right.

    Where a box does not lie in both, it is moved, and shortened as far as it must.
    """
    found = []
    for start, length, side, lag in zip(boxes[:2], boxes[2:], size, offset.unbind(1), strict=True):
        length = torch.minimum(length, side - lag.abs())
        start = start.clamp(lag.clamp(min=0), side - length + lag.clamp(max=0))
        found.append((start, start - lag, length))
    (top, other_top, height), (left, other_left, width) = found
    return (top, left, height, width), (other_top, other_left, height, width)


class Augment:
    """Random resized crop, flips and quarter turns, then normalisation, for one batch on its device.

    Args:
        contracts: By the names of sensors: means and standard deviations, in the channel order of the images.
        image_size: Side of the result in pixels.
        scale: Least and greatest share of a tile that a crop covers.
        ratio: Least and greatest width over height of a crop.
        flip: Mirror left and right at random, or also top and bottom, as seen from above there is no up; or `none`.
        turn: Also turn by 90 degrees at random.
        seed: Seed of the run.
        jitter: Greatest change of a band of an image, once normalised: by a factor 1 -+ jitter and by -+ jitter.
        shift: Greatest error of the crop of another date, in pixels of the tile.

    Attributes:
        second: Also cut the view `second`, another crop of the tile.
    """

    def __init__(
        self,
        contracts: Mapping[str, BandContract],
        image_size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: Literal["none", "horizontal", "both"] = "both",
        turn: bool = False,
        seed: int = 0,
        jitter: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        self.statistics = {name: list(statistics(contract)) for name, contract in contracts.items()}
        self.image_size, self.jitter, self.shift, self.second = image_size, jitter, shift, False
        self.scale, self.ratio, self.flip, self.turn, self.seed = scale, ratio, flip, turn, seed

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn a raw batch into a training batch.

        Args:
            batch: `image (B, C, H, W)` in any number type, `sensor`, `position (B,)`, and `valid (B, 1, H, W)` bool
                where some pixel is not; optionally `gsd (B,)` and `views` with `date`, see `TileSet.read`.

        Returns:
            The batch with `image (B, C, size, size)` float32, and `valid (B, 1, size, size)` bool if it came with one;
            `gsd` of the result, `teacher` of the crop as of the tile. Its `views` are dicts of the same.
        """
        draws, size, views = Draws(self.seed, batch["position"]), batch["image"].shape[-2:], {}
        boxes, flips = crop_boxes(draws, size, self.scale, self.ratio), draws("flip", 3)
        if date := batch.get("views", {}).get("date"):
            offset = date["offset"] + (draws("date/shift", 2) * 2 - 1) * self.shift
            boxes, others = boxes_on_both(boxes, size, offset)
            views["date"] = date | self._cut(date, others, flips, draws, "date/")
        if self.second:
            others = crop_boxes(draws, size, self.scale, self.ratio, "second/")
            views["second"] = self._cut(batch, others, draws("second/flip", 3), draws, "second/")
        ready = batch | self._cut(batch, boxes, flips, draws)
        return ready | {"views": views} if views else ready

    def whole(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What `__call__` gives, but of whole tiles, without any change by chance."""
        start = torch.zeros(len(batch["image"]), device=batch["image"].device)
        height, width = (start + side for side in batch["image"].shape[2:])
        return batch | self._cut(batch, (start, start, height, width), start.new_ones(len(start), 3))

    def _cut(
        self, raw: dict[str, Any], boxes: Boxes, flips: Tensor, draws: Draws | None = None, view: str = ""
    ) -> dict[str, Tensor]:
        images, (top, left, height, width) = raw["image"], boxes
        upside, mirrored, turned = (flips < 0.5).unbind(1)
        flipped = upside if self.flip == "both" else None
        mirrored = None if self.flip == "none" else mirrored

        def cut(values: Tensor, valid: Tensor | None, scaling: tuple[Tensor, Tensor], out: int) -> dict[str, Tensor]:
            # the box of pixels, or of larger cells of the same ground
            down, right = (cells / pixels for cells, pixels in zip(values.shape[2:], images.shape[2:], strict=True))
            rows = resampling(top * down, height * down, values.shape[2], out, flipped)
            columns = resampling(left * right, width * right, values.shape[3], out, mirrored)
            return finish(values, valid, rows, columns, scaling, turned if self.turn else None)

        mean, std = self.statistics[raw["sensor"]] = [one.to(images.device) for one in self.statistics[raw["sensor"]]]
        if self.jitter and draws is not None:  # folded into the normalisation: (x - mean) / std * gain + summand
            gain, summand = ((draws(f"{view}jitter", 2, len(mean), 1, 1) * 2 - 1) * self.jitter).unbind(1)
            std = std / (1 + gain)
            mean = mean - summand * std
        ready = cut(images, raw.get("valid"), (mean, std), self.image_size)
        if "teacher" in raw:
            tokens, side = raw["teacher"], math.isqrt(raw["teacher"].shape[1] - 1)
            cells = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            cells = cut(cells, None, (tokens.new_zeros(()), tokens.new_ones(())), side)["image"]
            ready["teacher"] = torch.cat([tokens[:, :1].float(), cells.flatten(2).transpose(1, 2)], 1)
        return ready | ({"gsd": raw["gsd"] * (height * width).sqrt() / self.image_size} if "gsd" in raw else {})


def statistics(contract: BandContract) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of a contract, `(C, 1, 1)` float32 each; a constant band is divided by 1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (contract.mean, contract.divisor))
    return mean, std


def finish(
    images: Tensor,
    valid: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    scaling: tuple[Tensor, Tensor],
    turned: Tensor | None = None,
) -> dict[str, Tensor]:
    """Resample, turn and normalise.

    A result pixel is valid only where every pixel that has a share in it is, so no invalid number leaks.

    Args:
        images: `(B, C, H, W)` raw.
        valid: `(B, 1, H, W)` bool, or None where all are.
        rows: `(B, h, H)` from `resampling`.
        columns: `(B, w, W)` from `resampling`.
        scaling: Means and standard deviations, `(C, 1, 1)` or `(B, C, 1, 1)`, on the device of the images.
        turned: `(B,)` bool, True to swap rows and columns (needs h = w).

    Returns:
        `image (B, C, h, w)` float32 normalised, 0 where invalid; with it `valid (B, 1, h, w)` bool where given.
    """
    if turned is not None:
        turned = turned[:, None, None, None]
    with torch.autocast(images.device.type, enabled=False):  # a bfloat16 crop would keep 8 of 16 bits
        image = resample(images, rows, columns, valid).sub_(scaling[0]).div_(scaling[1])
        image = image if turned is None else torch.where(turned, image.transpose(2, 3), image)
        if valid is None:
            return {"image": image}
        good = resample(~valid, rows, columns) == 0
        good = good if turned is None else torch.where(turned, good.transpose(2, 3), good)
        return {"image": torch.where(good, image, 0.0), "valid": good}
