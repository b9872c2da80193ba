"""`geomim corpus embed`: what an encoder says of every tile, stored beside the corpus."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
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

from geomim.corpus.store import Corpus, write_json
from geomim.data.labelled import Labelled, LabelledData, ground_sides
from geomim.errors import ConfigError, CorpusError
from geomim.evaluate.features import Extractor, Pool, device_of, fast_half, frozen
from geomim.evaluate.saved import fingerprint
from geomim.models.image_text import open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.ranges import LOOKS, check_range
from geomim.sensors import BandContract
from geomim.verbs.evaluate import open_candidate, suited

_CHUNK = 8192  # tiles that a stopped run loses at most


def embed(
    corpus: str,
    checkpoint: str,
    name: str | None = None,
    image_size: int | None = None,
    pool: Pool = "mean",
    batch: int = 128,
    sensor: str | None = None,
    heads: int | None = None,
    all_bands: bool = False,
    joint: bool = False,
    quickgelu: bool | None = None,
    device: str = "auto",
) -> Path:
    """Ask an encoder for a vector of every tile of a corpus, kept or not; stopped and started again, it goes on.

    Examples:
        geomim corpus embed my_corpus last.ckpt
        geomim corpus embed my_corpus remoteclip:RemoteCLIP-ViT-B-32.pt --joint --name remoteclip

    Args:
        corpus: Folder of the corpus.
        checkpoint: A geomim checkpoint, an exported folder, a published MAE or SelectiveMAE file, or `timm:NAME` for
            any pretrained timm model; with `joint` a model of images and text, as `geomim query` takes it.
        name: What the vectors are called; after the checkpoint where not given. Others of that name are replaced.
        image_size: Side that tiles are resized to, in pixels; the encoder's own where not given.
        pool: The mean of the patch tokens, or the class token.
        batch: Tiles encoded at once.
        sensor: Name or YAML file of a sensor that says what the tiles' numbers mean, where the corpus says it wrongly.
        heads: Attention heads of a published file, which does not state them.
        all_bands: Give an encoder of any sensor all bands of the tiles, not only those it was trained on.
        joint: Vectors in the space that a model shares with sentences, where `geomim search --text` finds tiles.
        quickgelu: With `joint`: activation of a CLIP model, which its file does not tell; as its source says where not
            given.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        `embeddings/NAME.npy` in the corpus: a row of float32 a tile. `NAME.ids.npy` holds the tiles' ids, rising, and
        `NAME.json` what made them.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        BandError: The tiles lack bands that the encoder needs.
        ConfigError: Arguments do not fit together.
        CorpusError: The folder is no corpus.
        InputError: Its numbers are far from those that the encoder was trained on.
    """
    if joint and (pool != "mean" or heads is not None):
        raise ConfigError("a joint space states pooling and heads itself: leave out --pool and --heads")
    if quickgelu is not None and not joint:
        raise ConfigError("--quickgelu is of models of images and text: leave it out, or give --joint")
    target, console = device_of(device), Console(stderr=True, markup=False, highlight=False)
    opened = Corpus.open(Path(corpus))
    images, tiles = unlabelled(opened), stored(opened)
    images = images.told(sensor) if sensor else images
    if joint:
        asked = _joint(checkpoint, images, image_size, all_bands, quickgelu)
    else:
        asked = _encoder(checkpoint, images, image_size, pool, heads, all_bands)
    card = asked.card(checkpoint, tiles) | ({"sensor": images.sensor.to_dict()} if sensor else {})
    out = Path(corpus) / "embeddings" / f"{name or _name(checkpoint)}.npy"
    before = _read_json(out.with_suffix(".json")) if out.exists() else None
    if before == card:
        console.print(f"'{out}' is there already", soft_wrap=True)
        return out
    prepare = ContractInput(asked.contract, images.sensor)
    encoder = _Encoder(opened, prepare, asked.image_size, asked.extractor(target), batch)
    unusual = check_range(prepare, encoder.sample(tiles), images.name)
    for note in (*asked.notes, *unusual, *_replaced(out, before, card)):
        console.print(note, soft_wrap=True)
    _write(out, card, tiles, lambda some: encoder(some, target), console)
    return out


def _name(checkpoint: str) -> str:
    """What vectors are called after."""
    library, _, model = checkpoint.partition(":")  # whose models differ in any part of their names
    return re.sub(r"[^\w.-]+", "-", model if library in ("timm", "open_clip") else Path(checkpoint).stem)


def _replaced(out: Path, before: dict[str, Any] | None, card: dict[str, Any]) -> list[str]:
    """That vectors are replaced by those of another encoder or of other tiles, in a sentence."""
    if before is None:
        return []
    others = [key for key in {**before, **card} if before.get(key) != card.get(key)]
    said = ", ".join(
        f"other {key}" if key in ("contract", "sensor", "tiles") else f"{key} {before.get(key)} -> {card.get(key)}"
        for key in others
    )
    return [f"'{out}' is replaced ({said}): give --name to keep both"]


def _write(
    out: Path, card: dict[str, Any], tiles: pa.Table, encode: Callable[[pa.Table], np.ndarray], console: Console
) -> None:
    """Encode what is not encoded yet, a chunk of tiles at a time, and put all in place."""
    work = _resume(out.with_suffix(".work"), card)  # which another encoder's vectors leave
    starts = range(0, len(tiles), _CHUNK)
    for start in track(starts, f"embedding {len(tiles)} tiles", console=console, transient=True):
        file = work / f"{start:012d}.npy"
        if not file.exists():
            part = file.with_suffix(".part")
            with open(part, "wb") as opened:
                np.save(opened, encode(tiles.slice(start, _CHUNK)))
            part.replace(file)
    _join(work, out, tiles["id"].to_numpy())
    write_json(out.with_suffix(".json"), card)
    shutil.rmtree(work)


@dataclass(frozen=True)
class _Asked:
    """What tiles are shown to, whose answer is a vector each: `facts` for the card, other fields as of `Candidate`."""

    fingerprint: str
    contract: BandContract
    image_size: int
    notes: tuple[str, ...]
    facts: dict[str, Any]
    extractor: Callable[[torch.device], Extractor]

    def card(self, checkpoint: str, tiles: pa.Table) -> dict[str, Any]:
        """What makes the vectors, which are others where any of it is."""
        return {
            "checkpoint": checkpoint,
            "encoder": self.fingerprint,
            "contract": self.contract.to_dict(),
            "image_size": self.image_size,
            "tiles": _digest(tiles),
            **self.facts,
        }


def _encoder(
    checkpoint: str, images: LabelledData, image_size: int | None, pool: Pool, heads: int | None, all_bands: bool
) -> _Asked:
    one = open_candidate(checkpoint, images, image_size, heads, all_bands)

    def extractor(device: torch.device) -> Extractor:
        return frozen(one.encoder.to(device), pool, half=fast_half(device))

    return _Asked(fingerprint(one.encoder), one.contract, one.image_size, one.notes, {"pool": pool}, extractor)


def _joint(
    checkpoint: str, images: LabelledData, image_size: int | None, all_bands: bool, quickgelu: bool | None
) -> _Asked:
    """A model of images and text, for the bands of the tiles."""
    model = open_image_text(checkpoint, quickgelu)
    contract, gsd, notes = suited(model.loaded, checkpoint, images, all_bands)
    size = image_size or model.image_size
    if size % model.patch_size:
        raise ConfigError(f"image_size {size}: expected a multiple of the patch size {model.patch_size}")
    facts = {"pool": "as the joint space does", "joint": True}
    facts |= {} if quickgelu is None else {"quickgelu": quickgelu}  # as `search` opens it again

    def extractor(device: torch.device) -> Extractor:
        fitted = model.fitted(contract, gsd).to(device)

        def forward(seen: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, None]:
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
                return fitted.encode_image(seen, valid), None

        return Extractor(forward)

    return _Asked(model.fingerprint, contract, size, notes, facts, extractor)


def unlabelled(corpus: Corpus) -> LabelledData:
    """A corpus as what an encoder is opened for."""
    none = Labelled(np.empty(0, np.int64), lambda rows: [])
    tiles = corpus.table(["gsd", "size"], where=pc.field("slot") >= 0)
    side, ground = float(np.median(tiles["size"].to_numpy())) if len(tiles) else None, ground_sides(tiles)
    name = f"corpus {corpus.path.name}"
    return LabelledData(name, (), corpus.sensor, corpus.contract, none, none, side=side, ground=ground)


class _Encoder:
    """Vectors of stored tiles of any size."""

    def __init__(
        self, corpus: Corpus, prepare: ContractInput, image_size: int, extractor: Extractor, batch: int
    ) -> None:
        self._corpus, self._extractor, self._batch = corpus, extractor, batch
        self._prepare, self._size = prepare, image_size

    def sample(self, tiles: pa.Table) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Numbers and validity of some tiles drawn by chance, always the same."""
        some = tiles.take(np.random.default_rng(0).choice(len(tiles), min(LOOKS, len(tiles)), replace=False))
        sizes, slots = some["size"].to_numpy(), some["slot"].to_numpy()
        for size in np.unique(sizes).tolist():
            for numbers, valid, _ in self._read(size, np.sort(slots[sizes == size])):
                yield numbers, valid

    @torch.no_grad()
    def __call__(self, tiles: pa.Table, device: torch.device) -> np.ndarray:
        """`(n, D)` float32 of tiles with `size` and `slot`."""
        vectors: dict[int, np.ndarray] = {}
        sizes, slots = tiles["size"].to_numpy(), tiles["slot"].to_numpy()
        for size in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == size)
            for numbers, valid, places in self._read(size, slots[rows]):
                images, seen = self._prepare(numbers.to(device), valid.to(device), self._size)
                found = self._extractor.forward(images, seen)[0].float().cpu().numpy()
                vectors |= zip(rows[places].tolist(), found, strict=True)
        return np.stack([vectors[row] for row in range(len(tiles))])

    def _read(self, size: int, slots: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        pixels, valid = self._corpus.array("image", size), self._corpus.array("valid", size)
        if pixels is None:
            raise CorpusError(f"'{self._corpus.path}' lacks the pixels of its {size} px tiles: build the corpus again")
        for start in range(0, len(slots), self._batch):
            some = slots[start : start + self._batch]
            numbers = pixels.read(some)
            # torch lacks most operations on unsigned 16 and 32 bits
            numbers = numbers.astype(np.int32) if numbers.dtype in (np.uint16, np.uint32) else numbers
            seen = np.ones((len(some), size, size), bool) if valid is None else valid.read(some)
            yield torch.from_numpy(numbers), torch.from_numpy(seen), np.arange(start, start + len(some))


def stored(corpus: Corpus) -> pa.Table:
    """All tiles whose pixels are there, in id order."""
    return corpus.table(["id", "size", "slot", "phash", "low_information"], where=pc.field("slot") >= 0)


def _digest(tiles: pa.Table) -> str:
    """Changes where the tiles are others, or show something else."""
    both = np.stack([pc.fill_null(tiles[name], 0).to_numpy() for name in ("id", "phash")])
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(both, "<i8").data)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _resume(work: Path, card: dict[str, Any]) -> Path:
    """The folder of what is embedded so far; emptied where another encoder or other tiles were."""
    if _read_json(work / "card.json") != card:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(work / "card.json", card)
    return work


def _join(work: Path, out: Path, ids: np.ndarray) -> None:
    """All chunks in one file, mapped so that only one of them is in memory."""
    out.with_suffix(".json").unlink(missing_ok=True)  # without it the vectors do not count
    chunks = sorted(work.glob("*.npy"))
    width = np.load(chunks[0], mmap_mode="r").shape[1] if chunks else 0
    part = work / "whole"
    whole = np.lib.format.open_memmap(part, "w+", np.float32, (len(ids), width))
    for chunk in chunks:
        rows = np.load(chunk)
        whole[int(chunk.stem) : int(chunk.stem) + len(rows)] = rows
    whole.flush()
    del whole
    with open(work / "ids", "wb") as file:
        np.save(file, ids)
    (work / "ids").replace(out.with_suffix(".ids.npy"))
    part.replace(out)


def read_embedding(folder: Path, name: str | None) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """What made some vectors, with their `name`; ids `(n,)` and mapped vectors `(n, D)` of all stored tiles.

    Raises:
        CorpusError: There are no such vectors, or they are of other tiles.
    """
    there = sorted(file.stem for file in (folder / "embeddings").glob("*.json"))
    if name is None and len(there) == 1:
        name = there[0]
    if name not in there:
        offered = f"it has {', '.join(there)}: say which with --embedding" if there else "run geomim corpus embed first"
        raise CorpusError(f"'{folder}' has no embedding{f' {name!r}' if name else ' that was named'}; {offered}")
    card = {**_read_json(folder / "embeddings" / f"{name}.json"), "name": name}
    if card["tiles"] != _digest(stored(Corpus.open(folder))):
        raise CorpusError(f"'{folder}' has other tiles than when '{name}' was embedded: run geomim corpus embed again")
    ids = np.load(folder / "embeddings" / f"{name}.ids.npy")
    return card, ids, np.load(folder / "embeddings" / f"{name}.npy", mmap_mode="r")
