"""A model of images and text that knows what it says: patches are their colour, and words are colours."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.models.inputs import patch_validity
from geomim.models.vit import ViT
from geomim.models.weights import Loaded
from geomim.sensors import SENSORS, BandContract

CONTRACT = BandContract(SENSORS["naip"], (100.0,) * 4, (50.0,) * 4)
WORDS = {"red": (1, 0, 0, 0), "green": (0, 1, 0, 0), "blue": (0, 0, 1, 0), "nir": (0, 0, 0, 1), "bare": (1, 1, 1, 0)}


class ColourModel:
    """The interface of `ImageText`; no patch sees beyond itself."""

    image_size, patch_size, logit_scale, notes = 32, 4, 10.0, ()

    def __init__(self, fingerprint: str = "colours", contract: BandContract = CONTRACT) -> None:
        self.encoder = ViT(len(contract.names), 32, 4, 48, 1, 3)
        self.loaded = Loaded(self.encoder, {contract.sensor.name: contract}, "stand-in")
        self.fingerprint, self.device = fingerprint, None
        self.joint = SimpleNamespace(text=SimpleNamespace(tokenize=self.tokenize))

    def fitted(self, contract: BandContract, gsd: float | None = None) -> "ColourModel":
        return self

    def to(self, device: torch.device) -> "ColourModel":
        self.device = device
        return self

    def tokenize(self, sentences: list[str]) -> Tensor:
        return torch.tensor([[ord(letter) for letter in one[:40].ljust(40)] for one in sentences])

    def encode_text(self, sentences: list[str]) -> Tensor:
        found = [next((value for word, value in WORDS.items() if word in one), (1,) * 4) for one in sentences]
        return F.normalize(torch.tensor(found).float()[:, : self.encoder.in_chans], dim=1)

    def encode_patches(self, images: Tensor, valid: Tensor | None = None, sensor: str | None = None) -> Tensor:
        means = F.avg_pool2d(images, self.patch_size).flatten(2).transpose(1, 2)
        if valid is not None:  # nodata is 0 and must not darken what is beside it
            assert valid.shape == (len(images), 1, *images.shape[2:])
            assert patch_validity(valid, self.patch_size).shape == means.shape[:2]
        return F.normalize(means, dim=-1)

    def encode_image(self, images: Tensor, valid: Tensor | None = None, sensor: str | None = None) -> Tensor:
        return F.normalize(images.mean((2, 3)), dim=-1)
