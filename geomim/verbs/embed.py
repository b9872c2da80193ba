"""`geomim embed`: what an encoder says of the tiles of a corpus, or of the patches of a scene, as a file for others."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from geomim import __version__
from geomim.addresses import plain
from geomim.corpus.remote import Url
from geomim.corpus.store import holds_corpus
from geomim.errors import ConfigError, CorpusError, InputError
from geomim.evaluate.features import Pool, device_of
from geomim.maps.embeddings.patches import ENDINGS
from geomim.maps.embeddings.scene import GivenScene, embed_scene, joint_encoder, patch_encoder
from geomim.maps.embeddings.vectors import COLUMNS, Dtype, Rounding, TileFile, replaced, write_tiles
from geomim.maps.files.rasters import check_endings
from geomim.verbs.tile_vectors import Asked, TileEncoder, Tiles, ask, check_joint, encoded


def embed(
    source: str,
    model: str,
    out: str,
    dtype: Dtype = "float16",
    joint: bool = False,
    pool: Pool = "mean",
    image_size: int | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    heads: int | None = None,
    all_bands: bool = False,
    quickgelu: bool | None = None,
    device: str = "auto",
) -> Path:
    """Write an encoder's vectors: one a tile of a corpus as GeoParquet, or one a patch of a scene as a raster.

    Stopped and started again, it goes on. Memory is bounded, however large the corpus or the scene is. Every file says
    which encoder made it, and is compared with vectors of no other one.

    Of a corpus all tiles are embedded, kept or not: a row holds id, source, split, kept, time, gsd, footprint and the
    vector as a list of fixed length, which geopandas and DuckDB read. Of a scene a pixel is a patch and has a band for
    each value of the vector; windows of the encoder's size overlap and are blended. A GeoTIFF keeps all values of a
    place together, in blocks of 128 x 128 places; zarr is opened by xarray. Without image a pixel is NaN, or -128 of
    int8.

    int8 keeps a factor for each value of a vector, that of its largest over all tiles or patches: `scale` in the
    metadata, the bands' scale of a GeoTIFF, an array beside the vectors of a zarr. A vector then keeps
    its direction to a cosine of about 0.99999; cosines of pairs change by 0.0003 to 0.0004 on average, and by 0.0026
    at most where it was measured.

    Examples:
        geomim embed my_corpus --model last.ckpt --out tiles.parquet
        geomim embed scene.tif --model last.ckpt --out patches.tif --sensor sentinel2 --dtype int8
        geomim embed scene.tif --model remoteclip:RemoteCLIP-ViT-B-32.pt --joint --out patches.zarr

    Args:
        source: Folder or address of a corpus; or a raster, product or cube.
        model: A geomim checkpoint, an exported folder, a published MAE or SelectiveMAE file; of a corpus also
            `timm:NAME`, any pretrained timm model; with `joint` a model of images and text, as `geomim query` takes it.
        out: `.parquet` of a corpus; `.tif` or `.zarr` of a scene. Vectors there of another source are not replaced.
        dtype: `float16`, or `int8` with its scale: half as large.
        joint: Vectors in the space that a model shares with sentences, where `geomim search --text` finds them.
        pool: Of tiles, the mean of the patch tokens or the class token.
        image_size: Of tiles, side that they are resized to, in pixels; the encoder's own where not given.
        overlap: Of scenes, share of its side that a window has in common with the next, 0 to 0.9; 0.5 where not given.
        batch: Tiles or windows encoded at once; 128 or 16 where not given.
        sensor: Name or YAML file of a sensor that says what the numbers mean.
        bands: Of scenes, names of the file's bands in file order, where it does not name them.
        heads: Attention heads of a published file, which does not state them.
        all_bands: Give an encoder of any sensor all bands, not only those it was trained on.
        quickgelu: With `joint`: activation of a CLIP model, which its file does not tell; as its source says where not
            given.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The file.

    Raises:
        CheckpointError: The model cannot be read.
        BandError: The source lacks bands that it needs.
        ConfigError: Arguments do not fit together, or `out` is of another source.
        CorpusError: The corpus cannot be read, or holds no tiles.
        InputError: The numbers are far from those that it was trained on, or there is no image.
    """
    check_endings(out=(out, ".parquet", *ENDINGS))
    check_joint(joint, pool, heads, quickgelu)
    of_tiles = out.lower().endswith(".parquet")
    if of_tiles and Path(source).is_file():
        raise ConfigError(f"--out {out}: '{source}' is no corpus; patches of a scene are written to .tif or .zarr")
    if not of_tiles and holds_corpus(Path(source)):
        raise ConfigError(f"--out {out}: '{source}' is a corpus, whose tiles are written to .parquet")
    if of_tiles and (bands or overlap is not None):
        raise ConfigError("--bands and --overlap are of scenes: a corpus knows its bands, and its tiles are cut")
    if not of_tiles and (pool != "mean" or image_size is not None):
        raise ConfigError("--pool and --image_size are of tiles: patches are not pooled, at the scene's own resolution")
    if of_tiles:
        tiles = Tiles.of(source, sensor)
        asked = ask(model, tiles.images, image_size, pool, heads, all_bands, joint, quickgelu)
        _embed_tiles(tiles, asked, TileEncoder(tiles, asked, device_of(device), batch or 128), Path(out), dtype)
    else:
        scene = GivenScene(source, sensor, bands, all_bands)
        facts: dict[str, Any] = {"checkpoint": model}
        if joint:
            facts |= {"joint": True} | ({} if quickgelu is None else {"quickgelu": quickgelu})
            looker = joint_encoder(model, scene, quickgelu, device)
        else:
            looker = patch_encoder(model, scene, heads, device)
        embed_scene(scene, looker, facts, Path(out), dtype, 0.5 if overlap is None else overlap, batch or 16)
    return Path(out)


def _embed_tiles(tiles: Tiles, asked: Asked, encode: TileEncoder, out: Path, dtype: Dtype) -> None:
    where = tiles.corpus.path
    card = asked.card(tiles) | {"source": plain(str(where if isinstance(where, Url) else where.resolve()))}
    full = {**card, "dtype": dtype, "decisions": _decisions(tiles)}
    before = _before(out)
    if before and all(before.card.get(key) == value for key, value in full.items()):
        print(f"'{out}' is there already")
        return
    if before and all(before.card.get(key) == full[key] for key in full if key != "decisions"):
        print(f"note: the corpus has decided anew which tiles it keeps: '{out}' is written again with its vectors")
        _write(out, full, tiles, before.kept(), before.rounding)
        return
    for note in (*asked.notes, *encode.check(), *replaced(out, full, before and before.card)):
        print(f"note: {note}")
    work = out.with_name(f".{out.name}.work")
    with encoded(out, work, card, tiles.table, encode, np.float16) as files:
        rounding = Rounding.of(dtype, map(np.load, files))
        _write(out, full, tiles, (rounding.keep(np.load(file).astype(np.float32)) for file in files), rounding)


def _before(out: Path) -> TileFile | None:
    """The vectors that are there."""
    if not out.exists():
        return None
    try:
        return TileFile(out)
    except InputError as error:
        raise ConfigError(f"--out '{out}' is there, and holds no vectors of tiles: name another file") from error


def _decisions(tiles: Tiles) -> str:
    """Changes where the corpus keeps other tiles, or divides them otherwise."""
    found = xxhash.xxh3_64()
    for batch in tiles.corpus.rows().to_batches(columns=["kept", "split"], filter=pc.field("slot") >= 0):
        split = pc.fill_null(pc.index_in(batch["split"], value_set=pa.array(["train", "val", "test"])), 3)
        found.update((split.to_numpy() * 2 + batch["kept"].to_numpy(zero_copy_only=False)).astype(np.uint8).data)
    return found.hexdigest()


def _write(out: Path, card: Mapping[str, Any], tiles: Tiles, vectors: Iterator[np.ndarray], rounding: Rounding) -> None:
    ids, sizes = tiles.table["id"], tiles.table["size"].to_numpy()

    def parts(first: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
        start = 0
        for some in itertools.chain([first], vectors):
            numbers = ids.slice(start, len(some)).to_numpy()
            where = (pc.field("id") >= numbers[0]) & (pc.field("id") <= numbers[-1]) & (pc.field("slot") >= 0)
            rows = tiles.corpus.table(list(COLUMNS), where=where)
            if not np.array_equal(rows["id"].to_numpy(), numbers):
                raise CorpusError(f"'{tiles.corpus.path}' was changed while it was embedded: run it again")
            yield rows, some
            start += len(some)
        if start != len(ids):
            raise CorpusError(f"{start} of {len(ids)} tiles of '{tiles.corpus.path}' have a vector: run it again")

    first = next(vectors)
    usual = int(np.bincount(sizes).argmax())
    write_tiles(out, {**card, "geomim_version": __version__}, parts(first), first.shape[1], rounding, usual)
    print(f"wrote {out}: {len(ids)} tiles, {first.shape[1]} values each, {rounding.dtype}")
