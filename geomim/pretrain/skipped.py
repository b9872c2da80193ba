"""Tiles that could not be read: named once, counted over all ranks, and how many of them end a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import distributed as dist

from geomim.errors import GeomimError

LIMIT = 0.001
"""Share of the tiles that may be unreadable; more end a run."""

_log = logging.getLogger(__name__)


class Skipped:
    """Tiles of damaged shards. They come as `unreadable (B,)` of a batch, have no valid pixel and so weigh nothing."""

    def __init__(self) -> None:
        self._tiles: set[tuple[int, int]] = set()  # place of their corpus among all, and id

    def note(self, part: dict[str, Any], data: Any) -> None:
        """Name what is new in a micro-batch of a `StreamDataset`, which must not be on the device yet."""
        for one in (part, *part.get("views", {}).values()):
            if "unreadable" in one:
                place = int(data.stream(part["position"].numpy())[0][0])
                found = {(place, tile) for tile in one["id"][one["unreadable"]].tolist()} - self._tiles
                if found:
                    _log.warning("skipped, since their shard is damaged: tiles %s", _named(found, data.sets))
                self._tiles |= found

    def state(self) -> list[list[int]]:
        """What a checkpoint keeps: corpus and id of each, those of all ranks once they are counted."""
        return [list(one) for one in sorted(self._tiles)]

    def restore(self, state: Sequence[Sequence[int]]) -> None:
        """Count on from what a checkpoint kept."""
        self._tiles |= {(place, tile) for place, tile in state}

    def count(self, sets: Sequence[Any], world: int) -> int:
        """How many of all tiles there were so far, by all of `world` ranks.

        Raises:
            GeomimError: They are more than `LIMIT` of all.
        """
        if world > 1:
            every: list[Any] = [None] * world
            dist.all_gather_object(every, self._tiles)
            self._tiles = set().union(*every)
        count, tiles = len(self._tiles), sum(map(len, sets))
        if count > LIMIT * tiles:
            raise GeomimError(
                f"{count} of {tiles} tiles cannot be read, more than {LIMIT:.1%}: {_named(self._tiles, sets)}. 'geomim "
                "corpus verify CORPUS' names the damaged shards: copy them again, or build the corpus again, and go on "
                "with --resume last"
            )
        return count


def _named(tiles: set[tuple[int, int]], sets: Sequence[Any]) -> str:
    more = f" and {len(tiles) - 8} more" * (len(tiles) > 8)
    return ", ".join(f"{tile} of '{sets[place].corpus.path}'" for place, tile in sorted(tiles)[:8]) + more
