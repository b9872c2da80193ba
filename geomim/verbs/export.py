"""`geomim export`: an encoder, alone or with what was learned on it, leaves in the forms that others read."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim import __version__
from geomim.errors import CheckpointError, ConfigError, MissingExtraError
from geomim.evaluate.probes import patch_logits
from geomim.evaluate.saved import fingerprint, load_probe
from geomim.models.card import model_card, shown
from geomim.models.export import baked, check_folder, hub_config, put_folder, write_encoder, write_file, write_json
from geomim.models.fitting import fitted
from geomim.models.frozen import as_timm
from geomim.models.graphs import FILES, Features, Graph, deepness
from geomim.models.hierarchical import Hierarchical
from geomim.models.hub import push_folder
from geomim.models.image_text import with_text
from geomim.models.item import mlm_item
from geomim.models.weights import FORMAT_VERSION, IMAGENET, Loaded, contract_of, read_encoder
from geomim.sensors import BandContract

Format = Literal["timm", "onnx", "torch-export", "remoteclip"]
_FEATURES = {"pooled": ("channel",), "patches": ("channel", "height", "width")}
_CLASSES = {"probabilities": ("class", "height", "width")}


@dataclass(frozen=True)
class _Leaving:
    """What is written, and what is known of it; the last of the graphs becomes files."""

    config: dict[str, Any]
    contract: BandContract
    kind: str
    sizes: dict[str, int]
    graphs: list[Graph]
    gsd: float | None
    overlap: int
    notes: tuple[str, ...]
    loaded: Loaded | None = None


def export(
    checkpoint: str,
    out: str,
    format: list[Format] | None = None,
    probe: str | None = None,
    push: str | None = None,
    heads: int | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    gsd: float | None = None,
    patch_size: int | None = None,
    image_size: int | None = None,
) -> Path:
    """Write an encoder as a folder that timm, torchgeo and safetensors read without geomim.

    The space that it shares with sentences, where it has one, lies beside in `joint.safetensors`.
    `timm.create_model("local-dir:OUT", pretrained=True)` gives the encoder with mean-pooled patch tokens as its
    answer, for images of any size. The mean and deviation of its `pretrained_cfg` are those of pictures brought to
    0..1, as timm's transforms do it, where the encoder was trained on 8-bit numbers; else those of stored numbers. Its
    `description` says which. `item.json` describes the folder to STAC catalogues.

    ONNX and programs of torch.export take any number of images of one size, as `(stored number - mean) / std`. They
    answer with the mean of the patches and each patch in its place; with a probe, or of a tuned segmentation, with
    probabilities of classes by pixel, which QGIS's plugin Deepness maps as it finds them. Each file is opened again and
    its answers compared, to 1e-4, before the folder is there.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file; or the folder of
            a segmentation that `geomim finetune` tuned, which leaves as a graph alone.
        out: Folder to write; an earlier export is replaced, any other folder with content is refused.
        format: `timm`, which is always there; `onnx` adds model.onnx and `torch-export` model.pt2. `remoteclip` writes
            images and text as one file, which open_clip loads: a class token, red, green and blue, and CLIP's
            architecture (`--encoder.clip`) are needed.
        probe: What `geomim evaluate` fitted on it: the graphs answer for its classes; one of bands, as the probe.
        push: USER/NAME on the Hugging Face Hub, where the folder is put, too; a new one is private.
        heads: Attention heads of a published file whose size is not a usual one.
        sensor: What a spectral encoder is baked for: a sensor that it was trained on, another one, or a YAML file of
            one, with `mean` and `std` of the stored numbers where its bands are like none of the encoder's.
        bands: Only these bands, in this order.
        gsd: Metres a pixel of the images, for positions that follow it; those of the sensor where not given.
        patch_size: Another patch size in pixels; kernels are resized by pseudo-inverse.
        image_size: Side of a graph's images in pixels; the encoder's where not given.

    Returns:
        The folder, or the file.

    Raises:
        CheckpointError: The checkpoint cannot be read, is of several sensors and none is named, is not what the probe
            was fitted on; or a file answers otherwise than the encoder.
        BandError: The encoder cannot be baked for these bands.
        ConfigError: What is asked for does not go together.
        InputError: `out` holds something else, or the Hub does not take it.
        MissingExtraError: ONNX needs libraries that are not installed.
    """
    formats, folder = format or ["timm"], Path(out)
    kinds, changes = [kind for kind in FILES if kind in formats], (sensor, bands, gsd, patch_size)
    _check(formats, kinds, folder, probe, push, image_size)
    if (task := _task_file(checkpoint)) is not None:
        if not kinds or probe or heads or any(one is not None for one in changes):
            raise ConfigError(
                f"'{checkpoint}' is a tuned task: give --format onnx or torch-export, at most --image_size"
            )
        leaving = _tuned(task, image_size)
    else:
        leaving = _encoder(read_encoder(checkpoint, heads), checkpoint, probe, changes, image_size)
    for note in leaving.notes:
        print(f"note: {note}")
    if "remoteclip" in formats and leaving.loaded:
        return write_file(with_text(leaving.loaded, checkpoint), folder)
    put_folder(folder, lambda aside: _fill(leaving, kinds, aside, folder.name, push))
    how = f'; load it with timm.create_model("local-dir:{folder}", pretrained=True)' if leaving.loaded else ""
    print(f"wrote {folder}{how}")
    if push:
        print(f"pushed to {push_folder(folder, push)}: private, where it is new, until you publish it there")
    return folder


def _check(
    formats: Sequence[str], kinds: Sequence[str], out: Path, probe: str | None, push: str | None, image_size: int | None
) -> None:
    """Refuse what does not go together, before anything is read."""
    if (probe or image_size is not None) and not kinds:
        raise ConfigError(f"{'--probe' if probe else '--image_size'} is for graphs: add --format onnx or torch-export")
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise ConfigError(f"--push: expected USER/NAME; given '{push}'")
    if "remoteclip" in formats:
        if len(formats) > 1 or push:
            raise ConfigError("--format remoteclip writes one file: leave out --push and other formats")
        return
    if out.suffix in (".onnx", ".pt2", ".safetensors"):
        raise ConfigError(f"--out {out}: expected a folder, in which graphs are called {' and '.join(FILES.values())}")
    for name in ("onnx", "onnxscript", "onnxruntime") if "onnx" in kinds else ():
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"--format onnx needs '{name}', which is not installed: pip install 'geomim[onnx]'")
    check_folder(out)


def _encoder(
    loaded: Loaded, name: str, probe: str | None, changes: tuple[Any, ...], image_size: int | None
) -> _Leaving:
    """An encoder as timm's model, as a graph of what it says, and of what a probe says of its patches."""
    loaded, asked = _of_probe(loaded, name, probe, changes) if probe else (baked(loaded, name, *changes), None)
    own, contract = loaded.encoder, loaded.contract or IMAGENET
    network, side, fixed = as_timm(own).eval(), image_size or own.image_size, isinstance(own, Hierarchical)
    if side != own.image_size:
        if fixed or side < 1 or side % own.patch_size:
            takes = f"{own.image_size} alone" if fixed else f"a multiple of its patches' {own.patch_size}"
            raise ConfigError(f"--image_size: the encoder takes {takes}; given {side}")
        network.set_input_size(img_size=(side, side))
    graphs = [Graph(Features(network).eval(), (own.in_chans, side, side), _FEATURES)]
    if asked is not None:
        by_patch = nn.Sequential(_ByPatch(graphs[0].network, asked[0], own.patch_size), nn.Softmax(1)).eval()
        graphs.append(Graph(by_patch, graphs[0].shape, _CLASSES, asked[1]))
    kind, gsd = "Swin Transformer V2" if fixed else "Vision Transformer", changes[2] or contract.sensor.gsd
    sizes = {"patch_size": own.patch_size, "image_size": side}
    return _Leaving(hub_config(loaded), contract, kind, sizes, graphs, gsd, 50, loaded.notes, loaded)


_Asked = tuple[nn.Module, tuple[str, ...]]
"""A probe, and the classes that it knows."""


def _of_probe(loaded: Loaded, name: str, probe: str, changes: tuple[Any, ...]) -> tuple[Loaded, _Asked]:
    """The encoder as a probe knows it, and the probe."""
    if any(one is not None for one in changes):
        raise ConfigError("leave out --sensor, --bands, --gsd and --patch_size beside --probe, which has its own")
    answers, card = load_probe(probe)
    contract = BandContract.from_dict(card.contract) if card.contract else contract_of(loaded, name)[0]
    encoder, notes = fitted(loaded.encoder, contract, card.gsd), loaded.notes
    if card.encoder != fingerprint(encoder):
        raise CheckpointError(
            f"probe '{probe}' was fitted on another encoder than '{name}': geomim evaluate on this one"
        )
    if card.kind == "linear" and card.pool == "class":
        raise CheckpointError(f"probe '{probe}' reads the class token, which no patch has: geomim evaluate --pool mean")
    if card.pool != "patch":
        notes += ("the probe was fitted on whole images: one of patches (geomim evaluate --dense) maps better",)
    made = replace(loaded, encoder=encoder, contracts={contract.sensor.name: contract}, notes=notes)
    return made, (answers, card.classes)


class _ByPatch(nn.Module):
    """A probe's logits `(B, K, H, W)` of each patch, for all its pixels."""

    def __init__(self, features: nn.Module, probe: nn.Module, patch: int) -> None:
        super().__init__()
        self.features, self.probe, self.patch = features, probe, patch

    def forward(self, images: Tensor) -> Tensor:
        _, patches = self.features(images)
        logits = patch_logits(self.probe, patches.flatten(2).transpose(1, 2)).transpose(1, 2)
        return F.interpolate(logits.unflatten(2, patches.shape[2:]), scale_factor=self.patch, mode="nearest")


def _task_file(source: str) -> Path | None:
    """The tuned task that a path means."""
    file = Path(source, "task.ckpt") if Path(source).is_dir() else Path(source)
    return file if file.name == "task.ckpt" and file.is_file() else None


def _tuned(path: Path, image_size: int | None) -> _Leaving:
    """A tuned segmentation as a graph; its card says of the encoder what that one's says."""
    from geomim.finetune.backbones import checkpoint_of  # needs the extra of tasks
    from geomim.finetune.segmentation import Segmentation
    from geomim.finetune.training import merge_lora

    if (name := torch.load(path, map_location="cpu", weights_only=True).get("geomim_task")) != "segmentation":
        raise ConfigError(f"'{path}' is a task of {name}: of tuned tasks segmentation alone leaves as a graph")
    task: Any = Segmentation.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    own, contract, network = task.hparams, task.contract, task.model.encoder.network
    if task.tuning.lora:
        merge_lora(network)
    embed = getattr(network, "patch_embed", None)
    made = getattr(embed, "img_size", None) or network.pretrained_cfg["input_size"][1:]
    side, head = image_size or own["image_size"] or made[0], own["head"]
    model, kind = nn.Sequential(task.model, nn.Softmax(1)).eval(), f"{type(network).__name__} with {head}"
    graph = Graph(model, (len(contract.names), side, side), _CLASSES, tuple(own["classes"]))
    source = own["encoder"]
    known = {} if source.startswith("timm:") else read_encoder(checkpoint_of(source)[0]).entry
    entry = {key: value for key, value in known.items() if key not in ("contracts", "joint")} | {
        "format_version": FORMAT_VERSION,
        "geomim_version": __version__,
        "source": f"segmentation with the head {head}, tuned on {Path(source).name}",
        "encoder": {"family": type(network).__name__},
        "contract": contract.to_dict(),
        "notes": list(dict.fromkeys([*known.get("notes", ()), *task.notes])),
    }
    sizes = {"image_size": side}
    return _Leaving({"geomim": entry}, contract, kind, sizes, [graph], contract.sensor.gsd, 25, task.notes)


def _fill(leaving: _Leaving, kinds: Sequence[str], folder: Path, name: str, push: str | None) -> None:
    """Write all files; what graphs take and give is in config.json, too, and on the card."""
    config, graph, contract = leaving.config, leaving.graphs[-1], leaving.contract
    if leaving.loaded:
        write_encoder(leaving.loaded, config, folder)
    described, said = [one.described() for one in leaving.graphs], {"geomim": config["geomim"]}
    if graph.classes:
        said |= deepness(graph.classes, contract, graph.shape[1], leaving.gsd, leaving.overlap)
    for kind in kinds:
        off = graph.write(kind, folder, said)
        config.setdefault("graphs", {})[FILES[kind]] = described[-1]
        print(f"{FILES[kind]}: {shown(described[-1])}; opened again, it differs by at most {off:.1e}")
    if "onnx" in kinds and graph.classes:
        asks = "" if leaving.gsd else "; it will ask for the resolution, which these bands do not tell"
        print(f"note: in QGIS's Deepness (from 0.6) choose a layer's bands as {', '.join(contract.names)}{asks}")
    write_json(folder / "config.json", config)
    card = model_card(name, config, f"hf-hub:{push}" if push else f"local-dir:/path/to/{name}")
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = [file.name for file in folder.iterdir()]
    write_json(folder / "item.json", mlm_item(name, leaving.kind, contract, described, files, **leaving.sizes))
