"""Parity with the published Latent MIM, on a file that holds one forward pass of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import TokenSplit
from geomim.pretrain.recipes import latent_mim
from geomim.randomness import Draws


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights under our names; the first prefix that fits counts."""
    found = {}
    for name, values in state.items():
        for theirs, ours in names.items():
            if name.startswith(theirs):
                found[name.replace(theirs, ours, 1)] = values
                break
    return found


def encoder_state(state: dict[str, Tensor], bands: int, patch: int) -> dict[str, Tensor]:
    """The published encoder: its patch embedding is a matrix over row, column, band; its positions are its own."""
    names = {name: name for name in ("cls_token", "blocks.", "norm.")} | {"embed.proj.": "patch_embed.proj."}
    ours = renamed(state, names)
    matrix = ours["patch_embed.proj.weight"]
    ours["patch_embed.proj.weight"] = matrix.view(-1, patch, patch, bands).permute(0, 3, 1, 2)
    return ours | {"pos_embed": state["pos_embed.pos_embeds"][None]}


def head_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        f"head.{kind}{index}.": f"layers.{3 * index + place}."
        for index in range(3)
        for place, kind in enumerate(("linear", "norm"))
    }
    return renamed(state, names)


def decoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, values in state.items():
        for theirs, here in (
            ("norm2q", "norm1"),
            ("norm2kv", "joint.norm_memory"),
            ("norm3", "norm2"),
            ("self_attn", "joint.attn"),
            ("cross_attn.q_proj", "cross_attn.q"),
            ("cross_attn.kv_proj", "cross_attn.kv"),
            ("cross_attn.proj", "cross_attn.proj"),
            ("norm1", "joint.norm"),
            ("head", "pred"),
        ):
            if theirs in name.split(".") or f".{theirs}." in name:
                name = name.replace(theirs, here)
                break
        ours[name] = values
    return ours | {"pos_embed": ours.pop("pos_embed.pos_embeds")[None]}


def test_reference_latent_mim(reference_dir: Path) -> None:
    path = reference_dir / "latentmim.npz"
    if not path.is_file():
        pytest.skip(f"'{path}' not found")
    with np.load(path) as stored:
        file = {name: torch.from_numpy(stored[name]) for name in stored.files}

    def part(name: str) -> dict[str, Tensor]:
        prefix = f"state_dict/{name}."
        return {key.removeprefix(prefix): values for key, values in file.items() if key.startswith(prefix)}

    def depth(name: str) -> int:
        return 1 + max(int(key.split(".")[1]) for key in part(name) if key.startswith("blocks."))

    bands, side, patch = file["images"].shape[1], file["images"].shape[-1], int(file["patch_size"])
    width = part("encoder")["norm.weight"].shape[0]
    encoder = ViT(bands, side, patch, width, depth("encoder"), int(file["heads"]))
    model = latent_mim(
        encoder,
        file["ids_visible"].shape[1] / encoder.num_patches,
        decoder_depth=depth("decoder"),
        decoder_width=part("decoder")["norm.weight"].shape[0],
        decoder_heads=int(file["decoder_heads"]),
        projector_width=part("encoder")["head.norm0.weight"].shape[0],
        temperature=float(file["tau"]),
        constraint=0.0,
    )
    term = model.terms[0]
    decoder, target = term.decoder, term.target
    for network, projector, name in (
        (encoder, decoder.projector, "encoder"),
        (target.encoder, target.projector, "target_encoder"),
    ):
        network.load_state_dict(encoder_state(part(name), bands, patch))
        projector.load_state_dict(head_state(part(name)))
    missing, unexpected = decoder.load_state_dict(decoder_state(part("decoder")), strict=False)
    assert not unexpected and all(name.startswith("projector.") for name in missing)

    draws = Draws(0, torch.arange(len(file["images"])))
    context = Context({"image": file["images"]}, encoder, draws)
    view = context.views["image"]
    split = model.masking.split(view, file["noise"])
    assert torch.equal(split.visible, file["ids_visible"])
    split = TokenSplit(split.visible, split.predict.sort(1).values)
    assert torch.equal(split.predict, file["ids_target"].sort(1).values)
    split = split._replace(predict=file["ids_target"])
    latents = model.encode(context, {"image": split}, "image")
    close(decoder.projector.project(latents), file["latent"])
    answer = target(view, split.predict)
    close(answer.values, file["target"])
    prediction = decoder(latents, split.predict)
    close(prediction, file["pred"])
    close(term.loss(prediction, answer, None).mean(), file["loss"])
    model.masking = lambda context, progress: {"image": split}
    close(model({"image": file["images"]}, torch.tensor(0.0), draws).loss, file["loss"])
