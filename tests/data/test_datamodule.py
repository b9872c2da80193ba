import numpy as np
import pytest
import torch
from tiny_corpus import write_corpus

from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.data.tiles import contracts_of
from geomim.errors import BandError, ConfigError, CorpusError
from geomim.sensors import get_sensor


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
    (joined,), keys = (lambda found: (found[0].values(), found[1]))(contracts_of(corpora, [1, 1]))
    assert keys == ["rgb", "rgb"]
    assert joined.mean == pytest.approx((100.0,) * 3) and joined.std == pytest.approx((6100**0.5,) * 3)
    module = TileDataModule([str(path) for path in paths], batch_size=4, image_size=16, workers=0)
    assert module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)["image"].shape == (4, 3, 16, 16)


def test_what_cannot_be_trained_on_is_refused_by_name(tmp_path, corpus):
    other = write_corpus(tmp_path / "s2", sensor=get_sensor("sentinel2", ["B02", "B03", "B04"]))
    with pytest.raises(BandError, match="sentinel2"):
        TileDataModule([str(corpus), str(other)])
    with pytest.raises(CorpusError, match="no corpus"):
        TileDataModule(str(tmp_path))
    with pytest.raises(ConfigError, match="one weight a corpus"):
        TileDataModule(str(corpus), weights=[1.0, 2.0])
