import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_corpus import write_corpus

import geomim
from geomim.cli import SPINS, VERBS, _may_open_task, main, parse
from geomim.errors import ConfigError
from geomim.pretrain.recipes import RECIPES
from geomim.standins import standing_in

TRAINING = set("torch lightning timm safetensors sympy zarr numcodecs pyarrow PIL".split())
WORKING = TRAINING | set(
    "torchvision torchmetrics torchgeo open_clip transformers tensorboard scipy sklearn pandas geopandas rasterio "
    "shapely pyproj xarray duckdb numba matplotlib dask".split()
)
"""Libraries that do the work, and take time to load; of them those that training uses."""


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


PAGES = [*VERBS, *(f"pretrain --recipe {recipe}" for recipe in RECIPES)]

AS_COMMANDS = """
import contextlib, io, json, sys
from geomim.cli import main
said = []
for words in json.loads(sys.argv.pop()):
    out = io.StringIO()
    sys.argv[1:] = words
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main()
    said.append(out.getvalue())
print(json.dumps([said, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def as_commands(*words: list[str]) -> tuple[list[str], set[str]]:
    """What each of some command lines says, and the libraries that are loaded then: one process for all of them."""
    command = [sys.executable, "-c", AS_COMMANDS, json.dumps(words)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "100"})
    said, loaded = json.loads(run.stdout)
    return said, set(loaded)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The help of everything, of which none loads a library that does work."""
    said, loaded = as_commands(*([*page.split(), "--help"] for page in PAGES))
    assert not WORKING & loaded
    return dict(zip(PAGES, said, strict=True))


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_explains_itself_as_if_its_libraries_were_loaded(page, pages, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*page.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"geomim {page.partition(' --')[0]}" in shown and "--" in shown
    assert pages[page] == shown


def test_verbs_load_what_they_use() -> None:
    wrong = [[*verb.split(), "--no_such_flag", "1"] for verb in VERBS if VERBS[verb].extra == "corpus"]
    said, loaded = as_commands(*wrong, ["plot", "nowhere"])
    assert all("no_such_flag" in line for line in said[:-1]) and "no figures" in said[-1]
    assert not {"torch", "lightning", "timm", "torchvision"} & loaded
    wrong = [[*verb.split(), "--no_such_flag", "1"] for verb in VERBS if VERBS[verb].extra in ("train", "language")]
    said, loaded = as_commands(*(words for words in wrong if words[0] != "plot"))
    assert all("no_such_flag" in line for line in said) and {"torch", "lightning", "timm"} <= loaded
    assert not loaded & (WORKING - TRAINING)


A_RUN = """
import gc, sys
from geomim.cli import main
from geomim.standins import StandIn
assert main() == 0 and gc.isenabled()
unused = "torch._dynamo torch.distributed.fsdp torch.distributed.tensor sympy torchvision torchmetrics".split()
assert "lightning" in sys.modules and not {*unused} & {*sys.modules}, {*unused} & {*sys.modules}
torchs = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] == "torch"]
assert not [one for names in torchs for one in names.values() if isinstance(one, StandIn)]

import torch, torchmetrics, torchvision.transforms as transforms
transforms.Resize(2), torchmetrics.MeanMetric()
assert torch.compile(lambda one: one + 1, backend="eager")(torch.ones(2)).sum() == 4
"""


def test_training_starts_without_what_it_does_not_use_which_can_be_loaded_afterwards(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", 8)
    words = f"pretrain --recipe mae --data.corpus {tmp_path / 'c'} --data.batch_size 2 --data.workers 0"
    words += " --encoder.depth 1 --encoder.width 32 --encoder.heads 2 --encoder.image_size 16 --encoder.patch_size 8"
    words += f" --training.max_steps 1 --training.accelerator cpu --out {tmp_path / 'runs'}"
    run = subprocess.run([sys.executable, "-c", A_RUN, *words.split()], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "runs" / "mae" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], monkeypatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # undone with the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["geomim", "--version"])
    main()
    assert os.environ.get("GOMP_SPINCOUNT") == {"": SPINS, "7": "7", "active": None}[next(iter(given.values()), "")]


def test_what_was_left_out_changes_nothing_while_modules_load_and_never_answers_later() -> None:
    with standing_in({"absent"}.__contains__):
        from absent.deep import decorate, names  # type: ignore[import-not-found]

        assert decorate(max) is max and list(names) == []
    for asked in (lambda: decorate(max), lambda: list(names)):
        with pytest.raises(RuntimeError, match="is asked for, and was left out"):
            asked()


def test_signals_that_a_system_lacks_are_not_asked_for() -> None:
    assert loaded("import signal; del signal.SIGUSR1; from geomim.errors import STOPS; assert len(STOPS) == 2")
    asking = [path for path in Path(geomim.__file__).parent.rglob("*.py") if "signal.SIGUSR1" in path.read_text()]
    assert not asking


def test_help_as_a_value_is_no_work() -> None:
    (said,), _ = as_commands(["plot", "nowhere", "--out", "-h"])
    assert "'-h' and '--help' ask for help; as a value" in said


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


def test_predict_brings_the_libraries_of_tasks_only_where_a_task_may_be_named(tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "task.ckpt").touch()
    (tmp_path / "evaluation").mkdir()
    for words, may in (
        (["--model", str(tmp_path / "tuned")], True),
        ([f"--model={tmp_path / 'tuned'}"], True),
        (["--model", "elsewhere/task.ckpt"], True),
        (["--config", "predict.yaml"], True),
        (["--model", str(tmp_path / "evaluation")], False),
        (["--model", "evaluation/linear.safetensors", "--out", "map.tif"], False),
    ):
        assert _may_open_task(["predict", "scene.tif", *words]) == may, words
