"""`geomim search`: the tiles of a corpus, or patches of a scene, that a sentence or an example is nearest to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
import shapely
from rich.console import Console
from rich.progress import Progress

from geomim.corpus.report.pictures import composite, display_limits
from geomim.corpus.scenes.files import is_same
from geomim.corpus.store import Corpus
from geomim.errors import CheckpointError, ConfigError, CorpusError, InputError
from geomim.maps.embeddings.likeness import example, write_cosines
from geomim.maps.embeddings.patches import ENDINGS, open_patches
from geomim.maps.files.pictures import check_picture
from geomim.maps.files.rasters import aside, check_endings
from geomim.maps.query import PROMPT, sentences_as_vectors, words
from geomim.models.clip import SOURCES
from geomim.models.image_text import open_image_text
from geomim.sheets import ACROSS, contact_sheet
from geomim.verbs.stored_vectors import TileVectors, open_vectors

_ROWS = 50  # of tiles that one picture can show
_PICTURE = "search.png"
_COLUMNS = ("asked", "rank", "score", "tile", "source")  # an `id` would be that of GeoJSON's features


@dataclass(frozen=True)
class Question:
    """Sentences that vectors are compared with.

    Attributes:
        source: Where the vectors are.
        sentences: What is asked; None of an example.
        model: The model of images and text, where it is no longer where it was.
        quickgelu: Its activation, where its file does not tell.
    """

    source: str
    sentences: Sequence[str] | None
    model: str | None
    quickgelu: bool | None

    def vectors(self, card: Mapping[str, Any]) -> np.ndarray:
        """`(n, D)` by the model that made the stored vectors.

        Raises:
            CorpusError: No sentence can be compared with them.
            CheckpointError: The model is another, or not there.
        """
        if not card.get("joint"):
            raise CorpusError(
                f"the vectors '{card['name']}' are those of the encoder '{card['checkpoint']}', which no sentence can "
                f"be compared with: run {self._remedy(card, 'MODEL')}, with a model of images and text"
            )
        source, quickgelu = self.model or card["checkpoint"], self.quickgelu
        if quickgelu is None and source.startswith(SOURCES):
            quickgelu = card.get("quickgelu")
        try:
            read = open_image_text(source, quickgelu)
        except CheckpointError as error:
            raise (
                error if self.model else CheckpointError(f"{error}; name the model of '{card['name']}' with --model")
            ) from error
        if read.fingerprint != card["encoder"]:
            raise CheckpointError(
                f"the vectors '{card['name']}' were made by '{card['checkpoint']}' ({card['encoder']}), the "
                f"text's would be by '{source}' ({read.fingerprint}), and two models' do not compare: run "
                f"{self._remedy(card, source)}, or give the first with --model"
            )
        return sentences_as_vectors(read, self.sentences or ()).float().numpy()

    def _remedy(self, card: Mapping[str, Any], model: str) -> str:
        if "source" in card:
            return f"geomim embed {card['source']} --model {model} --joint --out {self.source}"
        return f"geomim corpus embed {self.source} {model} --joint"


def search(
    source: str,
    text: list[str] | None = None,
    like: int | str | None = None,
    embedding: str | None = None,
    model: str | None = None,
    prompt: str = PROMPT,
    count: int | None = None,
    out: str | None = None,
    places: str | None = None,
    kept_only: bool = True,
    quickgelu: bool | None = None,
) -> Path | None:
    """Find what texts, or an example, are nearest to, by the cosine of stored vectors: tiles, or patches of a scene.

    No pixel is encoded. Vectors that texts are compared with are made with `--joint`; examples may be compared by any
    encoder's. Scores rank tiles or patches for one text; how high they are differs from text to text.

    Of a corpus, or of a file of its tiles' vectors, the answer is a list and a picture, where the corpus is at hand; of
    vectors of patches it is a raster of cosines with a band a text.

    Examples:
        geomim corpus embed my_corpus last.ckpt --joint
        geomim search my_corpus --text "oil tanks" --text river
        geomim search tiles.parquet --like 1234 --count 24 --out alike.png --places alike.geojson
        geomim search patches.tif --like 500032,3999968 --out alike.tif

    Args:
        source: Folder of a corpus with vectors of `geomim corpus embed`; or a file of `geomim embed`: `.parquet` of
            tiles, `.tif` or `.zarr` of patches.
        text: What to look for, one or more: `--text "oil tanks" --text river`, or with commas between.
        like: Id of a tile, of which others are sought that look alike; it comes first. Of patches `X,Y`, a place in the
            raster's CRS, or longitude,latitude.
        embedding: Name of a corpus's vectors; may be left out where there is one.
        model: The model of images and text that made the vectors, where it is no longer where it was.
        prompt: The sentence that each text is put into at `{}`; `{}` alone leaves them as they are.
        count: Tiles for each text; up to 300 of one text, fewer of several; 12 where not given.
        out: Of tiles a picture of those found, with ids, scores and coordinates, `.png`; of patches a raster, `.tif`.
            `search.png` or `search.tif` where not given.
        places: Of tiles, their outlines too, as GeoJSON or GeoParquet: `.geojson` or `.parquet`.
        kept_only: Of tiles, leave out those that training does not read.
        quickgelu: Activation of a CLIP model, which its file does not tell; as the vectors were made where not given.

    Returns:
        The picture or raster; None where the corpus of a file of vectors is not at hand. What is found of tiles is
        printed, too.

    Raises:
        ConfigError: Arguments do not fit together.
        CorpusError: There are no such vectors, they are of other tiles, or no text can be compared with them.
        CheckpointError: The text would be another model's than the vectors.
        InputError: There is no such tile or patch, or it has no vector.
    """
    if (text is None) == (like is None):
        raise ConfigError('search: give what to look for as --text "oil tanks", or as --like with a tile\'s id')
    titles = (f"like {like}",) if text is None else words("text", text)
    if like is not None and (model or quickgelu is not None or prompt != PROMPT):
        raise ConfigError("--model, --quickgelu and --prompt are of --text: leave them out with --like")
    if "{}" not in prompt:
        raise ConfigError(f"--prompt: expected {{}} where a text stands, as '{PROMPT}'; given '{prompt}'")
    sentences = None if text is None else [prompt.replace("{}", one) for one in titles]
    asked = Question(source, sentences, model, quickgelu)
    if source.lower().endswith(ENDINGS):
        if embedding or count is not None or places or not kept_only:
            raise ConfigError("--embedding, --count, --places and --kept_only are of tiles: leave them out of patches")
        check_endings(out=(out := out or "search.tif", ".tif", ".tiff"))
        if is_same(out, source):
            raise ConfigError(f"--out would be written over the vectors '{out}': name another file")
        with open_patches(source) as patches:
            vectors = example(patches, str(like)) if sentences is None else asked.vectors(patches.card)
            write_cosines(patches, vectors, titles, Path(out))
        print(f"wrote {out}")
        return Path(out)
    if like is not None and not str(like).isdecimal():
        raise ConfigError(f"--like: expected the id of a tile, a whole number; given '{like}'")
    count = 12 if count is None else count
    _check(len(titles), count, out, places)
    corpus, vectors = open_vectors(source, embedding)
    if corpus is None and out:
        raise CorpusError(
            f"--out {out}: '{vectors.card['source']}', whose pixels '{source}' is of, is not at hand or has changed: "
            "leave --out out, the tiles found are printed and written to --places"
        )
    if corpus:
        check_picture("--out", Path(out or _PICTURE))
    number = None if like is None else int(like)
    found, scores = _nearest_of(vectors, asked, number, count, kept_only)
    return _show(corpus, vectors, titles, (found, scores), Path(out or _PICTURE), places and Path(places))


def _nearest_of(
    vectors: TileVectors, asked: Question, like: int | None, count: int, kept_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and cosines of the tiles nearest to what is asked, `(n, count)` each."""
    if like is None:
        wanted = asked.vectors(vectors.card)
    else:
        own = vectors.of(like) if like < 2**63 else None  # as ids are kept
        if own is None:
            raise InputError(
                f"'{asked.source}' has no tile {like} with a vector; ids are those of its catalogue and pictures"
            )
        wanted = own[None]

    def some() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"comparing {len(vectors)} tiles", total=len(vectors))
            for ids, kept, block in vectors.blocks():
                chosen = (ids != like) & (kept | (not kept_only))
                yield ids[chosen], block[chosen]
                bar.advance(task, len(ids))

    found, scores = nearest(some(), wanted, count - (like is not None))
    if not found.size and like is None:
        which = "that training reads: --kept_only false searches the others" if kept_only else "with a vector"
        raise InputError(f"'{asked.source}' has no tile {which}")
    if like is not None:  # the tile itself comes first, whatever else looks the same
        found, scores = np.insert(found, 0, like, 1), np.insert(scores, 0, 1, 1)
    return found, scores


def _check(texts: int, count: int, out: str | None, places: str | None) -> None:
    most = _ROWS // texts * ACROSS
    if not 1 <= count <= most:
        raise ConfigError(
            f"a picture has up to {_ROWS} rows of {ACROSS} tiles, and a text its own: expected at most {_ROWS} texts, "
            f"and --count of 1 to {most} for {texts}; given {count}"
        )
    check_endings(out=(out, ".png"), places=(places, ".geojson", ".parquet"))
    if places and Path(places).exists():
        if not _is_places(Path(places)):
            raise InputError(f"'{places}' is there and holds no tiles that a search found: name another with --places")
        print(f"note: '{places}' is there already: it is replaced")


def _is_places(path: Path) -> bool:
    """Whether a file has the columns that `_write_places` writes, and no others."""
    try:
        if path.suffix.lower() == ".parquet":
            return {*pq.read_schema(path).names} == {*_COLUMNS, "geometry"}
        return {*pyogrio.read_info(path)["fields"]} == {*_COLUMNS}
    except (OSError, pa.ArrowException, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return False


def nearest(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], asked: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of highest cosine to each of some, the highest first, the earlier of equals.

    Args:
        blocks: Ids `(n,)` and their vectors `(n, D)`; one of them is in memory at a time.
        asked: `(Q, D)`.
        count: How many; fewer where there are not as many.

    Returns:
        Ids `(Q, count)` and their cosines, float32.
    """
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True).clip(1e-12)
    best = np.empty((len(asked), 0), np.float32)
    where = np.empty((len(asked), 0), np.int64)
    for ids, block in blocks:
        cosines = asked @ (block / np.linalg.norm(block, axis=1, keepdims=True).clip(1e-12)).T
        best = np.concatenate([best, cosines.astype(np.float32)], 1)
        where = np.concatenate([where, np.broadcast_to(ids, cosines.shape)], 1)
        first = np.argsort(-best, 1, kind="stable")[:, :count]
        best, where = np.take_along_axis(best, first, 1), np.take_along_axis(where, first, 1)
    return where, best


def _show(
    corpus: Corpus | None,
    vectors: TileVectors,
    titles: Sequence[str],
    answers: tuple[np.ndarray, np.ndarray],
    out: Path,
    places: Path | None,
) -> Path | None:
    """Print, draw and write what was found; the picture, where the corpus is at hand."""
    tiles, pictures = _described(corpus, vectors, np.unique(answers[0]))
    groups, rows = [], []
    for title, found, cosines in zip(titles, *(part.tolist() for part in answers), strict=True):
        print(title)
        shown = []
        for rank, (number, cosine) in enumerate(zip(found, cosines, strict=True), 1):
            tile = tiles[number]
            outline = tile["geometry"] and shapely.from_wkb(tile["geometry"])
            where = _coordinates(outline)
            print(f"  {rank:3}  {cosine:6.3f}  tile {number}  {where}  {Path(tile['source']).name}")
            shown.append((pictures.get(number), f"{number}: {cosine:.3f}\n{where}"))
            rows.append((title, rank, cosine, number, tile["source"], outline))
        groups.append((title, shown))
    if corpus:
        contact_sheet(out, groups)
        print(f"wrote {out}")
    else:
        print(f"note: the corpus '{vectors.card['source']}' is not at hand, or has changed: there is no picture")
    if places:
        _write_places(places, rows)
    return out if corpus else None


def _described(
    corpus: Corpus | None, vectors: TileVectors, ids: np.ndarray
) -> tuple[dict[int, dict[str, Any]], dict[int, np.ndarray]]:
    """What is known of some tiles, and their pictures where there is a corpus, by their ids."""
    tiles = {row["id"]: row for row in vectors.rows(ids)}
    if corpus is None:
        return tiles, {}
    where = corpus.table(["id", "size", "slot"], where=pc.field("id").isin(pa.array(ids)))
    pixels = {tile["id"]: _read(corpus, tile) for tile in where.to_pylist()}
    numbers, valid = (
        np.concatenate([one[part].reshape(*one[part].shape[:-2], 1, -1) for one in pixels.values()], -1)
        for part in (0, 1)
    )
    limits = display_limits(numbers[None], valid[None]) if valid.any() else None
    return tiles, {number: composite(some, corpus.sensor, seen, limits) for number, (some, seen) in pixels.items()}


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
    columns = {name: [row[place] for row in rows] for place, name in enumerate(_COLUMNS)}
    frame = gpd.GeoDataFrame(columns, geometry=[row[-1] or None for row in rows], crs="OGC:CRS84")
    if missing := int(frame.geometry.isna().sum()):
        print(f"note: {missing} of {len(frame)} tiles have no place on Earth: they have no outline in {path}")
    with aside(path) as part:
        if path.suffix.lower() == ".parquet":
            frame.to_parquet(part)
        else:
            frame.to_file(part, driver="GeoJSON", engine="pyogrio")
    print(f"wrote {path}")
