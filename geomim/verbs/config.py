"""What `geomim pretrain` is given, as arguments and as config files: typed, and refused where it is unknown."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError, nearest
from geomim.models.build import build_encoder
from geomim.pretrain.optimisation import Optimisation
from geomim.pretrain.recipes import RECIPES
from geomim.verbs.watching import Watching


@dataclass(frozen=True)
class Training:
    """How long to train, on what, and how often to look.

    Args:
        max_steps: Optimiser steps; every schedule is spread over them, anew where a resumed run changes them.
        accumulate: Micro-batches an optimiser step: the same training as one batch of that size, in less memory.
        precision: `auto` is `bf16-mixed` where hardware has it, else `32-true`.
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
        compile: Compile the step, a graph a sensor, again where a term begins: minutes each, faster steps on a GPU.
        progress_bar: Show a bar.
        minutes: Train for so long in place of `max_steps`: steps are timed first, here and now, and as many done as
            fill the rest. Start-up, looks and checkpoints do not count; a resumed run has the steps that were fixed.
    """

    max_steps: int = 10_000
    accumulate: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
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
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "accumulate", "nodes", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}: expected at least 1; given {getattr(self, name)}")
        if self.minutes is not None and (not 0 < self.minutes < math.inf or self.max_steps != Training.max_steps):
            raise ConfigError(
                "training.minutes: expected above 0, and in place of training.max_steps; given "
                f"{self.minutes} and {self.max_steps}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"training.clip: expected above 0, or left out; given {self.clip}")
        if not 0 <= self.prune <= 0.9:
            raise ConfigError(f"training.prune: expected 0 (off) to 0.9; given {self.prune}")
        if not 0 <= self.milestones <= self.max_steps:
            raise ConfigError(
                f"training.milestones: expected 0 to training.max_steps, {self.max_steps}; given {self.milestones}: "
                "some would lie past the end"
            )


def make_parser(recipe: str) -> ArgumentParser:
    """The arguments of one recipe, and nothing else's.

    Raises:
        ConfigError: The recipe is unknown.
    """
    if str(recipe) not in RECIPES:  # a file may give anything
        raise ConfigError(f"unknown recipe '{recipe}'{nearest(str(recipe), RECIPES)}")
    summary = (RECIPES[recipe].__doc__ or "").split("\n")[0]
    usage = "geomim pretrain --data.corpus CORPUS [--config FILE] [more of the arguments below]"
    parser = ArgumentParser(prog="geomim pretrain", usage=usage, description=summary, exit_on_error=False)
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
        parsed = parser.parse_args([*argv, *_one_length(layers)])
        written = {key: value for key, value in parsed.clone().as_dict().items() if key != "config"}
        config = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        hint = "; a list is one word: --data.corpus '[a,b]'" if "unrecognized arguments" in str(error) else ""
        raise ConfigError(" ".join(str(error).split()) + hint) from error
    config.written = written
    return config


_NULL = (None, "null", "Null", "NULL", "~")  # YAML's words for nothing


def _one_length(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What makes one length of a run out of two: `minutes` and `max_steps` are said last by one of them.

    Raises:
        ConfigError: The same file, or the command line, says both.
    """
    flags = {"training.max_steps": str(Training.max_steps), "training.minutes": "null"}
    said = [(source, flag) for source, layer in layers for flag in flags if layer.get(flag) not in _NULL]
    if len({flag for _, flag in said}) < 2:
        return []
    source, last = said[-1]
    if len({flag for one, flag in said if one == source}) > 1:
        raise ConfigError(f"{source}: training.max_steps and training.minutes both say how long to train: give one")
    return [f"--{flag}={unsaid}" for flag, unsaid in flags.items() if flag != last]


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
            layers.append((value, flat(_load(Path(value)))))
        else:
            layers.append(("the command line", {key: value}))
    return layers


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own takes the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            if str(key.value) in given:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            given.add(str(key.value))
        return node


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config file '{path}' cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config file '{path}': expected a mapping such as 'recipe: mae'; given {values!r}")
    return values


def _check_keys(parser: ArgumentParser, source: str, given: Mapping[str, Any]) -> None:
    """Refuse a key that no argument has, and name the nearest one of its group; and a group that holds no keys."""
    every = {action.dest for action in parser._actions} - {"help"}
    valid = {one for one in every if not any(other.startswith(f"{one}.") for other in every)}
    for key, value in given.items():
        parts = key.split(".")
        if any(".".join(parts[: count + 1]) in valid for count in range(len(parts))):
            continue
        if within := [name for name in valid if name.startswith(f"{key}.")]:
            if not isinstance(value, dict | str):  # text may be a file, or a mapping as one word
                raise ConfigError(
                    f"{source}: '{key}' expects keys such as {min(within)}; given {value!r}: leave it out"
                )
            continue
        group = {name for name in valid if name.startswith(parts[0] + ".")} if len(parts) > 1 else valid
        raise ConfigError(
            f"{source}: unknown key '{key}'{nearest(key, group or {name.split('.')[0] for name in valid})}"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def as_plain(value: Any) -> Any:
    """Dataclasses and what holds them, as JSON would keep them."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))
