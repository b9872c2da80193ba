"""Reflectance of what covers the ground in the bands of Sentinel-2, and what the air does to it.

The numbers are our own, after the shapes of curves in the USGS Spectral Library Version 7 (Kokaly et al.
2017, Data Series 1035) and the ECOSTRESS library (Meerdink et al. 2019, RSE 230): vegetation has its red edge at 0.7 um
and the water of leaves in SWIR, soil and sand rise, water falls to nothing in NIR, snow is bright in VIS, dark in SWIR.
"""

from __future__ import annotations

import numpy as np

from geomim.sensors import SENSORS

BANDS = SENSORS["sentinel2"].names
"""Columns of the table."""

MATERIALS = {
    #            B01   B02   B03   B04   B05   B06   B07   B08   B8A   B09   B10   B11   B12
    "grass":   (.035, .042, .098, .055, .120, .290, .380, .410, .425, .420, .300, .240, .120),
    "crop":    (.030, .036, .092, .040, .112, .320, .430, .465, .475, .470, .320, .235, .105),
    "leaves":  (.020, .025, .050, .026, .085, .230, .310, .340, .350, .345, .220, .160, .075),
    "needles": (.015, .020, .036, .022, .050, .140, .190, .210, .220, .215, .130, .095, .040),
    "straw":   (.080, .105, .150, .205, .230, .260, .285, .315, .335, .345, .330, .380, .290),
    "soil":    (.055, .068, .096, .135, .154, .172, .190, .209, .224, .235, .270, .312, .270),
    "sand":    (.120, .155, .225, .300, .330, .350, .370, .390, .400, .410, .430, .490, .450),
    "rock":    (.110, .125, .150, .180, .188, .196, .203, .210, .216, .222, .232, .255, .235),
    "asphalt": (.085, .095, .110, .122, .128, .134, .140, .146, .151, .156, .165, .185, .175),
    "tiles":   (.060, .068, .095, .195, .245, .275, .290, .300, .310, .320, .350, .395, .375),
    "metal":   (.330, .370, .410, .430, .438, .444, .448, .450, .450, .448, .430, .425, .390),
    "paint":   (.620, .680, .720, .730, .730, .730, .720, .720, .710, .700, .620, .560, .480),
    "water":   (.050, .052, .045, .022, .016, .011, .009, .007, .006, .005, .002, .002, .001),
    "mud":     (.075, .095, .135, .130, .118, .085, .076, .064, .058, .035, .005, .005, .004),
    "snow":    (.900, .915, .910, .895, .880, .860, .840, .815, .795, .720, .250, .105, .065),
}  # fmt: skip
"""Reflectance by material."""

CLOUD = np.array((.78, .78, .77, .77, .78, .78, .78, .78, .78, .62, .16, .62, .46), np.float32)  # fmt: skip
"""Reflectance of a thick cloud at the top of the atmosphere."""

# clear air adds Rayleigh's fourth power of the wavelength and a little dust; water vapour takes most of B09, all of B10
_PATH = np.array((.105, .075, .042, .022, .018, .015, .012, .01, .009, .005, .001, .002, .001), np.float32)  # fmt: skip
_TRANSMITTANCE = np.array((.80, .85, .88, .92, .93, .92, .95, .96, .96, .42, .005, .95, .93), np.float32)  # fmt: skip
_WAVELENGTHS = np.array([band.wavelength for band in SENSORS["sentinel2"].bands], np.float32)
BLUR = np.array([(band.gsd or 10) / 10 for band in SENSORS["sentinel2"].bands], np.float32)
"""How much wider than that of the finest ones a band's pixels are."""


def reflectance(mix: dict[str, np.ndarray], bands: list[int]) -> np.ndarray:
    """Mix materials linearly.

    Args:
        mix: `(H, W)` share of each material.
        bands: Columns of the table.

    Returns:
        `(C, H, W)` float32.
    """
    table = np.array([MATERIALS[name] for name in mix], np.float32)[:, bands]
    shares = np.stack(list(mix.values()))
    return np.tensordot(table.T, shares, 1)


def through_air(aod: float, bands: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Path reflectance and transmittance of the air in each band, `(C, 1, 1)`.

    Args:
        aod: Aerosol optical depth at 550 nm, 0 ... 0.6; it falls with the wavelength (Angstrom's law, exponent 1.3).
        bands: Columns of the table.
    """
    depth = aod * (_WAVELENGTHS / 550) ** -1.3
    path, transmittance = _PATH + 0.14 * depth, _TRANSMITTANCE * np.exp(-0.5 * depth)
    path[BANDS.index("B10")] = _PATH[BANDS.index("B10")]
    return path[bands, None, None], transmittance[bands, None, None]
