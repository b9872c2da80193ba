"""Parity of `croco` with the published implementation."""

from pathlib import Path

import torch
from test_reference import NO_DRAWS, Reference, close, fixed
from torch import Tensor

from geomim.models.decoders import SelfAttention
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import TokenSplit
from geomim.pretrain.recipes import croco


def encoder(file: Reference) -> ViT:
    weight = file.state["patch_embed.proj.weight"]
    built = ViT(
        in_chans=weight.shape[1],
        image_size=file["images1"].shape[-1],
        patch_size=int(file.number("patch_size")),
        width=weight.shape[0],
        depth=file.depth("enc_blocks"),
        heads=int(file.number("heads")),
        class_token=False,
    )
    state = {name.removeprefix("enc_"): value for name, value in file.state.items()}
    state["pos_embed"] = state["pos_embed"][None]
    built.load_state_dict({name: state[name] for name in built.state_dict()})
    return built


def load_decoder(file: Reference, decoder: SelfAttention) -> None:
    state = {name: value for name, value in file.state.items() if name.startswith(("decoder_", "dec_", "mask_token"))}
    ours: dict[str, Tensor] = {
        "mask_token": state["mask_token"],
        "pos_embed": torch.cat([torch.zeros(1, state["dec_pos_embed"].shape[1]), state["dec_pos_embed"]])[None],
    }
    names = {"embed": "decoder_embed", "norm": "dec_norm", "pred": "prediction_head"}
    for mine, theirs in names.items():
        ours |= {f"{mine}.{part}": file.state[f"{theirs}.{part}"] for part in ("weight", "bias")}
    parts = {"joint.norm": "norm1", "joint.norm_memory": "norm_y", "norm1": "norm2", "norm2": "norm3"}
    parts |= {f"joint.attn.{part}": f"attn.{part}" for part in ("qkv", "proj")}
    parts |= {f"cross_attn.{mine}": f"cross_attn.{theirs}" for mine, theirs in (("q", "projq"), ("proj", "proj"))}
    parts |= {f"mlp.{part}": f"mlp.{part}" for part in ("fc1", "fc2")}
    for block in range(file.depth("dec_blocks")):
        for part in ("weight", "bias"):
            theirs = f"dec_blocks.{block}"
            ours |= {f"blocks.{block}.{m}.{part}": file.state[f"{theirs}.{t}.{part}"] for m, t in parts.items()}
            pair = [file.state[f"{theirs}.cross_attn.{one}.{part}"] for one in ("projk", "projv")]
            ours[f"blocks.{block}.cross_attn.kv.{part}"] = torch.cat(pair)
    decoder.load_state_dict(ours)


def test_reference_croco(reference_dir: Path) -> None:
    file = Reference(reference_dir / "croco.npz")
    hidden = file["noise"].argsort(1) < int(file.number("mask_ratio") * file["noise"].shape[1])
    close(hidden, file["mask"])
    order = hidden.int().argsort(dim=1, stable=True)
    seen = file["ids_visible"].shape[1]
    split = TokenSplit(order[:, :seen], order[:, seen:])
    close(split.visible, file["ids_visible"])
    width = file.state["decoder_embed.weight"].shape[0]
    for normalise, loss in (("none", "loss_norm0"), ("patch", "loss_norm1")):
        sizes = (file.depth("dec_blocks"), width, int(file.number("decoder_heads")))
        model = croco(encoder(file), 1 - file.number("mask_ratio"), *sizes, normalise)
        term = model.terms[0]
        decoder = term.decoder
        load_decoder(file, decoder)
        batch = {"image": file["images1"], "views": {"date": {"image": file["images2"]}}}
        context = Context(batch, model.encoder, NO_DRAWS)
        first, other = (model.encode(context, {"image": split}, name) for name in term.memory)
        close(first.tokens, file["latent1"])
        close(other.tokens, file["latent2"])
        close(decoder.place(other), file["memory"])
        prediction, features = decoder(first, split.predict, other), []
        tokens = torch.cat([decoder.place(first), decoder.queries(split.predict)], 1)
        for block in decoder.blocks:
            tokens = block(tokens, decoder.place(other), None, attn_mask=None)
            features.append(tokens)
        back = order.argsort(1)[..., None]
        for ours, theirs in zip(features, file["decoder_features"], strict=True):
            close(ours.gather(1, back.expand_as(ours)), theirs)
        final = decoder.norm(features[-1])
        close(final.gather(1, back.expand_as(final)), file["decoder_out"])
        answers = decoder.pred(final)
        close(answers.gather(1, back.expand_as(answers)), file["pred"])
        close(prediction, answers[:, seen:])
        if normalise == "none":
            everywhere = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
            close(term.target(context.views["image"], everywhere).values, file["target_norm0"])
        model.masking = fixed(split)
        close(model(batch, torch.tensor(0.0), NO_DRAWS).loss, file[loss])
