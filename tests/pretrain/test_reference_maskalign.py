"""Parity of `mask_align` with the published implementation; its teacher's states are given."""

from pathlib import Path

import pytest
import torch
from test_reference import NO_DRAWS, Reference, close
from torch import Tensor

from geomim.models.decoders import LevelHeads
from geomim.pretrain.context import Context
from geomim.pretrain.losses import mse, smooth_l1
from geomim.pretrain.masking import Attention, TokenSplit
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import TeacherLevels


@pytest.fixture
def file(reference_dir: Path) -> Reference:
    return Reference(reference_dir / "maskalign.npz")


class Given:
    """A teacher that says what the file says."""

    def __init__(self, file: Reference) -> None:
        tokens = list(file["teacher_hidden_states"][1:])
        self.attention = file["teacher_attention"].mean(1)[:, 0, 1:]
        self.tokens, self.levels, self.width = tokens, len(tokens), tokens[0].shape[-1]

    def __call__(self, view) -> tuple[list[Tensor], Tensor]:
        return self.tokens, self.attention


def aligned(file: Reference) -> MaskedImageModel:
    teacher = Given(file)
    encoder = file.encoder()
    heads = LevelHeads(encoder, teacher.levels, teacher.width)
    identity = torch.zeros(teacher.levels, encoder.depth) + 0.01
    for back in range(1, min(identity.shape) + 1):
        identity[-back, -back] += 1
    close(heads.weight, identity)
    names = {
        n: n.replace("heads.", "distill_heads.") if n != "weight" else "distill_weights" for n in heads.state_dict()
    }
    heads.load_state_dict({ours: file.state[theirs] for ours, theirs in names.items()})
    term = Term(heads, TeacherLevels(teacher), smooth_l1(factor=2.0), "visible", name="alignment", with_class=True)
    return MaskedImageModel(encoder, Attention(teacher, 1 - file.number("mask_ratio")), [term])


def test_reference_maskalign(file: Reference) -> None:
    model = aligned(file)
    (term,) = model.terms
    batch = {"image": file["images"]}
    context = Context(batch, model.encoder, NO_DRAWS)
    visible = file["ids_visible"]
    split = TokenSplit(visible, visible)
    latents = model.encode(context, {"image": split}, "image")
    close(torch.stack(latents.levels[1:]), file["student_hidden_states"])
    levels = len(file["student_pred"])
    prediction = term.decoder(latents, visible)
    close(torch.stack(prediction.chunk(levels, -1)), file["student_pred"])
    answer = term.target(context.views["image"], visible)
    assert answer.values.shape[-1] == term.target.dim
    close(torch.stack(answer.values.chunk(levels, -1)), file["target_whiten"])
    pairs = list(zip(prediction.chunk(levels, -1), answer.values.chunk(levels, -1), strict=True))
    for name, loss in (("l2", mse), ("smoothl1", smooth_l1(factor=2.0))):
        ours = torch.stack([loss(guess, answer._replace(values=right), None).mean() for guess, right in pairs])
        close(ours, file[f"per_level_{name}_whiten"])
    model.masking = lambda context, progress: {"image": split}
    close(model(batch, torch.tensor(0.0), NO_DRAWS).loss, file["loss_smoothl1_whiten_mean"])


def test_reference_maskalign_sampling(file: Reference) -> None:
    masking = aligned(file).masking
    assert isinstance(masking, Attention)
    close(masking.teacher.attention, file["importance"])
    times, rounds, batch = 200, 100, len(file["importance"])
    importance = file["importance"].repeat(times, 1)
    view = Context({"image": file["images"].repeat(times, 1, 1, 1)}, file.encoder(), NO_DRAWS).views["image"]
    seen = torch.zeros_like(importance)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        noise = torch.rand(importance.shape, generator=generator).clamp(1e-7, 1 - 1e-7)
        split = masking.split(view, importance, noise)
        seen.scatter_add_(1, split.visible, torch.ones_like(split.visible, dtype=seen.dtype))
    assert split.visible.shape[1] == file["ids_visible"].shape[1]
    both = torch.cat([split.visible, split.predict], 1).sort(1).values
    assert torch.equal(both, torch.arange(view.length).expand(len(both), -1))
    frequency = seen.view(times, batch, -1).sum(0) / (times * rounds)
    assert (frequency - file["sampling_frequency"]).abs().max() < 0.02  # both are counts of draws
