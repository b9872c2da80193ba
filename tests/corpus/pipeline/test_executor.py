import pytest
from rich.progress import Progress

from geomim.corpus.pipeline.executor import Workers
from geomim.errors import ConfigError, InputError


def square(number, shift):
    if number == 13:
        raise InputError("thirteen")
    return number**2 + shift


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_tasks(count):
    with Progress(disable=True) as progress, Workers(progress, count) as workers:
        assert workers.run("", square, [(n, 1) for n in range(6)]) == [n**2 + 1 for n in range(6)]
        assert workers.run("", square, []) == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_task_is_the_error_of_the_run(count):
    with (
        pytest.raises(InputError, match="thirteen"),
        Progress(disable=True) as progress,
        Workers(progress, count) as workers,
    ):
        workers.run("", square, [(n, 0) for n in range(10, 16)])


def test_a_scheduler_that_does_not_answer_is_one_sentence(monkeypatch):
    from dask.distributed import Client

    def refuse(*_, **__):
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(Client, "__init__", refuse)
    with (
        pytest.raises(InputError, match="no Dask scheduler answers at 'tcp:"),
        Progress(disable=True) as progress,
        Workers(progress, 1, "tcp://127.0.0.1:1") as workers,
    ):
        workers.run("", square, [(1, 1)])


def test_a_wrong_cluster_file_is_one_sentence(tmp_path):
    (tmp_path / "slurm.yaml").write_text("cores: 4\n")
    with (
        pytest.raises(ConfigError, match="must give `jobs`"),
        Progress(disable=True) as progress,
        Workers(progress, 1, str(tmp_path / "slurm.yaml")) as workers,
    ):
        workers.run("", square, [(1, 1)])
