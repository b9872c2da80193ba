"""Vectors of tiles and of patches, as files for others."""
