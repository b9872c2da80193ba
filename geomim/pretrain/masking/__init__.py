"""Which patches are seen and which are asked for, as index tensors of static length.

A masking is called as `masking(context, progress)` and returns a `TokenSplit` for every view it masks. Valid patches
fill the slots first; where an image has too few, surplus visible slots are not attended to and surplus predicted
slots weigh nothing.
"""

from geomim.pretrain.masking.attention import Attention
from geomim.pretrain.masking.grid import Blocks, Disjoint, Units
from geomim.pretrain.masking.random import Random, Whole
from geomim.pretrain.masking.selective import Phases, Selective
from geomim.pretrain.masking.split import Masking, TokenSplit
from geomim.pretrain.masking.told import Told

__all__ = [
    "Attention",
    "Blocks",
    "Disjoint",
    "Masking",
    "Phases",
    "Random",
    "Selective",
    "TokenSplit",
    "Told",
    "Units",
    "Whole",
]
