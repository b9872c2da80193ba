"""What a launcher started and what the trainer takes over, without starting anything."""

import os

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from geomim.errors import ConfigError
from geomim.pretrain.launch import Srun, placement

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
ALLOCATION = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = ALLOCATION | {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def start(monkeypatch):
    """Set a launcher's variables and the GPUs that are seen."""

    def set_up(environment, gpus=0):
        for name in list(os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC", "PMI_", "OMPI_")) or name in TORCHRUN or name == "NODE_RANK":
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # what is set while reading is undone with the test
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return set_up


@pytest.mark.parametrize("gpus", [0, 2, 8])
@pytest.mark.parametrize(("launcher", "kind"), [(TORCHRUN, TorchElasticEnvironment), (STEP, Srun)])
def test_what_was_started_is_taken_over(start, launcher, kind, gpus):
    start(launcher, gpus)
    for said in (("auto", 1), (2, 1), (2, 2)):
        given = placement("auto", *said)
        assert (given["devices"], given["num_nodes"]) == (2, 2)
        (environment,) = given["plugins"]
        assert type(environment) is kind and environment.creates_processes_externally
        assert (environment.world_size(), environment.global_rank(), environment.local_rank()) == (4, 3, 1)


def test_tasks_that_see_one_gpu_each_are_machines_of_one(start):
    start(STEP, 1)
    given = placement("gpu", "auto", 1)
    assert (given["devices"], given["num_nodes"]) == (1, 4)
    environment = given["plugins"][0]
    assert (environment.global_rank(), environment.node_rank(), environment.local_rank()) == (3, 3, 0)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (2, 3)])
def test_what_contradicts_the_launcher_is_refused_with_both_numbers(start, devices, nodes):
    start(TORCHRUN)
    said = f"torchrun started 2 processes on each of 2 machines.*--training.devices {devices} --training.nodes {nodes}"
    with pytest.raises(ConfigError, match=said):
        placement("cpu", devices, nodes)
    assert placement("cpu", "auto", 1)["devices"] == 2  # "leave both away"


def test_more_processes_than_gpus_are_refused_and_go_on_the_cpu(start):
    start(TORCHRUN, 1)
    with pytest.raises(ConfigError, match=r"has 1 GPUs: start 1, or give --training.accelerator cpu"):
        placement("auto", "auto", 1)
    assert placement("cpu", "auto", 1)["devices"] == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_NAME": "bash"},
        {"SLURM_JOB_NAME": "interactive"},
        {"SLURM_JOB_NAME": "train.sh"},  # sbatch without srun
        {"SLURM_JOB_NAME": "x", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},  # salloc as a step
    ],
)
def test_an_allocation_is_no_launch(start, environment):
    start(ALLOCATION | environment)
    given = placement("cpu", "auto", 1)
    assert given["devices"] == "auto" and type(given["plugins"][0]) is LightningEnvironment


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_of_other_launchers_do_not_train_alone(start, name):
    start({name: "2"})
    with pytest.raises(ConfigError, match=f"{name} started 2 processes.*make 1: start them with torchrun"):
        placement("cpu", "auto", 1)
    with pytest.raises(ConfigError, match=f"{name} started 2 processes.*make 2: start them with torchrun"):
        placement("cpu", 2, 1)


def test_children_that_lightning_started_go_on(start):
    start({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"})
    assert placement("cpu", 2, 1)["devices"] == 2
    with pytest.raises(ConfigError, match=r"started 2 processes.*make 3"):
        placement("cpu", 3, 1)


def test_devices_and_machines_that_are_not_there(start):
    start({}, 2)
    for devices in (0, -1, 3):
        with pytest.raises(ConfigError, match=f"expected 1 to 2; given {devices}"):
            placement("auto", devices, 1)
    with pytest.raises(ConfigError, match=r"training.nodes 2 make 4: start them with torchrun"):
        placement("auto", "auto", 2)
