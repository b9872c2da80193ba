"""Features that a frozen network has of whole tiles, computed once and kept on disk."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.progress import track

from geomim.corpus.store import write_json
from geomim.data.tiles import TileSet
from geomim.errors import ConfigError, CorpusError

_READ = 64  # tiles at a time


class FeatureCache:
    """A file of float16 a corpus, to which tiles are added in order, and beside it what its numbers follow from.

    Nothing is written before `fill`, which goes on where it was stopped.

    Args:
        teacher: Has `cache`, a folder; `shape`, tokens and numbers a token; `identity`, what they follow from; and
            `features(batch)`, which gives `(B, *shape)`: a token of the whole, then a square of them in raster order.
        sets: The tiles that take part.
        prepare: Brings a raw batch of whole tiles to what the teacher is given.
        size: Side of that in pixels.

    Raises:
        ConfigError: The folder holds features of something else, or its disk lacks the room.
        CorpusError: From `fill`: a tile cannot be read, or its features exceed float16.
    """

    def __init__(self, teacher: Any, sets: Sequence[TileSet], prepare: Callable[[Any], Any], size: int) -> None:
        self.teacher, self.prepare, folder = teacher, prepare, Path(teacher.cache).absolute()
        self.row = 2 * teacher.shape[0] * teacher.shape[1]  # bytes a tile
        self.parts: list[tuple[TileSet, Path, dict[str, Any]]] = []
        for place, tiles in enumerate(sets):
            rows = xxhash.xxh3_128_hexdigest(tiles.tiles.ids[tiles.rows].tobytes())
            own = {"corpus lock": tiles.corpus.meta.get("lock"), "tiles": rows, "sensor": tiles.sensor, "side": size}
            part = tiles, folder / f"{place}-{tiles.sensor}.f16", json.loads(json.dumps(own | teacher.identity))
            self._check(*part[1:])
            self.parts.append(part)
        left = self.row * sum(len(tiles) - self._done(file) for tiles, file, _ in self.parts)
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        self.said = f"the teacher's features take {self.row * sum(map(len, sets)) / 1e9:.3g} GB in '{teacher.cache}'"
        if left > free:
            raise ConfigError(
                f"{self.said}, and {free / 1e9:.3g} GB are free: give --method.cache on a larger disk, fewer "
                "--method.levels, or leave the cache out and have the teacher run in every step"
            )
        self.said += f"; {left / 1e9:.3g} GB are computed first" if left else ", and are there"

    def _done(self, file: Path) -> int:
        return file.stat().st_size // self.row if file.exists() else 0

    def _check(self, file: Path, identity: dict[str, Any]) -> None:
        said = file.with_suffix(".json")
        known = json.loads(said.read_text()) if said.exists() else {}
        other = [name for name, value in identity.items() if known.get(name) != value]
        if other and (known or self._done(file)):
            raise ConfigError(
                f"'{file}' holds features of something else, as {', '.join(other)} tell: give --method.cache another "
                "folder, or delete this one"
            )

    def fill(self, device: torch.device) -> None:
        """Compute what is not there yet; for one process alone."""
        for tiles, path, identity in (part for part in self.parts if self._done(part[1]) < len(part[0])):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # another run may be at it
                self._check(path, identity)
                write_json(path.with_suffix(".json"), identity)
                file.truncate(self._done(path) * self.row)
                starts, said = range(self._done(path), len(tiles), _READ), f"the teacher sees {tiles.sensor}"
                for start in track(starts, said, console=Console(stderr=True), transient=True):
                    file.write(self._read(tiles, np.arange(start, min(start + _READ, len(tiles))), device))

    @torch.no_grad()
    def _read(self, tiles: TileSet, rows: np.ndarray, device: torch.device) -> bytes:
        raw = tiles.read(rows)
        features = self.teacher.features(self.prepare(move_data_to_device(raw, device))).half().cpu()
        bad = raw.get("unreadable", ~features.flatten(1).isfinite().all(1))
        if bad.any():
            raise CorpusError(
                f"tiles {raw['id'][bad].tolist()[:8]} of '{tiles.corpus.path}' cannot be read, or their features "
                "exceed float16: see 'geomim corpus verify', or leave out --method.cache"
            )
        return bytes(features.numpy().tobytes())

    def attach(self) -> None:
        """Have tiles read with their features from now on."""
        for tiles, file, _ in self.parts:
            if self._done(file) != len(tiles):
                raise ConfigError(f"'{file}' is not whole here: give a --method.cache that all machines share")
            tiles.features = (file, (len(tiles), *self.teacher.shape))
