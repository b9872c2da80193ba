"""Where the tests find real imagery and reference numbers; both are optional and say so when they are missing."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist runs a worker a core
REPOSITORY = Path(__file__).resolve().parent.parent


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
