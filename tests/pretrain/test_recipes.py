"""What every recipe must do, whatever its parts."""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_recipes import CONTRASTS, LANGUAGE, TEXT, method, sentences
from tiny_teacher import write_teacher
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.hierarchical import Hierarchical, swin_v2
from geomim.models.joint import unit
from geomim.models.patches import unpatchify
from geomim.models.text import Stored, TextTower
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import TokenSplit
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.step import Step, join
from geomim.pretrain.targets import Alike, Answer
from geomim.randomness import Draws
from geomim.sensors import SENSORS, BandContract

SMALL = {"decoder_depth": 2, "decoder_width": 48, "decoder_heads": 4}
ON_SWIN = ("simmim", "satvision")
"""Recipes tested on a Swin that embeds 4 px and answers by 8 px."""


TEACHER: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory) -> None:
    TEACHER[:] = [write_teacher(tmp_path_factory.mktemp("teacher"))]


every_recipe = pytest.mark.parametrize("name", RECIPES)


def build(name: str, depth: int = 2) -> MaskedImageModel:
    torch.manual_seed(0)
    encoder = (
        tiny_swin() if name in ON_SWIN else ViT(in_chans=4, image_size=32, patch_size=4, width=48, depth=depth, heads=3)
    )
    encoder.contracts = {"naip": BandContract(SENSORS["naip"], (100.0,) * 4, (50.0,) * 4)}
    given = method(name, TEACHER[0], SMALL | {"decoder_depth": depth})
    return RECIPES[name](encoder, **given | ({"projector_width": 64} if "projector_width" in given else {}))


def tiny_swin() -> Hierarchical:
    encoder = swin_v2(in_chans=4, image_size=32, embed_size=4, width=24, depths=(2, 2), heads=(3, 6))
    for part, value in encoder.named_parameters():
        if ".norm1.weight" in part or ".norm2.weight" in part:
            torch.nn.init.constant_(value, 0.5)  # a new Swin V2 starts with branches that add nothing
    return encoder


def scenes(batch: int = 8) -> Tensor:
    """Smooth waves that differ between images and bands: something that can be predicted."""
    axis = torch.linspace(0, 6.28, 32)
    rate = torch.arange(1, batch + 1)[:, None, None, None] * 0.25
    band = torch.arange(4)[None, :, None, None]
    return torch.sin(rate * axis[None, None, :, None] + band) + torch.cos(rate * axis[None, None, None, :] - band)


def batch_of(model: MaskedImageModel, images: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
    """A batch with what else the model needs: sentences, or views of other numbers, as much of them measured."""
    view = {"image": images} if valid is None else {"image": images, "valid": valid}
    other = view | {"image": images * 0.9 + 0.1}
    text = {"text": sentences(len(images))} if "text" in model.needs else {}
    views = model.needs - {"text"}
    return view | text | ({"views": dict.fromkeys(views, other)} if views else {})


def step(model: MaskedImageModel, images: Tensor, progress: float = 0.3, seed: int = 0) -> Tensor:
    draws = Draws(seed, torch.arange(len(images)))
    return model(batch_of(model, images), torch.tensor(progress), draws).loss


@every_recipe
def test_overfits_eight_images(name: str) -> None:
    model, images = build(name), scenes()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = step(model, images).item()
    steps = 80 if name in ON_SWIN else 40  # a window's attention learns more slowly
    for number in range(steps):
        model.before_step(torch.tensor(number / steps))
        optimiser.zero_grad()
        loss = step(model, images)
        loss.backward()
        optimiser.step()
    share = 0.5**0.5 if name in ON_SWIN else 0.5  # an absolute error falls as the root of a squared one
    assert loss.item() < (0.6 if "latent" in name else share) * first  # targets that move are further ahead


@every_recipe
@pytest.mark.parametrize("nodata", [False, True])
def test_every_trainable_parameter_gets_a_gradient(name: str, nodata: bool) -> None:
    model = build(name)
    valid = torch.ones(8, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :10] = False
    batch = batch_of(model, scenes(), valid if nodata else None)
    model(batch, torch.tensor(0.3), Draws(0, torch.arange(8))).loss.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # the bias of keys shifts all logits of a query alike, so softmax cancels it; it lives inside qkv and kv
    assert silent == []


def hidden_pixels(model: MaskedImageModel, context: Context, splits: dict[str, TokenSplit], name: str) -> Tensor:
    """What the encoder must not see of a token set: `(B, 1, H, W)` bool."""
    view, hidden = context.views[name], splits[name].hidden
    if hidden is None:
        hidden = torch.ones(len(view.image), view.length, dtype=torch.bool).scatter(1, splits[name].visible, False)
    return unpatchify(view.pixels_of(hidden), view.grid, model.encoder.patch_size)


def spoiled(batch: dict[str, Any], name: str, where: Tensor) -> dict[str, Any]:
    """A batch with other pixels `where (B, 1, H, W)` says, in the view of a token set."""
    view, _, _ = name.partition("/")
    if view == "image":
        return batch | {"image": torch.where(where, 77.0, batch["image"])}
    other = batch["views"][view]
    return batch | {"views": batch["views"] | {view: other | {"image": torch.where(where, 77.0, other["image"])}}}


def about(term: Term) -> set[str]:
    """Token sets that a term reads, and that it asks about."""
    return {term.view, *term.memory}


@pytest.mark.parametrize("name", [one for one in RECIPES if one != "remote_clip"])  # which hides nothing
def test_hidden_pixels_do_not_leak(name: str) -> None:
    """Neither into what is encoded nor into what is predicted, of any token set."""
    model, images = build(name), scenes()
    draws, progress = Draws(0, torch.arange(8)), torch.tensor(0.9)
    batch = batch_of(model, images)
    context = model.context(batch, draws)
    splits = model.masking(context, progress)
    others = {"dmjd": {"image/2"}, "can_inspired": {"second"}}
    assert set(splits) == {"image"} | others.get(name, set())
    for one in splits:
        where = hidden_pixels(model, context, splits, one)
        assert 0.05 < where.float().mean() < 0.95
        contexts = [model.context(spoiled(batch, one, hidden), draws) for hidden in (torch.zeros_like(where), where)]
        encoded = [model.encode(given, splits, one).tokens for given in contexts]
        assert torch.equal(*encoded)
        asked = [[term for term in model.ask(given, splits) if one in about(term.term)] for given in contexts]
        assert len(asked[0]) == (2 if name == "can_inspired" else len(model.terms) / len(splits))
        for before, after in zip(*asked, strict=True):
            if before.term.memory == ("image:all",):  # it is meant to see them
                continue
            assert torch.equal(before.prediction, after.prediction), before.term.name
            if before.term.name == "contrast" and name == "can_inspired":
                assert torch.equal(before.answer.values, after.answer.values)
            if before.term.where == "predict" and not isinstance(before.term.target, Alike):  # it did change
                assert not torch.equal(before.answer.values, after.answer.values), before.term.name


@every_recipe
def test_nodata_changes_nothing(name: str) -> None:
    """What stands in invalid pixels must not matter: not for the mask, not for the loss."""
    model, images = build(name), scenes()
    valid = torch.ones(8, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :, :8] = False
    valid[0] = False

    def loss(fill: float) -> Tensor:
        batch = batch_of(model, torch.where(valid, images, fill), valid)
        return model(batch, torch.tensor(0.0), Draws(0, torch.arange(8))).loss

    torch.testing.assert_close(loss(0.0), loss(1e4), rtol=1e-5, atol=1e-6)


def test_a_tile_of_which_either_crop_holds_nothing_is_not_told_apart() -> None:
    model, valid = build("can_inspired", 1), torch.ones(3, 1, 32, 32, dtype=torch.bool)
    one, other = valid.clone(), valid.clone()
    one[0], other[1] = False, False
    batch = batch_of(model, scenes(3), one)
    batch = batch | {"weight": torch.tensor([1.0, 1.0, 2.0])}
    batch["views"]["second"] = batch["views"]["second"] | {"valid": other}
    weights = model.plan(model.context(batch, Draws(0, torch.arange(3))), torch.tensor(0.3)).weights
    found = {term.name: row.tolist() for term, row in zip(model.terms, weights, strict=True)}
    assert found == {"contrast": [0, 0, 2], "pixels_image": [0, 1, 2], "pixels_second": [1, 0, 2]}


@every_recipe
def test_repeats_exactly_under_a_seed(name: str) -> None:
    assert step(build(name), scenes()) == step(build(name), scenes())
    assert (step(build(name), scenes()) != step(build(name), scenes(), seed=1)) == (name != "remote_clip")


@pytest.mark.parametrize("name", [one for one in RECIPES if one not in CONTRASTS])
def test_loss_of_a_batch_is_the_mean_of_its_parts(name: str) -> None:
    model, images = build(name), scenes()
    whole = step(model, images)
    parts = [
        model(batch_of(model, images[i : i + 4]), torch.tensor(0.3), Draws(0, torch.arange(i, i + 4))).loss
        for i in (0, 4)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-5, atol=1e-6)


@every_recipe
def test_runs_in_bfloat16_and_without_graph_breaks(name: str) -> None:
    depth = 2 if name == "mask_align" else 1  # which compares two levels; elsewhere a second block traces as the first
    model, images = build(name, depth), scenes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(model, images)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, step(model, images), rtol=0.03, atol=0.03)
    progress, positions, batch = torch.tensor(0.3), torch.arange(8), batch_of(model, images)

    def forward(pixels: Tensor) -> Tensor:
        return model(batch | {"image": pixels}, progress, Draws(0, positions)).loss

    explained = torch._dynamo.explain(forward)(images)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_bank_of_sentences_is_kept_and_needs_none_of_the_batch() -> None:
    torch.manual_seed(0)
    encoder = ViT(in_chans=4, image_size=32, patch_size=4, width=48, depth=2, heads=3)
    given = method("selective_rils", "", SMALL) | {"bank": ["an airport", "a beach", "a forest", "A  beach"]}
    for changes, said in (
        ({}, "--method.bank needs a text tower that knows its sentences.*--method.text.weights"),
        ({"weight": 0}, "--method.weight is 0"),
        ({"weight": (0.0, 0.0)}, "--method.weight is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            RECIPES["selective_rils"](encoder, **given | changes)
    given["text"] = Stored(given["text"].build().config, "open_clip:a")
    for bank in ([], ["a beach"], ["a beach", "a beach"], ["a beach", " "]):
        with pytest.raises(ConfigError, match="at least two different sentences"):
            RECIPES["selective_rils"](encoder, **given | {"bank": bank})
    model = RECIPES["selective_rils"](encoder, **given)
    batch = {"image": scenes(), "text": sentences(8)}
    batch["text"]["of"] = torch.full((8,), -1)
    output = model(batch, torch.tensor(0.3), Draws(0, torch.arange(8)))
    assert output.terms["language"] > 0 and output.terms["contrast"] == 0
    (bank,) = (value for name, value in model.state_dict().items() if name.endswith("bank"))
    assert bank.shape == (3, model.joint.dim) and not bank.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("latents", [0.0, 0.1])
def test_a_copy_that_follows_is_one_and_says_the_prototypes(frozen: bool, latents: float) -> None:
    torch.manual_seed(0)
    encoder = ViT(in_chans=4, image_size=32, patch_size=4, width=48, depth=2, heads=3)
    given = method("selective_rils", "", SMALL) | {"teacher": "ema", "latents": latents}
    model = RECIPES["selective_rils"](encoder, **given | {"text": replace(TEXT, frozen=frozen)})
    copies = [part for part in model.modules() if isinstance(part, ViT | TextTower)]
    assert len(copies) == (3 if frozen else 4)  # the encoder and its copy, the text tower and its own
    batch, progress, draws = {"image": scenes(), "text": sentences(8)}, torch.tensor(0.3), Draws(0, torch.arange(8))
    with torch.no_grad():
        for one in (*model.joint.text.parameters(), *encoder.parameters()):
            one.add_(torch.randn_like(one) * 0.1)
    context = model.context(batch, draws)
    said = model.said(context, model.plan(context, progress))[0]["contrast"]
    assert (said.prototype is None) == frozen
    space = model.terms[1].loss
    before = model(batch, progress, draws).terms["language"]
    if not frozen:
        assert not torch.allclose(said.prototype, said.answer, atol=1e-3)
        tower = next(part for part in copies[1:] if isinstance(part, TextTower) and part is not model.joint.text)
        expected = unit(tower(batch["text"]["tokens"]))[batch["text"]["of"].clamp(min=0)]
        torch.testing.assert_close(said.prototype, expected.detach())
        twice = said._replace(answer=said.prototype, prototype=None)
        key = torch.zeros(1, 8)
        predicted = Answer(torch.nn.functional.normalize(torch.randn(8, 3, model.joint.dim), dim=-1))
        losses = [
            space(predicted.values.flip(1), predicted, None, Step({"contrast": one}, key, torch.arange(8)))
            for one in (said, twice)
        ]
        assert torch.equal(*losses)
    model.before_step(torch.tensor(0.0))
    after = model(batch, progress, draws).terms["language"]
    assert before.isfinite() and after.isfinite() and before != after  # it moved


def test_the_copy_of_the_text_tower_speaks_once_a_batch_and_not_before_anyone_listens() -> None:
    torch.manual_seed(0)
    encoder, calls = ViT(in_chans=4, image_size=32, patch_size=4, width=48, depth=2, heads=3), []
    model = RECIPES["selective_rils"](encoder, **method("selective_rils", "", SMALL) | {"teacher": "ema"})
    model.terms[1].target.copy["text"].register_forward_pre_hook(lambda *_: calls.append(1))
    batch, progress, draws = {"image": scenes(), "text": sentences(8)}, torch.tensor(0.3), Draws(0, torch.arange(8))
    for done, count in ((0.0, 0), (0.3, 1)):
        model.begin(done)
        context = model.context(batch, draws)
        plan = model.plan(context, progress)
        (step,) = join([model.said(context, plan)])
        model.compare(context, plan, progress, plan.weights.sum(1), step)
        assert len(calls) == count
        model.predict(batch, progress, draws)
        assert len(calls) == count
        model(batch, progress, draws)  # a step that is no more than this batch
        assert len(calls) == 2 * count


def test_a_term_that_weighs_nothing_from_first_to_last_is_left_out() -> None:
    encoder = ViT(in_chans=4, image_size=32, patch_size=4, width=48, depth=2, heads=3)
    for nothing in (0.0, (0.0, 0.0)):
        given = method("selective_rils", "", SMALL) | dict.fromkeys(("weight", "pixels", "latents"), nothing)
        assert [term.name for term in RECIPES["selective_rils"](encoder, **given).terms] == ["contrast"]


def test_weights_of_terms_go_from_one_to_another_over_training() -> None:
    model, images = build("selective_rils"), scenes()
    for progress in (0.0, 0.5, 1.0):
        batch = {"image": images, "text": sentences(8)}
        output = model(batch, torch.tensor(progress), Draws(0, torch.arange(8)))
        pixels, terms = 0.5 - 0.3 * progress, output.terms
        expected = terms["contrast"] + 0.25 * terms["language"] + pixels * terms["pixels"] + 0.1 * terms["latents"]
        torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_temperature_beyond_its_range_comes_back(name: str) -> None:
    model, images = build(name), scenes()
    with torch.no_grad():
        model.joint.logit_scale.fill_(5.0)
    model.before_step(torch.tensor(0.3))
    assert model.joint.scale.item() == pytest.approx(100)
    step(model, images).backward()
    assert model.joint.logit_scale.grad > 0  # so sharp a space that knows nothing is very wrong


@every_recipe
def test_docstring_names_paper_and_honesty(name: str) -> None:
    recipe = RECIPES[name]
    document = inspect.getdoc(recipe) or ""
    assert "et al." in document and "Verified" in document
    source = inspect.getsource(recipe)
    body = source.split('"""')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
