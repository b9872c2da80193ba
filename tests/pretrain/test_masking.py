import pytest
import torch
from tiny_recipes import TEXT, sentences
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.joint import Joint
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import Phases, Random, Selective, Told
from geomim.pretrain.masking.selective import grow, hog_energy
from geomim.pretrain.masking.split import counts, draw
from geomim.randomness import Draws


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(in_chans=4, image_size=64, patch_size=8, width=48, depth=1, heads=3)


def context(encoder: ViT, images: Tensor, valid: Tensor | None = None, seed: int = 0) -> Context:
    batch = {"image": images} if valid is None else {"image": images, "valid": valid}
    return Context(batch, encoder, Draws(seed, torch.arange(len(images))))


def half_textured(batch: int = 8) -> Tensor:
    """Images whose left half is flat and whose right half is full of edges."""
    images = torch.zeros(batch, 4, 64, 64)
    images[..., 32:] = torch.randn(batch, 4, 64, 32)
    return images


def some_nodata(batch: int = 8) -> Tensor:
    valid = torch.ones(batch, 1, 64, 64, dtype=torch.bool)
    for row in range(batch):
        valid[row, :, :, : 8 * row] = False
    return valid


PROGRESS = (0.0, 0.36, 0.5, 0.74, 1.0)


@pytest.mark.parametrize("masking", [Random(), Random(0.25, 0.25), Selective(), Selective(score="published")])
@pytest.mark.parametrize("progress", PROGRESS)
def test_splits_are_disjoint_and_of_static_length(encoder: ViT, masking, progress: float) -> None:
    for valid in (None, some_nodata()):
        split = masking(context(encoder, torch.randn(8, 4, 64, 64), valid), torch.tensor(progress))["image"]
        both = torch.cat([split.visible, split.predict], 1)
        assert all(len(set(row.tolist())) == both.shape[1] for row in both)
        assert both.min() >= 0 and both.max() < 64


@pytest.mark.parametrize("masking", [Random(), Random(0.25, 0.25), Selective(), Selective(score="published")])
@pytest.mark.parametrize("progress", PROGRESS)
def test_nodata_patches_are_never_predicted_and_seen_last(encoder: ViT, masking, progress: float) -> None:
    valid = some_nodata()
    patch_valid = valid[:, 0, ::8, ::8].flatten(1)
    split = masking(context(encoder, torch.randn(8, 4, 64, 64), valid), torch.tensor(progress))["image"]
    assert split.visible_valid is not None and split.predict_weight is not None
    seen = patch_valid.gather(1, split.visible)
    assert torch.equal(seen, split.visible_valid)
    assert torch.equal(seen.sum(1), patch_valid.sum(1).clamp(max=seen.shape[1]))  # valid ones fill the slots first
    asked = patch_valid.gather(1, split.predict)
    assert torch.equal(split.predict_weight, asked.float())
    left = (patch_valid.sum(1) - seen.sum(1)).clamp(max=asked.shape[1])
    assert torch.equal(asked.sum(1), left)


def test_energy_and_constant_score_select_different_tokens(encoder: ViT) -> None:
    images = half_textured(64)
    share = {}
    for score in ("hog_energy", "published"):
        split = Selective(score=score)(context(encoder, images), torch.tensor(0.5))["image"]
        share[score] = (split.predict % 8 >= 4).float().mean().item()
    assert share["hog_energy"] > 0.95
    assert 0.4 < share["published"] < 0.6


def test_energy_ignores_the_edge_of_nodata(encoder: ViT) -> None:
    images = torch.full((1, 4, 64, 64), 3.0)
    images[..., :20] = 0
    valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., :20] = False
    with_mask = hog_energy(context(encoder, images, valid).views["image"])
    without = hog_energy(context(encoder, images).views["image"])
    assert with_mask.max() == with_mask.min() and without.max() > without.min() + 1


def test_energy_is_on_any_bands_and_does_not_mind_scale(encoder: ViT) -> None:
    images = torch.randn(2, 4, 64, 64)
    one, two = (hog_energy(context(encoder, scale * images).views["image"]) for scale in (1.0, 50.0))
    torch.testing.assert_close(one.softmax(1), two.softmax(1), rtol=1e-4, atol=1e-6)


def test_draw_follows_the_probabilities() -> None:
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    positions = torch.arange(40000)
    first = draw(probability.log().expand(40000, -1), Draws(1, positions)("test", 4), 1)[:, 0]
    frequency = torch.bincount(first, minlength=4) / 40000
    torch.testing.assert_close(frequency, probability, rtol=0, atol=0.01)


def test_growth_goes_from_near_to_far_to_random(encoder: ViT) -> None:
    torch.manual_seed(1)
    tokens, seeds, noise = torch.randn(16, 64, 32), torch.rand(16, 64).argsort(1)[:, :6], torch.rand(16, 64)
    unit = torch.nn.functional.normalize(tokens, dim=-1)

    def similarity(progress: float) -> float:
        near, far = Phases().shares(torch.tensor(progress))
        grown = grow(tokens, seeds, 12, near, far, noise)
        assert torch.equal(grown[:, :6], seeds)
        new, old = (unit.gather(1, ids[..., None].expand(-1, -1, 32)) for ids in (grown[:, 6:], seeds))
        return (new @ old.transpose(1, 2)).amax(-1).mean().item()

    near, blend, far, random = (similarity(value) for value in (0.1, 0.3625, 0.5, 0.9))
    assert near > random > far and near > blend > far


def test_same_address_same_mask_whatever_the_batch(encoder: ViT) -> None:
    images = torch.randn(6, 4, 64, 64)
    for masking in (Random(), Selective()):
        whole = masking(context(encoder, images), torch.tensor(0.3))["image"]
        part = masking(Context({"image": images[4:]}, encoder, Draws(0, torch.arange(4, 6))), torch.tensor(0.3))
        assert torch.equal(whole.visible[4:], part["image"].visible)
        assert torch.equal(whole.predict[4:], part["image"].predict)
        other = masking(context(encoder, images, seed=1), torch.tensor(0.3))["image"]
        assert not torch.equal(whole.visible, other.visible)


def test_impossible_shares_and_phases_are_named() -> None:
    with pytest.raises(ConfigError, match=r"visible=0.8 \(51\) and predict=0.5 \(32\)"):
        counts(64, 0.8, 0.5)
    with pytest.raises(ConfigError, match="near < far"):
        Phases(0.5, 0.4, 0.6, 0.7)


def test_one_visible_patch_is_enough(encoder: ViT) -> None:
    split = Selective(visible=1 / 64)(context(encoder, torch.randn(2, 4, 64, 64)), torch.tensor(0.1))["image"]
    assert split.visible.shape == (2, 1)


@pytest.mark.parametrize("nodata", [False, True])
def test_what_a_sentence_speaks_of_is_hidden_and_what_fits_all_alike_is_random(encoder: ViT, nodata: bool) -> None:
    torch.manual_seed(0)
    joint = Joint(TEXT.build(), encoder.width)
    images, valid = half_textured(), some_nodata() if nodata else None
    given = context(encoder, images, valid)
    view = given.views["image"]
    view.text = sentences(8)
    told, chance = (masking(given, torch.tensor(0.0))["image"] for masking in (Told(joint, flat=1.0), Random(0.5)))
    for split, row in ((Told(joint, flat=0.0)(given, torch.tensor(0.0))["image"], slice(8)), (told, slice(7, 8))):
        assert torch.equal(split.predict[row], chance.predict[row])  # all is flat; nothing is said of the last
    score = torch.einsum(
        "bld,bd->bl", joint.patches(view.latents()), joint.sentences(view.text["tokens"])[view.text["of"]]
    )
    for row in range(7):
        seen, hidden = score[row, told.visible[row]], score[row, told.predict[row]]
        if valid is not None:
            seen, hidden = seen[told.visible_valid[row]], hidden[told.predict_weight[row] > 0]
        assert not len(hidden) or seen.max() <= hidden.min()


def test_what_stands_in_nodata_does_not_say_whether_a_sentence_fits_all_alike(encoder: ViT) -> None:
    torch.manual_seed(0)
    joint, images, valid = Joint(TEXT.build(), encoder.width), half_textured(), some_nodata()
    for flat in (0.5, 0.8, 0.9, 0.95, 0.98):
        splits = []
        for fill in (0.0, 1e4):
            given = context(encoder, torch.where(valid, images, fill), valid)
            given.views["image"].text = sentences(8)
            splits.append(Told(joint, flat=flat)(given, torch.tensor(0.0))["image"])
        assert torch.equal(splits[0].predict, splits[1].predict), flat
