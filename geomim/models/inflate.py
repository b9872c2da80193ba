"""Start from published weights of other bands: matched by name or wavelength, never by position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from geomim.errors import BandError, CheckpointError
from geomim.models.fitting import nearest_band
from geomim.models.spectral import BandKernels, SpectralPatchEmbed, band_codes
from geomim.models.vit import Norm, ViT, sincos_positions
from geomim.models.weights import Loaded, contract_of, exported_contract, read_encoder
from geomim.sensors import Band, Sensor, find_band

Fill = Literal["nearest", "zero"]

_BASIS = "patch_embed.kernels.basis"
_LACKS = {
    r"blocks\.\d+\.ls\d": "layer scale",
    r"reg_token": "register tokens",
    r"dist_token": "a distillation token",
    r"norm_pre": "a norm before its blocks",
    r"fc_norm": "a norm behind the pooling",
    r"blocks\.\d+\.attn\.[qk]_norm": "norms of queries and keys",
}
"""Parts of timm's models that the plain encoder has not, by the names of their weights."""


@torch.no_grad()
def start(encoder: ViT, sensors: Sequence[Sensor], weights: str, fill: Fill) -> tuple[str, ...]:
    """Give an encoder the weights of another, in place.

    Bands that both have keep their kernels. A plain encoder's other bands take those of the nearest wavelength (of
    radar, the mean of all), and each kernel is shared out among the bands that take it, so that an image of equal
    bands is answered as before; or they start at zero. A spectral encoder's basis is solved for by least squares, so
    that the kernels it makes for the weights' own bands are theirs, and those of its other bands as `fill` says.

    Args:
        encoder: To be started.
        sensors: What it is trained on; one for a plain encoder.
        weights: `timm:NAME`, or anything that `read_encoder` reads.
        fill: Kernels of bands that the weights lack.

    Returns:
        What was done, in sentences.

    Raises:
        CheckpointError: The weights cannot be read, are of another size, or have parts that the encoder lacks.
        BandError: The bands of the weights are not known, or none is among the encoder's and `fill` is `zero`.
    """
    given = _from_timm(weights.removeprefix("timm:")) if weights.startswith("timm:") else read_encoder(weights)
    source, embed, pixels = given.encoder, encoder.patch_embed, [encoder.patch_size] * 2
    _check_sizes(encoder, source, weights)
    said = [f"started from {weights}"]
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("patch_embed.")}
    state["pos_embed"] = source.positions(encoder.grid)
    if source.grid != encoder.grid:
        said.append(f"positions resampled from {source.grid} to {encoder.grid} patches")
    if source.patch_size != encoder.patch_size:
        said.append(f"kernels resized from {source.patch_size} to {encoder.patch_size} px by pseudo-inverse")
    if source.spectral and isinstance(embed, SpectralPatchEmbed):
        made = {f"patch_embed.{name}": value for name, value in source.patch_embed.state_dict().items()}
        state |= made | {_BASIS: resample_patch_embed(made[_BASIS], pixels)}
        said += [*given.notes, f"its kernels were made for {', '.join(given.contracts)}"]
    else:
        contract, notes = (None, given.notes) if source.spectral else contract_of(given, weights)
        own = contract.sensor if contract else sensors[0]
        said += [*notes, *(sentence for sensor in sensors for sentence in _matches(own, sensor, fill))]
        kernel, bias = source.patch_embed.baked(own)
        kernels = resample_patch_embed(kernel, pixels).transpose(0, 1)
        if isinstance(embed, SpectralPatchEmbed):
            basis, residual = _solve(embed.kernels, own, sensors, kernels, fill)
            state |= {"patch_embed.bias": bias, _BASIS: basis}
            said.append(f"the kernels made for {', '.join(own.names)} differ by {residual:.1g} of their size")
        else:
            inflated = torch.einsum("cs,sdpq->dcpq", inflation(own, sensors[0], fill), kernels)
            state |= {"patch_embed.proj.bias": bias, "patch_embed.proj.weight": inflated}
    encoder.load_state_dict(state, strict=False)  # a spectral one keeps its own network
    return tuple(said)


def inflation(own: Sensor, wanted: Sensor, fill: Fill) -> Tensor:
    """What each band of an encoder takes of each kernel of the weights.

    Args:
        own: Bands of the weights, S.
        wanted: Bands of the encoder, C.
        fill: What bands take that the weights lack.

    Returns:
        `(C, S)`; with `nearest` each column sums to 1, so that the kernels together answer as before.
    """
    taken = torch.stack([_taken(band, own, fill) for band in wanted.bands])
    if fill == "zero":
        return taken
    for place in (taken.sum(0) == 0).nonzero().flatten().tolist():  # nobody's nearest: it goes to its own nearest
        near = nearest_band(own.bands[place], wanted.bands)
        taken[slice(None) if near is None else near, place] = 1.0
    return taken / taken.sum(0)


def _taken(band: Band, own: Sensor, fill: Fill) -> Tensor:
    """Whose kernel a band takes, `(S,)`."""
    place = find_band(band, own.bands) if fill == "zero" else nearest_band(band, own.bands)
    if place is None:
        return torch.full((len(own.bands),), 1 / len(own.bands) if fill == "nearest" else 0.0)
    return torch.eye(len(own.bands))[place]


def _matches(own: Sensor, wanted: Sensor, fill: Fill) -> list[str]:
    """Which kernels the bands take, in words."""
    same, lacking = [], []
    for band in wanted.bands:
        found, near = find_band(band, own.bands), nearest_band(band, own.bands)
        if found is not None:
            same.append(f"{band.name} as {own.names[found]}")
        elif fill == "zero":
            lacking.append(f"{band.name} as zero")
        else:
            lacking.append(f"{band.name} as {'the mean of all' if near is None else own.names[near]}")
    if fill == "zero" and not same:
        raise BandError(
            f"none of the bands of '{wanted.name}' ({', '.join(wanted.names)}) is one of the weights' "
            f"({', '.join(own.names)}): give --encoder.fill nearest"
        )
    said = [f"kernels of '{wanted.name}': {', '.join(same) or 'none is the same'}"]
    return said + ([f"bands of '{wanted.name}' that the weights lack: {', '.join(lacking)}"] if lacking else [])


def _solve(
    made: BandKernels, own: Sensor, sensors: Sequence[Sensor], kernels: Tensor, fill: Fill
) -> tuple[Tensor, float]:
    """The basis from which the wanted kernels `(S, D, p, p)` are made, and how far those of the own bands are off."""
    every = [own, *sensors]
    taken = torch.cat([_taken(band, own, fill)[None] for sensor in every for band in sensor.bands]).double()
    wanted = len(own.bands) ** 0.5 * taken @ kernels.flatten(1).double()  # tokens are divided by that root
    mixture = made.mixture(torch.cat([band_codes(sensor) for sensor in every])).double()
    ridge = 1e-6 * torch.eye(len(mixture), dtype=mixture.dtype)
    basis = mixture.T @ torch.linalg.solve(mixture @ mixture.T + ridge, wanted)
    off = (mixture @ basis - wanted)[: len(own.bands)].norm() / wanted[: len(own.bands)].norm()
    return basis.float().view_as(made.basis), float(off)


def _check_sizes(encoder: ViT, source: ViT, weights: str) -> None:
    names = ("width", "depth", "heads", "mlp_ratio")
    theirs, ours = (
        ", ".join(f"{name} {getattr(one, name, 0):g}" for name in names) + f", {one.class_tokens} class token"
        for one in (source, encoder)
    )
    if theirs != ours or source.config["family"] != encoder.config["family"]:
        raise CheckpointError(
            f"'{weights}' is a {source.config['family']} of {theirs}; the encoder is a {encoder.config['family']} of "
            f"{ours}: give --encoder.size, or --encoder.width, depth, heads and class_token, of the weights"
        )
    computed = sincos_positions(source.width, source.grid)[:, 1 - source.class_tokens :]
    if encoder.gsd_positions and not torch.allclose(source.pos_embed, computed, atol=1e-4):
        raise CheckpointError(f"'{weights}' learned its positions, which cannot follow the GSD: no gsd_positions")


def _from_timm(name: str) -> Loaded:
    """A plain vision transformer of timm as ours."""
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # unknown name, no network: timm raises many kinds
        raise CheckpointError(f"timm cannot give '{name}' ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(model, VisionTransformer) or len({*model.patch_embed.grid_size}) > 1:
        raise CheckpointError(f"'timm:{name}' is a {type(model).__name__}: expected a plain square vision transformer")
    patches: Any = model.patch_embed
    block: Any = model.blocks[0]
    width, side, patch = model.embed_dim, patches.grid_size[0], patches.patch_size[0]
    sizes = (side * patch, patch, width, len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features / width)
    encoder = ViT(patches.proj.in_channels, *sizes, class_token=model.cls_token is not None)
    state = model.state_dict()
    if model.no_embed_class and encoder.class_tokens:
        state["pos_embed"] = nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    _check_parts(f"timm:{name}", model, state, encoder)
    encoder.load_state_dict(state)
    known = exported_contract(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
    return Loaded(encoder.eval(), {known.sensor.name: known} if known else {}, "timm model")


def _check_parts(name: str, model: Any, state: dict[str, Tensor], encoder: ViT) -> None:
    """Refuse what computes something else than a plain encoder."""
    odd = sorted(state.keys() ^ encoder.state_dict().keys())
    parts = [next((what for pattern, what in _LACKS.items() if re.match(pattern, key)), key) for key in odd]
    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} - {Norm(4).eps}
    parts += [f"a norm epsilon of {value:g}" for value in eps]
    activation = model.blocks[0].mlp.act
    parts += [] if isinstance(activation, nn.GELU) else [f"the activation {type(activation).__name__}"]
    if parts:
        found = ", ".join(list(dict.fromkeys(parts))[:6])
        raise CheckpointError(f"'{name}' differs from a plain vision transformer in {found}: give plain weights")
