"""A vision transformer so small that torchgeo's tasks train it in a moment: as checkpoint, run and export."""

from pathlib import Path

import torch

from geomim.models.build import build_encoder
from geomim.models.vit import ViT
from geomim.sensors import BandContract, get_sensor
from geomim.verbs.export import export

SIZES = {"image_size": 64, "patch_size": 8, "width": 32, "depth": 4, "heads": 2}
NAIP = BandContract(get_sensor("naip"), (100.0, 90.0, 80.0, 120.0), (30.0, 25.0, 20.0, 40.0), ("public domain",))
S2 = BandContract(get_sensor("sentinel2"), tuple(1000.0 + 10 * place for place in range(13)), (300.0,) * 13)


def checkpoint(path: Path, *contracts: BandContract, **options) -> ViT:
    """Write one of random weights, which are no usual start."""
    torch.manual_seed(0)
    named = {contract.sensor.name: contract for contract in contracts or (NAIP,)}
    encoder = build_encoder(named, **SIZES | options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    entry = {"format_version": 2, "recipe": "mae", "recipe_args": {}, "encoder": encoder.config, "step": 7}
    entry |= {"contracts": {name: one.to_dict() for name, one in named.items()}, "provenance": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "geomim": entry}, path)
    return encoder


def exported(folder: Path, *contracts: BandContract, **options) -> ViT:
    """Write an exported folder."""
    file = folder.with_suffix(".ckpt")
    encoder = checkpoint(file, *contracts, **options)
    export(str(file), str(folder))
    return encoder
