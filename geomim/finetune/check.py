"""What the installed torchgeo does with some weights: every task of it built, filled and stepped once, no promises."""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torchgeo.models import get_model, get_weight

from geomim.errors import CheckpointError, InputError
from geomim.finetune.backbones import create, first_conv
from geomim.finetune.registry import FolderWeights, Registered, lightning_checkpoint, register
from geomim.finetune.stock import Change, Classification, Detection, Regression, Segmentation
from geomim.models.weights import read_checkpoint

ALONE, REGISTERED, WEIGHTS = "torchgeo alone", "registered", "weights"
"""The ways: as others would, by a name of `geomim.finetune.register`, and no task at all."""

HEADS = ("unet", "deeplabv3+", "upernet", "segformer", "dpt", "fcn")
CHANGES = (*HEADS, "fcsiamdiff", "fcsiamconc", "changevit", "btc")

_REFUSED = ("detection faster-rcnn", "segmentation fcn", "change fcn", "change btc")
"""What torchgeo has for encoders of its own alone, or for none."""
_ALONE = ("classification", "regression", "segmentation dpt")
"""What a plain transformer can do there without `geomim.finetune`."""
_WHY = (
    (r"Backbone type", "its detector takes torchvision's ResNets alone; geomim's own detection task takes any encoder"),
    (r"downsampling pattern", "smp's 'tu-' encoders need maps of several strides, and a plain transformer has one"),
    (r"swin size", "btc takes torchgeo's own Swin alone"),
    (r"Only Timm encoders", "dpt takes 'tu-' names alone"),
    (r"no attribute 'encoder'|none of the weights", "the model has no such encoder, and leaves the weights out"),
    (r"oading state_dict", "it is loaded strictly, and the names or shapes are others"),
)


@dataclass(frozen=True)
class Line:
    """One thing that was tried.

    Attributes:
        what: Task and model.
        way: `ALONE`, `REGISTERED` or `WEIGHTS`.
        passed: Built, filled with the very weights, and stepped once.
        promised: Whether it has to pass.
        said: What was found, or why not, in a sentence.
    """

    what: str
    way: str
    passed: bool
    promised: bool
    said: str


@dataclass(frozen=True)
class Probe:
    """Something to be tried; `run` says what it found, or raises."""

    what: str
    way: str
    promised: bool
    run: Callable[[], str]

    def line(self) -> Line:
        """Try it."""
        try:
            with _quiet():
                said, passed = self.run(), True
        except Exception as error:  # the libraries behind it raise whatever they like
            text = " ".join(str(error).split())
            why = next((why for pattern, why in _WHY if re.search(pattern, text)), "")
            said, passed = f"{why}{why and ': '}{type(error).__name__}, {text[:160]}", False
        return Line(self.what, self.way, passed, self.promised, said)


@dataclass(frozen=True)
class Given:
    """Weights, and by which names torchgeo's tasks are given them.

    Attributes:
        way: As of `Line`.
        state: What has to be in a task afterwards.
        channels: Bands.
        side: Of the images, in pixels.
        model: For `timm.create_model`.
        backbone: For segmentation_models_pytorch.
        weights: Of both.
        dpt: Backbone and weights of `dpt`.
        changevit: Weights of `changevit`: with True it fetches those of another model, too.
        promised: What has to pass.
    """

    way: str
    state: Mapping[str, Tensor]
    channels: int
    side: int
    model: str
    backbone: str
    weights: Any
    dpt: tuple[str, Any]
    changevit: Any = None
    promised: Sequence[str] = field(default_factory=tuple)


def probes(source: str) -> list[Probe]:
    """What can be tried with some weights.

    Args:
        source: An exported folder, `timm:NAME`, or torchgeo's name of some weights.

    Raises:
        InputError: It is none of them.
    """
    if Path(source, "config.json").is_file():
        return _of_folder(Path(source))
    if source.startswith("timm:"):
        name = source.removeprefix("timm:")
        network = create(name, pretrained=True)
        state, channels = network.state_dict(), first_conv(network).in_channels
        side = network.pretrained_cfg["input_size"][-1]
        alone = Given(ALONE, state, channels, side, name, f"tu-{name}", True, (f"tu-{name}", True))
        return [_numbers(state), *_tasks(alone), *_registered(source, side)]
    try:
        member: Any = get_weight(source)
    except ValueError as error:
        raise InputError(
            f"'{source}': expected an exported folder (geomim export), timm:NAME, or torchgeo's name of some weights"
        ) from error
    state, meta = member.get_state_dict(progress=False), member.meta
    side = 64 if isinstance(member, FolderWeights) else meta.get("img_size", 224)
    backbone = meta["model"] if meta["model"] in smp.encoders.encoders else f"tu-{meta['model']}"
    given = Given(
        ALONE, state, meta.get("in_chans", 3), side, meta["model"], backbone, source, (backbone, source), source
    )
    return [_numbers(state), *_names(member, given, promised=False), *_tasks(given)]


def check(source: str) -> list[Line]:
    """Try everything; arguments and errors as of `probes`."""
    return [probe.line() for probe in probes(source)]


def _of_folder(folder: Path) -> list[Probe]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = read_checkpoint(folder / "model.safetensors")
    entry, stated = config.get("geomim") or {}, config["pretrained_cfg"]
    kernel = state.get(f"{stated['first_conv']}.weight")
    channels = stated["input_size"][0] if kernel is None else kernel.shape[1]
    side = stated["input_size"][-1]
    if not stated.get("fixed_input_size"):
        side = math.lcm(64, config.get("model_args", {}).get("patch_size", 16))
    name = f"local-dir:{folder.absolute()}"
    alone = Given(ALONE, state, channels, side, name, f"tu-{name}", True, (f"tu-{name}", True), None, _ALONE)

    def contract() -> str:
        bands = ((entry.get("contract") or {}).get("sensor") or {}).get("bands")
        if not bands:
            raise CheckpointError("it names no bands: whoever uses it has to guess what the channels are")
        if len(bands) != channels:
            raise CheckpointError(f"it names {len(bands)} bands and has {channels} channels")
        return ", ".join(band["name"] for band in bands)

    tokens = "cls_token" in state
    return [
        _numbers(state),
        Probe("band contract", WEIGHTS, True, contract),
        *_tasks(alone),
        *_registered(str(folder), side, ([*_promised(tokens)])),
    ]


def _promised(class_token: bool) -> Iterator[str]:
    """All but what torchgeo keeps for itself; changevit cuts one token off in front, whatever it is."""
    every = ["classification", "regression", *(f"segmentation {one}" for one in HEADS)]
    for what in (*every, *(f"change {one}" for one in CHANGES)):
        if what not in _REFUSED and (class_token or what != "change changevit"):
            yield what


def _numbers(state: Mapping[str, Tensor]) -> Probe:
    def run() -> str:
        broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise CheckpointError(f"{len(broken)} of {len(state)} tensors hold NaN or infinity, first {broken[0]}")
        return f"{len(state)} tensors, all finite"

    return Probe("weights are numbers", WEIGHTS, True, run)


def _registered(source: str, side: int, promised: Sequence[str] = ()) -> list[Probe]:
    """By a name of geomim's; where it cannot be registered, every line says why."""
    try:
        with _quiet():
            one = register(source)
    except Exception as error:  # said in each line
        fault = error

        def refuse() -> str:
            raise fault

        empty = Given(REGISTERED, {}, 3, side, "", "", "", ("", ""), "", promised)
        lines = [*_names(None, empty, bool(promised)), *_paths(None, empty), *_tasks(empty)]
        return [Probe(line.what, line.way, line.promised, refuse) for line in lines]
    assert one.contract is not None
    names, dpt = (one.name, one.name, one.weights), (f"tu-{one.name}", True)
    given = Given(REGISTERED, one.state, len(one.contract.names), side, *names, dpt, one.weights, promised)
    member = get_weight(one.weights)
    return [*_names(member, given, bool(promised)), *_paths(one, given), *_tasks(given)]


def _names(member: Any, given: Given, promised: bool) -> list[Probe]:
    """What stands behind the names themselves."""

    def bands() -> str:
        named = member.meta["bands"]
        if len(named) != member.meta["in_chans"]:
            raise CheckpointError(f"meta names {len(named)} bands and in_chans is {member.meta['in_chans']}")
        return ", ".join(map(str, named))

    def transforms() -> str:
        image = member.transforms({"image": torch.ones(given.channels, 224, 224)})["image"]
        if image.shape[-3] != given.channels or not bool(torch.isfinite(image).all()):
            raise CheckpointError(f"a sample of {given.channels} bands becomes {tuple(image.shape)}")
        return f"take a dictionary with 'image', and give {tuple(image.shape)}"

    def model() -> str:
        return f"{_compare(get_model(given.model, weights=member), given.state)[1]} tensors as given"

    def maps() -> str:
        network: Any = timm.create_model(given.model, pretrained=True, features_only=True, in_chans=given.channels)
        found = network(torch.randn(1, given.channels, given.side, given.side))
        return f"{len(found)} maps, the last {tuple(found[-1].shape)}"

    lines = {"meta names its bands": bands, "transforms": transforms, "get_model": model}
    if given.way == REGISTERED:
        lines["timm features_only"] = maps
    return [Probe(what, given.way, promised, run) for what, run in lines.items()]


def _paths(one: Registered | None, given: Given) -> list[Probe]:
    """Weights as a path."""

    def run(task: Any, model: str, deep: bool, **arguments: Any) -> str:
        assert one is not None
        with tempfile.TemporaryDirectory() as folder:
            path = str(lightning_checkpoint(one, Path(folder, "weights.ckpt"), deep))
            return _step(given, task, _batch(given, task), model=model, weights=path, **arguments)

    return [
        Probe(what, given.way, bool(given.promised), call)
        for what, call in {
            "classification, a path": partial(run, Classification, given.model, False, num_classes=3),
            "segmentation unet, a path": partial(
                run, Segmentation, "unet", False, backbone=given.backbone, num_classes=3
            ),
            "segmentation dpt, a path": partial(run, Segmentation, "dpt", True, backbone=given.dpt[0], num_classes=3),
        }.items()
    ]


def _tasks(given: Given) -> list[Probe]:
    """Every task of torchgeo, with every model of it."""
    whole = {"model": given.model, "weights": given.weights}
    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "classification": (Classification, {**whole, "num_classes": 3}),
        "regression": (Regression, {**whole, "num_outputs": 1}),
    }
    for task, family, models in ((Segmentation, "segmentation", HEADS), (Change, "change", CHANGES)):
        for model in models:
            backbone, weights = given.dpt if model == "dpt" else (given.backbone, given.weights)
            if model == "changevit":
                backbone, weights = given.model, given.changevit
            values = {"model": model, "backbone": backbone, "weights": weights}
            calls[f"{family} {model}"] = task, values | ({"num_classes": 3} if task is Segmentation else {})
    # its `weights` are torchvision's own, whatever is given: none, so that nothing is fetched
    calls["detection faster-rcnn"] = Detection, {"backbone": given.model, "num_classes": 2}
    return [
        Probe(what, given.way, what in given.promised, partial(_try, given, task, values))
        for what, (task, values) in calls.items()
    ]


def _try(given: Given, task: Any, values: Mapping[str, Any]) -> str:
    return _step(given, task, _batch(given, task), **values)


def _batch(given: Given, task: Any) -> dict[str, Any]:
    """Two random samples as the task takes them."""
    side, dates = given.side, (2,) if task is Change else ()
    batch: dict[str, Any] = {"image": torch.randn(2, *dates, given.channels, side, side)}
    if task is Classification:
        return {**batch, "label": torch.tensor([0, 2])}
    if task is Regression:
        return {**batch, "label": torch.tensor([0.5, -0.5])}
    if task is Detection:
        box = torch.tensor([[4.0, 4.0, side / 2, side / 2]])
        return {**batch, "bbox_xyxy": [box, box], "label": [torch.tensor([1]), torch.tensor([1])]}
    mask = torch.zeros(2, side, side, dtype=torch.long)
    mask[:, : side // 2] = 1
    return {**batch, "mask": mask[:, None] if task is Change else mask}


def _step(given: Given, task: Any, batch: dict[str, Any], **arguments: Any) -> str:
    """Build a task, find the very weights in it, and train it for one step."""
    built = task(in_channels=given.channels, **arguments)
    mark, count = _compare(built.model, given.state)
    loss = built.training_step(batch, 0)
    if not bool(torch.isfinite(loss)):
        raise CheckpointError(f"the loss of one step is {float(loss.detach())}")
    loss.backward()
    gradient = built.model.get_parameter(mark).grad
    if gradient is None or not bool(gradient.any()):
        raise CheckpointError(f"no gradient reaches {mark}")
    found: Any = built.configure_optimizers()
    found["optimizer"].step()
    return f"{count} tensors as given, loss {float(loss.detach()):.2f}"


def _compare(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Find an encoder in a model, every tensor of it as given: the name of its first kernel there, and their number."""
    own, first = model.state_dict(), next((key for key, value in state.items() if value.ndim == 4), "")
    places = [name.removesuffix(first) for name in own if first and f".{name}".endswith(f".{first}")]
    if not places:
        raise CheckpointError("none of the weights is in it")
    place = max(places, key=lambda one: sum(one + key in own for key in state))
    other = [key for key, value in state.items() if not _same(own.get(place + key), value)]
    if other:
        raise CheckpointError(f"{len(other)} of {len(state)} tensors are random or others', first {other[0]}")
    return place + first, len(state)


def _same(own: Tensor | None, given: Tensor) -> bool:
    """Whether weights are the given ones; positions may be resampled, and kernels shared by two dates."""
    if own is None:
        return False
    if own.shape != given.shape and given.ndim == 3:
        fits = [n for n in range(6) if math.isqrt(own.shape[1] - n) ** 2 == own.shape[1] - n]
        fits = [n for n in fits if math.isqrt(given.shape[1] - n) ** 2 == given.shape[1] - n]
        side = math.isqrt(own.shape[1] - fits[0]) if fits else 0
        given = resample_abs_pos_embed(given, [side, side], num_prefix_tokens=fits[0]) if fits else given
    if given.ndim == 4 and own.ndim == 4 and own.shape[1] == 2 * given.shape[1]:
        given = given.repeat(1, 2, 1, 1) / 2
    return own.shape == given.shape and torch.equal(own.nan_to_num(), given.nan_to_num())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of tasks that have no trainer; the random state is left as it was."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        torch.manual_seed(0)
        try:
            yield
        finally:
            logging.disable(disabled)
