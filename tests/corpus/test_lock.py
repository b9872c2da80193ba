import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from pyarrow.dataset import dataset
from whole_arrays import write_array

from geomim.corpus import lock as locks
from geomim.corpus.duplicates.fingerprint import content_hash
from geomim.corpus.lock import read_lock, source_hash, write_lock
from geomim.corpus.shards import write_groups
from geomim.corpus.store import CATALOGUE, write_catalogue, write_json
from geomim.corpus.verify import rebuild, verify
from geomim.errors import CorpusError
from geomim.sensors import get_sensor


def rows(tiles, valid, uris):
    """Catalogue rows of 8 px tiles, `uris` a source each."""
    count = len(tiles)
    plain = {
        "id": np.arange(count),
        "slot": np.arange(count),
        "size": [8] * count,
        "row": np.arange(count) * 8,
        "source": uris,
        "xxh3": [content_hash(tile) for tile in tiles],
        "valid_fraction": valid.mean((1, 2)),
        "kept": np.arange(count) % 3 > 0,
        "reason": ["no" if number % 3 == 0 else "" for number in range(count)],
        "split": ["train"] * count,
    }
    return pa.table({f.name: pa.array(plain.get(f.name, [None] * count), f.type) for f in CATALOGUE}, CATALOGUE)


@pytest.fixture
def corpus(tmp_path):
    """Twelve tiles of three sources; the source in the middle gave none."""
    folder = tmp_path / "corpus"
    random = np.random.default_rng(0)
    tiles = random.integers(0, 60000, (12, 3, 8, 8), dtype=np.uint16)
    valid = np.ones((12, 8, 8), bool)
    valid[5, :3] = False
    files = [tmp_path / f"{name}.tif" for name in "abc"]
    for file in files:
        file.write_bytes(random.bytes(100))
    uris = [str(file) for file in files]
    write_array(folder / "tiles.zarr" / "8" / "image", tiles, ("tile", "band", "y", "x"))
    write_array(folder / "tiles.zarr" / "8" / "valid", valid, ("tile", "y", "x"), fill=True)
    write_groups(folder / "tiles.zarr")
    write_catalogue(folder / "catalogue.parquet", [rows(tiles, valid, [uris[0]] * 5 + [uris[2]] * 7)])
    hashes = [source_hash(uri) for uri in uris]
    sources = pa.table({"uri": uris, "bytes": [h[0] for h in hashes], "xxh3": [h[1] for h in hashes]})
    header = {"geomim_version": "0", "recipe": {"source": uris}, "versions": {"numpy": "0"}}
    write_lock(folder / "corpus.lock", folder / "catalogue.parquet", sources, header)
    write_json(
        folder / "corpus.json",
        {
            "format_version": 1,
            "sensor": get_sensor("rgb").to_dict(),
            "statistics": {"mean": [0.0] * 3, "std": [1.0] * 3},
            "licences": [],
            "attributions": [],
            "sizes": {"8": {"tiles": 12}},
            "classes": [],
            "recipe": {},
            "lock": xxhash.xxh3_128_hexdigest((folder / "corpus.lock").read_bytes()),
        },
    )
    return folder


def test_a_hash_tells_files_and_folders_apart(tmp_path):
    (tmp_path / "f" / "in").mkdir(parents=True)
    (tmp_path / "f" / "in" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"12345")
    size, digest = source_hash(str(tmp_path / "b"))
    assert size == 5 and digest == xxhash.xxh3_128_hexdigest(b"12345")
    one = source_hash(str(tmp_path / "f"))
    assert one[0] == 5 and one[1] != digest
    (tmp_path / "f" / "in" / "a").rename(tmp_path / "f" / "in" / "b")
    assert source_hash(str(tmp_path / "f")) != one  # names count
    assert source_hash("s3://bucket/a.tif") is None and source_hash(str(tmp_path / "none")) is None


def test_a_file_larger_than_a_block_is_read_piece_by_piece(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    whole = source_hash(str(tmp_path / "a"))
    monkeypatch.setattr(locks, "_BLOCK", 7)
    assert source_hash(str(tmp_path / "a")) == whole == (200, xxhash.xxh3_128_hexdigest(bytes(range(200))))


def test_a_lock_says_each_source_in_a_line(corpus):
    head, lines = read_lock(corpus)
    assert head["tiles"] == 12 and head["sources"] == 3 and set(head["digests"]) == {"content", "decisions"}
    lines = list(lines)
    assert [line.tiles for line in lines] == [5, 0, 7] and [line.bytes for line in lines] == [100] * 3
    assert len({line.content for line in lines}) == 3
    assert len((corpus / "corpus.lock").read_text().splitlines()) == 4


def test_digests_do_not_depend_on_how_the_catalogue_is_cut(corpus, tmp_path):
    table = pq.read_table(corpus / "catalogue.parquet")
    pieces = [table.slice(0, 2), table.slice(2, 7), table.slice(9)]
    for name, some in {"one": [table], "three": pieces}.items():
        write_catalogue(tmp_path / name, some)
    whole, cut = (list(locks.digests(dataset(tmp_path / name, CATALOGUE))) for name in ("one", "three"))
    assert whole == cut and [line[1] for line in whole] == [5, 7]


def test_a_sound_corpus_is_verified(corpus, capsys):
    verify(str(corpus), sources=True)
    assert "12 tiles, 3 sources" in capsys.readouterr().out


def test_a_catalogue_and_its_sources_must_fit(corpus):
    nobody = pa.table({"uri": ["x.tif"], "bytes": [1], "xxh3": ["a"]})
    with pytest.raises(CorpusError, match=r"tiles of '.*a\.tif', which its sources lack"):
        write_lock(corpus / "other.lock", corpus / "catalogue.parquet", nobody, {"recipe": {}, "versions": {}})
    assert not (corpus / "other.lock").exists()


def test_changed_pixels_are_named(corpus):
    shard = corpus / "tiles.zarr" / "8" / "image" / "c" / "0" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[7 * 384 + 5] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(CorpusError, match=r"what its lock says: pixels of tile 7 of '.*c\.tif' were.* \(tiles: 1\)"):
        verify(str(corpus))
    shard.unlink()
    with pytest.raises(CorpusError, match=r"shard '.*c/0/0/0/0' is missing.*\(shards: 1\)"):
        verify(str(corpus))


def test_a_changed_mask_of_validity_is_found(corpus):
    shard = corpus / "tiles.zarr" / "8" / "valid" / "c" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[0] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(CorpusError, match=r"valid pixels of tile 5 .*\(tiles: 1\)"):
        verify(str(corpus))


@pytest.mark.parametrize(("column", "words"), [("reason", "decisions about"), ("xxh3", "rows of")])
def test_a_changed_catalogue_is_found(corpus, column, words):
    table = pq.read_table(corpus / "catalogue.parquet")
    values = table[column].to_pylist()
    values[6] = "0" * 32
    place = table.column_names.index(column)
    write_catalogue(
        corpus / "catalogue.parquet", [table.set_column(place, CATALOGUE.field(column), pa.array(values, pa.string()))]
    )
    with pytest.raises(CorpusError, match=rf"{words} '.*c\.tif'"):
        verify(str(corpus))


def test_a_catalogue_or_lock_of_another_corpus_is_refused(corpus):
    table = pq.read_table(corpus / "catalogue.parquet")
    write_catalogue(corpus / "catalogue.parquet", [table.slice(0, 9)])
    with pytest.raises(CorpusError, match="belongs to another corpus: it has 9 rows, and the lock 12 tiles"):
        verify(str(corpus))
    text = (corpus / "corpus.lock").read_text()
    (corpus / "corpus.lock").write_text(text.replace('"geomim_version": "0"', '"geomim_version": "1"'))
    with pytest.raises(CorpusError, match="is not the lock that"):
        verify(str(corpus))
    (corpus / "corpus.lock").unlink()
    with pytest.raises(CorpusError, match=r"is no corpus\.lock"):
        verify(str(corpus))


def test_changed_and_vanished_sources_are_named(corpus, tmp_path):
    (tmp_path / "a.tif").write_bytes(b"other")
    (tmp_path / "b.tif").unlink()
    verify(str(corpus))  # the corpus itself is as it was
    with pytest.raises(CorpusError, match=r"a\.tif' was changed; source '.*b\.tif' vanished \(sources: 2\)"):
        verify(str(corpus), sources=True)
    with pytest.raises(CorpusError, match=r"cannot be rebuilt: .*\(sources: 2\)"):
        rebuild(str(corpus), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_damaged_or_newer_lock_is_refused(corpus):
    file = corpus / "corpus.lock"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-9]]))
    with pytest.raises(CorpusError, match="damaged in line 2"):
        list(read_lock(file)[1])
    file.write_text(json.dumps(json.loads(lines[0]) | {"lock_version": 9}))
    with pytest.raises(CorpusError, match="version 9: upgrade"):
        read_lock(file)
    file.write_text("no lock")
    with pytest.raises(CorpusError, match=r"is no corpus\.lock"):
        read_lock(os.fspath(corpus))
