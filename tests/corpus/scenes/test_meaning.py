"""What numbers mean: evidence of products, files and names before a sensor's default; Sentinel-2 harmonised."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import xarray
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from geomim.corpus.build import build
from geomim.corpus.lock import read_lock
from geomim.corpus.scenes import open_scene
from geomim.corpus.scenes.meaning import added, harmonised
from geomim.corpus.scenes.validity import Nodata
from geomim.corpus.store import Corpus
from geomim.errors import BandError, InputError
from geomim.sensors import Band, Sensor, get_sensor

SIZE = 64
S2 = ("B02", "B03", "B04", "B08")
BEFORE, AFTER, REPROCESSED = (
    f"S2A_MSIL2A_{day}T101031_N{base}_R022_T32UPU_{day}T150000"
    for day, base in (("20210601", "0301"), ("20230601", "0509"), ("20170601", "0500"))
)


def tif(path, pixels=None, names=(), add=0, dtype="uint16", seed=0, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = (np.random.default_rng(seed).integers(200, 3000, (1, SIZE, SIZE)) + add).astype(dtype)
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, 10, 10)}
    with rasterio.open(
        path, "w", **{"driver": "GTiff", "dtype": pixels.dtype.name, **shape, **place, **profile}
    ) as file:
        file.write(pixels)
        for place, name in enumerate(names, start=1):
            file.set_band_description(place, name)
    return path


def safe(folder, name, seed=0, bands=S2):
    add = added(name)
    for place, band in enumerate(bands):
        granule = folder / f"{name}.SAFE" / "GRANULE" / f"{name[7:10]}_T32UPU_A000001_20200601T101031"
        tif(granule / "IMG_DATA" / "R10m" / f"T32UPU_20200601T101031_{band}_10m.tif", add=add, seed=10 * seed + place)
    return str(folder / f"{name}.SAFE")


def item(folder, properties=None, facts=None, name="S2B_scene", bands=S2, **more):
    """A STAC item; `facts` are said of each band."""
    assets = {}
    for place, band in enumerate(bands):
        tif(folder / f"{band}.tif", seed=place, **more)
        told = {"raster:bands": [facts]} if facts is not None else {}
        assets[band] = {"href": f"./{band}.tif", "type": "image/tiff", "eo:bands": [{"name": band}], **told}
    content = {"type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "links": [], "assets": assets}
    told = {"datetime": "2023-06-01T10:10:31Z", "platform": "Sentinel-2B", **(properties or {})}
    (folder / "item.json").write_text(json.dumps(content | {"properties": told}))
    return str(folder / "item.json")


def scaling(uri, sensor="sentinel2", bands=S2, **options):
    with open_scene(uri, get_sensor(sensor) if isinstance(sensor, str) else sensor, bands, **options) as scene:
        return pytest.approx((scene.sensor.scale, scene.sensor.offset)), scene.notes


@pytest.mark.parametrize(
    ("text", "more"),
    [("05.09", 1000), ("04.00", 1000), ("03.01", 0), ("02.14", 0), (BEFORE, 0), (AFTER, 1000), (REPROCESSED, 1000),
     ("99.99", None), ("", None), ("2023.1", None), ("1.2.3", None), ("T32UPU_20230601T101031", None)],
)  # fmt: skip
def test_processing_baselines(text, more):
    assert added(text) == more


BASELINE = {"s2:processing_baseline": "05.09"}


@pytest.mark.parametrize(
    ("properties", "facts", "expected"),
    [
        (BASELINE, None, (1e-4, -0.1)),  # Planetary Computer
        ({"processing:version": "05.11"}, None, (1e-4, -0.1)),  # Copernicus Data Space
        ({"s2:processing_baseline": "02.14"}, None, (1e-4, 0.0)),
        (BASELINE, {"scale": None, "offset": None, "nodata": "nan"}, (1e-4, -0.1)),  # null is not told
        (BASELINE, {"scale": 1e-4}, (1e-4, -0.1)),
        (BASELINE, {"scale": 1e-4, "offset": 0}, (1e-4, 0.0)),  # told
        (BASELINE | {"earthsearch:boa_offset_applied": True}, None, (1e-4, 0.0)),  # Element84
        (BASELINE | {"earthsearch:boa_offset_applied": True}, {"scale": 1e-4, "offset": -0.1}, (1e-4, 0.0)),
        (BASELINE | {"earthsearch:boa_offset_applied": False}, {"scale": 1e-4, "offset": -0.1}, (1e-4, -0.1)),
        (BASELINE, {"data_type": "float32"}, (1e-4, 0.0)),  # not the agency's numbers
        ({}, None, (1e-4, 0.0)),
        ({"platform": "landsat-8", "processing:version": "05.09"}, None, (1e-4, 0.0)),
    ],
)
def test_a_stac_item_s_own_evidence(tmp_path, properties, facts, expected):
    name = "scene" if "platform" in properties else "S2B_scene"
    assert expected == scaling(item(tmp_path, properties, facts, name=name))[0]


def test_nulls_and_words_for_numbers_in_a_stac_item(tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 0.4, (1, SIZE, SIZE)).astype(np.float32)
    pixels[:, :5] = np.nan
    told = {"nodata": "nan", "data_type": "float32", "scale": None, "offset": None}
    uri = item(tmp_path, {}, told, bands=("B02", "B03"), pixels=pixels)
    with open_scene(uri, get_sensor("sentinel2"), ["B02", "B03"]) as scene:
        assert not scene.valid()[:5].any() and scene.valid()[5:].all()
        assert scene.sensor.scale == 1 and "read as reflectance already" in scene.notes[0]
    mine = Sensor("mine", get_sensor("sentinel2", ["B02", "B03"]).bands, "reflectance")
    with open_scene(uri, mine) as scene:
        assert scene.sensor.scale == 1 and not scene.notes


def test_the_user_s_scale_stands_where_a_stac_item_tells_none_and_gives_way_where_it_does(tmp_path):
    mine = Sensor("mine", get_sensor("sentinel2", S2).bands, "reflectance", 0.5)
    assert scaling(item(tmp_path, {}), mine) == ((0.5, 0.0), ())
    assert scaling(item(tmp_path, BASELINE), mine) == ((1e-4, -0.1), ())


def test_a_time_that_the_file_tells_calls_for_the_baseline_as_one_in_its_name_does(tmp_path):
    pixels = np.random.default_rng(0).integers(1200, 4000, (4, SIZE, SIZE)).astype("uint16")
    cube = xarray.Dataset(
        {name: (("y", "x"), band) for name, band in zip(S2, pixels, strict=True)},
        {"time": np.datetime64("2023-06-01", "ns")},
    )
    cube.to_netcdf(tmp_path / "cube.nc")
    for year, doubtful in ((2023, True), (2021, False)):
        tagged = tif(tmp_path / f"tagged{year}.tif", pixels, S2)
        with rasterio.open(tagged, "r+") as file:
            file.update_tags(ACQUISITIONDATETIME=f"{year}-06-01T10:00:00Z")
        uris = [tagged, item(tmp_path / str(year), {"datetime": f"{year}-06-01T10:00:00Z"})]
        for uri in [*uris, tmp_path / "cube.nc"][: 2 + doubtful]:
            told, notes = scaling(str(uri))
            assert told == (1e-4, 0.0) and bool(notes) == doubtful, uri
            assert not doubtful or "no processing baseline" in notes[0]


def test_the_folder_of_a_loose_file_tells_its_baseline(tmp_path):
    for name, offset in ((BEFORE, 0.0), (AFTER, -0.1), (REPROCESSED, -0.1)):
        path = next(iter(sorted((tmp_path / name).rglob("*.tif"))), None) or safe(tmp_path / name, name)
        path = sorted((tmp_path / name).rglob("*_B04_10m.tif"))[0]
        assert scaling(str(path), bands=["B04"])[0] == (1e-4, offset)
    alone = tif(tmp_path / "T32UPU_20230601T101031_B04_10m.tif")
    told, notes = scaling(str(alone), bands=["B04"])
    assert told == (1e-4, 0.0) and "no processing baseline" in notes[0] and "offset: -0.1" in notes[0]
    sure = Sensor("mine", get_sensor("sentinel2", ["B04"]).bands, "reflectance", 1e-4, -0.1)
    assert scaling(str(alone), sure, None) == ((1e-4, -0.1), ())
    assert not scaling(str(tif(tmp_path / "T32UPU_20210601T101031_B04_10m.tif")), bands=["B04"])[1]
    picture = tif(tmp_path / AFTER / "tci.tif", np.ones((3, 8, 8), np.uint8), ("red", "green", "blue"))
    with open_scene(picture) as scene:
        assert (scene.sensor.scale, scene.sensor.offset) == (1.0, 0.0) and not scene.notes


@pytest.mark.parametrize("sensor", ["landsat7", "landsat8"])
@pytest.mark.parametrize(
    ("prefix", "dtype", "expected", "nodata"),
    [("SR_B", "uint16", (2.75e-5, -0.2), 0), ("sr_band", "int16", (1e-4, 0.0), -9999)],
)
def test_names_of_landsat_s_bands_tell_the_collection(tmp_path, sensor, prefix, dtype, expected, nodata):
    pixels = np.random.default_rng(0).integers(7000, 20000, (3, SIZE, SIZE)).astype(dtype)
    pixels[:, 0], pixels[0, 1] = nodata, nodata
    path = tif(tmp_path / "export.tif", pixels, [f"{prefix}{n}" for n in (2, 3, 4)])
    with open_scene(path, get_sensor(sensor, ["B2", "B3", "B4"])) as scene:
        assert expected == pytest.approx((scene.sensor.scale, scene.sensor.offset))
        assert scene.nodata == nodata and not scene.valid()[0].any() and scene.valid()[1:].all()
        usual = get_sensor(sensor)
        assert bool(scene.notes) == (expected != (usual.scale, usual.offset))
    mine = Sensor("mine", get_sensor(sensor, ["B2", "B3", "B4"]).bands, "reflectance", 0.5)
    assert scaling(str(path), mine, None) == ((0.5, 0.0), ())  # the user's word


@pytest.mark.parametrize("told", [(np.nan,) * 2, (1e-4, 0.0), (np.inf, 1.0)])
def test_a_scale_that_leaves_no_numbers_is_refused(tmp_path, told):
    path = tif(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint16), ("red", "nir"))
    with rasterio.open(path, "r+") as file:
        file.scales = told
    with pytest.raises(InputError, match=r"a\.tif' says number \* (nan|0|inf) \+ 0, which leaves nothing"):
        open_scene(path)


def test_what_harmonised_numbers_are():
    stored, valid = np.array([[[0, 1, 999, 1000, 1001, 5000, 65535]]], np.uint16), np.ones((1, 7), bool)
    read, _ = harmonised([Nodata((0,))], stored.copy(), valid)
    assert read.tolist() == [[[0, 1, 1, 1, 1, 4000, 65535]]] and read.dtype == np.uint16
    assert harmonised([Nodata()], stored.copy(), valid)[0].tolist() == [[[0, 0, 0, 0, 1, 4000, 65535]]]
    signed = np.array([[[-9999, 5, 1500]]], np.int16)
    assert harmonised([Nodata((-9999,))], signed, valid[:, :3])[0].tolist() == [[[-9999, -995, 500]]]


def test_scenes_of_all_kinds_are_harmonised_and_those_without_offset_left_alone(tmp_path):
    packed = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": np.uint16(0)}
    pixels = np.random.default_rng(0).integers(1200, 4000, (SIZE, SIZE)).astype("uint16")
    bands = {name.lower(): (("y", "x"), pixels, packed) for name in S2}
    xarray.Dataset(bands).to_zarr(tmp_path / "eopf.zarr", consolidated=False)
    tagged = tif(tmp_path / "tagged.tif", np.stack([pixels] * 4), S2)
    with rasterio.open(tagged, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 4, (-0.1,) * 4
    added_to = [safe(tmp_path, AFTER), item(tmp_path, BASELINE, add=1000), tmp_path / "eopf.zarr", tagged]
    for uri in added_to:
        with open_scene(uri, get_sensor("sentinel2"), S2) as plain:
            with open_scene(uri, get_sensor("sentinel2"), S2, harmonise=True) as scene:
                assert (
                    scene.sensor.offset == 0 and plain.sensor.offset == pytest.approx(-0.1) and scene.taken_off == 1000
                )
                assert np.array_equal(scene.read() + 1000, plain.read())
                assert np.array_equal(scene.valid(), plain.valid())
    for uri in (safe(tmp_path, BEFORE), tif(tmp_path / "plain.tif", np.stack([pixels] * 4), S2)):
        with open_scene(uri, get_sensor("sentinel2"), S2, harmonise=True) as scene:
            with open_scene(uri, get_sensor("sentinel2"), S2) as plain:
                assert scene.taken_off == 0 and np.array_equal(scene.read(), plain.read())


@pytest.mark.parametrize("sensor", ["sentinel2", None])
def test_a_series_across_2022_becomes_one_corpus_by_the_flag_that_the_refusal_names(tmp_path, sensor):
    uris = [safe(tmp_path / "in", name, seed) for seed, name in enumerate((BEFORE, AFTER, REPROCESSED))]
    options = {"tile": 32, "sensor": sensor, "bands": list(S2), "workers": 1}
    with pytest.raises(BandError, match=r"with offset .*Give --harmonise"):
        build([str(tmp_path / "in")], str(tmp_path / "no"), **options)
    assert not (tmp_path / "no" / "corpus.json").exists()
    corpus = Corpus.open(build([str(tmp_path / "in")], str(tmp_path / "yes"), **options, harmonise=True))
    assert (corpus.sensor.scale, corpus.sensor.offset) == (1e-4, 0.0) and corpus.meta["recipe"]["harmonise"] is True
    assert 1500 < np.mean(corpus.contract.mean) < 1700  # without the 1000
    _, sources = read_lock(tmp_path / "yes")
    assert {source.uri: source.taken_off for source in sources} == dict(zip(uris, (None, 1000, 1000), strict=True))


def test_what_tells_no_baseline_is_not_harmonised_by_a_guess(tmp_path):
    loose = [tif(tmp_path / f"T32TNS_{day}T101031_B02_10m.tif", add=1000) for day in ("20230601", "20210601")]
    for band in ("B02", "B03"):
        tif(tmp_path / "S2B_20220201" / f"{band}.tif")
    untold = [loose[0], tmp_path / "S2B_20220201", item(tmp_path / "item", {}, bands=["B02"])]
    for uri in untold:
        with pytest.raises(InputError, match=r"tells no processing baseline.*\.SAFE.*_Nxxxx_.*STAC"):
            scaling(str(uri), bands=["B02"], harmonise=True)
    assert scaling(str(loose[1]), bands=["B02"], harmonise=True) == ((1e-4, 0.0), ())
    with rasterio.open(loose[0], "r+") as file:
        file.scales, file.offsets = (1e-4,), (-0.1,)
    assert scaling(str(loose[0]), bands=["B02"], harmonise=True) == ((1e-4, 0.0), ())
    safe(tmp_path, AFTER)
    (under,) = (tmp_path / f"{AFTER}.SAFE").rglob("*_B02_10m.tif")
    assert scaling(str(under), bands=["B02"], harmonise=True)[0] == (1e-4, 0.0)


def test_a_sensor_with_an_offset_is_not_harmonised_since_it_would_count_for_all_dates(tmp_path):
    mine = Sensor("mine", get_sensor("sentinel2", ["B02"]).bands, "reflectance", 1e-4, -0.1)
    uris = [tif(tmp_path / f"T32TNS_{day}T101031_B02_10m.tif") for day in ("20210601", "20230601")]
    for uri in (*uris, safe(tmp_path, AFTER)):
        with pytest.raises(InputError, match=r"sensor 'mine' has an offset of its own, -0\.1.*without offset"):
            scaling(str(uri), mine, ["B02"], harmonise=True)


def test_the_sensor_that_is_named_for_its_offset_is_the_user_s_word(tmp_path):
    alone = tif(tmp_path / "T32TNS_20230601T101031_B02_10m.tif", add=1000)
    assert scaling(str(alone), "sentinel2_l2a_n0400", ["B02"]) == ((1e-4, -0.1), ())
    assert scaling(str(alone), "sentinel2_l2a", ["B02"])[0] == (1e-4, 0.0)
    with pytest.raises(InputError, match="has an offset of its own"):
        scaling(str(alone), "sentinel2_l2a_n0400", ["B02"], harmonise=True)
    with rasterio.open(alone, "r+") as file:
        file.scales = (1e-4,)
    with pytest.raises(InputError, match=r"says number \* 0.0001 \+ 0; sensor 'sentinel2_l2a_n0400' says"):
        scaling(str(alone), "sentinel2_l2a_n0400", ["B02"])
    assert scaling(str(alone), "sentinel2_l2a", ["B02"])[0] == (1e-4, 0.0)


MIXED = ("B1", "B26", "B31")


def percent_and_kelvin(path, dtype, *factors):
    usual = np.array([25.0, 2.0, 280.0])[:, None, None] * np.array(factors or (1, 1, 1))[:, None, None]
    noise = np.random.default_rng(0).uniform(0.8, 1.2, (3, SIZE, SIZE))
    return tif(path, (usual * noise).astype(dtype), MIXED)


def test_bands_of_several_units_are_stored_as_they_are_and_their_meaning_with_them(tmp_path):
    percent_and_kelvin(tmp_path / "in" / "a.tif", "float32")
    out = build([str(tmp_path / "in")], str(tmp_path / "out"), tile=32, sensor="modis-toa", workers=1)
    corpus = Corpus.open(out)
    assert corpus.sensor == get_sensor("modis_toa").select(MIXED)
    assert corpus.sensor.meanings == (("reflectance", 0.01, 0.0), ("reflectance", 0.01, 0.0), ("kelvin", 1.0, 0.0))
    assert corpus.contract.mean == pytest.approx((25, 2, 280), rel=0.05)


def test_what_a_file_tells_of_some_bands_is_brought_together_with_the_sensor_s_word_on_the_others(tmp_path):
    path = percent_and_kelvin(tmp_path / "a.tif", "uint16", 100, 100, 100)
    with rasterio.open(path, "r+") as file:
        file.scales = (1e-4, 1e-4, 0.01)
    with open_scene(path, get_sensor("modis_toa")) as scene:  # all told: their word replaces that of a built-in sensor
        assert scene.dtype == np.float32 and scene.read().mean((1, 2)) == pytest.approx([0.25, 0.02, 280], rel=0.05)
        assert scene.sensor.meanings == (("reflectance", 1.0, 0.0), ("reflectance", 1.0, 0.0), ("kelvin", 1.0, 0.0))
    with rasterio.open(path, "r+") as file:
        file.scales = (1.0, 1.0, 0.01)
    bands = tuple(
        Band(name, unit="kelvin" if name == "B31" else "reflectance", scale=s)
        for name, s in zip(MIXED, (1e-4, 1e-4, 0.01), strict=True)
    )
    mine = Sensor("mine", bands)
    with open_scene(path, mine) as scene:  # the file agrees with it: numbers stay as they are stored
        assert scene.sensor == mine and scene.dtype == np.uint16
    other = Sensor("mine", tuple(replace(band, scale=1e-4) for band in bands))
    with pytest.raises(InputError, match=r"says number \* 0.01 \+ 0; sensor 'mine' says \* 0.0001"):
        open_scene(path, other)


def test_notes_are_printed_with_how_many_they_are_said_of(tmp_path, capsys):
    for seed in range(3):
        tif(tmp_path / "in" / f"T32UPU_2023060{seed + 1}T101031.tif", seed=seed, names=["B04"])
    out = build([str(tmp_path / "in")], str(tmp_path / "out"), tile=32, sensor="sentinel2", bands=["B04"], workers=1)
    said = capsys.readouterr().err
    assert "note: 3 sources, such as" in said and "T32UPU_20230601T101031.tif" in said
    notes = pq.read_table(out / "catalogue" / "sources.parquet")["notes"].to_pylist()
    assert len(notes) == 3 and all("no processing baseline" in sentences[0] for sentences in notes)


def test_levels_and_sensors_that_differ_otherwise_are_not_harmonised_together(tmp_path):
    safe(tmp_path / "in", BEFORE)
    safe(tmp_path / "in", AFTER.replace("MSIL2A", "MSIL1C"))
    with pytest.raises(BandError, match="Build a corpus of each"):
        build([str(tmp_path / "in")], str(tmp_path / "out"), tile=32, bands=list(S2), workers=1)


def test_band_marked_alpha_needs_a_sensor_with_one_band_more(tmp_path):
    path = tif(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (4, SIZE, SIZE)).astype("uint8"))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    odd = Sensor("odd", (*get_sensor("rgb").bands, Band("swir", 1600, 90), Band("nir", 840, 90)))
    with pytest.raises(BandError, match="--bands"):
        open_scene(path, odd)
