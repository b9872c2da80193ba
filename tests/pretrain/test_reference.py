"""Parity with the published implementations, on files that hold one forward pass of each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geomim.models.decoders import CrossAttention, SelfAttention
from geomim.models.patches import take
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.masking import Random, TokenSplit
from geomim.pretrain.masking.selective import grow
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import cross_mae, mae, selective_mae
from geomim.randomness import Draws

NO_DRAWS = Draws(0, torch.arange(1))


class Reference:
    """A reference file: arrays as tensors, and weights under their published names."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            pytest.skip(f"'{path}' not found")
        with np.load(path) as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.state = {k.removeprefix("state_dict/"): v for k, v in self.arrays.items() if k.startswith("state_dict/")}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def number(self, name: str) -> float:
        return self.arrays[name].item()

    def depth(self, blocks: str) -> int:
        return 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith(f"{blocks}."))

    def encoder(self) -> ViT:
        weight = self.state["patch_embed.proj.weight"]
        encoder = ViT(
            in_chans=weight.shape[1],
            image_size=self["images"].shape[-1],
            patch_size=int(self.number("patch_size")),
            width=weight.shape[0],
            depth=self.depth("blocks"),
            heads=int(self.number("heads")),
        )
        names = encoder.state_dict().keys() & self.state.keys()
        missing, _ = encoder.load_state_dict({name: self.state[name] for name in names}, strict=False)
        assert all(name.startswith("norm.") for name in missing), missing
        return encoder

    def arguments(self) -> dict[str, int]:
        return {
            "decoder_depth": self.depth("decoder_blocks"),
            "decoder_width": self.state["mask_token"].shape[-1],
            "decoder_heads": int(self.number("decoder_heads")),
        }

    def load_decoder(self, model: MaskedImageModel) -> SelfAttention | CrossAttention:
        decoder = model.terms[0].decoder
        names = {"mask_token": "mask_token", "mix.weight": "wfm.linear.weight"}
        for name in decoder.state_dict():
            if name.startswith("mix.norms."):
                names[name] = name.replace("mix.norms.", "dec_norms.")
            elif name not in names:
                names[name] = f"decoder_{name}"
        names = {ours: theirs for ours, theirs in names.items() if ours in decoder.state_dict()}
        decoder.load_state_dict({ours: self.state[theirs] for ours, theirs in names.items()})
        return decoder


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-4, atol=1e-5)


def fixed(split: TokenSplit):
    return lambda context, progress: {"image": split}


def test_reference_mae(reference_dir: Path) -> None:
    file = Reference(reference_dir / "mae.npz")
    images = file["images"]
    for normalise, loss in (("none", "loss_norm0"), ("patch", "loss_norm1")):
        model = mae(file.encoder(), 1 - file.number("mask_ratio"), normalise=normalise, **file.arguments())
        decoder = file.load_decoder(model)
        assert isinstance(model.masking, Random)
        context = Context({"image": images}, model.encoder, NO_DRAWS)
        split = model.masking.split(context.views["image"], file["noise"])
        close(torch.zeros_like(file["mask"]).scatter(1, split.predict, 1.0), file["mask"])
        latents = model.encode(context, {"image": split}, "image")
        close(latents.tokens, file["latent"])
        answers = decoder.pred(decoder.norm(decoder.sequence(latents, split.predict)))[:, 1:]
        order = torch.cat([split.visible, split.predict], 1)
        close(answers, take(file["pred"], order))
        close(decoder(latents, split.predict), take(file["pred"], split.predict))
        model.masking = fixed(split)
        close(model({"image": images}, torch.tensor(0.0), NO_DRAWS).loss, file[loss])


def test_reference_crossmae(reference_dir: Path) -> None:
    file = Reference(reference_dir / "crossmae.npz")
    images = file["images"]
    for normalise, loss in (("none", "loss_norm0"), ("patch", "loss_norm1")):
        shares = {"visible": 1 - file.number("mask_ratio"), "predict": file.number("kept_mask_ratio")}
        model = cross_mae(file.encoder(), **shares, normalise=normalise, **file.arguments())
        decoder = file.load_decoder(model)
        context = Context({"image": images}, model.encoder, NO_DRAWS)
        split = model.masking.split(context.views["image"], file["noise"])
        close(split.visible, file["ids_visible"])
        split = split._replace(predict=split.predict.sort(1).values)
        close(split.predict, file["ids_decoded"])
        latents = model.encode(context, {"image": split}, "image")
        close(torch.stack(latents.levels), file["features"])
        close(torch.stack(decoder.mix.mixed(latents.levels)), file["mixed"])
        close(torch.stack(decoder.mix(latents.levels)), file["memory"])
        close(decoder.queries(split.predict), file["queries"])
        close(decoder(latents, split.predict), file["pred"])
        if normalise == "patch":
            close(model.terms[0].target(context.views["image"], split.predict).values, file["target_norm1"])
        model.masking = fixed(split)
        close(model({"image": images}, torch.tensor(0.0), NO_DRAWS).loss, file[loss])


def test_reference_selectivemae(reference_dir: Path) -> None:
    file = Reference(reference_dir / "selectivemae.npz")
    images = file["images"]
    for normalise, losses in (("none", "loss_per_image_norm0"), ("patch", "loss_per_image_norm1")):
        model = selective_mae(file.encoder(), normalise=normalise, **file.arguments())
        decoder = file.load_decoder(model)
        split = TokenSplit(file["ids_visible"], file["ids_target"])
        context = Context({"image": images}, model.encoder, NO_DRAWS)
        view = context.views["image"]
        close(view.tokens(), file["tokens"])
        latents = model.encode(context, {"image": split}, "image")
        close(latents.tokens, file["latent"])
        prediction = decoder(latents, split.predict)
        close(prediction, file["pred"])
        term = model.terms[0]
        per_image = term.loss(prediction, term.target(view, split.predict), None)
        close(per_image, file[losses])
        model.masking = fixed(split)
        close(model({"image": images}, torch.tensor(0.0), NO_DRAWS).loss, file[losses].mean())


@pytest.mark.parametrize(("phase", "near"), [("near", 1.0), ("far", 0.0)])
def test_reference_selectivemae_growth(reference_dir: Path, phase: str, near: float) -> None:
    file = Reference(reference_dir / "selectivemae.npz")
    tokens, seeds, expected = file["tokens"], file["initial_ids"], file[f"expanded_ids_{phase}"]
    noise = torch.rand(tokens.shape[:2])
    count = expected.shape[1] - seeds.shape[1]
    grown = grow(tokens, seeds, count, torch.tensor(near), torch.tensor(1.0), noise)
    close(grown.sort(1).values, expected.sort(1).values)
