"""A small corpus of pictures, and an encoder whose vectors of it are stored."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from geomim.corpus.build import build
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract
from geomim.verbs.corpus_embed import embed

SIZE = 32


def checkpoint(path: Path, sensor: str = "rgb", seed: int = 0, mean: float = 120.0) -> str:
    bands = SENSORS[sensor]
    torch.manual_seed(seed)
    encoder = ViT(in_chans=len(bands.bands), image_size=SIZE, patch_size=8, width=48, depth=1, heads=3)
    contract = BandContract(bands, (mean,) * len(bands.bands), (50.0,) * len(bands.bands))
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, path)
    return str(path)


def vectors(corpus, name="a"):
    return np.load(corpus / "embeddings" / f"{name}.ids.npy"), np.load(corpus / "embeddings" / f"{name}.npy")


def embedded_pictures(folder: Path, encoder: str) -> Path:
    """24 pictures, of which the last four are others made darker; all embedded."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (8, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8) for _ in range(20)]
    pixels += [(picture * 0.98).astype(np.uint8) for picture in pixels[:4]]
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / "pictures" / f"{number:02d}.png")
    corpus = folder / "corpus"
    build([str(folder / "pictures")], str(corpus), tile=64, near=None, crops=False, test_share=0.25, workers=1)
    embed(str(corpus), encoder, device="cpu", batch=5)
    return corpus
