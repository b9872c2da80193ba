"""Every method, a short function each, a page a family: the pages to read.

A recipe takes the encoder to train and returns the objective that trains it. To add one, write the function, say in
its docstring which paper it follows, what was verified and how it deviates, and add it to `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable

from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes.crops import can_inspired
from geomim.pretrain.recipes.language import remote_clip, rils, selective_rils, sycoca_inspired
from geomim.pretrain.recipes.latent import latent_mim, selective_latent
from geomim.pretrain.recipes.pairs import croco
from geomim.pretrain.recipes.pixels import cross_mae, dmjd, mae, satvision, selective_mae, simmim
from geomim.pretrain.recipes.teacher import mask_align

RECIPES: dict[str, Callable[..., MaskedImageModel]] = {
    "mae": mae,
    "cross_mae": cross_mae,
    "selective_mae": selective_mae,
    "simmim": simmim,
    "satvision": satvision,
    "croco": croco,
    "dmjd": dmjd,
    "mask_align": mask_align,
    "latent_mim": latent_mim,
    "selective_latent": selective_latent,
    "can_inspired": can_inspired,
    "remote_clip": remote_clip,
    "rils": rils,
    "selective_rils": selective_rils,
    "sycoca_inspired": sycoca_inspired,
}
"""Every recipe by the name a config gives it."""
