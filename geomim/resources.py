"""Files that ship with geomim: `configs/` and `datasets/`, beside the package in a clone and inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from geomim.errors import InputError, nearest


def root() -> Path:
    """The folder of `configs/` and `datasets/`: the package in a wheel, the one above it in a clone."""
    package = Path(__file__).resolve().parent
    return package if (package / "configs").is_dir() else package.parent


def shipped(path: str) -> Path:
    """Find a file as given, or else among those that ship with geomim.

    Args:
        path: A path of the user's, or one such as `configs/pretrain/small_cpu.yaml`.

    Raises:
        InputError: There is no such file; the nearest shipped one is named.
    """
    if Path(path).is_file():
        return Path(path)
    base = root()
    if (base / path).is_file():
        return base / path
    known = [
        file.relative_to(base).as_posix() for kind in ("configs", "datasets") for file in (base / kind).rglob("*.yaml")
    ]
    raise InputError(f"file '{path}' does not exist{nearest(path, known)}")
