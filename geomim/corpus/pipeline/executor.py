"""Where the tasks of a stage run: in this process, in a pool of processes, or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import yaml
from rich.progress import Progress

from geomim.addresses import keep_all, kept
from geomim.errors import ConfigError, InputError, MissingExtraError


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Rows:
    """Some rows of a table that go to a worker alone: pyarrow sends the whole table along with a slice of it."""

    table: pa.Table

    def __reduce__(self) -> tuple[Callable[[bytes], Rows], tuple[bytes]]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        return _rows, (sink.getvalue().to_pybytes(),)


def _rows(sent: bytes) -> Rows:
    with pa.ipc.open_stream(sent) as stream:
        return Rows(stream.read_all())


class Workers:
    """Runs functions over partitions under a progress bar; a context manager.

    A stage is a function that is importable by name, and a list of arguments. What it returns and writes does not
    depend on where it runs, so every engine gives the same corpus.

    Args:
        progress: Shows how far a stage is.
        count: Processes; one a core where None. Ignored on a cluster.
        cluster: Address of a Dask scheduler (`tcp://...`), or a YAML file for dask-jobqueue; see `connect`.
    """

    def __init__(self, progress: Progress, count: int | None = None, cluster: str | None = None) -> None:
        self._progress = progress
        self.count = max(1, cores() if count is None else count)
        self._cluster = cluster
        self._exit = ExitStack()
        self._executor: Executor | None = None
        self._futures: list[Future[Any]] = []  # of the stage that runs

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            for future in self._futures:
                future.cancel()
        self._exit.close()

    def run(self, what: str, function: Callable[..., Any], tasks: Sequence[tuple], inline: bool = False) -> list[Any]:
        """Call a function once for each task.

        Args:
            what: Words for the progress bar.
            function: Importable by name.
            tasks: Arguments of each call.
            inline: Stay in this process: starting another would cost more than the work.

        Returns:
            What the calls returned, in the order of the tasks.
        """
        bar = self._progress.add_task(what, total=len(tasks))
        if self._cluster is None and (inline or self.count == 1 or len(tasks) < 2):
            results = []
            for task in tasks:
                results.append(function(*task))
                self._progress.advance(bar)
            return results
        executor = self._start()
        here = (os.getcwd(), kept()) if self._cluster else None
        self._futures = [executor.submit(_call, here, function, *task) for task in tasks]
        for future in as_completed(self._futures):
            future.result()
            self._progress.advance(bar)
        return [future.result() for future in self._futures]

    def _start(self) -> Executor:
        if self._executor is None:
            if self._cluster is None:
                # "spawn": a fork would copy GDAL's and numba's threads in an undefined state
                context = multiprocessing.get_context("spawn")
                self._executor = self._exit.enter_context(ProcessPoolExecutor(self.count, context, keep_all, (kept(),)))
            else:
                self._executor = connect(self._cluster, self._exit)
        return self._executor


def _call(here: tuple[str, dict[str, str]] | None, function: Callable[..., Any], *task: Any) -> Any:
    """Call a function in the folder that relative paths start from: workers of a cluster were started elsewhere.

    They are told there, too, what signs the addresses that were given here.
    """
    if here is not None:
        keep_all(here[1])
        with suppress(OSError):  # a folder of this machine alone: whoever works so gives absolute paths
            os.chdir(here[0])
    return function(*task)


def connect(cluster: str, until: ExitStack) -> Executor:
    """An executor on a Dask cluster.

    Args:
        cluster: Address of a running scheduler, or a YAML file: `type` names a class of dask-jobqueue
            (`SLURMCluster`, `PBSCluster`, ...), `jobs` how many jobs to ask for, and all else goes to that class.
        until: Closes what was opened.

    Raises:
        MissingExtraError: dask is not installed.
        InputError: The scheduler does not answer.
        ConfigError: The YAML file is missing or wrong.
    """
    try:
        from dask.distributed import Client
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--cluster needs '{error.name}', which is not installed: pip install 'geomim[cluster]'"
        ) from error
    target = _jobs(cluster, until) if cluster.endswith((".yaml", ".yml")) else cluster
    try:
        client = until.enter_context(Client(target, timeout="30s"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at '{cluster}' ({error}): start one with `dask scheduler`, or give a YAML "
            "file for dask-jobqueue"
        ) from error
    executor: Executor = client.get_executor(pure=False)
    return executor


def _jobs(file: str, until: ExitStack) -> Any:
    import dask_jobqueue

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        kind, jobs = values.pop("type", "SLURMCluster"), int(values.pop("jobs"))
        cluster = until.enter_context(getattr(dask_jobqueue, kind)(**values))
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{file}' must give `jobs`, a `type` of dask-jobqueue such as SLURMCluster, and its arguments ({error})"
        ) from error
    cluster.scale(jobs=jobs)
    return cluster
