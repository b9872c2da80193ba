import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomim.corpus.build import build
from geomim.corpus.pipeline import conclude as conclusion
from geomim.corpus.store import Corpus
from geomim.errors import BandError, CorpusError, InputError
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract
from geomim.verbs import curate
from geomim.verbs.curate import balance, embed, semantic

SIZE = 32


def checkpoint(path: Path, sensor: str = "rgb", seed: int = 0, mean: float = 120.0) -> str:
    bands = SENSORS[sensor]
    torch.manual_seed(seed)
    encoder = ViT(in_chans=len(bands.bands), image_size=SIZE, patch_size=8, width=48, depth=1, heads=3)
    contract = BandContract(bands, (mean,) * len(bands.bands), (50.0,) * len(bands.bands))
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, path)
    return str(path)


def vectors(corpus, name="a"):
    return np.load(corpus / "embeddings" / f"{name}.ids.npy"), np.load(corpus / "embeddings" / f"{name}.npy")


def catalogue(corpus):
    return Corpus.open(corpus).table(["id", "source", "kept", "reason", "split", "cluster"]).to_pydict()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("weights") / "a.ckpt")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, encoder):
    """24 pictures, of which the last four are others made darker; all embedded."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (8, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8) for _ in range(20)]
    pixels += [(picture * 0.98).astype(np.uint8) for picture in pixels[:4]]
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    out = tmp_path_factory.mktemp("curate") / "corpus"
    build([str(folder)], str(out), tile=64, near=None, crops=False, test_share=0.25, workers=1)
    embed(str(out), encoder, device="cpu", batch=5)
    return out


@pytest.fixture
def corpus(embedded, tmp_path):
    return Path(shutil.copytree(embedded, tmp_path / "corpus"))


def test_every_stored_tile_has_the_vector_of_its_pixels(corpus, encoder):
    ids, found = vectors(corpus)
    table = Corpus.open(corpus).table(["id", "slot"])
    assert ids.tolist() == table["id"].to_pylist() and found.shape == (24, 48) and found.dtype == np.float32
    pixels = Corpus.open(corpus).array("image", 64).read(table["slot"].to_numpy())
    loaded = curate.open_candidate(encoder, curate._unlabelled(Corpus.open(corpus)))
    images, _ = curate.ContractInput(loaded.contract, SENSORS["rgb"])(torch.from_numpy(pixels), None, SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=curate.fast_half("cpu")):
        expected = loaded.encoder(images).tokens[:, 1:].float().mean(1)
    assert found == pytest.approx(expected.numpy(), abs=0.05)
    assert not (corpus / "embeddings" / "a.work").exists()


def test_the_same_weights_with_other_statistics_embed_anew(corpus, tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    for mean, there in ((120.0, False), (120.0, True), (90.0, False)):
        embed(str(corpus), checkpoint(path, mean=mean), device="cpu")
        assert ("is there already" in capsys.readouterr().err) == there


def test_embedding_goes_on_where_it_was_stopped(corpus, encoder, monkeypatch):
    monkeypatch.setattr(curate, "_CHUNK", 5)
    before, done = vectors(corpus)[1], []
    original = curate._Encoder.__call__

    def counted(self, tiles, device):
        if len(done) == 3:
            done.append(None)
            raise KeyboardInterrupt
        done.append(tiles)
        return original(self, tiles, device)

    monkeypatch.setattr(curate._Encoder, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(str(corpus), encoder, name="b", device="cpu", batch=5)
    assert not (corpus / "embeddings" / "b.npy").exists()
    embed(str(corpus), encoder, name="b", device="cpu", batch=5)
    assert len(done) == 6  # three before, one stopped, two after
    assert np.array_equal(vectors(corpus, "b")[1], before)
    embed(str(corpus), encoder, name="b", device="cpu")
    assert len(done) == 6


def test_another_encoder_replaces_the_vectors(corpus, tmp_path):
    before = vectors(corpus)[1]
    embed(str(corpus), checkpoint(tmp_path / "a.ckpt", seed=1), device="cpu")
    assert not np.allclose(vectors(corpus)[1], before, atol=0.01) and vectors(corpus)[0].tolist() == list(range(24))


def test_an_encoder_of_other_bands_is_refused(corpus, tmp_path):
    with pytest.raises(BandError):
        embed(str(corpus), checkpoint(tmp_path / "s.ckpt", "sentinel2"), device="cpu")


def test_tiles_that_the_encoder_cannot_tell_apart_are_dropped_and_taken_back(corpus):
    before = (corpus / "catalogue.parquet").read_bytes()
    _, found = vectors(corpus)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = unit @ unit.T
    threshold = float(np.sort(cosine[np.arange(4), np.arange(20, 24)])[0]) - 1e-4
    semantic(str(corpus), threshold, clusters=3, probes=3)
    table = catalogue(corpus)
    dropped = [number for number, kept in zip(table["id"], table["kept"], strict=True) if not kept]
    assert set(dropped) <= set(range(4)) | set(range(20, 24)) and len(dropped) == 4
    assert all("embedding near that of" in table["reason"][number] for number in dropped)
    semantic(str(corpus), 1.1)
    assert (corpus / "catalogue.parquet").read_bytes() == before


def test_a_balanced_choice_is_kept_and_taken_back(corpus):
    before = (corpus / "catalogue.parquet").read_bytes()
    table = catalogue(corpus)
    train = [number for number, split in zip(table["id"], table["split"], strict=True) if split == "train"]
    for keep, count in ((8, 8), (0.5, len(train) // 2), (len(train), len(train))):  # chosen anew of all, each time
        balance(str(corpus), keep)
        table = catalogue(corpus)
        kept = [number for number, is_kept in zip(table["id"], table["kept"], strict=True) if is_kept]
        assert len(set(kept) & set(train)) == count and len(set(kept) - set(train)) == 24 - len(train)
    balance(str(corpus), 8)
    assert sum(reason == "balance: not among the chosen" for reason in catalogue(corpus)["reason"]) == len(train) - 8
    balance(str(corpus), 0)
    assert (corpus / "catalogue.parquet").read_bytes() == before


def test_a_choice_that_keeps_nothing_changes_nothing(corpus, monkeypatch):
    balance(str(corpus), 8)
    files = [corpus / "corpus.json", *sorted((corpus / "catalogue").glob("*.parquet"))]
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(curate, "choose", lambda subset, *_: np.zeros(len(subset), bool))
    monkeypatch.setattr(conclusion, "_check_some_kept", refused)
    for change in (
        lambda: balance(str(corpus), 4),
        lambda: balance(str(corpus), 0),
        lambda: semantic(str(corpus), 0.5),
    ):
        with pytest.raises(InputError, match="no tile is kept"):
            change()
        assert [file.read_bytes() for file in files] == before


def refused(*_):
    raise InputError("no tile is kept")


def test_a_corpus_at_an_address_is_not_changed():
    for change in (lambda: balance("s3://bucket/corpus", 4), lambda: semantic("s3://bucket/corpus", 0.5)):
        with pytest.raises(InputError, match=r"'s3://bucket/corpus' lies in a remote store.*copy it here"):
            change()


def test_what_is_missing_is_named(corpus, encoder):
    with pytest.raises(CorpusError, match=r"no embedding 'b'.*it has a"):
        semantic(str(corpus), 0.9, "b")
    with pytest.raises(InputError, match="--keep 100 asks for 100 of"):
        balance(str(corpus), 100)
    with pytest.raises(InputError, match="cosine"):
        semantic(str(corpus), -1.0)
    card = (corpus / "embeddings" / "a.json").read_text()
    (corpus / "embeddings" / "a.json").write_text(json.dumps(json.loads(card) | {"tiles": "others"}))
    with pytest.raises(CorpusError, match="embed again"):
        balance(str(corpus), 3)
    shutil.rmtree(corpus / "embeddings")
    with pytest.raises(CorpusError, match="run geomim corpus embed first"):
        balance(str(corpus), 3)


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
