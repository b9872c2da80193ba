"""Torchgeo's tasks on any encoder: registration, necks and heads, labels, fine-tuning.

`from geomim.finetune import register` also makes the names `geomim_vit_...` known to timm, torchgeo and
segmentation_models_pytorch. Nothing of these is imported before.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`register` and `open_backbone`, imported when they are asked for."""
    if name == "register":
        from geomim.finetune.registry import register

        return register
    if name == "open_backbone":
        from geomim.finetune.backbones import open_backbone

        return open_backbone
    raise AttributeError(f"module 'geomim.finetune' has no attribute '{name}'")
