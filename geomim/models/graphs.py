"""Networks as files that run without the code they are made of: ONNX, and programs of `torch.export`.

A graph takes normalised images as the network does, any number of them, of one size. Its file is opened again, and its
answers are compared with the network's before it counts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomim.errors import CheckpointError
from geomim.sensors import BandContract

FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
TOLERANCE = 1e-4
"""How far an answer may be from the network's, absolute and relative to it."""
_FEATURES = {"pooled": ["batch", "channel"], "patches": ["batch", "channel", "height", "width"]}
_CLASSES = {"probabilities": ["batch", "class", "height", "width"]}
_OPSET, _IR = 18, 8  # of 2022: what older runtimes, as beside QGIS, still read
_SINGLE = 1_800_000_000  # bytes that one file of ONNX holds; larger weights lie beside it


@dataclass(frozen=True)
class Graph:
    """A network to be written, on the CPU and in evaluation mode.

    Attributes:
        network: Of images `(B, *shape)` either what `Features` gives, or probabilities `(B, classes, H, W)`.
        shape: Channels, rows and columns of an image.
        classes: Their names; none of features.
    """

    network: nn.Module
    shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> dict[str, list[str]]:
        """Dimensions of each answer."""
        return _CLASSES if self.classes else _FEATURES

    def tried(self, network: Callable[[Tensor], Any], count: int) -> Sequence[Tensor]:
        """What a network answers to noise."""
        with torch.no_grad():
            given = network(torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0)))
        return [given] if isinstance(given, Tensor) else given

    def described(self) -> dict[str, Any]:
        """What it takes and gives, -1 for the batch."""
        pairs = zip(self.outputs.items(), self.tried(self.network, 1), strict=True)
        given = {name: {"shape": [-1, *one.shape[1:]], "dims": dims} for (name, dims), one in pairs}
        return {"input": {"image": [-1, *self.shape]}, "output": given, "classes": list(self.classes)}

    def write(self, kind: str, folder: Path, said: Mapping[str, Any]) -> float:
        """Write one of `FILES`, open it, compare it for one image and for three, and give the largest difference.

        What is `said` travels inside as JSON: metadata in ONNX, else `geomim.json` in the archive.

        Raises:
            CheckpointError: It is above the tolerance; or torch cannot write the network.
        """
        path, batches = folder / FILES[kind], ({0: torch.export.Dim("batch")},)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch about itself
                program = torch.export.export(self.network, (torch.zeros(2, *self.shape),), dynamic_shapes=batches)
                for node in program.graph.nodes:
                    node.meta.pop("stack_trace", None)  # names folders of this machine
                opened = (_onnx if kind == "onnx" else _program)(program, list(self.outputs), path, said)
        except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
            raise CheckpointError(f"torch cannot write this network as {path.name} ({str(error)[:300]})") from error
        return max(compare(self.tried(opened, many), self.tried(self.network, many), path.name) for many in (1, 3))


class Features(nn.Module):
    """What a timm model says of normalised images: the mean over patches `(B, D)`, and each in place `(B, D, h, w)`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        tokens: Tensor = self.network.forward_features(images)  # of a hierarchical model (B, h, w, D)
        if tokens.ndim == 3:
            patch = self.network.patch_embed.patch_size
            grid = [side // by for side, by in zip(images.shape[2:], patch, strict=True)]
            tokens = tokens[:, self.network.num_prefix_tokens :].unflatten(1, grid)  # type: ignore[no-untyped-call]
        return tokens.mean((1, 2)), tokens.permute(0, 3, 1, 2)


def compare(answers: Sequence[Tensor], expected: Sequence[Tensor], name: str) -> float:
    """The largest difference of what a file answers; CheckpointError where it is above the tolerance."""
    pairs = list(zip(answers, expected, strict=True))
    if not all(one.shape == two.shape and torch.allclose(one, two, TOLERANCE, TOLERANCE) for one, two in pairs):
        raise CheckpointError(f"{name} answers otherwise than the network that it was made of: nothing was written")
    return max(float((one - two).abs().max()) for one, two in pairs)


def deepness(graph: Graph, contract: BandContract, gsd: float | None, overlap: int) -> dict[str, Any]:
    """Metadata by which Deepness, a plugin of QGIS, maps the classes of a graph, in tiles that overlap by some percent.

    It divides by 255 what a layer holds, whatever its type, and then standardises (from 0.6 on). Where the threshold is
    0 the most probable class stands. For the tile's side its manual has one name and its code another. It asks for the
    metres a pixel where they are not known.
    """
    said = {"model_type": "Segmentor", "class_names": dict(enumerate(graph.classes)), "tiles_overlap": overlap}
    said |= {"tile_size": graph.shape[1], "tiles_size": graph.shape[1], "seg_thresh": 0.0, "seg_small_segment": 0}
    said |= {} if gsd is None else {"resolution": 100 * gsd}  # centimetres
    statistics = {"standardization_mean": contract.mean, "standardization_std": contract.divisor}
    return said | {key: [value / 255 for value in values] for key, values in statistics.items()}


def _program(program: Any, outputs: list[str], path: Path, said: Mapping[str, Any]) -> Callable[[Tensor], Any]:
    program.example_inputs = None
    torch.export.save(program, path, extra_files={"geomim.json": json.dumps(said)})
    return torch.export.load(path).module()


def _onnx(program: Any, outputs: list[str], path: Path, said: Mapping[str, Any]) -> Callable[[Tensor], Any]:
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["image"], "output_names": outputs}
    written: Any = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False, **names)
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()
    written.model.metadata_props.update({key: json.dumps(value) for key, value in said.items()})
    written.model.ir_version = _IR
    written.save(str(path), external_data=sum(one.nbytes for one in program.state_dict.values()) > _SINGLE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(one) for one in session.run(None, {"image": images.numpy()})]
