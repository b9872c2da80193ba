"""A tiny vision transformer in a folder that timm reads."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def write_teacher(folder: Path, depth: int = 3, **options: object) -> str:
    """Write random weights and return their name for timm."""
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": depth, "num_heads": 2} | options
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    with torch.no_grad():  # attention of fresh weights is all but even
        for block in network.blocks:
            block.attn.qkv.weight.normal_(std=0.4)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    size = [arguments.get("in_chans", 3), 16, 16]
    config = {"input_size": size, "mean": MEAN, "std": STD, "num_classes": 0, "first_conv": "patch_embed.proj"}
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "num_features": 24}
    content |= {"model_args": arguments, "pretrained_cfg": config | {"classifier": "head"}}
    (folder / "config.json").write_text(json.dumps(content))
    return f"timm:local-dir:{folder}"
