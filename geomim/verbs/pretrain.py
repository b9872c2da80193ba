"""`geomim pretrain`: a corpus and a recipe in, an encoder out."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.apply_func import apply_to_collection

from geomim.addresses import plain
from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError, GeomimError, ResumeError, nearest
from geomim.models.build import build_encoder
from geomim.models.provenance import code_version
from geomim.models.text import stored
from geomim.models.weights import read_checkpoint
from geomim.pretrain.checkpoints import Checkpoints
from geomim.pretrain.half import OnePrecision, arithmetic, computing
from geomim.pretrain.launch import placement, sharing
from geomim.pretrain.minutes import Minutes
from geomim.pretrain.module import Origin, PretrainModule
from geomim.pretrain.monitor import Bar, Watch
from geomim.pretrain.optimisation import Optimisation
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.resume import resumable
from geomim.pretrain.scaling import recompute
from geomim.pretrain.signals import Signals, interrupted
from geomim.verbs.config import Training, as_plain, flat, read_config
from geomim.verbs.watching import Watching, loggers, probing


def train(
    data: TileDataModule,
    folder: str | Path,
    recipe: str = "selective_mae",
    method: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    optimizer: Optimisation = Optimisation(),  # noqa: B008 (frozen)
    training: Training = Training(),  # noqa: B008 (frozen)
    seed: int = 0,
    resume: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    watch: Watching = Watching(),  # noqa: B008 (frozen)
) -> Path:
    """Pretrain an encoder; what the verb does once its configuration is read.

    Args:
        data: The batches; bands and image size are theirs.
        folder: Run folder: `checkpoints/`, `metrics.csv`, `tensorboard/`, `reconstructions/`.
        recipe: Name in `RECIPES`.
        method: Arguments of the recipe.
        encoder: Arguments of `geomim.models.build.build_encoder` but `contracts` and `image_size`.
        optimizer: Learning rate and weight decay.
        training: How long and on what.
        seed: Seed of weights and masks; crops and order have the one of `data`.
        resume: `"last"` goes on from the run's last checkpoint where there is one; or a checkpoint file, of this run
            where the folder holds one.
        config: Written to `config.yaml` once training begins, with what resumed runs changed.
        watch: What to look at meanwhile.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError: The recipe is unknown, the folder holds a run and `resume` is no checkpoint of it, or the devices
            asked for are not there.
        CheckpointError: The checkpoint to resume is damaged, or was trained otherwise; see `geomim.pretrain.resume`.
        GeomimError: The loss is not finite, or memory, disk or a reading process failed.
        Interrupted: A signal asked to stop; the step was finished and `last.ckpt` written.
    """
    folder, training = Path(folder), _precise(training)
    start, last = _start(folder, resume), folder / "checkpoints" / "last.ckpt"
    resumed = _read(start)
    steps = _steps(training, resumed)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips are not ours
    unsigned = config and apply_to_collection(as_plain(config), str, plain)  # it travels
    with Signals() as signals, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = _trainer(folder, training, steps, watch, unsigned, signals)
        parts = (recipe, method, encoder, optimizer, seed, training, trainer.world_size)
        module = build(data, *parts, resumed and resumed["geomim"])
        module.provenance = {"code": code_version(), "config": unsigned}
        _provide(data, module, training)
        probed = probing(watch, module.model.encoder, data.image_size)
        looks = Watch(data.pictures(64), data.contracts, folder / "reconstructions", watch.every, probed)
        trainer.callbacks.insert(1, looks)  # only now it is known what batches hold
        fixed = partial(_fix, trainer, module, training, config)
        if start is not None and resumed and steps:
            module.origin.settings["training.max_steps"] = steps
            if _done(module, resumed, start, last):
                return last
        last.parent.mkdir(parents=True, exist_ok=True)
        if steps:
            fixed(steps)
        else:
            trainer.callbacks.append(Minutes(training.minutes or 0.0, fixed))
        _fit(trainer, module, data, start, training)
    if signals.received and trainer.global_step < trainer.max_steps:
        where = f" at step {trainer.global_step} of {trainer.max_steps}; go on with --resume last"
        raise interrupted(signals.received, where)
    return last


def _read(start: Path | None) -> dict[str, Any] | None:
    """What a checkpoint to go on from says of its run; its weights are the trainer's to read.

    Raises:
        CheckpointError: It cannot be read, or no run can go on from it.
    """
    if start is None:
        return None
    checkpoint = read_checkpoint(start)
    resumable(checkpoint)
    return {name: checkpoint[name] for name in ("geomim", "pruning") if name in checkpoint}


def _precise(training: Training) -> Training:
    """With a precision that says what it is."""
    precision = arithmetic(training.precision, training.accelerator)
    if precision != training.precision:
        rank_zero_only(print)(f"training.precision auto: {precision} here")
    return replace(training, precision=precision)


def _steps(training: Training, resumed: Mapping[str, Any] | None) -> int | None:
    """How many steps the run has; None where its minutes will say.

    Raises:
        ResumeError: Others than those that fixed the steps of the checkpoint are given.
    """
    if training.minutes is None or resumed is None:
        return training.max_steps if training.minutes is None else None
    settings = resumed["geomim"]["settings"]
    minutes, steps = settings.get("training.minutes"), settings.get("training.max_steps")
    if minutes != training.minutes:
        fixed = f"{steps} steps, fixed by training.minutes {minutes:g}" if minutes else f"training.max_steps {steps}"
        raise ResumeError(
            f"cannot resume: the checkpoint has {fixed}, this run has training.minutes {training.minutes:g}. Give the "
            "checkpoint's own, or for a longer run more training.max_steps"
        )
    return int(steps)


def _fix(
    trainer: pl.Trainer, module: PretrainModule, training: Training, config: Mapping[str, Any] | None, steps: int
) -> None:
    """Say how many steps there are in what is stored of a run, and write its configuration."""
    fits = asdict(replace(training, max_steps=steps, minutes=None))
    module.origin.settings["training.max_steps"] = steps
    if config is None:
        return
    module.provenance["config"]["training"] = fits
    note = f"# max_steps: what fills {training.minutes:g} minutes of training here\n" if training.minutes else ""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):  # which was told the configuration as it was asked for
            logger.log_hyperparams(module.provenance["config"])
    path = Path(trainer.default_root_dir) / "config.yaml"
    rank_zero_only(_store)(path, {**config, "training": fits}, module.history, note)


def _provide(data: TileDataModule, module: PretrainModule, training: Training) -> None:
    """Have batches hold what a recipe needs, and say what encoder and batches are made of."""
    model = module.model
    tokenizer = model.joint.text if model.joint else None
    given = data.provide(model.needs, model.crop_size, model.cached, tokenizer, few_shapes=training.compile)
    for sentence in (*model.encoder.notes, *given, *data.prune(training.prune)):
        rank_zero_only(print)(sentence)
    module.pruning = data.pruning
    module.provenance["corpora"] = [one.provenance for one in data.corpora]
    module.provenance["gsd"] = data.gsds
    if data.sentences:
        module.provenance |= {"sentences": data.sentences.said, "sentence_files": data.sentences.files}


def _fit(
    trainer: pl.Trainer, module: PretrainModule, data: TileDataModule, start: Path | None, training: Training
) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except (RuntimeError, OSError, GeomimError) as error:
        raise _sentence(error, training) from error


def _trainer(
    folder: Path,
    training: Training,
    steps: int | None,
    watch: Watching,
    config: Mapping[str, Any] | None,
    signals: Signals,
) -> pl.Trainer:
    """What runs the steps, on the devices asked for."""
    checkpoints = Checkpoints(folder / "checkpoints", training.checkpoint_every, training.milestones, signals)
    try:
        placed = placement(training.accelerator, training.devices, training.nodes)
        half = computing(training.precision, training.accelerator)
        placed["plugins"] += half["plugins"]
        return pl.Trainer(
            max_steps=steps or sys.maxsize,
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=int(training.prune > 0),
            precision=half["precision"],
            accelerator=training.accelerator,
            logger=loggers(folder, watch, config),
            callbacks=[
                signals,
                OnePrecision(training.precision),
                checkpoints,
                *([Bar()] if training.progress_bar else []),
            ],
            default_root_dir=folder,
            enable_checkpointing=False,  # `Checkpoints` writes them
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the stream shares out positions itself
            strategy=sharing(training.strategy, placed),
            **placed,
        )
    except MisconfigurationException as error:
        where = f"training.accelerator {training.accelerator} with training.devices {training.devices}"
        raise ConfigError(f"{where} cannot be had on this machine: {error}") from error


def _store(path: Path, config: Mapping[str, Any], history: Sequence[Mapping[str, Any]], lines: str) -> None:
    """Write a configuration, with some lines and what resumed runs changed as comments."""
    lines += "".join(f"# {_changed(one)}\n" for one in history)
    part = path.with_suffix(".yaml.part")
    part.write_text(lines + yaml.safe_dump(as_plain(config), sort_keys=False))
    part.replace(path)


def _changed(one: Mapping[str, Any]) -> str:
    """What a resumed run changed, see `PretrainModule.history`."""
    changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in one["changed"].items())
    return f"from step {one['step']}: {changed}"


def _sentence(error: Exception, training: Training) -> Exception:
    """What a failure of memory or of a reading process means to a user; others as they are."""
    said = str(error).strip().splitlines() or [""]
    if isinstance(error, torch.OutOfMemoryError):
        return GeomimError(
            "the memory of the GPU does not suffice: give half of data.batch_size and "
            f"--training.accumulate {2 * training.accumulate}, which is the same training, and go on with --resume last"
        )
    if said[0].startswith("Caught "):  # in a reading process: its traceback, and at the end the sentence
        return GeomimError(said[-1].partition(": ")[2])
    if "DataLoader worker" in said[0]:
        return GeomimError(
            f"a process that reads tiles was killed, as a rule because memory ran out ({said[0]}): give fewer "
            "--data.workers, 0 for none, and go on with --resume last"
        )
    return error


def build(
    data: TileDataModule,
    recipe: str,
    method: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    optimizer: Optimisation = Optimisation(),  # noqa: B008 (frozen)
    seed: int = 0,
    training: Training = Training(),  # noqa: B008 (frozen)
    world: int = 1,
    resumed: Mapping[str, Any] | None = None,
) -> PretrainModule:
    """Make encoder and objective for some data; arguments as `train`, the number of processes, an entry to go on from.

    Where weights are resumed, those that the run started from are not read: they may be gone by now.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{recipe}'{nearest(recipe, RECIPES)}")
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed: expected a whole number of 64 bits, such as 0; given {seed}")
    torch.manual_seed(seed)
    asked = signature(build_encoder).bind(data.contracts, data.image_size, **(encoder or {}))
    asked.apply_defaults()
    network = build_encoder(**asked.arguments | ({"weights": None} if resumed else {}))
    given = dict(method or {})
    if resumed and "text" in signature(RECIPES[recipe]).parameters:
        given = stored(given, resumed)
    model = RECIPES[recipe](network, **given)
    if model.joint:
        network.notes += model.joint.text.notes
        known = {one["weights"] for one in network.rights}  # encoder and tower may start from one file
        network.rights += tuple(one for one in model.joint.text.rights if one["weights"] not in known)
    if training.checkpointing:
        recompute(model)
    settings = {
        "seed": seed,
        "batch_size * devices * nodes * accumulate": data.batch_size * world * training.accumulate,
        **flat({"data": data.settings, "optimizer": as_plain(optimizer), "training": as_plain(training)}),
        **{f"encoder.{name}": asked.arguments[name] for name in ("band_dropout", "weights", "fill")},  # not in `config`
        **({"weights of method.teacher": model.teacher.weights} if model.teacher else {}),
    }
    corpora = tuple(str(one.path) for one in data.corpora)
    origin = Origin(recipe, as_plain(dict(method or {})), data.contracts, corpora, settings)
    how = (training.log_every, training.accumulate, training.clip, training.compile)
    return PretrainModule(model, origin, data.batch_size, optimizer, seed, *how)


def _start(folder: Path, resume: str | Path | None) -> Path | None:
    """The checkpoint to start from."""
    last = folder / "checkpoints" / "last.ckpt"
    if str(resume) == "last":
        return last if last.exists() else None
    if resume is not None and not Path(resume).is_file():
        raise ConfigError(f"--resume: expected 'last' or a checkpoint file; '{resume}' does not exist")
    own = resume is not None and Path(resume).resolve().parent == last.parent.resolve()
    if last.exists() and not own:  # another run's checkpoint must not overwrite this one's
        raise ConfigError(f"'{folder}' holds a run already: go on with --resume last, or give another --name")
    return None if resume is None else Path(resume)


def _done(module: PretrainModule, resumed: dict[str, Any], start: Path, last: Path) -> bool:
    """Whether a checkpoint, which must fit the module, is the end of this run; that is said, else what changes.

    Raises:
        ResumeError: It is another file, from which no step would be trained, so that no encoder came of it.
    """
    module.on_load_checkpoint(resumed)
    entry, steps = resumed["geomim"], module.origin.settings["training.max_steps"]
    step = entry["step"]
    if step < steps:
        for one in module.history[len(entry["history"]) :]:
            rank_zero_only(print)(f"other than before, {_changed(one)}")
        return False
    if not last.exists() or not last.samefile(start):
        raise ResumeError(
            f"cannot resume: '{start}' is at step {step} already and --training.max_steps is {steps}: give more, or "
            "use the checkpoint as it is"
        )
    rank_zero_only(print)(f"the run is done: step {step} of {steps}; more --training.max_steps go on from there")
    return True


def run(argv: Sequence[str]) -> None:
    """The verb: read the configuration, train, store it in the run folder.

    Args:
        argv: What follows `geomim pretrain`.

    Raises:
        ConfigError: A key or a value is not what the recipe takes; the sentence names the nearest valid key.
    """
    config = read_config(argv)
    folder = Path(config.out) / (config.name or config.recipe)
    encoder = config.encoder.as_dict()
    data = TileDataModule(**config.data.as_dict(), image_size=encoder.pop("image_size"), seed=config.seed)
    parts = (vars(config.method), encoder, config.optimizer, config.training, config.seed, config.resume)
    last = train(data, folder, config.recipe, *parts, config.written, config.watch)
    if rank_zero_only.rank == 0:
        print(f"\nencoder: {last}\nfigures: {folder / 'metrics.csv'}")
        if (folder / "reconstructions").exists():
            print(f"pictures: {folder / 'reconstructions'}")
        print(f"next: geomim plot {folder}; geomim show {last}")
