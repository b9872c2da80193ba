"""Scenes of every kind, opened lazily as a `Scene`: named bands, validity, clouds, place, read by window."""

from geomim.corpus.scenes.finding import SUFFIXES, find_scenes, scene_name, source_files
from geomim.corpus.scenes.metadata import acquisition_time
from geomim.corpus.scenes.opening import open_scene
from geomim.corpus.scenes.scene import Scene

__all__ = ["SUFFIXES", "Scene", "acquisition_time", "find_scenes", "open_scene", "scene_name", "source_files"]
