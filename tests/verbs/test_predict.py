import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from drawn_scenes import CLASSES, kinds, save_encoder, save_probes, texture, write
from rasterio import Affine
from rasterio._err import CPLE_AppDefinedError
from rio_cogeo.cogeo import cog_validate

from geomim.cli import main
from geomim.corpus.scenes import find_scenes
from geomim.errors import BandError, CheckpointError, ConfigError, InputError
from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.saved import ProbeCard, fingerprint, load_probe, save_probe
from geomim.maps.files import rasters
from geomim.maps.walk.windows import Walk
from geomim.sensors import SENSORS, BandContract
from geomim.verbs.predict import predict


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_probes(folder)
    return folder


def test_known_classes_come_back_where_they_are(trained, tmp_path, capsys):
    pixels = texture(kinds())
    pixels[:, :16, :20] = 0
    path = write(tmp_path / "scene.tif", pixels, nodata=0)
    (written,) = predict([str(path)], str(trained), str(tmp_path / "maps"))
    assert written == tmp_path / "maps" / "scene_classes.tif"
    with rasterio.open(written) as raster, rasterio.open(path) as source:
        ids, sure = raster.read()
        assert ids.dtype == np.uint8 and ids.shape == (18, 26) and raster.descriptions == ("class", "confidence")
        assert raster.crs == source.crs and raster.transform == source.transform * Affine.scale(4)
        assert raster.nodatavals == (255, 255) and raster.colorinterp[1].name == "undefined"
        colours = raster.colormap(1)
        assert len({colours[index][:3] for index in range(3)}) == 3
        assert raster.tags(1)["CLASS_2"] == "water"
        assert raster.tags()["SCENE"] == str(path) and raster.tags()["MODEL"] == str(trained)
    expected = kinds(72, 104)[::4, ::4]
    expected[:4, :5] = 255
    expected[:, 25] = 255  # one pixel of four columns is inside the scene
    assert np.array_equal(ids == 255, expected == 255) and np.array_equal(ids == 255, sure == 255)
    assert (ids == expected).mean() > 0.97
    assert 34 <= sure[sure < 255].min() and sure[sure < 255].max() <= 100
    assert cog_validate(str(written), quiet=True) == (True, [], [])
    names = (tmp_path / "maps" / "scene_classes.tif.aux.xml").read_text()
    assert "<Category>forest &amp; field</Category>" in names
    assert sorted(file.name for file in written.parent.iterdir()) == [
        "scene_classes.qml", "scene_classes.tif", "scene_classes.tif.aux.xml",
    ]  # fmt: skip
    entries = ElementTree.parse(written.with_suffix(".qml")).findall(
        "./pipe/rasterrenderer[@type='paletted']//*[@value]"
    )
    assert [(one.get("value"), one.get("label")) for one in entries] == [(str(n), c) for n, c in enumerate(CLASSES)]
    assert entries[2].get("color") == "#{:02x}{:02x}{:02x}".format(*colours[2][:3])
    hectares = (ids == 2).sum() * (8 * 8) / 1e4
    told = next(line for line in capsys.readouterr().out.splitlines() if "water:" in line)
    assert float(told.split()[1]) == pytest.approx(hectares, rel=0.01)


def test_flips_overlap_and_pixels_change_the_map_as_they_say(trained, tmp_path):
    path = str(write(tmp_path / "scene.tif", texture(kinds(96, 96))))
    plain, pixels, flipped, single = (
        rasterio.open(predict([path], str(trained), str(tmp_path / f"{name}.tif"), **given)[0]).read()
        for name, given in {
            "a": {}, "b": {"resolution": "pixel"}, "c": {"flips": True}, "d": {"overlap": 0.0},
        }.items()
    )  # fmt: skip
    assert pixels.shape == (2, 96, 96) and flipped.shape == plain.shape == (2, 24, 24)
    assert (pixels[0] == kinds(96, 96)).mean() > 0.97 and (flipped[0] == plain[0]).mean() > 0.97
    assert not np.array_equal(flipped[1], plain[1]) and not np.array_equal(single[1], plain[1])
    with pytest.raises(ConfigError, match=r"0 to 0\.9; given 1"):
        predict([path], str(trained), str(tmp_path / "e.tif"), overlap=1.0)


def test_a_scene_of_a_window_and_smaller_ones_are_mapped_whole(trained, tmp_path):
    for height, width in ((3, 5), (32, 32), (33, 130)):
        path = write(tmp_path / f"{width}.tif", texture(np.zeros((height, width), int)))
        (written,) = predict([str(path)], str(trained), str(tmp_path / f"{width}_map.tif"))
        ids = rasterio.open(written).read(1)
        assert (ids[: height // 4, : width // 4] == 0).all()


def test_band_order_is_matched_by_name_and_other_bands_refused_by_file(trained, tmp_path):
    pixels = texture(kinds())
    shuffled = write(tmp_path / "b.tif", pixels[[3, 2, 1, 0]], ("nir", "blue", "green", "red"))
    plain = write(tmp_path / "a.tif", pixels)
    maps = predict([str(plain), str(shuffled)], str(trained), str(tmp_path / "maps"))
    one, other = (rasterio.open(path).read(1) for path in maps)
    assert np.array_equal(one, other)
    for name, sensor in (("c", None), ("d", "naip")):
        wrong = write(tmp_path / f"{name}.tif", pixels[:2], ("VV", "VH"))
        with pytest.raises(BandError, match=rf"{name}\.tif.*VV"):
            predict([str(wrong)], str(trained), str(tmp_path / "maps"), sensor=sensor)
        assert not (tmp_path / "maps" / f"{name}_classes.tif").exists()


def test_the_bands_of_the_model_suffice_where_a_file_names_none(trained, tmp_path, capsys):
    pixels = texture(kinds())
    plain, unnamed = write(tmp_path / "a.tif", pixels), write(tmp_path / "b.tif", pixels, (), photometric="MINISBLACK")
    maps = predict([str(plain), str(unnamed)], str(trained), str(tmp_path / "maps"))
    assert np.array_equal(*(rasterio.open(path).read() for path in maps))
    assert "b.tif' names no bands: they are assumed to be red, green, blue, nir" in capsys.readouterr().out


def test_scene_without_place_and_the_other_probe(trained, tmp_path, capsys):
    path = write(tmp_path / "scene.tif", texture(kinds()), crs=None, transform=Affine.identity())
    (written,) = predict([str(path)], str(trained / "efficient.json"), str(tmp_path / "m.tif"))
    with rasterio.open(written) as raster:
        assert raster.crs is None
        assert set(np.unique(raster.read(1))) <= {0, 1, 2, 255}
    assert "pixels of the map" in capsys.readouterr().out


def test_a_probe_finds_its_encoder_and_refuses_another(trained, tmp_path):
    path = str(write(tmp_path / "scene.tif", texture(kinds())))
    out = str(tmp_path / "map.tif")
    save_encoder(tmp_path / "b.ckpt", seed=1)
    with pytest.raises(CheckpointError, match="another encoder"):
        predict([path], str(trained), out, encoder=str(tmp_path / "b.ckpt"))
    probe, card = load_probe(trained)
    for checkpoint, sentence in ((None, "name it with --encoder"), ("/gone.ckpt", "say with --encoder where")):
        save_probe(tmp_path / "p.safetensors", probe, card.__class__(**vars(card) | {"checkpoint": checkpoint}))
        with pytest.raises(CheckpointError, match=sentence):
            predict([path], str(tmp_path / "p.json"), out)
    assert predict([path], str(tmp_path / "p.json"), out, encoder=str(trained / "a.ckpt"))[0].exists()
    with pytest.raises(CheckpointError, match="an encoder alone knows no classes"):
        predict([path], str(trained / "a.ckpt"), out)


def test_two_scenes_need_a_folder_and_two_names(trained, tmp_path):
    (tmp_path / "x").mkdir()
    paths = [str(write(folder / "s.tif", texture(kinds()))) for folder in (tmp_path, tmp_path / "x")]
    for out, sentence in (("m.tif", "give a folder"), ("maps", "s_classes.tif")):
        with pytest.raises(InputError, match=sentence):
            predict(paths, str(trained), str(tmp_path / out))


def test_maps_beside_their_scenes_are_no_scenes(trained, tmp_path, capsys):
    for name in "ab":
        write(tmp_path / f"{name}.tif", texture(kinds()))
    for _ in range(2):
        predict([str(tmp_path)], str(trained), str(tmp_path))
    said = capsys.readouterr().out
    assert "2 maps that geomim made are left out" in said and said.count("is there already") == 2
    assert sorted(file.name for file in tmp_path.glob("*.tif")) == ["a.tif", "a_classes.tif", "b.tif", "b_classes.tif"]
    assert find_scenes(str(tmp_path / "a_classes.tif")) == [str(tmp_path / "a_classes.tif")]  # by name it is one


def test_a_file_of_another_scene_is_not_written_over(trained, tmp_path):
    one, other = (str(write(tmp_path / f"{name}.tif", texture(kinds()))) for name in "ab")
    out = tmp_path / "map.tif"
    predict([one], str(trained), str(out))
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"map.tif' is a map of '.*a.tif', not of '.*b.tif'"):
        predict([other], str(trained), str(out))
    with pytest.raises(InputError, match="no map that geomim made"):
        predict([one], str(trained), other)
    assert out.read_bytes() == before
    predict([one], str(trained), str(out), overlap=0.25)
    assert out.read_bytes() != before  # the same scene, otherwise


def test_a_scene_far_from_the_model_in_metres_a_pixel_is_said(trained, tmp_path, capsys):
    far = {"transform": Affine(10, 0, 500000, 0, -10, 4000000)}
    scene = str(write(tmp_path / "a.tif", texture(kinds()), **far))
    predict([scene], str(trained), str(tmp_path / "m.tif"), sensor="naip")
    assert "has 10 m a pixel, and the model is for 1 m, which its sensor has" in capsys.readouterr().out
    shutil.copytree(trained, tmp_path / "told")
    answers, card = load_probe(tmp_path / "told")
    save_probe(tmp_path / "told" / "linear.safetensors", answers, replace(card, fitted_at=2.5))
    predict([scene], str(tmp_path / "told"), str(tmp_path / "n.tif"), sensor="naip")
    assert "has 10 m a pixel, and the model was fitted at 2.5 m" in capsys.readouterr().out


def test_all_nodata_and_pixels_that_are_no_numbers(trained, tmp_path, capsys):
    pixels = texture(kinds()).astype(np.float32)
    pixels[1, :8, :8], pixels[2, 40:60, 60:80] = np.nan, np.inf
    found = predict([str(write(tmp_path / "a.tif", pixels))], str(trained), str(tmp_path / "a_map.tif"), sensor="naip")
    ids = rasterio.open(found[0]).read(1)
    assert (ids[:2, :2] == 255).all() and (ids[10:15, 15:20] == 255).all() and (ids == 255).sum() == 4 + 25 + 18
    empty = write(tmp_path / "b.tif", np.zeros((4, 40, 40), np.uint8), nodata=0)
    (written,) = predict([str(empty)], str(trained), str(tmp_path / "b_map.tif"))
    assert (rasterio.open(written).read() == 255).all()
    assert "all of its map is nodata" in capsys.readouterr().out


def test_a_corrupt_block_is_refused_with_its_place_and_the_rest_goes_on_when_it_is_mended(trained, tmp_path, capsys):
    whole = write(
        tmp_path / "s.tif", texture(kinds(1024, 64)), tiled=True, blockxsize=16, blockysize=16, compress="deflate"
    )
    content = whole.read_bytes()
    (expected,) = predict([str(whole)], str(trained), str(tmp_path / "expected.tif"))
    with rasterio.open(whole) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_0_60", "TIFF", bidx=1))
    broken = bytearray(content)
    broken[offset : offset + 60] = b"\0" * 60
    whole.write_bytes(bytes(broken))
    with pytest.raises(InputError, match=r"s\.tif' cannot be read at row \d+, column \d+"):
        predict([str(whole)], str(trained), str(tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif").exists() and list((tmp_path / ".map.tif.work").glob("0*.tif"))
    whole.write_bytes(content)
    (found,) = predict([str(whole)], str(trained), str(tmp_path / "map.tif"))
    assert "its rows before that are kept" in capsys.readouterr().out
    assert np.array_equal(rasterio.open(found).read(), rasterio.open(expected).read())
    assert not (tmp_path / ".map.tif.work").exists()


def test_killed_and_started_again_a_map_has_the_same_bytes(trained, tmp_path):
    scene = str(write(tmp_path / "scene.tif", texture(kinds(600, 96))))
    given = ["predict", scene, "--model", str(trained), "--overlap", "0.75", "--out"]
    assert main([*given, str(tmp_path / "whole.tif")]) == 0
    out, work = tmp_path / "map.tif", tmp_path / ".map.tif.work"
    program = [sys.executable, "-c", "import sys; from geomim.cli import main; sys.exit(main(sys.argv[1:]))"]
    process = subprocess.Popen([*program, *given, str(out)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (work / "000003.tif").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {file.name: file.stat().st_mtime_ns for file in work.glob("0*.tif")}
    assert not out.exists() and 3 < len(begun) < len(Walk(600, 96, 4, 8, 6).rows)
    assert main([*given, str(out)]) == 0
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes() and not work.exists()


def test_a_full_disk_is_told_in_a_sentence_and_leaves_no_half_map(trained, tmp_path, monkeypatch, capsys):
    scene = str(write(tmp_path / "scene.tif", texture(kinds(200, 64))))
    count, sync = [0], os.fsync

    def full(descriptor):
        count[0] += 1
        if count[0] > 3:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    given = ["predict", scene, "--model", str(trained), "--out", str(tmp_path / "map.tif")]
    assert main(given) == 1
    assert "no space is left for" in capsys.readouterr().err
    assert not (tmp_path / "map.tif").exists() and len(list((tmp_path / ".map.tif.work").glob("0*.tif"))) == 3
    monkeypatch.undo()
    assert main(given) == 0 and (tmp_path / "map.tif").exists()


def test_a_full_disk_at_the_very_end_leaves_nothing_under_the_map_s_names(trained, tmp_path, monkeypatch, capsys):
    scene = str(write(tmp_path / "scene.tif", texture(kinds())))

    def full(*_, **__):
        raise CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip:Seek error at scanline 512")

    monkeypatch.setattr(rasters.rasterio.shutil, "copy", full)
    given = ["predict", scene, "--model", str(trained), "--out", str(tmp_path / "map.tif")]
    assert main(given) == 1
    assert "map.tif' could not be written (TIFFAppendToStrip:Seek error" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == [".map.tif.work", "scene.tif"]
    monkeypatch.undo()
    whole = tmp_path / ".map.tif.work" / "whole.tif"
    whole.write_bytes(whole.read_bytes()[:-200])  # as a kill leaves it: its directory is at its end
    assert main(given) == 0 and (tmp_path / "map.qml").exists() and not (tmp_path / ".map.tif.work").exists()


def test_while_a_map_is_finished_all_that_a_kill_could_leave_is_in_its_folder(trained, tmp_path, monkeypatch):
    scene, found = str(write(tmp_path / "scene.tif", texture(kinds()))), []
    monkeypatch.setattr(
        rasters, "_unmark_alpha", lambda _: found.append(sorted(one.name for one in tmp_path.iterdir()))
    )
    predict([scene], str(trained), str(tmp_path / "map.tif"))
    assert found == [[".map.tif.work", "scene.tif"]]


def test_a_broken_scene_of_many_does_not_keep_the_others_from_their_maps(trained, tmp_path, capsys):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in "abcd":
        write(folder / f"{name}.tif", texture(kinds()))
    (folder / "b.tif").write_bytes((folder / "a.tif").read_bytes()[:9000])
    write(folder / "c.tif", texture(kinds())[:2], ("VV", "VH"))
    given = ["predict", str(folder), "--model", str(trained), "--out", str(tmp_path / "maps")]
    assert main(given) == 1
    told = capsys.readouterr()
    assert f"2 of 4 scenes have no map, as said above: {folder}/b.tif, {folder}/c.tif" in told.err
    assert "b.tif' cannot be opened as a raster" in told.out and "missing red, green, blue, nir" in told.out
    assert sorted(file.name for file in (tmp_path / "maps").glob("*.tif")) == ["a_classes.tif", "d_classes.tif"]
    for name in "bc":
        (folder / f"{name}.tif").unlink()
        write(folder / f"{name}.tif", texture(kinds()))
    assert main(given) == 0
    assert capsys.readouterr().out.count("is there already") == 2 and len(list((tmp_path / "maps").glob("*.tif"))) == 4


def test_wrong_arguments_are_told_in_a_sentence(trained, tmp_path, capsys):
    scene = str(write(tmp_path / "scene.tif", texture(kinds())))
    (tmp_path / "file").write_text("")
    for given, code, sentence in (
        ({"--out": "map.png"}, 2, "is of a format that is not written: expected .tif"),
        ({"--out": "map.shp"}, 2, "is of a format that is not written: expected .tif"),
        ({"--out": "file"}, 1, "cannot be written in folder"),
        ({"--out": "file/map.tif"}, 1, "cannot be written in folder"),
        ({"--out": "new/../scene.tif"}, 1, "would be written over the scene"),
        ({"--polygons": "n/a!b.gpkg"}, 2, "--polygons: layers cannot be written where a name has '!'"),
        ({"--model": "trainde"}, 1, "trainde' does not exist: give a probe"),
        ({"--device": "gpu9"}, 2, "--device: expected auto, cpu, cuda or another device of torch; given 'gpu9'"),
        ({"--sensor": "nai"}, 1, "did you mean 'naip'?"),
    ):
        flags = {"--out": "map.tif", "--model": str(trained)} | given
        paths = {
            flag: str(tmp_path / value) if flag in ("--out", "--model") else value for flag, value in flags.items()
        }
        assert main(["predict", scene, *(word for pair in paths.items() for word in pair)]) == code
        said = capsys.readouterr().err
        assert sentence in said and "unexpected" not in said and "Errno" not in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "scene.tif"]


def test_a_scene_smaller_than_half_a_patch_is_said_to_be_so(trained, tmp_path, capsys):
    for shape in ((1, 1), (1, 500), (500, 1)):
        path = str(write(tmp_path / "scene.tif", texture(np.zeros(shape, int))))
        (written,) = predict([path], str(trained), str(tmp_path / "map.tif"))
        assert (rasterio.open(written).read() == 255).all()
        assert "holds no patch of 4 px of which at least half is image" in capsys.readouterr().out
        (written,) = predict([path], str(trained), str(tmp_path / "map.tif"), resolution="pixel")
        assert (rasterio.open(written).read(1) == 0).all()


def test_numbers_of_any_type_and_nodata_give_one_map(trained, tmp_path):
    pixels, found = texture(kinds()), []
    for dtype, nodata in (("uint8", 0), ("int16", -32768), ("float32", np.nan), ("float64", -9999), ("uint32", 2**31)):
        stored = pixels.astype(dtype)
        stored[:, :16, :20] = nodata
        path = str(write(tmp_path / f"{dtype}.tif", stored, nodata=nodata))
        (written,) = predict([path], str(trained), str(tmp_path / "maps"))
        found.append(rasterio.open(written).read())
    assert (found[0][0][:4, :5] == 255).all()
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32632", Affine(2, 0, 500000, 0, 2, 4000000)),  # rows go north
        ("EPSG:32632", Affine(-2, 0, 500000, 0, 2, 4000000)),
        ("EPSG:32733", Affine.translation(500000, 6000000) * Affine.rotation(33) * Affine.scale(2, -2)),
        ("EPSG:4326", Affine(2e-5, 0, 179.999, 0, -2e-5, -17)),  # over the date line
        ("EPSG:4326", Affine(2e-5, 0, -180.001, 0, -2e-5, -17)),
    ],
)
def test_hectares_and_places_whichever_way_a_scene_lies(crs, transform, trained, tmp_path, capsys):
    path = str(write(tmp_path / "scene.tif", texture(kinds(72, 104)), crs=crs, transform=transform))
    (written,) = predict([path], str(trained), str(tmp_path / "map.tif"))
    with rasterio.open(written) as raster, rasterio.open(path) as source:
        assert raster.transform.almost_equals(source.transform * Affine.scale(4)) and raster.crs == source.crs
        assert cog_validate(str(written), quiet=True)[0]
    said = capsys.readouterr().out
    pixel = 4 if crs != "EPSG:4326" else 2e-5**2 * 110649 * 106475  # metres of a degree at 17 degrees
    found = sum(float(line.split(" ha ")[0].split()[-1]) for line in said.splitlines() if " ha (" in line)
    assert found == pytest.approx(72 * 104 * pixel / 1e4, abs=0.02)


def test_a_level_2a_scene_lacks_a_band_that_the_model_never_asks_for(tmp_path):
    sensor = SENSORS["sentinel2"]
    contract = BandContract(sensor.select(("B02", "B03", "B04", "B08")), (900.0, 1000.0, 1100.0, 2500.0), (400.0,) * 4)
    encoder = save_encoder(tmp_path / "a.ckpt", contract=contract)
    torch.manual_seed(0)
    told = {"classes": CLASSES, "encoder": fingerprint(encoder), "contract": contract.to_dict(), "accuracy": 1.0}
    card = ProbeCard(kind="linear", pool="mean", checkpoint=str(tmp_path / "a.ckpt"), **told)
    save_probe(tmp_path / "p.safetensors", LinearProbe(48, 3), card)
    names = tuple(name for name in sensor.names if name != "B10")
    usual = np.array([dict(zip(contract.names, contract.mean, strict=True)).get(name, 1500) for name in names])
    pixels = np.random.default_rng(0).normal(usual[:, None, None], 350, (12, 64, 64)).clip(50).astype(np.uint16)
    scene = str(write(tmp_path / "l2a.tif", pixels, names, transform=Affine(10, 0, 500000, 0, -10, 4000000)))
    four = str(write(tmp_path / "four.tif", pixels[[names.index(name) for name in contract.names]], contract.names))
    maps = [
        predict([uri], str(tmp_path / "p.json"), str(tmp_path / f"{number}.tif"), sensor=told)[0]
        for number, (uri, told) in enumerate([(scene, "sentinel2"), (scene, None), (four, "sentinel2")])
    ]
    first, *others = (rasterio.open(path).read() for path in maps)
    assert len(np.unique(first[0])) > 1 and all(np.array_equal(first, one) for one in others)
    lacking = str(write(tmp_path / "no.tif", np.delete(pixels, names.index("B08"), 0), tuple(set(names) - {"B08"})))
    with pytest.raises(BandError, match=r"no\.tif.*B08"):
        predict([lacking], str(tmp_path / "p.json"), str(tmp_path / "no_map.tif"), sensor="sentinel2")


def test_as_many_classes_as_a_byte_holds_beside_nodata_and_no_more(trained, tmp_path):
    scene = str(write(tmp_path / "scene.tif", texture(kinds())))
    _, card = load_probe(trained)
    for count in (254, 255, 256):
        torch.manual_seed(0)
        probe = LinearProbe(48, count)
        probe.bias.data[-1] = 1000  # the last class wins everywhere
        names = tuple(f"kind {number}" for number in range(count))
        save_probe(tmp_path / f"{count}.safetensors", probe, replace(card, classes=names))
    for count in (254, 255):
        (written,) = predict([scene], str(tmp_path / f"{count}.json"), str(tmp_path / f"{count}_map.tif"))
        ids = rasterio.open(written).read(1)
        assert set(np.unique(ids)) == {count - 1, 255}
        assert len(ElementTree.parse(written.with_suffix(".qml")).findall(".//paletteEntry")) == count
    with pytest.raises(CheckpointError, match=r"holds at most 255 classes; '.*256\.json' has 256"):
        predict([scene], str(tmp_path / "256.json"), str(tmp_path / "256_map.tif"))
    assert not (tmp_path / "256_map.tif").exists()


def test_overlaps_from_none_to_nearly_all_map_the_same_kinds(trained, tmp_path):
    path = str(write(tmp_path / "scene.tif", texture(kinds(96, 96))))
    for overlap in (0.0, 0.9):
        (written,) = predict([path], str(trained), str(tmp_path / f"{overlap}.tif"), overlap=overlap)
        assert (rasterio.open(written).read(1) == kinds(96, 96)[::4, ::4]).mean() > 0.97
