import os
from dataclasses import fields
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rich.console import Console

from geomim.corpus.pipeline.intake import list_sources
from geomim.corpus.recipe import Recipe
from geomim.errors import InputError


def raster(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", count=1, height=8, width=8, dtype="uint8") as file:
        file.write(np.ones((1, 8, 8), np.uint8))


def listed(root, **given):
    """Names of the sources, relative to `root`; how rasters were joined; and what is said."""
    said = StringIO()
    recipe = Recipe(**dict.fromkeys([field.name for field in fields(Recipe)]) | {"source": [str(root)]} | given)
    found, _, joined = list_sources(recipe, False, Console(file=said, width=1000))
    return [str(Path(uri).relative_to(root)) for uri in found["uri"].to_pylist()], joined, said.getvalue()


@pytest.mark.parametrize("kind", ["masks", "clouds"])
def test_masks_inside_the_folder_of_the_scenes_are_no_scenes(tmp_path, kind):
    for name in ("images/a.tif", "images/b.tif", "beside/a.tif", "beside/orphan.tif"):
        raster(tmp_path / name)
    (tmp_path / "beside" / "classes.json").write_text('["land", "water"]')
    names, joined, said = listed(tmp_path, **{kind: str(tmp_path / "beside")})
    assert names == ["images/a.tif", "images/b.tif"]
    assert "note: 2 sources are masks of others by name and left out, such as " in said
    assert "1 of 2 match; name no source: 1 (orphan.tif)" in str(joined[0])


@pytest.mark.parametrize(("kind", "ending"), [("masks", "_mask"), ("clouds", "_cloudmask")])
def test_masks_may_lie_beside_their_scenes(tmp_path, kind, ending, monkeypatch):
    for name in ("a", "a" + ending, "b", "b" + ending, "c"):
        raster(tmp_path / f"{name}.tif")
    (tmp_path / "classes.json").write_text('["land", "water"]')
    monkeypatch.chdir(tmp_path)
    for folder in (str(tmp_path), os.path.join("..", tmp_path.name)):  # however the folder is written
        names, joined, said = listed(tmp_path, **{kind: folder})
        assert names == ["a.tif", "b.tif", "c.tif"] and "note: 2 sources are masks" in said
        assert "2 of 2 match" in str(joined[0]) and joined[0].without == [str(tmp_path / "c.tif")]


def test_a_mask_is_of_one_scene(tmp_path):
    for name in ("images/s.tif", "images/s_2.tif", "masks/s_2.tif"):
        raster(tmp_path / name)
    with pytest.raises(InputError, match=r"masks/s_2\.tif' may be of '.*s\.tif' or of '.*s_2\.tif' by its name: give"):
        listed(tmp_path / "images", clouds=str(tmp_path / "masks"))
    raster(tmp_path / "masks" / "s.tif")
    assert str(listed(tmp_path / "images", clouds=str(tmp_path / "masks"))[1][0]).endswith("2 of 2 match")
    for name in ("train/t.tif", "val/t.tif", "of_both/t.tif"):
        raster(tmp_path / "more" / name)
    found = listed(tmp_path / "more", clouds=str(tmp_path / "more" / "of_both"))
    assert found[0] == ["train/t.tif", "val/t.tif"] and "name several sources: 1" in str(found[1][0])
