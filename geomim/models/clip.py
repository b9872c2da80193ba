"""CLIP models of others: open_clip's own and RemoteCLIP's, and their image towers as encoders of ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from geomim.errors import CheckpointError, ConfigError, MissingExtraError, nearest
from geomim.models.hierarchical import Encoder
from geomim.models.patches import Latents
from geomim.models.vit import ViT
from geomim.models.weights import Loaded, fill, picture_contract, pictures_said, read_checkpoint
from geomim.sensors import BandContract

SOURCES = ("open_clip:", "remoteclip:")
"""How addresses of such models begin: `open_clip:NAME/PRETRAINED`, `remoteclip:PATH[@ARCH]`."""

_TIMM = "cls_token pos_embed patch_embed.proj. norm_pre. norm. blocks. .norm1. .norm2. .qkv. .attn.proj. .fc1. .fc2."
_CLIP = (
    "class_embedding positional_embedding conv1. ln_pre. ln_post. transformer.resblocks. .ln_1. .ln_2. "
    ".in_proj_ .attn.out_proj. .c_fc. .c_proj."
)
"""What CLIP calls the parts of a vision transformer."""


@dataclass(frozen=True)
class Clip:
    """A model of images and text, as open_clip has it.

    Attributes:
        source: Where it was read from.
        model: On the CPU, in evaluation mode: `visual`, and the text tower as `text` or in itself.
        config: From which open_clip builds it: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`.
        contract: What numbers its images are.
        notes: What was assumed, in sentences.
    """

    source: str
    model: Any
    config: dict[str, Any]
    contract: BandContract
    notes: tuple[str, ...]


class Visual(nn.Module):
    """An image tower that is no plain vision transformer, as an encoder: one vector an image, as a class token."""

    def __init__(self, tower: Any, width: int) -> None:
        super().__init__()
        size = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
        self.tower, self.width, self.in_chans, self.image_size, self.patch_size = tower, width, 3, size, size
        self.kind = type(getattr(tower, "trunk", tower)).__name__
        self.config = {"family": self.kind, "in_chans": 3, "image_size": size, "width": width}

    def forward(self, images: Tensor, sensor: str | None = None) -> Latents:
        """Encode `(B, 3, S, S)`, S the image size."""
        if images.shape[1:] != (size := (3, self.image_size, self.image_size)):
            raise CheckpointError(f"a {self.kind} takes images (B, {', '.join(map(str, size))}); given {images.shape}")
        answer = self.tower(images)
        return Latents((answer[0] if isinstance(answer, tuple) else answer)[:, None])


def open_clip() -> Any:
    """The library, which only language needs; a sentence where it is missing."""
    try:
        import open_clip as library
    except ImportError as error:
        raise MissingExtraError("models of images and text need open_clip: pip install 'geomim[language]'") from error
    return library


def is_clip(source: str, quickgelu: bool | None) -> bool:
    """Whether a model is one that `read_clip` reads; of any other an activation must not be asked for.

    Raises:
        ConfigError: It is asked for.
    """
    clip = source.startswith(SOURCES)
    if not clip and quickgelu is not None:
        raise ConfigError(f"'{source}' states its activation itself: leave quickgelu out")
    return clip


def read_clip(source: str, quickgelu: bool | None = None) -> Clip:
    """Read a model of images and text.

    Args:
        source: `open_clip:NAME/PRETRAINED` as open_clip names them, PRETRAINED a tag or a file, or
            `open_clip:local-dir:FOLDER`; `remoteclip:PATH[@ARCH]` for a bare state dict, as RemoteCLIP's (Liu et al.,
            TGRS 2024), or one saved by open_clip in training. Its architecture is told by shapes, or is ARCH.
        quickgelu: The activation is QuickGELU, or GELU; what open_clip says where None, and QuickGELU of RemoteCLIP,
            whose weights descend from OpenAI's. No file tells, and with the wrong one weights load as well.

    Raises:
        CheckpointError: It cannot be had, or is of another architecture; the sentence names the tensors.
        MissingExtraError: open_clip is not installed.
    """
    library = open_clip()
    if source.startswith("remoteclip:"):
        return _from_file(source, source.removeprefix("remoteclip:"), quickgelu)
    name, tag = source.removeprefix("open_clip:"), None
    if not name.startswith("local-dir:"):
        name, _, tag = name.partition("/")
        if not tag:
            raise CheckpointError(f"expected open_clip:NAME/PRETRAINED, as open_clip:ViT-B-16/openai; given '{source}'")
    config = architecture(name)
    known = library.get_pretrained_cfg(name, tag) if tag else {}
    stated = any(one.get("quick_gelu", False) for one in (known, config))  # either may leave it out
    quick = stated if quickgelu is None else quickgelu
    try:
        with warnings.catch_warnings():  # of the activation, which is said here
            warnings.simplefilter("ignore")
            model = library.create_model(name, pretrained=tag, require_pretrained=True, quick_gelu=quick)
    except Exception as error:  # unknown tag, no network, other weights: it raises many kinds
        raise CheckpointError(f"open_clip cannot give '{source}' ({' '.join(str(error).split())[:300]})") from error
    contract = picture_contract(library.get_model_preprocess_cfg(model))
    return _read(source, model, config, contract, quick, "open_clip says" if quickgelu is None else "asked")


def openai_contract() -> BandContract:
    """What numbers images of OpenAI's models, and of RemoteCLIP, are."""
    library = open_clip()
    return picture_contract({"mean": library.OPENAI_DATASET_MEAN, "std": library.OPENAI_DATASET_STD})


def _read(source: str, model: Any, config: dict[str, Any], contract: BandContract, quick: bool, why: str) -> Clip:
    notes: tuple[str, ...] = (pictures_said(contract), f"activation {'Quick' * quick}GELU, as {why}")
    if getattr(model, "logit_bias", None) is not None:  # SigLIP's, the same for all pairs
        notes = ("its bias is left out and its scale is at most 100: answers are to be compared with others", *notes)
    return Clip(source, model.eval(), config | {"quick_gelu": quick}, contract, notes)


def architecture(name: str) -> dict[str, Any]:
    """What open_clip builds a model from, by its name or `local-dir:FOLDER`; CheckpointError where there is none."""
    library = open_clip()
    try:
        config = library.get_model_config(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{name}' has no readable open_clip_config.json ({error})") from error
    if config is None:
        raise CheckpointError(f"open_clip knows no architecture '{name}'{nearest(name, library.list_models())}")
    if name.startswith("local-dir:") and "hf_tokenizer_name" in config["text_cfg"]:  # whose files lie there
        config = config | {"text_cfg": config["text_cfg"] | {"hf_tokenizer_name": name.removeprefix("local-dir:")}}
    return cast(dict[str, Any], config)


def _from_file(source: str, path: str, quickgelu: bool | None) -> Clip:
    library, arch = open_clip(), ""
    if "@" in path and not Path(path).exists():
        path, _, arch = path.rpartition("@")
    content = read_checkpoint(path)
    held = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    state = {name.removeprefix("module."): value for name, value in held.items() if isinstance(value, Tensor)}
    told = _told_by_shapes(path, state)
    config, shown = architecture(arch) if arch else told, _name(told)
    if {"timm_model_name", "hf_model_name"} & {*config["vision_cfg"], *config["text_cfg"]}:
        raise CheckpointError(f"'{arch}' has towers of other libraries, which RemoteCLIP's layout does not hold")
    quick = True if quickgelu is None else quickgelu
    try:
        model = library.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=quick)
    except (AssertionError, ValueError) as error:  # as heads that do not divide the channels
        raise CheckpointError(f"'{path}': open_clip cannot build '{arch or shown}' ({error})") from error
    fill(path, model, state, f"'{arch or shown}' in RemoteCLIP's layout; by its shapes it is {shown}")
    why = "asked" if quickgelu is not None else "OpenAI's and RemoteCLIP's weights want it: the file does not say"
    return _read(source, model, config, openai_contract(), quick, f"{why}; architecture {arch or shown}")


def _told_by_shapes(path: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture of a state dict; heads of 64 channels, as in all of OpenAI's."""
    resnet = "visual.attnpool.positional_embedding" in state
    visual = ("layer1.0.conv1.weight", "attnpool.positional_embedding") if resnet else ("proj", "positional_embedding")
    needed = [f"visual.{name}" for name in ("conv1.weight", *visual)]
    needed += ["token_embedding.weight", "positional_embedding", "text_projection", "logit_scale"]
    axes = {needed[0]: 4, "logit_scale": 0} | ({needed[1]: 4} if resnet else {})
    for name in needed:
        if name not in state or state[name].ndim != axes.get(name, 2):
            given = ", ".join([*list(state)[:4], *["..."] * (len(state) > 4)]) or "no tensors"
            said = f"no '{name}' of {axes.get(name, 2)} axes"
            raise CheckpointError(f"'{path}' is no CLIP in RemoteCLIP's layout: {said}; given {given}")

    def count(start: str) -> int:
        return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})

    width, _, _, patch = state["visual.conv1.weight"].shape
    vision: dict[str, Any] = {"width": width, "patch_size": patch, "head_width": min(64, width)}
    vision["layers"] = count("visual.transformer.resblocks.")
    if resnet:
        layers = [count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        vision = {"layers": layers, "width": state[needed[1]].shape[0], "patch_size": None}
    vision["image_size"] = math.isqrt(len(state[needed[2]]) - 1) * (32 if resnet else patch)
    (vocabulary, wide), context = state["token_embedding.weight"].shape, len(state["positional_embedding"])
    text = {"context_length": context, "vocab_size": vocabulary, "width": wide, "heads": max(1, wide // 64)}
    text["layers"] = count("transformer.resblocks.")
    return {"embed_dim": state["text_projection"].shape[1], "vision_cfg": vision, "text_cfg": text}


def _name(told: Mapping[str, Any]) -> str:
    """What open_clip calls an architecture, or its sizes."""
    library = open_clip()

    def sizes(config: Mapping[str, Any]) -> Any:
        vision, text = library.CLIPVisionCfg(**config["vision_cfg"]), library.CLIPTextCfg(**config["text_cfg"])
        return config["embed_dim"], vision, text

    for name in library.list_models():
        config = library.get_model_config(name)
        if set(config) == {"embed_dim", "vision_cfg", "text_cfg"} and sizes(config) == sizes(told):
            return str(name)
    return "one of {width} channels and {layers} layers, in heads of 64 channels".format(**told["vision_cfg"])


def image_tower(clip: Clip) -> tuple[Loaded, Literal["class", "mean"], Tensor]:
    """The encoder of a model, how its tokens become one, and the projection `(dim, width)` into the joint space."""
    visual = clip.model.visual
    vit = _as_vit(visual)
    encoder = Visual(visual, clip.config["embed_dim"]) if vit is None else vit
    projection = torch.eye(encoder.width) if vit is None else visual.proj.detach().T
    contracts = {clip.contract.sensor.name: clip.contract}
    loaded = Loaded(cast(Encoder, encoder).eval(), contracts, "model of open_clip", notes=clip.notes)
    return loaded, "mean" if vit is not None and visual.pool_type == "avg" else "class", projection


def _as_vit(tower: Any) -> ViT | None:
    """An image tower of open_clip as ours; None where it is no plain vision transformer."""
    if type(tower).__name__ != "VisionTransformer" or tower.final_ln_after_pool:
        return None
    first, state, (side, other) = tower.transformer.resblocks[0], tower.state_dict(), tower.image_size
    activation: Any = {"QuickGELU": "quick_gelu", "GELU": "gelu"}.get(type(first.mlp.gelu).__name__)
    if activation is None or side != other or getattr(first.mlp.gelu, "approximate", "none") != "none":
        return None
    width, ratio = tower.conv1.out_channels, first.mlp.c_fc.out_features / tower.conv1.out_channels
    shape = side, tower.patch_size[0], width, len(tower.transformer.resblocks), first.attn.num_heads, ratio
    vit = ViT(3, *shape, clip=activation)
    own = {name: (clip_name(name), value) for name, value in vit.state_dict().items()}
    if {*(name for name, _ in own.values()), "proj"} != set(state) or first.ln_1.eps != vit.norm.eps:
        return None
    vit.load_state_dict({name: state[theirs].view_as(value) for name, (theirs, value) in own.items()})
    return vit


def clip_name(name: str) -> str:
    """What CLIP calls a parameter of a vision transformer of timm's."""
    for ours, theirs in zip(_TIMM.split(), _CLIP.split(), strict=True):
        name = name.replace(ours, theirs)
    return name
