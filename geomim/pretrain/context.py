"""What a masking, a target or a term may ask of a batch; each thing is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.patches import Latents, Patches, patchify, unpatchify
from geomim.models.spectral import keep_bands
from geomim.models.vit import ViT
from geomim.randomness import Draws

PATCH_VALID = 0.5
"""Least share of valid pixels of a patch that may be predicted."""
IMAGE_VALID = 0.25
"""Least share of valid patches of an image that weighs anything."""

T = TypeVar("T")


class View:
    """One image of every sample: the crop itself, another crop, another date.

    Args:
        image: `(B, C, H, W)` normalised pixels.
        valid: `(B, 1, H, W)` bool, False where nothing was measured; None where everything was.
        encoder: The encoder, for patch size and embedding.
        sensor: Whose bands they are.
        gsd: `(B,)` metres a pixel; None where unknown.
        bands: `(B, C)` what the encoder sees each band multiplied by, see `keep_bands`; all as they are where None.
        teacher: `(B, 1+L, *)` what a teacher says of it, where a cache brings that.
        text: See below.

    Attributes:
        grid: Rows and columns of patches.
        length: Number of patches, L.
        patches: `(B, L, p*p*C)`, see `patchify`.
        pixel_valid: `(B, L, p*p)` bool, which pixels of each patch were measured; None where all were.
        patch_valid: `(B, L)` bool, patches with at least `PATCH_VALID` of their pixels measured; None where all are.
        seen: The patches as the encoder may see them: without the bands that are dropped.
        hidden: `(B, l)` bool as in `TokenSplit`, once the view is split; None where the patches say it.
        whole: Latents of all its patches, with their gradient, where a term reads them before this one; else None.
        shown: Those of its visible patches, likewise.
        text: What the batch says of it in words: `tokens (U, T)` of sentences, `key (U,)` their numbers and `of (B,)`
            the sentence of each image, -1 where it has none; None where nothing is said.
    """

    def __init__(
        self,
        image: Tensor,
        valid: Tensor | None,
        encoder: Encoder,
        sensor: str | None = None,
        gsd: Tensor | None = None,
        bands: Tensor | None = None,
        teacher: Tensor | None = None,
        text: dict[str, Tensor] | None = None,
    ) -> None:
        self.image, self.valid, self.encoder, self.sensor, self.gsd = image, valid, encoder, sensor, gsd
        self.teacher, self.text, size = teacher, text, encoder.patch_size
        self.grid = (image.shape[2] // size, image.shape[3] // size)
        self.length = self.grid[0] * self.grid[1]
        self.patches = patchify(image, size)
        self.pixel_valid = None if valid is None else patchify(valid, size)
        self.patch_valid = None if self.pixel_valid is None else self.pixel_valid.float().mean(-1) >= PATCH_VALID
        seen = self.patches if bands is None else self.patches * bands.repeat(1, size**2)[:, None]
        self.seen = Patches(seen, self.grid, sensor, gsd)
        self.hidden: Tensor | None = None
        self.whole: Latents | None = None
        self.shown: Latents | None = None
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed at the first asking; `key` says what it is."""
        if key not in self._known:
            self._known[key] = compute()
        known: T = self._known[key]
        return known

    def pixels_of(self, cells: Tensor) -> Tensor:
        """What `(B, l)` says of square cells in raster order, for every pixel of each patch: `(B, L, p*p)`."""
        height, width = self.image.shape[2:]
        side = round((height * width / cells.shape[1]) ** 0.5)
        pixels = cells.view(-1, 1, height // side, width // side).repeat_interleave(side, 2).repeat_interleave(side, 3)
        return patchify(pixels, self.encoder.patch_size)

    def tokens(self) -> Tensor:
        """`(B, L, D)` patch embedding plus position, without gradient: what a masking may compare."""

        def embed() -> Tensor:
            if not isinstance(self.encoder, ViT):
                raise ConfigError("this masking compares tokens, which a hierarchical encoder embeds on a finer grid")
            with torch.no_grad():
                return self.encoder.embed(self.seen).float()

        return self.once("tokens", embed)

    def latents(self) -> Latents:
        """What the encoder makes of all patches, with all their bands, without gradient."""

        def encode() -> Latents:
            with torch.no_grad():
                patches = Patches(self.patches, self.grid, self.sensor, self.gsd)
                return self.encoder.encode(patches, None, self.patch_valid)

        return self.once("latents", encode)


def _close_gaps(image: Tensor, patch_size: int, cell: int, offsets: Tensor) -> Tensor:
    """Cut a patch at `offsets (B, L, 2)` out of every cell of `(B, C, H, W)`, and put them side by side."""
    batch, channels, height, width = image.shape
    cells = patchify(image, cell).view(batch, -1, cell, cell, channels)
    rows, columns = (offsets[..., None] + torch.arange(patch_size, device=image.device)).unbind(2)  # (B, L, p) each
    cells = cells.gather(2, rows[..., None, None].expand(-1, -1, -1, cell, channels))
    cells = cells.gather(3, columns[:, :, None, :, None].expand(-1, -1, patch_size, -1, channels))
    return unpatchify(cells.flatten(2), (height // cell, width // cell), patch_size)


class _Views(dict[str, View]):
    """Views by name; `image/2` is another set of tokens of `image`."""

    def __missing__(self, name: str) -> View:
        view, slash, _ = name.partition("/")
        if not slash:
            raise KeyError(name)
        return self[view]


class Context:
    """One batch while it goes through an objective.

    Args:
        batch: `image (B, C, H, W)`, optionally `valid (B, 1, H, W)`, `sensor`, `gsd (B,)`, `weight (B,)` of each image,
            `text` as in `View`, and further `views: {name: {image, valid}}`.
        encoder: The encoder being trained.
        draws: Addressed random numbers of the batch.
        gap: Images larger than the encoder's are cells of `patch_size + gap` pixels, and a patch is cut out of each
            at an offset drawn from 0 to `gap - 1`; images of the encoder's size are taken as they are.

    Attributes:
        views: Its views by name; a name such as `image/2` is the view `image`, for a second set of its tokens.
    """

    def __init__(self, batch: dict[str, Any], encoder: Encoder, draws: Draws, gap: int = 0) -> None:
        self.draws, self.weight = draws, batch.get("weight")
        self.views = _Views()
        for name, view in {"image": batch, **batch.get("views", {})}.items():
            gsd, share, bands = view.get("gsd", batch.get("gsd")), encoder.band_dropout, None
            image, valid, size = view["image"], view.get("valid"), encoder.patch_size
            if gap and image.shape[-1] != encoder.image_size:
                cell = size + gap
                length = (image.shape[-2] // cell) * (image.shape[-1] // cell)
                offsets = (draws(f"gap {name}", length, 2) * gap).long().clamp(max=gap - 1)  # a draw may round to 1
                image = _close_gaps(image, size, cell, offsets)
                valid = None if valid is None else _close_gaps(valid, size, cell, offsets)
            if share and encoder.training:
                bands = keep_bands(draws(f"bands {name}", image.shape[1]), share)
            told = view.get("teacher"), view.get("text")
            self.views[name] = View(image, valid, encoder, batch.get("sensor"), gsd, bands, *told)

    def image_weight(self, *names: str) -> Tensor | None:
        """`(B,)`: 0 where less than `IMAGE_VALID` of the patches of a named view are valid; None where all weigh 1."""
        weight = self.weight
        for name in names:
            if (valid := self.views[name].patch_valid) is not None:
                usable = (valid.float().mean(1) >= IMAGE_VALID).float()
                weight = usable if weight is None else usable * weight
        return weight
