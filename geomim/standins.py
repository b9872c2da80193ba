"""Stand-ins for libraries of which nothing is used: whatever is imported from one is there, and does nothing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import accumulate
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """A library, or anything in one: to subclass, which adds nothing; to decorate with, which changes nothing.

    Raises:
        RuntimeError: It is called, or gone through, once modules are imported: what is asked for then was left out.
    """

    _importing = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return ()

    def __call__(self, *given: Any, **_: Any) -> Any:  # noqa: D102
        self._check()
        return given[0] if given and callable(given[0]) else self

    def __getitem__(self, _: Any) -> StandIn:
        return self

    def __or__(self, _: Any) -> StandIn:
        return self

    __ror__ = __or__

    def __iter__(self) -> Iterator[Any]:
        self._check()
        return iter(())

    def _check(self) -> None:
        if not StandIn._importing:
            raise RuntimeError(f"'{self.__name__}' is asked for, and was left out when geomim started: report it")

    def __instancecheck__(self, _: Any) -> bool:
        return False


class _Finder(MetaPathFinder, Loader):
    def __init__(self, absent: Callable[[str], bool]) -> None:
        self.absent = absent

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """That of a stand-in, for a library or a part of one that is to be absent."""
        parts = accumulate(name.split("."), "{}.{}".format)
        return ModuleSpec(name, self, is_package=True) if any(map(self.absent, parts)) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be run."""


@contextmanager
def standing_in(absent: Callable[[str], bool]) -> Iterator[None]:
    """Import other modules without the libraries, or `library.part`, of which `absent` says so; later they can be."""
    finder = _Finder(absent)
    sys.meta_path.insert(0, finder)
    StandIn._importing = True
    try:
        yield
    finally:
        StandIn._importing = False
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
            del sys.modules[name]
            library, _, part = name.rpartition(".")
            if library in sys.modules:
                vars(sys.modules[library]).pop(part, None)


@contextmanager
def starting(absent: Callable[[str], bool]) -> Iterator[None]:
    """Import what a command needs in little time: without what is `absent`, and with no search for garbage in it.

    Torch's optimisers and counter of FLOPs would load its compiler, only to be left out of graphs that ours never has.
    """
    gc.disable()
    try:
        with standing_in(absent):
            yield
    finally:
        gc.freeze()
        gc.enable()
    for module, name in (("torch.optim", "Optimizer"), ("torch.utils.flop_counter", "_FlopCounterMode")):
        for method in vars(getattr(sys.modules.get(module), name, object)).values():
            if hasattr(method, "__wrapped__"):
                vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)
