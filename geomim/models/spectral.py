"""Kernels made from what a band is, so that one encoder takes any set of bands."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
from geomim.sensors import POLARISATIONS, Band, Sensor

RANK, HIDDEN = 64, 128
"""How many basis kernels the kernels of all bands are mixed from, and the width of the network that mixes them."""


def _waves(nanometres: float | None, slowest: float, fastest: float, count: int) -> Tensor:
    """Sine-cosine code of a length in octaves of a micrometre, in cycles an octave; zeros where it is unknown."""
    if not nanometres:
        return torch.zeros(2 * count)
    frequency = torch.logspace(math.log2(slowest), math.log2(fastest), count, 2.0, dtype=torch.float64)
    angle = 2 * math.pi * math.log2(nanometres / 1000) * frequency
    return torch.cat([angle.sin(), angle.cos()]).float()


def band_code(band: Band) -> Tensor:
    """What a kernel is made from: centre wavelength, bandwidth and polarisation of a band, `(CODE,)`."""
    # as large as the code of a wavelength
    polarisation = torch.tensor([4.0 * (band.polarisation == name) for name in POLARISATIONS])
    return torch.cat([_waves(band.wavelength, 1 / 4, 4, 16), _waves(band.bandwidth, 1 / 16, 1, 4), polarisation])


CODE = 2 * 16 + 2 * 4 + len(POLARISATIONS)


def band_codes(sensor: Sensor) -> Tensor:
    """Codes of all bands, `(C, CODE)`.

    Raises:
        BandError: A band has neither wavelength nor polarisation.
    """
    unknown = [band.name for band in sensor.bands if not (band.wavelength or band.polarisation)]
    if unknown:
        raise BandError(
            f"a spectral encoder makes its kernels from wavelengths, and sensor '{sensor.name}' gives none for "
            f"{', '.join(unknown)}: state wavelength (nm) and bandwidth, or the polarisation of radar "
            f"({', '.join(POLARISATIONS)}), in a YAML file and build the corpus with --sensor FILE.yaml, leave these "
            "bands out with --bands, or train with --encoder.spectral false"
        )
    return torch.stack([band_code(band) for band in sensor.bands])


class BandKernels(nn.Module):
    """A weight for every band: basis weights, mixed by a small network of the band's code.

    In the line of DOFA (Xiong et al., 2024), which generates kernels from a code of the wavelength too. Deviates: the
    network looks at one band at a time, so that a band's kernel does not depend on the others and any subset of
    bands can be baked; wavelengths are coded by their logarithm, as bands are broader and wider apart where they are
    longer; bandwidth and polarisation are coded too. All kernels start equally large, whatever the band.

    Args:
        shape: Of the weight of a band.
        std: Its deviation at the start.
    """

    def __init__(self, shape: tuple[int, ...], std: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, RANK))
        self.basis = nn.Parameter(torch.randn(RANK, *shape) * std)

    def mixture(self, codes: Tensor) -> Tensor:
        """Share of each basis kernel in those of the bands: `(C, CODE)` to `(C, RANK)`, each of length 1."""
        mixture: Tensor = F.layer_norm(self.network(codes), (RANK,)) / RANK**0.5
        return mixture

    def forward(self, codes: Tensor) -> Tensor:
        """Weights of some bands, `(C, *shape)`."""
        return (self.mixture(codes) @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])


class _Sensors(nn.Module):
    """Sensors by name, and the codes of their bands, which are no weights."""

    def __init__(self, sensors: Mapping[str, Sensor]) -> None:
        super().__init__()
        self.sensors = dict(sensors)
        for place, sensor in enumerate(self.sensors.values()):
            self.register_buffer(f"codes_{place}", band_codes(sensor), persistent=False)

    def codes(self, name: str | None) -> Tensor:
        """`(C, CODE)` of a sensor; of the only one where the name is None."""
        names = list(self.sensors)
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            raise ConfigError(f"expected one of the encoder's sensors ({', '.join(names)}); given {name}")
        codes: Tensor = getattr(self, f"codes_{names.index(name)}")
        return codes


class SpectralPatchEmbed(_Sensors):
    """A linear map of each patch that is made for the sensor's bands.

    Args:
        sensors: Bands of each sensor that is trained on, by the name that a batch gives.
        width: Token width.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, sensors: Mapping[str, Sensor], width: int, patch_size: int) -> None:
        super().__init__(sensors)
        self.kernels = BandKernels((width, patch_size, patch_size), (2 / (width + patch_size**2)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def channels(self, sensor: str | None = None) -> int:
        """Number of bands of a sensor."""
        return len(self.codes(sensor))

    def kernel(self, codes: Tensor) -> Tensor:
        """The convolution for some bands, `(D, C, p, p)`.

        Kernels of C bands are divided by the root of C, so that tokens of few and many bands start equally large.
        """
        kernel: Tensor = self.kernels(codes).transpose(0, 1) / len(codes) ** 0.5
        return kernel

    def baked(self, sensor: Sensor) -> tuple[Tensor, Tensor]:
        """Convolution `(D, C, p, p)` and bias for any sensor, in the order of its bands."""
        return self.kernel(band_codes(sensor).to(self.bias.device)), self.bias

    def forward(self, patches: Tensor, sensor: str | None = None) -> Tensor:
        """Embed patches laid out as `patchify` lays them: `(B, K, p*p*C)` to `(B, K, D)`."""
        weight = self.kernel(self.codes(sensor)).permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.bias)

    def readout(self, width: int) -> SpectralReadout:
        """The last layer of a decoder of pixels that is `width` wide."""
        return SpectralReadout(self.sensors, width, self.kernels.basis.shape[-1])


class SpectralReadout(_Sensors):
    """A linear map of tokens to pixels that is made for the sensor's bands: the mirror of `SpectralPatchEmbed`.

    Args:
        sensors: As for `SpectralPatchEmbed`.
        width: Width of the tokens.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, sensors: Mapping[str, Sensor], width: int, patch_size: int) -> None:
        super().__init__(sensors)
        self.kernels = BandKernels((patch_size**2, width + 1), (2 / (width + patch_size**2)) ** 0.5)
        nn.init.zeros_(self.kernels.basis.data[..., -1])  # the last column is the bias

    def forward(self, tokens: Tensor, sensor: str | None = None) -> Tensor:
        """`(B, P, width)` to `(B, P, p*p*C)` as `patchify` lays them."""
        weight = self.kernels(self.codes(sensor)).transpose(0, 1).flatten(0, 1)  # (p*p*C, width + 1)
        return F.linear(tokens, weight[:, :-1], weight[:, -1])


def keep_bands(numbers: Tensor, share: float) -> Tensor:
    """Which bands of each sample are seen, and how much larger: some are dropped, never all.

    The bands that are left are enlarged to the size that a sensor of only these bands would have, which is the root
    of their share: a spectral encoder sees then what it sees of such a sensor.

    Args:
        numbers: `(B, C)` uniform in (0, 1).
        share: Probability of a band to be dropped.

    Returns:
        `(B, C)` factors, 0 for a dropped band.
    """
    kept = ((numbers >= share) | (numbers == numbers.amax(1, keepdim=True))).float()
    return kept * (numbers.shape[1] / kept.sum(1, keepdim=True)).sqrt()
