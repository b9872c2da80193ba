"""`geomim search`: the tiles of a corpus that a sentence, or a tile, is nearest to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from rich.console import Console
from rich.progress import track

from geomim.corpus.report.pictures import composite, display_limits
from geomim.corpus.store import Corpus
from geomim.errors import CheckpointError, ConfigError, CorpusError, InputError
from geomim.maps.pictures import ACROSS, contact_sheet
from geomim.maps.query import PROMPT, sentences_as_vectors, words
from geomim.maps.rasters import aside, check_endings
from geomim.models.clip import SOURCES
from geomim.models.image_text import open_image_text
from geomim.verbs.embed import read_embedding

_BLOCK = 2**15  # vectors in memory at a time
_ROWS = 50  # of tiles that one picture can show


def search(
    corpus: str,
    text: list[str] | None = None,
    like: int | None = None,
    embedding: str | None = None,
    model: str | None = None,
    prompt: str = PROMPT,
    count: int = 12,
    out: str = "search.png",
    places: str | None = None,
    kept_only: bool = True,
    quickgelu: bool | None = None,
) -> Path:
    """Find the tiles of a corpus that texts, or a tile, are nearest to, by the cosine of stored vectors.

    No pixel is encoded. Vectors that texts are compared with are those of `geomim corpus embed CORPUS MODEL --joint`;
    tiles may be compared by any encoder's. Scores rank tiles for one text; how high they are differs from text to text.

    Examples:
        geomim corpus embed my_corpus last.ckpt --joint
        geomim search my_corpus --text "oil tanks" --text river
        geomim search my_corpus --like 1234 --count 24 --out alike.png --places alike.geojson

    Args:
        corpus: Folder of the corpus.
        text: What to look for, one or more: `--text "oil tanks" --text river`, or with commas between.
        like: Id of a tile, of which others are sought that look alike; it comes first.
        embedding: Name of the vectors; may be left out where there is one.
        model: The model of images and text that made the vectors, where it is no longer where it was.
        prompt: The sentence that each text is put into at `{}`; `{}` alone leaves them as they are.
        count: Tiles for each text; up to 300 of one text, fewer of several.
        out: Picture of the tiles found, with ids, scores and coordinates, `.png`.
        places: Their outlines too, as GeoJSON or GeoParquet: `.geojson` or `.parquet`.
        kept_only: Leave out the tiles that training does not read.
        quickgelu: Activation of a CLIP model, which its file does not tell; as the vectors were made where not given.

    Returns:
        The picture; what it shows is printed, too.

    Raises:
        ConfigError: Arguments do not fit together.
        CorpusError: There are no such vectors, they are of other tiles, or no text can be compared with them.
        CheckpointError: The text would be another model's than the vectors.
        InputError: There is no such tile, or it has no vector.
    """
    if (text is None) == (like is None):
        raise ConfigError('search: give what to look for as --text "oil tanks", or as --like with a tile\'s id')
    titles = (f"like tile {like}",) if text is None else words("text", text)
    _check(len(titles), like, model, quickgelu, prompt, count, out, places)
    opened = Corpus.open(corpus)
    card, ids, vectors = read_embedding(Path(corpus), embedding)
    if text is None:
        row = int(np.searchsorted(ids, like))
        if row == len(ids) or ids[row] != like:
            raise InputError(
                f"'{corpus}' has no tile {like} with a vector; ids are those of its catalogue and pictures"
            )
        asked = np.asarray(vectors[row : row + 1], np.float32)
    else:
        asked = _sentences(card, model, quickgelu, [prompt.replace("{}", one) for one in titles], corpus)
    rows = np.flatnonzero(ids != like)
    if kept_only:
        kept = opened.table(["id"], where=pc.field("kept") & (pc.field("slot") >= 0))["id"].to_numpy()
        rows = rows[np.isin(ids[rows], kept)]
    found, scores = nearest(vectors, asked, rows, min(count - (text is None), len(rows)))
    if text is None:  # the tile itself comes first, whatever else looks the same
        found, scores = np.insert(found, 0, row, 1), np.insert(scores, 0, 1, 1)
    _show(opened, titles, ids[found], scores, Path(out), places and Path(places))
    return Path(out)


def _check(
    texts: int,
    like: int | None,
    model: str | None,
    quickgelu: bool | None,
    prompt: str,
    count: int,
    out: str,
    places: str | None,
) -> None:
    if like is not None and (model or quickgelu is not None or prompt != PROMPT):
        raise ConfigError("--model, --quickgelu and --prompt are of --text: leave them out with --like")
    if "{}" not in prompt:
        raise ConfigError(f"--prompt: expected {{}} where a text stands, as '{PROMPT}'; given '{prompt}'")
    most = _ROWS // texts * ACROSS
    if not 1 <= count <= most:
        raise ConfigError(
            f"a picture has up to {_ROWS} rows of {ACROSS} tiles, and a text its own: expected at most {_ROWS} texts, "
            f"and --count of 1 to {most} for {texts}; given {count}"
        )
    check_endings(out=(out, ".png"), places=(places, ".geojson", ".parquet"))


def _sentences(
    card: dict[str, Any], model: str | None, quickgelu: bool | None, sentences: Sequence[str], corpus: str
) -> np.ndarray:
    """Vectors `(n, D)` of sentences by the model that made the tiles', or a refusal that names both."""
    if not card.get("joint"):
        raise CorpusError(
            f"the vectors '{card['name']}' are those of the encoder '{card['checkpoint']}', which no sentence can be "
            f"compared with: run geomim corpus embed {corpus} MODEL --joint, with a model of images and text"
        )
    source = model or card["checkpoint"]
    if quickgelu is None and source.startswith(SOURCES):
        quickgelu = card.get("quickgelu")
    try:
        read = open_image_text(source, quickgelu)
    except CheckpointError as error:
        raise (
            error if model else CheckpointError(f"{error}; name the model of '{card['name']}' with --model")
        ) from error
    if read.fingerprint != card["encoder"]:
        raise CheckpointError(
            f"the tiles' vectors '{card['name']}' were made by '{card['checkpoint']}' ({card['encoder']}), the text's "
            f"would be by '{source}' ({read.fingerprint}), and two models' do not compare: run geomim corpus embed "
            f"{corpus} {source} --joint, or give the first with --model"
        )
    return sentences_as_vectors(read, sentences).float().numpy()


def nearest(vectors: np.ndarray, asked: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of highest cosine to each of some, the highest first, the earlier of equals.

    Args:
        vectors: `(n, D)`, may be mapped from disk: a block of them is in memory at a time.
        asked: `(Q, D)`.
        rows: `(m,)` rising, those of `vectors` to look at.
        count: How many, at most m.

    Returns:
        Rows `(Q, count)` and their cosines, float32.
    """
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True).clip(1e-12)
    best = np.empty((len(asked), 0), np.float32)
    where = np.empty((len(asked), 0), np.int64)
    console = Console(stderr=True)
    for start in track(range(0, len(rows), _BLOCK), f"comparing {len(rows)} tiles", console=console, transient=True):
        some = rows[start : start + _BLOCK]
        block = np.asarray(vectors[some], np.float32)
        cosines = asked @ (block / np.linalg.norm(block, axis=1, keepdims=True).clip(1e-12)).T
        best = np.concatenate([best, cosines.astype(np.float32)], 1)
        where = np.concatenate([where, np.broadcast_to(some, cosines.shape)], 1)
        first = np.argsort(-best, 1, kind="stable")[:, :count]
        best, where = np.take_along_axis(best, first, 1), np.take_along_axis(where, first, 1)
    return where, best


def _show(
    corpus: Corpus, titles: Sequence[str], ids: np.ndarray, scores: np.ndarray, out: Path, places: Path | None
) -> None:
    columns = ["id", "size", "slot", "source", "geometry"]
    table = corpus.table(columns, where=pc.field("id").isin(pa.array(np.unique(ids))))
    tiles = {row["id"]: row for row in table.to_pylist()}
    pixels = {number: _read(corpus, row) for number, row in tiles.items()}
    numbers, valid = (
        np.concatenate([one[part].reshape(*one[part].shape[:-2], 1, -1) for one in pixels.values()], -1)
        for part in (0, 1)
    )
    limits = display_limits(numbers[None], valid[None]) if valid.any() else None
    groups, rows = [], []
    for title, found, cosines in zip(titles, ids.tolist(), scores.tolist(), strict=True):
        print(title)
        pictures = []
        for rank, (number, cosine) in enumerate(zip(found, cosines, strict=True), 1):
            tile = tiles[number]
            outline = tile["geometry"] and shapely.from_wkb(tile["geometry"])
            where = _coordinates(outline)
            print(f"  {rank:3}  {cosine:6.3f}  tile {number}  {where}  {Path(tile['source']).name}")
            picture = composite(pixels[number][0], corpus.sensor, pixels[number][1], limits)
            pictures.append((picture, f"{number}: {cosine:.3f}\n{where}"))
            rows.append((title, rank, cosine, number, tile["source"], outline))
        groups.append((title, pictures))
    contact_sheet(out, groups)
    print(f"wrote {out}")
    if places:
        _write_places(places, rows)


def _read(corpus: Corpus, tile: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    image, valid = corpus.array("image", tile["size"]), corpus.array("valid", tile["size"])
    if image is None:
        raise CorpusError(f"'{corpus.path}' lacks the pixels of its {tile['size']} px tiles: build the corpus again")
    pixels = image.read([tile["slot"]])[0]
    return pixels, np.ones(pixels.shape[1:], bool) if valid is None else valid.read([tile["slot"]])[0].astype(bool)


def _coordinates(outline: Any) -> str:
    if not outline:
        return "no place"
    point = outline.point_on_surface()  # the middle of what crosses the date line would be on the other side
    return f"{abs(point.y):.4f} {'NS'[point.y < 0]} {abs(point.x):.4f} {'EW'[point.x < 0]}"


def _write_places(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    names = ("asked", "rank", "score", "tile", "source")  # an `id` would be that of GeoJSON's features
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    frame = gpd.GeoDataFrame(columns, geometry=[row[-1] or None for row in rows], crs="OGC:CRS84")
    if missing := int(frame.geometry.isna().sum()):
        print(f"note: {missing} of {len(frame)} tiles have no place on Earth: they have no outline in {path}")
    with aside(path) as part:
        if path.suffix.lower() == ".parquet":
            frame.to_parquet(part)
        else:
            frame.to_file(part, driver="GeoJSON", engine="pyogrio")
    print(f"wrote {path}")
