"""The corpus on disk: tiles in zarr shards beside a GeoParquet catalogue.

Reading needs numpy, pyarrow and zarr only: a machine that trains needs no geo stack.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.reader import TileArray
from geomim.corpus.remote import Place, Url, aside, place
from geomim.errors import ConfigError, CorpusError
from geomim.sensors import BandContract, Sensor

if TYPE_CHECKING:
    import pyarrow.dataset as ds

FORMAT_VERSION = 1
"""Version of the folder's layout; a corpus of a newer one is refused."""

IGNORE = 255
"""Value of a mask pixel that has no class."""

_BOX = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
_OBJECT = pa.struct([("polygon", pa.list_(pa.float64())), ("label", pa.string())])

CATALOGUE = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("slot", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("col", pa.int64()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("transform", pa.list_(pa.float64())),
        pa.field("epsg", pa.int32()),
        pa.field("crs_wkt", pa.string()),
        pa.field("geometry", pa.binary()),
        pa.field("bbox", _BOX),
        pa.field("time", pa.timestamp("us")),
        pa.field("gsd", pa.float64()),
        pa.field("sensor", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("attribution", pa.string()),
        pa.field("non_commercial", pa.bool_()),
        pa.field("xxh3", pa.string()),
        pa.field("phash", pa.int64()),
        pa.field("valid_fraction", pa.float64()),
        pa.field("cloud_fraction", pa.float64()),
        pa.field("saturated_fraction", pa.float64()),
        pa.field("information", pa.float64()),
        pa.field("low_information", pa.bool_()),
        pa.field("split", pa.string()),
        pa.field("label", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("caption_origins", pa.list_(pa.string())),
        pa.field("boxes", pa.list_(_OBJECT)),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.int64()),
        pa.field("cluster", pa.int64()),
    ]
)
"""A row a tile. `slot` is its place in the arrays of its `size`, -1 where the pixels were not kept; `geometry` is the
footprint as WKB in CRS84 (longitude, latitude) and null without georeference; `time` is UTC; `row` and `col` are the
pixel offset in the source; `dataset` is the card or the name that the source came under; `phash` holds 64 unsigned
bits; `caption_origins` says of each caption where it comes from (`human`, `b2c`, `m2b`, `landcover`, `index`, `vector`,
the name of an imported file), and is null where all are `human`; fractions are shares of the tile's pixels, null where
nothing is known; a box is a polygon `x1, y1, ..., x4, y4` in pixels of the tile. A corpus of an earlier release lacks
some columns: they read as null."""

SKIPPED = pa.schema([pa.field("source", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)])
"""A row a source that could not be used, with one sentence why."""


def holds_corpus(path: Place) -> bool:
    """Whether a folder is a corpus, finished or not; `Corpus.open` says which."""
    return any(path.joinpath(name).is_file() for name in ("corpus.json", "work/recipe.json", "work/deleting"))


def _unfinished(path: Place) -> str:
    """What was stopped half-way in a folder, and the command that finishes it; "" where nothing was."""
    if isinstance(path, Url):
        return ""  # `publish` sends nothing unfinished
    if (path / "work").is_dir():
        file = path / "work" / "recipe.json"
        recipe = json.loads(file.read_text()) if file.is_file() else {}
        told = f" with its arguments, which '{file}' holds" if recipe else ""
        return f"is an unfinished corpus: run its `geomim corpus {recipe.get('verb', 'build')}` again{told}"
    if (path / "next").is_dir():
        return f"was being changed when that was stopped: `geomim corpus decide {shlex.quote(str(path))}` finishes it"
    return ""


def _provenance(name: str, meta: dict[str, Any]) -> str:
    audit = f"audit against benchmarks {meta['audit']}" if meta.get("audit") else "not audited against any benchmark"
    return f"{name}, lock {meta['lock']}, {audit}"


class Corpus:
    """A corpus folder, opened for reading.

    Attributes:
        path: The folder; a `Url` where it is in a remote store.
        contract: Bands, statistics and licences, as they travel into a checkpoint.
        sensor: Bands in channel order.
        sizes: Tile sizes in pixels that it holds.
        classes: Class names; a tile's label is a place in this list.
        meta: All of `corpus.json`.
    """

    def __init__(self, path: Place, meta: dict[str, Any]) -> None:
        self.path: Any = path
        self.meta = meta
        try:
            self.sensor = Sensor.from_dict(meta["sensor"])
            statistics = meta["statistics"]
            self.contract = BandContract(
                self.sensor,
                tuple(statistics["mean"]),
                tuple(statistics["std"]),
                tuple(meta["licences"]),
                tuple(meta["attributions"]),
                (_provenance(path.name, meta),) if "lock" in meta else (),
            )
            self.sizes: tuple[int, ...] = tuple(sorted(int(size) for size in meta["sizes"]))
            self.classes: list[str] = list(meta["classes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CorpusError(f"'{path / 'corpus.json'}' lacks {error}: build the corpus again") from error

    @property
    def provenance(self) -> dict[str, Any]:
        """What weights that are trained on it say of it, with the benchmarks that its tiles were compared with."""
        kept = ("benchmark", "splits", "tiles", "excluded")
        return {
            "name": self.path.name,
            "tiles": sum(size.get("kept", size["tiles"]) for size in self.meta["sizes"].values()),
            **{checksum: self.meta.get(checksum) for checksum in ("lock", "audit")},
            "benchmarks": [{key: one[key] for key in kept} for one in self.evidence()],
        }

    def evidence(self) -> list[dict[str, Any]]:
        """What `exclude` found, a record a benchmark that the tiles were compared with.

        Raises:
            CorpusError: Something else lies in its place.
        """
        file = self.path.joinpath("audit", "audit.json")
        try:
            found: list[dict[str, Any]] = json.loads(file.read_text())["benchmarks"] if file.is_file() else []
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"'{file}' is not the evidence of the corpus's exclusions: remove it, and exclude again"
            ) from error
        return found

    @classmethod
    def open(cls, path: str | Path | Url) -> Corpus:
        """Open a corpus folder.

        Args:
            path: A folder, or its address in a remote store such as `s3://bucket/corpus`.

        Raises:
            CorpusError: The folder is no corpus, or of a newer format than this geomim reads, or cannot be reached; or
                what makes or changes it was stopped half-way.
        """
        path = place(path)
        file = path / "corpus.json"
        if stopped := _unfinished(path):
            raise CorpusError(f"'{path}' {stopped}")
        if not file.is_file():
            raise CorpusError(f"'{path}' is no corpus (it holds no corpus.json)")
        try:
            meta = json.loads(file.read_text())
            version = int(meta["format_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"'{file}' cannot be read ({error}): build the corpus again") from error
        if version > FORMAT_VERSION:
            raise CorpusError(
                f"'{path}' has corpus format {version}, written by geomim {meta.get('geomim_version', 'unknown')}; "
                f"this geomim reads formats up to {FORMAT_VERSION}: upgrade geomim (pip install -U geomim)"
            )
        return cls(path, meta)

    def table(self, columns: list[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """Read the catalogue, a row a tile in id order.

        Args:
            columns: Some columns of `CATALOGUE`; all where None.
            where: Rows to read, such as `pc.field("kept")`.
        """
        return self.rows().to_table(columns=columns, filter=where)

    def rows(self) -> ds.Dataset:
        """The catalogue as a dataset that is read piece by piece."""
        return _parquet(self.path / "catalogue.parquet", CATALOGUE)

    def skipped(self) -> pa.Table:
        """Sources that could not be used, and why (columns `source`, `reason`)."""
        return _parquet(self.path / "skipped.parquet", SKIPPED).to_table()

    def array(self, name: str, size: int) -> TileArray | None:
        """All stored tiles of `image`, `valid` or `mask` at one size, kept or not; None where there is no such array.

        The first axis is the catalogue's `slot`. A merged corpus has gaps there, which read as fill values.
        """
        folder = self.path.joinpath("tiles.zarr", str(size), name)
        return TileArray(folder) if (folder / "zarr.json").is_file() else None

    def tiles(self, size: int | None = None) -> Tiles:
        """Pixels of the kept tiles of one size.

        Args:
            size: One of `sizes`; may be None where there is only one.

        Raises:
            CorpusError: There is no such size, or there are several and none was asked for.
        """
        offered = ", ".join(map(str, self.sizes))
        if size is None:
            if len(self.sizes) != 1:
                raise CorpusError(f"'{self.path}' holds tiles of several sizes ({offered}): say which")
            size = self.sizes[0]
        if size not in self.sizes:
            raise CorpusError(f"'{self.path}' holds no tiles of {size} pixels; it holds {offered}")
        return Tiles(self, size)


class Tiles:
    """Random access to the kept tiles of one size; picklable, safe to use after a fork.

    A row is a place among the kept tiles in id order, `0 <= row < len(tiles)`.

    Attributes:
        size: Tile edge in pixels.
        slots: `(n,)` int64, place of each row in the stored arrays.
        ids: `(n,)` int64, catalogue id of each row.
        labels: `(n,)` int64, place in the corpus's `classes`, -1 where a tile has none.
        splits: `(n,)` str, `train`, `val` or `test`.
        gsds: `(n,)` float32, metres a pixel of each row, NaN where unknown.
    """

    def __init__(self, corpus: Corpus, size: int) -> None:
        self.size = size
        columns = ["id", "slot", "label", "split", "gsd"]
        table = corpus.table(columns, where=pc.field("kept") & (pc.field("size") == size))
        self.ids: np.ndarray = table["id"].to_numpy()
        self.slots: np.ndarray = table["slot"].to_numpy()
        self.splits: np.ndarray = np.asarray(table["split"].to_pylist(), dtype=str)
        places = pc.index_in(table["label"], value_set=pa.array(corpus.classes, pa.string()))
        self.labels: np.ndarray = pc.fill_null(places, -1).to_numpy().astype(np.int64)
        self.gsds: np.ndarray = table["gsd"].fill_null(corpus.sensor.gsd or np.nan).to_numpy().astype(np.float32)
        image = corpus.array("image", size)
        if image is None:
            raise CorpusError(f"'{corpus.path}' lacks the pixels of its {size} px tiles: build the corpus again")
        self._image = image
        self._valid = corpus.array("valid", size)
        self._mask = corpus.array("mask", size)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def dtype(self) -> np.dtype:
        """Native dtype of the pixels."""
        return self._image.dtype

    @property
    def bands(self) -> int:
        """Number of bands, C."""
        return int(self._image.shape[1])

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Read pixels.

        Args:
            rows: `(B,)` rows, any order.
            out: `(B, C, H, W)` of the native dtype to fill; a new array where None.

        Returns:
            `(B, C, H, W)`, native dtype.

        Raises:
            CorpusError: A shard is damaged.
        """
        return self._image.read(self.slots[np.asarray(rows, np.int64)], out)

    def valid(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read which pixels are measurements.

        Returns:
            `(B, H, W)` bool.
        """
        if self._valid is None:
            return np.ones((len(rows), *self._image.shape[2:]), bool)
        return self._valid.read(self.slots[np.asarray(rows, np.int64)])

    def mask(self, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Read label masks; None where the corpus holds none.

        Returns:
            `(B, H, W)` uint8, places in the corpus's `classes`, 255 where a pixel has no class.
        """
        return None if self._mask is None else self._mask.read(self.slots[np.asarray(rows, np.int64)])


def _parquet(path: Place, schema: pa.Schema) -> ds.Dataset:
    """A Parquet file, here or elsewhere; columns that it lacks are null.

    Raises:
        CorpusError: It is missing or damaged.
    """
    import pyarrow.dataset as ds  # here: it brings pandas

    try:
        files, name = path.files() if isinstance(path, Url) else (None, str(path))
        dataset = ds.dataset(name, schema, format="parquet", filesystem=files)
        for file in dataset.get_fragments():
            file.ensure_complete_metadata()  # says now that it is damaged
        return dataset
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"'{path}' cannot be read ({error}): copy it again or build the corpus again") from error


def check_folder(out: str | Path) -> None:
    """Refuse a file where a folder is to be written.

    Raises:
        ConfigError: It stands there, or in the place of a folder above.
    """
    there = next(one for one in (Path(out), *Path(out).absolute().parents) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out}: expected a folder, there or not; '{there}' is a file")


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it, so that it is whole or not there."""
    with aside(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write JSON aside and rename it; the same values give the same bytes."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file aside and rename it; the same rows give the same bytes."""
    with aside(path) as file:
        pq.write_table(table, file, compression="zstd")


def write_catalogue(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the catalogue, only one of its tables in memory.

    Args:
        path: The file.
        tables: Rows in id order, each table with the columns of `CATALOGUE`; becomes a row group.
    """
    write_geoparquet(path, CATALOGUE, tables)


def write_geoparquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write GeoParquet 1.1 aside, then rename it; only one table is held at a time.

    Args:
        path: The file.
        schema: Its columns; `geometry` and `bbox` are as those of `CATALOGUE`.
        tables: With these columns; each becomes a row group.
    """
    low, high, types = np.full(2, np.inf), np.full(2, -np.inf), set()
    with aside(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema))
            box = pc.drop_null(table["bbox"].combine_chunks())
            if len(box):
                corner = {name: box.field(name).to_numpy(zero_copy_only=False) for name in _BOX.names}
                low = np.minimum(low, [corner["xmin"].min(), corner["ymin"].min()])
                high = np.maximum(high, [corner["xmax"].max(), corner["ymax"].max()])
                types.update(_wkb_types(table["geometry"]))
        geo = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {"geometry": {"encoding": "WKB", "geometry_types": sorted(types)} | _extent(low, high)},
        }
        writer.add_key_value_metadata({"geo": json.dumps(geo)})


def _wkb_types(geometry: pa.ChunkedArray) -> set[str]:
    """Names of the geometry types; bytes 1 to 4 of little-endian WKB are the type."""
    names = {3: "Polygon", 6: "MultiPolygon"}
    codes = pc.unique(pc.binary_slice(pc.drop_null(geometry), 1, 5)).to_pylist()
    return {names[int.from_bytes(code, "little")] for code in codes}


def _extent(low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(low).all():
        return {}
    covering = {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
    return {"bbox": [*low.tolist(), *high.tolist()], "covering": {"bbox": covering}}
