"""How far it is, where somebody looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress


def watched(values: Collection[Any], said: str) -> Iterator[Any]:
    """The values, with a bar where a terminal shows it."""
    console = Console(stderr=True)
    off = not console.is_terminal
    with Progress(console=console, transient=True, redirect_stdout=False, disable=off) as bar:  # notes stay on stdout
        yield from bar.track(values, len(values), description=said)
