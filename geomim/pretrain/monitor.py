"""What is watched while an encoder trains: figures in a table, collapse, reconstructions to look at, a bar."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from geomim.models.vit import unpatchify
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.objective import MaskedImageModel
from geomim.randomness import Draws
from geomim.sensors import BandContract

GREY = 0.5


def collapse(embeddings: Tensor) -> dict[str, float]:
    """How near a set of embeddings is to being all the same.

    Args:
        embeddings: `(N, D)` of different images, N at least 2.

    Returns:
        `embedding_cosine`, mean cosine of two different images, 1 where all point one way; `embedding_std`, standard
        deviation of the unit vectors times the root of D, 0 where all are the same, about 1 where they fill the
        sphere; `embedding_rank`, exponential of the entropy of the centred singular values (Garrido et al., RankMe,
        2023), from 1 to min(N - 1, D).
    """
    embeddings = embeddings.detach().cpu().double()  # not every accelerator has 64 bits
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    count, width = unit.shape
    total = unit.sum(0)
    share = torch.linalg.svdvals(embeddings - embeddings.mean(0))
    share = share / share.sum().clamp(min=1e-12)
    return {
        "embedding_cosine": float((total @ total - count) / (count * (count - 1))),
        "embedding_std": float(unit.std(0).mean() * width**0.5),
        "embedding_rank": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
    }


@torch.no_grad()
def reconstructions(
    model: MaskedImageModel, batch: dict[str, Any], contract: BandContract, progress: float = 1.0, seed: int = 0
) -> np.ndarray:
    """What the model sees and what it makes of it.

    Args:
        model: The objective.
        batch: A normalised batch on the model's device.
        contract: Its bands, to show red, green and blue where they are known.
        progress: Share of training that is done.
        seed: Seed of the masks.

    Returns:
        `(B, 3, H, W, 3)` float32 in [0, 1]: input, visible patches on grey, and predicted patches beside them; what
        was not measured is white. Empty where the model predicts no pixels.
    """
    device = batch["image"].device
    views = model.predict(batch, torch.full((), progress, device=device), Draws(seed, batch["position"]))
    views = {name: view for name, view in views.items() if "prediction" in view}
    if not views:
        return np.zeros((0, 3, 1, 1, 3), np.float32)
    view = next(iter(views.values()))
    patches, size = view["patches"].float(), model.encoder.patch_size
    grid = tuple(side // size for side in batch["image"].shape[2:])
    images = unpatchify(patches, (grid[0], grid[1]), size)[:, _colours(contract)]
    low, high = (images.flatten(2).quantile(q, dim=2)[..., None, None] for q in (0.02, 0.98))
    drawn = []
    for known, values in (("all", patches), ("visible", patches), ("predict", view["prediction"].float())):
        canvas, covered = patches.clone(), torch.ones_like(patches[..., 0], dtype=torch.bool)
        if known != "all":
            covered = torch.zeros_like(covered).scatter_(1, view["visible"], True)
        if known == "predict":
            places = view["predict"].unsqueeze(-1).expand_as(values)
            canvas = canvas.scatter(1, places, values)
            covered = covered.scatter(1, view["predict"], view["weight"] > 0)
        covered = covered[..., None].expand(-1, -1, size**2)
        if "seen" in view and known != "all":
            covered = covered | view["seen"]
            canvas = torch.where(view["seen"].repeat_interleave(canvas.shape[-1] // size**2, -1), patches, canvas)
        shown = unpatchify(canvas, (grid[0], grid[1]), size)[:, _colours(contract)]
        shown = ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        cover = unpatchify(covered.float(), (grid[0], grid[1]), size)
        shown = torch.where(cover > 0, shown, GREY)
        drawn.append(torch.where(batch["valid"], shown, 1.0) if "valid" in batch else shown)
    pictures: np.ndarray = torch.stack(drawn, 1).permute(0, 1, 3, 4, 2).cpu().numpy()
    return pictures


def _colours(contract: BandContract) -> list[int]:
    """Channels to show as red, green and blue: by name, else the first three, else the first one thrice."""
    names = [{band.name.lower(), (band.alias or "").lower()} for band in contract.sensor.bands]
    found = [
        next((index for index, keys in enumerate(names) if keys & {colour, colour[0]}), None)
        for colour in ("red", "green", "blue")
    ]
    if all(index is not None for index in found):
        return [index for index in found if index is not None]
    return [0, 1, 2] if len(names) >= 3 else [0, 0, 0]


def save_reconstructions(path: Path, pictures: np.ndarray) -> None:
    """Write `reconstructions` as one PNG, a row an image, aside and then renamed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2 * len(pictures) + 0.3), layout="constrained")
    axes = figure.subplots(len(pictures), 3, squeeze=False)
    for axis, title in zip(axes[0], ("input", "visible", "predicted"), strict=True):
        axis.set_title(title)
    for axis, image in zip(axes.flat, pictures.reshape(-1, *pictures.shape[2:]), strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_axis_off()
    part = path.with_suffix(".part")
    figure.savefig(part, format="png", dpi=110)
    part.replace(path)


class Watch(pl.Callback):
    """Looks at the same few tiles every so often: collapse figures to the loggers, reconstructions as PNG.

    Args:
        batch: Normalised tiles to look at, at least 2.
        contract: Their bands.
        folder: Where pictures go.
        every: Steps between two looks; the last step is always one.
        shown: Tiles in a picture.
    """

    def __init__(self, batch: dict[str, Any], contract: BandContract, folder: Path, every: int, shown: int = 4) -> None:
        self.batch, self.contract, self.folder, self.every, self.shown = batch, contract, folder, every, shown

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look when it is time; the clock of images/s stands still meanwhile."""
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        assert isinstance(pl_module, PretrainModule)
        if trainer.is_global_zero:
            start = time.perf_counter()
            self._look(trainer, pl_module)
            pl_module.idle += time.perf_counter() - start

    @torch.no_grad()
    def _look(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        batch = {
            key: value.to(module.device) if isinstance(value, Tensor) else value for key, value in self.batch.items()
        }
        embeddings = module.model.encoder(batch["image"]).patches.mean(1)
        if not bool(embeddings.isfinite().all()):
            return  # the next log or save ends the run on all ranks, with a sentence
        figures = collapse(embeddings)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        few = {key: value[: self.shown] for key, value in batch.items()}
        pictures = reconstructions(module.model, few, self.contract, module.progress, module.seed)
        if len(pictures):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_reconstructions(self.folder / f"step-{trainer.global_step:07d}.png", pictures)


class MetricsTable(Logger):
    """Figures as one CSV file, a row a step; a resumed run goes on in it and overwrites what it repeats.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, str]] = {}
        if path.is_file():
            with path.open(newline="") as file:
                self._rows = {int(row["step"]): row for row in csv.DictReader(file)}

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.path.stem

    @property
    def version(self) -> str:
        """There is only one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is stored beside the table."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step, and write the table."""
        step = step or 0
        self._rows = {old: row for old, row in self._rows.items() if old <= step}
        row = self._rows.setdefault(step, {"step": str(step)})
        row.update({key: f"{value:.6g}" for key, value in metrics.items()})
        columns = list(dict.fromkeys(key for one in self._rows.values() for key in one))
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows.values())
        os.replace(part, self.path)


class Bar(pl.Callback):
    """A progress bar over the steps of the run, with the figures logged last."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar on the first rank."""
        if trainer.is_global_zero:
            columns = (TextColumn("pretrain"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[figures]}"), refresh_per_second=2)
            self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, figures="")
            self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Move the bar."""
        if self._progress is not None:
            latest = getattr(pl_module, "latest", {})
            figures = f"loss {latest['loss']:.4f}  {latest['images_per_second']:.0f} images/s" if latest else ""
            figures += f"  MFU {latest['mfu']:.0%}" if "mfu" in latest else ""
            figures += f"  waits {latest['wait']:.0%}" if latest.get("wait", 0) > 0.03 else ""
            self._progress.update(self._progress.task_ids[0], completed=trainer.global_step, figures=figures)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the finished bar standing."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
