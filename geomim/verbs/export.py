"""`geomim export`: an encoder, alone or with what was learned on it, leaves in the forms that others read."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from geomim import __version__
from geomim.errors import CheckpointError, ConfigError, MissingExtraError
from geomim.evaluate.probes import patch_logits
from geomim.evaluate.saved import ProbeCard, fingerprint, load_probe
from geomim.models.card import model_card, shown
from geomim.models.export import (
    baked,
    check_folder,
    for_contract,
    hub_config,
    put_folder,
    write_encoder,
    write_file,
    write_json,
)
from geomim.models.frozen import as_timm
from geomim.models.graphs import FILES, Features, Graph, deepness
from geomim.models.hierarchical import Hierarchical
from geomim.models.hub import push_folder
from geomim.models.image_text import with_text
from geomim.models.item import mlm_item
from geomim.models.weights import FORMAT_VERSION, IMAGENET, Loaded, contract_of, read_checkpoint, read_encoder
from geomim.sensors import BandContract

Format = Literal["timm", "onnx", "torch-export", "remoteclip"]


@dataclass(frozen=True)
class _Leaving:
    """What is written, and what is known of it; the last of the graphs becomes files."""

    config: dict[str, Any]
    contract: BandContract
    kind: str
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

    Graphs, of ONNX and torch.export, take any number of images of one size as `(stored number - mean) / std`, and give
    the mean of the patches and each patch in its place; or, with a probe or of a tuned segmentation, probabilities of
    classes by pixel, which QGIS's plugin Deepness maps. What is written is opened again, and must answer the same.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file; or the folder of
            a segmentation that `geomim finetune` tuned, which leaves as a graph alone.
        out: Folder to write; an earlier export is replaced, any other folder with content is refused.
        format: `timm`, always; `onnx` adds model.onnx and `torch-export` model.pt2. `remoteclip` writes images and text
            as one file, which open_clip loads: a class token, red, green and blue, and CLIP's architecture
            (`--encoder.clip`) are needed.
        probe: What `geomim evaluate` fitted on it, for graphs that give its classes.
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
        CheckpointError: The checkpoint cannot be read, is of several sensors and none is named, or is another than the
            probe's; or a file answers otherwise than the encoder.
        BandError: The encoder cannot be baked for these bands.
        InputError: `out` holds something else, or the Hub does not take it.
    """
    formats, folder = format or ["timm"], Path(out)
    kinds, changes = [kind for kind in FILES if kind in formats], (sensor, bands, gsd, patch_size)
    if (probe or image_size is not None) and not kinds:
        raise ConfigError(f"{'--probe' if probe else '--image_size'} is for graphs: add --format onnx or torch-export")
    if probe and changes != (None,) * 4:
        raise ConfigError("leave out --sensor, --bands, --gsd and --patch_size beside --probe, which has its own")
    _check(formats, kinds, folder, push)
    task = Path(checkpoint, "task.ckpt") if Path(checkpoint).is_dir() else Path(checkpoint)
    if task.name == "task.ckpt" and task.is_file():
        if not kinds or probe or heads or changes != (None,) * 4:
            raise ConfigError(f"'{task}' is a tuned task: give --format onnx or torch-export, at most --image_size too")
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


def _check(formats: Sequence[str], kinds: Sequence[str], out: Path, push: str | None) -> None:
    """Refuse what cannot be written, before anything is read."""
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
    answers, card = load_probe(probe) if probe else (None, None)
    loaded = _of_probe(loaded, name, card) if card else baked(loaded, name, *changes)
    own, contract = loaded.encoder, loaded.contract or IMAGENET
    network, side, fixed = as_timm(own).eval(), image_size or own.image_size, isinstance(own, Hierarchical)
    if side != own.image_size:
        if fixed or side < 1 or side % own.patch_size:
            takes = f"{own.image_size} alone" if fixed else f"a multiple of its patches' {own.patch_size}"
            raise ConfigError(f"--image_size: the encoder takes {takes}; given {side}")
        network.set_input_size(img_size=(side, side))
    graphs = [Graph(Features(network).eval(), (own.in_chans, side, side))]
    if answers and card:
        by_patch = nn.Sequential(_ByPatch(graphs[0].network, answers, own.patch_size), nn.Softmax(1))
        graphs.append(Graph(by_patch.eval(), graphs[0].shape, card.classes))
    kind, gsd = "Swin Transformer V2" if fixed else "Vision Transformer", changes[2] or contract.sensor.gsd
    if card and (card.gsd or gsd):
        gsd = card.gsd or gsd * card.scale  # of the images as the encoder saw them
    return _Leaving(hub_config(loaded), contract, kind, graphs, gsd, 50, loaded.notes, loaded)


def _of_probe(loaded: Loaded, name: str, card: ProbeCard) -> Loaded:
    """The encoder as a probe knows it."""
    contract = BandContract.from_dict(card.contract) if card.contract else contract_of(loaded, name)[0]
    made, notes = for_contract(loaded, contract, card.gsd), loaded.notes
    if card.encoder != fingerprint(made.encoder):
        raise CheckpointError(f"the probe was fitted on another encoder than '{name}': run geomim evaluate on this one")
    if card.kind == "linear" and card.pool == "class":
        raise CheckpointError("the probe reads the class token, which no patch has: run geomim evaluate --pool mean")
    if card.pool != "patch":
        notes += ("the probe was fitted on whole images: one of patches (geomim evaluate --dense) maps better",)
    return replace(made, notes=notes)


class _ByPatch(nn.Module):
    """A probe's logits `(B, K, H, W)` of each patch, for all its pixels."""

    def __init__(self, features: nn.Module, probe: nn.Module, patch: int) -> None:
        super().__init__()
        self.features, self.probe, self.patch = features, probe, patch

    def forward(self, images: Tensor) -> Tensor:
        _, patches = self.features(images)
        logits = patch_logits(self.probe, patches.flatten(2).transpose(1, 2)).transpose(1, 2)
        return F.interpolate(logits.unflatten(2, patches.shape[2:]), scale_factor=self.patch, mode="nearest")


def _tuned(path: Path, image_size: int | None) -> _Leaving:
    """A tuned segmentation as a graph; its card says of the encoder what that one's says."""
    from geomim.finetune.backbones import checkpoint_of  # needs the extra of tasks
    from geomim.finetune.segmentation import Segmentation
    from geomim.finetune.training import merge_lora

    if (name := read_checkpoint(path).get("geomim_task")) != "segmentation":
        raise ConfigError(f"'{path}' is a task of {name}: of tuned tasks segmentation alone leaves as a graph")
    task: Any = Segmentation.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    own, contract, network = task.hparams, task.contract, task.model.encoder.network
    if task.tuning.lora:
        merge_lora(network)
    made = getattr(getattr(network, "patch_embed", None), "img_size", None) or network.pretrained_cfg["input_size"][1:]
    side, kind = image_size or own["encoder"]["image_size"] or made[0], type(network).__name__
    model = nn.Sequential(task.model, nn.Softmax(1)).eval()
    source = own["encoder"]["source"]  # a task needs it no more: it may be gone
    known = read_encoder(checkpoint_of(source)[0]).entry if Path(source).exists() else {}
    entry = {key: value for key, value in known.items() if key not in ("contracts", "joint")} | {
        "format_version": FORMAT_VERSION,
        "geomim_version": __version__,
        "source": f"segmentation with the head {own['head']}, tuned on {Path(source).name}",
        "encoder": {"family": kind},
        "contract": contract.to_dict(),
        "notes": list(dict.fromkeys([*known.get("notes", ()), *task.notes])),
    }
    graph = Graph(model, (len(contract.names), side, side), tuple(own["classes"]))
    return _Leaving({"geomim": entry}, contract, kind, [graph], contract.sensor.gsd, 25, task.notes)


def _fill(leaving: _Leaving, kinds: Sequence[str], folder: Path, name: str, push: str | None) -> None:
    """Write all files; what graphs take and give is in config.json, too, and on the card."""
    config, graph, contract = leaving.config, leaving.graphs[-1], leaving.contract
    if leaving.loaded:
        write_encoder(leaving.loaded, config, folder)
    described, said = [one.described() for one in leaving.graphs], {"geomim": config["geomim"]}
    said |= deepness(graph, contract, leaving.gsd, leaving.overlap) if graph.classes else {}
    for kind in kinds:
        off = graph.write(kind, folder, said)
        config.setdefault("graphs", {})[FILES[kind]] = described[-1]
        print(f"{FILES[kind]}: {shown(described[-1])}; opened again, it differs by at most {off:.1e}")
    if "onnx" in kinds and graph.classes:
        metres = f"a pixel is {leaving.gsd:g} m" if leaving.gsd else "give the resolution, which bands do not tell"
        print(f"note: in QGIS's Deepness (from 0.6) choose a layer's bands as {', '.join(contract.names)}; {metres}")
    write_json(folder / "config.json", config)
    card = model_card(name, config, f"hf-hub:{push}" if push else f"local-dir:/path/to/{name}")
    (folder / "README.md").write_text(card, encoding="utf-8")
    files, patch = [file.name for file in folder.iterdir()], config["geomim"]["encoder"].get("patch_size")
    sizes = {"image_size": graph.shape[1]} | ({"patch_size": patch} if patch else {})
    write_json(folder / "item.json", mlm_item(name, leaving.kind, contract, described, files, **sizes))
