"""Images to classes or to values: torchgeo's tasks on any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.classification import ConfusionMatrix

from geomim.errors import ConfigError
from geomim.finetune import stock
from geomim.finetune.backbones import open_backbone
from geomim.finetune.figures import class_figures, value_figures
from geomim.finetune.training import Training, Tuning


class Pooled(nn.Module):
    """A backbone, and a linear layer on the normalised features that it pools.

    Args:
        network: A timm model without a head.
        outputs: What the layer gives.
        scale: Of each output, behind the layer.
        shift: The same, added after.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, outputs: int, scale: Sequence[float] = (1,), shift: Sequence[float] = (0,)):
        super().__init__()
        width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.network, self.norm, self.head = network, nn.LayerNorm(width), nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `(B, outputs)` of normalised images `(B, C, H, W)`."""
        outputs: Tensor = self.head(self.norm(self.network(images)))
        return outputs * self.scale + self.shift


class Classification(stock.Classification):
    """The class of an image, or all classes that hold of it.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label`: `(B,)`, or `(B, K)` of 0 and 1 where
    several hold.

    Args:
        encoder: What `open_backbone` opens.
        classes: Names, in the order of the labels.
        several: Whether several classes may hold at once.
        class_weights: Of the loss, one a class; not where several hold.
        sensor: See `open_backbone`.
        bands: See `open_backbone`.
        image_size: See `open_backbone`.
        seed: See `open_backbone`.
        training: What trains, and how.

    Attributes:
        contract: Bands and numbers that images are to be given in.
        notes: What was assumed of the encoder.

    Raises:
        ConfigError: Classes are not told apart.
    """

    def __init__(
        self,
        encoder: str,
        classes: list[str],
        several: bool = False,
        class_weights: list[float] | None = None,
        sensor: str | None = None,
        bands: list[str] | None = None,
        image_size: int | None = None,
        seed: int | None = None,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(classes, least=1 if several else 2)
        check_weights(class_weights, classes)
        if several and class_weights:
            raise ConfigError("class_weights: not where several classes hold at once; leave one of the two out")
        super().__init__(
            model=encoder,
            task="multilabel" if several else "multiclass",
            num_classes=None if several else len(classes),
            num_labels=len(classes) if several else None,
            loss="bce" if several else "ce",
            class_weights=class_weights,
        )

    def configure_models(self) -> None:
        """Open the encoder and put a linear layer on it."""
        own = self.hparams
        backbone = open_backbone(own["encoder"], own["sensor"], own["bands"], own["image_size"], own["seed"])
        self.contract, self.notes = backbone.contract, backbone.notes
        self.model = Pooled(backbone.network, len(own["classes"]))
        self.tuning = Tuning(self, backbone.network)

    def configure_metrics(self) -> None:
        """Torchgeo's, and the confusion that figures are made of."""
        super().configure_metrics()
        names = ("task", "num_classes", "num_labels")
        self.confusion = ConfusionMatrix(**{name: self.hparams[name] for name in names})

    def configure_callbacks(self) -> list[Callback]:
        """What holds the backbone still."""
        return [self.tuning]

    def configure_optimizers(self) -> Any:
        """As `training` says."""
        return self.tuning.optimizers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)`."""
        logits: Tensor = self.model(images)
        self.said = logits.detach()  # torchgeo's test step keeps them to itself
        return logits

    def on_test_start(self) -> None:
        """Count from nothing."""
        self.confusion.reset()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Torchgeo's, and count."""
        super().test_step(batch, batch_idx, dataloader_idx)
        self.confusion.update(self.said, batch["label"])

    def on_test_epoch_end(self) -> None:
        """Bring the counts of all ranks together."""
        super().on_test_epoch_end()
        self.confusion.compute()

    def figures(self) -> list[dict[str, Any]]:
        """Figures by class of the test that ran last; see `class_figures`."""
        return class_figures(self.confusion.compute(), self.hparams["classes"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """`probability` `(B, K)`, the `prediction`, `(B,)` or `(B, K)`, and the batch's `id`."""
        probability = super().predict_step(batch, batch_idx, dataloader_idx)
        prediction = (probability >= 0.5).long() if self.hparams["several"] else probability.argmax(1)
        return {"id": batch.get("id"), "probability": probability, "prediction": prediction}


class Regression(stock.Regression):
    """Values of an image.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label` `(B,)` or `(B, T)`. Values start at their
    mean, and the loss counts in deviations, so targets of different units count alike.

    Args:
        encoder: What `open_backbone` opens.
        targets: Names of the values.
        loss: Squared or absolute error.
        mean: Of each value over the training images; 0 where None.
        deviation: The same; 1 where None.
        sensor: See `open_backbone`.
        bands: See `open_backbone`.
        image_size: See `open_backbone`.
        seed: See `open_backbone`.
        training: What trains, and how.

    Attributes:
        contract: Bands and numbers that images are to be given in.
        notes: What was assumed of the encoder.

    Raises:
        ConfigError: Not one mean and positive deviation a value.
    """

    def __init__(
        self,
        encoder: str,
        targets: list[str],
        loss: Literal["mse", "mae"] = "mse",
        mean: list[float] | None = None,
        deviation: list[float] | None = None,
        sensor: str | None = None,
        bands: list[str] | None = None,
        image_size: int | None = None,
        seed: int | None = None,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(targets, least=1)
        for name, given in (("mean", mean), ("deviation", deviation)):
            if given is not None and (len(given) != len(targets) or (name == "deviation" and min(given) <= 0)):
                raise ConfigError(f"{name}: expected one a target, deviations above 0; given {given} for {targets}")
        super().__init__(model=encoder, num_outputs=len(targets), loss=loss)

    def configure_models(self) -> None:
        """Open the encoder and put a linear layer on it."""
        own = self.hparams
        backbone = open_backbone(own["encoder"], own["sensor"], own["bands"], own["image_size"], own["seed"])
        self.contract, self.notes = backbone.contract, backbone.notes
        self.model = Pooled(backbone.network, len(own["targets"]), own["deviation"] or (1,), own["mean"] or (0,))
        self.tuning = Tuning(self, backbone.network)

    def configure_losses(self) -> None:
        """Torchgeo's, in deviations."""
        super().configure_losses()
        self.criterion = _InDeviations(self.criterion, self.model.scale)

    def configure_metrics(self) -> None:
        """Torchgeo's, and the values that figures are made of."""
        super().configure_metrics()
        self.pairs = CatMetric()

    def configure_callbacks(self) -> list[Callback]:
        """What holds the backbone still."""
        return [self.tuning]

    def configure_optimizers(self) -> Any:
        """As `training` says."""
        return self.tuning.optimizers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Values `(B, T)`."""
        values: Tensor = self.model(images)
        self.said = values.detach()  # torchgeo's test step keeps them to itself
        return values

    def on_test_start(self) -> None:
        """Keep from nothing."""
        self.pairs.reset()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Torchgeo's, and keep."""
        super().test_step(batch, batch_idx, dataloader_idx)
        self.pairs.update(torch.stack((batch["label"].float().reshape(self.said.shape), self.said), 1))

    def on_test_epoch_end(self) -> None:
        """Bring the values of all ranks together."""
        super().on_test_epoch_end()
        self.pairs.compute()

    def figures(self) -> list[dict[str, Any]]:
        """Figures by target of the test that ran last; see `value_figures`."""
        pairs = torch.as_tensor(self.pairs.compute()).reshape(-1, 2, len(self.hparams["targets"]))
        return value_figures(pairs[:, 0], pairs[:, 1], self.hparams["targets"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The `prediction` `(B, T)` and the batch's `id`."""
        return {"id": batch.get("id"), "prediction": self(batch["image"])}


class _InDeviations(nn.Module):
    def __init__(self, loss: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, said: Tensor, truth: Tensor) -> Tensor:
        scale = self.scale.to(said.device)
        loss: Tensor = self.loss(said / scale, truth / scale)
        return loss


def check_classes(classes: Sequence[str], least: int = 2) -> None:
    """Refuse names that stand twice, or fewer than there have to be.

    Raises:
        ConfigError: With the names.
    """
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice or len(classes) < least:
        said = f"{', '.join(twice)} more than once" if twice else f"{len(classes)}: {', '.join(classes) or 'none'}"
        raise ConfigError(f"expected at least {least} different names of classes or targets; given {said}")


def check_weights(weights: Sequence[float] | None, classes: Sequence[str]) -> None:
    """Refuse weights that are not one a class.

    Raises:
        ConfigError: With both numbers.
    """
    if weights is not None and (len(weights) != len(classes) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(
            f"class_weights: expected one a class, none below 0; given {weights} for {', '.join(classes)}"
        )
