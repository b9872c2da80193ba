"""geomim: scenes into a clean corpus, a corpus into an encoder, an encoder into maps."""

import warnings

__version__ = "0.1.0"
# rich has no bars in a notebook without ipywidgets, and says so whenever it would draw one
warnings.filterwarnings("ignore", 'install "ipywidgets"', UserWarning)
