import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_corpus import NAMES, write_corpus
from whole_arrays import write_array

from geomim.corpus.shards import write_groups
from geomim.corpus.store import Corpus
from geomim.data import masked as room
from geomim.data.labelled import Labelled, LabelledData
from geomim.data.masked import choose_patches, open_masked, patch_labels, spread
from geomim.errors import CorpusError, InputError
from geomim.sensors import SENSORS


def test_values_of_the_keys_take_turns():
    kinds = np.repeat([0, 1, 2], [90, 8, 2])
    places = np.arange(100) % 5
    chosen = spread(100, 30, [kinds, places])
    assert np.bincount(kinds[chosen]).tolist() == [20, 8, 2]
    assert np.bincount(places[chosen][kinds[chosen] == 0]).tolist() == [4] * 5
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, spread(100, 30, [kinds, places]))
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


def test_tiles_come_with_masks_and_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "TILES", 10)
    images = open_masked(str(masked(tmp_path / "corpus")), "train", "val", None)
    assert len(images.train) == 10 and len(images.test) == 6 and images.name == "patches of corpus corpus"
    masks, valid = images.train.masks(np.array([3, 0]))
    assert (masks[:, :12].numpy() == images.train.labels[[3, 0], None, None]).all() and (masks[:, 12:] == 255).all()
    assert np.array_equal(valid, images.train.read(np.array([3, 0]))[0][1])
    assert images.train.sources.tolist() == [0] * 10
    assert images.notes == ("of the 18 tiles of 'train' 10 are used, in which scenes share evenly",)


def test_names_of_sources_need_not_fit_into_one_array(tmp_path, monkeypatch):
    """24 tiles whose sources are 100 MB of text each, which memory holds twice."""
    path, table = str(masked(tmp_path / "corpus")), Corpus.table
    texts = [pa.array([letter * 100_000_000]) for letter in "ba"]

    def swollen(corpus, columns, *more, **others):
        if columns != ["source"]:
            return table(corpus, columns, *more, **others)
        return pa.table({"source": pa.chunked_array([texts[tile % 2] for tile in range(24)])})

    monkeypatch.setattr(Corpus, "table", swollen)
    assert open_masked(path, "train", "val", None).train.sources.tolist() == [0, 1] * 9


def test_a_patch_is_of_the_class_that_covers_half_of_what_has_one():
    mask = torch.full((1, 4, 12), 255)
    valid = torch.ones(1, 4, 12, dtype=torch.bool)
    mask[0, :, :2], mask[0, :2, 2:4], mask[0, 2:, 2:4] = 1, 0, 2  # 8, 4, 4 of 16: half
    mask[0, :, 4:6], mask[0, :1, 6:8], mask[0, 1:, 6:8] = 1, 0, 2  # 8 of class 1, but half of them is nodata
    valid[0, :2, 4:6] = False
    mask[0, 0, 8:11] = 2  # three pixels that have a class, all of one
    assert patch_labels(mask, valid, (1, 3), 3).tolist() == [[1, 2, 2]]
    mask[0, :, 4:8] = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2]])
    assert patch_labels(mask, torch.ones_like(valid), (1, 3), 3).tolist() == [[1, -1, 2]]  # 5, 5 and 6 of 16
    valid[0, :, 8:] = torch.arange(4)[:, None] < 1
    assert patch_labels(mask, valid, (1, 3), 3)[0, 2] == -1  # more nodata than image
    mask[0, :, :4], mask[0, 0, :4] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    mask[0, :, 4:8] = torch.tensor([0, 0, 1, 2])
    assert patch_labels(mask, torch.ones_like(valid), (1, 3), 3)[0, :2].tolist() == [0, 0]
    mask[0, :, :8] = torch.tensor([2, 2, 1, 1] * 2)
    assert patch_labels(mask, torch.ones_like(valid), (1, 3), 3)[0, :2].tolist() == [-1, -1]  # two cover half
    assert patch_labels(torch.full_like(mask, 255), torch.ones_like(valid), (2, 3), 3).eq(-1).all()


def test_what_has_no_masks_is_refused(tmp_path):
    for path in (write_corpus(tmp_path / "plain"), tmp_path):
        with pytest.raises(CorpusError, match=r"has no masks: .*--masks"):
            open_masked(str(path), "train", "val", None)
    with pytest.raises(
        CorpusError, match=r"no tile in split 'test': name others .--train-split, --test-split. of train, val"
    ):
        open_masked(str(masked(tmp_path / "corpus")), "train", "test", None)
    with pytest.raises(InputError, match="both 'train'"):
        open_masked(str(tmp_path / "corpus"), "train", "train", None)


def images(train: np.ndarray, test: np.ndarray) -> LabelledData:
    """Masks `(N, 8, 8)` of three classes and two sources."""

    def part(masks: np.ndarray) -> Labelled:
        def read(rows):
            return torch.from_numpy(masks[rows]), torch.ones(len(rows), 8, 8, dtype=torch.bool)

        return Labelled(np.full(len(masks), -1), lambda rows: [], masks=read, sources=np.arange(len(masks)) % 2)

    return LabelledData("data", ("sea", "sand", "town"), SENSORS["rgb"], None, part(train), part(test))


def test_rare_classes_are_all_fitted_on_and_scores_are_of_patches_as_they_come(monkeypatch):
    monkeypatch.setattr(room, "PATCHES", 40)
    masks = np.zeros((30, 8, 8), np.uint8)
    masks[7, :4, :4], masks[9] = 1, 2
    chosen = choose_patches(images(masks, masks), (2, 2))
    labels, groups, counts = chosen["train"]
    assert torch.bincount(labels[labels >= 0]).tolist() == [35, 1, 4] and counts.tolist() == [115, 1, 4]
    assert groups.tolist() == [row % 2 for row, kinds in enumerate(labels.tolist()) for kind in kinds if kind >= 0]
    labels, groups, _ = chosen["test"]
    tiles = (labels >= 0).nonzero()[:, 0].unique(return_inverse=True)
    assert (labels >= 0).sum() == 40 and torch.equal(groups, tiles[1]) and len(tiles[0]) < 30


def test_a_class_that_none_was_fitted_on_is_not_scored():
    train = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2) % 2
    test = train.copy()
    test[0, :4], test[1] = 2, 2
    labels, groups, counts = choose_patches(images(train, test), (2, 2))["test"]
    assert labels.tolist() == [[-1, -1, 0, 0], [-1] * 4, [0] * 4, [1] * 4] and counts.tolist() == [6, 4, 6]
    assert groups.tolist() == [0] * 2 + [1] * 4 + [2] * 4


def test_masks_that_tell_nothing_apart_are_refused():
    one, two = np.zeros((4, 8, 8), np.uint8), np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2) % 2
    with pytest.raises(InputError, match=r"data, train, show sea alone: expected several classes; .*--train-split"):
        choose_patches(images(one, two), (2, 2))
    with pytest.raises(InputError, match=r"data, test, show no class"):
        choose_patches(images(two, np.full_like(one, 255)), (2, 2))
    with pytest.raises(InputError, match=r"data, test, show no class to score.*--test-split"):
        choose_patches(images(two, np.full_like(one, 2)), (2, 2))
    mixed = np.full_like(one, 255)
    mixed[2, :4], mixed[2, 4:] = 0, 1
    with pytest.raises(InputError, match=r"are of one tile: expected two; .*geomim corpus split"):
        choose_patches(images(mixed, two), (2, 2))
    choose_patches(images(two, one), (2, 2))  # a test split of one class can be scored
