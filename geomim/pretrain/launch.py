"""Which processes train together: what their launcher says, and what the trainer is told."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment

from geomim.errors import ConfigError

_OTHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that a launcher started.

    Attributes:
        by: Name of the launcher.
        world: Processes in all.
        rank: This one among all.
        local_world: Processes on this machine.
        local_rank: This one on its machine.
        address: Host of the first one.
        port: Where it listens.
    """

    by: str
    world: int
    rank: int
    local_world: int
    local_rank: int
    address: str
    port: int

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.world // self.local_world


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Read what torchrun or srun says; None where this process was started alone.

    An allocation is no launch: `salloc` and `sbatch` state their tasks, but only srun starts them, as a step.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigError: The processes are not shared out evenly over the machines.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
        world, rank, local_world, local_rank = (int(environment[name]) for name in names)
        found = ("torchrun", world, rank, local_world, local_rank)
        place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
        world, rank, local_rank = (int(environment[name]) for name in names)
        shares = re.findall(r"\d+(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", str(world)))
        if len(shares) > 1:
            raise ConfigError(f"srun started {' and '.join(shares)} tasks a node: give each the same --ntasks-per-node")
        hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
        found = ("srun", world, rank, int(shares[0].split("(")[0]), local_rank)
        # as Lightning chooses it: every task knows it without asking
        port = environment.get("MASTER_PORT") or 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])
        place = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(hosts), int(port)
    else:
        return None
    here = Launched(*found, *place)
    if here.world != here.nodes * here.local_world:
        raise ConfigError(
            f"{here.by} started {here.local_world} of {here.world} processes on this machine: start as many on each"
        )
    return here


class Ranks(LightningEnvironment):
    """A launcher's processes, for Lightning.

    Args:
        here: This process.
        alone: It sees its own device only, which is the first of its view.
    """

    def __init__(self, here: Launched, alone: bool) -> None:
        super().__init__()
        self.here, self.alone = here, alone
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = here.address, str(here.port)

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none."""
        return True

    def world_size(self) -> int:
        """Processes in all."""
        return self.here.world

    def global_rank(self) -> int:
        """This one among all."""
        return self.here.rank

    def local_rank(self) -> int:
        """Place of its device among those it sees."""
        return 0 if self.alone else self.here.local_rank

    def node_rank(self) -> int:
        """Its machine, or its view where that holds one device."""
        return self.here.rank if self.alone else self.here.rank // self.here.local_world

    def teardown(self) -> None:
        """The launcher's variables are not ours to delete."""


def placement(accelerator: str, devices: int | str, nodes: int) -> dict[str, Any]:
    """Arguments of the trainer: what the launcher says where nothing else was said.

    Args:
        accelerator: As `Training` has it.
        devices: Devices on each node, or `auto`.
        nodes: Machines.

    Raises:
        ConfigError: What was said, what was started and what is there contradict each other.
    """
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu") else 0
    if accelerator == "gpu" and not gpus:
        raise ConfigError("training.accelerator gpu: this machine shows no GPU; give --training.accelerator cpu")
    here = launched()
    if here is None:
        return _without_launcher(devices, nodes, gpus)
    where = f"{here.by} started {here.local_world} processes on each of {here.nodes} machines"
    if devices not in ("auto", here.local_world) or nodes not in (1, here.nodes):
        raise ConfigError(
            f"{where}; --training.devices {devices} --training.nodes {nodes} say otherwise. Leave these two away"
        )
    alone = here.by == "srun" and gpus == 1 < here.local_world  # as --gpus-per-task binds them
    if gpus and not alone and gpus < here.local_world:
        raise ConfigError(f"{where}, and a machine shows {gpus} GPUs: start {gpus}, or give --training.accelerator cpu")
    return {
        "devices": 1 if alone else here.local_world,
        "num_nodes": here.world if alone else here.nodes,
        "strategy": "ddp" if here.world > 1 else "auto",
        "plugins": [Ranks(here, alone)],
    }


def _without_launcher(devices: int | str, nodes: int, gpus: int) -> dict[str, Any]:
    count = max(1, gpus) if devices == "auto" else int(devices)
    if count < 1 or (gpus and count > gpus):
        there = f"1 to {gpus}, the GPUs of this machine" if gpus else "at least 1"
        raise ConfigError(f"training.devices: expected {there}; given {devices}")
    told = {name: os.environ[name] for name in _OTHERS if os.environ.get(name, "1") != "1"}
    for name, world in told.items():
        if world != str(count * nodes):
            raise ConfigError(
                f"{name} says that {world} processes were started, and training.devices and training.nodes give "
                f"{count * nodes}: each would train alone. Start them with torchrun or srun, or unset {name}"
            )
    if nodes > 1 and not told and "NODE_RANK" not in os.environ:
        raise ConfigError(
            f"training.nodes {nodes}: nothing started this process as one of several machines'. Start it with torchrun "
            f"--nnodes {nodes} or srun, which need no --training.nodes"
        )
    return {"devices": devices, "num_nodes": nodes, "plugins": [LightningEnvironment()]}
