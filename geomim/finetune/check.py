"""What the installed torchgeo does with some weights: every task of it built, filled and trained for one step."""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torchgeo.models import get_model, get_weight

from geomim.errors import CheckpointError, InputError
from geomim.finetune.backbones import create, first_conv
from geomim.finetune.registry import FolderWeights, fit, lightning_checkpoint, register
from geomim.finetune.stock import Change, Classification, Detection, Regression, Segmentation
from geomim.models.weights import read_checkpoint

ALONE, REGISTERED, WEIGHTS = "torchgeo alone", "registered", "weights"
"""The ways: as others would name the weights, by a name of `geomim.finetune.register`, and without a task."""

_HEADS = ("unet", "deeplabv3+", "upernet", "segformer", "dpt", "fcn")
_CHANGES = (*_HEADS, "fcsiamdiff", "fcsiamconc", "changevit", "btc")
_FOREIGN = ("detection faster-rcnn", "segmentation fcn", "change fcn", "change btc")
"""What torchgeo has for encoders of its own, or for none."""
_ALONE = ("classification", "regression", "segmentation dpt")
"""What it does with an exported transformer that nobody registered."""
_WHY = (
    (r"Backbone type", "its detector takes torchvision's ResNets alone; geomim's own task takes any encoder"),
    (r"downsampling pattern", "smp's 'tu-' encoders need maps of several strides, and a plain transformer has one"),
    (r"swin size", "btc takes torchgeo's own Swin alone"),
    (r"no attribute 'encoder'|none of the weights", "this model has no such encoder: it leaves the weights out"),
    (r"oading state_dict", "they are loaded strictly, and names or shapes are others"),
)


@dataclass(frozen=True)
class Line:
    """One thing to try with some weights.

    Attributes:
        what: Task and model.
        way: `ALONE`, `REGISTERED` or `WEIGHTS`.
        run: Says what it found, or raises.
        promised: Whether it has to pass.
        passed: None as long as it was not tried.
        said: What was found, or why not, in a sentence.
    """

    what: str
    way: str
    run: Callable[[], str]
    promised: bool = False
    passed: bool | None = None
    said: str = ""

    def tried(self) -> Line:
        """The same, with what came of it."""
        try:
            with _quiet():
                return replace(self, passed=True, said=self.run())
        except Exception as error:  # the libraries behind it raise whatever they like
            text = " ".join(str(error).split())
            why = next((f"{why}: " for pattern, why in _WHY if re.search(pattern, text)), "")
            return replace(self, passed=False, said=f"{why}{type(error).__name__}, {text[:160]}")


@dataclass(frozen=True)
class _Given:
    """Weights, which have to be in a task; size of the images; and by what torchgeo is given them."""

    way: str
    state: Mapping[str, Tensor]
    channels: int
    side: int
    model: str  # of timm
    backbone: str  # of smp
    weights: Any
    dpt: Any  # weights, which it loads through timm


def lines(source: str) -> list[Line]:
    """What can be tried with some weights; of none but exported folders more is promised than to be numbers.

    Args:
        source: An exported folder, `timm:NAME`, or torchgeo's name of some weights.

    Raises:
        InputError: It is none of them.
        CheckpointError: It cannot be read.
    """
    if Path(source, "config.json").is_file():
        return _of_folder(Path(source))
    if source.startswith("timm:"):
        name, network = source.removeprefix("timm:"), create(source.removeprefix("timm:"), pretrained=True)
        size = (first_conv(network).in_channels, network.pretrained_cfg["input_size"][-1])
        alone = _Given(ALONE, network.state_dict(), *size, name, f"tu-{name}", True, True)
        return [_finite(alone.state), *_tasks(alone), *_registered(source, size[1])]
    try:
        member: Any = get_weight(source)
    except ValueError as error:
        raise InputError(
            f"'{source}': expected an exported folder (geomim export), timm:NAME, or torchgeo's name of some weights"
        ) from error
    meta, state = member.meta, member.get_state_dict(progress=False)
    size = (meta.get("in_chans", 3), 64 if isinstance(member, FolderWeights) else meta.get("img_size", 224))
    backbone = meta["model"] if meta["model"] in smp.encoders.encoders else f"tu-{meta['model']}"
    given = _Given(ALONE, state, *size, meta["model"], backbone, source, source)
    return [_finite(state), Line("names and transforms", ALONE, partial(_named, given)), *_tasks(given)]


def _of_folder(folder: Path) -> list[Line]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated, arguments, entry = config["pretrained_cfg"], config["model_args"], config.get("geomim") or {}
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"'{folder}/config.json' is none that geomim export writes ({error!r})") from error
    state, side = read_checkpoint(folder / "model.safetensors"), stated["input_size"][-1]
    kernel = state.get(f"{stated['first_conv']}.weight")
    channels = stated["input_size"][0] if kernel is None else kernel.shape[1]
    side = side if stated.get("fixed_input_size") else math.lcm(64, arguments["patch_size"])
    name = f"local-dir:{folder.absolute()}"

    def contract() -> str:
        bands = ((entry.get("contract") or {}).get("sensor") or {}).get("bands", [])
        if len(bands) != channels:
            raise CheckpointError(f"it names {len(bands)} bands, and the encoder reads {channels}")
        return ", ".join(band["name"] for band in bands)

    alone = _tasks(_Given(ALONE, state, channels, side, name, f"tu-{name}", True, True))
    # changevit cuts one token off in front, whatever it is
    other = _FOREIGN if "cls_token" in state else (*_FOREIGN, "change changevit")
    return [
        _finite(state),
        Line("band contract", WEIGHTS, contract, True),
        *(replace(line, promised=line.what in _ALONE) for line in alone),
        *(replace(line, promised=line.what not in other) for line in _registered(str(folder), side)),
    ]


def _finite(state: Mapping[str, Tensor]) -> Line:
    def run() -> str:
        broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise CheckpointError(f"{len(broken)} of {len(state)} tensors hold NaN or infinity, first {broken[0]}")
        return f"{len(state)} tensors"

    return Line("weights are numbers", WEIGHTS, run, True)


def _registered(source: str, side: int) -> list[Line]:
    """By a name of geomim's; where it cannot be registered, every line says why."""
    given, refuse, path = _Given(REGISTERED, {}, 3, side, "", "", "", ""), None, ""
    try:
        with _quiet():
            one = register(source)
        channels = get_weight(one.weights).meta["in_chans"]
        given = _Given(REGISTERED, one.state, channels, side, one.name, one.name, one.weights, True)
        path = partial(lightning_checkpoint, one)
    except Exception as error:  # as in `Line.tried`
        refuse = partial(_raise, error)
    paths = replace(given, weights=path, dpt=path and partial(path, dpt=True))
    tried = ("classification", "segmentation unet", "segmentation dpt")
    found = [Line("names and transforms", REGISTERED, partial(_named, given)), *_tasks(given)]
    found += [replace(line, what=f"{line.what}, a path") for line in _tasks(paths) if line.what in tried]
    return [replace(line, run=refuse) for line in found] if refuse else found


def _raise(error: Exception) -> str:
    raise error


def _named(given: _Given) -> str:
    """What stands behind torchgeo's name of weights, and timm's of a registered model."""
    member: Any = get_weight(given.weights)
    bands, count = member.meta["bands"], member.meta["in_chans"]
    image = member.transforms({"image": torch.ones(count, 224, 224)})["image"]
    if not len(bands) == count == image.shape[-3] == given.channels:
        raise CheckpointError(f"of {given.channels} bands, meta names {len(bands)} and says {count}: {image.shape}")
    _compare(get_model(given.model, weights=member), given.state)
    if given.way == REGISTERED:
        maps: Any = timm.create_model(given.model, pretrained=True, features_only=True)
        maps(torch.randn(1, count, given.side, given.side))
    return ", ".join(map(str, bands))


def _tasks(given: _Given) -> list[Line]:
    """Every task of torchgeo, with every model of it."""
    whole = {"model": given.model, "weights": given.weights}
    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "classification": (Classification, {**whole, "num_classes": 3}),
        "regression": (Regression, {**whole, "num_outputs": 1}),
    }
    for task, family, models in ((Segmentation, "segmentation", _HEADS), (Change, "change", _CHANGES)):
        for model in models:
            values = {"model": model, "backbone": given.backbone, "weights": given.weights}
            if model == "dpt":
                values |= {"backbone": f"tu-{given.model}", "weights": given.dpt}
            if model == "changevit":  # with True it would fetch a ResNet, too
                values |= {"backbone": given.model, "weights": None if given.weights is True else given.weights}
            calls[f"{family} {model}"] = task, values | ({"num_classes": 3} if task is Segmentation else {})
    # its `weights` are torchvision's own, whatever is given: left out, so that nothing is fetched
    calls["detection faster-rcnn"] = Detection, {"backbone": given.model, "num_classes": 2}
    return [Line(what, given.way, partial(_step, given, *call)) for what, call in calls.items()]


def _batch(given: _Given, task: Any) -> dict[str, Any]:
    """Two random samples as the task takes them."""
    side, dates = given.side, (2,) if task is Change else ()
    batch: dict[str, Any] = {"image": torch.randn(2, *dates, given.channels, side, side)}
    if task in (Classification, Regression):
        return {**batch, "label": torch.tensor([0, 1])}
    if task is Detection:
        return {**batch, "bbox_xyxy": [torch.tensor([[4.0, 4.0, 30.0, 20.0]])] * 2, "label": [torch.tensor([1])] * 2}
    mask = (torch.arange(side) >= side // 2).long().expand(2, side, side)
    return {**batch, "mask": mask[:, None] if task is Change else mask}


def _step(given: _Given, task: Any, values: Mapping[str, Any]) -> str:
    """Build a task, find the very weights in it, and train it for one step."""
    with tempfile.TemporaryDirectory() as folder:
        if callable(values.get("weights")):
            values = {**values, "weights": values["weights"](out=Path(folder, "weights.ckpt"))}
        built = task(in_channels=given.channels, **values)
    kernel = _compare(built.model, given.state)
    loss = built.training_step(_batch(given, task), 0)
    if not bool(torch.isfinite(loss)):
        raise CheckpointError(f"the loss of one step is {float(loss.detach())}")
    loss.backward()
    gradient = built.model.get_parameter(kernel).grad
    if gradient is None or not bool(gradient.any()):
        raise CheckpointError(f"no gradient reaches {kernel}")
    built.configure_optimizers()["optimizer"].step()
    return f"{len(given.state)} tensors as given, loss {float(loss.detach()):.2f}"


def _compare(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Find an encoder in a model, every tensor of it as given, but for the size: the name of its first kernel there."""
    own, first = model.state_dict(), next((key for key, value in state.items() if value.ndim == 4), "")
    places = [name.removesuffix(first) for name in own if first and f".{name}".endswith(f".{first}")]
    if not places:
        raise CheckpointError("none of the weights is in it")
    place = max(places, key=lambda one: sum(one + key in own for key in state))
    wanted, network = dict(state), model.get_submodule(place.removesuffix("."))
    if hasattr(network, "pretrained_cfg"):  # is one of timm's
        fit(network, wanted, "")
    pairs = {key: (own.get(place + key), value.nan_to_num()) for key, value in wanted.items()}
    other = [key for key, (one, two) in pairs.items() if one is None or not torch.equal(one.nan_to_num(), two)]
    if other:
        raise CheckpointError(f"{len(other)} of {len(state)} tensors are random or others', first {other[0]}")
    return place + first


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
