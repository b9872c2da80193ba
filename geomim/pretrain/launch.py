"""Which processes train together: what their launcher says, and what the trainer is told."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from geomim.errors import ConfigError


class Srun(SLURMEnvironment):
    """Tasks of srun, without Lightning's requeueing, whose checkpoints of the middle of a step would go first for ever.

    Args:
        alone: Each task sees its own GPU only (`--gpus-per-task`): its view is a machine of one.
    """

    def __init__(self, alone: bool) -> None:
        super().__init__(auto_requeue=False)
        self.alone = alone

    def local_rank(self) -> int:
        """Place of the device among those that the task sees."""
        return 0 if self.alone else super().local_rank()

    def node_rank(self) -> int:
        """Place of the view."""
        return self.global_rank() if self.alone else super().node_rank()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """They come from the step itself."""


def placement(accelerator: str, devices: int | str, nodes: int) -> dict[str, Any]:
    """Arguments of the trainer: what torchrun or srun says, where nothing else was said.

    Args:
        accelerator: As in `Training`.
        devices: Devices on each node, or `auto`.
        nodes: Machines.

    Raises:
        ConfigError: What was said, what was started and what is there contradict each other.
    """
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu") else 0
    by, world, local = _launcher()
    if by in ("torchrun", "srun"):
        where = f"{by} started {local} processes on each of {world // local} machines"
        if world % local or devices not in ("auto", local) or nodes not in (1, world // local):
            said = f"--training.devices {devices} --training.nodes {nodes}"
            raise ConfigError(f"{where}, {world} in all, and {said} say otherwise: leave both away, or start as many")
        alone = by == "srun" and gpus == 1 < local
        if gpus and not alone and gpus < local:
            raise ConfigError(f"{where}, which has {gpus} GPUs: start {gpus}, or give --training.accelerator cpu")
        environment = Srun(alone) if by == "srun" else TorchElasticEnvironment()
        count, machines = (1, world) if alone else (local, world // local)
        return {"devices": count, "num_nodes": machines, "plugins": [environment]}
    count = max(1, gpus) if devices == "auto" else int(devices)
    if count < 1 or (gpus and count > gpus):
        raise ConfigError(f"training.devices: expected 1 to {gpus or 'the number of cores'}; given {devices}")
    # Lightning's own children have both; without a place of its own, each process would train alone
    child = by == "WORLD_SIZE" and "LOCAL_RANK" in os.environ and world == count * nodes
    if (world > 1 and not child) or (nodes > 1 and world == 1 and "NODE_RANK" not in os.environ):
        raise ConfigError(
            f"{by or 'no launcher'} started {world} processes, and training.devices {devices} with training.nodes "
            f"{nodes} make {count * nodes}: start them with torchrun (--nnodes, --nproc-per-node) or srun, which need "
            "neither"
        )
    return {"devices": devices, "num_nodes": nodes, "plugins": [LightningEnvironment()]}


def sharing(strategy: str, placed: dict[str, Any]) -> str | ModelParallelStrategy:
    """The trainer's strategy for what was `placed`: `fsdp` shares out the weights and stores them whole.

    Raises:
        ConfigError: There is one device to share weights among.
    """
    if strategy != "fsdp":
        return strategy
    devices = torch.cuda.device_count() if placed["devices"] == "auto" else int(placed["devices"])
    world = devices * placed["num_nodes"]
    if world < 2:
        raise ConfigError("training.strategy fsdp: expected several devices to share weights among; there is one")
    return ModelParallelStrategy(world, 1, save_distributed_checkpoint=False)


def _launcher() -> tuple[str, int, int]:
    """Who started this process, how many in all, and how many on this machine.

    An allocation is no launch: `salloc` and `sbatch` state tasks, too, but only srun starts them, as a step.
    """
    given = os.environ
    if TorchElasticEnvironment.detect():
        return "torchrun", int(given["WORLD_SIZE"]), int(given["LOCAL_WORLD_SIZE"])
    if int(given.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        world = given["SLURM_STEP_NUM_TASKS"]
        local = re.split(r"\D", given.get("SLURM_STEP_TASKS_PER_NODE", world))[0]  # such as 4(x2)
        os.environ |= {"SLURM_NTASKS": world, "SLURM_NTASKS_PER_NODE": local}  # Lightning reads the allocation's
        return "srun", int(world), int(local)
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if given.get(name, "1") != "1":
            return name, int(given[name]), 1
    return "", 1, 1
