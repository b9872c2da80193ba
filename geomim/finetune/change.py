"""Two dates of a place to what has changed: torchgeo's task on any backbone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import by_class
from geomim.finetune.heads import Efficient, Head, Linear, Segmenter
from geomim.finetune.necks import Neck, check_name
from geomim.finetune.segmentation import ByPixel
from geomim.finetune.training import Training

Join = Literal["difference", "concatenation"]


class Siamese(Segmenter):
    """One encoder for both dates, whose maps are joined before the head (Daudt et al., ICIP 2018).

    Args:
        network: As `classes`, `head`, `neck` and `channels`, see `Segmenter`; but `linear` and `efficient` do not
            normalise what is joined, for how much differs is what counts.
        join: `difference` takes the absolute difference, so the order of the dates makes no difference;
            `concatenation` lets a 1x1 convolution choose from both dates and that.

    Raises:
        ConfigError: As `Segmenter`, or there is no such join.
    """

    def __init__(self, network: nn.Module, classes: int, head: Head, neck: Neck, channels: int, join: Join) -> None:
        check_name("join", join, Join)
        super().__init__(network, classes, head, neck, channels)
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


class Change(ByPixel, stock.Change):
    """What has changed between two dates, pixel by pixel: `Segmentation` of pairs `image` `(B, 2, C, H, W)`.

    Args:
        encoder: As all that is not said here, see `Segmentation`.
        classes: Names, in the order of the mask's numbers; usually unchanged and changed.
        join: See `Siamese`.
    """

    kind = Siamese

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
        own = by_class(classes, class_weights)  # torchgeo's steps hand on both dates of fcsiamdiff as they are
        super().__init__(model="fcsiamdiff", backbone="encoder", ignore_index=-1, **own)
