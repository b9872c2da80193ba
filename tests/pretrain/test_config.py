import re
from pathlib import Path

import pytest
import yaml
from tiny_corpus import write_corpus

from geomim.errors import ConfigError
from geomim.pretrain.half import arithmetic
from geomim.pretrain.recipes import RECIPES
from geomim.verbs.config import make_parser, read_config
from geomim.verbs.pretrain import run

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_says_how_to_run_it(path):
    config = read_config(["--config", str(path)])
    assert config.recipe in RECIPES and config.training.max_steps > 1
    comment = path.read_text().split("recipe:")[0]
    for words in (
        f"geomim pretrain --config configs/pretrain/{path.name}",
        "torchrun",
        "#SBATCH",
        "--signal=USR1@90",
        "Hardware",
        "Expect",
    ):
        assert words in comment, words


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_images_a_step_that_a_config_states_are_those_of_its_commands(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parents[1])  # commands name configs as seen from there
    comment, config = path.read_text().split("recipe:")[0].replace("\\\n#", " "), read_config(["--config", str(path)])
    stated = {int(found.replace(",", "")) for found in re.findall(r"(?:images/s / |(?:images|tiles) / )(\d+)", comment)}
    stated |= {int(found) for found in re.findall(r"accumulate stays (\d+)", comment)}
    for command in re.findall(r"(?:torchrun|srun).*", comment):
        name = f"--config configs/pretrain/{path.name}"
        assert name in command
        nodes, tasks = (
            int(found[1]) if command.startswith("srun") and (found := re.search(pattern, comment)) else 1
            for pattern in (r"--nodes=(\d+)", r"--ntasks-per-node=(\d+)")
        )
        world = int(found[1]) if (found := re.search(r"--nproc-per-node (\d+)", command)) else nodes * tasks
        ran = read_config(command.split("pretrain", 1)[1].replace("--resume last", "").split())
        step = ran.data.batch_size * ran.training.accumulate * world
        assert stated <= {step}, command
        assert step == config.data.batch_size * config.training.accumulate * (8 if "GPUs" in comment else 1)
    if "epochs *" in comment:
        epochs, number, step, steps = (
            int(one.replace(",", ""))
            for one in re.search(r"(\d+) epochs \* ([\d,]+) \w+ / (\d+) a step = ([\d,]+)", comment).groups()
        )
        assert stated == {step} and steps == epochs * number // step == config.training.max_steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_lists_a_recipes_own_arguments_and_no_zoo(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        read_config(["--recipe", recipe, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert ("--method.score" in said) == (recipe in ("selective_mae", "selective_latent", "selective_rils"))
    assert "Share of the patches that is seen" in said and "--encoder.patch_size" in said
    assert "torch.nn" not in said and "in_chans" not in said and len(said.splitlines()) < 340


def test_the_last_recipe_named_wins():
    small = str(CONFIGS / "small_cpu.yaml")
    assert read_config(["--config", small]).recipe == "mae"
    config = read_config(["--config", small, "--recipe", "selective_mae", "--training.max_steps", "7"])
    assert config.recipe == "selective_mae" and "score" in config.method and config.training.max_steps == 7
    assert config.method.decoder_depth == 2  # what both recipes take is kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--recipe", "selctive_mae"], "unknown recipe 'selctive_mae'; did you mean 'selective_mae'"),
        (["--data.batchsize", "3"], "the command line: unknown key 'data.batchsize'; did you mean 'data.batch_size'"),
        (["--method.visble=0.5"], "did you mean 'method.visible'"),
        (["--trainer.max_steps", "3"], "unknown key 'trainer.max_steps'.*training"),
        (["--encoder.in_chans", "4"], "unknown key 'encoder.in_chans'"),
        (["--data.batch_size", "many"], "data.batch_size.*many"),
        (["--training.precision", "fp8"], "precision.*fp8"),
        (["--optimizer.betas", "[1.5,2]"], r"betas in \[0, 1\).*given \[1.5, 2.0\]"),
        (["--optimizer.weight_decay", "-1"], "weight_decay of 0 or more; given .* -1.0"),
        (["--config", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_sentence(given, said):
    with pytest.raises(ConfigError, match=said) as refused:
        read_config(["--data.corpus", "c", *given])
    assert "\n" not in str(refused.value)


def test_a_wrong_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: mae\ndata: {corpus: c}\nmethod: {score: published}\n")  # of another recipe
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'method\.score'"):
        read_config(["--config", str(path)])
    for text, said in (
        ("- 1", "expected a mapping"),
        ("a: [", "cannot be read as YAML"),
        ("recipe: mae\nseed: 1 # \xe9", "cannot be read as YAML.*utf-8"),
        ("training: {max_steps: 7}\nrecipe: mae\ntraining: {log_every: 3}", "'training' is given twice.*line 3"),
        ("method: {visible: 0.2, visible: 0.3}", "'visible' is given twice"),
        ("recipe:", "unknown recipe 'None'; valid: .*mae"),
        ("recipe: [mae]", r"unknown recipe '\['mae'\]'; did you mean 'mae'"),
        ("recipe: 3", "unknown recipe '3'"),
        ("training:", "'training' expects keys such as training.accelerator; given None: leave it out"),
        ("data: [a]", r"'data' expects keys such as data.bands; given \['a'\]"),
        ("recipe: selective_mae\nmethod: {phases: 3}", "'method.phases' expects keys such as method.phases.far_from"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=said) as refused:
            read_config(["--config", str(path)])
        assert "\n" not in str(refused.value)


def test_nested_arguments_reach_the_recipe_typed():
    config = read_config(["--recipe", "selective_mae", "--data.corpus", "c", "--method.phases.near_until", "0.2"])
    assert config.method.phases.near_until == 0.2 and type(config.method.phases).__name__ == "Phases"
    assert make_parser("mae").get_defaults().training.max_steps == 10_000


def test_a_run_can_be_repeated_from_the_configuration_it_stores(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    given = {
        "recipe": "selective_mae",
        "method": {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2, "phases": {"near_until": 0.2}},
        "encoder": {"image_size": 16, "patch_size": 4, "width": 24, "depth": 1, "heads": 2},
        "data": {"corpus": str(corpus), "batch_size": 4, "workers": 0},
        "training": {"max_steps": 2, "log_every": 1, "accelerator": "cpu"},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    run(["--config", str(tmp_path / "given.yaml"), "--out", str(tmp_path / "runs"), "--name", "first"])
    stored = tmp_path / "runs" / "first" / "config.yaml"
    run(["--config", str(stored), "--name", "second"])
    tables = [(tmp_path / "runs" / name / "metrics.csv").read_text().splitlines() for name in ("first", "second")]
    losses = [[line.split(",")[1] for line in table] for table in tables]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    used = yaml.safe_load(stored.read_text())
    assert used["method"]["phases"]["near_until"] == 0.2
    assert used["training"]["precision"] == arithmetic("auto", "cpu")
