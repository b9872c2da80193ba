"""Few labels: what a frozen encoder says of labelled pixels or images, read once, under logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from geomim.evaluate.features import device_of, pixel_statistics
from geomim.evaluate.linear import solutions
from geomim.finetune.datamodule import Cut, Samples, Windows, together
from geomim.finetune.progress import watched
from geomim.finetune.run import PIXELS, Tuning

DECAYS = tuple(10.0**-exponent for exponent in range(6))
"""Factors of half the squared weights, of which one is chosen for each side."""
_A_WINDOW, _WINDOWS = 128, 500  # most labelled pixels that are kept of a window, and most windows
_TRIED, _FITTED = 3000, 12_000  # most rows to choose a decay by, and to fit


class Probing(Tuning):
    """Fits a linear head in place of training it by steps: multinomial logistic regression, the same for all sides.

    The encoder reads each window once, as it lies, and folds share what is kept: `(n, D)` of up to 128 labelled pixels
    of it, of its classes as many as the roots of their numbers say, or one vector of an image; half precision, of at
    most 500 windows, which is 100 MB for a width of 192 and four depths. The decay is chosen once a side: in the
    windows that the first fold trains with each of four parts is left out in turn. Windows of a part lie one behind
    the other; images of classes, which lie by class, take turns. So the labels of other folds' tests have a say in one
    of six decays, for all sides alike.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._kept: dict[str, dict[Cut, tuple[Tensor, Tensor]]] = {}
        self._decay: dict[str, float] = {}

    def steps(self, windows: Windows) -> int:
        """None."""
        return 0

    def train(self, windows: Windows, steps: int = 0, start: str = "") -> Any:
        """A task whose head is fitted on the encoder's maps, on those of `RANDOM` weights, or on `PIXELS`."""
        device = device_of({"gpu": "cuda"}.get(self.running.accelerator, self.running.accelerator))
        task, cuts = self.make(start).eval().to(device), windows.parts["train"]
        if start == PIXELS and self.kind == "class":
            mean, deviation = torch.zeros(1, device=device), torch.ones(1, device=device)
            task.model.network, task.model.mean, task.model.deviation = _Moments(), mean, deviation
            task.marked = True
        if (count := len(cuts)) > _WINDOWS:
            print(f"note: {_WINDOWS} of {count} windows are read to fit a head on {start or 'the encoder'}")
        cuts = [cuts[at] for at in np.unique(np.linspace(0, len(cuts) - 1, _WINDOWS).astype(int))]
        kept = self._kept.setdefault(start, {})
        kept |= self._read(task, windows, [cut for cut in cuts if cut not in kept], start)
        columns, labels = (torch.cat(part) for part in zip(*(kept[cut] for cut in cuts), strict=True))
        quarter = [at % 4 if self.kind == "class" else 4 * at // len(cuts) for at in range(len(cuts))]
        parts = torch.cat([torch.full((len(kept[cut][1]),), part) for cut, part in zip(cuts, quarter, strict=True)])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))[:_FITTED]
        rows = columns[order].float(), labels[order], parts[order]
        count = len(windows.labels.classes)
        if start not in self._decay:
            scores = _left_out(*(one[:_TRIED] for one in rows), count)
            self._decay[start] = DECAYS[int(np.argmax(scores))]
        *_, probe = solutions(*rows[:2], count, DECAYS[: DECAYS.index(self._decay[start]) + 1])  # as it was chosen
        weights = probe.state_dict()
        head = task.model.head
        if self.kind == "class":  # features are standardised within the fit
            task.model.head = head = nn.Linear(columns.shape[1], count)
        else:
            head, weights["weight"] = head.predict, weights["weight"][..., None, None]
        head.load_state_dict(weights)
        return task.cpu()

    @torch.no_grad()
    def _read(self, task: Any, windows: Windows, cuts: list[Cut], start: str) -> dict[Cut, tuple[Tensor, Tensor]]:
        """What is kept of some windows."""
        loader = DataLoader(Samples(windows, cuts, False), windows.batch_size, collate_fn=together)
        found, draws = list[tuple[Tensor, Tensor]](), np.random.default_rng(self.seed)
        values = start == PIXELS or self.arguments.get("head") == "both"
        kind = torch.float32 if values else torch.float16  # which squares of odd values leave
        read, head = task.model, task.model.head
        if self.kind == "class":
            read = read.network
        else:
            task.model.head = _Maps(head)
        for batch in watched(loader, f"reading windows, {start or 'encoder'}"):  # type: ignore[arg-type]
            said = read(task.on_before_batch_transfer(batch, 0)["image"].to(task.device))
            if self.kind == "class":
                found += zip(said.cpu().to(kind).split(1), batch["label"].split(1), strict=True)
                continue
            for *maps, mask in zip(*said, batch["mask"], strict=True):
                some = _some(mask, draws)
                own = [_at(one.cpu(), some, mask.shape, by) for one, by in zip(maps, head.strides, strict=True)]
                found.append((torch.cat(own, 1).to(kind), mask.flatten()[some]))
        task.model.head = head
        return dict(zip(cuts, found, strict=True))


class _Maps(nn.Module):
    """What a linear head reads, in its place."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.norms = head.norms

    def forward(self, maps: list[Tensor], size: Any) -> list[Tensor]:
        """Maps `(B, width, h, w)`, normalised."""
        return [norm(one) for norm, one in zip(self.norms, maps, strict=True)]


class _Moments(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        """Mean and deviation of each band over all that is not NaN, `(B, 2 C)`."""
        return pixel_statistics().forward(images.nan_to_num(), ~images.isnan().any(1, keepdim=True))[0]


def _some(mask: Tensor, draws: np.random.Generator) -> Tensor:
    """Places of some labelled pixels, of each class as many as the root of its number says."""
    flat = mask.flatten().numpy()
    kinds, counts = np.unique(flat[flat >= 0], return_counts=True)
    shares = np.ceil(_A_WINDOW * counts**0.5 / (counts**0.5).sum()).astype(int)
    each = [np.flatnonzero(flat == kind) for kind in kinds]
    chosen = [draws.choice(own, min(share, len(own)), replace=False) for own, share in zip(each, shares, strict=True)]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *chosen]))


def _at(maps: Tensor, some: Tensor, size: torch.Size, stride: int) -> Tensor:
    """A map `(D, h, w)` interpolated at pixels, `(n, D)`, as the head enlarges its answers."""
    sides = maps.new_tensor([maps.shape[2], maps.shape[1]]) * stride
    places = (torch.stack([some % size[1], some // size[1]], 1) + 0.5) / sides * 2 - 1
    found = F.grid_sample(maps[None], places[None, None], padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def _left_out(columns: Tensor, labels: Tensor, parts: Tensor, classes: int) -> list[float]:
    """Mean IoU over the rows of all parts, each by a fit to the others, for each decay."""
    confusion = torch.zeros(len(DECAYS), classes * classes)
    for out in (parts == one for one in parts.unique() if (parts != one).any()):  # type: ignore[no-untyped-call]
        for row, probe in zip(confusion, solutions(columns[~out], labels[~out], classes, DECAYS), strict=True):
            said = probe(columns[out]).argmax(1)
            row += torch.bincount(classes * labels[out] + said, minlength=classes * classes)
    both = confusion.reshape(-1, classes, classes)
    right = both.diagonal(dim1=1, dim2=2)
    return (right / (both.sum(1) + both.sum(2) - right)).nanmean(1).tolist()
