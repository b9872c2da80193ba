"""What weights say of themselves, in words: facts as they are stored, and unknown ones said to be so."""

import subprocess

import pytest
import torch

import geomim
from geomim.models import provenance
from geomim.models.card import model_card, sections
from geomim.models.export import hub_config
from geomim.models.provenance import code_version
from geomim.models.vit import ViT
from geomim.models.weights import Loaded
from geomim.sensors import SENSORS, BandContract

CONTRACT = BandContract(
    SENSORS["naip"],
    (100.0, 90.0, 80.0, 120.0),
    (30.0, 25.0, 20.0, 40.0),
    ("public domain",),
    ("USDA",),
    ("naip, lock 1",),
)
ROWS = [
    {"encoder": encoder, "probe": probe, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
    for encoder, accuracy in (("this encoder", 0.61), ("random initialisation", 0.42))
    for probe in ("knn", "linear")
]
PROVENANCE = {
    "code": {"geomim": "0.9.0", "commit": "abcdef-dirty"},
    "config": {"recipe": "mae", "seed": 7, "encoder": {"width": 48}},
    "corpora": [
        {
            "name": "plains",
            "tiles": 1234,
            "lock": "11aa",
            "audit": "22bb",
            "benchmarks": [{"benchmark": "water", "splits": ["test"], "tiles": 5, "excluded": True}],
        },
        {"name": "hills", "tiles": 99, "lock": None, "audit": None, "benchmarks": []},
    ],
    "images": 1792,
    "evaluation": {
        **{"step": 7, "data": "corpus plains", "classes": 3, "train_images": 30, "test_images": 12},
        **{"test_split": "test", "rows": ROWS, "notes": []},
    },
}
DETAILS = {
    "recipe": "mae",
    "recipe_args": {"visible": 0.25},
    "step": 7,
    "progress": 0.5,
    "history": [{"step": 4, "changed": {"training.clip": [None, 1.0]}}],
    "provenance": PROVENANCE,
    "notes": ["never trained on this sensor"],
}


def loaded(contract=CONTRACT, details=DETAILS, channels=4):
    contracts = {contract.sensor.name: contract} if contract else {}
    return Loaded(ViT(channels, 48, 8, 48, 2, 3), contracts, "geomim checkpoint", details=details)


def test_every_stored_fact_is_said():
    said = sections(loaded().entry)
    assert all(word in said["Training"] for word in ("`mae` (visible 0.25)", "steps: 7 (50%", "images seen: 1,792"))
    assert "code: geomim 0.9.0, commit abcdef-dirty" in said["Training"]
    assert "changed at step 4: training.clip None -> 1.0" in said["Training"]
    assert said["Notes"] == "- never trained on this sensor"
    assert (
        "| red | R | 635 | 32 | 1 | 100 | 30 |" in said["Bands"]
        and "digital number = stored number * 1 + 0" in said["Bands"]
    )
    assert "| this encoder | 0.610 (0.600-0.620) | 0.610 (0.600-0.620) |" in said["Evaluation"]
    assert "corpus plains at step 7" in said["Evaluation"] and "| random initialisation | 0.420" in said["Evaluation"]
    assert "plains, 1,234 tiles, lock 11aa, audit 22bb" in said["Corpora"]
    assert "- 5 touch water (test): excluded" in said["Corpora"]
    assert "hills, 99 tiles, lock unknown, not audited against any benchmark" in said["Corpora"]
    assert said["Licences"] == "Of the imagery: public domain. Attributions: USDA."
    assert said["Configuration"] == "- recipe: mae\n- seed: 7\n- encoder: width 48"


def test_sentences_and_their_origins_are_said():
    text = {"embed_dim": 24, "quick_gelu": True, "text_cfg": {"width": 32, "layers": 2}}
    joint = {"joint": {"text": text, "pool": "class", "width": 48, "temperature": 0.07}}
    said = ["9 different sentences are learned from; by origin there are 7 b2c, 12 human"]
    files = [{"origin": "vector", "file": "roads.gpkg", "licence": "ODbL-1.0"},
             {"origin": "b2c", "file": "came with the imagery", "licence": "the imagery's licence"}]  # fmt: skip
    made = PROVENANCE | {"sentences": said, "sentence_files": files}
    told = sections(loaded(details={**DETAILS, **joint, "provenance": made}).entry)
    words = told["Sentences"]
    assert "(their class token)" in words and "dim 24, width 32, layers 2" in words and f"- {said[0]}" in words
    assert told["Licences"].startswith("Of the imagery: public domain.")
    assert told["Licences"].endswith(
        "Of the sentences:\n\n- `vector` (roads.gpkg): ODbL-1.0\n- `b2c` (came with the imagery): the imagery's licence"
    )
    older = sections(loaded(details=DETAILS | joint).entry)
    assert "whose origins" not in older["Sentences"] and older["Licences"].endswith("Of the sentences: unknown.")


def test_licences_of_weights_that_training_started_from_are_said():
    rights = [{"weights": "timm:a", "licences": ["apache-2.0"], "attributions": []},
              {"weights": "b.ckpt", "licences": [], "attributions": ["ESA"]}]  # fmt: skip
    told = sections(loaded(details={**DETAILS, "provenance": PROVENANCE | {"rights": rights}}).entry)
    assert told["Licences"] == (
        "Of the imagery: public domain. Attributions: USDA.\n\nOf the weights that training started from:\n\n"
        "- `timm:a`: apache-2.0\n- `b.ckpt`: unknown; attributions: ESA"
    )


def test_what_is_not_known_is_said_to_be_unknown():
    said = sections(loaded(None, {}, 3).entry)
    for line in ("recipe: unknown", "steps: unknown", "images seen: unknown", "code: unknown"):
        assert line in said["Training"]
    assert said["Corpora"] == said["Configuration"] == "Unknown." and "Notes" not in said
    assert "state none" in said["Bands"] and said["Licences"].count("none stated") == 2
    assert said["Evaluation"] == "None was made in training."
    old = sections(loaded(details={"recipe": "mae", "step": 3}).entry)  # of a checkpoint before provenance
    assert old["Corpora"] == "- naip, lock 1" and "steps: 3\n" in old["Training"]


def test_bands_of_several_sensors_and_of_units_of_their_own():
    values = CONTRACT.to_dict()
    values["sensor"]["bands"][3] |= {"unit": "kelvin", "scale": 0.01, "offset": 150.0}
    entry = loaded().entry
    entry |= {"contract": None, "contracts": {"naip": values, "rgb": CONTRACT.to_dict() | {"licences": ["ODbL"]}}}
    said = sections(entry)
    assert (
        "red, green, blue: digital number = stored number * 1 + 0; nir: kelvin = stored number * 0.01 + 150."
        in said["Bands"]
    )
    assert said["Bands"].count("Sensor `naip`") == 2 and "public domain, ODbL" in said["Licences"]


def test_the_card_holds_what_an_export_stores():
    config = hub_config(loaded())
    assert config["geomim"]["provenance"] == PROVENANCE
    card = model_card("name", config, "local-dir:name")
    assert card.startswith("---\nlibrary_name: timm\n") and "# name\n" in card and "(B, 4, H, W)" in card
    for title, words in sections(config["geomim"]).items():
        assert f"## {title}\n\n{words}" in card


@pytest.mark.parametrize("checkout", [True, False])
def test_the_code_is_named_by_commit_where_it_is_a_checkout(tmp_path, monkeypatch, checkout):
    package = tmp_path / "geomim"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(provenance.geomim, "__file__", str(package / "__init__.py"))
    if not checkout:
        assert code_version() == {"geomim": geomim.__version__, "commit": None}
        return

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert code_version() == {"geomim": geomim.__version__, "commit": commit}
    (package / "__init__.py").write_text("changed = True")
    assert code_version()["commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert code_version()["commit"] is None


def test_facts_are_plain_values(tmp_path):
    torch.save(loaded().entry, tmp_path / "entry.pt")
    assert torch.load(tmp_path / "entry.pt", weights_only=True)["provenance"] == PROVENANCE
