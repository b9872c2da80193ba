"""Draws that are a function of an address: of a seed, a tile and a purpose, and of nothing that was drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import xxhash

T = TypeVar("T")
_BITS = 2**64 - 1


class Chance:
    """The draws at one address: the same ones in any order of tiles, on any machine.

    Args:
        address: Numbers and texts, such as a seed, a tile's id and an origin.
    """

    def __init__(self, *address: object) -> None:
        self._state = xxhash.xxh3_64_intdigest(repr(address).encode())

    def below(self, count: int) -> int:
        """A number from 0 to `count - 1`: the upper bits of Knuth's linear congruential generator (MMIX)."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _BITS
        return (self._state >> 33) % count

    def pick(self, options: Sequence[T]) -> T:
        """One of some options."""
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Different ones among some options, in the order of the draw."""
        moved: dict[int, int] = {}  # of a shuffle that goes only as far as is drawn
        drawn = []
        for place in range(min(count, len(options))):
            other = place + self.below(len(options) - place)
            drawn.append(options[moved.get(other, other)])
            moved[other] = moved.get(place, place)
        return drawn
