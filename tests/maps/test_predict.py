from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from geomim.errors import BandError, CheckpointError, InputError
from geomim.evaluate.features import extract
from geomim.evaluate.probes import EfficientProbe, fit_linear
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.maps.clusters import fit_kmeans
from geomim.maps.predict import cluster, predict
from geomim.models.inputs import ContractInput
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract

CONTRACT = BandContract(SENSORS["naip"], (100.0,) * 4, (50.0,) * 4)
COLOURS = torch.tensor([[40.0, 60, 20, 200], [160.0, 150, 140, 60], [10.0, 30, 90, 10]])
CLASSES = ("forest & field", "town", "water")


def texture(kind: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 (4, H, W) of class colours with noise."""
    noise = np.random.default_rng(seed).normal(0, 8, (4, *kind.shape))
    return (COLOURS.numpy().T[:, kind] + noise).clip(1, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An encoder checkpoint and a folder with a linear probe fitted on pictures of one class each."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    encoder = ViT(4, 32, 4, 48, 1, 3).eval()
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": CONTRACT.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, folder / "a.ckpt")
    prepare = ContractInput(CONTRACT, SENSORS["naip"])
    labels = torch.arange(60) % 3
    images = np.stack([texture(np.full((32, 32), int(label)), seed) for seed, label in enumerate(labels)])
    image, valid = prepare(torch.from_numpy(images))
    features = extract(encoder, [{"image": image, "valid": valid, "label": labels}])
    fit = fit_linear(features.pooled, features.labels, 3, strengths=(1e-2,))
    card = ProbeCard("linear", CLASSES, "mean", fingerprint(encoder), CONTRACT.to_dict(), 1.0)
    save_probe(folder / "linear.safetensors", fit.probe, card)
    save_probe(
        folder / "efficient.safetensors",
        EfficientProbe(48, 3, 4).eval(),
        card.__class__(**card.__dict__ | {"kind": "efficient"}),
    )
    return folder


def write(path: Path, pixels: np.ndarray, names=("red", "green", "blue", "nir"), **profile) -> Path:
    settings = {"transform": from_origin(500000, 4000000, 2, 2), "crs": "EPSG:32632"} | profile
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, count=count, height=height, width=width, **settings
    ) as raster:
        raster.write(pixels)
        for band, name in enumerate(names, start=1):
            raster.set_band_description(band, name)
    return path


def scene_kinds(height=70, width=101) -> np.ndarray:
    kinds = np.zeros((height, width), int)
    kinds[:, 48:] = 1
    kinds[40:, 48:] = 2
    return kinds


def test_known_classes_come_back_where_they_are(trained, tmp_path):
    pixels = texture(scene_kinds())
    pixels[:, :16, :20] = 0
    path = write(tmp_path / "scene.tif", pixels, nodata=0)
    (written,) = predict(str(trained / "a.ckpt"), str(trained), [str(path)], str(tmp_path / "maps"))
    assert written == tmp_path / "maps" / "scene_classes.tif"
    with rasterio.open(written) as raster, rasterio.open(path) as source:
        ids = raster.read(1)
        assert ids.dtype == np.uint8 and ids.shape == (18, 26)
        assert raster.crs == source.crs
        assert raster.transform == source.transform * rasterio.Affine.scale(4)
        assert raster.nodata == 255 and raster.profile["tiled"] and raster.compression.name == "deflate"
        colours = raster.colormap(1)
        assert len({colours[index][:3] for index in range(3)}) == 3
        assert raster.tags(1)["CLASS_2"] == "water"
    expected = scene_kinds(72, 104)[::4, ::4]
    expected[:4, :5] = 255
    expected[:, 25] = 255  # one pixel of four columns is inside the scene
    assert (ids == 255).sum() == (expected == 255).sum()
    assert (ids[expected == 255] == 255).all()
    assert (ids == expected).mean() > 0.97
    names = (tmp_path / "maps" / "scene_classes.tif.aux.xml").read_text()
    assert "<Category>forest &amp; field</Category>" in names
    assert sorted(file.name for file in written.parent.iterdir()) == ["scene_classes.tif", "scene_classes.tif.aux.xml"]


def test_windows_have_no_gap_and_agree_with_one_look(trained, tmp_path):
    """A scene the size of one window less its margins is seen in one piece; others in many."""
    for height, width in ((3, 5), (32, 32), (33, 130)):
        path = write(tmp_path / "scene.tif", texture(np.zeros((height, width), int)))
        (written,) = predict(str(trained / "a.ckpt"), str(trained), [str(path)], str(tmp_path / "one.tif"))
        with rasterio.open(written) as raster:
            ids = raster.read(1)
        whole = ids[: height // 4, : width // 4]
        assert (whole == 0).all()


def test_band_order_is_matched_by_name_and_other_bands_refused(trained, tmp_path):
    pixels = texture(scene_kinds())
    shuffled = write(tmp_path / "b.tif", pixels[[3, 2, 1, 0]], ("nir", "blue", "green", "red"))
    plain = write(tmp_path / "a.tif", pixels)
    maps = predict(str(trained / "a.ckpt"), str(trained), [str(plain), str(shuffled)], str(tmp_path / "maps"))
    one, other = (rasterio.open(path).read(1) for path in maps)
    assert np.array_equal(one, other)
    wrong = write(tmp_path / "c.tif", pixels[:2], ("VV", "VH"))
    with pytest.raises(BandError, match=r"c\.tif.*red.*VV"):
        predict(str(trained / "a.ckpt"), str(trained), [str(wrong)], str(tmp_path / "maps"))
    assert not (tmp_path / "maps" / "c_classes.tif").exists()


def test_scene_without_place_and_the_other_probe(trained, tmp_path):
    path = write(tmp_path / "scene.tif", texture(scene_kinds()), crs=None, transform=rasterio.Affine.identity())
    (written,) = predict(str(trained / "a.ckpt"), str(trained / "efficient.json"), [str(path)], str(tmp_path / "m.tif"))
    with rasterio.open(written) as raster:
        assert raster.crs is None
        assert set(np.unique(raster.read(1))) <= {0, 1, 2, 255}


def test_probe_of_another_encoder_is_refused(trained, tmp_path):
    torch.manual_seed(1)
    encoder = ViT(4, 32, 4, 48, 1, 3)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": CONTRACT.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, tmp_path / "b.ckpt")
    path = write(tmp_path / "scene.tif", texture(scene_kinds()))
    with pytest.raises(CheckpointError, match="another encoder"):
        predict(str(tmp_path / "b.ckpt"), str(trained), [str(path)], str(tmp_path))


def test_two_scenes_need_a_folder_and_two_names(trained, tmp_path):
    (tmp_path / "x").mkdir()
    paths = [str(write(folder / "s.tif", texture(scene_kinds()))) for folder in (tmp_path, tmp_path / "x")]
    for out, sentence in (("m.tif", "give a folder"), ("maps", "s_classes.tif")):
        with pytest.raises(InputError, match=sentence):
            predict(str(trained / "a.ckpt"), str(trained), paths, str(tmp_path / out))


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
