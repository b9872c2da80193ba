"""What an encoder says of every tile of a corpus, computed once for whatever file it is written to.

Chunks of vectors lie in a folder while they are computed: work that was stopped goes on there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim.corpus.remote import aside
from geomim.corpus.store import Corpus, write_json
from geomim.data.labelled import Labelled, LabelledData, ground_sides
from geomim.errors import ConfigError, CorpusError, InputError
from geomim.evaluate.features import Extractor, Pool, fast_half, frozen
from geomim.evaluate.saved import fingerprint
from geomim.maps.walk.strips import hold
from geomim.maps.walk.windows import ahead
from geomim.models.image_text import open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.ranges import LOOKS, check_range
from geomim.sensors import BandContract
from geomim.verbs.candidate import open_candidate, suited

CHUNK = 8192
"""Tiles that a stopped run loses at most."""
_AHEAD = 3  # batches that are read while others are encoded


@dataclass(frozen=True)
class Asked:
    """An encoder and the tiles that it is shown, whose answer is a vector each.

    Attributes:
        checkpoint: The encoder, as it was named.
        fingerprint: Of the encoder as it was read, whatever bands it is then made ready for: as of patches.
        contract: Bands and statistics of its input.
        image_size: Side that tiles are brought to, in pixels.
        notes: What was assumed, in sentences.
        facts: What else a card says of it.
        extractor: Makes it ready on a device.
    """

    checkpoint: str
    fingerprint: str
    contract: BandContract
    image_size: int
    notes: tuple[str, ...]
    facts: dict[str, Any]
    extractor: Callable[[torch.device], Extractor]

    def card(self, tiles: Tiles) -> dict[str, Any]:
        """What makes the vectors, which are others where any of it is."""
        return {
            "checkpoint": self.checkpoint,
            "encoder": self.fingerprint,
            "contract": self.contract.to_dict(),
            "image_size": self.image_size,
            "tiles": digest(tiles.table),
            **self.facts,
            **({"sensor": tiles.images.sensor.to_dict()} if tiles.told else {}),
        }


@dataclass(frozen=True)
class Tiles:
    """All tiles of a corpus whose pixels are there.

    Attributes:
        corpus: Holds them.
        images: What an encoder is opened for.
        table: As `stored` gives them.
        told: A user said what their numbers mean.
    """

    corpus: Corpus
    images: LabelledData
    table: pa.Table
    told: bool

    @classmethod
    def of(cls, corpus: str, sensor: str | None) -> Tiles:
        """Open a corpus; `sensor` says what its numbers mean, where the corpus says it wrongly.

        Raises:
            CorpusError: The folder is no corpus, or holds no tiles.
        """
        opened = Corpus.open(corpus)
        images, table = unlabelled(opened), stored(opened)
        if not len(table):
            raise CorpusError(f"'{corpus}' holds no tile with pixels: there is nothing to embed; build it again")
        return cls(opened, images.told(sensor) if sensor else images, table, bool(sensor))


def ask(
    checkpoint: str,
    images: LabelledData,
    image_size: int | None,
    pool: Pool,
    heads: int | None,
    all_bands: bool,
    joint: bool,
    quickgelu: bool | None,
) -> Asked:
    """Open an encoder, or a model of images and text, for the bands of tiles; arguments as of `geomim embed`.

    Raises:
        CheckpointError: It cannot be read.
        BandError: The tiles lack bands that it needs.
        ConfigError: Arguments do not fit together.
    """
    check_joint(joint, pool, heads, quickgelu)
    if joint:
        return _joint(checkpoint, images, image_size, all_bands, quickgelu)
    one = open_candidate(checkpoint, images, image_size, heads, all_bands)

    def extractor(device: torch.device) -> Extractor:
        return frozen(one.encoder.to(device), pool, half=fast_half(device))

    made_by = fingerprint(one.source or one.encoder)
    return Asked(checkpoint, made_by, one.contract, one.image_size, one.notes, {"pool": pool}, extractor)


def check_joint(joint: bool, pool: Pool, heads: int | None, quickgelu: bool | None) -> None:
    """Refuse what only a joint space, or only an encoder alone, has."""
    if joint and (pool != "mean" or heads is not None):
        raise ConfigError("a joint space states pooling and heads itself: leave out --pool and --heads")
    if quickgelu is not None and not joint:
        raise ConfigError("--quickgelu is of models of images and text: leave it out, or give --joint")


def _joint(
    checkpoint: str, images: LabelledData, image_size: int | None, all_bands: bool, quickgelu: bool | None
) -> Asked:
    model = open_image_text(checkpoint, quickgelu)
    contract, gsd, notes = suited(model.loaded, checkpoint, images, all_bands)
    size = image_size or model.image_size
    if size % model.patch_size:
        raise ConfigError(f"image_size {size}: expected a multiple of the patch size {model.patch_size}")
    facts = {"pool": "as the joint space does", "joint": True}
    facts |= {} if quickgelu is None else {"quickgelu": quickgelu}  # as `search` opens it again

    def extractor(device: torch.device) -> Extractor:
        fitted = model.fitted(contract, gsd).to(device)

        def forward(seen: Tensor, valid: Tensor) -> tuple[Tensor, None]:
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
                return fitted.encode_image(seen, valid), None

        return Extractor(forward)

    return Asked(checkpoint, model.fingerprint, contract, size, notes, facts, extractor)


def unlabelled(corpus: Corpus) -> LabelledData:
    """A corpus as what an encoder is opened for."""
    none = Labelled(np.empty(0, np.int64), lambda rows: [])
    tiles = corpus.table(["gsd", "size"], where=pc.field("slot") >= 0)
    side, ground = float(np.median(tiles["size"].to_numpy())) if len(tiles) else None, ground_sides(tiles)
    name = f"corpus {corpus.path.name}"
    return LabelledData(name, (), corpus.sensor, corpus.contract, none, none, side=side, ground=ground)


def stored(corpus: Corpus) -> pa.Table:
    """All tiles whose pixels are there, in id order."""
    return corpus.table(["id", "size", "slot", "phash", "low_information"], where=pc.field("slot") >= 0)


def digest(tiles: pa.Table) -> str:
    """Changes where the tiles are others, or show something else."""
    found = xxhash.xxh3_64()
    for name in ("id", "phash"):
        found.update(np.ascontiguousarray(pc.fill_null(tiles[name], 0).to_numpy(), "<i8").data)
    return found.hexdigest()


class TileEncoder:
    """Vectors of stored tiles of any size.

    Args:
        tiles: Of which any can be encoded.
        asked: The encoder.
        device: Where it runs.
        batch: Tiles encoded at once.

    Raises:
        BandError: The tiles lack bands that it needs.
        CorpusError: Their pixels are not there.
    """

    def __init__(self, tiles: Tiles, asked: Asked, device: torch.device, batch: int) -> None:
        self._tiles, self._size, self._device, self._batch = tiles, asked.image_size, device, batch
        self._prepare = ContractInput(asked.contract, tiles.images.sensor)
        self._extractor, corpus = asked.extractor(device), tiles.corpus
        self._arrays = {}
        for size in np.unique(tiles.table["size"].to_numpy()).tolist():
            pixels = corpus.array("image", size)
            if pixels is None:
                raise CorpusError(f"'{corpus.path}' lacks the pixels of its {size} px tiles: build the corpus again")
            self._arrays[size] = (pixels, corpus.array("valid", size))

    def check(self) -> list[str]:
        """Look at some tiles, drawn by chance and always the same, and say what is unusual of their numbers.

        Raises:
            InputError: They must be in another unit.
        """
        table = self._tiles.table
        chosen = np.random.default_rng(0).choice(len(table), min(LOOKS, len(table)), replace=False)
        some = (self._read(batch)[:2] for batch in self._batches(table.take(np.sort(chosen))))
        return check_range(self._prepare, some, self._tiles.images.name)

    @torch.no_grad()
    def __call__(self, tiles: pa.Table) -> np.ndarray:
        """`(n, D)` float32 of tiles with `size` and `slot`."""
        found, order = [], []
        for numbers, valid, rows in ahead(self._read, self._batches(tiles), _AHEAD):
            on_device = (one.to(self._device, non_blocking=True) for one in (numbers, valid))
            found.append(self._extractor.forward(*self._prepare(*on_device, self._size))[0].float())
            order.append(rows)
        vectors = np.empty((len(tiles), found[0].shape[1]), np.float32)
        vectors[np.concatenate(order)] = torch.cat(found).cpu().numpy()  # a GPU is waited for once
        return vectors

    def _batches(self, tiles: pa.Table) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Size, slots and rows of tiles, a batch of one size at a time, in the order of their place on disk."""
        sizes, slots = tiles["size"].to_numpy(), tiles["slot"].to_numpy()
        for size in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == size)
            rows = rows[np.argsort(slots[rows], kind="stable")]
            for start in range(0, len(rows), self._batch):
                some = rows[start : start + self._batch]
                yield size, slots[some], some

    def _read(self, batch: tuple[int, np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor, np.ndarray]:
        """Numbers, validity and rows of a batch."""
        size, slots, rows = batch
        pixels, valid = self._arrays[size]
        numbers = pixels.read(slots)
        # torch lacks most operations on unsigned 16 and 32 bits
        numbers = numbers.astype(np.int32) if numbers.dtype in (np.uint16, np.uint32) else numbers
        seen = np.ones((len(slots), size, size), bool) if valid is None else valid.read(slots)
        return torch.from_numpy(numbers), torch.from_numpy(seen), rows


@contextmanager
def encoded(
    out: Path,
    work: Path,
    card: Mapping[str, Any],
    tiles: pa.Table,
    encode: Callable[[pa.Table], np.ndarray],
    dtype: type[np.floating[Any]] = np.float32,
) -> Iterator[list[Path]]:
    """Encode what is not encoded yet, a chunk of tiles at a time; the chunks go when all that is made of them is done.

    Args:
        out: What is made of them.
        work: Folder of the chunks; those of another card in it are thrown away.
        card: What makes the vectors.
        tiles: All of them, in id order.
        encode: Tiles to vectors `(n, D)`.
        dtype: Of the chunks.

    Yields:
        Files of vectors `(n, D)` in the order of the tiles, at most `CHUNK` of them each.

    Raises:
        InputError: Another process makes the same.
    """
    card = {**card, "chunk": CHUNK}
    with hold(work, out):
        if read_json(work / "card.json") != card:
            for file in work.glob("*.npy"):
                file.unlink()
            write_json(work / "card.json", card)
        files = [work / f"{start:012d}.npy" for start in range(0, len(tiles), CHUNK)]
        for file in track(files, f"embedding {len(tiles)} tiles", console=Console(stderr=True), transient=True):
            if not file.exists():
                vectors = encode(tiles.slice(int(file.stem), CHUNK)).astype(dtype)
                if not np.isfinite(vectors).all():
                    raise InputError(f"the encoder's vectors are not finite as {np.dtype(dtype)}: look at its weights")
                with aside(file) as opened:
                    np.save(opened, vectors)
        yield files
        shutil.rmtree(work)


def read_json(path: Path) -> Any:
    """What a file says; None where it is not there or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
