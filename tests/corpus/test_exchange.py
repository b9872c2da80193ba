import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow.compute as pc
import pytest
import shapely
import webdataset
from parts_corpus import textures, write_parts

from geomim.corpus import assemble
from geomim.corpus.exchange import pack, unpack
from geomim.corpus.lock import read_lock
from geomim.corpus.store import Corpus
from geomim.corpus.verify import verify
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


@pytest.mark.parametrize("kept_only", [True, False])
def test_an_unpacked_corpus_has_the_same_tiles(corpus, tmp_path, kept_only):
    shards = pack(str(corpus), str(tmp_path / "shards"), per_shard=15, kept_only=kept_only)
    assert sorted(file.name for file in shards.glob("*.tar")) == [f"tiles-{number:06d}.tar" for number in range(3)]
    again = unpack([str(shards)], str(tmp_path / "again"))
    before, after = Corpus.open(corpus), Corpus.open(again)
    rows = before.table(where=pc.field("kept") if kept_only else None)
    same = [name for name in rows.column_names if name != "slot"]
    assert after.table(same).equals(rows.select(same))
    assert after.classes == before.classes and after.contract.licences == before.contract.licences
    np.testing.assert_allclose(after.contract.mean, before.contract.mean, rtol=1e-12)
    np.testing.assert_allclose(after.contract.std, before.contract.std, rtol=1e-12)
    one, two = before.tiles(), after.tiles()
    every = np.arange(38)
    for what in ("read", "valid", "mask"):
        np.testing.assert_array_equal(getattr(one, what)(every), getattr(two, what)(every))
    verify(str(again))
    assert [line.uri for line in read_lock(again)[1]] == ["0.tif", "1.tif", "2.tif", "3.tif"]


def test_copies_with_other_masks_keep_their_own(tmp_path):
    tiles = textures(4)
    tiles[1:] = tiles[0]
    masks = np.zeros((4, 32, 32), np.uint8)
    masks[2], masks[3] = 1, 255
    corpus = write_parts(tmp_path / "corpus", tiles, masks=masks, classes=("a", "b"))
    shards = pack(str(corpus), str(tmp_path / "shards"), kept_only=False)
    opened = Corpus.open(unpack([str(shards)], str(tmp_path / "again")))
    slots = opened.table(["slot"])["slot"].to_pylist()
    assert slots == [0, 0, 1, 2]
    assert [int(opened.array("mask", 32).read([slot])[0, 0, 0]) for slot in slots] == [0, 0, 1, 255]


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


def rewrite(file, change):
    """Write a tar again with some members changed: name and bytes in, name and bytes or a TarInfo out."""
    with tarfile.open(file) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info, data = change(name, data)
            info = info if isinstance(info, tarfile.TarInfo) else tarfile.TarInfo(info)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_paths_that_lead_out_are_refused(corpus, tmp_path, kind):
    shards = pack(str(corpus), str(tmp_path / "shards"))
    bad = {"parent": "../../evil.json", "absolute": "/tmp/evil.json", "link": "000000000001.json"}[kind]
    link = tarfile.TarInfo(bad)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"

    def change(name, data):
        if name != "000000000001.json":
            return name, data
        return (link, b"") if kind == "link" else (bad, data)

    rewrite(shards / "tiles-000000.tar", change)
    with pytest.raises(InputError, match=rf"tiles-000000\.tar' holds '{bad}', which leads out of it or is no file"):
        unpack([str(shards)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.json").exists()


def test_changed_and_damaged_archives_are_named(corpus, tmp_path):
    shards = pack(str(corpus), str(tmp_path / "shards"))
    file = shards / "tiles-000000.tar"
    whole = file.read_bytes()

    def flip(name, data):
        return name, data[:-1] + b"\x07" if name == "000000000005.image.npy" else data

    rewrite(file, flip)
    with pytest.raises(InputError, match=r"tiles-000000\.tar': the pixels of tile '000000000005' were changed"):
        unpack([str(file)], str(tmp_path / "out"))
    for damaged in (whole[: len(whole) // 2], b"no tar at all", b""):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"tiles-000000\.tar' is no shard"):
            unpack([str(file)], str(tmp_path / "out"))
    file.write_bytes(whole)
    rewrite(file, lambda name, data: (name, np.array([{}], object).dumps() if name.endswith("npy") else data))
    with pytest.raises(InputError, match=r"is no shard|pickle"):
        unpack([str(file)], str(tmp_path / "out"))
    with pytest.raises(InputError, match="no folder of"):
        unpack([str(tmp_path / "none.tar")], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_shards_of_two_corpora_are_not_mixed(corpus, tmp_path):
    one = pack(str(corpus), str(tmp_path / "one"))
    other = write_parts(tmp_path / "other", textures(4, seed=9))
    two = pack(str(other), str(tmp_path / "two"))
    with pytest.raises(CorpusError, match="of several corpora"):
        unpack([str(one), str(two)], str(tmp_path / "out"))
    with pytest.raises(CorpusError, match="or one twice"):
        unpack([str(one), str(one)], str(tmp_path / "out"))
    assert json.loads((one / "corpus.json").read_text())["kept_only"] is True
