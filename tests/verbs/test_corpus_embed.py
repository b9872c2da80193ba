import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_corpus import SIZE, checkpoint, vectors

from geomim.corpus.store import Corpus
from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS
from geomim.verbs import tile_vectors as embedding
from geomim.verbs.corpus_embed import embed


def test_every_stored_tile_has_the_vector_of_its_pixels(corpus, encoder):
    ids, found = vectors(corpus)
    table = Corpus.open(corpus).table(["id", "slot"])
    assert ids.tolist() == table["id"].to_pylist() and found.shape == (24, 48) and found.dtype == np.float32
    pixels = Corpus.open(corpus).array("image", 64).read(table["slot"].to_numpy())
    loaded = embedding.open_candidate(encoder, embedding.unlabelled(Corpus.open(corpus)))
    images, _ = embedding.ContractInput(loaded.contract, SENSORS["rgb"])(torch.from_numpy(pixels), None, SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=embedding.fast_half("cpu")):
        expected = loaded.encoder(images).tokens[:, 1:].float().mean(1)
    assert found == pytest.approx(expected.numpy(), abs=0.05)
    assert not (corpus / "embeddings" / "a.work").exists()


def test_the_same_weights_with_other_statistics_embed_anew(corpus, tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    for mean, there in ((120.0, False), (120.0, True), (90.0, False)):
        embed(str(corpus), checkpoint(path, mean=mean), device="cpu")
        assert ("is there already" in capsys.readouterr().err) == there


def test_embedding_goes_on_where_it_was_stopped(corpus, encoder, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 5)
    before, done = vectors(corpus)[1], []
    original = embedding.TileEncoder.__call__

    def counted(self, tiles):
        if len(done) == 3:
            done.append(None)
            raise KeyboardInterrupt
        done.append(tiles)
        return original(self, tiles)

    monkeypatch.setattr(embedding.TileEncoder, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(str(corpus), encoder, name="b", device="cpu", batch=5)
    assert not (corpus / "embeddings" / "b.npy").exists()
    embed(str(corpus), encoder, name="b", device="cpu", batch=5)
    assert len(done) == 6  # three before, one stopped, two after
    assert np.array_equal(vectors(corpus, "b")[1], before)
    embed(str(corpus), encoder, name="b", device="cpu")
    assert len(done) == 6


def test_another_encoder_replaces_the_vectors_aloud(corpus, tmp_path, capsys):
    before, card = vectors(corpus)[1], json.loads((corpus / "embeddings" / "a.json").read_text())
    embed(str(corpus), checkpoint(tmp_path / "a.ckpt", seed=1), device="cpu")
    said, now = capsys.readouterr().err, json.loads((corpus / "embeddings" / "a.json").read_text())
    changed = [f"{key} {card[key]} -> {now[key]}" for key in ("checkpoint", "encoder")]
    assert f"a.npy' is replaced ({', '.join(changed)})" in said
    assert "other contract" not in said and "give --name to keep both" in said
    assert not np.allclose(vectors(corpus)[1], before, atol=0.01) and vectors(corpus)[0].tolist() == list(range(24))


def test_an_encoder_of_other_bands_is_refused(corpus, tmp_path):
    with pytest.raises(BandError):
        embed(str(corpus), checkpoint(tmp_path / "s.ckpt", "sentinel2"), device="cpu")


def test_tiles_of_another_unit_are_refused_and_the_file_that_is_named_works(embedded, tmp_path):
    path = Path(checkpoint(tmp_path / "b.ckpt"))
    content = torch.load(path, weights_only=True)
    content["geomim"]["contract"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    torch.save(content, path)
    with pytest.raises(InputError, match="255 times too large") as refused:
        embed(str(embedded), str(path), device="cpu")
    assert not (embedded / "embeddings" / "b.json").exists()
    sensor = tmp_path / "mine.yaml"
    sensor.write_text(str(refused.value).split("FILE.yaml: ")[1])
    out = embed(str(embedded), str(path), sensor=str(sensor), device="cpu")
    assert json.loads(out.with_suffix(".json").read_text())["sensor"]["scale"] == 0.00392157
    for file in (embedded / "embeddings").glob("b.*"):
        file.unlink() if file.is_file() else shutil.rmtree(file)
