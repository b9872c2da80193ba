"""Two processes that train together, with what torchrun tells each and without the launcher, a third start of torch."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def two_ranks(arguments: Sequence[str], folder: Path | None = None) -> list[str]:
    """Run Python with some arguments as both ranks; what each says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    environment = os.environ | told | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = []
    for rank in ranks:
        out, error = rank.communicate(timeout=300)
        assert rank.returncode == 0, error[-3000:]
        said.append(out)
    return said
