"""The copy that follows, the loss that tells patches apart, and patches cut with gaps between them."""

import math

import pytest
import torch
from tiny_corpus import write_corpus
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError
from geomim.models.decoders import Projector
from geomim.models.patches import patchify
from geomim.models.vit import ViT
from geomim.models.weights import read_encoder
from geomim.pretrain.context import Context, View
from geomim.pretrain.losses import discriminate, similarity
from geomim.pretrain.recipes import latent_mim, selective_latent
from geomim.pretrain.targets import Alike, Answer, EmaLatent
from geomim.pretrain.targets.latent import follow
from geomim.randomness import Draws
from geomim.verbs.pretrain import Training, train

SMALL = {"decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2, "projector_width": 24}


def encoder(image_size: int = 32, **options):
    torch.manual_seed(0)
    return ViT(
        **{"in_chans": 2, "image_size": image_size, "patch_size": 8, "width": 24, "depth": 1, "heads": 2} | options
    )


def draws(count: int = 2, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(count))


def test_the_copy_moves_by_its_share_of_the_way_and_then_stands_still():
    network = encoder()
    projector = Projector(24, 16)
    target = EmaLatent(network, projector, momentum=0.9)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    network.register_buffer("pos_embed", network.pos_embed + 1)
    with torch.no_grad():
        for parameter in (*network.parameters(), *projector.parameters()):
            parameter.add_(torch.randn_like(parameter))
    online = {f"encoder.{name}": value for name, value in network.state_dict().items()}
    online |= {f"projector.{name}": value for name, value in projector.state_dict().items()}
    assert set(online) == set(before)  # the copy holds what it copies, and not the encoder itself
    for progress in (0.0, 0.5, 1.0):
        share = 0.1 * 0.5 * (1 + math.cos(math.pi * progress))
        before = {name: value.clone() for name, value in target.state_dict().items()}
        target.before_step(torch.tensor(progress))
        for name, value in target.state_dict().items():
            torch.testing.assert_close(
                value, before[name] + share * (online[name] - before[name]), rtol=1e-6, atol=1e-7
            )
            assert progress == 1 or not torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not target.train().training


def test_tied_weights_follow_once():
    tied = [nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2)]
    for value, (one, other) in enumerate(tied):
        other.weight = one.weight
        nn.init.constant_(one.weight, float(value))
    follow(tied[:1], tied[1:], torch.tensor(0.0), 0.75)
    assert torch.equal(tied[0][1].weight, torch.full((2, 2), 0.25)) and tied[0][0].weight is tied[0][1].weight


@pytest.mark.parametrize("projected", [False, True])
def test_the_copy_sees_the_asked_patches_alone(projected):
    network = encoder()
    projector = Projector(24, 16) if projected else None
    images = torch.randn(2, 2, 32, 32)
    spoiled = images.clone()
    spoiled[:, :, 24:] = 9.0  # patches 12 to 15
    positions = torch.tensor([[3, 1, 7], [0, 11, 4]])
    target = EmaLatent(network, projector)
    one, other = (target(View(pixels, None, network), positions) for pixels in (images, spoiled))
    assert torch.equal(one.values, other.values)
    assert one.values.shape == (2, 3, target.dim) and one.values.dtype == torch.float32
    assert not one.values.requires_grad


def test_no_latent_of_a_patch_depends_on_what_was_not_measured():
    network = encoder()
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :8] = False
    images = torch.randn(2, 2, 32, 32)
    positions = torch.tensor([[3, 9, 7], [12, 11, 4]])  # patch 3 is nodata
    target = EmaLatent(network)
    one, other = (
        target(View(torch.where(valid, images, fill), valid, network), positions).values for fill in (0.0, 50.0)
    )
    torch.testing.assert_close(one[0, 1:], other[0, 1:])
    torch.testing.assert_close(one[1], other[1])


def by_hand(prediction: Tensor, right: Tensor, temperature: float) -> Tensor:
    ours = (prediction - prediction.mean(0)) / (prediction.std(0) + 1e-4)
    logits = F.normalize(ours, dim=-1) @ F.normalize(right, dim=-1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(right))) * 2 * temperature


def test_patches_that_weigh_nothing_are_neither_asked_nor_offered():
    prediction, right = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    weight = torch.tensor([[1.0, 1, 0, 1, 1, 0], [0.0, 0, 0, 0, 0, 0]])
    kept = [0, 1, 3, 4]
    expected = by_hand(prediction[0, kept], right[0, kept], 0.1)
    spoiled = [torch.where(weight[..., None] > 0, values, 1e3) for values in (prediction, right)]
    for ours, theirs in ((prediction, right), spoiled):
        found = discriminate(ours, Answer(theirs), weight, 0.1)
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
        assert torch.isfinite(found).all()
    torch.testing.assert_close(
        discriminate(prediction, Answer(right), None, 0.1)[1], by_hand(prediction[1], right[1], 0.1)
    )


def test_patches_that_are_the_same_are_not_told_apart():
    prediction, right = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    right[0, 2] = 3 * right[0, 1]
    plain, loss = (discriminate(prediction, Answer(right), None, 0.2, same) for same in (None, 0.999))
    ours = F.normalize((prediction - prediction.mean(1)) / (prediction.std(1) + 1e-4), dim=-1)
    cosine = (ours @ F.normalize(right, dim=-1).transpose(1, 2))[0] / 0.2
    cosine[1, 2] = cosine[2, 1] = -torch.inf
    torch.testing.assert_close(loss[0], F.cross_entropy(cosine, torch.arange(4)) * 0.4, rtol=1e-4, atol=1e-5)
    assert loss < plain
    right[:] = 1.0
    assert discriminate(prediction, Answer(right), None, 0.2, 0.999) == 0


def test_predictions_or_targets_that_are_all_the_same_give_numbers():
    for same in (None, 0.999):
        for ours, theirs in ((torch.ones(1, 5, 8), torch.randn(1, 5, 8)), (torch.randn(1, 5, 8), torch.ones(1, 5, 8))):
            prediction = ours.clone().requires_grad_()
            loss = discriminate(prediction, Answer(theirs), None, 0.2, same).sum()
            loss = loss + similarity(prediction, Answer(torch.full((1, 5, 1), 0.5)), None).sum()
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(prediction.grad).all()


def test_the_wanted_cosine_falls_and_punishes_collapse_most():
    alike = Alike()
    view, positions = View(torch.zeros(3, 2, 32, 32), None, encoder()), torch.zeros(3, 5, dtype=torch.int64)
    for progress, wanted in ((0.0, 0.75), (0.5, 0.5), (1.0, 0.25)):
        alike.before_step(torch.tensor(progress))
        answer = alike(view, positions)
        torch.testing.assert_close(answer.values, torch.full((3, 5, 1), wanted))
    collapsed = torch.randn(3, 1, 8).expand(-1, 5, -1)
    torch.testing.assert_close(similarity(collapsed, answer, None), torch.full((3,), 0.75**2))
    spread = torch.randn(3, 5, 8)
    unit = F.normalize(spread, dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).mean((1, 2))
    torch.testing.assert_close(similarity(spread, answer, None), (cosine - 0.25) ** 2)
    weight = torch.tensor([[1.0, 1, 0, 1, 0]]).expand(3, -1)
    kept = spread[:, [0, 1, 3]]
    torch.testing.assert_close(similarity(spread, answer, weight), similarity(kept, answer, None))
    assert torch.isfinite(similarity(spread, answer, 0 * weight)).all()


def test_a_patch_is_cut_out_of_its_own_cell_at_a_drawn_offset():
    network, gap = encoder(in_chans=3), 3
    side = 4 * (8 + gap)
    cells = torch.arange(16.0).view(4, 4).repeat_interleave(11, 0).repeat_interleave(11, 1)
    rows = (torch.arange(side) % 11)[:, None].expand(side, side).float()
    image = torch.stack([cells, rows, rows.T]).expand(40, -1, -1, -1)
    valid = (rows > 0).expand(40, 1, -1, -1)
    view = Context({"image": image, "valid": valid}, network, draws(40), gap).views["image"]
    assert view.grid == (4, 4) and view.image.shape == (40, 3, 32, 32)
    cut = view.patches.view(40, 16, 8, 8, 3)
    assert torch.equal(cut[..., 0], torch.arange(16.0)[None, :, None, None].expand(40, -1, 8, 8))  # no other cell's
    offsets = cut[:, :, 0, 0, 1:]
    assert torch.equal(cut[..., 1] - offsets[..., :1, None], torch.arange(8.0)[:, None].expand(40, 16, 8, 8))
    assert torch.equal(cut[..., 2] - offsets[..., 1:, None], torch.arange(8.0).expand(40, 16, 8, 8))
    assert set(offsets.unique().tolist()) == {0.0, 1.0, 2.0}  # every cell's own, rows and columns too
    assert (offsets[:, :1] != offsets).any() and (offsets[..., 0] != offsets[..., 1]).any()
    assert torch.equal(view.pixel_valid.view(40, 16, 8, 8), cut[..., 1] > 0)
    # an address, not a turn: whoever else is in the batch
    alone = Context({"image": image[:1]}, network, Draws(0, torch.tensor([7])), gap).views["image"]
    assert torch.equal(alone.patches[0], view.patches[7])
    other = Context({"image": image, "views": {"second": {"image": image}}}, network, draws(40, 1), gap).views
    assert not torch.equal(other["image"].patches, view.patches)
    assert not torch.equal(other["image"].patches, other["second"].patches)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_recipe_with_gaps_trains_and_is_looked_at(class_token):
    model = latent_mim(encoder(class_token=class_token), **SMALL, visible=0.3, gap=2)
    assert model.crop_size == 40
    batch = {"image": torch.randn(3, 2, 40, 40), "valid": torch.ones(3, 1, 40, 40, dtype=torch.bool)}
    batch["valid"][1, :, :20] = False
    batch["valid"][2] = False
    progress = torch.tensor(0.2)
    model.before_step(progress)
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            loss = model(batch, progress, draws(3)).loss
        loss.backward()
        assert torch.isfinite(loss) and loss.dtype == torch.float32
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    spoiled = batch | {"image": torch.where(batch["valid"], batch["image"], 1e4)}
    torch.testing.assert_close(model(spoiled, progress, draws(3)).loss, loss)
    for side in (40, 32):  # as trained, and without gaps as the encoder is used
        picture = model.predict({"image": torch.randn(3, 2, side, side)}, progress, draws(3))["image"]
        assert picture["patches"].shape == (3, 16, 128)
    small = torch.randn(3, 2, 32, 32)
    assert torch.equal(model.context({"image": small}, draws(3)).views["image"].patches, patchify(small, 8))


def test_gaps_are_cut_without_graph_breaks():
    def cut(image: Tensor) -> Tensor:
        return Context({"image": image}, network, draws(3), 2).views["image"].patches

    network, images = encoder(), torch.randn(3, 2, 40, 40)
    explained = torch._dynamo.explain(cut)(images)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_homogeneous_image_gives_numbers():
    model = selective_latent(encoder(), **SMALL)
    loss = model({"image": torch.full((2, 2, 32, 32), 0.3)}, torch.tensor(0.0), draws()).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_copy_is_stored_and_goes_on_where_it_was(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    training = Training(max_steps=4, milestones=2, precision="32-true", accelerator="cpu", progress_bar=False)

    def run(name, resume=None):
        data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
        size = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
        last = train(
            data, tmp_path / name, "latent_mim", SMALL | {"visible": 0.25}, size, training=training, resume=resume
        )
        return torch.load(last, weights_only=True)["state_dict"], last

    (whole, last), (resumed, _) = run("whole"), run("resumed", tmp_path / "whole/checkpoints/step-0000002.ckpt")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    name = "blocks.0.mlp.fc1.weight"
    encoder = read_encoder(last).encoder.state_dict()
    assert torch.equal(encoder[name], whole[f"model.encoder.{name}"])  # what leaves is trained, not the copy
    assert not torch.equal(encoder[name], whole[f"model.terms.0.target.encoder.{name}"])


def test_a_question_asked_by_two_terms_is_answered_once():
    model = latent_mim(encoder(), **SMALL, visible=0.3)
    calls = []
    for module in (model.terms[0].decoder.blocks[0], model.terms[2].decoder.layers, model.encoder.blocks[0]):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    model({"image": torch.randn(2, 2, 32, 32)}, torch.tensor(0.0), draws())
    assert len(calls) == len(set(calls)) == 3


@pytest.mark.parametrize("given", [{"momentum": 1.5}, {"temperature": 0.0}, {"gap": -1}, {"projector_width": 0}])
def test_what_no_number_can_mean_is_refused(given):
    with pytest.raises(ConfigError, match=rf"method: expected momentum in .*; given .*{next(iter(given.values()))}"):
        latent_mim(encoder(), **SMALL | given)


@pytest.mark.parametrize("recipe", [latent_mim, selective_latent])
def test_one_visible_patch_cannot_be_kept_from_being_alike(recipe) -> None:
    with pytest.raises(ConfigError, match=r"expected 2 or more; given 1, visible 0.1 of 16: raise .*visible to 0.125"):
        recipe(encoder(), **SMALL, visible=0.1)
    assert recipe(encoder(), **SMALL, visible=2 / 16)
    assert latent_mim(encoder(), **SMALL, visible=0.1, constraint=0.0)
