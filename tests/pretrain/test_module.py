import csv
import itertools
import math

import numpy as np
import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import annotated, method

from geomim.data.datamodule import TileDataModule
from geomim.errors import CheckpointError, ConfigError, GeomimError
from geomim.pretrain.monitor import MetricsTable, collapse, reconstructions
from geomim.pretrain.optimisation import AdamW, Optimisation, parameter_groups
from geomim.verbs.pretrain import Training, build, train
from geomim.verbs.watching import Watching

ENCODER = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
QUICK = {"precision": "32-true", "accelerator": "cpu", "progress_bar": False, "log_every": 2}


def data(corpus, **options):
    return TileDataModule(str(corpus), **({"batch_size": 4, "image_size": 16, "workers": 0} | options))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("module") / "corpus", nodata=True)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training = Training(max_steps=4, checkpoint_every=4, milestones=2, **QUICK)
    train(data(corpus), folder, "mae", METHOD, ENCODER, training=training, watch=Watching(every=4))
    return folder


def test_the_optimiser_is_that_of_torch():
    ends = []
    for kind in (AdamW, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.arange(3.0))
        optimiser = kind([weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            ((weight - 1) ** 2).sum().backward()
            optimiser.step()
        assert weight.requires_grad and torch.is_grad_enabled()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_schedule_rises_then_falls_on_steps():
    settings = Optimisation(warmup=0.1, final=0.25)
    factors = [settings.factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.625) and factors[100] == pytest.approx(0.25)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert Optimisation(warmup=0).factor(0, 10) == 1.0
    with pytest.raises(ConfigError, match="warmup"):
        Optimisation(warmup=40)


def test_only_matrices_decay(corpus):
    model = build(data(corpus), "mae", METHOD, ENCODER).model
    decay, plain = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in plain["params"]:
        assert names[id(parameter)].endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight", "_token"))
    for parameter in decay["params"]:
        assert names[id(parameter)].endswith("weight") and "norm" not in names[id(parameter)]
    assert len(decay["params"]) + len(plain["params"]) == sum(one.requires_grad for one in model.parameters())


def test_learning_rates_fall_from_block_to_block_towards_the_embedding(corpus, tmp_path):
    model = build(data(corpus), "mae", METHOD, ENCODER | {"depth": 3}).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, 0.5)
    scales = {names[id(one)]: group["scale"] for group in groups for one in group["params"]}
    decays = {names[id(one)]: group["weight_decay"] for group in groups for one in group["params"]}
    assert len(scales) == sum(one.requires_grad for one in model.parameters())
    for name, scale in scales.items():
        places = {"encoder.cls_token": 4, "encoder.patch_embed": 4, **{f"encoder.blocks.{i}.": 3 - i for i in range(3)}}
        assert scale == 0.5 ** next((place for start, place in places.items() if name.startswith(start)), 0), name
    assert {
        name: decay
        for group in parameter_groups(model, 0.05)
        for one in group["params"]
        for name, decay in [(names[id(one)], group["weight_decay"])]
    } == decays
    training = Training(max_steps=2, checkpoint_every=1, **QUICK)
    last = train(data(corpus), tmp_path, "mae", METHOD, ENCODER, Optimisation(layer_decay=0.5), training)
    rates = {group["scale"]: group["lr"] for group in torch.load(last)["optimizer_states"][0]["param_groups"]}
    assert rates[0.25] == pytest.approx(rates[1.0] / 4) and rates[0.5] == pytest.approx(rates[1.0] / 2)
    with pytest.raises(ConfigError, match="layer_decay"):
        Optimisation(layer_decay=1.5)


def test_a_run_leaves_figures_pictures_and_checkpoints(run):
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(math.isfinite(float(row["loss"])) and float(row["images_per_second"]) > 0 for row in rows)
    assert float(rows[1]["embedding_rank"]) >= 1 and float(rows[1]["images"]) == 16
    assert list((run / "tensorboard").glob("events*")) and (run / "reconstructions" / "step-0000004.png").is_file()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["last.ckpt", "step-0000002.ckpt", "step-0000004.ckpt"]


def test_a_checkpoint_says_where_it_comes_from_in_plain_data(run, corpus):
    checkpoint = torch.load(run / "checkpoints" / "step-0000002.ckpt", weights_only=True)
    entry = checkpoint["geomim"]
    assert entry["recipe"] == "mae" and entry["recipe_args"] == METHOD and entry["corpus"] == [str(corpus)]
    usual = {"family": "vit", "in_chans": 3, "image_size": 16, "mlp_ratio": 4.0, "class_token": True}
    assert entry["encoder"] == usual | {"gsd_positions": False, "spectral": False} | ENCODER
    assert entry["contracts"]["rgb"]["sensor"]["name"] == "rgb" and entry["contracts"]["rgb"]["mean"] == [125.0] * 3
    assert entry["step"] == 2 and entry["progress"] == 0.5 and entry["format_version"] == 3
    assert "model.encoder.patch_embed.proj.weight" in checkpoint["state_dict"]


def test_another_recipe_encoder_or_contract_cannot_go_on(run, corpus):
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    build(data(corpus), "mae", METHOD, ENCODER).on_load_checkpoint(checkpoint)
    for recipe, encoder, said in (
        ("cross_mae", ENCODER, "recipe mae, this run has cross_mae"),
        ("mae", ENCODER | {"depth": 2}, "encoder.depth 1, this run has 2"),
    ):
        with pytest.raises(CheckpointError, match=said):
            build(data(corpus), recipe, METHOD, encoder).on_load_checkpoint(checkpoint)
    checkpoint["geomim"]["contracts"]["rgb"]["sensor"]["bands"][0]["name"] = "B04"
    with pytest.raises(CheckpointError, match="B04, this run has red"):
        build(data(corpus), "mae", METHOD, ENCODER).on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="not written by geomim"):
        build(data(corpus), "mae", METHOD, ENCODER).on_load_checkpoint({})


def test_a_term_that_had_started_goes_on_in_a_longer_run(tmp_path, capsys):
    corpus = annotated(write_corpus(tmp_path / "corpus"))

    def made(steps):
        given = method("selective_rils", "") | {"starts": 0.3}
        return build(data(corpus), "selective_rils", given, ENCODER, training=Training(max_steps=steps))

    def starts(module):
        return {term.name: term.starts for term in module.model.terms}["language"]

    for step, steps, kept in ((4, 100, 0.0), (3, 100, 0.3), (4, 12, 0.3)):  # step 4 of 10 begins at 0.3
        again = made(steps)
        again.on_load_checkpoint({"geomim": made(10).description() | {"step": step, "progress": step / 10}})
        said = capsys.readouterr().out
        assert starts(again) == kept, (step, steps)
        assert ("'language' starts at 30% of training; it had started" in said) == (not kept)
    longer = made(200)
    again = made(100)
    again.on_load_checkpoint({"geomim": made(10).description() | {"step": 4, "progress": 0.4}})
    longer.on_load_checkpoint({"geomim": again.description() | {"step": 5, "progress": 0.05}})
    assert starts(longer) == 0


def test_what_a_term_learns_does_not_decay_before_it_starts(tmp_path):
    corpus, decoders = annotated(write_corpus(tmp_path / "corpus")), []
    given = method("selective_rils", "") | {"starts": 0.5}
    training = Training(4, 1, "32-true", "cpu", progress_bar=False, milestones=4)
    optimizer = Optimisation(weight_decay=0.5, base_learning_rate=1.0)
    train(data(corpus), tmp_path / "run", "selective_rils", given, ENCODER, optimizer, training)
    for path in sorted((tmp_path / "run" / "checkpoints").glob("step*")):
        state = torch.load(path, weights_only=True)["state_dict"]
        own = [one for name, one in state.items() if name.startswith("model.terms.1.decoder")]
        decoders.append(torch.cat([one.flatten() for one in own]))
    assert len(decoders) == 4 and torch.equal(decoders[0], decoders[1])
    assert not torch.equal(decoders[1], decoders[2])


def test_losses_of_tiles_are_forgotten_as_a_term_begins_and_that_is_said_where_a_resumed_run_begins(tmp_path, capsys):
    corpus = annotated(write_corpus(tmp_path / "corpus"), mute=())
    given = method("selective_rils", "") | {"starts": 0.5}
    training = Training(**QUICK | {"max_steps": 6, "milestones": 6, "prune": 0.5, "log_every": 1})

    def run(name, resume=None):
        train(data(corpus), tmp_path / name, "selective_rils", given, ENCODER, training=training, resume=resume)
        assert capsys.readouterr().out.count("step 4: 'language' is asked from here on") == 1
        paths = sorted((tmp_path / name / "checkpoints").glob("step*"))
        return paths, [torch.load(path, weights_only=True)["pruning"]["losses"] for path in paths]

    paths, losses = run("whole")
    known = [int(one.isfinite().sum()) for one in losses]
    assert known[2] == 3 * known[0] > known[3] == known[0]
    torch.testing.assert_close(run("half", paths[2])[1], losses[3:], atol=0, rtol=0, equal_nan=True)


def test_a_run_is_not_overwritten(run, corpus, tmp_path):
    with pytest.raises(ConfigError, match="--resume last"):
        train(data(corpus), run, "mae", METHOD, ENCODER)
    with pytest.raises(ConfigError, match="does not exist"):
        train(data(corpus), tmp_path, "mae", METHOD, ENCODER, resume="nowhere.ckpt")


def test_a_loss_that_is_not_finite_stops_and_stores_nothing(corpus, tmp_path):
    training = Training(max_steps=4, checkpoint_every=1, **QUICK)
    broken = data(corpus)
    broken.augment.statistics["rgb"][1] = torch.full((3, 1, 1), 1e-38)
    with pytest.raises(GeomimError, match=r"optimizer\.base_learning_rate"):
        train(broken, tmp_path, "mae", METHOD | {"normalise": "none"}, ENCODER, training=training)
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


def test_collapse_tells_one_direction_from_many():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(200, 16, generator=generator)
    figures = collapse(spread)
    assert abs(figures["embedding_cosine"]) < 0.02
    assert figures["embedding_std"] == pytest.approx(1, abs=0.05) and figures["embedding_rank"] > 15
    figures = collapse(torch.randn(200, 1, generator=generator).abs() * torch.randn(16, generator=generator) + 5)
    assert figures["embedding_rank"] == pytest.approx(1, abs=1e-3) and figures["embedding_cosine"] > 0.5
    figures = collapse(torch.ones(10, 16))
    assert figures["embedding_cosine"] == pytest.approx(1) and figures["embedding_std"] == pytest.approx(0, abs=1e-6)


def test_reconstructions_show_input_visible_and_predicted(corpus, tmp_path):
    module = data(write_corpus(tmp_path / "corpus"))
    model = build(module, "mae", METHOD, ENCODER).model
    pictures = reconstructions(model, module.pictures(3), module.contracts["rgb"])
    assert pictures.shape == (3, 3, 16, 16, 3) and pictures.min() >= 0 and pictures.max() <= 1
    shown, answered = (~np.isclose(pictures[:, row], 0.5).all(-1) for row in (1, 2))
    assert shown.mean() == 0.25 and answered.all()  # all patches are seen or predicted
    assert np.array_equal(pictures[:, 1][shown], pictures[:, 0][shown])
    assert np.array_equal(pictures[:, 2][shown], pictures[:, 0][shown])
    batch = data(corpus).pictures(3)
    pictures = reconstructions(model, batch, module.contracts["rgb"])
    hidden = ~batch["valid"][:, 0].numpy()
    assert hidden.any() and (pictures.transpose(0, 2, 3, 1, 4)[hidden] == 1).all()  # not measured is white


def test_figures_go_on_after_a_resume_and_what_is_repeated_is_overwritten(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        table.log_metrics({"loss": float(step)}, step)
    table.log_metrics({"embedding_rank": 2.0}, 3)
    again = MetricsTable(tmp_path / "metrics.csv")
    again.log_metrics({"loss": 20.0}, 2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss,embedding_rank", "1,1,", "2,20,"]


def test_gradients_are_clipped_in_half_precision(corpus, tmp_path):
    def weights(clip):
        training = Training(max_steps=1, clip=clip, **QUICK | {"precision": "bf16-mixed"})
        last = train(data(corpus), tmp_path / str(clip), "mae", METHOD, ENCODER, training=training)
        return torch.load(last, weights_only=True)["optimizer_states"][0]["state"]

    squared = [sum(state["exp_avg"].square().sum() for state in weights(clip).values()) for clip in (None, 1e-3)]
    assert squared[1].sqrt().item() == pytest.approx(1e-3 * 0.1, rel=0.01) and squared[0] > squared[1]
