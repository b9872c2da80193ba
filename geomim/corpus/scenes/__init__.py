"""Rasters of every kind, opened lazily as a `Scene`: named bands, validity, place, read by window."""

from geomim.corpus.scenes.raster import SUFFIXES, Scene, acquisition_time, find_scenes, open_scene

__all__ = ["SUFFIXES", "Scene", "acquisition_time", "find_scenes", "open_scene"]
