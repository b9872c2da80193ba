"""Images to classes or to values: torchgeo's tasks on any backbone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import CatMetric
from torchmetrics.classification import ConfusionMatrix

from geomim.errors import ConfigError
from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.figures import class_figures, value_figures
from geomim.finetune.training import Training, Tuned


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of what has a label, its class's weight times it, over all images or pixels, labelled or not.

    So each label counts alike, however few a window has, and a mean over ranks, micro-batches or validation batches is
    that of all together. Where few pixels are labelled the loss is small, which AdamW makes nothing of.

    Args:
        weights: One a class; 1 where None.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__(None if weights is None else torch.tensor(weights), ignore_index=-1, reduction="sum")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits `(B, K, ...)` for labels `(B, ...)` int64, -1 where there is none."""
        return super().forward(logits.float(), labels) / labels.numel()


class ByClass(Tuned):
    """What tasks that tell classes apart have in common: their loss, what they count, say and predict."""

    def allowed(self) -> tuple[float, float, str]:
        """From the first to the last class, or of each 0 and 1."""
        names = self.hparams["classes"]
        if self.hparams["num_labels"]:
            return 0, 1, f"0 or 1 of each of {', '.join(names)}"
        said, masks = f"0 to {len(names) - 1}, places in {', '.join(names)}", self.target == "mask"
        return -int(masks), len(names) - 1, said + ", or -1 for what nobody knows" * masks

    def configure_losses(self) -> None:
        """Torchgeo's where several classes hold, else cross entropy that bears what has no label."""
        super().configure_losses()  # type: ignore[misc]
        if self.hparams["loss"] == "ce":
            self.criterion = CrossEntropy(self.hparams["class_weights"])

    def configure_metrics(self) -> None:
        """Torchgeo's, and the confusion that figures are made of."""
        super().configure_metrics()  # type: ignore[misc]
        names = ("task", "num_classes", "num_labels", "ignore_index")
        self.tally = ConfusionMatrix(**{name: self.hparams.get(name) for name in names})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Torchgeo's, and count."""
        super().test_step(batch, batch_idx)
        said = self.said.sigmoid() if self.hparams["num_labels"] else self.said.argmax(1)
        self.tally.update(said, batch[self.target].reshape(said.shape))  # torchgeo's datasets have masks `(B, 1, H, W)`

    def figures(self) -> list[dict[str, Any]]:
        """Figures by class of the test that ran last; see `class_figures`."""
        return class_figures(self.tally.compute(), self.hparams["classes"])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """`probability` `(B, K, ...)`, `prediction` without K, or 0 and 1 with it where several hold, and the `id`."""
        found = super().predict_step(batch, batch_idx)
        probability = found["probabilities"] if isinstance(found, dict) else found  # of segmentation, from torchgeo 0.9
        prediction = (probability > 0.5).long() if self.hparams["num_labels"] else probability.argmax(1)
        return {"id": batch.get("id"), "probability": probability, "prediction": prediction}


class Pooled(nn.Module):
    """A backbone, and a linear layer on the features that it pools, less their mean and over their deviation.

    Args:
        network: A timm model without a head.
        outputs: How many; each is scaled and shifted after.
    """

    def __init__(self, network: Any, outputs: int) -> None:
        super().__init__()
        width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.network, self.head = network, nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for name, size in (("mean", width), ("shift", outputs)):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("deviation", width), ("scale", outputs)):
            self.register_buffer(name, torch.ones(size))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `(B, K)` of normalised images `(B, C, H, W)`."""
        outputs: Tensor = self.head((self.network(images) - self.mean) / self.deviation)
        return outputs * self.scale + self.shift


class OnPooled(Tuned):
    """What tasks on pooled features have in common: these are standardised by the training images, once.

    Most of a feature is the same for all images, which a linear layer would first have to learn to overlook; the linear
    probe of MAE has a batch normalisation there (He et al., CVPR 2022, appendix A.1), which a last batch of one image
    or several ranks would not bear.
    """

    def configure_models(self) -> None:
        """Open the encoder and put a linear layer on it."""
        self.model = Pooled(self.open_encoder(), len(self.hparams.get("classes") or self.hparams["targets"]))
        self.tune(self.model.network)

    def standardised(self, batch: Any) -> Tensor:
        """Features `(B, D)` of a batch."""
        self.look(batch["image"])
        features: Tensor = self.model.network(batch["image"])
        return features.float()

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Take mean and deviation over a hundred batches at most, of all ranks, unless an earlier run did."""
        model, trainer = self.model, self.trainer
        if bool((model.deviation != 1).any()):
            return
        training, found, loader = model.network.training, [], copy.copy(trainer.train_dataloader)
        if isinstance(loader, DataLoader):  # where workers persist the first epoch has begun to read, and would go on
            loader._iterator = None
        model.network.eval()
        with torch.random.fork_rng(devices=[]):  # a resumed run does not draw these
            for batch in itertools.islice(loader, int(min(100, trainer.num_training_batches))):
                batch = trainer.strategy.batch_to_device(self.on_before_batch_transfer(batch, 0), self.device)
                with trainer.precision_plugin.forward_context():
                    found.append(self.standardised(trainer.precision_plugin.convert_input(batch)))
        model.network.train(training)

        def share(values: Tensor) -> Tensor:
            total: Tensor = trainer.strategy.reduce(values.sum(0), reduce_op="sum")
            return total / count

        values = torch.cat(found)
        count = trainer.strategy.reduce(values.new_tensor(len(values)), reduce_op="sum")
        mean = share(values)
        deviation = share((values - mean).square()).sqrt().clamp_min(1e-3)
        for own, output, measured in ((model.mean, model.shift, mean), (model.deviation, model.scale, deviation)):
            own.copy_(measured[: len(own)])
            if len(measured) > len(own):
                output.copy_(measured[len(own) :])


class Classification(OnPooled, ByClass, stock.Classification):
    """The class of an image, or all classes that hold of it.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label`: `(B,)`, or `(B, K)` of 0 and 1.

    Args:
        encoder: What is opened; a source alone will do.
        classes: Names, in the order of the labels.
        several: Whether several classes may hold at once.
        class_weights: Of the loss, one a class; not where several hold.
        training: What trains, and how.

    Raises:
        ConfigError: Classes or their weights cannot be meant.
    """

    def __init__(
        self,
        encoder: Encoder | str,
        classes: list[str],
        several: bool = False,
        class_weights: list[float] | None = None,
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        own = by_class(classes, class_weights)
        if several and class_weights:
            raise ConfigError("class_weights: not where several classes hold at once; leave one of the two out")
        if several:
            own |= {"task": "multilabel", "loss": "bce", "num_labels": own.pop("num_classes"), "num_classes": None}
        super().__init__(model="encoder", **own)


class Regression(OnPooled, stock.Regression):
    """Values of an image.

    Batches hold `image` `(B, C, H, W)`, normalised by `contract`, and `label` `(B,)` or `(B, T)`. Answers start at the
    mean of the training labels. The loss is in the targets' own units, so the one of the largest numbers counts most.

    Args:
        encoder: What is opened; a source alone will do.
        targets: Names of the values.
        loss: Squared or absolute error.
        training: What trains, and how.

    Raises:
        ConfigError: A target stands twice, or there is none.
    """

    def __init__(
        self,
        encoder: Encoder | str,
        targets: list[str],
        loss: Literal["mse", "mae"] = "mse",
        training: Training = Training(),  # noqa: B008  # frozen
    ) -> None:
        check_classes(targets, least=1)
        super().__init__(model="encoder", num_outputs=len(targets), loss=loss)

    def allowed(self) -> tuple[float, float, str]:
        """All that is finite."""
        most = torch.finfo(torch.float32).max
        return -most, most, f"finite values of {', '.join(self.hparams['targets'])}"

    def standardised(self, batch: Any) -> Tensor:
        """Features `(B, D)` of a batch, and its labels beside them."""
        features = super().standardised(batch)
        return torch.cat((features, batch["label"].float().reshape(len(features), -1)), 1)

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


def by_class(classes: list[str], weights: list[float] | None) -> dict[str, Any]:
    """What a task of torchgeo is given to tell these classes apart.

    Raises:
        ConfigError: As of `check_classes`.
    """
    check_classes(classes, weights)
    return {"task": "multiclass", "num_classes": len(classes), "loss": "ce", "class_weights": weights}


def check_classes(names: Sequence[str], weights: Sequence[float] | None = None, least: int = 2) -> None:
    """Refuse names of classes or targets that stand twice or are too few, and weights that are not one a class.

    Raises:
        ConfigError: With the names.
    """
    if len(set(names)) < max(least, len(names)):
        raise ConfigError(f"expected at least {least} names of classes or targets, each once; given {', '.join(names)}")
    if weights is not None and (len(weights) != len(names) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(f"class_weights: expected one a class, none below 0; given {weights} for {', '.join(names)}")
