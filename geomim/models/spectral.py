"""Kernels made from what a band is, so that one encoder takes any set of bands."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
from geomim.sensors import POLARISATIONS, Sensor, polarisation_of

CODE, HIDDEN, RANK = 2 * 16 + 2 * 4 + len(POLARISATIONS), 128, 64
"""Width of a band's code and of the network that reads it; how many basis kernels those of all bands are mixed from."""


def _waves(nanometres: float | None, slowest: float, fastest: float, count: int) -> Tensor:
    """Sine-cosine code of a length in octaves of a micrometre, in cycles an octave; zeros where it is unknown."""
    if not nanometres:
        return torch.zeros(2 * count)
    frequency = torch.logspace(math.log2(slowest), math.log2(fastest), count, 2.0, dtype=torch.float64)
    angle = 2 * math.pi * math.log2(nanometres / 1000) * frequency
    return torch.cat([angle.sin(), angle.cos()]).float()


def band_codes(sensor: Sensor) -> Tensor:
    """What kernels are made from: centre wavelength, bandwidth and polarisation of each band, `(C, CODE)`.

    Raises:
        BandError: A band has neither wavelength nor polarisation, nor is called as one.
    """
    unknown = [band.name for band in sensor.bands if not (band.wavelength or polarisation_of(band))]
    if unknown:
        raise BandError(
            f"a spectral encoder makes its kernels from wavelengths, and sensor '{sensor.name}' gives none for "
            f"{', '.join(unknown)}: state wavelength and bandwidth in nm, or of radar the polarisation "
            f"({', '.join(POLARISATIONS)}), in a YAML file of the sensor (--sensor FILE.yaml), or leave these bands "
            "out (--bands): a corpus is built again with them, geomim corpus build. Or train a plain encoder "
            "(--encoder.spectral false)"
        )
    codes = []
    for band in sensor.bands:
        # as large as the code of a wavelength
        polarisation = torch.tensor([4.0 * (polarisation_of(band) == name) for name in POLARISATIONS])
        codes += [_waves(band.wavelength, 1 / 4, 4, 16), _waves(band.bandwidth, 1 / 16, 1, 4), polarisation]
    return torch.cat(codes).view(-1, CODE)


class BandKernels(nn.Module):
    """A weight for every band: basis weights, mixed by a small network of the band's code.

    In the line of DOFA (Xiong et al., 2024), which generates kernels from a code of the wavelength too. Deviates: the
    network looks at one band at a time, so that a band's kernel does not depend on the others and any subset of
    bands can be baked; wavelengths are coded by their logarithm, as bands are broader and wider apart where they are
    longer; bandwidth and polarisation are coded too. All kernels start equally large, whatever the band.

    Args:
        sensors: Bands of each sensor that is trained on, by the name that a batch gives; their codes are no weights.
        shape: Of the weight of a band.
        std: Its deviation at the start.
    """

    def __init__(self, sensors: Mapping[str, Sensor], shape: tuple[int, ...], std: float) -> None:
        super().__init__()
        self.names = list(sensors)
        for place, sensor in enumerate(sensors.values()):
            self.register_buffer(f"codes_{place}", band_codes(sensor), persistent=False)
        self.network = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, RANK))
        self.basis = nn.Parameter(torch.randn(RANK, *shape) * std)

    def codes(self, sensor: str | None) -> Tensor:
        """`(C, CODE)` of a sensor by its name; of the only one where it is None."""
        name = self.names[0] if sensor is None and len(self.names) == 1 else sensor
        if name not in self.names:
            raise ConfigError(f"expected one of the encoder's sensors ({', '.join(self.names)}); given {name}")
        codes: Tensor = getattr(self, f"codes_{self.names.index(name)}")
        return codes

    def mixture(self, codes: Tensor) -> Tensor:
        """Share of each basis weight in those of the bands: `(C, CODE)` to `(C, RANK)`, each of length 1."""
        mixture: Tensor = F.layer_norm(self.network(codes), (RANK,)) / RANK**0.5
        return mixture

    def forward(self, codes: Tensor) -> Tensor:
        """Weights of some bands, `(C, *shape)`."""
        return (self.mixture(codes) @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])


class SpectralPatchEmbed(nn.Module):
    """A linear map of each patch that is made for the sensor's bands.

    Kernels of C bands are divided by the root of C, so that tokens of few and many bands start equally large.

    Args:
        sensors: As for `BandKernels`.
        width: Token width.
        patch_size: Side of a patch in pixels.
        bias: Add one.
    """

    def __init__(self, sensors: Mapping[str, Sensor], width: int, patch_size: int, bias: bool = True) -> None:
        super().__init__()
        self.sensors = dict(sensors)
        self.kernels = BandKernels(sensors, (width, patch_size, patch_size), (2 / (width + patch_size**2)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def channels(self, sensor: str | None = None) -> int:
        """Number of bands of a sensor."""
        return len(self.kernels.codes(sensor))

    def baked(self, sensor: Sensor) -> tuple[Tensor, Tensor | None]:
        """Convolution `(D, C, p, p)` and bias for any sensor, in the order of its bands."""
        kernels = self.kernels(band_codes(sensor).to(self.kernels.basis.device))
        return kernels.transpose(0, 1) / len(kernels) ** 0.5, self.bias

    def forward(self, patches: Tensor, sensor: str | None = None) -> Tensor:
        """Embed patches laid out as `patchify` lays them: `(B, K, p*p*C)` to `(B, K, D)`."""
        kernels = self.kernels(self.kernels.codes(sensor))
        return F.linear(patches, kernels.permute(1, 2, 3, 0).flatten(1) / len(kernels) ** 0.5, self.bias)


class SpectralReadout(nn.Module):
    """A linear map of tokens to pixels that is made for the sensor's bands: the mirror of `SpectralPatchEmbed`.

    Args:
        sensors: As for `BandKernels`.
        width: Width of the tokens.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, sensors: Mapping[str, Sensor], width: int, patch_size: int) -> None:
        super().__init__()
        self.kernels = BandKernels(sensors, (patch_size**2, width + 1), (2 / (width + patch_size**2)) ** 0.5)
        nn.init.zeros_(self.kernels.basis.data[..., -1])  # the last column is the bias

    def forward(self, tokens: Tensor, sensor: str | None = None) -> Tensor:
        """`(B, P, width)` to `(B, P, p*p*C)` as `patchify` lays them."""
        weight = self.kernels(self.kernels.codes(sensor)).transpose(0, 1).flatten(0, 1)  # (p*p*C, width + 1)
        return F.linear(tokens, weight[:, :-1], weight[:, -1])


def keep_bands(numbers: Tensor, share: float) -> Tensor:
    """Drop bands of each sample, never all; those left get the size that a sensor of only these would have.

    Args:
        numbers: `(B, C)` uniform in (0, 1).
        share: Probability of a band to be dropped.

    Returns:
        `(B, C)` factors, 0 for a dropped band.
    """
    kept = ((numbers >= share) | (numbers == numbers.amax(1, keepdim=True))).float()
    return kept * (numbers.shape[1] / kept.sum(1, keepdim=True)).sqrt()
