"""Virtual rasters: what they are made of is theirs."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geomim.corpus.lock import source_hash
from geomim.corpus.scenes import open_scene, source_files
from geomim.errors import InputError


def tif(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": 1, "height": 20, "width": 20, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape, transform=from_origin(0, 20, 1, 1)) as file:
        file.write(np.random.default_rng(seed).integers(1, 255, (1, 20, 20)).astype("uint8"))


def virtual(path, *names, relative=1):
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename></SimpleSource>'
        for name in names
    )
    path.write_text(
        '<VRTDataset rasterXSize="20" rasterYSize="20"><GeoTransform>0,1,0,20,0,-1</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand></VRTDataset>'
    )
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_changed_part_is_a_changed_source(tmp_path, nested):
    tif(tmp_path / "parts" / "a.tif", 0)
    inner = virtual(tmp_path / "inner.vrt", "parts/a.tif")
    path = virtual(tmp_path / "outer.vrt", "inner.vrt") if nested else inner
    assert str(tmp_path / "parts" / "a.tif") in source_files(str(path)) and str(path) in source_files(str(path))
    before = source_hash(str(path))
    tif(tmp_path / "parts" / "a.tif", 1)
    assert source_hash(str(path)) != before
    absolute = virtual(tmp_path / "absolute.vrt", tmp_path / "parts" / "a.tif", relative=0)
    assert str(tmp_path / "parts" / "a.tif") in source_files(str(absolute))


@pytest.mark.parametrize("nested", [False, True])
def test_a_missing_part_is_no_field_of_zeros(tmp_path, nested):
    inner = virtual(tmp_path / "inner.vrt", "gone.tif")
    path = virtual(tmp_path / "outer.vrt", "inner.vrt") if nested else inner
    with pytest.raises(InputError, match=r"is made of '.*gone\.tif', which is not there"):
        open_scene(path)
    tif(tmp_path / "gone.tif", 0)
    with open_scene(path) as scene:
        assert scene.read().min() > 0
