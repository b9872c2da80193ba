"""Which test images an encoder trained on, as the hashes of tiles in the corpora that it names tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus, holds_corpus
from geomim.data.labelled import Labelled, LabelledData
from geomim.errors import CorpusError

_UNKNOWN = "whether the encoder trained on test images cannot be told"


def seen_in_training(details: Mapping[str, Any], images: LabelledData, data: str, given: Sequence[Corpus]) -> list[str]:
    """What a reader of the scores should know of test images that the encoder trained on, a sentence a corpus.

    Images and tiles are compared by the exact hash of their pixels. A corpus counts as the one that the weights name
    where it has the same lock.

    Args:
        details: What the weights say of their training; nothing where they say nothing.
        images: Of which the test split is looked at.
        data: Where they are: the corpus may be that, besides where it was.
        given: Corpora that the encoder trained on, whatever the weights say.
    """
    settings = details.get("settings") or {}
    named = zip(details.get("corpus") or (), settings.get("data.corpus") or (), strict=False)
    found, said = list(given), []
    for path, stated in () if given else named:
        lock = stated.rpartition(" lock ")[2]
        same = [one for one in map(_opened, (path, data)) if one and str(one.meta.get("lock")) == lock]
        found += same[:1]
        if not same:
            said.append(f"{_UNKNOWN}: '{path}' is not the corpus of lock {lock} any more; name it with --trained_on")
    if not found and not said:
        return [f"{_UNKNOWN}: its weights name no corpus; name those that you know of with --trained_on"]
    hashes = _hashes(images.test) if found else None
    return [_compared(one, settings.get("data.split", "train"), hashes, images) for one in found] + said


def _opened(path: str) -> Corpus | None:
    try:
        return Corpus.open(path) if holds_corpus(Path(path)) else None
    except CorpusError:  # unfinished, or damaged
        return None


def _hashes(images: Labelled) -> pa.Array | None:
    """Of the pixels of each image; None where nothing can hash them."""
    if images.hashes is not None:
        return images.hashes
    try:
        from geomim.corpus.duplicates.fingerprint import content_hash
    except ImportError:
        return None
    read = (images.read(np.array([row])) for row in range(len(images)))
    return pa.array([content_hash(numbers[0].numpy()) for [(numbers, _)] in read], pa.string())


def _compared(corpus: Corpus, split: str, hashes: pa.Array | None, images: LabelledData) -> str:
    name, count = corpus.path.resolve().name, len(images.test)
    trained = corpus.table(["xxh3"], where=pc.field("kept") & (pc.field("split") == split))["xxh3"]
    if hashes is None:
        return f"{_UNKNOWN}: to hash pictures, pip install 'geomim[corpus]'"
    if hashes.null_count or trained.null_count:
        return f"{_UNKNOWN}: {name} or {images.name} keeps no hashes of some tiles; build it again"
    seen = pc.sum(pc.is_in(hashes, value_set=trained.combine_chunks())).as_py()
    if seen:
        return f"{seen:,} of the {count:,} test images are among the tiles of {name} that the encoder trained on"
    bands = (len(images.sensor.bands), len(corpus.sensor.bands))
    if images.side not in corpus.sizes or bands[0] != bands[1]:
        shapes = (
            f"{images.side:g} px and {bands[0]} bands against {', '.join(map(str, corpus.sizes))} px and {bands[1]}"
        )
        return f"{_UNKNOWN}: test images and tiles of {name} differ in shape ({shapes}), so no hash can be equal"
    return (
        f"none of the {count:,} test images is among the {len(trained):,} tiles of {name} that the encoder trained on "
        "(by equal pixels; geomim corpus audit finds crops and recompressed copies, too)"
    )
