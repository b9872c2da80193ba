"""Start from published weights of other bands: matched by name or wavelength, never by position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, cast

import timm
import torch
from timm.layers.activations import QuickGELU
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from geomim.errors import BandError, CheckpointError
from geomim.models.clip import SOURCES, image_tower, read_clip
from geomim.models.fitting import nearest_band
from geomim.models.hierarchical import Encoder
from geomim.models.patches import sincos_positions
from geomim.models.spectral import BandKernels, SpectralPatchEmbed, band_codes
from geomim.models.vit import ViT
from geomim.models.weights import Loaded, contract_of, exported_contract, picture_contract, pictures_said, read_encoder
from geomim.sensors import Sensor, find_band

Fill = Literal["nearest", "zero"]

_BASIS = "patch_embed.kernels.basis"


@torch.no_grad()
def start(encoder: ViT, sensors: Sequence[Sensor], weights: str, fill: Fill) -> tuple[str, ...]:
    """Give an encoder the weights of another, in place.

    A plain encoder's bands that the weights have start with their own kernels; the others at zero, which leaves the
    former whole, or with those of the nearest wavelength (of radar, the mean of all), which are shared out: half of
    a kernel stays with its own band, the other half is divided among those that borrow it. So an image whose further
    bands look like their nearest ones is answered as before. A spectral encoder's basis is solved for by least
    squares, so that the kernels it makes for the weights' own bands are theirs, whole, and those of its other bands
    as `fill` says; it divides those of C bands by the root of C.

    Args:
        encoder: To be started.
        sensors: What it is trained on; one for a plain encoder.
        weights: `timm:NAME`, what `read_clip` reads, or anything that `read_encoder` reads.
        fill: Kernels of bands that the weights lack.

    Returns:
        What was done, in sentences.

    Raises:
        CheckpointError: The weights cannot be read, are of another size, or have parts that the encoder lacks.
        BandError: The bands of the weights are not known, or none is among the encoder's and `fill` is `zero`.
    """
    if weights.startswith(SOURCES):
        given = image_tower(read_clip(weights, encoder.clip and encoder.clip == "quick_gelu"))[0]
    else:
        given = _from_timm(weights.removeprefix("timm:")) if weights.startswith("timm:") else read_encoder(weights)
    source, said = _checked(encoder, given.encoder, weights), [f"started from {weights}"]
    if source.grid != encoder.grid:
        said.append(f"positions resampled from {source.grid} to {encoder.grid} patches")
    if source.patch_size != encoder.patch_size:
        said.append(f"kernels resized from {source.patch_size} to {encoder.patch_size} px by pseudo-inverse")
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("patch_embed.")}
    state["pos_embed"] = source.positions(encoder.grid)
    kernels, words = _kernels(encoder, list(sensors), source, given, weights, fill)
    encoder.load_state_dict(state | kernels, strict=False)  # a spectral one keeps its own network
    return (*said, *words)


def _kernels(
    encoder: ViT, sensors: list[Sensor], source: ViT, given: Loaded, weights: str, fill: Fill
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the patch embedding, and what was done."""
    embed, pixels = encoder.patch_embed, [encoder.patch_size] * 2
    if source.spectral and isinstance(embed, SpectralPatchEmbed):
        made = {f"patch_embed.{name}": value for name, value in source.patch_embed.state_dict().items()}
        made[_BASIS] = resample_patch_embed(made[_BASIS], pixels)
        return made, [*given.notes, f"its kernels were made for {', '.join(given.contracts)}"]
    contract, notes = (None, given.notes) if source.spectral else contract_of(given, weights)
    own = contract.sensor if contract else sensors[0]
    taken, words = zip(*(inflation(own, sensor, fill) for sensor in sensors), strict=True)
    kernel, bias = source.patch_embed.baked(own)
    kernels = resample_patch_embed(kernel, pixels).transpose(0, 1).flatten(1)
    place = "patch_embed.bias" if encoder.spectral else "patch_embed.proj.bias"
    biases = {} if bias is None else {place: bias}  # CLIP's image towers have none
    said = [*notes, *chain.from_iterable(words)]
    if isinstance(embed, SpectralPatchEmbed):
        basis, residual = _solve(embed.kernels, [own, *sensors], taken, kernels)
        said.append(f"the kernels made for {', '.join(own.names)} differ by {residual:.1g} of their size")
        return {**biases, _BASIS: basis}, said
    shares = taken[0] if fill == "zero" else share_out(taken[0], own, sensors[0])
    said += shares_said(shares, own, sensors[0])
    inflated = (shares @ kernels).view(-1, encoder.width, *pixels).transpose(0, 1)
    return {**biases, "patch_embed.proj.weight": inflated}, said


def inflation(own: Sensor, wanted: Sensor, fill: Fill) -> tuple[Tensor, list[str]]:
    """What each band of an encoder takes of each kernel of the weights.

    Args:
        own: Bands of the weights, S.
        wanted: Bands of the encoder, C.
        fill: What bands take that the weights lack.

    Returns:
        `(C, S)`, rows that sum to 1, or to 0 for a band that starts at zero; and what that is in sentences.

    Raises:
        BandError: Nothing is taken.
    """
    rows: list[Tensor] = []
    same: list[str] = []
    lacking: list[str] = []
    for band in wanted.bands:
        found, near = find_band(band, own.bands), nearest_band(band, own.bands)
        if found is not None or (fill == "nearest" and near is not None):
            rows.append(torch.eye(len(own.bands))[near or 0])
        else:
            rows.append(torch.full((len(own.bands),), 1 / len(own.bands) if fill == "nearest" else 0.0))
        what = "zero" if fill == "zero" else "the mean of all" if near is None else own.names[near]
        (lacking if found is None else same).append(f"{band.name} as {what if found is None else own.names[found]}")
    if fill == "zero" and not same:
        raise BandError(
            f"none of the bands of '{wanted.name}' ({', '.join(wanted.names)}) is one of the weights' "
            f"({', '.join(own.names)}): give --encoder.fill nearest"
        )
    said = [f"kernels of '{wanted.name}': {', '.join(same) or 'none is the same'}"]
    said += [f"bands of '{wanted.name}' that the weights lack: {', '.join(lacking)}"] if lacking else []
    return torch.stack(rows), said


def share_out(taken: Tensor, own: Sensor, wanted: Sensor) -> Tensor:
    """Share each kernel out: half to the bands that are its own, half to those that borrow it, or all where one lacks.

    Kernels that nobody takes go whole to the nearest of the bands that borrow, or are left out where none does.

    Returns:
        `(C, S)`; where a band borrows, columns sum to 1, so that all bands together answer equal ones as before.
    """
    mine = torch.tensor([find_band(band, own.bands) is not None for band in wanted.bands])
    borrowers = [band for band, known in zip(wanted.bands, mine, strict=True) if not known]
    taken, places = taken.clone(), (~mine).nonzero().flatten()
    for kernel in (taken.sum(0) == 0).nonzero().flatten().tolist() if borrowers else []:
        near = nearest_band(own.bands[kernel], borrowers)
        taken[places if near is None else places[near], kernel] = 1.0
    parts = torch.stack([torch.where(one[:, None], taken, 0.0) for one in (mine, ~mine)])
    sums = parts.sum(1, keepdim=True)
    return (parts / (sums * (sums > 0).sum(0)).clamp(min=1e-12)).sum(0)


def shares_said(shares: Tensor, own: Sensor, wanted: Sensor) -> list[str]:
    """What a plain encoder's kernels are, and which ones of the weights it has no use for."""
    rows = [
        f"{band.name} = {' + '.join(f'{x:.2g} {name}' for x, name in zip(row, own.names, strict=True) if x)}"
        for band, row in zip(wanted.bands, shares.tolist(), strict=True)
        if any(row)
    ]
    unused = [name for name, used in zip(own.names, shares.any(0).tolist(), strict=True) if not used]
    said = [f"shares of the weights' kernels: {', '.join(rows)}"]
    return said + ([f"kernels that no band takes are left out: {', '.join(unused)}"] if unused else [])


def _solve(
    made: BandKernels, sensors: Sequence[Sensor], taken: Sequence[Tensor], kernels: Tensor
) -> tuple[Tensor, float]:
    """The basis from which kernels `(S, D*p*p)` are made as they are `taken`, and how far the first sensor's are off.

    The first sensor is the weights' own.
    """
    rows = torch.cat([torch.eye(len(kernels)), *taken]).double()
    wanted = len(kernels) ** 0.5 * rows @ kernels.double()  # tokens are divided by that root
    mixture = made.mixture(torch.cat([band_codes(sensor) for sensor in sensors])).double()
    ridge = 1e-6 * torch.eye(len(mixture), dtype=mixture.dtype)
    basis = mixture.T @ torch.linalg.solve(mixture @ mixture.T + ridge, wanted)
    off = (mixture @ basis - wanted)[: len(kernels)].norm() / wanted[: len(kernels)].norm()
    return basis.float().view_as(made.basis), float(off)


def _checked(encoder: ViT, source: Encoder, weights: str) -> ViT:
    """The source; weights of another size are refused, and positions that cannot follow the GSD."""
    names = ("family", "width", "depth", "heads", "mlp_ratio", "clip", "class_token")
    theirs, ours = (", ".join(f"{name} {one.config.get(name)}" for name in names) for one in (source, encoder))
    if theirs != ours or not isinstance(source, ViT):
        todo = "give --encoder.size, or --encoder.width, depth, heads, class_token and clip, of the weights"
        todo = todo if isinstance(source, ViT) else "expected weights of a plain vision transformer"
        raise CheckpointError(f"'{weights}' has {theirs}; the encoder has {ours}: {todo}")
    computed = sincos_positions(source.width, source.grid)[:, 1 - source.class_tokens :]
    if encoder.gsd_positions and not torch.allclose(source.pos_embed, computed, atol=1e-4):
        raise CheckpointError(f"'{weights}' learned its positions, which cannot follow the GSD: no gsd_positions")
    return source


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
    act = "quick_gelu" if isinstance(block.mlp.act, QuickGELU) else "gelu"
    clip = cast(Any, None if isinstance(model.norm_pre, nn.Identity) else act)
    encoder = ViT(patches.proj.in_channels, *sizes, class_token=model.cls_token is not None, clip=clip)
    state = model.state_dict()
    if model.no_embed_class and encoder.class_tokens:
        state["pos_embed"] = nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    _check_parts(f"timm:{name}", model, state, encoder)
    encoder.load_state_dict(state)
    known, notes, config = exported_contract(name), list[str](), cast(Any, model.pretrained_cfg)
    if known is None and encoder.in_chans == 3:
        known = picture_contract(config)
        notes = [pictures_said(known)]
    return Loaded(encoder.eval(), {known.sensor.name: known} if known else {}, "timm model", notes=tuple(notes))


def _check_parts(name: str, model: Any, state: dict[str, Tensor], encoder: ViT) -> None:
    """Refuse what computes something else than a plain encoder."""
    odd = sorted({re.sub(r"\d+", "N", key) for key in state.keys() ^ encoder.state_dict().keys()})
    parts = [f"{key}{' (layer scale)' if '.ls' in key else ''}" for key in odd]
    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} - {encoder.norm.eps}
    parts += [f"a norm epsilon of {value:g}" for value in eps]
    activation = model.blocks[0].mlp.act
    same = isinstance(activation, type(encoder.blocks[0].mlp.act))  # type: ignore[union-attr]
    parts += [] if same else [f"the activation {type(activation).__name__}"]
    if parts:
        raise CheckpointError(f"'{name}' is no plain vision transformer: it differs in {', '.join(parts[:6])}")
