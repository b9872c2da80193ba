"""Two processes that train together, with what torchrun tells each; forks of this one, as torch takes long to start."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only


def two_ranks(run: Callable[[], int | None], folder: Path, code: int = 0) -> list[str]:
    """Call something as each of two ranks, in a folder that is there.

    Args:
        run: Gives the code that its process ends with, or None for 0. What a test patched is patched for it, too.
        folder: Working directory of both.
        code: How both should end.

    Returns:
        What each said, in either stream.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    said = [folder / f".said{rank}" for rank in (0, 1)]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(run, folder, rank, port, said[rank])) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        rank.kill()
    told = [path.read_text() for path in said]
    for path in said:
        path.unlink()
    assert [rank.exitcode for rank in ranks] == [code, code], "\n".join(one[-3000:] for one in told)
    return told


def _rank(run: Callable[[], int | None], folder: Path, rank: int, port: str, said: Path) -> None:
    sys.stdout.flush()
    with said.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.chdir(folder)
        told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= told | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": f"{rank}",
            "LOCAL_RANK": f"{rank}",
        }
        rank_zero_only.rank = rank  # which it reads once, as it is imported
        try:
            code = run() or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        file.flush()
        os._exit(code)
