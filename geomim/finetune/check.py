"""What the installed torchgeo does with some weights: every task of it built, filled and trained for one step."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torchgeo.models import get_model, get_weight

from geomim.errors import CheckpointError, GeomimError, InputError
from geomim.finetune.backbones import create, first_conv
from geomim.finetune.registry import fit, register
from geomim.finetune.stock import Change, Classification, Detection, Regression, Segmentation
from geomim.models.weights import read_checkpoint

ALONE, REGISTERED, WEIGHTS = "torchgeo alone", "registered", "weights"
"""The ways: as others would name the weights, by a name of `register`, and without a task."""

_HEADS = ("unet", "deeplabv3+", "upernet", "segformer", "dpt", "fcn")
_CHANGES = (*_HEADS, "fcsiamdiff", "fcsiamconc", "changevit", "btc")
_NAMES = "names and transforms"
_FOREIGN = ("detection faster-rcnn", "segmentation fcn", "change fcn", "change btc")
"""What torchgeo has for encoders of its own, or for none."""
_ALONE = ("classification", "regression", "segmentation dpt", "change dpt")
"""What it does with an exported transformer that nobody registered."""


@dataclass(frozen=True)
class Line:
    """One thing to try with some weights: `run` says what it found, or raises; `passed` is None before that."""

    what: str
    way: str
    run: Callable[[], str]
    promised: bool = False
    passed: bool | None = None
    said: str = ""

    def tried(self) -> Line:
        """The same, with what came of it, or why not, in a sentence."""
        try:
            with _quiet():
                return replace(self, passed=True, said=self.run())
        except Exception as error:  # the libraries behind it raise whatever they like
            kind = "" if isinstance(error, GeomimError) else f"{type(error).__name__}: "
            return replace(self, passed=False, said=kind + _short(error))


@dataclass(frozen=True)
class _Given:
    """Weights that have to be in a task, the side of the images, and by which names torchgeo is given them."""

    state: Mapping[str, Tensor]
    channels: int
    side: int
    model: str
    weights: Any
    dpt: Any = True  # weights for it, which it loads through timm
    whole: bool = False  # no tensor may be left out, as a head or what leads to it

    @property
    def backbone(self) -> str:
        """By smp's name."""
        own = self.weights is not True and self.model in smp.encoders.encoders
        return self.model if own else f"tu-{self.model}"


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
        network = create(name := source.removeprefix("timm:"), pretrained=True)
        side = network.pretrained_cfg["input_size"][-1]
        given = _Given(network.state_dict(), first_conv(network).in_channels, side, name, True)
        return [_finite(given.state), *_tasks(ALONE, lambda: given), *_registered(source, side)]
    try:
        member: Any = get_weight(source)
    except ValueError as error:
        raise InputError(
            f"'{source}': expected an exported folder (geomim export makes one of a checkpoint), timm:NAME, or "
            "torchgeo's name of some weights, as ViTSmall16_Weights.SENTINEL2_ALL_MOCO"
        ) from error
    meta: Any = member.meta
    try:
        state = member.get_state_dict(progress=False)
    except Exception as error:  # no network, a broken file in its cache: torch raises many kinds
        raise CheckpointError(f"torchgeo cannot give '{source}' ({_short(error)})") from error
    given = _Given(state, meta.get("in_chans", 3), meta.get("img_size", 224), meta.get("model", ""), source, source)
    return [_finite(state), Line(_NAMES, ALONE, partial(_named, lambda: given)), *_tasks(ALONE, lambda: given)]


def _of_folder(folder: Path) -> list[Line]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated, patch, entry = config["pretrained_cfg"], config["model_args"]["patch_size"], config["geomim"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{folder}/config.json' is none that geomim export writes ({type(error).__name__}, {error}); for a folder "
            f"that timm wrote give timm:local-dir:{folder}"
        ) from error
    state, side = read_checkpoint(folder / "model.safetensors"), stated["input_size"][-1]
    kernel = state.get(f"{stated['first_conv']}.weight")
    channels = stated["input_size"][0] if kernel is None else kernel.shape[1]
    side = side if stated.get("fixed_input_size") else math.lcm(64, patch)
    alone = _Given(state, channels, side, f"local-dir:{folder.absolute()}", True, whole=True)

    def contract() -> str:
        bands = ((entry.get("contract") or {}).get("sensor") or {}).get("bands", [])
        if len(bands) != channels:
            raise CheckpointError(f"it names {len(bands)} bands, and the encoder reads {channels}")
        return ", ".join(band["name"] for band in bands)

    # changevit cuts one token off in front, whatever it is
    other = _FOREIGN if "cls_token" in state else (*_FOREIGN, "change changevit")
    return [
        _finite(state),
        Line("band contract", WEIGHTS, contract, True),
        *(replace(line, promised=line.what in _ALONE) for line in _tasks(ALONE, lambda: alone)),
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

    @cache
    def given() -> _Given:
        one = register(source)
        channels, whole = get_weight(one.weights).meta["in_chans"], not source.startswith("timm:")
        return _Given(one.state, channels, side, one.name, one.weights, whole=whole)

    return [Line(_NAMES, REGISTERED, partial(_named, given, True)), *_tasks(REGISTERED, given)]


def _named(of: Callable[[], _Given], maps: bool = False) -> str:
    """What stands behind torchgeo's name of weights, and timm's of a registered model."""
    given = of()
    member: Any = get_weight(given.weights)
    bands, count = member.meta["bands"], member.meta["in_chans"]
    image = member.transforms({"image": torch.ones(count, 224, 224)})["image"]
    if not len(bands) == count == image.shape[-3] == given.channels:
        raise CheckpointError(f"of {given.channels} bands, meta names {len(bands)} and says {count}: {image.shape}")
    _compare(get_model(given.model, weights=member), given)
    if maps:
        network: Any = timm.create_model(given.model, pretrained=True, features_only=True)
        network(torch.randn(1, count, given.side, given.side))
    return ", ".join(map(str, bands))


def _tasks(way: str, given: Callable[[], _Given]) -> list[Line]:
    """Every task of torchgeo, with every model of it."""
    every: dict[str, Any] = {"classification": Classification, "regression": Regression}
    every |= {f"segmentation {model}": Segmentation for model in _HEADS}
    every |= {f"change {model}": Change for model in _CHANGES} | {"detection faster-rcnn": Detection}
    return [Line(what, way, partial(_step, given, task, what)) for what, task in every.items()]


def _arguments(given: _Given, task: Any, model: str) -> dict[str, Any]:
    if task is Detection:  # its `weights` are torchvision's own, whatever is given: left out, nothing is fetched
        return {"backbone": given.model, "num_classes": 2}
    classes = {} if task is Change else {"num_outputs" if task is Regression else "num_classes": 3}
    backbone, weights = given.backbone, given.weights
    if not model:
        return {"model": given.model, "weights": weights, **classes}
    if model == "dpt":
        backbone, weights = f"tu-{given.model}", given.dpt
    elif model == "changevit":  # with True it would fetch a ResNet, too
        backbone, weights = given.model, None if weights is True else weights
    return {"model": model, "backbone": backbone, "weights": weights, **classes}


def _step(of: Callable[[], _Given], task: Any, what: str) -> str:
    """Build a task, find the very weights in it, and train it for one step on two random samples."""
    given = of()
    built = task(in_channels=given.channels, **_arguments(given, task, what.partition(" ")[2]))
    (kernel, said), side = _compare(built.model, given), given.side
    batch = {"image": torch.randn(2, 2, given.channels, side, side)}  # of two dates
    batch |= {"mask": torch.ones(2, 1, side, side, dtype=torch.long)}
    if task is not Change:
        batch = {key: value[:, 0] for key, value in batch.items()}
        batch["label"] = torch.zeros(2, 3) if task is Regression else torch.tensor([0, 2])
    loss = built.training_step(batch, 0)
    if not bool(torch.isfinite(loss)):
        raise CheckpointError(f"the loss of one step is {float(loss.detach())}")
    loss.backward()
    gradient = built.model.get_parameter(kernel).grad
    if gradient is None or not bool(gradient.any()):
        raise CheckpointError(f"no gradient reaches {kernel}")
    built.configure_optimizers()["optimizer"].step()
    return f"{said}, loss {float(loss.detach()):.2f}"


def _compare(model: nn.Module, given: _Given) -> tuple[str, str]:
    """Find an encoder in a model, every tensor of it there as given, but for the size.

    Returns:
        The name of its first kernel there, and how much of it there is.
    """
    own, state = model.state_dict(), dict(given.state)
    there = {_flat(name): name for name in own}
    first = next((key for key, value in state.items() if value.ndim == 4), "")
    places = [name.removesuffix(_flat(first)) for name in there if first and f"_{name}".endswith(f"_{_flat(first)}")]
    if not places:
        raise CheckpointError("none of the weights is in it")
    place = max(places, key=lambda one: sum(one + _flat(key) in there for key in state))
    kernel = there[place + _flat(first)]
    inside = kernel.removesuffix(first)
    if inside != kernel and hasattr(network := model.get_submodule(inside.removesuffix(".")), "pretrained_cfg"):
        fit(network, state, "")
    names = {key: there.get(place + _flat(key)) for key in state}
    pairs = {key: (own[name], state[key]) for key, name in names.items() if name}
    other = [key for key, (one, two) in pairs.items() if not torch.equal(one.nan_to_num(), two.nan_to_num())]
    if other:
        raise CheckpointError(f"{len(other)} of {len(state)} tensors are random or others', first {other[0]}")
    cut = [key for key, name in names.items() if not name]
    said = f", {len(cut)} left out, first {cut[0]}" if cut else ""
    if cut and given.whole:
        raise CheckpointError(f"{len(pairs)} of {len(state)} tensors are in it{said}")
    return kernel, f"{len(pairs)} tensors as given{said}"


def _flat(name: str) -> str:
    """As timm calls them in `features_only` models: `stages_0` for `stages.0`."""
    return name.replace(".", "_")


def _short(error: Exception) -> str:
    return shorten(str(error), 200, placeholder=" ...")


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
