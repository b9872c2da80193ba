"""Sentences that are true of a tile: written from its labels, from maps and its spectrum, or imported."""
