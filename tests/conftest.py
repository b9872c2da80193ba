"""Where the tests find real imagery and reference numbers; both are optional and say so when they are missing."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist runs a worker a core
REPOSITORY = Path(__file__).resolve().parent.parent
COUNTING = ("test_throughput", "test_minutes", "test_resume", "test_torchrun")
"""Tests of training that count FLOPs: their own, and runs of every recipe."""


def _folder(variable: str, default: str, what: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{what} not found in '{folder}': set {variable}")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real imagery (`GEOMIM_TEST_DATA`)."""
    return _folder("GEOMIM_TEST_DATA", "data", "real test imagery")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of reference numbers (`GEOMIM_REFERENCE`)."""
    return _folder("GEOMIM_REFERENCE", "reference", "reference numbers")


@pytest.fixture(scope="module", autouse=True)
def nothing_beside(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out, in this process, what takes a tenth of the time of other tests than its own.

    That is the plots on the page of every corpus, and the FLOPs that every training run counts.
    """
    room, *folders = request.path.relative_to(REPOSITORY / "tests").parts
    with pytest.MonkeyPatch.context() as patch:
        if room == "corpus" and "report" not in folders:
            from geomim.corpus.report import pictures

            patch.setattr(
                pictures, "_save", lambda path, *_: pictures.save_picture(path, np.zeros((1, 1, 3), np.uint8))
            )
        if room == "pretrain" and request.path.stem not in COUNTING:
            from geomim.pretrain import module

            patch.setattr(module, "count_flops", lambda *_: 1.0)
        yield
