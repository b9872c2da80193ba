from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from drawn_scenes import kinds as scene_kinds
from drawn_scenes import save_encoder, texture, write

from geomim.errors import BandError, InputError
from geomim.maps.cluster import cluster, effect_of_place
from geomim.maps.clusters import fit_kmeans
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_encoder(folder / "a.ckpt")
    return folder


def test_clusters_of_an_unlabelled_scene_follow_its_kinds(trained, tmp_path):
    kinds = scene_kinds(96, 96)
    path = write(tmp_path / "scene.tif", texture(kinds))
    (written,) = cluster(str(trained / "a.ckpt"), [str(path)], str(tmp_path), clusters=3)
    first = written.read_bytes()
    cluster(str(trained / "a.ckpt"), [str(path)], str(tmp_path), clusters=3)
    assert written.read_bytes() == first
    with rasterio.open(written) as raster:
        ids = raster.read(1)
    majority = [np.bincount(ids[kinds[::4, ::4] == kind]).argmax() for kind in range(3)]
    assert sorted(majority) == [0, 1, 2]
    agreement = np.mean([(ids[kinds[::4, ::4] == kind] == majority[kind]).mean() for kind in range(3)])
    assert agreement > 0.9


def test_where_in_the_window_a_patch_is_makes_no_cluster():
    draws = torch.Generator().manual_seed(0)
    land, place = torch.randn(3, 16, generator=draws), 3 * torch.randn(64, 16, generator=draws)
    kinds, at = torch.randint(3, (6400,), generator=draws), torch.arange(64).repeat(100)
    tokens = land[kinds] + place[at]
    taken = tokens - effect_of_place(tokens, at, 64)[at]
    labels = [fit_kmeans(one, 3).scores(one).argmax(1) for one in (tokens, taken)]
    pure = [sum(int(kinds[own == c].bincount().max()) for c in own.unique()) / len(own) for own in labels]
    assert pure[0] < 0.5 and pure[1] == 1
    assert effect_of_place(tokens[:1], at[:1], 64).abs().max() == 0, "one window tells nothing"


def test_kmeans_finds_blobs_and_survives_few_points():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = centres.repeat_interleave(torch.tensor([50, 30, 20]), 0) + 0.1 * torch.randn(100, 2)
    fitted = fit_kmeans(points, 3)
    assert torch.equal(fitted.scores(points).argmax(1).bincount(), torch.tensor([50, 30, 20]))
    assert len(fit_kmeans(torch.ones(10, 2), 4).centres) == 1


def s2_encoder(folder: Path) -> str:
    bands = SENSORS["sentinel2"].select(("B02", "B03", "B04", "B08"))
    contract = BandContract(bands, (900.0, 1000.0, 1100.0, 2500.0), (400.0,) * 4)
    torch.manual_seed(0)
    encoder = ViT(4, 32, 8, 48, 1, 3)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, folder / "s2.ckpt")
    return str(folder / "s2.ckpt")


def reflectance(bands: int = 4) -> np.ndarray:
    usual = np.array([900, 1000, 1100, 2500] + [1500] * (bands - 4))[:, None, None]
    return np.random.default_rng(0).normal(usual, 350, (bands, 64, 64)).clip(50)


def test_scenes_of_another_unit_are_refused_and_the_file_that_is_named_works(tmp_path, capsys):
    path, names = s2_encoder(tmp_path), ("blue", "green", "red", "nir")
    for kind, pixels in (
        ("fractions", (reflectance() / 10000).astype(np.float32)),
        ("bytes", (reflectance() / 4000 * 255).clip(1, 255).astype(np.uint8)),
    ):
        scene = str(write(tmp_path / f"{kind}.tif", pixels, names))
        with pytest.raises(InputError, match=rf"{kind}\.tif.*too small|itself") as refused:
            cluster(path, [scene], str(tmp_path / "maps"), clusters=3)
        assert not (tmp_path / "maps").exists()
        sensor = tmp_path / f"{kind}.yaml"
        sensor.write_text(str(refused.value).split("FILE.yaml: ")[1])
        cluster(path, [scene], str(tmp_path / f"{kind}_map.tif"), clusters=3, sensor=str(sensor))
    scene = str(write(tmp_path / "stored.tif", reflectance().astype(np.uint16), names))
    capsys.readouterr()
    cluster(path, [scene], str(tmp_path / "maps"), clusters=3)
    said = capsys.readouterr().out
    assert "states no unit" in said and "far from" not in said


def test_a_sensor_gives_the_bands_that_the_encoder_needs(tmp_path):
    names = ("B02", "B03", "B04", "B08", "B01", "B05", "B06", "B07", "B8A", "B09", "B11", "B12")
    path, pixels = s2_encoder(tmp_path), reflectance(12).astype(np.uint16)
    scene = str(write(tmp_path / "l2a.tif", pixels, names))
    (written,) = cluster(path, [scene], str(tmp_path / "l2a"), clusters=3, sensor="sentinel2")
    (four,) = cluster(
        path, [scene], str(tmp_path / "four"), clusters=3, sensor="sentinel2", bands=["B02", "B03", "B04", "B08"]
    )
    assert np.array_equal(rasterio.open(written).read(), rasterio.open(four).read())
    unnamed = str(write(tmp_path / "unnamed.tif", pixels[:4], (), photometric="MINISBLACK"))
    with pytest.raises(BandError, match=r"unnamed\.tif"):
        cluster(path, [unnamed], str(tmp_path / "no"), clusters=3, sensor="sentinel2")


def test_an_order_of_bands_that_is_assumed_is_said(tmp_path, capsys):
    path = s2_encoder(tmp_path)
    (tmp_path / "four.yaml").write_text(
        "{name: four, unit: reflectance, scale: 0.0001, offset: 0.0, bands: [B02, B03, B04, B08]}"
    )
    unnamed = str(write(tmp_path / "unnamed.tif", reflectance().astype(np.uint16), (), photometric="MINISBLACK"))
    named = str(write(tmp_path / "named.tif", reflectance().astype(np.uint16), ("B02", "B03", "B04", "B08")))
    cluster(path, [unnamed, named], str(tmp_path / "maps"), clusters=3, sensor=str(tmp_path / "four.yaml"))
    said = capsys.readouterr().out
    assert "unnamed.tif' names no bands: they are assumed to be B02, B03, B04, B08" in said
    assert "/named.tif' names no bands" not in said


def test_published_weights_map_pictures_and_say_what_they_assume(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": ViT(3, 32, 8, 192, 1, 3).state_dict()}, tmp_path / "mae.pth")
    scene = str(write(tmp_path / "a.tif", texture(scene_kinds())[:3], ("red", "green", "blue")))
    cluster(str(tmp_path / "mae.pth"), [scene], str(tmp_path / "maps"), clusters=3)
    said = capsys.readouterr().out
    assert "8-bit red, green, blue" in said and "3, as is usual" in said
