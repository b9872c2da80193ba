"""Torchgeo's own tasks under one name, whichever version is installed: the only module that imports them."""

from __future__ import annotations

from importlib.metadata import version

try:  # torchgeo 0.10, of Python 3.12 and later
    from torchgeo.tasks import ChangeDetection as Change
    from torchgeo.tasks import Classification, Regression
    from torchgeo.tasks import ObjectDetection as Detection
    from torchgeo.tasks import SemanticSegmentation as Segmentation
except ImportError:
    from torchgeo.trainers import ChangeDetectionTask as Change
    from torchgeo.trainers import ClassificationTask as Classification
    from torchgeo.trainers import ObjectDetectionTask as Detection
    from torchgeo.trainers import RegressionTask as Regression
    from torchgeo.trainers import SemanticSegmentationTask as Segmentation

VERSION = version("torchgeo")

__all__ = ["VERSION", "Change", "Classification", "Detection", "Regression", "Segmentation"]
