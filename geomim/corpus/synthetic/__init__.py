"""Procedural multispectral scenes with known labels, clouds, nodata, objects, two dates and planted duplicates.

For the demo and the tests: what a run should find is known exactly, and no pixel belongs to anybody.
"""

from geomim.corpus.synthetic.drafts import Copy
from geomim.corpus.synthetic.land import CLASSES
from geomim.corpus.synthetic.write import CHANGES, Planted, write_scenes

__all__ = ["CHANGES", "CLASSES", "Copy", "Planted", "write_scenes"]
