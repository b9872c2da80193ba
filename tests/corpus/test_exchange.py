import hashlib

import numpy as np
import pytest
import shapely
import webdataset
from parts_corpus import textures, write_parts

from geomim.corpus import assemble
from geomim.corpus.exchange import pack
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(assemble, "write_report", lambda folder: None)


def placed(count):
    """Georeference and other columns that JSON does not know as they are."""
    import datetime

    boxes = [shapely.box(number, 50, number + 1, 51) for number in range(count)]
    return {
        "geometry": [shapely.to_wkb(box, byte_order=1) for box in boxes],
        "bbox": [dict(zip(("xmin", "ymin", "xmax", "ymax"), box.bounds, strict=True)) for box in boxes],
        "transform": [[10.0, 0.0, 500000.0 + 320 * number, 0.0, -10.0, 5600000.0] for number in range(count)],
        "epsg": [32632] * count,
        "time": [datetime.datetime(2020, 5, 1, 10, 30, 1, 25)] * count,
        "captions": [["a field", "Äcker"]] * count,
        "boxes": [[{"polygon": [0.0, 1, 2, 1, 2, 3, 0, 3], "label": "ship"}]] * count,
        "licence": ["CC-BY-4.0"] * count,
        "attribution": ["somebody"] * count,
        "label": ["a", "b"] * (count // 2),
    }


@pytest.fixture
def corpus(tmp_path):
    """Forty tiles with everything; 7 is a copy of 3, and 9 has too few valid pixels."""
    tiles = textures(40).astype(np.uint16)
    tiles[7] = tiles[3]
    valid = np.ones((40, 32, 32), bool)
    valid[9, 5:] = False
    valid[20, :3] = False
    masks = np.random.default_rng(0).integers(0, 2, (40, 32, 32), dtype=np.uint8)
    masks[7], masks[30:] = masks[3], 255
    sources = [f"{number // 10}.tif" for number in range(40)]
    return write_parts(tmp_path / "corpus", tiles, sources, valid, masks, ("a", "b"), **placed(40))


def bytes_of(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_webdataset_reads_the_shards(corpus, tmp_path):
    shards = pack(str(corpus), str(tmp_path / "shards"), per_shard=20)
    files = sorted(str(file) for file in shards.glob("*.tar"))
    samples = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode())
    tiles = Corpus.open(corpus).tiles()
    assert len(samples) == 38
    np.testing.assert_array_equal(samples[0]["image.npy"], tiles.read([0])[0])
    assert samples[0]["json"]["label"] == "a" and samples[0]["__key__"] == "000000000000"
    masked = [sample["__key__"] for sample in samples if "valid.npy" in sample]
    assert masked == ["000000000020"]


def test_packing_repeats_its_bytes_and_goes_on(corpus, tmp_path):
    one = pack(str(corpus), str(tmp_path / "one"), per_shard=15)
    two = pack(str(corpus), str(tmp_path / "two"), per_shard=15)
    assert bytes_of(one) == bytes_of(two)
    (two / "tiles-000001.tar").unlink()
    stamp = (two / "tiles-000000.tar").stat().st_mtime_ns
    pack(str(corpus), str(two), per_shard=15)
    assert bytes_of(one) == bytes_of(two) and (two / "tiles-000000.tar").stat().st_mtime_ns == stamp
    with pytest.raises(CorpusError, match="holds something else"):
        pack(str(corpus), str(two), per_shard=10)
    with pytest.raises(InputError, match="1 or more; given 0"):
        pack(str(corpus), str(tmp_path / "three"), per_shard=0)
