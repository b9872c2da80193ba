import numpy as np
import pytest
from tiny_corpus import NAMES, write_corpus
from whole_arrays import write_array

from geomim.corpus.shards import write_groups
from geomim.data.masked import open_masked, spread
from geomim.errors import CorpusError, InputError


def test_values_of_the_keys_take_turns():
    kinds = np.repeat([0, 1, 2], [90, 8, 2])
    places = np.arange(100) % 5
    chosen = spread(100, 30, [kinds, places])
    assert np.bincount(kinds[chosen]).tolist() == [20, 8, 2]
    assert np.bincount(places[chosen][kinds[chosen] == 0]).tolist() == [4] * 5
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, spread(100, 30, [kinds, places]))
    assert not np.array_equal(chosen, spread(100, 30, [kinds, places], seed=1))
    assert spread(100, 500, [kinds]).tolist() == list(range(100)) and len(spread(0, 5, [kinds[:0]])) == 0


def test_without_turns_and_with_one_row_a_value_chance_decides():
    for keys in ([], [np.arange(2000)]):
        chosen = spread(2000, 500, keys)
        assert len(chosen) == 500 and abs(chosen.mean() - 1000) < 100


def masked(path):
    """The tiny corpus with masks of halves: above the tile's own class, below none."""
    write_corpus(path, count=24, size=24, nodata=True)
    mask = np.full((24, 24, 24), 255, np.uint8)
    mask[:, :12] = (np.arange(24) % 2)[:, None, None]
    write_array(path / "tiles.zarr" / "24" / "mask", mask, (NAMES[0], *NAMES[2:]))
    write_groups(path / "tiles.zarr")
    return path


def test_tiles_come_with_masks_and_sources(tmp_path):
    images = open_masked(masked(tmp_path / "corpus"), "train", "val", None, most=10)
    assert len(images.train) == 10 and len(images.test) == 6 and images.name == "patches of corpus corpus"
    assert sorted(images.train.labels.tolist()) == [0] * 5 + [1] * 5
    masks, valid = images.train.masks(np.array([3, 0]))
    assert (masks[:, :12].numpy() == images.train.labels[[3, 0], None, None]).all() and (masks[:, 12:] == 255).all()
    assert np.array_equal(valid, images.train.read(np.array([3, 0]))[0][1])
    assert images.train.sources.tolist() == [0] * 10


def test_what_has_no_masks_is_refused(tmp_path):
    plain = write_corpus(tmp_path / "plain")
    with pytest.raises(CorpusError, match=r"plain' has no masks.*--masks"):
        open_masked(plain, "train", "val", None, 10)
    with pytest.raises(InputError, match=r"is no corpus.*--masks"):
        open_masked(tmp_path, "train", "val", None, 10)
    corpus = masked(tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"no tile in split 'test'; it has train, val"):
        open_masked(corpus, "train", "test", None, 10)
    with pytest.raises(InputError, match="both 'train'"):
        open_masked(corpus, "train", "train", None, 10)
