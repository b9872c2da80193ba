"""Small scenes of three kinds of land, an encoder that knows them, and probes of it."""

from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from geomim.evaluate.features import extract
from geomim.evaluate.linear import fit_linear
from geomim.evaluate.probes import EfficientProbe
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.models.inputs import ContractInput
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract

CONTRACT = BandContract(SENSORS["naip"], (100.0,) * 4, (50.0,) * 4)
COLOURS = torch.tensor([[40.0, 60, 20, 200], [160.0, 150, 140, 60], [10.0, 30, 90, 10]])
CLASSES = ("forest & field", "town", "water")
NAMES = ("red", "green", "blue", "nir")
PLACE = {"transform": from_origin(500000, 4000000, 2, 2), "crs": "EPSG:32632"}


def texture(kind: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 (4, H, W) of class colours with noise."""
    noise = np.random.default_rng(seed).normal(0, 8, (4, *kind.shape))
    return (COLOURS.numpy().T[:, kind] + noise).clip(1, 255).astype(np.uint8)


def kinds(height=70, width=101) -> np.ndarray:
    """Forest on the left, town above water on the right."""
    found = np.zeros((height, width), int)
    found[:, 48:] = 1
    found[40:, 48:] = 2
    return found


def write(path: Path, pixels: np.ndarray, names=NAMES, **profile) -> Path:
    count, height, width = pixels.shape
    settings = {"dtype": pixels.dtype, "count": count, "height": height, "width": width} | PLACE | profile
    with rasterio.open(path, "w", driver="GTiff", **settings) as raster:
        raster.write(pixels)
        for band, name in enumerate(names, start=1):
            raster.set_band_description(band, name)
    return path


def save_encoder(path: Path, seed: int = 0, contract: BandContract = CONTRACT) -> ViT:
    """A checkpoint of an encoder of 32 pixels, whose weights are drawn."""
    torch.manual_seed(seed)
    encoder = ViT(len(contract.names), 32, 4, 48, 1, 3).eval()
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, path)
    return encoder


def save_probes(folder: Path) -> None:
    """An encoder `a.ckpt`, a linear probe fitted on pictures of one class each, and another that is not fitted."""
    encoder = save_encoder(folder / "a.ckpt")
    prepare = ContractInput(CONTRACT, SENSORS["naip"])
    labels = torch.arange(60) % 3
    images = np.stack([texture(np.full((32, 32), int(label)), seed) for seed, label in enumerate(labels)])
    image, valid = prepare(torch.from_numpy(images))
    features = extract(encoder, [{"image": image, "valid": valid, "label": labels}])
    fit = fit_linear(features.pooled, features.labels, 3, strengths=(1e-2,))
    told = {"classes": CLASSES, "encoder": fingerprint(encoder), "contract": CONTRACT.to_dict(), "accuracy": 1.0}
    told["checkpoint"] = str(folder / "a.ckpt")
    save_probe(folder / "linear.safetensors", fit.probe, ProbeCard(kind="linear", pool="mean", **told))
    efficient = ProbeCard(kind="efficient", pool="tokens", **told)
    save_probe(folder / "efficient.safetensors", EfficientProbe(48, 3, 4).eval(), efficient)
