"""Images to classes or to values: torchgeo's tasks on any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.classification import ConfusionMatrix

from geomim.errors import ConfigError
from geomim.finetune import stock
from geomim.finetune.figures import class_figures, value_figures
from geomim.finetune.training import Training, Tuned


class ByClass(Tuned):
    """What tasks that tell classes apart have in common: what they count, say and predict."""

    target = "label"

    def configure_metrics(self) -> None:
        """Torchgeo's, and the confusion that figures are made of."""
        super().configure_metrics()
        names = ("task", "num_classes", "num_labels", "ignore_index")
        self.tally = ConfusionMatrix(**{name: self.hparams.get(name) for name in names})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Torchgeo's, and count."""
        super().test_step(batch, batch_idx)
        said = self.said.sigmoid() if self.hparams["num_labels"] else self.said  # small logits look like probabilities
        self.tally.update(said, batch[self.target])

    def figures(self) -> list[dict[str, Any]]:
        """Figures by class of the test that ran last; see `class_figures`."""
        return class_figures(self.tally.compute(), self.hparams["classes"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """`probability` `(B, K, ...)`, `prediction` without K, or 0 and 1 with it where several hold, and the `id`."""
        probability = super().predict_step(batch, batch_idx)
        prediction = (probability >= 0.5).long() if self.hparams["num_labels"] else probability.argmax(1)
        return {"id": batch.get("id"), "probability": probability, "prediction": prediction}


class Pooled(nn.Module):
    """A backbone, and a linear layer on the normalised features that it pools.

    Args:
        network: A timm model without a head.
        scale: Of each output, behind the layer.
        shift: Added to each after.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.network, self.norm, self.head = network, nn.LayerNorm(width), nn.Linear(width, len(scale))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `(B, K)` of normalised images `(B, C, H, W)`."""
        outputs: Tensor = self.head(self.norm(self.network(images)))
        return outputs * self.scale + self.shift


class Classification(ByClass, stock.Classification):
    """The class of an image, or all classes that hold of it.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label`: `(B,)`, or `(B, K)` of 0 and 1.

    Args:
        encoder: What `open_backbone` opens; `sensor`, `bands`, `image_size` and `seed` are for it too.
        classes: Names, in the order of the labels.
        several: Whether several classes may hold at once.
        class_weights: Of the loss, one a class; not where several hold.
        training: What trains, and how.

    Raises:
        ConfigError: Classes or their weights cannot be meant.
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
        check_classes(classes, class_weights)
        if several and class_weights:
            raise ConfigError("class_weights: not where several classes hold at once; leave one of the two out")
        count, task, loss = len(classes), *(("multilabel", "bce") if several else ("multiclass", "ce"))
        both = {"num_classes": None if several else count, "num_labels": count if several else None}
        super().__init__(model=encoder, task=task, loss=loss, class_weights=class_weights, **both)

    def configure_models(self) -> None:
        """Open the encoder and put a linear layer on it."""
        count = len(self.hparams["classes"])
        self.model = Pooled(self.open_encoder(), [1.0] * count, [0.0] * count)
        self.tune(self.model.network)


class Regression(Tuned, stock.Regression):
    """Values of an image.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label` `(B,)` or `(B, T)`. The loss is in the
    targets' own units, so the one of the largest numbers counts most.

    Args:
        encoder: What `open_backbone` opens; `sensor`, `bands`, `image_size` and `seed` are for it too.
        targets: Names of the values.
        loss: Squared or absolute error.
        mean: Of each value over the training images, where answers start; 0 where None.
        deviation: The same, which a step of the linear layer stands for; 1 where None.
        training: What trains, and how.

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
            if given and (len(given) != len(targets) or (name == "deviation" and min(given) <= 0)):
                raise ConfigError(f"{name}: expected one a target, deviations above 0; given {given} for {targets}")
        super().__init__(model=encoder, num_outputs=len(targets), loss=loss)

    def configure_models(self) -> None:
        """Open the encoder and put a linear layer on it."""
        own, count = self.hparams, len(self.hparams["targets"])
        self.model = Pooled(self.open_encoder(), own["deviation"] or [1.0] * count, own["mean"] or [0.0] * count)
        self.tune(self.model.network)

    def configure_metrics(self) -> None:
        """Torchgeo's, and the values that figures are made of."""
        super().configure_metrics()
        self.tally = CatMetric(nan_strategy="disable")  # the others would drop single values

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Torchgeo's, and keep what is true and what was said."""
        super().test_step(batch, batch_idx)
        self.tally.update(torch.stack((batch["label"].float().reshape(self.said.shape), self.said), 1))

    def figures(self) -> list[dict[str, Any]]:
        """Figures by target of the test that ran last; see `value_figures`."""
        pairs = torch.as_tensor(self.tally.compute()).reshape(-1, 2, len(self.hparams["targets"]))
        return value_figures(pairs[:, 0], pairs[:, 1], self.hparams["targets"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The `prediction` `(B, T)` and the batch's `id`."""
        return {"id": batch.get("id"), "prediction": self(batch["image"])}


def check_classes(names: Sequence[str], weights: Sequence[float] | None = None, least: int = 2) -> None:
    """Refuse names of classes or targets that stand twice or are too few, and weights that are not one a class.

    Raises:
        ConfigError: With the names.
    """
    if len(set(names)) < max(least, len(names)):
        raise ConfigError(f"expected at least {least} names of classes or targets, each once; given {', '.join(names)}")
    if weights is not None and (len(weights) != len(names) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(f"class_weights: expected one a class, none below 0; given {weights} for {', '.join(names)}")
