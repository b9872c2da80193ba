"""A model as an item of STAC catalogues, by the Machine Learning Model extension (MLM) 1.4."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from geomim.sensors import BandContract

_EXTENSIONS = ("mlm/v1.4.0", "eo/v2.0.0", "raster/v2.0.0")
_ASSETS = {
    "model.safetensors": ("pytorch", "safetensors", "mlm:weights"),
    "model.onnx": ("onnx", "onnx", "mlm:compiled"),
    "model.pt2": ("pytorch", "torch.export", "mlm:compiled"),
}


def mlm_item(
    name: str, kind: str, contract: BandContract, graphs: Sequence[Mapping[str, Any]], files: Sequence[str], **more: Any
) -> dict[str, Any]:
    """Say what goes into the models among a folder's files, and what comes out, of what `Graph.described` says.

    The whole band contract is there as `geomim:contract`; `kind` is the architecture in words, `more` are numbers to be
    known too, as the `patch_size`.
    """
    given: dict[str, Any] = {"shape": graphs[0]["input"]["image"], "dim_order": ["batch", "channel", "height", "width"]}
    statistics = zip(contract.mean, contract.divisor, strict=True)
    image = {
        "name": "image",
        "bands": list(contract.names),
        "input": given | {"data_type": "float32"},
        "value_scaling": [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in statistics],
    }
    outputs = [_output(key, one, graph["classes"]) for graph in graphs for key, one in graph["output"].items()]
    properties = {
        "datetime": None,  # a model is of no place, and of all time, as MLM advises to write it
        "start_datetime": "1900-01-01T00:00:00Z",
        "end_datetime": "9999-12-31T23:59:59Z",
        "mlm:name": name,
        "mlm:architecture": kind,
        "mlm:tasks": list(dict.fromkeys(task for one in outputs for task in one["tasks"])),
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__,
        "mlm:pretrained": True,
        "mlm:input": [image],
        "mlm:output": outputs,
        "mlm:hyperparameters": more,
        "geomim:contract": contract.to_dict(),
    }
    assets, bands = {}, [_band(contract, place) for place in range(len(contract.names))]
    for file, (framework, artifact, role) in _ASSETS.items():
        said = {"href": f"./{file}", "type": f"application/octet-stream; framework={framework}"}
        if file in files:
            assets[file] = {**said, "mlm:artifact_type": artifact, "roles": ["mlm:model", role], "bands": bands}
    extensions = [f"https://stac-extensions.github.io/{one}/schema.json" for one in _EXTENSIONS]
    about = {"type": "Feature", "stac_version": "1.1.0", "stac_extensions": extensions, "id": name, "geometry": None}
    return {**about, "properties": properties, "links": [], "assets": assets}


def _output(name: str, given: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    named = [{"value": n, "name": re.sub(r"[^\w-]+", "_", one), "title": one} for n, one in enumerate(classes)]
    task = "semantic-segmentation" if classes else "similarity-search"
    result = {"shape": given["shape"], "dim_order": given["dims"], "data_type": "float32"}
    said = {"name": name, "tasks": [task], "result": result}
    return said | ({"classification:classes": named} if classes else {})


def _band(contract: BandContract, place: int) -> dict[str, Any]:
    band, (unit, scale, offset) = contract.sensor.bands[place], contract.sensor.meaning(place)
    micrometres = {"eo:center_wavelength": band.wavelength, "eo:full_width_half_max": band.bandwidth}
    known = {"description": band.alias or band.polarisation, "gsd": band.gsd, "nodata": contract.sensor.nodata}
    known |= {key: value / 1000 for key, value in micrometres.items() if value}
    values = {"name": band.name, "unit": unit, "raster:scale": scale, "raster:offset": offset}
    return values | {key: value for key, value in known.items() if value is not None}
