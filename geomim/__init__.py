"""geomim: scenes into a clean corpus, a corpus into an encoder, an encoder into maps."""

__version__ = "0.1.0"
