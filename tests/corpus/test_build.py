import errno
import hashlib
import json
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest
import rasterio
import xarray

from geomim.corpus import build as building
from geomim.corpus import lock
from geomim.corpus.build import build, inspect
from geomim.corpus.combine import filter
from geomim.corpus.comparison.sides import side
from geomim.corpus.lock import read_lock
from geomim.corpus.pipeline import intake, plan
from geomim.corpus.pipeline.conclude import open_to_change
from geomim.corpus.pipeline.raw import RawFile
from geomim.corpus.scenes import find_scenes
from geomim.corpus.store import Corpus
from geomim.corpus.synthetic import write_scenes
from geomim.corpus.verify import rebuild, verify
from geomim.errors import BandError, CorpusError, InputError

RGB = ("red", "green", "blue")


def digest(folder, leave_out=("report",)):
    """Hash of every file's name and bytes."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and name.parts[0] not in leave_out:
            found[str(name)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def write_image(path, pixels, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"driver": {".png": "PNG", ".jpg": "JPEG"}.get(path.suffix, "GTiff"), "dtype": pixels.dtype.name}
    count, height, width = pixels.shape
    with rasterio.open(path, "w", count=count, height=height, width=width, **options | profile) as raster:
        raster.write(pixels)


def photographs(folder, count=6, size=64, seed=0):
    """RGB pictures in two class folders."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
        write_image(
            folder / "ab"[number % 2] / f"{number}.png", np.kron(coarse, np.ones((size // 8, size // 8), np.uint8))
        )
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("synthetic"), scenes=4, size=256)


@pytest.fixture(scope="module")
def built(planted, tmp_path_factory):
    """Four procedural scenes with labels, cut into 64 px tiles in one process."""
    out = tmp_path_factory.mktemp("built") / "corpus"
    folder = planted.scenes[0].parent.parent
    build(
        [str(folder / "scenes")],
        str(out),
        tile=64,
        masks=str(folder / "labels"),
        test_share=0.25,
        min_valid=0.9,
        workers=1,
    )
    return out


def again(planted, out, **more):
    folder = planted.scenes[0].parent.parent
    arguments = {"tile": 64, "masks": str(folder / "labels"), "test_share": 0.25, "min_valid": 0.9, "workers": 1} | more
    return build([str(folder / "scenes")], str(out), **arguments)


def test_planted_copies_are_found_and_nothing_else(planted, built):
    rows = Corpus.open(built).table().to_pylist()
    by_place = {(row["source"], row["row"], row["col"]): row for row in rows}
    ids = {row["id"]: row for row in rows}
    copies = {"exact duplicate": planted.exact, "near duplicate": planted.near}
    for words, planted_copies in copies.items():
        expected = set()
        for copy in planted_copies:
            for row in range(0, copy.size, 64):
                for col in range(0, copy.size, 64):
                    one = by_place[str(copy.source), copy.source_row + row, copy.source_col + col]
                    two = by_place[str(copy.target), copy.target_row + row, copy.target_col + col]
                    expected.add(frozenset([one["id"], two["id"]]))
        dropped = [row for row in rows if row["reason"].startswith(words)]
        assert {frozenset([row["id"], row["duplicate_of"]]) for row in dropped} == expected and expected
        for row in dropped:
            assert ids[row["duplicate_of"]]["kept"] and row["cluster"] == row["duplicate_of"]
            assert (row["slot"] == ids[row["duplicate_of"]]["slot"]) == (words == "exact duplicate")
    few = [row for row in rows if row["reason"].startswith("valid fraction")]
    assert few and all(row["valid_fraction"] < 0.9 and not row["kept"] for row in few)


def test_pixels_are_those_of_the_scenes(built):
    corpus = Corpus.open(built)
    image, valid = corpus.array("image", 64), corpus.array("valid", 64)
    table = corpus.table()
    for row in table.filter(table["kept"]).to_pylist()[::7]:
        with rasterio.open(row["source"]) as raster:
            window = rasterio.windows.Window(row["col"], row["row"], 64, 64)
            np.testing.assert_array_equal(image.read([row["slot"]])[0], raster.read(window=window))
            assert valid.read([row["slot"]])[0].mean() == row["valid_fraction"]
            assert list(raster.window_transform(window))[:6] == row["transform"]
        assert row["epsg"] == 32719 and row["licence"] == "CC0-1.0" and row["time"].year == 2024


def test_xarray_opens_the_tiles_without_a_word(built, recwarn):
    opened = xarray.open_zarr(built / "tiles.zarr", group="64")
    assert set(opened) == {"image", "valid", "mask"} and opened["image"].dims == ("tile", "band", "y", "x")
    assert not [one for one in recwarn if one.category is not ResourceWarning]  # arrays that an earlier test left open
    image = Corpus.open(built).array("image", 64)
    np.testing.assert_array_equal(opened["image"][3:5].values, image.read([3, 4]))


def test_masks_give_labels_and_mask_arrays(planted, built):
    corpus = Corpus.open(built)
    assert corpus.classes == list(planted.classes[1:])
    tiles = corpus.tiles()
    rows = np.flatnonzero(tiles.labels >= 0)
    assert len(rows) > len(tiles) / 5
    masks, valid = tiles.mask(rows), tiles.valid(rows)
    share = np.array(
        [(mask[ok] == label).mean() for mask, ok, label in zip(masks, valid, tiles.labels[rows], strict=True)]
    )
    assert (share >= 0.6).all()


def test_statistics_are_those_of_kept_train_pixels(built):
    corpus = Corpus.open(built)
    tiles = corpus.tiles()
    train = np.flatnonzero(tiles.splits == "train")
    assert 0 < len(train) < len(tiles)
    pixels = tiles.read(train).transpose(1, 0, 2, 3)[:, tiles.valid(train)].astype(float)
    np.testing.assert_allclose(corpus.contract.mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(corpus.contract.std, pixels.std(1), rtol=1e-12)
    assert corpus.meta["statistics"] | {"mean": 0, "std": 0} == {
        "mean": 0,
        "std": 0,
        "split": "train",
        "pixels": pixels.shape[1],
    }
    sources = corpus.table(["source", "split"]).group_by("source").aggregate([("split", "count_distinct")])
    assert set(sources["split_count_distinct"].to_pylist()) == {1}  # whole scenes are held out


def test_twice_and_with_two_processes_the_same_bytes(planted, built, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_INLINE_PIXELS", 0)
    monkeypatch.setattr(building, "_INLINE_TILES", 0)
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 1)
    one = digest(again(planted, tmp_path / "one", workers=1))
    two = digest(again(planted, tmp_path / "two", workers=2))
    assert one == two and len(one) > 8
    merged = digest(built)  # built as one task: the same tiles and decisions
    for name in ("catalogue.parquet", "catalogue/edges.parquet", "corpus.lock", "tiles.zarr/64/image/c/0/0/0/0"):
        assert one[name] == merged[name]


@pytest.mark.parametrize("stage", ["cut", "find_copies", "find_near", "assign_slots", "write_pixels", "finish"])
def test_a_stopped_build_goes_on(planted, built, tmp_path, monkeypatch, stage):
    calls = []

    def stop(*_, **__):
        calls.append(stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            again(planted, tmp_path / "corpus")
    assert calls
    with pytest.raises(CorpusError, match="unfinished corpus"):
        Corpus.open(tmp_path / "corpus")
    if stage != "cut":
        monkeypatch.setattr(building, "cut", stop)  # what is done is not done again
    monkeypatch.setattr(intake, "scan_all", stop)  # nor is a source opened twice
    again(planted, tmp_path / "corpus")
    assert digest(tmp_path / "corpus") == digest(built)
    assert not (tmp_path / "corpus" / "work").exists()


def test_a_corpus_that_is_being_replaced_is_none_for_anybody(tmp_path, monkeypatch):
    folder, out = photographs(tmp_path / "photos"), tmp_path / "c"
    build([str(folder)], str(out), tile=64, workers=1)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(out), tile=32, overwrite=True, workers=1)
    write_image(out / "report" / "0.png", np.zeros((3, 8, 8), np.uint8))
    words = f"run its `geomim corpus build` again with its arguments, which '{out / 'work' / 'recipe.json'}' holds"
    filtered = partial(filter, where="true", out=str(tmp_path / "d"))
    for use in (Corpus.open, inspect, verify, side, open_to_change, filtered):
        with pytest.raises(CorpusError, match=re.escape(words)):
            use(str(out))
    assert find_scenes(tmp_path) == find_scenes(folder)  # it is no folder of pictures either
    arguments = json.loads((out / "work" / "recipe.json").read_text())
    build(**arguments, out=str(out), workers=1)
    assert Corpus.open(out).sizes == (32,)


def test_an_unfinished_build_notices_new_sources(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(tmp_path / "c"), tile=64)
    photographs(folder / "more", 2, seed=1)
    build([str(folder)], str(tmp_path / "c"), tile=64)
    assert len(Corpus.open(tmp_path / "c").table(["id"])) == 8


def test_a_changed_source_is_cut_again_and_no_other(tmp_path, monkeypatch, capsys):
    folder = photographs(tmp_path / "photos")
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 2)
    tasks, cut = [], building.cut

    def noted(how, task, out):
        tasks.append(task.sources.table["uri"].to_pylist())
        cut(how, task, out)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "cut", noted)
    with monkeypatch.context() as patch:
        patch.setattr(building, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)
    assert len(tasks) == 3
    tasks.clear()
    changed = str(folder / "b" / "1.png")
    write_image(folder / "b" / "1.png", np.random.default_rng(9).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)
    assert len(tasks) == 1 and changed in tasks[0]
    assert f"1 sources changed since the build was stopped, such as '{changed}'" in " ".join(
        capsys.readouterr().err.split()
    )
    build([str(folder)], str(tmp_path / "d"), tile=64, workers=1)
    assert digest(tmp_path / "c") == digest(tmp_path / "d")


@pytest.mark.parametrize("of", ["masks", "clouds"])
def test_a_changed_mask_is_cut_again_and_told_by_the_lock(tmp_path, monkeypatch, of):
    scenes, masks = photographs(tmp_path / "photos"), tmp_path / of
    for number in range(6):
        write_image(masks / f"{number}.tif", np.ones((1, 64, 64), np.uint8))
    (masks / "classes.json").write_text('["field", "forest"]')
    options = {of: str(masks), "tile": 64, "workers": 1}
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 2)
    tasks, cut = [], building.cut

    def noted(how, task, out):
        tasks.append(task.sources.table["uri"].to_pylist())
        cut(how, task, out)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "cut", noted)
    with monkeypatch.context() as patch:
        patch.setattr(building, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(scenes)], str(tmp_path / "c"), **options)
    tasks.clear()
    kept = os.stat(masks / "0.tif")
    write_image(masks / "0.tif", np.zeros((1, 64, 64), np.uint8))
    os.utime(masks / "0.tif", ns=(0, kept.st_mtime_ns - 1))  # as a copy that keeps its time: older than the scene
    build([str(scenes)], str(tmp_path / "c"), **options)
    assert len(tasks) == 1 and str(scenes / "a" / "0.png") in tasks[0]
    build([str(scenes)], str(tmp_path / "d"), **options)
    assert digest(tmp_path / "c") == digest(tmp_path / "d")
    listed = [line.uri for line in read_lock(tmp_path / "c")[1] if not line.tiles]
    names = [f"{number}.tif" for number in range(6)] + (["classes.json"] if of == "masks" else [])
    assert listed == [str(masks / name) for name in names]
    verify(str(tmp_path / "c"), sources=True)
    rebuild(str(tmp_path / "c"), str(tmp_path / "again"), workers=1)
    write_image(masks / "5.tif", np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(CorpusError, match=r"5\.tif' was changed \(sources: 1\)"):
        verify(str(tmp_path / "c"), sources=True)
    with pytest.raises(CorpusError, match=r"cannot be rebuilt: source '.*5\.tif' was changed"):
        rebuild(str(tmp_path / "c"), str(tmp_path / "more"), workers=1)


def test_the_first_source_may_be_of_the_type_that_is_skipped(tmp_path):
    folder = photographs(tmp_path / "photos", 3)
    write_image(folder / "a" / "-first.png", np.ones((3, 64, 64), np.uint16), photometric="RGB")
    corpus = Corpus.open(build([str(folder)], str(tmp_path / "c"), tile=64, workers=1))
    assert corpus.tiles().dtype == np.uint8 and len(corpus.tiles()) == 3
    with rasterio.open(corpus.table(["source"])["source"][0].as_py()) as raster:
        np.testing.assert_array_equal(corpus.tiles().read([0])[0], raster.read())


def test_a_condition_is_checked_before_anything_is_cut_and_may_change_while_a_build_is_stopped(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="did you mean 'gsd'"):
        build([str(folder)], str(tmp_path / "c"), tile=64, where="gds < 1")
    assert not (tmp_path / "c").exists()
    with monkeypatch.context() as patch:
        patch.setattr(building, "find_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(tmp_path / "c"), tile=64)
    monkeypatch.setattr(building, "cut", stop)  # nothing is cut again
    build([str(folder)], str(tmp_path / "c"), tile=64, where="information > 0", workers=1)
    assert Corpus.open(tmp_path / "c").meta["recipe"]["where"] == "information > 0"


def test_a_finished_corpus_is_left_alone_and_another_recipe_refused(planted, tmp_path, capsys):
    out = photographs(tmp_path / "photos") and tmp_path / "corpus"
    build([str(tmp_path / "photos")], str(out), tile=64, workers=1)
    before = (out / "corpus.json").stat().st_mtime_ns
    build([str(tmp_path / "photos")], str(out), tile=64, workers=1)
    assert "built already" in capsys.readouterr().err.replace("\n", " ")
    assert (out / "corpus.json").stat().st_mtime_ns == before
    with pytest.raises(CorpusError, match=r"tile: \[64\] there, \[32\] given.*--overwrite"):
        build([str(tmp_path / "photos")], str(out), tile=32, workers=1)
    build([str(tmp_path / "photos")], str(out), tile=32, workers=1, overwrite=True)
    assert Corpus.open(out).sizes == (32,) and not (out / "tiles.zarr" / "64").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(CorpusError, match="no corpus"):
            build([str(tmp_path / "photos")], str(tmp_path / "mine"), tile=64, overwrite=overwrite)
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_folder_labels_and_a_published_split(tmp_path):
    folder = photographs(tmp_path / "photos")
    shutil.copy(folder / "a" / "0.png", folder / "b" / "7.png")  # a copy of a train picture, in test
    shutil.copy(folder / "a" / "2.png", folder / "b" / "9.png")  # and two of a test picture: test stays whole
    split = [{"image": "a/0.png", "split": "train"}, {"image": "b/7.png", "split": "test"}]
    split += [{"image": "photos/a/2.png", "split": "test"}, {"image": "9.png", "split": "test"}]
    (tmp_path / "split.jsonl").write_text("\n".join(map(json.dumps, split)))
    out = build([str(folder)], str(tmp_path / "c"), tile=64, labels="folder", split=str(tmp_path / "split.jsonl"))
    rows = {row["source"].rpartition("/")[2]: row for row in Corpus.open(out).table().to_pylist()}
    assert Corpus.open(out).classes == ["a", "b"]
    assert rows["7.png"]["label"] == "b" and rows["7.png"]["split"] == "test" and rows["7.png"]["kept"]
    assert rows["0.png"]["reason"] == f"exact duplicate of {rows['7.png']['id']}"
    assert rows["2.png"]["kept"] and rows["9.png"]["kept"] and rows["2.png"]["xxh3"] == rows["9.png"]["xxh3"]
    assert rows["1.png"]["split"] == "train"
    (tmp_path / "other.csv").write_text("path,split\nnothing.png,test\n")
    with pytest.raises(InputError, match="names none of the 8 sources"):
        build([str(folder)], str(tmp_path / "d"), tile=64, split=str(tmp_path / "other.csv"))
    assert not (tmp_path / "d").exists()
    (tmp_path / "other.csv").write_text("path,class\na/0.png,x\nb/1.png,y\n")
    out = build([str(folder)], str(tmp_path / "d"), tile=64, labels=str(tmp_path / "other.csv"))
    assert Corpus.open(out).classes == ["x", "y"] and (Corpus.open(out).tiles().labels < 0).sum() == 4


def test_mixed_sensors_are_refused_by_name_before_anything_is_written(tmp_path):
    folder = photographs(tmp_path / "photos", 3)
    write_image(folder / "grey.png", np.arange(64 * 64, dtype=np.uint8).reshape(1, 64, 64))
    with pytest.raises(BandError, match=r"3 of rgb \(red, green, blue\).*1 of gray.*grey\.png"):
        build([str(folder)], str(tmp_path / "c"), tile=64)
    assert not (tmp_path / "c").exists()


def test_broken_vanished_and_locked_sources_are_skipped_by_name_and_the_rest_is_built(tmp_path, monkeypatch):
    folder, pixels = photographs(tmp_path / "photos"), np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    write_image(folder / "cut.tif", pixels, photometric="RGB")
    cube = xarray.Dataset({name: (("y", "x"), band) for name, band in zip(RGB, pixels, strict=True)})
    cube.to_netcdf(folder / "cube.nc", encoding={name: {"zlib": True, "chunksizes": (64, 64)} for name in RGB})
    cube.to_zarr(folder / "cube.zarr", consolidated=False)
    chunk = max((file for file in (folder / "cube.zarr" / "red").rglob("*") if file.is_file()), key=os.path.getsize)
    for file in (folder / "cut.tif", chunk):
        os.truncate(file, os.path.getsize(file) // 2)
    raw = bytearray((folder / "cube.nc").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 500] = bytes(500)
    (folder / "cube.nc").write_bytes(raw)
    cut, hashed = building.cut, lock._hash_files

    def late(*task):
        (folder / "a" / "0.png").unlink()
        cut(*task)

    def locked(files):
        if "1.png" in files[0][1]:
            raise PermissionError(13, "Permission denied", files[0][1])
        return hashed(files)

    monkeypatch.setattr(building, "cut", late)
    monkeypatch.setattr(lock, "_hash_files", locked)
    corpus = Corpus.open(build([str(folder)], str(tmp_path / "c"), tile=64, sensor="rgb", workers=1))
    said = {row["source"]: row["reason"] for row in corpus.skipped().to_pylist()}
    broken = ("a/0.png", "b/1.png", "cube.nc", "cube.zarr", "cut.tif")
    assert said.keys() == {str(folder / name) for name in broken}
    assert all(f"'{name}'" in reason and "\n" not in reason for name, reason in said.items())
    assert {source[-5] for source in corpus.table(["source"])["source"].to_pylist()} == set("2345")


def test_sources_that_differ_in_what_their_numbers_mean_are_told_apart(tmp_path):
    folder = photographs(tmp_path / "photos", 3)
    with rasterio.open(
        folder / "a" / "scaled.tif", "w", driver="GTiff", dtype="uint8", count=3, height=64, width=64
    ) as raster:
        raster.write(np.ones((3, 64, 64), np.uint8))
        raster.scales, raster.offsets = (0.5,) * 3, (-1.0,) * 3
    words = r"1 of rgb .*scaled\.tif', with scale 0\.5 \(not 1\.0\), offset -1\.0 \(not 0\.0\)"
    with pytest.raises(BandError, match=words):
        build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)


def test_another_type_of_numbers_is_skipped_with_a_sentence(tmp_path):
    folder = photographs(tmp_path / "photos", 3)
    write_image(folder / "deep.png", np.ones((3, 64, 64), np.uint16), photometric="RGB")
    corpus = Corpus.open(build([str(folder)], str(tmp_path / "c"), tile=64))
    assert corpus.tiles().dtype == np.uint8
    assert "deep.png' stores uint16 and 3 other sources uint8" in corpus.skipped()["reason"][0].as_py()


def test_damaged_files_are_listed_and_the_run_goes_on(tmp_path, capsys):
    folder = photographs(tmp_path / "photos", 3, size=128)
    (folder / "text.png").write_text("no picture")
    pixels = np.random.default_rng(0).integers(1, 200, (3, 512, 512), dtype=np.uint8)
    write_image(folder / "cut.tif", pixels, photometric="RGB", tiled=True, blockxsize=64, blockysize=64)
    raw = (folder / "cut.tif").read_bytes()
    (folder / "cut.tif").write_bytes(raw[: len(raw) * 2 // 3])
    corpus = Corpus.open(build([str(folder)], str(tmp_path / "c"), tile=64, workers=1))
    skipped = {row["source"].rpartition("/")[2]: row["reason"] for row in corpus.skipped().to_pylist()}
    assert set(skipped) == {"text.png", "cut.tif"} and all(skipped.values())
    assert len(corpus.table(["id"])) == 12  # no tile of the file that ended early
    assert "sources skipped" in capsys.readouterr().err
    shutil.rmtree(folder / "a"), shutil.rmtree(folder / "b")
    with pytest.raises(InputError, match=r"no tile is kept.*2 skipped sources.*text\.png"):
        build([str(folder)], str(tmp_path / "d"), tile=64, workers=1)
    (folder / "cut.tif").unlink()
    with pytest.raises(InputError, match=r"none of the 1 sources.*text\.png"):
        build([str(folder)], str(tmp_path / "e"), tile=64, workers=1)


def test_wrong_arguments_are_named(tmp_path):
    folder = str(photographs(tmp_path / "photos", 2))
    for wrong, words in [
        ({"tile": 0}, "at least 1 pixel"),
        ({"min_valid": 50}, "0 to 1; given 50"),
        ({"near": 13}, "0 to 12; given 13"),
        ({"test_share": 1.5}, "0..1, given 1.5"),
        ({"labels": "folder", "masks": folder}, "--labels and --masks"),
        ({"split": "a.csv", "test_share": 0.2}, "--split and --test-share"),
        ({"masks": str(tmp_path / "none")}, "does not exist"),
        ({"sensor": "sentinel22"}, "did you mean 'sentinel2'"),
    ]:
        with pytest.raises(InputError, match=words):
            build([folder], str(tmp_path / "c"), **wrong)


def test_quirks_are_cut_or_skipped_with_a_sentence(data_dir, tmp_path, capsys):
    corpus = Corpus.open(
        build([str(data_dir / "geotiff_quirks")], str(tmp_path / "c"), sensor="rgb", tile=128, workers=1)
    )
    skipped = corpus.skipped().to_pylist()
    used = set(corpus.table(["source"])["source"].to_pylist())
    assert len(skipped) + len(used) == 22 and used
    assert all(len(row["reason"]) > 20 and "Traceback" not in row["reason"] for row in skipped)
    assert f"sources skipped {len(skipped)}" in " ".join(capsys.readouterr().err.split())


def test_two_dates_of_naip(data_dir, tmp_path, capsys):
    corpus = Corpus.open(
        build(
            [str(data_dir / "naip")], str(tmp_path / "c"), sensor="naip", tile=128, stride=64, licence="public domain"
        )
    )
    table = corpus.table()
    assert corpus.sensor.name == "naip" and corpus.contract.licences == ("public domain",)
    assert set(table["epsg"].to_pylist()) == {26914} and table["geometry"].null_count == 0
    assert not any("near" in reason for reason in table["reason"].to_pylist())  # eleven years apart is no copy
    inspect(str(tmp_path / "c"))
    assert "public domain" in capsys.readouterr().out


def test_copies_planted_among_real_photographs(data_dir, tmp_path):
    sources = sorted((data_dir / "rsicd" / "classes" / "airport").glob("*.jpg"))[:40]
    folder = tmp_path / "photos"
    for number, source in enumerate(sources):
        with rasterio.open(source) as raster:
            pixels = raster.read()
        write_image(folder / f"{number:03d}.png", pixels)
        if number < 10:
            write_image(folder / f"{number:03d}_exact.png", pixels)
        if number >= 30:
            write_image(
                folder / f"{number:03d}_near.jpg", np.clip(pixels * 0.9 + 8, 0, 255).astype(np.uint8), quality=60
            )
    table = Corpus.open(build([str(folder)], str(tmp_path / "c"), sensor="rgb", tile=128)).table()
    rows = {row["source"].rpartition("/")[2]: row for row in table.to_pylist()}
    for number in range(10):
        assert rows[f"{number:03d}_exact.png"]["reason"] == f"exact duplicate of {rows[f'{number:03d}.png']['id']}"
    found = sum(rows[f"{n:03d}_near.jpg"]["duplicate_of"] == rows[f"{n:03d}.png"]["id"] for n in range(30, 40))
    assert found >= 9
    assert sum(row["kept"] for row in rows.values()) == 40 + (10 - found)


def test_crops_may_be_given_up_while_a_build_is_stopped_and_asked_for_again(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos")
    cut, cuts = building.cut, []

    def noted(*given):
        cuts.append(given)
        cut(*given)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "cut", noted)
    with monkeypatch.context() as patch:
        patch.setattr(building, "find_crops", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(building, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(folder)], str(tmp_path / "c"), tile=64, crops=False, workers=1)
    assert len(cuts) == 1
    build([str(folder)], str(tmp_path / "c"), tile=64, crops=True, workers=1)
    build([str(folder)], str(tmp_path / "d"), tile=64, workers=1)
    assert digest(tmp_path / "c") == digest(tmp_path / "d")


def test_a_full_disk_is_a_sentence_and_what_is_done_stays(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos")
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 2)
    written, append = [], RawFile.append

    def until_full(file, values):
        if len(written) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(append(file, values))

    with monkeypatch.context() as patch:
        patch.setattr(RawFile, "append", until_full)
        with pytest.raises(CorpusError, match=r"no room is left for .* make room and run the build again"):
            build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)
    done = [task.name for task in (tmp_path / "c" / "work" / "tasks").iterdir() if task.suffix != ".part"]
    assert len(done) == 2
    build([str(folder)], str(tmp_path / "c"), tile=64, workers=1)
    build([str(folder)], str(tmp_path / "d"), tile=64, workers=1)
    assert digest(tmp_path / "c") == digest(tmp_path / "d")


def test_a_sensor_file_that_was_edited_while_a_build_was_stopped_begins_it_anew(tmp_path, monkeypatch):
    sensor = tmp_path / "mine.yaml"
    text = "name: mine\nunit: reflectance\nscale: {scale}\nbands:\n- {{name: one, wavelength: 560}}\n"
    write_image(tmp_path / "s" / "a.tif", np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64))

    def stop(*_, **__):
        raise KeyboardInterrupt

    sensor.write_text(text.format(scale=0.1))
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            build([str(tmp_path / "s")], str(tmp_path / "c"), tile=32, sensor=str(sensor), workers=1)
    sensor.write_text(text.format(scale=0.5))
    build([str(tmp_path / "s")], str(tmp_path / "c"), tile=32, sensor=str(sensor), workers=1)
    assert Corpus.open(tmp_path / "c").sensor.scale == 0.5
