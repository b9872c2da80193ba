"""Which code made some weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import geomim


def code_version() -> dict[str, str | None]:
    """`geomim`, its version; and `commit`, where it is a git checkout, with `-dirty` where that was changed."""
    package, commit = Path(geomim.__file__).parent, None
    if (package.parent / ".git").exists():
        words = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        try:
            commit = subprocess.run(words, cwd=package, capture_output=True, text=True, timeout=9, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            commit = None
    return {"geomim": geomim.__version__, "commit": commit and commit.strip()}
