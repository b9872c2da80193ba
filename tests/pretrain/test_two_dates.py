"""Two dates of a place: what may be predicted, and whether the other date is used."""

import pytest
import torch

from geomim.errors import ConfigError
from geomim.models.vit import ViT
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes.pairs import croco, shuffled_date
from geomim.randomness import Draws

DRAWS = Draws(0, torch.arange(6))


def pairs(batch: int = 6) -> dict:
    """Noise that is the same at both dates but for its sign: only the other date can tell it."""
    image = torch.randn(batch, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"image": image, "views": {"date": {"image": -image}}}


def model(class_token: bool = False) -> MaskedImageModel:
    torch.manual_seed(0)
    encoder = ViT(2, 16, 4, width=32, depth=2, heads=2, class_token=class_token)
    return croco(encoder, decoder_depth=2, decoder_width=32, decoder_heads=2)


@pytest.mark.parametrize("class_token", [False, True])
def test_shuffled_dates_are_worse_once_the_date_is_used(class_token: bool) -> None:
    objective, batch = model(class_token), pairs()
    for term in objective.terms:
        term.target.normalise = "none"
    progress = torch.tensor(0.5)
    before = shuffled_date(objective, batch, progress, DRAWS)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        objective(batch, progress, DRAWS).loss.backward()
        optimiser.step()
    assert abs(before) < 0.02 < 0.05 < shuffled_date(objective, batch, progress, DRAWS)


def test_a_date_that_says_nothing_makes_no_difference() -> None:
    batch = pairs()
    batch["views"]["date"]["image"] = torch.zeros(6, 2, 16, 16)
    assert abs(shuffled_date(model(), batch, torch.tensor(0.5), DRAWS)) < 1e-6


def test_one_image_cannot_be_shuffled() -> None:
    with pytest.raises(ConfigError, match="at least 2 images"):
        shuffled_date(model(), pairs(1), torch.tensor(0.5), Draws(0, torch.arange(1)))


@pytest.mark.parametrize("class_token", [False, True])
def test_only_what_both_dates_measured_is_predicted(class_token: bool) -> None:
    objective, batch = model(class_token), pairs()
    batch["valid"] = torch.ones(6, 1, 16, 16, dtype=torch.bool)
    batch["valid"][:, :, :4] = False
    date = batch["views"]["date"]
    date["valid"] = torch.ones(6, 1, 16, 16, dtype=torch.bool)
    date["valid"][:, :, :, :8] = False
    date["valid"][0] = False
    context = objective.context(batch, DRAWS)
    plan = objective.plan(context, torch.tensor(0.0))
    split = plan.splits["image"]
    measured = context.views["image"].patch_valid & context.views["date"].patch_valid
    assert torch.equal(split.predict_weight, measured.gather(1, split.predict).float())
    assert plan.weights[0, 0] == 0 and (plan.weights[0, 1:] > 0).all()
    output = objective(batch, torch.tensor(0.0), DRAWS)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters() if parameter.grad is not None)
    assert output.loss.isfinite()
