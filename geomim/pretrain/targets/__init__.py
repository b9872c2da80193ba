"""What the right answer is at a patch: a target is called as `target(view, positions)`, without gradient."""

from geomim.pretrain.targets.answer import Answer, Target
from geomim.pretrain.targets.latent import Alike, EmaLatent
from geomim.pretrain.targets.pixels import Pixels

__all__ = ["Alike", "Answer", "EmaLatent", "Pixels", "Target"]
