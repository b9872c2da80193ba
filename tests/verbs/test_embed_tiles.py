import json
import os
import signal
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import tiny_encoder
from embedded_corpus import checkpoint, vectors
from rasterio.transform import from_origin

from geomim.cli import main
from geomim.corpus.changes import decide
from geomim.corpus.store import Corpus
from geomim.errors import ConfigError, CorpusError, InputError
from geomim.evaluate.saved import fingerprint
from geomim.maps.embeddings.patches import open_patches
from geomim.maps.embeddings.vectors import TileFile
from geomim.models.weights import read_encoder
from geomim.verbs import tile_vectors
from geomim.verbs.embed import embed


def matrix(path: Path) -> np.ndarray:
    return np.concatenate([block for *_, block in TileFile(path).blocks()])


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(1) / lengths


@pytest.mark.parametrize(("dtype", "near"), [("float16", 1e-6), ("int8", 5e-5)])
def test_a_row_a_tile_with_the_vector_that_stands_beside_the_corpus(corpus, encoder, tmp_path, dtype, near, capsys):
    out = embed(str(corpus), encoder, str(tmp_path / "new" / "tiles.parquet"), dtype, device="cpu", batch=5)
    assert "24 tiles, 48 values each" in capsys.readouterr().out
    ids, expected = vectors(corpus)
    assert 1 - cosines(matrix(out), expected).min() < near
    frame, catalogue = gpd.read_parquet(out), Corpus.open(corpus).table().to_pandas()
    assert [*frame.columns] == ["id", "source", "split", "kept", "time", "gsd", "geometry", "bbox", "embedding"]
    for name in ("id", "source", "split", "kept"):
        assert frame[name].tolist() == catalogue[name].tolist()
    assert frame["id"].tolist() == ids.tolist()
    kind = pq.read_schema(out).field("embedding").type
    assert (kind.list_size, kind.value_type) == (48, "halffloat" if dtype == "float16" else "int8")
    assert [one.name for one in out.parent.iterdir()] == ["tiles.parquet"]  # nothing is left of the work


def test_metadata_tell_what_made_the_vectors(corpus, encoder, tmp_path):
    out = embed(str(corpus), encoder, str(tmp_path / "tiles.parquet"), "int8", device="cpu")
    said = json.loads(pq.read_schema(out).metadata[b"embedding"])
    beside, own = json.loads((corpus / "embeddings" / "a.json").read_text()), said["geomim"]
    for key in ("encoder", "contract", "image_size", "pool", "tiles"):
        assert own[key] == beside[key]
    assert own["source"] == str(corpus.resolve()) and own["dtype"] == "int8" and len(own["scale"]) == 48
    assert (said["geoemb:type"], said["geoemb:dimensions"], said["geoemb:data_type"]) == ("chip", 48, "int8")
    assert said["geoemb:model"] == Path(encoder).resolve().as_uri()
    assert said["geoemb:chip_layout"] == {"layout_type": "irregular", "chip_size": [64, 64]}
    stored = np.concatenate([*TileFile(out).kept()])
    assert np.abs(stored).max(0).tolist() == [127] * 48  # each value uses all of its range, none is cut off


def test_tiles_and_patches_name_the_encoder_that_was_read_whatever_bands_it_sees(corpus, tmp_path):
    file = tmp_path / "any.ckpt"
    tiny_encoder.checkpoint(file, tiny_encoder.NAIP, spectral=True, depth=1)
    made_by = fingerprint(read_encoder(str(file)).encoder)
    tiles = TileFile(embed(str(corpus), str(file), str(tmp_path / "tiles.parquet"), device="cpu"))
    pixels = np.random.default_rng(0).integers(60, 140, (4, 64, 64)).astype(np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": 64, "width": 64}
    with rasterio.open(tmp_path / "s.tif", "w", transform=from_origin(0, 64, 1, 1), **profile) as raster:
        raster.write(pixels)
    out = embed(str(tmp_path / "s.tif"), str(file), str(tmp_path / "patches.tif"), sensor="naip", device="cpu")
    with open_patches(out) as patches:
        assert tiles.card["encoder"] == patches.card["encoder"] == made_by
        assert tiles.card["contract"] != patches.card["contract"]  # which says what it was made ready for


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_duckdb_compares_vectors(corpus, encoder, tmp_path, dtype):
    out = embed(str(corpus), encoder, str(tmp_path / "tiles.parquet"), dtype, device="cpu")
    scale = TileFile(out).rounding.scale
    scale = [1.0] * 48 if scale is None else scale.tolist()
    found = duckdb.sql(
        f"with t as (select id, unnest(embedding) as e, unnest({scale}) as s, unnest(range(48)) as i from '{out}'), "
        "v as (select id, list(e * s order by i)::float[48] as e from t group by id) "
        "select a.id, array_cosine_similarity(a.e, b.e) as c from v a, v b where b.id = 3 order by a.id"
    ).fetchnumpy()
    whole = matrix(out)
    expected = cosines(whole, np.broadcast_to(whole[3], whole.shape))
    assert found["c"] == pytest.approx(expected, abs=1e-4) and found["id"].tolist() == list(range(24))


def test_what_was_stopped_goes_on_and_comes_to_the_same_bytes(corpus, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(tile_vectors, "CHUNK", 5)
    whole = embed(str(corpus), encoder, str(tmp_path / "whole.parquet"), device="cpu", batch=5)
    original, done = tile_vectors.TileEncoder.__call__, []

    def counted(self, tiles):
        done.append(len(tiles))
        if len(done) == 3:
            raise KeyboardInterrupt
        return original(self, tiles)

    monkeypatch.setattr(tile_vectors.TileEncoder, "__call__", counted)
    out = tmp_path / "tiles.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed(str(corpus), encoder, str(out), device="cpu", batch=5)
    assert not out.exists()
    embed(str(corpus), encoder, str(out), device="cpu", batch=5)
    assert done == [5, 5, 5, 5, 5, 4] and out.read_bytes() == whole.read_bytes()
    embed(str(corpus), encoder, str(out), device="cpu", batch=5)
    assert len(done) == 6  # all there already


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_killed_at_any_moment_it_goes_on(corpus, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(tile_vectors, "CHUNK", 5)
    whole = embed(str(corpus), encoder, str(tmp_path / "whole.parquet"), device="cpu", batch=5)
    out, original, killed = tmp_path / "tiles.parquet", os.replace, 0

    def until(left: list[int]) -> None:
        def replace(*paths):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*paths)

        os.replace = replace
        embed(str(corpus), encoder, str(out), device="cpu", batch=5)

    for moment in (0, 1, 3, 0, 2, 0):  # files that get their name before the end
        if (child := os.fork()) == 0:
            until([moment])
            os._exit(0)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not out.exists()
    assert killed == 6
    embed(str(corpus), encoder, str(out), device="cpu", batch=5)
    assert out.read_bytes() == whole.read_bytes()


def test_decisions_made_anew_are_written_without_encoding(corpus, encoder, tmp_path, monkeypatch, capsys):
    out = embed(str(corpus), encoder, str(tmp_path / "tiles.parquet"), "int8", device="cpu")
    before = matrix(out)
    decide(str(corpus), where="id <> 5")
    monkeypatch.setattr(tile_vectors.TileEncoder, "__call__", None)
    embed(str(corpus), encoder, str(out), "int8", device="cpu")
    assert "decided anew" in capsys.readouterr().out
    assert gpd.read_parquet(out).set_index("id")["kept"][5] == False  # noqa: E712  numpy's
    assert np.array_equal(matrix(out), before)


def test_another_encoder_replaces_aloud_and_another_corpus_is_refused(corpus, embedded, encoder, tmp_path, capsys):
    out = embed(str(corpus), encoder, str(tmp_path / "tiles.parquet"), device="cpu")
    before = matrix(out)
    embed(str(corpus), checkpoint(tmp_path / "b.ckpt", seed=1), str(out), device="cpu")
    assert f"'{out}' is replaced (checkpoint {encoder} -> " in capsys.readouterr().out
    assert not np.allclose(matrix(out), before, atol=0.01)
    now = out.read_bytes()
    with pytest.raises(ConfigError, match=rf"holds vectors of '{corpus.resolve()}', not of '{embedded.resolve()}'"):
        embed(str(embedded), encoder, str(out), device="cpu")
    other = tmp_path / "other.parquet"
    gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)]).to_parquet(other)
    with pytest.raises(ConfigError, match="is there, and holds no vectors of tiles: name another file"):
        embed(str(corpus), encoder, str(other), device="cpu")
    assert out.read_bytes() == now


def test_a_full_disk_is_told_and_what_was_there_stays(corpus, encoder, tmp_path, monkeypatch, capsys):
    out = embed(str(corpus), encoder, str(tmp_path / "tiles.parquet"), device="cpu")
    before, saved = out.read_bytes(), np.save

    def full(file, values):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    arguments = ["embed", str(corpus), "--model", encoder, "--image_size", "64", "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "cannot be written (No space left on device): make room and run it again" in said
    assert out.read_bytes() == before
    monkeypatch.setattr(np, "save", saved)
    assert main(arguments) == 0 and out.read_bytes() != before


def test_a_corpus_without_tiles_and_a_second_process_are_refused(corpus, encoder, tmp_path, monkeypatch):
    out = str(tmp_path / "tiles.parquet")
    with tile_vectors.hold(tmp_path / ".tiles.parquet.work", out), pytest.raises(InputError, match="another process"):
        embed(str(corpus), encoder, out, device="cpu")
    monkeypatch.setattr(tile_vectors, "stored", lambda corpus: corpus.table(["id"]).slice(0, 0))
    with pytest.raises(CorpusError, match="holds no tile with pixels: there is nothing to embed"):
        embed(str(corpus), encoder, out, device="cpu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"out": "tiles.csv"}, r"--out: .*\.parquet or \.tif or \.tiff or \.zarr"),
        ({"out": "patches.tif"}, "is a corpus, whose tiles are written to .parquet"),
        ({"source": __file__}, r"is no corpus; patches of a scene are written to \.tif or \.zarr"),
        ({"source": __file__, "out": "p.tif", "pool": "class"}, "--pool and --image_size are of tiles"),
        ({"source": __file__, "out": "p.tif", "image_size": 64}, "--pool and --image_size are of tiles"),
        ({"overlap": 0.25}, "--bands and --overlap are of scenes"),
        ({"bands": ["red"]}, "--bands and --overlap are of scenes"),
        ({"quickgelu": True}, "--quickgelu"),
        ({"joint": True, "heads": 3}, "a joint space states pooling and heads"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(corpus, encoder, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        embed(**{"source": str(corpus), "model": encoder, "out": "tiles.parquet", "device": "cpu"} | changes)
