"""`geomim sources list|show|check` print what the cards say and what lies on the disk."""

from pathlib import Path

import pytest
from miniatures import MINIATURES

from geomim.corpus.sources.cards import cards
from geomim.corpus.sources.verbs import check, list_, show
from geomim.errors import BandError, ConfigError, InputError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_list_shows_all_and_filters(capsys: pytest.CaptureFixture[str]) -> None:
    list_()
    shown = capsys.readouterr().out
    assert f"{len(cards())} sources" in shown and all(card.name in shown for card in cards())
    list_(task="change detection", licence="non-commercial")
    shown = capsys.readouterr().out
    assert "levir-cd" in shown and "eurosat" not in shown
    list_(licence="commercial")
    assert "eurosat" in (shown := capsys.readouterr().out) and "loveda" not in shown
    with pytest.raises(ConfigError, match="no source card fits --task cooking"):
        list_(task="cooking")


def test_show_prints_one_card(capsys: pytest.CaptureFixture[str]) -> None:
    show("dior")
    shown = capsys.readouterr().out
    for part in ("CC-BY-NC-4.0", "forbidden", "test 11738", "held out  test", "windmill", "RemoteCLIP"):
        assert part in shown
    for card in cards():
        show(card.name)
    with pytest.raises(InputError, match="did you mean 'dior'"):
        show("diro")


def test_check_opens_a_source_and_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchgeo")
    check("eurosat")
    assert "is valid" in capsys.readouterr().out
    check("aid")
    MINIATURES["loveda"](tmp_path)
    capsys.readouterr()
    check(f"loveda@{tmp_path}")
    shown = capsys.readouterr().out
    assert "3 x 32 x 32 uint8" in shown and "mask of 7 classes" in shown and "1669 (held out)" in shown
    with pytest.raises(InputError, match="as published"):
        check(f"loveda@{tmp_path}/missing")


def test_check_finds_other_bands(tmp_path: Path) -> None:
    pytest.importorskip("torchgeo")
    from miniatures import pixels, raster

    raster(tmp_path / "m_3807511_ne_18_060_20181104.tif", pixels(1, bands=3))
    with pytest.raises(BandError, match="3 bands"):
        check(f"naip@{tmp_path}")
