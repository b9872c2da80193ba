import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_corpus import NAMES, write_corpus
from whole_arrays import write_array

from geomim.corpus.reader import TileArray
from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.data.sampler import Stream
from geomim.data.tiles import TileSet, share_contracts
from geomim.errors import BandError, ConfigError, CorpusError
from geomim.sensors import Band, Sensor, get_sensor

RGB = get_sensor("rgb")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("rgb") / "corpus", nodata=True)


def test_batches_hold_what_the_catalogue_says(corpus):
    module = TileDataModule(str(corpus), batch_size=6, image_size=16, workers=0)
    tiles = Corpus.open(corpus).tiles()
    batches = [batch for batch, _ in zip(module.train_dataloader(), range(3), strict=False)]
    ids = torch.cat([batch["id"] for batch in batches])
    assert sorted(ids.tolist()) == list(range(100, 118))  # one epoch: each training tile once
    for batch in batches:
        rows = np.searchsorted(tiles.ids, batch["id"].numpy())
        assert batch["image"].dtype == torch.uint8
        assert np.array_equal(batch["image"], tiles.read(rows))
        assert np.array_equal(batch["label"], tiles.labels[rows])
        assert np.array_equal(batch["valid"][:, 0], tiles.valid(rows))
    ready = module.on_after_batch_transfer(batches[0], 0)
    assert ready["image"].shape == (6, 3, 16, 16) and ready["valid"].shape == (6, 1, 16, 16)


def test_metres_that_are_trained_at_are_the_median_of_what_catalogues_tell(corpus, tmp_path):
    assert TileDataModule(str(corpus), image_size=16).gsds == {}  # a sensor's would be a guess
    told = write_corpus(
        tmp_path / "told", 8, 24, gsds=[2.5, None, 2.5, 2.0, 9.0, None, 30.0, 30.0]
    )  # the last two are no train
    module = TileDataModule(str(told), image_size=12)
    assert module.gsds == {Corpus.open(told).sensor.name: 5.0}  # tiles of 24 pixels as images of 12
    module.provide(frozenset(), crop_size=16)  # with gaps between their patches
    assert module.gsds == {Corpus.open(told).sensor.name: 3.75}


def test_workers_change_nothing(corpus):
    streams = []
    for workers in (0, 2):
        loader = TileDataModule(str(corpus), batch_size=6, image_size=16, workers=workers).train_dataloader()
        streams.append([batch["id"].tolist() for batch, _ in zip(loader, range(5), strict=False)])
    assert streams[0] == streams[1]


def test_valid_is_left_out_where_everything_is(tmp_path):
    module = TileDataModule(str(write_corpus(tmp_path / "c")), batch_size=4, image_size=16, workers=0)
    assert "valid" not in next(iter(module.train_dataloader()))


def test_two_corpora_have_the_statistics_of_their_mixture(tmp_path):
    paths = [write_corpus(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    corpora = [Corpus.open(path) for path in paths]
    for corpus, shift in zip(corpora, (0.0, 100.0), strict=True):
        object.__setattr__(corpus.contract, "mean", (50.0 + shift,) * 3)
    contracts = share_contracts([TileSet(corpus) for corpus in corpora], [1, 1])
    assert contracts.keys() == {"rgb"}
    joined = contracts["rgb"]
    assert joined.mean == pytest.approx((100.0,) * 3) and joined.std == pytest.approx((6100**0.5,) * 3)
    module = TileDataModule([str(path) for path in paths], batch_size=4, image_size=16, workers=0)
    assert module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)["image"].shape == (4, 3, 16, 16)


def test_corpora_of_other_ranges_are_not_pooled_in_silence(tmp_path):
    paths = [write_corpus(tmp_path / "small"), write_corpus(tmp_path / "wide", sensor=Sensor("wide", RGB.bands))]
    meta = json.loads((paths[1] / "corpus.json").read_text())
    meta["sensor"]["name"] = "rgb"

    def opened(order=(0, 1), **statistics):
        meta["statistics"] |= statistics
        (paths[1] / "corpus.json").write_text(json.dumps(meta))
        return TileDataModule([str(paths[place]) for place in order])

    assert opened().contracts["rgb"].dtype is None and opened().notes == []  # bytes in wider numbers
    assert opened((0,)).contracts["rgb"].dtype == "uint8"
    for statistics in ({"mean": [300.0] * 3}, {"mean": [0.5] * 3, "std": [0.2] * 3}):
        for order in ((0, 1), (1, 0)):
            with pytest.raises(BandError, match=r"of sensor 'rgb', and of other ranges: .*small' holds uint8.*YAML"):
                opened(order, **statistics)
    meta["statistics"] |= {"mean": [3000.0] * 3, "std": [900.0] * 3}
    wider = shutil.copytree(paths[1], tmp_path / "wider") / "corpus.json"
    wider.write_text(json.dumps(meta))
    paths[0] = wider.parent
    (said,) = opened(mean=[100.0] * 3, std=[40.0] * 3).provide(frozenset())
    assert f"'{paths[1]}' varies more than 8 times less than '{paths[0]}' in every band" in said


S2 = ["B02", "B03", "B04"]


@pytest.fixture(scope="module")
def three(tmp_path_factory, corpus):
    """Three sensors, two of them of one name, in tiles of two sizes."""
    root = tmp_path_factory.mktemp("three")
    some = write_corpus(root / "some", sensor=get_sensor("sentinel2", S2), size=32, seed=1)
    most = write_corpus(root / "most", sensor=get_sensor("sentinel2", [*S2, "B08"]), size=24, seed=2)
    return [str(path) for path in (corpus, some, most)]


def test_batches_of_several_sensors_are_each_of_one_and_normalised_by_its_own(three):
    options = {"size": [24, 32, 24], "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    module = TileDataModule(three, batch_size=4, image_size=16, workers=0, **options)
    assert list(module.contracts) == ["rgb", "sentinel2", "sentinel2-2"]
    assert [len(contract.names) for contract in module.contracts.values()] == [3, 3, 4]
    for key, shift in (("sentinel2", 1000.0), ("sentinel2-2", 0.0)):
        module.augment.statistics[key] = tuple(torch.full((n, 1, 1), v) for n, v in ((1, shift), (1, 2.0)))
    seen, positions = {}, set()
    for raw, _ in zip(module.train_dataloader(), range(24), strict=False):
        key, bands = raw["sensor"], len(module.contracts[raw["sensor"]].names)
        batch = module.on_after_batch_transfer(raw, 0)
        assert batch["sensor"] == key and batch["image"].shape == (4, bands, 16, 16)
        positions |= set(batch["position"].tolist())
        seen[key] = batch["image"].mean().item(), raw["image"].float().mean().item()
    assert len(positions) == 96 and seen.keys() == module.contracts.keys()
    assert seen["sentinel2"][0] == pytest.approx((seen["sentinel2"][1] - 1000) / 2, abs=1)
    assert seen["sentinel2-2"][0] == pytest.approx(seen["sentinel2-2"][1] / 2, abs=1)


def test_names_of_sensors_are_the_same_in_a_resumed_run(three):
    usual = get_sensor("sentinel2", S2).bands
    sets = [TileSet(Corpus.open(three[1])) for _ in range(4)]
    for tiles, order in zip(sets, ((0, 1, 2), (2, 1, 0), (0, 1, 2), (1, 2, 0)), strict=True):
        sensor = dataclasses.replace(tiles.contract.sensor, name="my s.2", bands=tuple(usual[place] for place in order))
        tiles.contract = dataclasses.replace(tiles.contract, sensor=sensor)
    for _ in range(2):
        assert list(share_contracts(sets, [1] * 4)) == ["my_s_2", "my_s_2-2", "my_s_2-3"]
        assert [tiles.sensor for tiles in sets] == ["my_s_2", "my_s_2-2", "my_s_2", "my_s_2-3"]


def test_some_bands_are_read_in_the_order_that_is_given(three):
    whole, some = TileDataModule(three[2], image_size=24), TileDataModule(three[2], image_size=24, bands=["B08", "B02"])
    contract, before = some.contracts["sentinel2"], whole.contracts["sentinel2"]
    assert contract.names == ("B08", "B02") and (contract.mean, contract.std) == (
        (before.mean[3], before.mean[0]), (before.std[3], before.std[0])
    )  # fmt: skip
    rows = np.arange(len(whole.sets[0]))
    every, read = (one.sets[0].read(rows)["image"] for one in (whole, some))
    np.testing.assert_array_equal(read, every[:, [3, 0]])
    assert some.settings["bands"] == ["B08", "B02"] != whole.settings["bands"]
    seen = some.pictures(4)["image"]  # of the validation split
    assert seen.shape[1] == 2 and torch.equal(seen, whole.pictures(4)["image"][:, [3, 0]])
    both = TileDataModule(three[1:], size=[32, 24], bands=["B04", "B08", "B02"])  # each has what it has
    assert [contract.names for contract in both.contracts.values()] == [("B04", "B02"), ("B04", "B08", "B02")]
    with pytest.raises(BandError, match=r"data\.bands: no corpus has a band 'B8'; they have red, green, blue, B02"):
        TileDataModule(three, size=[24, 32, 24], bands=["B02", "B8"])
    with pytest.raises(BandError, match=r"'.*' has none of B02; it has red, green, blue"):
        TileDataModule(three, size=[24, 32, 24], bands=["B02"])


def test_pixels_and_statistics_are_those_of_the_very_band(tmp_path):
    sensor = Sensor("air", (Band("p2.5"), Band("p25")))
    corpus = Corpus.open(write_corpus(tmp_path / "c", sensor=sensor))
    corpus.contract = dataclasses.replace(corpus.contract, mean=(5.0, 9.0))
    every, one = (TileSet(corpus, bands=bands) for bands in (None, ["p25"]))
    assert (one.contract.names, one.contract.mean) == (("p25",), (9.0,))
    np.testing.assert_array_equal(one.read(np.arange(4))["image"], every.read(np.arange(4))["image"][:, 1:])


def test_one_band_of_one_sensor_means_one_thing(three, tmp_path):
    other = write_corpus(tmp_path / "c", sensor=dataclasses.replace(get_sensor("sentinel2", S2), offset=-0.1))
    with pytest.raises(
        BandError, match=r"band B02 of sentinel2 is reflectance = .* in '.*some', and .* \+ -0\.1 in '.*c'"
    ):
        TileDataModule([three[1], str(other)], size=[32, 24])


def test_a_band_may_mean_something_of_its_own(tmp_path):
    usual = get_sensor("sentinel2", S2)
    kelvin = dataclasses.replace(usual.bands[2], unit="kelvin")
    own = dataclasses.replace(usual, bands=(*usual.bands[:2], kelvin))
    paths = [str(write_corpus(tmp_path / name, sensor=one)) for name, one in (("a", usual), ("b", own))]
    with pytest.raises(BandError, match=r"band B04 of sentinel2 is reflectance .*a', and kelvin = .*b'"):
        TileDataModule(paths)
    named = dataclasses.replace(own, name="thermal")
    assert len(TileDataModule([paths[0], str(write_corpus(tmp_path / "c", sensor=named))]).contracts) == 2


def test_a_size_is_chosen_a_corpus(three):
    assert [one.tiles.size for one in TileDataModule(three, size=[24, 32, 24]).sets] == [24, 32, 24]
    with pytest.raises(ConfigError, match=r"one size a corpus \(3\); given 2"):
        TileDataModule(three, size=[24, 32])
    with pytest.raises(ConfigError, match=r"24 in .*, 32 in .*some', 24 in .*most'.*--data\.size '\[24,32,24\]'"):
        TileDataModule(three)
    with pytest.raises(CorpusError, match="some' holds no tiles of 24"):
        TileDataModule(three, size=24)


def test_a_batch_says_metres_a_pixel_of_its_crops(three):
    module = TileDataModule(three[1], batch_size=6, image_size=16, workers=0, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)["gsd"].tolist() == [10.0] * 6
    assert module.pictures(5)["gsd"].tolist() == [20.0] * 5 and module.pictures(5)["sensor"] == "sentinel2"
    unknown = TileDataModule(three[0], batch_size=6, image_size=16, workers=0)
    assert next(iter(unknown.train_dataloader()))["gsd"].isnan().all()


@pytest.fixture(scope="module")
def dates(tmp_path_factory):
    """Places of three dates, each tile a ramp of its own place and level of its date; two tiles have none."""
    path = write_corpus(tmp_path_factory.mktemp("dates") / "corpus", count=20, size=24)
    y, x = np.mgrid[:24, :24]
    images = np.stack(
        [(3 * y + 2 * x + 20 * (i // 3) + 5 * (i % 3)).astype("uint8")[None].repeat(3, 0) for i in range(20)]
    )
    shutil.rmtree(path / "tiles.zarr" / "24" / "image")
    write_array(path / "tiles.zarr" / "24" / "image", images, NAMES)
    file = path / "catalogue.parquet"
    table = pq.read_table(file)
    new = {"cluster": [i // 3 if i < 18 else None for i in range(20)], "split": ["train"] * 20}
    for name, values in new.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, file)
    return str(path)


def paired(dates, workers=0, **options):
    module = TileDataModule(dates, batch_size=6, image_size=16, workers=workers, pairs="cluster", **options)
    assert module.provide(frozenset({"date"})) == [
        f"'{dates}': 18 of 20 tiles take part, those of a place that another date shows"
    ]
    return [
        module.on_after_batch_transfer(raw, 0) for raw, _ in zip(module.train_dataloader(), range(30), strict=False)
    ]


def test_two_dates_of_a_place_have_one_crop(dates):
    batches = paired(dates, turn=True)
    partners = set()
    for batch in batches:
        one, two = batch["id"] - 100, batch["views"]["date"]["id"] - 100
        assert (one // 3 == two // 3).all() and (one != two).all()
        partners |= set(zip(one.tolist(), two.tolist(), strict=True))
        step = 5.0 * (two % 3 - one % 3) / 60  # level of the date in deviations: nothing else may differ
        difference = batch["views"]["date"]["image"] - batch["image"]
        torch.testing.assert_close(difference, step[:, None, None, None].expand_as(difference), atol=1e-4, rtol=0)
    assert len(partners) == 18 * 2  # every tile with both of the others


def test_roles_and_partners_are_those_of_the_position(dates):
    plain, workers = paired(dates), paired(dates, workers=2)
    for one, two in zip(plain, workers, strict=True):
        assert torch.equal(one["id"], two["id"]) and torch.equal(one["views"]["date"]["id"], two["views"]["date"]["id"])
    stream = TileDataModule(dates, batch_size=6, image_size=16, workers=0, pairs="cluster")
    stream.provide(frozenset({"date"}))
    positions = torch.cat([batch["position"] for batch in plain]).numpy()
    epoch = Stream([18], None, 6)(positions)[1]
    ids = stream.sets[0].tiles.ids[stream.sets[0].rows[epoch]]
    dealt = torch.cat([batch["id"] for batch in plain]).numpy() == ids
    assert 0.35 < dealt.mean() < 0.65  # half of the pairs are swapped


def test_the_crop_of_another_date_may_be_off_by_some_pixels(dates):
    lags = []
    for batch in paired(dates, shift=2.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip="horizontal"):
        one, two = batch["id"] - 100, batch["views"]["date"]["id"] - 100
        step = 5.0 * (two % 3 - one % 3) / 60
        lags.append(((batch["views"]["date"]["image"] - batch["image"]).mean((1, 2, 3)) - step) * 60)
    lags = torch.cat(lags)  # 3 a row and 2 a column of the ramp
    assert lags.abs().max() <= 10 + 1e-3 and lags.std() > 1


def test_a_second_crop_has_draws_of_its_own(three):
    options = {"batch_size": 6, "image_size": 16, "workers": 0}
    plain, module = TileDataModule(three[1], **options), TileDataModule(three[1], **options)
    assert module.provide(frozenset({"second"})) == []
    raw = next(iter(module.train_dataloader()))
    one, two = plain.augment(raw), module.augment(raw)
    assert torch.equal(one["image"], two["image"]) and "views" not in one
    second = two["views"]["second"]
    assert second.keys() == {"image", "gsd"} and not torch.allclose(second["image"], two["image"], atol=0.1)
    assert not torch.equal(second["gsd"], two["gsd"])
    pictures = module.pictures(4)
    assert torch.equal(pictures["image"], module.pictures(4)["image"]) and pictures["views"].keys() == {"second"}


def test_crops_may_be_larger_than_the_encoder(three):
    module = TileDataModule(three[1], batch_size=6, image_size=16, workers=0)
    module.provide(frozenset(), crop_size=20)
    assert module.augment(next(iter(module.train_dataloader())))["image"].shape[2:] == (20, 20)
    assert module.pictures(3)["image"].shape[2:] == (20, 20)


def test_a_recipe_of_two_dates_is_refused_without_pairs(corpus, dates):
    module = TileDataModule([dates, str(corpus)], image_size=16)
    with pytest.raises(CorpusError, match=r"two tiles of one ground and different days.*--data.pairs"):
        module.provide(frozenset({"date"}))
    with pytest.raises(CorpusError, match=r"'phash'.*--data.pairs"):
        TileDataModule(str(corpus), image_size=16, pairs="phash").provide(frozenset({"date"}))
    for options in ({"pairs": "cluster"}, {"shift": 1.0}):
        with pytest.raises(ConfigError, match=r"data\.pairs and data\.shift are for recipes of two dates"):
            TileDataModule(dates, image_size=16, **options).provide(frozenset({"second"}))


@pytest.mark.parametrize("damage", ["gone", "cut", "garbled"])
def test_tiles_of_a_damaged_shard_are_marked_and_have_no_valid_pixel(tmp_path, damage):
    path = write_corpus(tmp_path / "c", count=24, size=24)
    folder = path / "tiles.zarr" / "24" / "image"
    images = TileArray(folder).read(np.arange(24))
    shutil.rmtree(folder)
    layout = write_array(folder, images, NAMES, compression="zstd")
    module = TileDataModule(str(path), batch_size=18, image_size=16, workers=0)
    shard = folder / layout.file(0)
    good = next(iter(module.train_dataloader()))
    assert "unreadable" not in good and "valid" not in good
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        index = np.frombuffer(shard.read_bytes()[-layout.per_shard * 16 - 4 : -4], "<u8").reshape(-1, 2)
        raw = bytearray(shard.read_bytes())
        start, length = (int(value) for value in index[3])
        raw[start : start + length] = b"\xff" * length
        shard.write_bytes(raw)
    module = TileDataModule(str(path), batch_size=18, image_size=16, workers=0)
    raw = next(iter(module.train_dataloader()))
    lost = raw["unreadable"]
    assert lost.dtype == torch.bool and torch.equal(raw["id"], good["id"])
    assert lost.all() if damage != "garbled" else raw["id"][lost].tolist() == [103]
    batch = module.augment(raw)
    assert torch.equal(batch["valid"].flatten(1).any(1), ~lost) and not batch["image"][lost].any()
    assert torch.equal(batch["image"][~lost], module.augment(good)["image"][~lost])


def test_tiles_that_the_disk_cannot_give_are_marked(tmp_path, monkeypatch):
    tiles, read = TileSet(Corpus.open(write_corpus(tmp_path / "c", count=24, size=24))), os.preadv
    bad = [0]

    def broken(file, buffers, start):
        bad[0] += 1
        if bad[0] in (4, 8):  # the fourth of all tiles, and again where they are read one by one
            raise OSError(errno.EIO, "Input/output error")
        return read(file, buffers, start)

    tiles.read(np.arange(1))  # reads the index
    monkeypatch.setattr(os, "preadv", broken)
    assert tiles.read(np.arange(6))["unreadable"].tolist() == [False] * 3 + [True] + [False] * 2


def test_what_cannot_be_trained_on_is_refused_by_name(tmp_path, corpus):
    with pytest.raises(CorpusError, match="no corpus"):
        TileDataModule(str(tmp_path))
    with pytest.raises(ConfigError, match="one weight a corpus"):
        TileDataModule(str(corpus), weights=[1.0, 2.0])
    for options in ({"jitter": 1.0}, {"jitter": -0.1}, {"shift": -1.0}, {"shift": 8.5}):
        with pytest.raises(ConfigError, match=r"data\.shift in \[0, 8\] and data\.jitter in \[0, 1\)"):
            TileDataModule(str(corpus), **options)
