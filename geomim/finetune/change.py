"""Two dates of a place to what has changed: torchgeo's task on any backbone."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from geomim.errors import ConfigError, nearest
from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import ByClass, check_classes
from geomim.finetune.heads import Efficient, Head, Linear, Segmenter
from geomim.finetune.necks import Neck
from geomim.finetune.segmentation import LabelledCrossEntropy
from geomim.finetune.training import Training

Join = Literal["difference", "concatenation"]


class Siamese(nn.Module):
    """One encoder for both dates, whose maps are joined before the head (Daudt et al., ICIP 2018).

    Args:
        network: A timm model; it is taken over.
        classes: Number of classes.
        head: As `neck` and `channels`, see `Segmenter`; but `linear` and `efficient` do not normalise what is joined,
            for how much differs is what counts.
        join: `difference` takes the absolute difference, so the order of the dates makes no difference;
            `concatenation` lets a 1x1 convolution choose from both dates and that.

    Raises:
        ConfigError: As `Segmenter`, or there is no such join.
    """

    def __init__(self, network: nn.Module, classes: int, head: Head, neck: Neck, channels: int, join: Join) -> None:
        super().__init__()
        if join not in get_args(Join):
            raise ConfigError(f"unknown join '{join}'{nearest(join, get_args(Join))}")
        one = Segmenter(network, classes, head, neck, channels)
        self.encoder, self.head = one.encoder, one.head
        if isinstance(self.head, Linear):
            self.head.norms = nn.ModuleList(nn.Identity() for _ in self.head.norms)
        elif isinstance(self.head, Efficient):
            self.head.norm = nn.Identity()
        widths = self.encoder.widths if join == "concatenation" else ()
        self.joins = nn.ModuleList(nn.Conv2d(3 * width, width, 1) for width in widths)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, classes, H, W)` of pairs `(B, 2, C, H, W)`."""
        maps = [one.unflatten(0, (-1, 2)).unbind(1) for one in self.encoder(images.flatten(0, 1))]
        joined = [(before - after).abs() for before, after in maps]
        if self.joins:
            joined = [join(torch.cat((*pair, by), 1)) for join, pair, by in zip(self.joins, maps, joined, strict=True)]
        logits: Tensor = self.head(joined, images.shape[-2:])
        return logits


class Change(ByClass, stock.Change):
    """What has changed between two dates, pixel by pixel.

    Batches hold `image` `(B, 2, C, H, W)`, normalised by `contract`, and `mask` `(B, H, W)` int64 of classes, -1 where
    nobody knows.

    Args:
        encoder: What is opened; a source alone will do.
        classes: Names, in the order of the mask's numbers; usually unchanged and changed.
        head: As `neck` and `channels`, see `Segmenter`.
        join: See `Siamese`.
        class_weights: Of the loss, one a class.
        training: What trains, and how.

    Raises:
        ConfigError: Classes, their weights, head, neck or join cannot be meant.
    """

    target = "mask"

    def __init__(
        self,
        encoder: Encoder | str,
        classes: list[str],
        head: Head = "upernet",
        neck: Neck = "taps",
        channels: int = 256,
        join: Join = "concatenation",
        class_weights: list[float] | None = None,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(classes, class_weights)
        super().__init__(
            model="fcsiamdiff",  # torchgeo's steps hand on both dates as they are
            backbone="encoder",
            task="multiclass",
            num_classes=len(classes),
            loss="ce",
            class_weights=class_weights,
            ignore_index=-1,
        )

    def configure_models(self) -> None:
        """Open the encoder and put the head on what it says of both dates."""
        network, own = self.open_encoder(), self.hparams
        names = ("head", "neck", "channels", "join")
        self.model = Siamese(network, len(own["classes"]), **{name: own[name] for name in names})
        self.tune(network)

    def configure_losses(self) -> None:
        """Cross entropy that bears windows without a label."""
        self.criterion = LabelledCrossEntropy(self.hparams["class_weights"])
