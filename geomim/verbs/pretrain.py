"""`geomim pretrain`: a corpus and a recipe in, an encoder out."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.apply_func import apply_to_collection

from geomim.addresses import plain
from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError, GeomimError, ResumeError, nearest
from geomim.models.build import build_encoder
from geomim.models.provenance import code_version
from geomim.models.weights import read_checkpoint
from geomim.pretrain.checkpoints import Checkpoints
from geomim.pretrain.launch import placement, sharing
from geomim.pretrain.module import Origin, PretrainModule
from geomim.pretrain.monitor import Bar, Watch
from geomim.pretrain.optimisation import Optimisation
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.scaling import recompute
from geomim.pretrain.signals import Signals, interrupted
from geomim.verbs.watching import Watching, loggers, probing


@dataclass(frozen=True)
class Training:
    """How long to train, on what, and how often to look.

    Args:
        max_steps: Optimiser steps; every schedule is spread over them, anew where a resumed run changes them.
        accumulate: Micro-batches an optimiser step: the same training as one batch of that size, in less memory.
        precision: Arithmetic of the matrix products; weights are always 32 bits.
        accelerator: `auto` takes a GPU where there is one.
        devices: Devices on each node; where `auto`, as many as torchrun or srun started, else all GPUs or one CPU
            process.
        nodes: Machines; as many as torchrun or srun started where not given.
        strategy: `ddp` keeps all weights on every device, `fsdp` a share of them, for encoders from ViT-H up.
        clip: Greatest norm of the gradient; not clipped where not given.
        prune: Leave tiles of a loss below the mean out of an epoch with this probability, up to 0.9, and let those that
            stay weigh more (InfoBatch): more epochs in as many steps. 0 for never.
        log_every: Steps between two rows of figures.
        checkpoint_every: Steps between two `last.ckpt`.
        milestones: Checkpoints to keep besides the last, evenly over the run.
        checkpointing: Compute blocks again for the gradient instead of keeping what is inside: slower, in less memory.
        compile: Compile the step, a graph a sensor: minutes at the start, faster steps on a GPU.
        progress_bar: Show a bar.
    """

    max_steps: int = 10_000
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    clip: float | None = None
    prune: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 1000
    milestones: int = 0
    checkpointing: bool = False
    compile: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for name in ("max_steps", "accumulate", "nodes", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}: expected at least 1; given {getattr(self, name)}")
        if (self.clip or 1) < 0:
            raise ConfigError(f"training.clip: expected at least 0; given {self.clip}")
        if not 0 <= self.prune <= 0.9:
            raise ConfigError(f"training.prune: expected 0 (off) to 0.9; given {self.prune}")
        if not 0 <= self.milestones <= self.max_steps:
            raise ConfigError(
                f"training.milestones: expected 0 to training.max_steps, {self.max_steps}; given {self.milestones}: "
                "some would lie past the end"
            )


def train(
    data: TileDataModule,
    folder: str | Path,
    recipe: str = "selective_mae",
    method: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    optimizer: Optimisation = Optimisation(),  # noqa: B008 (frozen)
    training: Training = Training(),
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
        resume: `"last"` goes on from the run's last checkpoint where there is one; or a checkpoint file.
        config: Written to `config.yaml` once training begins, with what resumed runs changed.
        watch: What to look at meanwhile.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError: The recipe is unknown, the folder holds a run and `resume` is not given, or the devices asked for
            are not there.
        CheckpointError: The checkpoint to resume is damaged, or was trained otherwise; see `geomim.pretrain.resume`.
        GeomimError: The loss is not finite, or memory, disk or a reading process failed.
        Interrupted: A signal asked to stop; the step was finished and `last.ckpt` written.
    """
    folder = Path(folder)
    start = _start(folder, resume)
    checkpoints, signals = folder / "checkpoints", Signals()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips are not ours
    unsigned = config and apply_to_collection(_plain(config), str, plain)  # it travels
    with signals, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            placed = placement(training.accelerator, training.devices, training.nodes)
            trainer = pl.Trainer(
                max_steps=training.max_steps,
                max_epochs=-1,
                reload_dataloaders_every_n_epochs=int(training.prune > 0),
                precision=training.precision,
                accelerator=training.accelerator,
                logger=loggers(folder, watch, unsigned),
                callbacks=[
                    signals,
                    Checkpoints(checkpoints, training.checkpoint_every, training.milestones, signals),
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
        module = build(data, recipe, method, encoder, optimizer, seed, training, trainer.world_size)
        model = module.model
        given = data.provide(model.needs, model.crop_size, model.cached) + data.prune(training.prune)
        for sentence in (*model.encoder.notes, *given):
            rank_zero_only(print)(sentence)
        module.pruning = data.pruning
        probed = probing(watch, model.encoder, data.image_size)
        looks = Watch(data.pictures(64), data.contracts, folder / "reconstructions", watch.every, probed)
        trainer.callbacks.insert(1, looks)  # only now it is known what batches hold
        corpora = [one.provenance for one in data.corpora]
        module.provenance = {"code": code_version(), "config": unsigned, "corpora": corpora}
        if start is not None:
            checkpoint = read_checkpoint(start)
            module.on_load_checkpoint(checkpoint)
            if _done(checkpoint["geomim"]["step"], training.max_steps, start, checkpoints / "last.ckpt"):
                return checkpoints / "last.ckpt"
        checkpoints.mkdir(parents=True, exist_ok=True)
        if config is not None and trainer.is_global_zero:
            _store(folder / "config.yaml", config, module.history)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        except (RuntimeError, OSError, GeomimError) as error:
            raise _sentence(error, training) from error
    if signals.received and trainer.global_step < training.max_steps:
        where = f" at step {trainer.global_step} of {training.max_steps}; go on with --resume last"
        raise interrupted(signals.received, where)
    return checkpoints / "last.ckpt"


def _store(path: Path, config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    """Write a configuration, with what resumed runs changed as comments."""
    lines = ""
    for one in history:
        changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in one["changed"].items())
        lines += f"# from step {one['step']}: {changed}\n"
    part = path.with_suffix(".yaml.part")
    part.write_text(lines + yaml.safe_dump(_plain(config), sort_keys=False))
    part.replace(path)


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
    training: Training = Training(),
    world: int = 1,
) -> PretrainModule:
    """Make encoder and objective for some data; arguments as `train`, and the number of processes."""
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{recipe}'{nearest(recipe, RECIPES)}")
    torch.manual_seed(seed)
    network = build_encoder(data.contracts, data.image_size, **(encoder or {}))
    model = RECIPES[recipe](network, **(method or {}))
    if training.checkpointing:
        recompute(model)
    settings = {
        "seed": seed,
        "batch_size * devices * nodes * accumulate": data.batch_size * world * training.accumulate,
        **_flat({"data": data.settings, "optimizer": _plain(optimizer), "training": _plain(training)}),
    }
    corpora = tuple(str(one.path) for one in data.corpora)
    origin = Origin(recipe, _plain(dict(method or {})), data.contracts, corpora, settings)
    how = (training.log_every, training.accumulate, training.clip, training.compile)
    return PretrainModule(model, origin, data.batch_size, optimizer, seed, *how)


def _start(folder: Path, resume: str | Path | None) -> Path | None:
    """The checkpoint to start from."""
    last = folder / "checkpoints" / "last.ckpt"
    if resume is None:
        if last.exists():
            raise ConfigError(f"'{folder}' holds a run already: go on with --resume last, or give another --name")
        return None
    if str(resume) == "last":
        return last if last.exists() else None
    if not Path(resume).is_file():
        raise ConfigError(f"--resume: expected 'last' or a checkpoint file; '{resume}' does not exist")
    return Path(resume)


def _done(step: int, steps: int, start: Path, last: Path) -> bool:
    """Whether a checkpoint is the end of this run, which is said.

    Raises:
        ResumeError: It is another file, from which no step would be trained, so that no encoder came of it.
    """
    if step < steps:
        return False
    if not last.exists() or not last.samefile(start):
        raise ResumeError(
            f"cannot resume: '{start}' is at step {step} already and --training.max_steps is {steps}: give more, or "
            "use the checkpoint as it is"
        )
    if rank_zero_only.rank == 0:
        print(f"the run is done: step {step} of {steps}; more --training.max_steps go on from there")
    return True


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def run(argv: Sequence[str]) -> None:
    """The verb: read the configuration, train, store it in the run folder.

    Args:
        argv: What follows `geomim pretrain`.

    Raises:
        ConfigError: A key or a value is not what the recipe takes; the sentence names the nearest valid key.
    """
    config = read_config(argv)
    data = TileDataModule(**config.data.as_dict(), image_size=config.encoder.image_size, seed=config.seed)
    folder = Path(config.out) / (config.name or config.recipe)
    encoder = {key: value for key, value in config.encoder.as_dict().items() if key != "image_size"}
    last = train(
        data,
        folder,
        config.recipe,
        vars(config.method),
        encoder,
        config.optimizer,
        config.training,
        config.seed,
        config.resume,
        config.written,
        config.watch,
    )
    if rank_zero_only.rank == 0:
        print(f"\nencoder: {last}\nfigures: {folder / 'metrics.csv'}\npictures: {folder / 'reconstructions'}")
        print(f"next: geomim plot {folder}; geomim show {last}")


def make_parser(recipe: str) -> ArgumentParser:
    """The arguments of one recipe, and nothing else's.

    Raises:
        ConfigError: The recipe is unknown.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{recipe}'{nearest(recipe, RECIPES)}")
    summary = (RECIPES[recipe].__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog="geomim pretrain", description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_argument("--recipe", default=recipe, help=f"one of {', '.join(RECIPES)}; the help shows this one's")
    parser.add_argument("--name", type=str | None, help="folder of the run inside --out; the recipe where not given")
    parser.add_argument("--out", type=str, default="runs", help="folder of runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    parser.add_argument("--resume", type=str | None, help="'last', or a checkpoint of the same configuration")
    parser.add_function_arguments(RECIPES[recipe], "method", skip={"encoder"})
    parser.add_function_arguments(build_encoder, "encoder", skip={"contracts"})
    parser.add_class_arguments(TileDataModule, "data", skip={"image_size", "seed"}, instantiate=False)
    parser.add_class_arguments(Optimisation, "optimizer")
    parser.add_class_arguments(Training, "training")
    parser.add_class_arguments(Watching, "watch")
    return parser


def read_config(argv: Sequence[str]) -> Namespace:
    """Parse arguments and config files for the recipe that they name.

    Returns:
        Typed values by group; `written` holds the plain ones.

    Raises:
        ConfigError: See `run`.
    """
    argv = list(argv)
    layers = _layers(argv)
    recipe = next((layer["recipe"] for _, layer in reversed(layers) if "recipe" in layer), "selective_mae")
    parser = make_parser(recipe)
    if not {"-h", "--help"} & set(argv):
        for source, layer in layers:
            _check_keys(parser, source, layer)
    try:
        parsed = parser.parse_args(argv)
        written = {key: value for key, value in parsed.clone().as_dict().items() if key != "config"}
        config = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        hint = "; a list is one word: --data.corpus '[a,b]'" if "unrecognized arguments" in str(error) else ""
        raise ConfigError(" ".join(str(error).split()) + hint) from error
    config.written = written
    return config


def _layers(argv: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Everything given, in order: `(where, {dotted key: value})` a config file or an argument."""
    layers: list[tuple[str, dict[str, Any]]] = []
    for place, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = argv[place + 1] if place + 1 < len(argv) else ""
        if key == "config":
            layers.append((value, _flat(_load(Path(value)))))
        else:
            layers.append(("the command line", {key: value}))
    return layers


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"config file '{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config file '{path}': expected a mapping such as 'recipe: mae'; given {values!r}")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_keys(parser: ArgumentParser, source: str, given: Mapping[str, Any]) -> None:
    """Refuse a key that no argument has, and name the nearest one of its group."""
    every = {action.dest for action in parser._actions} - {"help"}
    valid = {one for one in every if not any(other.startswith(f"{one}.") for other in every)}
    for key in given:
        parts = key.split(".")
        if any(".".join(parts[: count + 1]) in valid for count in range(len(parts))):
            continue
        if any(name.startswith(f"{key}.") for name in valid):
            continue
        group = {name for name in valid if name.startswith(parts[0] + ".")} if len(parts) > 1 else valid
        raise ConfigError(
            f"{source}: unknown key '{key}'{nearest(key, group or {name.split('.')[0] for name in valid})}"
        )
