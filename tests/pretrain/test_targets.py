import torch

from geomim.models.vit import ViT
from geomim.pretrain.context import View
from geomim.pretrain.losses import mse, reduce
from geomim.pretrain.targets import Answer, Pixels

ENCODER = ViT(in_chans=3, image_size=16, patch_size=8, width=48, depth=1, heads=3)
EVERY = torch.arange(4)[None]


def test_normalised_pixels_use_measured_pixels_only() -> None:
    image = torch.randn(1, 3, 16, 16)
    valid = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    valid[..., :3, :] = False
    spoiled = torch.where(valid, image, -9999.0)
    answer = Pixels()(View(spoiled, valid, ENCODER), EVERY)
    assert answer.element is not None
    kept = answer.values[0, 0][answer.element[0, 0] > 0]
    assert kept.numel() == 5 * 8 * 3
    torch.testing.assert_close(kept.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.var(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_prediction_returns_to_pixels() -> None:
    view = View(torch.randn(2, 3, 16, 16) * 5 + 2, None, ENCODER)
    positions = torch.tensor([[0, 3], [2, 1]])
    for normalise in ("patch", "none"):
        target = Pixels(normalise)
        restored = target.to_pixels(view, positions, target(view, positions).values)
        expected = view.patches.gather(1, positions[..., None].expand(-1, -1, 192))
        torch.testing.assert_close(restored, expected, rtol=1e-4, atol=1e-4)


def test_flat_patches_stay_finite() -> None:
    answer = Pixels()(View(torch.full((1, 3, 16, 16), 7.0), None, ENCODER), EVERY)
    assert torch.equal(answer.values, torch.zeros(1, 4, 192))


def test_losses_are_zero_on_the_target_and_blind_to_what_weighs_nothing() -> None:
    values = torch.randn(2, 3, 5)
    element = torch.ones(2, 3, 5)
    element[:, :, 4] = 0
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    wrong = values.clone()
    wrong[..., 4], wrong[:, 2] = 1e6, -1e6
    wrong[1, 1] = 1e6
    assert torch.equal(mse(wrong, Answer(values, element), weight), torch.zeros(2))
    nothing = mse(wrong, Answer(values, element), torch.zeros(2, 3))
    assert torch.isfinite(nothing).all() and reduce(nothing, torch.zeros(2)) == 0


def test_reduce_weighs_images() -> None:
    values, weights = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])
    assert reduce(values, weights) == 1.75
    parts = [reduce(values[part], weights[part], weights.sum()) for part in (slice(0, 1), slice(1, 2))]
    assert sum(parts) == 1.75
