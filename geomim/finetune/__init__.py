"""Torchgeo's tasks on any encoder: registration, necks and heads, labels, fine-tuning.

`from geomim.finetune import register` makes timm, torchgeo and segmentation_models_pytorch know the names
`geomim_vit_...`, and registers exported folders.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`register`, imported when it is asked for: torchgeo comes with it."""
    if name != "register":
        raise AttributeError(f"module 'geomim.finetune' has no attribute '{name}'")
    from geomim.finetune.registry import register

    return register
