"""Open whatever is given as a scene: a raster, a product folder, a cube, a STAC item, a torchgeo sample."""

from __future__ import annotations

import os
from collections.abc import Sequence

from geomim.addresses import keep
from geomim.corpus.scenes.clouds import with_clouds
from geomim.corpus.scenes.cubes import open_cube
from geomim.corpus.scenes.files import cause
from geomim.corpus.scenes.finding import is_item
from geomim.corpus.scenes.products import open_product
from geomim.corpus.scenes.raster import open_raster
from geomim.corpus.scenes.scene import Scene, Wanted
from geomim.corpus.scenes.stores import is_cube
from geomim.corpus.scenes.warping import check_grid
from geomim.errors import GeomimError, InputError
from geomim.sensors import Sensor


def open_scene(
    uri: str | os.PathLike[str],
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    resolution: float | None = None,
    warp: str | None = None,
    clouds: str | None = None,
    harmonise: bool = False,
) -> Scene:
    """Open a scene without reading its pixels.

    Args:
        uri: Path or address.
        sensor: What took it; its bands are found in the file by name, alias or wavelength.
        bands: Names of the file's bands in file order (`-` ignores one); a choice by name where the file names them.
        resolution: Metres of a pixel to bring the bands to; as they are stored where None.
        warp: Coordinate reference system of a north-up grid to bring the scene to (`EPSG:32632`), or `auto`.
        clouds: Where cloud masks come from: a folder, `FOLDER:KIND`, or `omnicloudmask`.
        harmonise: Take the 1000 of processing baseline 04.00 off the numbers of Sentinel-2.

    Raises:
        InputError: Not a scene, or one whose numbers or place geomim cannot carry; one sentence.
        BandError: The bands have no names or other ones; the sentence gives the flag.
    """
    wanted = Wanted(sensor, bands, resolution, warp, harmonise)
    try:
        return with_clouds(_open(keep(str(uri)), wanted), clouds)
    except (GeomimError, MemoryError):
        raise
    except Exception as error:  # whatever the many libraries raise for a broken file, or for one that vanishes
        raise InputError(f"'{uri}' cannot be opened ({type(error).__name__}: {cause(error)})") from error


def _open(uri: str, wanted: Wanted) -> Scene:
    if uri.startswith("torchgeo://"):
        from geomim.corpus.sources.torchgeo import open_sample

        sample = open_sample(uri, wanted.sensor, wanted.bands)
        check_grid(uri, sample.grid, wanted)
        return sample
    if is_cube(uri):
        return open_cube(uri, wanted)
    if is_item(uri):
        from geomim.corpus.scenes.stac import open_item

        return open_item(uri, wanted)
    return open_product(uri, wanted) or open_raster(uri, wanted)
