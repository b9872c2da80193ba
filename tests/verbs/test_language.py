import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_corpus import NAMES, write_corpus
from torch.nn import functional as F
from whole_arrays import write_array

from geomim.cli import main, parse
from geomim.corpus.store import CATALOGUE, write_catalogue
from geomim.data.described import open_described
from geomim.errors import BandError, ConfigError, InputError
from geomim.evaluate.figures import CHANCE
from geomim.models.build import build_encoder
from geomim.models.joint import Joint
from geomim.models.text import build_text
from geomim.models.vit import ViT
from geomim.models.weights import Loaded
from geomim.sensors import SENSORS, BandContract
from geomim.verbs import language
from geomim.verbs.language import evaluate_text

open_clip = pytest.importorskip("open_clip")

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


class Colourist:
    """A model of images and sentences that knows three colours."""

    def __init__(self, sensor="rgb"):
        sensor = SENSORS[sensor]
        count = len(sensor.bands)
        contract = BandContract(sensor, (120.0,) * count, (50.0,) * count)
        self.encoder = ViT(count, 16, 4, 24, 1, 3)
        self.loaded = Loaded(self.encoder, {sensor.name: contract}, "colours", notes=("a note of the model",))
        self.joint = Joint(build_text("tiny"), 24)
        self.image_size, self.patch_size, self.fingerprint, self.read = 16, 4, "colours", []

    def to(self, device):
        return self

    def fitted(self, contract, gsd=None):
        return self

    def encode_image(self, images, valid=None, sensor=None):
        return F.normalize((images[:, :3] * 50 + 120).mean((2, 3)), dim=1)

    def encode_patches(self, images, valid=None, sensor=None):
        return F.normalize(F.avg_pool2d(images[:, :3] * 50 + 120, 4).flatten(2).transpose(1, 2), dim=2)

    def encode_text(self, sentences):
        self.read += sentences
        known = [[c for c in COLOURS if c in s.lower()] for s in sentences]
        vectors = [torch.tensor([COLOURS[c] for c in one] or [(1, 1, 1)]).float().mean(0) for one in known]
        return F.normalize(torch.stack(vectors), dim=1)


@pytest.fixture(autouse=True)
def model(monkeypatch):
    opened = {"colours": Colourist(), "naip": Colourist("naip")}
    opening = language.open_image_text
    monkeypatch.setattr(
        language,
        "open_image_text",
        lambda source, quick: opened[source] if source in opened else opening(source, quick),
    )
    return opened["colours"]


def picture(file: Path, colour: str, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).normal(COLOURS[colour], 4, (16, 16, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file)


def class_folders(folder: Path, count: int = 12) -> Path:
    for split in ("train", "test"):
        for colour in COLOURS:
            for number in range(count):
                picture(folder / split / f"{colour.title()}Land" / f"{number}.tif", colour, number)
    return folder


def karpathy(folder: Path) -> Path:
    images = []
    for number, colour in enumerate([*COLOURS] * 4):
        name = f"{colour}_{number}.png"
        picture(folder / "imgs" / name, colour, number)
        sentences = [{"raw": f"a {colour} land ."}, {"raw": f"three {colour} fields , {'abcdefghijkl'[number]} ."}]
        images.append({"filename": name, "split": "test" if number < 9 else "train", "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder / "dataset.json"


def shown(scores):
    return {(one.task, one.metric): one for one in scores.figures}


def test_class_folders_give_zeroshot_map_and_few_shot_beside_their_floors(tmp_path, capsys):
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    scores = evaluate_text("colours", str(data), out=str(out), shots=[1, 8, 32], seeds=2, device="cpu")
    found = shown(scores)
    assert found["zeroshot", "top-1"].value == 1.0 and found["zeroshot", "top-1"].beside[CHANCE] == pytest.approx(1 / 3)
    assert found["map", "t2i mAP@100"].value == 1.0
    assert [metric for task, metric in found if task == "fewshot"] == ["1-shot", "8-shot"]
    assert found["fewshot", "8-shot"].value == 1.0
    assert found["fewshot", "8-shot"].beside[CHANCE] == pytest.approx(1 / 3)
    assert scores.protocol["classes"] == ["blue land", "green land", "red land"]
    said = " ".join(scores.notes)
    assert "asked for as 'a satellite photo of {class}.', of blue land, green land, red land" in said
    assert "32 images a class is left out" in said and "a note of the model" in said
    values = json.loads((out / "language.json").read_text())
    assert len(values["figures"]) == 5 and values["figures"][0]["value"] == 1.0
    assert values["protocol"]["test_images"] == 36
    assert "zeroshot" in capsys.readouterr().out
    again = evaluate_text("colours", str(data), out=str(out), shots=[1, 8, 32], seeds=2, device="cpu")
    assert again.figures == scores.figures


def test_publishers_json_stands_beside_published_figures(tmp_path, model, capsys):
    file = karpathy(tmp_path)
    arguments = ["evaluate-text", "colours", str(file), "--out", str(tmp_path / "o"), "--beside", "rsicd"]
    assert main([*arguments, "--tasks", "retrieval,retrieval-official,counting"]) == 0
    values = json.loads((tmp_path / "o" / "language.json").read_text())
    found = {(one["task"], one["metric"]): one for one in values["figures"]}
    assert found["retrieval", "i2t R@5"]["value"] == 1.0
    official = found["retrieval-official", "mean recall"]
    assert official["beside"]["RemoteCLIP ViT-B-32"] == pytest.approx(0.3526)
    assert {*found["retrieval", "mean recall"]["beside"]} == {CHANCE}
    assert found["retrieval-official", "t2i R@1"]["value"] < found["retrieval", "t2i R@1"]["value"]
    assert "A red land ." in model.read  # as the script capitalises
    assert any("table II" in note for note in values["notes"]) and "35.26" in capsys.readouterr().out
    assert any("counting: 9 of 18 sentences have one number" in note for note in values["notes"])
    assert found["counting", "top-1 (words)"]["beside"][CHANCE] == 0.1


def test_the_majority_class_is_that_of_training(tmp_path):
    for split, counts in (("train", (20, 8)), ("test", (1, 4))):
        for colour, count in zip(("red", "green"), counts, strict=True):
            for number in range(count):
                picture(tmp_path / split / colour / f"{number}.png", colour, number)
    tasks, out = ["zeroshot", "fewshot"], str(tmp_path / "o")
    found = shown(evaluate_text("colours", str(tmp_path), tasks, out, shots=[1], seeds=1, device="cpu"))
    for figure in (found["zeroshot", "top-1"], found["fewshot", "1-shot"]):
        assert figure.beside["majority class"] == pytest.approx(1 / 5)


def test_a_table_of_pictures_with_splits_classes_and_several_labels(tmp_path):
    rows = []
    for number, colour in enumerate([*COLOURS] * 10):
        picture(tmp_path / "deep" / f"{number}.png", colour, number)
        split = "test" if number < 9 else "train"
        rows.append({"image": f"{number}.png", "split": split, "class": colour, "captions": [f"a {colour} land"]})
        rows[-1]["labels"] = ["red"] * (number == 1)
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    scores = evaluate_text("colours", str(table), out=str(tmp_path / "o"), shots=[1, 2], device="cpu")
    found = shown(scores)
    assert found["zeroshot", "top-1"].value == 1.0 and found["fewshot", "2-shot"].value == 1.0
    assert found["map", "multi-label mAP"].value < 1.0 and found["retrieval", "mean recall"].value == 1.0
    assert ("retrieval-official", "mean recall") in found and not any(task == "counting" for task, _ in found)


def test_remoteclips_csv_has_no_splits_and_says_so(tmp_path):
    for number, colour in enumerate(COLOURS):
        picture(tmp_path / f"{number}.png", colour)
    file = tmp_path / "ucm.csv"
    file.write_text("title\tfilename\n" + "".join(f"A {c} land, wide.\t{n}.png\n" for n, c in enumerate(COLOURS)))
    scores = evaluate_text("colours", str(file), out=str(tmp_path / "o"), device="cpu")
    assert shown(scores)["retrieval", "mean recall"].value == 1.0
    assert any("names no splits: all of its 3 images" in note for note in scores.notes)


def painted(path: Path) -> Path:
    """A corpus of red and green halves with masks, sentences and objects."""
    write_corpus(path, count=8, size=16)
    images = np.empty((8, 3, 16, 16), np.uint8)
    images[:] = np.array(COLOURS["red"])[:, None, None]
    images[..., 8:] = np.array(COLOURS["green"])[:, None, None]
    masks = np.zeros((8, 16, 16), np.uint8)
    masks[..., 8:] = 1
    masks[:, 0] = 255
    for name, values in (("image", images), ("mask", masks)):
        names = NAMES if values.ndim == 4 else (NAMES[0], *NAMES[2:])
        write_array(path / "tiles.zarr" / "16" / name, values, names)
    table = pq.read_table(path / "catalogue.parquet")
    box = [{"polygon": [0.0] * 8, "label": "red"}]
    changed = {
        "captions": [["red and green"]] * 7 + [None],
        "boxes": [box] * 8,
        "label": [None] * 8,
        "xxh3": ["alike"] * 8,
    }
    for name, values in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, CATALOGUE.field(name), pa.array(values, CATALOGUE.field(name).type))
    write_catalogue(path / "catalogue.parquet", [table])
    meta = json.loads((path / "corpus.json").read_text())
    (path / "corpus.json").write_text(json.dumps(meta | {"classes": ["red", "green"]}))
    return path


def test_a_corpus_of_masks_and_sentences(tmp_path):
    corpus = painted(tmp_path / "corpus")
    tasks = ["segmentation", "retrieval"]
    scores = evaluate_text(
        "colours", str(corpus), tasks, str(tmp_path / "o"), test_split="val", prompts="aerial", device="cpu"
    )
    found = shown(scores)
    assert found["segmentation", "mean IoU"].value == 1.0
    assert found["segmentation", "pixel accuracy"].beside[CHANCE] == pytest.approx(0.5)
    assert found["retrieval", "mean recall"].value == 1.0
    assert "retrieval: 1 of 2 images have no sentence, and are left out" in scores.notes
    assert any("each sentence of an image once" in note for note in scores.notes)
    assert any("cannot be told" in note and "--trained_on" in note for note in scores.notes)


def test_images_that_the_model_trained_on_are_said(tmp_path):
    corpus = str(painted(tmp_path / "corpus"))
    scores = evaluate_text(
        "colours", corpus, ["retrieval"], str(tmp_path / "o"), test_split="val", trained_on=[corpus], device="cpu"
    )
    assert "2 of the 2 test images are among the tiles of corpus that the encoder trained on" in scores.notes


def test_words_of_classes_are_given_one_by_one_or_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("names:\n  denseresidential: dense residential area\n")
    for given in (["--names.denseresidential", "dense residential area"], ["--config", str(tmp_path / "c.yaml")]):
        values = parse(evaluate_text, ["model", "data", *given], "evaluate-text")
        assert values["names"] == {"denseresidential": "dense residential area"} and values["model"] == "model"
    with pytest.raises(ConfigError, match="names"):
        parse(evaluate_text, ["model", "data", "--names", "[red]"], "evaluate-text")


def test_bad_input_is_refused_with_a_sentence(tmp_path):
    data, out = str(class_folders(tmp_path / "data", 6)), str(tmp_path / "o")

    def refused(error, match, *arguments, **options):
        with pytest.raises(error, match=match):
            evaluate_text("colours", *arguments, out=out, device="cpu", **options)
        assert not Path(out).exists()

    refused(InputError, "folder data has no sentences, which 'retrieval' needs", data, ["retrieval"])
    refused(InputError, "has no masks, which 'segmentation' needs", data, ["segmentation"])

    def blank(*given):
        return replace(open_described(*given), masks=lambda rows: np.full((len(rows), 8, 8), 255))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "open_described", blank)
        refused(InputError, "has no pixel of a class in its masks, which 'segmentation'", data, ["segmentation"])
    refused(InputError, "of a set 'rscid'; did you mean 'rsicd'", data, beside="rscid")
    refused(InputError, "no prompt set and no text file is called 'mine'", data, prompts="mine")
    refused(InputError, r"none of 8 images a class is possible.*'BlueLand' has 6", data, ["fewshot"], shots=[8])
    refused(ConfigError, "at least one task", data, [])
    refused(InputError, "--pictures is for a table", data, pictures=data)
    refused(InputError, "'RedLan' that the data lack; did you mean 'RedLand'", data, names={"RedLan": "red"})
    with pytest.raises(BandError, match="nir"):
        evaluate_text("naip", data, out=out, device="cpu")
    file = karpathy(tmp_path / "k")
    refused(InputError, "has no image in split 'holdout'; it has test, train", str(file), test_split="holdout")
    (tmp_path / "k" / "imgs" / "red_0.png").unlink()
    refused(InputError, r"dataset\.json', row 1: .* holds no picture 'red_0\.png'.*--pictures", str(file))
    (tmp_path / "e.json").write_text(json.dumps({"images": [{"filename": "a.png", "split": "test"}]}))
    refused(InputError, "row 1 names no image or sentence", str(tmp_path / "e.json"))


def test_a_file_in_remoteclips_layout_is_scored_as_itself(tmp_path):
    sizes = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    torch.manual_seed(0)
    peer = open_clip.CLIP(24, sizes, {"context_length": 16, "width": 64, "heads": 1, "layers": 1}, quick_gelu=True)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(peer.state_dict(), tmp_path / "RemoteCLIP-tiny.pt")
    data, source = class_folders(tmp_path / "data", 6), f"remoteclip:{tmp_path / 'RemoteCLIP-tiny.pt'}"
    scores = evaluate_text(source, str(data), ["zeroshot", "fewshot"], str(tmp_path / "o"), shots=[2], device="cpu")
    found = shown(scores)
    assert ("fewshot", "2-shot") in found and any("QuickGELU" in note for note in scores.notes)
    images = [np.asarray(Image.open(file)) for file in sorted((data / "test").glob("*/*.tif"))]
    pixels = F.interpolate(torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255, (32, 32), mode="bilinear")
    mean, std = (torch.tensor(n)[:, None, None] for n in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        tokens = open_clip.SimpleTokenizer(context_length=16)(
            [f"a satellite photo of {c} land." for c in ("blue", "green", "red")]
        )
        theirs = peer.encode_image((pixels - mean) / std, True) @ peer.encode_text(tokens, True).T
    right = (theirs.argmax(1) == torch.arange(3).repeat_interleave(6)).double().mean()
    assert found["zeroshot", "top-1"].value == pytest.approx(float(right))


def test_a_checkpoint_of_any_sensor_is_fitted_to_the_bands_of_a_corpus(tmp_path):
    torch.manual_seed(0)
    naip = SENSORS["naip"]
    contract = BandContract(naip, (125.0,) * 4, (60.0,) * 4)
    sizes = {"image_size": 16, "patch_size": 4, "width": 64, "depth": 1, "heads": 1}
    encoder = build_encoder({"naip": contract}, **sizes, spectral=True)
    joint = Joint(build_text("tiny"), 64)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    state |= {f"model.joint.{name}": value for name, value in joint.state_dict().items()}
    entry = {"format_version": 2, "encoder": encoder.config, "joint": joint.config, "recipe": "remote_clip", "step": 1}
    torch.save(
        {"state_dict": state, "geomim": entry | {"contracts": {"naip": contract.to_dict()}}}, tmp_path / "a.ckpt"
    )
    corpus, out = write_corpus(tmp_path / "corpus", count=32, size=16, sensor=naip, nodata=True), str(tmp_path / "o")
    scores = evaluate_text(
        str(tmp_path / "a.ckpt"), str(corpus), out=out, test_split="val", shots=[1, 4], seeds=1, device="cpu"
    )
    found = shown(scores)
    assert {task for task, _ in found} == {"zeroshot", "map", "fewshot"}
    assert any("seen as 'naip' (red, green, blue, nir)" in note for note in scores.notes)
