"""Copies and near-copies among tiles: fingerprints, complete search, verification, and who stays."""
