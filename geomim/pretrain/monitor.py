"""What is watched while an encoder trains: figures in a table, collapse, reconstructions to look at, a bar."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning_utilities.core.apply_func import apply_to_collection
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn

from geomim.evaluate.scores import PIXELS, RANDOM
from geomim.models.hierarchical import Encoder
from geomim.models.patches import unpatchify
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes.pairs import shuffled_date
from geomim.pretrain.scaling import gathered, is_sharded
from geomim.randomness import Draws
from geomim.sensors import BandContract
from geomim.sheets import contact_sheet

GREY = 0.5
ENCODER = "this encoder"
COLUMNS = {ENCODER: "", RANDOM: "/random", PIXELS: "/pixels"}
"""What stands behind the name of a probe where it scores the encoder or one of its floors."""


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


def patch_cosine(values: Tensor, weight: Tensor | None = None) -> float:
    """Mean cosine of two different patches of an image, over images; 1 where all are told the same, NaN of no two.

    Args:
        values: `(B, P, T)` predictions or targets. Where P is 1, two different images are compared.
        weight: `(B, P)`, 0 for what does not count; None where all does.
    """
    weight = torch.ones(values.shape[:2], device=values.device) if weight is None else (weight > 0).float()
    if values.shape[1] == 1:
        values, weight = values.transpose(0, 1), weight.transpose(0, 1)
    unit = torch.nn.functional.normalize(values.float(), dim=-1) * weight[..., None]
    pairs = weight.sum(1) * (weight.sum(1) - 1)
    alike = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return float((alike / pairs.clamp(min=1)).sum() / (pairs > 0).sum())


@torch.no_grad()
def term_cosines(
    model: MaskedImageModel, batch: dict[str, Any], progress: float = 1.0, seed: int = 0
) -> dict[str, float]:
    """`patch_cosine` of each term's predictions and targets, as `prediction_cosine/TERM` and `target_cosine/TERM`.

    Methods that predict latents may collapse in both. A prediction that several terms compare is there once, by the
    first; targets of one number, or unknown of all images, have no direction. Arguments as for `reconstructions`.
    """
    context = model.context(batch, Draws(seed, batch["position"]))
    splits = model.masking(context, torch.full((), progress, device=batch["image"].device))
    cosines: dict[str, float] = {}
    known: list[Tensor] = []
    for _, term, _, prediction, answer, weight in model.ask(context, splits):
        measured = 1.0 if answer.element is None else answer.element
        if not any(prediction is one for one in known):
            cosines[f"prediction_cosine/{term.name}"] = patch_cosine(prediction * measured, weight)
            known.append(prediction)
        told = weight if answer.key is None else (answer.key >= 0).float()[:, None]
        if answer.values.shape[-1] > 1 and (told is None or bool(told.any())):
            cosines[f"target_cosine/{term.name}"] = patch_cosine(answer.values * measured, told)
    return cosines


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
        was not measured is white. `(B, 2, H, W, 3)` where the model predicts no pixels.
    """
    draws = Draws(seed, batch["position"])
    views = model.predict(batch, torch.full((), progress, device=batch["image"].device), draws)
    name = next((name for name, view in views.items() if "prediction" in view), next(iter(views)))
    view, seen = views[name], model.context(batch, draws).views[name]
    patches, size, picked = view["patches"].float(), model.encoder.patch_size, _colours(contract)
    image = unpatchify(patches, seen.grid, size)[:, picked]
    low, high = (image.flatten(2).quantile(q, dim=2)[..., None, None] for q in (0.02, 0.98))

    def stretch(image: Tensor) -> Tensor:
        return ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    image, known = stretch(image), unpatchify(view["seen"], seen.grid, size)
    drawn = [image, torch.where(known, image, GREY)]
    if "prediction" in view:
        values, places = view["prediction"].float(), view["predict"].unsqueeze(-1)
        told = unpatchify(patches.scatter(1, places.expand_as(values), values), seen.grid, size)[:, picked]
        asked = torch.zeros_like(view["seen"][..., :1]).scatter(1, places, view["weight"].unsqueeze(-1) > 0)
        asked = unpatchify(asked.expand(-1, -1, size**2), seen.grid, size)
        drawn.append(torch.where(known, image, torch.where(asked, stretch(told), GREY)))
    drawn = drawn if seen.valid is None else [torch.where(seen.valid, one, 1.0) for one in drawn]
    pictures: np.ndarray = torch.stack(drawn, 1).permute(0, 1, 3, 4, 2).cpu().numpy()
    return pictures


def _colours(contract: BandContract) -> list[int]:
    """Channels to show as red, green and blue: by name, else the first three, else the first one thrice."""
    names = [{band.name.lower(), (band.alias or "").lower()} for band in contract.sensor.bands]
    keyed = ([place for place, keys in enumerate(names) if keys & {word, word[0]}] for word in ("red", "green", "blue"))
    found = [places[0] for places in keyed if places]
    return found if len(found) == 3 else [0, 1, 2] if len(names) >= 3 else [0, 0, 0]


def save_reconstructions(path: Path, pictures: np.ndarray) -> None:
    """Write `reconstructions` as one PNG, a row an image."""
    words = ("input", "visible", "predicted")
    panels = [panel for image in pictures for panel in zip(image, words, strict=False)]
    contact_sheet(path, [("", panels)], pictures.shape[1], pictures.shape[1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode for a while; every part goes back to the mode that it was in."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Watch(pl.Callback):
    """Looks at the same few tiles, and at labelled images, every so often.

    Figures go to the loggers, pictures to a folder and to the loggers that take them. The first process looks while
    the others wait.

    Args:
        batch: Normalised tiles to look at; those that are not finite are left out, and said. Of one tile there are
            pictures alone.
        contracts: Bands by the name that `sensor` of a batch says.
        folder: Where pictures go.
        every: Steps between two looks; the last step is always one.
        probe: Scores an encoder on a device: plain values with `rows` of `encoder`, `probe` and `accuracy`.
    """

    def __init__(
        self,
        batch: dict[str, Any],
        contracts: Mapping[str, BandContract],
        folder: Path,
        every: int,
        probe: Callable[[Any, torch.device], dict[str, Any]] | None = None,
    ) -> None:
        self.batch, self.contract, self.folder, self.every = batch, contracts[batch["sensor"]], folder, every
        self.probe = probe

    def on_train_start(self, *_: Any) -> None:
        """Say so where there is too little to look at."""
        if len(self.batch["image"]) < 2:
            rank_zero_only(print)("one tile to watch: no figures of collapse, which compare two")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look when it is time; the clock of images/s stands still meanwhile."""
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        assert isinstance(pl_module, PretrainModule)
        model: Any = pl_module.model
        sharded = is_sharded(model)  # then no process has all weights, and all look together
        if not (trainer.is_global_zero or sharded):
            return
        with pl_module.aside(), torch.no_grad(), evaluating(model):
            encoder = gathered(model.encoder) if self.probe and sharded else model.encoder
            if sharded:
                model.unshard()
            self._look(trainer, pl_module, encoder)
            if sharded:
                model.reshard()

    def _look(self, trainer: pl.Trainer, module: PretrainModule, encoder: Encoder) -> None:
        model, step = module.model, trainer.global_step
        batch = move_data_to_device(self.batch, module.device)
        context = model.context(batch, Draws(module.seed, batch["position"]))
        embeddings = model.encoder.encode(context.views["image"].seen).patches.mean(1)
        pixels = [view.patches.isfinite().flatten(1).all(1) for view in context.views.values()]
        sound = torch.stack([embeddings.isfinite().all(1), *pixels]).all(0)
        if not bool(sound.any()):
            rank_zero_only(print)(f"step {step}: nothing to see, none of the watched tiles has a finite embedding")
            return  # if it is the weights, the next log or save ends the run on all ranks, with a sentence
        if not bool(sound.all()):
            bad = self.batch["id"][~sound.cpu()].tolist()
            rank_zero_only(print)(f"tiles {', '.join(map(str, bad))} are not finite: no longer watched")
            self.batch = _rows(self.batch, sound.cpu())
            batch, embeddings = _rows(batch, sound), embeddings[sound]
        found = {}
        if len(embeddings) > 1:
            found = collapse(embeddings) | term_cosines(model, batch, module.progress, module.seed)
            if "date" in model.needs:
                progress, draws = (
                    torch.full((), module.progress, device=module.device),
                    Draws(module.seed, batch["position"]),
                )
                found["shuffled_date"] = float(shuffled_date(model, batch, progress, draws))
        if self.probe is not None:
            scores = self.probe(encoder, module.device)
            module.provenance["evaluation"] = {"step": step, **scores}
            found |= {row["probe"] + COLUMNS[row["encoder"]]: row["accuracy"] for row in scores["rows"]}
        for logger in trainer.loggers if found else []:
            logger.log_metrics(found, step)
        pictures = reconstructions(model, _rows(batch, slice(4)), self.contract, module.progress, module.seed)
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:07d}.png"
        save_reconstructions(path, pictures)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                sheet = np.concatenate(np.concatenate(pictures, 1), 1)
                logger.experiment.add_image("reconstructions", sheet, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("reconstructions", [str(path)], step)


def _rows(batch: dict[str, Any], chosen: Tensor | slice) -> dict[str, Any]:
    """Some images of a batch, with all that belongs to them."""
    some: dict[str, Any] = apply_to_collection(batch, Tensor, lambda value: value[chosen] if value.ndim else value)
    if text := some.get("text"):  # a row an image
        of = text["of"]
        some["text"] = text | {"of": torch.where(of < 0, of, torch.arange(len(of), device=of.device))}
    return some


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
            columns = (TextColumn("pretrain"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
            self._progress = Progress(*columns, refresh_per_second=2)
            self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, figures="")
            self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        """Move the bar; speed and time left are those of the last steps."""
        if self._progress is not None:
            latest, pace, step = pl_module.latest, pl_module.pace, trainer.global_step
            said = [f"{timedelta(seconds=round(pace.left(step, trainer.max_steps)))} left"] if pace.recent else []
            said += [f"{pl_module.images_per_step / pace.recent:.0f} images/s"] if pace.recent else []
            said += [f"loss {latest['loss']:.4f}"] if latest else []
            said += [f"MFU {latest['mfu']:.0%}"] if "mfu" in latest else []
            said += [f"waits {latest['wait']:.0%}"] if latest.get("wait", 0) > 0.03 else []
            self._progress.update(self._progress.task_ids[0], completed=step, figures="  ".join(said))

    def on_train_end(self, *_: Any) -> None:
        """Leave the finished bar standing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, *_: Any) -> None:
        """Give the terminal back."""
        self.on_train_end()
