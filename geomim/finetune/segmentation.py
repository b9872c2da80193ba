"""A class a pixel: torchgeo's task on any backbone."""

from __future__ import annotations

from typing import Any

from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import ByClass, by_class
from geomim.finetune.heads import Head, Segmenter
from geomim.finetune.necks import Neck
from geomim.finetune.training import Training


class ByPixel(ByClass):
    """What tasks that tell the classes of pixels have in common; -1 is what nobody knows."""

    target = "mask"
    kind: Any = Segmenter

    def configure_models(self) -> None:
        """Open the encoder and put the head on its maps."""
        given = {name: self.hparams[name] for name in ("head", "neck", "channels", "join") if name in self.hparams}
        self.model = self.kind(self.open_encoder(), len(self.hparams["classes"]), **given)
        self.tune(self.model.encoder.network)


class Segmentation(ByPixel, stock.Segmentation):
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
        super().__init__(backbone="encoder", ignore_index=-1, **by_class(classes, class_weights))
