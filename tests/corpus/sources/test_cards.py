"""Source cards: what ships, and what is refused in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geomim.corpus.sources.cards import LABELS, UNVERIFIED, cards, folder, is_non_commercial, load_card
from geomim.errors import InputError
from geomim.sensors import SENSORS

CARD = """kind: source
name: mine
title: Mine
task: [imagery]
sensor: rgb
bands: [red, green, blue]
gsd: 0.5
licence: none stated
non_commercial: unverified
attribution: me
homepage: https://example.org
splits: {train: 2, test: 1}
held_out: [test]
open:
  folder: {images: "*.png"}
opened: unopened
"""


def write(path: Path, text: str = CARD) -> Path:
    path.write_text(text)
    return path


def test_every_shipped_card_loads_and_says_what_a_user_asks_first() -> None:
    shipped = cards()
    assert len(shipped) >= 30
    for card in shipped:
        assert card.title and card.task and card.attribution and card.licence
        assert isinstance(card.licence_url, str) or card.licence == "none stated"
        assert set(card.labels) <= set(LABELS)
        assert card.to_sensor().names
        if card.sensor in SENSORS:
            assert {band.name for band in card.bands} <= set(SENSORS[card.sensor].names)


def test_the_sources_that_remoteclip_names_and_the_benchmarks_are_there() -> None:
    named = "au-air carpk dior dota hrrsd hrsc2016 levir rsod stanford-drone visdrone isaid loveda potsdam vaihingen"
    named += " rsicd rsitmd ucm-captions aid resisc45 dior-r spacenet1 eurosat bigearthnet so2sat geobench"
    assert set(named.split()) <= {card.name for card in cards()}
    for name in ("aid", "resisc45", "dior", "dior-r", "loveda", "spacenet1"):
        assert load_card(name).held_out


def test_contamination_that_is_known_is_said() -> None:
    assert "RemoteCLIP trains on 23,463 images, which is all of DIOR" in load_card("dior").notes
    assert "DOTA" in load_card("isaid").notes and "iSAID" in load_card("dota").notes
    assert "val" in load_card("loveda").held_out and "4,187" in load_card("loveda").notes


def test_names_of_labels_go_by_the_publishers_numbers() -> None:
    assert load_card("loveda").names("masks")[7] == "agriculture" and 0 not in load_card("loveda").names("masks")
    assert load_card("dota").names("oriented_boxes")[0] == "plane"
    assert load_card("au-air").names("boxes") == {}


def test_unknown_licences_allow_nothing(tmp_path: Path) -> None:
    assert is_non_commercial(load_card("loveda"))
    assert is_non_commercial(load_card("rsicd"))  # none stated
    assert not is_non_commercial(load_card("eurosat"))
    claimed = CARD.replace("non_commercial: unverified", "non_commercial: false")
    assert is_non_commercial(load_card(write(tmp_path / "mine.yaml", claimed)))


def test_a_card_says_what_bands_mean_only_of_a_sensor_that_is_not_built_in(tmp_path: Path) -> None:
    bands = "bands: [red, green, {name: blue, unit: kelvin, scale: 0.1}]"
    path = write(tmp_path / "mine.yaml", CARD.replace("bands: [red, green, blue]", bands))
    with pytest.raises(InputError, match=r"'bands': sensor 'rgb' is built in .* and so do blue: leave that out"):
        load_card(path)
    path = write(tmp_path / "mine.yaml", path.read_text().replace("sensor: rgb", "sensor: mine"))
    assert load_card(path).to_sensor().meaning(2) == ("kelvin", 0.1, 0.0)


def test_a_users_card_is_read_by_its_path_and_again_when_it_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml")
    card = load_card(path)
    assert (card.name, card.gsd, card.held_out, card.paper) == ("mine", 0.5, ("test",), UNVERIFIED)
    write(path, CARD.replace("0.5", "[0.3, 2]"))
    assert load_card(path).gsd == (0.3, 2.0)


def test_a_sensor_of_ones_own_brings_its_bands(tmp_path: Path) -> None:
    own = CARD.replace("sensor: rgb", "sensor: drone").replace(
        "[red, green, blue]", "[{name: red, wavelength: 660, bandwidth: 20}, {name: edge}]"
    )
    sensor = load_card(write(tmp_path / "mine.yaml", own)).to_sensor()
    assert (sensor.name, sensor.names, sensor.bands[0].wavelength) == ("drone", ("red", "edge"), 660)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attribution", "atribution", "unknown key 'atribution'; did you mean 'attribution'"),
        ("title: Mine\n", "", "missing title"),
        ("[imagery]", "imagery", "'task' must be a list of words, given 'imagery'"),
        ("gsd: 0.5", "gsd: -1", "'gsd' must be metres"),
        ("gsd: 0.5", "gsd: true", "'gsd' must be metres"),
        ("non_commercial: unverified", "non_commercial: maybe", "'non_commercial' must be true, false or unverified"),
        ("opened: unopened", "opened: once", "'opened' must be miniature or unopened"),
        ("  folder:", "  foldr:", "unknown way 'foldr'; did you mean 'folder'"),
        ('images: "*.png"', 'image: "*.png"', "folder takes no 'image'; did you mean 'images'"),
        ('{images: "*.png"}', "{}", "folder needs 'images'"),
        ('{images: "*.png"}', '{images: {tain: "*.png"}}', "names splits tain"),
        ("held_out: [test]", "held_out: [tests]", "names tests, which is not among the splits"),
        ("sensor: rgb", "sensor: naip\nlabels: {box: 3}", "unknown kind 'box'"),
        ("[red, green, blue]", "[red, pink]", "missing pink"),
        ("[red, green, blue]", "[{nme: red}]", "unknown key 'nme'"),
        ("name: mine", "name: yours", "must be that of the file, 'mine'"),
        ("kind: source", "kind: recipe", "no source card"),
        ("title: Mine", "title: !!python/object/apply:os.getcwd []", "is no YAML file"),
        ("title: Mine", "title: [Mine", "is no YAML file"),
    ],
)
def test_a_wrong_card_is_refused_with_its_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path / "mine.yaml", CARD.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_card(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_unknown_cards_name_the_nearest() -> None:
    with pytest.raises(InputError, match="no source card 'eurosatt'; did you mean 'eurosat'"):
        load_card("eurosatt")
    with pytest.raises(InputError, match="does not exist"):
        load_card("nowhere.yaml")
    assert load_card("EuroSAT").name == "eurosat"


def test_recipes_beside_the_cards_are_no_cards() -> None:
    recipe = yaml.safe_load((folder() / "opticalrs.yaml").read_text())
    assert "opticalrs" not in {card.name for card in cards()}
    with pytest.raises(InputError, match="no source card"):
        load_card(folder() / "opticalrs.yaml")
    benchmarks = {one.partition("@")[0] for one in recipe["against"]}
    assert {
        "aid",
        "resisc45",
        "dior",
        "dior-r",
        "loveda",
        "spacenet1",
        "eurosat",
        "bigearthnet",
        "so2sat",
    } <= benchmarks
    for one in [*recipe["source"], *recipe["against"]]:
        assert load_card(one.partition("@")[0]).way != "none"


def test_cards_and_items_need_no_torch() -> None:
    code = (
        "import sys; from geomim.corpus.sources.items import list_items; from geomim.corpus.sources.cards import cards;"
        "cards(); assert not {'torch', 'torchgeo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
