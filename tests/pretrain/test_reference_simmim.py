"""Parity with the published SimMIM, with a Swin and with a ViT of shared relative positions."""

import re
from pathlib import Path

import pytest
import torch
from test_reference import NO_DRAWS, Reference, close, fixed
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from geomim.models.hierarchical import Hierarchical
from geomim.models.vit import Norm
from geomim.pretrain.context import Context
from geomim.pretrain.recipes import simmim


def swin(file: Reference) -> SwinTransformer:
    """Timm merges patches at the start of a stage, the published code at the end of the one before."""
    width, chans, patch, _ = file.state["encoder.patch_embed.proj.weight"].shape
    network = SwinTransformer(
        img_size=file["images"].shape[-1],
        patch_size=patch,
        in_chans=chans,
        num_classes=0,
        embed_dim=width,
        depths=tuple(file["depths"].tolist()),
        num_heads=tuple(file["heads"].tolist()),
        window_size=int(file.number("window_size")),
        drop_path_rate=0.0,
    )
    state = {}
    for name in network.state_dict():
        theirs = re.sub(r"(\d+)\.downsample", lambda found: f"{int(found[1]) - 1}.downsample", name)
        state[name] = file.state[f"encoder.{theirs}"]
    network.load_state_dict(state)
    return network


def beit(file: Reference) -> Beit:
    width, chans, patch, _ = file.state["encoder.patch_embed.proj.weight"].shape
    network = Beit(
        img_size=file["images"].shape[-1],
        patch_size=patch,
        in_chans=chans,
        num_classes=0,
        embed_dim=width,
        depth=1 + max(int(name.split(".")[2]) for name in file.state if name.startswith("encoder.blocks.")),
        num_heads=int(file.number("heads")),
        qkv_bias=True,
        init_values=0.1,
        norm_layer=Norm,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        use_fc_norm=False,
    )
    network.load_state_dict({name: file.state[f"encoder.{name}"] for name in network.state_dict()})
    return network


@pytest.mark.parametrize(("name", "make"), [("simmim_swin", swin), ("simmim_vit", beit)])
def test_reference_simmim(reference_dir: Path, name: str, make) -> None:
    file = Reference(reference_dir / f"{name}.npz")
    images, stride = file["images"], int(file.number("encoder_stride"))
    encoder = Hierarchical(make(file), {"family": name})
    assert encoder.patch_size == stride and encoder.class_tokens == (name == "simmim_vit")
    model = simmim(encoder, 1 - file.number("mask_ratio"), int(file.number("mask_patch_size")))
    weight, bias = file.state["decoder.0.weight"], file.state["decoder.0.bias"]
    colours = images.shape[1]  # a colour is the slowest of a published answer's numbers and the fastest of ours
    model.terms[0].decoder.pred.load_state_dict(
        {
            "weight": weight.view(colours, stride**2, -1).transpose(0, 1).reshape(len(weight), -1),
            "bias": bias.view(colours, -1).T.reshape(-1),
        }
    )
    model.mask_token.data.copy_(file.state["encoder.mask_token"])
    context = Context({"image": images}, encoder, NO_DRAWS)
    view, order = context.views["image"], file["permutation"]
    split = model.masking.split(view, order.argsort(1) / order.shape[1])
    assert model.masking.count(order.shape[1]) == int(file.number("mask_count"))
    hidden = torch.zeros(len(images), view.length, dtype=torch.bool).scatter(1, split.predict, True)
    assert torch.equal(view.pixels_of(hidden), view.pixels_of(file["mask"].flatten(1).bool()))

    kept: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept[name] = inputs[0].flatten(1, -2)

        return hook

    network = encoder.network
    close(network.patch_embed(images).flatten(1, -2), file["embedded"])
    if name == "simmim_vit":
        close(network.rel_pos_bias(), file["relative_position_bias"])
    else:  # a stage of the published code ends with the merging that timm's next one begins with
        for stage in range(len(network.layers) - 1):
            network.layers[stage + 1].blocks[0].register_forward_pre_hook(keep(f"stage{stage}"))
    latents = model.encode(context, {"image": split}, "image")
    for stage, tokens in kept.items():
        close(tokens, file[stage])
    assert len(kept) == sum(name.startswith("stage") for name in file.arrays)
    close(latents.patches.transpose(1, 2), file["features"].flatten(2))
    everywhere = torch.arange(view.length).expand(len(images), -1)
    rows, columns = view.grid
    answers = model.terms[0].decoder(latents, everywhere).view(-1, rows, columns, stride, stride, colours)
    close(answers.permute(0, 5, 1, 3, 2, 4).reshape(images.shape), file["reconstruction"])
    model.masking = fixed(split)
    close(model({"image": images}, torch.tensor(0.0), NO_DRAWS).loss, file["loss"])
