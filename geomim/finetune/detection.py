"""Upright boxes: torchgeo's task on any backbone, with torchvision's detectors."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, box_iou

from geomim.errors import ConfigError, InputError
from geomim.finetune import rotated, stock
from geomim.finetune.average_precision import AveragePrecision
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import check_classes
from geomim.finetune.necks import Neck, Pyramid, check_name
from geomim.finetune.oriented import OrientedDetector
from geomim.finetune.training import Training, Tuned

Head = Literal["faster-rcnn", "fcos", "retinanet", "oriented"]


class UprightDetector(nn.Module):
    """A detector of torchvision on a pyramid, the finest map first, for images as they are given.

    Anchors have 8 strides for Faster R-CNN and 4, 5 and 6.3 for RetinaNet, as in their papers. All keep up to 300 boxes
    an image that score above 0.05. Labels begin at 0; Faster R-CNN's class of background is added within. Only the
    pyramid runs at half precision, which cannot hold the coordinates of boxes. Losses of Faster R-CNN and FCOS are
    means over what is sampled in a batch, as published: divided over devices they differ by a little.
    """

    def __init__(self, head: Head, pyramid: Pyramid, classes: int) -> None:
        super().__init__()
        strides, channels, self.background = pyramid.strides, pyramid.channels, int(head == "faster-rcnn")
        if channels % 32 and not self.background:
            raise ConfigError(f"channels: expected a multiple of 32 for the head {head}; given {channels}")
        times = {"faster-rcnn": (8.0,), "fcos": (1.0,), "retinanet": (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))}[head]
        sizes = tuple(tuple(round(stride * one) for one in times) for stride in strides)
        anchors = AnchorGenerator(sizes, ((1.0,) if head == "fcos" else (0.5, 1.0, 2.0),) * len(strides))
        maps = _Named(pyramid)
        if head == "faster-rcnn":
            pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size=7, sampling_ratio=2)
            parts: dict[str, Any] = {"rpn_anchor_generator": anchors, "box_roi_pool": pool}
            self.model: Any = FasterRCNN(maps, classes + 1, box_detections_per_img=300, **parts)
        elif head == "fcos":
            self.model = FCOS(maps, classes, anchor_generator=anchors, score_thresh=0.05, detections_per_img=300)
        else:
            answers = RetinaNetHead(channels, 9, classes, norm_layer=partial(nn.GroupNorm, 32))
            self.model = RetinaNet(maps, classes, anchor_generator=anchors, head=answers, detections_per_img=300)
        self.model.transform = _AsGiven(1, 1, [0.0], [1.0], size_divisible=max(strides))

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As `OrientedDetector`, but for boxes x1, y1, x2, y2."""
        if targets is not None:
            targets = [one | {"labels": one["labels"] + self.background} for one in targets]
        kind = images.device.type
        self.model.backbone.ambient = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            found = self.model(images.float(), targets)
        return found if self.training else [one | {"labels": one["labels"] - self.background} for one in found]


class _Named(nn.Module):
    """Maps by name, in single precision, as torchvision's detectors read them."""

    ambient = (False, torch.bfloat16)

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid, self.out_channels = pyramid, pyramid.channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The pyramid's maps, the finest first, made in the precision around the detector."""
        with torch.autocast(images.device.type, enabled=self.ambient[0], dtype=self.ambient[1]):
            maps = self.pyramid(images)
        return OrderedDict((str(level), one.float()) for level, one in enumerate(maps))


class _AsGiven(GeneralizedRCNNTransform):
    """Does not resize; sides are filled up with 0 to a multiple of the coarsest stride."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Both as they are."""
        return image, target


class Detection(Tuned, stock.Detection):
    """Boxes of objects, upright or rotated.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and of each image `label` `(N,)`, places in `classes`
    from 0, and `bbox_xyxy` `(N, 4)`, or for the head `oriented` `obox` `(N, 5)` as `rotated` describes them. An image
    may have no box. A test may have `beside`, see `Windows`. Other than torchgeo's, average precision is that of the
    whole set, not the mean of batches'.

    Args:
        encoder: What is opened; a source alone will do.
        classes: Names, in the order of the labels, without a background.
        head: `oriented` for rotated boxes, see `OrientedDetector`; for the others see `UprightDetector`.
        neck: As `channels`, see `Pyramid`.
        training: What trains, and how.

    Raises:
        ConfigError: Classes, head or neck cannot be meant, or the channels do not fit the head.
    """

    def __init__(
        self,
        encoder: Encoder | str,
        classes: list[str],
        head: Head = "faster-rcnn",
        neck: Neck = "simple",
        channels: int = 256,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(classes, least=1)
        check_name("head", head, Head)
        check_name("neck", neck, Neck)
        super().__init__(model=head, backbone="encoder", num_classes=len(classes))

    def configure_models(self) -> None:
        """Open the encoder and put a pyramid and the detector on it."""
        network, own = self.open_encoder(), self.hparams
        pyramid, count = Pyramid(network, own["neck"], own["channels"]), len(own["classes"])
        self.rotated = own["head"] == "oriented"
        self.key = "obox" if self.rotated else "bbox_xyxy"
        self.model = OrientedDetector(pyramid, count) if self.rotated else UprightDetector(own["head"], pyramid, count)
        self.tune(network)

    def configure_metrics(self) -> None:
        """Average precision, of validation and of the test."""
        count, overlap = len(self.hparams["classes"]), rotated.box_iou if self.rotated else box_iou
        self.val_metrics, self.tally = AveragePrecision(count, overlap), AveragePrecision(count, overlap)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse boxes without area and labels of no class, while they are on the CPU.

        Raises:
            InputError: With the image and the box.
        """
        classes = self.hparams["classes"]
        for place, (boxes, labels) in enumerate(zip(batch.get(self.key, ()), batch.get("label", ()), strict=False)):
            sides = boxes[..., 2:4] if self.rotated else boxes[..., 2:4] - boxes[..., :2]
            for box, side, label in zip(boxes.tolist(), sides.tolist(), labels.tolist(), strict=True):
                image = batch["id"][place] if "id" in batch else f"{place} of the batch"
                said = f"image {image}: the box ({', '.join(f'{one:.4g}' for one in box)}) of label {label}"
                if not 0 <= label < len(classes):
                    raise InputError(f"{said}: expected 0 to {len(classes) - 1}, places in {', '.join(classes)}")
                if not min(side) > 0 or not all(map(math.isfinite, box)):
                    raise InputError(f"{said}, {classes[label]}, has no area: mend it, or leave it out")
        return batch

    def targets(self, batch: Any) -> list[dict[str, Tensor]]:
        """What is true of the images of a batch, as detectors take it.

        Raises:
            InputError: The batch has boxes of another kind.
        """
        if self.key not in batch:
            raise InputError(f"the head {self.hparams['head']} learns {self.key}; the batch has {', '.join(batch)}")
        pairs, size = zip(batch[self.key], batch["label"], strict=True), 5 if self.rotated else 4
        return [{"boxes": boxes.float().reshape(-1, size), "labels": labels.long()} for boxes, labels in pairs]

    def judged(self, batch: Any) -> list[dict[str, Tensor]]:
        """What is found, but for boxes whose middle lies in what another window answers for and that fit none here."""
        found, overlap = self(batch["image"]), rotated.box_iou if self.rotated else box_iou
        each = zip(found, self.targets(batch), batch.get("beside", ()), strict=False)
        for place, (answer, truth, beside) in enumerate(each):
            kept = answers_for(answer["boxes"], truth["boxes"], beside, overlap)
            found[place] = {key: value[kept] for key, value in answer.items()}
        return found

    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The sum of the detector's losses."""
        losses = self(batch["image"], self.targets(batch))
        total: Tensor = sum(losses.values())
        self.log_dict(losses | {"train_loss": total}, batch_size=len(batch["image"]))
        return total

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Match the boxes of a batch."""
        self.val_metrics.update(self.judged(batch), self.targets(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Match the boxes of a batch."""
        self.tally.update(self.judged(batch), self.targets(batch))

    def on_validation_epoch_end(self) -> None:
        """Log `val_map`, `val_map_50` and `val_map_75`."""
        self._say("val", self.val_metrics)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log `test_map`, `test_map_50` and `test_map_75`."""
        self._say("test", self.tally)

    def _say(self, stage: str, metric: AveragePrecision) -> None:
        self.log_dict({f"{stage}_{name}": value for name, value in metric.compute().items() if name.startswith("map")})

    def figures(self) -> list[dict[str, Any]]:
        """Figures by class of the test that ran last; see `AveragePrecision.figures`."""
        return self.tally.figures(self.hparams["classes"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Of each image the boxes, by falling `score`, with their `label`, under the batch's names, and its `id`."""
        found, names = self(batch["image"]), {self.key: "boxes", "label": "labels", "score": "scores"}
        return {"id": batch.get("id")} | {key: [one[name] for one in found] for key, name in names.items()}


def answers_for(boxes: Tensor, truth: Tensor, beside: Tensor, overlap: Any) -> Tensor:
    """`(N,)` whether a window is judged by a box: its middle is not in what is `beside`, see `Windows`, or it fits."""
    middle = boxes[:, None, :2] if boxes.shape[1] == 5 else (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    away: Tensor = ~((middle >= beside[:, :2]) & (middle < beside[:, 2:])).all(-1).any(1)
    return away | (overlap(boxes, truth) >= 0.5).any(1)
