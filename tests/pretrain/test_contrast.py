"""Images and sentences told apart: the same as open_clip's, however a step is divided."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from geomim.errors import ConfigError
from geomim.pretrain import contrast as module
from geomim.pretrain.contrast import Contrast, LanguageSpace, first_of_each
from geomim.pretrain.losses import reduce
from geomim.pretrain.objective import Term
from geomim.pretrain.step import Said, join
from geomim.pretrain.targets import Answer

REFERENCE = os.environ.get("GEOMIM_REFERENCE")


def vectors(count: int = 12, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images, sentences = (F.normalize(torch.randn(count, width, generator=draw), dim=1) for _ in range(2))
    return images.requires_grad_(), sentences.requires_grad_()


class Space:
    """What a joint space has for a loss."""

    def __init__(self, scale: float = 10.0) -> None:
        self.scale = torch.tensor(scale, requires_grad=True)


def told(loss: Contrast, images: Tensor, sentences: Tensor, key: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """The loss of a step that is divided into micro-batches."""
    parts = [part.split(sizes) for part in (images, sentences, key, weight)]
    said = [({"contrast": Said(x.detach(), t.detach(), k)}, w[None]) for x, t, k, w in zip(*parts, strict=True)]
    losses = [
        reduce(loss(x[:, None], Answer(t[:, None], key=k), None, step), w, weight.sum())
        for x, t, k, w, step in zip(*parts, join(said), strict=True)
    ]
    return torch.stack(losses).sum()


def gradients(loss: Tensor, space: Space, *features: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*features, space.scale], retain_graph=True))


@pytest.mark.parametrize("sizes", [[12], [5, 7], [3, 3, 3, 3]])
@pytest.mark.parametrize("cells", [2**24, 30])
def test_softmax_is_that_of_open_clip(sizes: list[int], cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of = pytest.importorskip("open_clip").ClipLoss()
    monkeypatch.setattr(module, "CELLS", cells)
    (images, sentences), space = vectors(), Space()
    ours = told(Contrast(space), images, sentences, torch.arange(12), torch.ones(12), sizes)  # type: ignore[arg-type]
    theirs = loss_of(images, sentences, space.scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    pairs = zip(gradients(ours, space, images, sentences), gradients(theirs, space, images, sentences), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [[12], [4, 8]])
def test_sigmoid_is_that_of_open_clip(sizes: list[int]) -> None:
    loss_of = pytest.importorskip("open_clip").loss.SigLipLoss()
    (images, sentences), space = vectors(), Space()
    loss = Contrast(space, loss="sigmoid")  # type: ignore[arg-type]
    ours = told(loss, images, sentences, torch.arange(12), torch.ones(12), sizes)
    theirs = loss_of(images, sentences, space.scale, loss.bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    both = [torch.autograd.grad(one, [images, sentences, space.scale, loss.bias]) for one in (ours, theirs)]
    for own, other in zip(*both, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def plain(images: Tensor, sentences: Tensor, scale: Tensor, key: Tensor) -> Tensor:
    """Cross-entropy both ways with targets shared evenly among equal sentences, less their entropy (all weigh 1)."""
    target = (key[:, None] == key).float()
    target = target / target.sum(1, keepdim=True)
    logits = scale * images @ sentences.T
    entropy = -(target * target.clamp(min=1e-12).log()).sum(1).mean()
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) - entropy


@pytest.mark.parametrize("sizes", [[12], [5, 7]])
def test_equal_sentences_are_positives(sizes: list[int]) -> None:
    (images, sentences), space = vectors(), Space()
    key = torch.tensor([0, 1, 2, 0, 3, 1, 0, 4, 5, 6, 7, 8])
    same = sentences[torch.tensor([int((key == one).nonzero()[0]) for one in key])]
    ours = told(Contrast(space), images, same, key, torch.ones(12), sizes)  # type: ignore[arg-type]
    theirs = plain(images, same, space.scale, key)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    pairs = zip(gradients(ours, space, images, sentences), gradients(theirs, space, images, sentences), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    apart = told(Contrast(space, equal="negatives"), images, same, key, torch.ones(12), sizes)  # type: ignore[arg-type]
    torch.testing.assert_close(apart, plain(images, same, space.scale, torch.arange(12)), rtol=1e-5, atol=1e-6)
    pairs = zip(gradients(ours, space, images, sentences), gradients(apart, space, images, sentences), strict=True)
    for own, other in pairs:  # equal sentences are one vector: they are pulled and pushed at once
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", [[12], [4, 8]])  # in the first of two nothing is known
def test_images_without_a_sentence_are_as_if_they_were_not_there(loss: Any, sizes: list[int]) -> None:
    (images, sentences), space = vectors(), Space()
    there = torch.arange(12) >= 4
    key = torch.where(there, torch.arange(12), -1)
    given = Contrast(space, loss=loss)  # type: ignore[arg-type]
    ours = told(given, images, sentences, key, there.float(), sizes)
    theirs = told(given, images[4:], sentences[4:], key[4:], torch.ones(8), [8])
    torch.testing.assert_close(ours, theirs)
    pairs = zip(gradients(ours, space, images, sentences), gradients(theirs, space, images, sentences), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_of_nothing_is_nothing() -> None:
    (images, sentences), space = vectors(4), Space()
    loss = told(Contrast(space), images, sentences, torch.full((4,), -1), torch.zeros(4), [4])  # type: ignore[arg-type]
    assert loss == 0
    assert all(not one.any() for one in gradients(loss, space, images, sentences))


@pytest.mark.skipif(REFERENCE is None, reason="no reference numbers here: give GEOMIM_REFERENCE")
@pytest.mark.parametrize("sizes", [[8], [3, 5]])
def test_rils_is_the_published_one(sizes: list[int]) -> None:
    with np.load(Path(REFERENCE or "") / "rils_loss.npz") as file:
        given = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    unit = [F.normalize(given[name], dim=-1) for name in ("image_embed", "text_embed")]
    space = SimpleNamespace(scale=given["logit_scale"].float())
    key, weight = torch.arange(len(unit[0])), torch.ones(len(unit[0]))
    clip = told(Contrast(space), *unit, key, weight, sizes)  # type: ignore[arg-type]
    torch.testing.assert_close(clip, given["clip_loss"], rtol=1e-5, atol=1e-5)
    language = LanguageSpace(
        temperature=float(given["student_temperature"]), answer_temperature=float(given["teacher_temperature"])
    )
    masked, whole = (F.normalize(given[name][:, 1:], dim=-1) for name in ("masked_pred", "unmasked_feat"))
    parts = [part.split(sizes) for part in (*unit, key, masked, whole, given["mask"])]
    share = [mask.mean(1) for mask in parts[-1]]  # what images weigh, see `Term.weigh`
    said = [({"contrast": Said(*three)}, w[None]) for *three, w in zip(*parts[:3], share, strict=True)]
    losses = [
        reduce(language(prediction, Answer(answer), mask, step), w, given["mask"].mean(1).sum())
        for prediction, answer, mask, w, step in zip(*parts[3:], share, join(said), strict=True)
    ]
    recon = float(given["weight"]) * torch.stack(losses).sum()
    torch.testing.assert_close(recon, given["recon_loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip + recon, given["loss"], rtol=1e-5, atol=1e-5)


def test_equal_sentences_are_one_prototype() -> None:
    (images, sentences), key = vectors(6), torch.tensor([0, 1, 2, 0, 1, 0])
    same = sentences[key].detach()
    predicted, answered = (vectors(6 * 5, 16, seed)[0].detach().view(6, 5, 16) for seed in (1, 2))
    losses = []
    for rows, names in ((torch.arange(6), key), (torch.arange(3), torch.arange(3))):
        said = {"contrast": Said(images[rows].detach(), same[rows], names)}
        (step,) = join([(said, torch.ones(1, len(rows)))])
        losses.append(LanguageSpace(gate=False)(predicted[:3], Answer(answered[:3]), None, step))
    torch.testing.assert_close(*losses)
    assert first_of_each(torch.tensor([3, -1, 3, 0, -1, 0])).tolist() == [True, False, False, True, False, False]


class Sizes(TorchDispatchMode):
    """Keeps the numbers of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.largest = max(self.largest, out.numel() if isinstance(out, Tensor) else 0)
        return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("key", [[*range(12)], [0, 1, -1] * 4, [-1] * 12])
def test_shares_of_prototypes_are_never_all_in_memory(weighted, key, monkeypatch: pytest.MonkeyPatch) -> None:
    (images, sentences), key = vectors(), torch.tensor(key)
    predicted, answered = (vectors(12 * 5, 16, seed)[0].detach().view(12, 5, 16) for seed in (1, 2))
    weight, share = torch.rand(12, 5) if weighted else None, torch.arange(12) / 12
    (step,) = join([({"contrast": Said(images.detach(), sentences.detach(), key)}, torch.ones(1, 12))])

    def plain() -> Tensor:
        kept = sentences.detach()[first_of_each(key)]
        right = answered @ kept.T / 0.04
        patch = (right.softmax(-1) * (right.log_softmax(-1) - (predicted @ kept.T / 0.1).log_softmax(-1))).sum(-1)
        return patch.mean(1) if weight is None else (patch * weight).sum(1) / weight.sum(1)

    for cells in (2**24, 30):
        monkeypatch.setattr(module, "CELLS", cells)
        predicted.requires_grad_()
        with Sizes() as made:
            loss = LanguageSpace(gate=False)(predicted, Answer(answered), weight, step)
            (ours,) = torch.autograd.grad((loss * share).sum(), predicted)
        assert made.largest == (12 * 5 * 16)  # that of predictions, and of 60 x 12 shares none
        expected = plain()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        (theirs,) = torch.autograd.grad((expected * share).sum(), predicted)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_where_no_image_finds_its_sentence_nothing_is_lost() -> None:
    (images, _), predicted = vectors(4), vectors(4 * 5)[0].view(4, 5, 16)
    said = {"contrast": Said(images.detach(), -images.detach(), torch.arange(4))}
    (step,) = join([(said, torch.ones(1, 4))])
    loss = LanguageSpace()(predicted, Answer(predicted.detach().flip(1)), None, step)
    assert not loss.any()
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert not gradient.any()


def test_what_would_never_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"temperatures above 0; given 0\.1 and -1"):
        LanguageSpace(answer_temperature=-1)
    for starts in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=rf"in \[0, 1\); given {starts}"):
            Term(torch.nn.Identity(), None, reduce, starts=starts)  # type: ignore[arg-type]
