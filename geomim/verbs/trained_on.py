"""Which test images an encoder trained on, as the hashes of tiles in the corpora that it names tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus
from geomim.data.labelled import LabelledData
from geomim.errors import GeomimError

_UNKNOWN = "whether the encoder trained on test images cannot be told"


def seen_in_training(details: Mapping[str, Any], images: LabelledData, data: str, given: Sequence[Corpus]) -> list[str]:
    """What a reader of the scores should know of test images that the encoder trained on, a sentence a corpus.

    Images, and the tiles that pictures are cut into, are compared by the exact hash of their pixels. A corpus counts as
    the one that the weights name where it has the same lock.

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
    split = settings.get("data.split", "train")
    return [_compared(one, split, images) for one in found] + said


def _opened(path: str) -> Corpus | None:
    with suppress(GeomimError):  # none, or unfinished, or out of reach
        return Corpus.open(path)
    return None


def _compared(corpus: Corpus, split: str, images: LabelledData) -> str:
    """The sentence of one corpus."""
    name, count, test = corpus.path.resolve().name, len(images.test), images.test
    try:
        hashes = [{one} - {None} for one in test.hashes] if test.hashes else _of_pictures(test.paths, corpus.sizes)
    except ImportError:
        return f"{_UNKNOWN}: to hash pictures, pip install 'geomim[corpus]'"
    tiles = corpus.table(["xxh3"], where=pc.field("kept") & (pc.field("split") == split))["xxh3"].combine_chunks()
    known = pa.array({one for several in hashes for one in several}, pa.string())
    found = set(known.filter(pc.is_in(known, value_set=tiles)).to_pylist())
    if seen := sum(not found.isdisjoint(one) for one in hashes):
        return f"{seen:,} of the {count:,} test images are among the tiles of {name} that the encoder trained on"
    bands = len(images.sensor.bands), len(corpus.sensor.bands)
    alike = bands[0] == bands[1] and (not test.hashes or images.side in corpus.sizes)
    if not alike or not known or tiles.null_count:
        sizes = ", ".join(map(str, corpus.sizes))
        shapes = f"{images.side:g} px and {bands[0]} bands against {sizes} px and {bands[1]}"
        return f"{_UNKNOWN}: test images and tiles of {name} are of other shapes ({shapes}), or have no hashes"
    blind = sum(not one for one in hashes)
    which = f"{count - blind:,} test images that can be compared" if blind else f"{count:,} test images"
    return (
        f"none of the {which} is among the {len(tiles):,} tiles of {name} that the encoder trained on "
        "(by equal pixels; geomim corpus audit finds crops and recompressed copies, too)"
    )


def _of_pictures(paths: Sequence[Path], sizes: Sequence[int]) -> list[set[str | None]]:
    """Hashes of the tiles that a corpus cuts of pictures, which it decodes otherwise than `open_labelled` does.

    Raises:
        ImportError: What reads scenes is not installed.
    """
    from rasterio.windows import Window

    from geomim.corpus.duplicates.fingerprint import content_hash
    from geomim.corpus.scenes import open_scene

    hashes: list[set[str | None]] = []
    for path in paths:
        hashes.append(set())
        with suppress(GeomimError), open_scene(path) as scene:
            pixels, _ = scene.read_valid(Window(0, 0, scene.width, scene.height))
            for size in sizes:
                whole = (range(0, length - size + 1, size) for length in pixels.shape[1:])
                hashes[-1] |= {content_hash(pixels[:, y : y + size, x : x + size]) for y, x in product(*whole)}
    return hashes
