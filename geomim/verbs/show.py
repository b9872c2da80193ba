"""`geomim show`: what weights say of themselves."""

from __future__ import annotations

from json import dumps

from rich.console import Console
from rich.markdown import Markdown

from geomim.models.card import sections
from geomim.models.weights import read_encoder


def show(path: str, json: bool = False, heads: int | None = None) -> None:
    """Print where an encoder comes from: recipe, steps, bands, corpora and their audits, scores, code, licences.

    Args:
        path: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file.
        json: Print the plain values for machines instead.
        heads: Attention heads of a published file, which does not state them.

    Raises:
        CheckpointError: It cannot be read.
    """
    entry = read_encoder(path, heads).entry
    if json:
        print(dumps(entry, indent=2))
        return
    text = "\n\n".join(f"**{title}**\n\n{words}" for title, words in sections(entry).items())
    Console(width=80, highlight=False).print(f"{path}\n", Markdown(text), markup=False)
