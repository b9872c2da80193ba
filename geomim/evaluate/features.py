"""Frozen features: what an encoder says of labelled images, kept in memory for the probes.

A loader is any iterable of batches: `image (B, C, H, W)` float32 normalised, `valid (B, 1, H, W)` bool, and
`label (B,)` int64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomim.errors import ConfigError, InputError
from geomim.models.build import from_config
from geomim.models.hierarchical import Encoder, Hierarchical
from geomim.models.inputs import patch_validity
from geomim.models.patches import masked_mean
from geomim.models.vit import ViT

Batch = Mapping[str, Any]
Pool = Literal["mean", "class"]

IN_MEMORY = 4 * 2**30
"""Bytes of patch tokens that are held in memory; more goes to a temporary file that is mapped."""


@dataclass(frozen=True)
class Features:
    """Features of N labelled images.

    Attributes:
        pooled: `(N, D)` float32, one vector an image.
        labels: `(N,)` int64.
        tokens: `(N, L, D)` float16 patch tokens, where they were asked for.
        seen: `(N, L)` bool of them: which see more image than nodata.
        groups: `(N,)` int64 where patches stand in place of images: those of one number are not independent.
        counts: `(C,)` int64, how many patches of each class there were, where N are a choice of them.
    """

    pooled: Tensor
    labels: Tensor
    tokens: Tensor | None = None
    seen: Tensor | None = None
    groups: Tensor | None = None
    counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Values a feature vector."""
        return self.pooled.shape[1]


@dataclass(frozen=True)
class Extractor:
    """How features come out of a batch.

    Attributes:
        forward: Images and validity to `(pooled (B, D), tokens (B, L, D) | None)`.
        keep_tokens: Keep the patch tokens for probes that attend to them.
    """

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
    keep_tokens: bool = False


def encode(encoder: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor, tuple[int, int]]:
    """Tokens of whole images from a geomim encoder or any timm model.

    Args:
        encoder: One of geomim's, or a module with timm's `forward_features`.
        images: `(B, C, H, W)` as the encoder expects them.

    Returns:
        Class token `(B, D)` or None, patch tokens `(B, L, D)` after the final norm in raster order, and their grid.

    Raises:
        InputError: The module has no `forward_features`.
    """
    if isinstance(encoder, (ViT, Hierarchical)):
        latents = encoder(images)
        rows, columns = (side // encoder.patch_size for side in images.shape[-2:])
        return latents.tokens[:, 0] if latents.prefix else None, latents.patches, (rows, columns)
    forward_features: Callable[[Tensor], Tensor] | None = getattr(encoder, "forward_features", None)
    if forward_features is None:
        raise InputError(f"expected a geomim encoder or a timm model; given {type(encoder).__name__}")
    features = forward_features(images)
    if features.ndim == 4:  # a pyramid: a map instead of tokens
        if getattr(encoder, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return None, features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
    prefix = int(getattr(encoder, "num_prefix_tokens", 0))
    patches = features[:, prefix:]
    return features[:, 0] if prefix else None, patches, _grid(patches, images)


def _grid(patches: Tensor, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches `(B, L, D)` of images `(B, C, H, W)`."""
    rows = round((patches.shape[1] * images.shape[-2] / images.shape[-1]) ** 0.5)
    return rows, patches.shape[1] // rows


def device_of(name: str) -> torch.device:
    """The device of a verb's `--device`: `auto` is a GPU where there is one, else the CPU.

    Raises:
        ConfigError: Torch knows no such device, or there is no GPU.
    """
    there = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if there else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"--device: expected auto, cpu, cuda or another device of torch; given '{name}'") from error
    if device.type == "cuda" and not there:
        raise ConfigError(f"--device {name}: torch finds no GPU here; leave it out, or give cpu")
    return device


def fast_half(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    GPUs from Ampere on, and CPUs with AMX (3 times as fast as in float32 there). With AVX-512 BF16 alone the fused
    attention is slow; training has its own, see `geomim.pretrain.half`.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # not public, and not in every torch
    return bool(asked is not None and asked())


def frozen(encoder: nn.Module, pool: Pool = "mean", keep_tokens: bool = False, half: bool = False) -> Extractor:
    """Features of an encoder that is not trained.

    Args:
        encoder: As for `encode`.
        pool: `mean` of the patch tokens that see more image than nodata, or the `class` token.
        keep_tokens: Keep the patch tokens too.
        half: Run the encoder in bfloat16 autocast.

    Raises:
        InputError: The class token is asked for and the encoder has none (when it is used).
    """
    encoder.eval()

    def forward(images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            class_token, patches, grid = encode(encoder, images)
        if pool == "class":
            if class_token is None:
                raise InputError("pool 'class': the encoder has no class token; use 'mean'")
            return class_token, patches
        return masked_mean(patches.float(), _seen(valid, grid)), patches

    return Extractor(forward, keep_tokens)


def _seen(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    height, width = valid.shape[-2:]
    if height % grid[0] == 0 and height // grid[0] == width // grid[1]:
        return patch_validity(valid, height // grid[0])
    return torch.nn.functional.adaptive_avg_pool2d(valid.float(), grid).flatten(1) >= 0.5


def pixel_statistics(grid: tuple[int, int] = (1, 1)) -> Extractor:
    """The floor that no encoder may fall below: mean and standard deviation of each band over valid pixels.

    Args:
        grid: Rows and columns of patches, whose own statistics are the tokens; they divide the images.
    """

    def forward(images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        cells = (grid[0], -1, grid[1], images.shape[3] // grid[1])  # rows and their height, columns and their width
        pixels, weight = (one.reshape(*one.shape[:2], *cells) for one in (images, valid.to(images.dtype)))
        count = weight.sum((3, 5), keepdim=True).clamp_min(1)
        mean = (pixels * weight).sum((3, 5), keepdim=True) / count
        variance = ((pixels - mean).square() * weight).sum((3, 5), keepdim=True) / count
        tokens = torch.cat([mean, variance.sqrt()], 1).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    return Extractor(forward)


def random_like(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture with the weights it would start training from: the other floor.

    Args:
        encoder: Gives the architecture; a spectral one is baked.
        seed: Of the initialisation; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return from_config(encoder.config, {}).eval()


@torch.no_grad()
def extract(
    encoder: nn.Module,
    loader: Iterable[Batch],
    pool: Pool = "mean",
    tokens: bool = False,
    device: torch.device | str = "cpu",
    count: int | None = None,
) -> Features:
    """Frozen features of one encoder over a loader; `extract_all` does several in one pass.

    Args:
        encoder: As for `encode`; moved to `device`.
        loader: Batches as the module says.
        pool: As for `frozen`.
        tokens: Keep the patch tokens.
        device: Where the encoder runs.
        count: Number of images, if known: patch tokens then need no second copy in memory.
    """
    return extract_all({"": frozen(encoder.to(device), pool, tokens)}, loader, device, count)[""]


@torch.no_grad()
def extract_all(
    extractors: Mapping[str, Extractor],
    loader: Iterable[Batch],
    device: torch.device | str = "cpu",
    count: int | None = None,
    patches: Tensor | None = None,
) -> dict[str, Features]:
    """Features of several extractors in one pass over the images.

    Args:
        extractors: By name; their encoders are on `device` already.
        loader: Batches as the module says.
        device: Where images go.
        count: Number of images, if known.
        patches: `(N, L)` int64, labels of patches that are to stand in place of the N images, -1 where one is not.

    Returns:
        Features on the CPU, by name; of patches in the order of images and of the raster.

    Raises:
        InputError: The loader is empty.
    """
    pooled: dict[str, list[Tensor]] = {name: [] for name in extractors}
    stores = {name: _TokenStore(count) for name, extractor in extractors.items() if extractor.keep_tokens}
    seen: dict[str, list[Tensor]] = {name: [] for name in stores}
    labels: list[Tensor] = []
    start = 0
    for batch in loader:
        images, valid = batch["image"].to(device), batch["valid"].to(device)
        kinds = None if patches is None else patches[start : (start := start + len(images))]
        labels.append(batch["label"].cpu() if kinds is None else kinds[kinds >= 0])
        for name, extractor in extractors.items():
            vector, tokens = extractor.forward(images, valid)
            if kinds is not None and tokens is not None:
                vector = tokens.cpu()[kinds >= 0]
            pooled[name].append(vector.float().cpu())
            if extractor.keep_tokens and tokens is not None:
                stores[name].add(tokens)
                seen[name].append(_seen(valid, _grid(tokens, images)).cpu())
    if not labels:
        raise InputError("no labelled images: expected at least one batch")
    answers = torch.cat(labels)
    features = {name: Features(torch.cat(parts), answers) for name, parts in pooled.items()}
    return {
        name: replace(feature, tokens=stores[name].all(), seen=torch.cat(seen[name])) if name in stores else feature
        for name, feature in features.items()
    }


class _TokenStore:
    """Patch tokens in half precision: written in place where their number is known, in a mapped file if many."""

    def __init__(self, count: int | None) -> None:
        self.count, self.filled = count, 0
        self.whole: Tensor | None = None
        self.parts: list[Tensor] = []

    def add(self, tokens: Tensor) -> None:
        tokens = tokens.half().cpu()
        if self.count is None:
            self.parts.append(tokens)
            return
        if self.whole is None:
            self.whole = _allocate((self.count, *tokens.shape[1:]))
        self.whole[self.filled : self.filled + len(tokens)] = tokens
        self.filled += len(tokens)

    def all(self) -> Tensor | None:
        if self.whole is None:
            return torch.cat(self.parts) if self.parts else None
        return self.whole[: self.filled]


def _allocate(shape: tuple[int, ...]) -> Tensor:
    size = 2
    for side in shape:
        size *= side
    if size <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.float16)
    with tempfile.NamedTemporaryFile(prefix="geomim-tokens-") as file:  # stays mapped after its name is gone
        return torch.from_file(file.name, shared=True, size=size // 2, dtype=torch.float16).view(shape)
