"""Addressed randomness: every random number is a function of (seed, purpose, position), never of call order.

A position is a sample's place in the endless training stream. Whatever rank, worker or micro-batch a sample lands
in, it gets the same crop and the same mask; a resumed run equals an undisturbed one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64 (the `lowbias32` finaliser of C. Wellons, public domain)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _key(text: str) -> int:
    """32 bits of a text (FNV-1a): plain arithmetic, so that a compiler can see through it."""
    key = 0x811C9DC5
    for character in text:
        key = ((key ^ ord(character)) * 0x01000193) & _MASK
    return key


class Draws:
    """Uniform random numbers for one batch of samples.

    Args:
        seed: Seed of the run.
        positions: `(B,)` int64, the place of each sample in the training stream.
    """

    def __init__(self, seed: int, positions: Tensor) -> None:
        self.seed = seed
        self.positions = positions

    def __call__(self, purpose: str, *shape: int) -> Tensor:
        """Draw numbers for one purpose; the same call gives the same numbers.

        Args:
            purpose: What the numbers are for, such as `"mask"`; different purposes are independent.
            *shape: Shape behind the batch axis.

        Returns:
            `(B, *shape)` float32, uniform in (0, 1).
        """
        key = _key(f"{self.seed}/{purpose}")
        count = 1
        for size in shape:
            count *= size
        low, high = self.positions & _MASK, (self.positions >> 32) & _MASK
        row = _mix(_mix(low ^ key) ^ high)  # (B,)
        column = torch.arange(count, device=self.positions.device)
        bits = _mix(_mix(row[:, None] ^ ((column * 0x9E3779B9) & _MASK)) ^ key)
        numbers = ((bits >> 8).float() + 0.5).mul_(2.0**-24)
        return numbers.clamp_(max=1 - 2.0**-24).view(-1, *shape)  # the greatest would round to 1
