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
_OPSET, _IR = 18, 8  # of 2022: what older runtimes, as beside QGIS, still read
_SINGLE = 1_800_000_000  # bytes that one file of ONNX holds; larger weights lie beside it


@dataclass(frozen=True)
class Graph:
    """A network to be written.

    Attributes:
        network: On the CPU, in evaluation mode; of images `(B, *shape)`, one answer or a tuple of them.
        shape: Channels, rows and columns of an image.
        outputs: What each answer is called, and its dimensions behind the batch.
        classes: Names of the dimension `class`.
    """

    network: nn.Module
    shape: tuple[int, int, int]
    outputs: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...] = ()

    def images(self, count: int) -> Tensor:
        """Noise as normalised images, the same every time."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def described(self) -> dict[str, Any]:
        """What it takes and gives, -1 for the batch."""
        pairs = zip(self.outputs.items(), _several(self.network(self.images(1))), strict=True)
        given = {key: {"shape": [-1, *one.shape[1:]], "dims": ["batch", *dims]} for (key, dims), one in pairs}
        return {"input": {"image": [-1, *self.shape]}, "output": given, "classes": list(self.classes)}

    def write(self, kind: str, folder: Path, said: Mapping[str, Any]) -> float:
        """Write a file, open it, and compare for one image and for three.

        Args:
            kind: One of `FILES`, which say what the file is called.
            folder: Where.
            said: Plain values that travel inside as JSON: metadata in ONNX, else `geomim.json` in the archive.

        Returns:
            The largest difference.

        Raises:
            CheckpointError: It is above the tolerance; or torch cannot write the network.
        """
        path, batches = folder / FILES[kind], ({0: torch.export.Dim("batch")},)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch about itself
                program = torch.export.export(self.network, (self.images(2),), dynamic_shapes=batches)
                for node in program.graph.nodes:
                    node.meta.pop("stack_trace", None)  # names folders of this machine
                opened = (_onnx if kind == "onnx" else _program)(program, list(self.outputs), path, said)
                tried = [(opened(images), self.network(images)) for images in map(self.images, (1, 3))]
        except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
            raise CheckpointError(f"torch cannot write this network as {path.name} ({str(error)[:300]})") from error
        return max(compare(*pair, path.name) for pair in tried)


class Features(nn.Module):
    """What a timm model says: the mean over patches `(B, D)`, and each of them in its place `(B, D, h, w)`.

    Args:
        network: A vision transformer, or a hierarchical model whose maps are `(B, h, w, D)`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of normalised images `(B, C, H, W)`."""
        tokens: Tensor = self.network.forward_features(images)
        if tokens.ndim == 3:
            patch = self.network.patch_embed.patch_size
            grid = [side // by for side, by in zip(images.shape[2:], patch, strict=True)]
            tokens = tokens[:, self.network.num_prefix_tokens :].unflatten(1, grid)  # type: ignore[no-untyped-call]
        return tokens.mean((1, 2)), tokens.permute(0, 3, 1, 2)


def compare(answers: Any, expected: Any, name: str) -> float:
    """The largest difference between answers, of which a file by this name gave the first.

    Raises:
        CheckpointError: It is above the tolerance, or not a number.
    """
    pairs = list(zip(_several(answers), _several(expected), strict=True))
    if not all(one.shape == two.shape and torch.allclose(one, two, TOLERANCE, TOLERANCE) for one, two in pairs):
        raise CheckpointError(f"{name} answers otherwise than the network that it was made of: nothing was written")
    return max(float((one - two).abs().max()) for one, two in pairs)


def deepness(
    classes: Sequence[str], contract: BandContract, size: int, gsd: float | None, overlap: int
) -> dict[str, Any]:
    """Metadata by which Deepness, a plugin of QGIS, maps classes of probabilities `(B, K, size, size)`.

    It divides by 255 what a layer holds, whatever its type, and then standardises (from 0.6 on). Where the threshold is
    0 the most probable class stands. For the tile's side its manual has one name and its code another.

    Args:
        classes: K names.
        contract: Bands, mean and deviation of stored numbers.
        size: Side of an image in pixels.
        gsd: Metres a pixel; it asks where None.
        overlap: Percent that tiles share.
    """
    return {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(classes)),
        **({} if gsd is None else {"resolution": 100 * gsd}),  # centimetres
        **{"tile_size": size, "tiles_size": size, "tiles_overlap": overlap},
        **{"seg_thresh": 0.0, "seg_small_segment": 0},
        "standardization_mean": [value / 255 for value in contract.mean],
        "standardization_std": [value / 255 for value in contract.divisor],
    }


def _several(answers: Any) -> Sequence[Tensor]:
    return [answers] if isinstance(answers, Tensor) else answers


def _program(program: Any, outputs: list[str], path: Path, said: Mapping[str, Any]) -> Callable[[Tensor], Any]:
    program.example_inputs = None  # noise
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
    size = sum(value.nbytes for value in program.state_dict.values())
    written.save(str(path), external_data=size > _SINGLE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(one) for one in session.run(None, {"image": images.numpy()})]
