import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from geomim.cli import VERBS, main, parse
from geomim.errors import ConfigError


def build(source: list[str], out: str, tile: int = 256, bands: list[str] | None = None, overwrite: bool = False):
    """Build it.

    Args:
        source: Where from.
        out: Where to.
        tile: Side.
        bands: Names.
        overwrite: Replace.
    """


def given(*arguments: str) -> dict:
    return parse(build, list(arguments), "corpus build")


def test_words_lists_and_switches() -> None:
    expected = {"source": ["a", "b"], "out": "o", "tile": 3, "bands": ["B1", "B2"], "overwrite": True}
    assert given("a", "b", "--out", "o", "--tile", "3", "--bands", "B1,B2", "--overwrite") == expected
    assert given("--out=o", "--overwrite", "--tile=3", "--bands", "B1,B2", "a", "b") == expected


def test_config_file_and_what_overrides_it(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("source: [x]\nout: q\ntile: 7\n")
    assert given("--config", str(config), "--tile", "9")["tile"] == 9
    assert given("--config", str(config))["source"] == ["x"]
    config.write_text("source: [x]\nout: q\ntyle: 7\n")
    with pytest.raises(ConfigError, match="unknown argument 'tyle'; did you mean 'tile'"):
        given("--config", str(config))


def test_mistakes_are_sentences() -> None:
    with pytest.raises(ConfigError, match="unknown argument 'tyle'; did you mean 'tile'"):
        given("a", "--out", "o", "--tyle", "3")
    with pytest.raises(ConfigError, match="missing source, out"):
        given()
    with pytest.raises(ConfigError, match='"tile": Expected a'):
        given("a", "--out", "o", "--tile", "wide")


def test_no_traceback_without_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretran"]) == 2
    assert capsys.readouterr().err == "geomim: unknown verb 'pretran'; did you mean 'pretrain'?\n"
    assert main(["corpus", "inspect", "/nowhere"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("geomim: ") and "Traceback" not in error and "/nowhere" in error
    with pytest.raises(Exception, match="nowhere"):
        main(["corpus", "inspect", "/nowhere", "--debug"])


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(VERBS, "export", VERBS["export"]._replace(target="geomim.models.absent:export"))
    assert main(["export", "x"]) == 1 and "unexpected ModuleNotFoundError" in capsys.readouterr().err
    monkeypatch.setitem(VERBS, "export", VERBS["export"]._replace(target="no_such_library:export"))
    assert main(["export", "x"]) == 1
    assert "geomim export needs 'no_such_library'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert f"geomim {verb}" in page and "--" in page


def test_help_keeps_paragraphs_apart_and_examples_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("query", "search", "corpus embed"):
        with pytest.raises(SystemExit):
            main([*verb.split(), "--help"])
        page = capsys.readouterr().out
        shown = page.split("\n\nExamples:\n")[1].split("\n\n")[0].splitlines()
        assert all(line.startswith("    geomim ") for line in shown) and len(shown) > 1
        assert any(line.startswith(f"    geomim {verb} ") for line in shown)


def loaded(code: str) -> set[str]:
    """Modules that are loaded after running some code in a fresh interpreter."""
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(output.splitlines()[-1].split())


def test_light_paths_load_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "rasterio", "geopandas", "zarr", "timm", "numba", "pandas", "jsonargparse"}
    assert not heavy & loaded("import geomim; from geomim.cli import main; main(['--help'])")
    modules = (
        "scenes slicing quality duplicates.blocks store build changes audit exclusion combine sources.items".split()
    )
    corpus = "; ".join(f"import geomim.corpus.{module}" for module in modules)
    assert "torch" not in loaded(corpus)
    training = textwrap.dedent("""
        import geomim.models.weights, geomim.evaluate.probes, geomim.pretrain.module, geomim.data.datamodule
    """)
    assert not {"rasterio", "geopandas", "torchgeo", "open_clip"} & loaded(training)
