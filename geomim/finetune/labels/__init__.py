"""Labels in the formats that people have them in, read into one form; what was guessed or refused is told."""

from geomim.finetune.labels.items import UNLABELLED, Item, Kind, Labels
from geomim.finetune.labels.opening import open_labels

__all__ = ["UNLABELLED", "Item", "Kind", "Labels", "open_labels"]
