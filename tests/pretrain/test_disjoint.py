"""Two sets of visible blocks: what they share, and what they see of an image that is hardly measured."""

import pytest
import torch

from geomim.errors import ConfigError
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import Disjoint
from geomim.pretrain.recipes import RECIPES
from geomim.randomness import Draws

DRAWS = Draws(0, torch.arange(16))


def context(valid: torch.Tensor | None = None, side: int = 56) -> Context:
    batch = {"image": torch.zeros(16, 1, side, side)} | ({} if valid is None else {"valid": valid})
    return Context(batch, ViT(1, side, 4, width=8, depth=1, heads=1), DRAWS)


def test_sets_are_disjoint_drawn_for_every_image_and_predict_all_else() -> None:
    splits = Disjoint()(context(), torch.tensor(0.0))
    one, two = splits["image"], splits["image/2"]
    assert one.visible.shape == two.visible.shape == (16, 4 * 19)  # 0.4 of 7 x 7 blocks
    for split in (one, two):
        both = torch.cat([split.visible, split.predict], 1).sort(1).values
        assert torch.equal(both, torch.arange(196).expand(16, -1))
        corners = split.visible.view(16, 4, 19)  # top left, top right, bottom left, bottom right of every block
        assert ((corners[:, 1] - corners[:, 0]) == 1).all() and ((corners[:, 2] - corners[:, 0]) == 14).all()
        assert len({tuple(row) for row in split.visible.tolist()}) == 16
    assert all(not set(a) & set(b) for a, b in zip(one.visible.tolist(), two.visible.tolist(), strict=True))


def test_measured_blocks_come_first_and_are_shared_evenly() -> None:
    valid = torch.zeros(16, 1, 56, 56, dtype=torch.bool)
    valid[..., :16] = True  # two of seven columns of blocks: 14 of 49
    splits = Disjoint()(context(valid), torch.tensor(0.0))
    for split in splits.values():
        assert (split.visible_valid.sum(1) == 4 * 7).all() and (split.predict_weight.sum(1) == 4 * 7).all()


@pytest.mark.parametrize(("side", "visible"), [(28, 0.4), (56, 0.6), (56, 0.01)])
def test_what_cannot_be_dealt_is_refused(side: int, visible: float) -> None:
    with pytest.raises(ConfigError, match=rf"whole blocks of 2x2.*visible={visible}"):
        Disjoint(visible)(context(side=side), torch.tensor(0.0))
    with pytest.raises(ConfigError, match="whole blocks of 2x2"):  # before there is a batch
        RECIPES["dmjd"](ViT(1, side, 4, width=8, depth=1, heads=1), visible=visible, cell=4)
