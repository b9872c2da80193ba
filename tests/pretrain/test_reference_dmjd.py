"""Parity of `dmjd` with the published implementation, from the latents on: its front is convolutional."""

from pathlib import Path

import torch
from test_reference import NO_DRAWS, Reference, close
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from geomim.models.patches import Latents, take
from geomim.models.vit import Norm, ViT
from geomim.pretrain.context import Context
from geomim.pretrain.losses import smooth_l1
from geomim.pretrain.masking import TokenSplit
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.targets import Answer


def views(file: Reference, name: str) -> tuple[Tensor, Tensor]:
    """Rows of the first and of the second set."""
    one, two = file[name].chunk(2)
    return one, two


def model(file: Reference) -> MaskedImageModel:
    state, width = file.state, file["latent"].shape[-1]
    encoder = ViT(
        in_chans=file["images"].shape[1],
        image_size=file["images"].shape[-1],
        patch_size=int(file.number("patch_size")),
        width=width,
        depth=file.depth("blocks3"),
        heads=int(file.number("heads")),
        class_token=False,
    )
    blocks = {f"blocks.{n[8:]}": value for n, value in state.items() if n.startswith("blocks3.")}
    norm = {name: state[name] for name in ("norm.weight", "norm.bias")}
    missing, unknown = encoder.load_state_dict(blocks | norm, strict=False)
    assert not unknown and all(name.startswith(("patch_embed", "pos_embed")) for name in missing)
    decoder_width, heads = state["mask_token"].shape[-1], int(file.number("decoder_heads"))
    built = RECIPES["dmjd"](
        encoder,
        visible=1 - file.number("mask_ratio"),
        decoder_depth=file.depth("decoder_blocks"),
        decoder_width=decoder_width,
        decoder_heads=heads,
        theta=file.number("theta"),
        cell=int(file.number("cell")),
    )
    decoder, pointwise = built.terms[0].decoder, built.terms[1].decoder
    ratio = state["decoder_blocks.0.mlp.fc1.weight"].shape[0] / decoder_width
    decoder.blocks = nn.ModuleList(
        Block(decoder_width, heads, ratio, qkv_bias=True, norm_layer=Norm) for _ in decoder.blocks
    )
    theirs = {
        name: state["mask_token"] if name == "mask_token" else state[f"decoder_{name}"] for name in decoder.state_dict()
    }
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, decoder_width), theirs["pos_embed"]], 1)
    decoder.load_state_dict(theirs)
    names = {
        name: name.replace("projector.", "proj_embed.").replace("pred.", "predictor.0.")
        for name in pointwise.state_dict()
    }
    pointwise.load_state_dict({ours: state[name] for ours, name in names.items()})
    return built


def splits(file: Reference) -> dict[str, TokenSplit]:
    """The published sets; hidden patches in raster order."""
    found = {}
    for name, mask, visible in zip(("image", "image/2"), views(file, "mask"), views(file, "ids_visible"), strict=True):
        hidden = int(mask[0].sum())
        found[name] = TokenSplit(visible, mask.argsort(dim=1, descending=True, stable=True)[:, :hidden])
    return found


def test_reference_dmjd_masks(reference_dir: Path) -> None:
    file = Reference(reference_dir / "dmjd.npz")
    built = model(file)
    order = file["noise"].argsort(1)
    seen = len(file["perm_visible"])
    one, rest = order[:, :seen], order[:, seen:][:, file["perm_masked"]]
    hidden, two = rest[:, : rest.shape[1] - seen], rest[:, rest.shape[1] - seen :]
    dealt = torch.cat([torch.stack([one, two], 2).flatten(1), hidden], 1)
    noise = (dealt.argsort(1) + 0.5) / dealt.shape[1]  # the smallest is dealt first
    view = Context({"image": file["images"]}, built.encoder, NO_DRAWS).views["image"]
    for ours, visible, mask in zip(
        built.masking.split(view, noise), views(file, "ids_visible"), views(file, "mask"), strict=True
    ):
        close(ours.visible.sort(1).values, visible.sort(1).values)
        close(torch.zeros_like(mask).scatter(1, ours.predict, 1.0), mask)
    close(built.masking.split(view, noise)[0].visible, views(file, "ids_visible")[0])


def test_reference_dmjd(reference_dir: Path, monkeypatch) -> None:
    file = Reference(reference_dir / "dmjd.npz")
    built = model(file)
    tokens = file["encoder_tokens"]
    for block in built.encoder.blocks:
        tokens = block(tokens)
    close(tokens, file["encoder_blocks_out"])
    close(built.encoder.norm(file["encoder_norm_input"]), file["latent"])

    given = splits(file)
    latents = {
        name: Latents(latent, given[name].visible, prefix=0)
        for name, latent in zip(("image", "image/2"), views(file, "latent"), strict=True)
    }
    raw = {"image": file["images_raw"].float()}
    view = Context(raw, built.encoder, NO_DRAWS).views["image"]
    hidden, seen = built.terms[0], built.terms[1]
    everywhere = torch.arange(view.length).expand(len(view.image), -1)
    close(hidden.target(view, everywhere).values, file["target"])
    misaligned = []
    for name, pred, pred_visible in zip(latents, views(file, "pred"), views(file, "pred_visible"), strict=True):
        split = given[name]
        decoder = hidden.decoder
        answers = decoder.pred(decoder.norm(decoder.sequence(latents[name], split.predict)))
        close(answers, take(pred, torch.cat([split.visible, split.predict], 1)))
        close(seen.decoder(latents[name], split.visible), pred_visible)
        raster = seen.target(view, split.visible.sort(1).values).values
        misaligned.append(smooth_l1(file.number("smooth_l1_beta"))(pred_visible, Answer(raster), None).mean())
    # the published number compares each prediction with the target of another patch; the recipe with its own
    close(torch.stack(misaligned).mean(), file["loss_visible"])

    built.masking = lambda context, progress: given
    monkeypatch.setattr(built, "encode", lambda context, parts, name: latents[name])
    output = built(raw, torch.tensor(0.0), NO_DRAWS)
    close((output.terms["hidden"] + output.terms["hidden_2"]) / 2, file["loss_masked"])
    close((output.terms["visible"] + output.terms["visible_2"]) / 2, file["loss_visible_aligned"])
    close(output.loss, file["loss_masked"] + file.number("theta") * file["loss_visible_aligned"])
