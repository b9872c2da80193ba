"""What geomim says when it cannot go on: what was expected, what was given, what to do."""

from __future__ import annotations

import difflib
import signal as signals
from collections.abc import Iterable

from geomim.addresses import plain


class GeomimError(Exception):
    """Base of every error that is addressed to a user; the CLI prints its sentence, never a traceback.

    Sentences end in lists and reports: whatever address they hold stands there without what signs it.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*(plain(one) if isinstance(one, str) else one for one in said))


class InputError(GeomimError, ValueError):
    """A file, a folder or an argument is not what it has to be."""


class UnreadableError(InputError):
    """A file is damaged somewhere, or out of reach: what was read before stays right when it is mended."""


class BandError(GeomimError, ValueError):
    """Bands do not fit: unnamed, unknown, or not those that the corpus or the encoder was made with."""


class CorpusError(GeomimError, ValueError):
    """A corpus cannot be read, or does not fit what is being added to it."""


class CheckpointError(GeomimError, ValueError):
    """A checkpoint cannot be read, or holds other weights than the ones asked for."""


class ConfigError(GeomimError, ValueError):
    """A configuration names something that does not exist or values that exclude each other."""


class ResumeError(CheckpointError, ConfigError):
    """A run is to go on with other settings than its checkpoint was trained with."""


STOPS = [getattr(signals, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signals, name)]
"""Signals that end a run after its step. Windows lacks SIGUSR1, which `sbatch --signal=USR1@90` sends before the time
is up: the job is then queued again, too."""


class Interrupted(BaseException):
    """A signal ended the work; what could be kept is.

    Args:
        signal: Its number; a shell expects 128 more as the exit code.
        sentence: What to tell the user; nothing where another process tells it.
    """

    def __init__(self, signal: int, sentence: str = "") -> None:
        super().__init__(sentence)
        self.signal = signal


class MissingExtraError(GeomimError, ImportError):
    """An optional dependency is not installed."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is meant: `"; did you mean 'x'?"`, or the list of valid ones.

    Args:
        name: What was given.
        valid: What would have been accepted.

    Returns:
        The end of an error sentence.
    """
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(choices)}"
