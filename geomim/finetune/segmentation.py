"""A class a pixel: torchgeo's task on any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import ByClass, check_classes
from geomim.finetune.heads import Head, Segmenter
from geomim.finetune.necks import Neck
from geomim.finetune.training import Training


class LabelledCrossEntropy(nn.Module):
    """Mean cross entropy of the pixels that have a label, weighted by class: 0, not NaN, where a batch has none.

    Args:
        weights: One a class; all alike where None.
        ignored: What stands for no label.
    """

    weights: Tensor | None

    def __init__(self, weights: list[float] | None = None, ignored: int = -1) -> None:
        super().__init__()
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)
        self.ignored = ignored

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss of logits `(B, K, H, W)` for a mask `(B, H, W)` int64."""
        known = mask.ne(self.ignored)
        weight = known if self.weights is None else known * self.weights[mask.clamp_min(0)]
        loss = F.cross_entropy(logits, mask, self.weights, ignore_index=self.ignored, reduction="sum")
        return loss / weight.sum().clamp_min(1e-6)


class Segmentation(ByClass, stock.Segmentation):
    """The class of every pixel.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `mask` `(B, H, W)` int64 of classes, -1 where
    nobody knows; their sides need be no multiples of anything.

    Args:
        encoder: What is opened; a source alone will do.
        classes: Names, in the order of the mask's numbers.
        head: As `neck` and `channels`, see `Segmenter`.
        class_weights: Of the loss, one a class.
        training: What trains, and how.

    Raises:
        ConfigError: Classes, their weights, or the head with its neck cannot be meant.
    """

    target = "mask"

    def __init__(
        self,
        encoder: Encoder | str,
        classes: list[str],
        head: Head = "upernet",
        neck: Neck = "taps",
        channels: int = 256,
        class_weights: list[float] | None = None,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(classes, class_weights)
        super().__init__(
            backbone="encoder",
            task="multiclass",
            num_classes=len(classes),
            loss="ce",
            class_weights=class_weights,
            ignore_index=-1,
        )

    def configure_models(self) -> None:
        """Open the encoder and put the head on its maps."""
        own = self.hparams
        names = ("head", "neck", "channels")
        self.model = Segmenter(self.open_encoder(), len(own["classes"]), **{name: own[name] for name in names})
        self.tune(self.model.encoder.network)

    def configure_losses(self) -> None:
        """Cross entropy that bears windows without a label."""
        self.criterion = LabelledCrossEntropy(self.hparams["class_weights"])
