"""`geomim corpus embed`: what an encoder says of every tile, stored beside the corpus."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from geomim.corpus.remote import aside
from geomim.corpus.store import Corpus, write_json
from geomim.errors import CorpusError
from geomim.evaluate.features import Pool, device_of
from geomim.maps.embeddings.vectors import changes
from geomim.verbs.tile_vectors import TileEncoder, Tiles, ask, digest, encoded, read_json, stored


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
    target, console = device_of(device), Console(stderr=True, markup=False, highlight=False)
    tiles = Tiles.of(corpus, sensor)
    asked = ask(checkpoint, tiles.images, image_size, pool, heads, all_bands, joint, quickgelu)
    card = asked.card(tiles)
    out = Path(corpus) / "embeddings" / f"{name or _name(checkpoint)}.npy"
    before = read_json(out.with_suffix(".json")) if out.exists() else None
    if before == card:
        console.print(f"'{out}' is there already", soft_wrap=True)
        return out
    encode = TileEncoder(tiles, asked, target, batch)
    for note in (*asked.notes, *encode.check(), *_replaced(out, before, card)):
        console.print(note, soft_wrap=True)
    with encoded(out, out.with_suffix(".work"), card, tiles.table, encode) as chunks:
        _join(chunks, out, tiles.table["id"].to_numpy())
        write_json(out.with_suffix(".json"), card)
    return out


def _name(checkpoint: str) -> str:
    """What vectors are called after."""
    library, _, model = checkpoint.partition(":")  # whose models differ in any part of their names
    return re.sub(r"[^\w.-]+", "-", model if library in ("timm", "open_clip") else Path(checkpoint).stem)


def _replaced(out: Path, before: dict[str, Any] | None, card: dict[str, Any]) -> list[str]:
    """That vectors are replaced by those of another encoder or of other tiles, in a sentence."""
    if before is None:
        return []
    return [f"'{out}' is replaced ({changes(before, card)}): give --name to keep both"]


def _join(chunks: Sequence[Path], out: Path, ids: np.ndarray) -> None:
    """All chunks in one file; one of them is in memory at a time."""
    out.with_suffix(".json").unlink(missing_ok=True)  # without it the vectors do not count
    with aside(out.with_suffix(".ids.npy")) as file:
        np.save(file, ids)
    width = np.load(chunks[0], mmap_mode="r").shape[1]
    with aside(out) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), width)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.load(chunk).astype("<f4", copy=False).data)


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
    card = {**read_json(folder / "embeddings" / f"{name}.json"), "name": name}
    if card["tiles"] != digest(stored(Corpus.open(folder))):
        raise CorpusError(f"'{folder}' has other tiles than when '{name}' was embedded: run geomim corpus embed again")
    ids = np.load(folder / "embeddings" / f"{name}.ids.npy")
    return card, ids, np.load(folder / "embeddings" / f"{name}.npy", mmap_mode="r")
