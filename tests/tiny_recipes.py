"""What small runs give to every recipe: little decoders, tiny encoders, and what a recipe needs besides."""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from open_clip.tokenizer import SimpleTokenizer

from geomim.models.text import Text

DECODER = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
LATENT = {"projector_width": 16}
OWN: dict[str, dict[str, Any]] = {
    "latent_mim": LATENT | {"visible": 0.25},
    "selective_latent": LATENT,
    "can_inspired": {"head_width": 32, "dim": 16},
    "dmjd": {"cell": 4},
    "mask_align": {"levels": 2},
    "simmim": {"unit": 8},
    "satvision": {"unit": 4},
    "rils": {"gate": False},  # an encoder that knows nothing finds no sentence
    "selective_rils": {"gate": False, "pixels": (0.5, 0.2), "latents": 0.1, "starts": 0.3},
}
TEXT = Text(f"local-dir:{Path(__file__).parent / 'tiny_text'}")
"""A text tower of one small block."""
LANGUAGE = ("remote_clip", "rils", "selective_rils", "sycoca_inspired")
CONTRASTS = (*LANGUAGE, "can_inspired")
"""Recipes whose images are told apart, so that a batch is more than its parts."""
ENCODER = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
SWIN = {"family": "swinv2", "patch_size": 2, "width": 8, "depth": 1, "heads": 1}


def method(recipe: str, teacher: str, decoder: dict[str, Any] = DECODER) -> dict[str, Any]:
    """Arguments of a recipe; `teacher` for the one that follows one."""
    given = {} if recipe in ("simmim", "satvision", "mask_align", "remote_clip") else decoder
    others = {"teacher": teacher} if recipe == "mask_align" else {"text": TEXT} if recipe in LANGUAGE else {}
    return given | OWN.get(recipe, {}) | others


def encoder(recipe: str) -> dict[str, Any]:
    """Arguments of the encoder of a recipe, for images of 16 px."""
    return SWIN if recipe == "satvision" else ENCODER


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=8)  # reads the whole vocabulary


def sentences(batch: int) -> dict[str, Any]:
    """What a batch says of its images: two read the same, and the last has nothing said of it."""
    said = [f"{number} planes" for number in range(batch - 2)]
    of = [*range(batch - 2), 0, -1]
    tokens = _tokenizer()([*said, ""])
    return {"tokens": tokens, "key": torch.tensor([*range(batch - 2), -1]), "of": torch.tensor(of)}


def annotated(corpus: Path, mute: Collection[int] | None = None) -> Path:
    """Let every two tiles of a corpus be one place, in its column `place`, and say something of all but the `mute`.

    These are each third where nobody says which.
    """
    table = pq.read_table(corpus / "catalogue.parquet")
    places = pa.array([row // 2 for row in range(len(table))])
    silent = [row % 3 == 2 if mute is None else row in mute for row in range(len(table))]
    said = [None if silent[row] else [f"{row % 7} planes", f"{row % 2} roads"] for row in range(len(table))]
    place, words = table.schema.get_field_index("captions"), pa.array(said, pa.list_(pa.string()))
    table = table.set_column(place, "captions", words).append_column("place", places)
    pq.write_table(table, corpus / "catalogue.parquet")
    return corpus
