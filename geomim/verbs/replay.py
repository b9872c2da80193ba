"""`geomim replay`: run the step again that ended a run, and see where it stops being finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities import move_data_to_device

from geomim.errors import CheckpointError, ConfigError, GeomimError
from geomim.models.text import stored
from geomim.models.weights import read_checkpoint, read_encoder
from geomim.pretrain.half import in_training
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.replay import describe


def replay(
    file: str,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Literal["as trained", "32-true", "bf16-mixed"] = "as trained",
) -> None:
    """Run a step again whose loss was not finite, with its weights and images, and say where that begins.

    Prints the loss of every image and term, the norm of the gradient of every group of parameters, and what of input,
    prediction, target, loss and gradient is not finite. Ends with 1 where something is not.

    Args:
        file: `failures/step-NNNNNNN.pt` of a run.
        accelerator: `auto` takes a GPU where there is one.
        precision: Another arithmetic than the run's, to see whether that is to blame.

    Raises:
        CheckpointError: The file is none that a run kept.
        GeomimError: The step is not finite.
    """
    content = read_checkpoint(file)
    if "failure" not in content or "geomim" not in content:
        raise CheckpointError(f"'{file}' holds no step to run again: expected failures/step-NNNNNNN.pt of a run")
    failure, entry = content["failure"], content["geomim"]
    gpu = torch.cuda.is_available() and accelerator != "cpu"
    if accelerator == "gpu" and not gpu:
        raise ConfigError("--accelerator gpu: this machine has none; give cpu")
    device = torch.device("cuda" if gpu else "cpu")
    model = rebuild(file, content).to(device).train()
    if model.teacher and model.teacher.weights != entry["settings"]["weights of method.teacher"]:
        print(f"the teacher '{model.teacher.source}' has other weights than it had in the run: losses will differ")
    precision = entry["settings"]["training.precision"] if precision == "as trained" else precision
    given = move_data_to_device([failure["batches"], failure["totals"], failure["steps"]], device)
    progress = torch.full((), failure["progress"], device=device)
    model.begin(failure["progress"])
    with in_training(precision, device.type):
        lines, finite = describe(model, given[0], failure["seed"], progress, *given[1:])
    print(f"step {failure['step']} of {entry['recipe']} on {device.type}, {precision}", *lines, sep="\n")
    if not finite:
        raise GeomimError(f"step {failure['step']} is not finite")
    print("everything is finite here")


def rebuild(file: str | Path, content: dict[str, Any]) -> MaskedImageModel:
    """The objective of a checkpoint with its weights, on the CPU."""
    entry = content["geomim"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(RECIPES[entry["recipe"]], "method", skip={"encoder"})
    method = parser.instantiate_classes(parser.parse_object({"method": entry["recipe_args"]})).method
    encoder = read_encoder(file).encoder
    encoder.band_dropout = entry["settings"]["encoder.band_dropout"]
    model = RECIPES[entry["recipe"]](encoder, **stored(vars(method), entry))
    for term in model.terms:
        term.starts = entry.get("starts", {}).get(term.name, term.starts)  # which a resumed run may have moved
    model.load_state_dict({name.removeprefix("model."): one for name, one in content["state_dict"].items()})
    return model
