"""Vectors that an encoder gave, as files for others: how they are rounded, what made them, and those of tiles.

The attributes follow the `geoemb:` convention of zarr groups (geo-embeddings/embeddings-zarr-convention, v1), in files
of every kind; what it has no word for stands in `geomim`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim import __version__
from geomim.corpus.store import CATALOGUE, write_geoparquet
from geomim.errors import ConfigError, InputError

Dtype = Literal["float16", "int8"]
"""How vectors are kept. int8 has a factor a dimension, that of its largest value among all vectors: then a vector keeps
its direction to a cosine of about 0.99999. A factor a vector is twice as far off, and a hundred times where a few
dimensions are much larger than others, as those of trained transformers are."""

FORMAT_VERSION = 1
NODATA = -128
"""Of int8, which no value of a vector is."""

COLUMNS = ("id", "source", "split", "kept", "time", "gsd", "geometry", "bbox")
"""What a file of tiles says of each beside its vector."""

CONVENTION = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


@dataclass(frozen=True)
class Rounding:
    """How vectors are kept, and taken up again.

    Attributes:
        dtype: Of the values that are kept.
        scale: `(D,)` float32, what kept values of int8 are multiplied by; None of float16.
    """

    dtype: Dtype
    scale: np.ndarray | None = None

    @classmethod
    def of(cls, dtype: Dtype, parts: Iterable[np.ndarray]) -> Rounding:
        """For vectors `(n, D)`, which are given in parts and read where int8 asks for their largest values."""
        if dtype == "float16":
            return cls(dtype)
        largest: Any = 0.0
        for part in parts:
            largest = np.maximum(largest, np.fmax.reduce(np.abs(part.astype(np.float32)), 0))
        return cls(dtype, np.maximum(np.nan_to_num(largest), 1e-12).astype(np.float32) / np.float32(127))

    def keep(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `(n, D)` as they are kept; NaN is nodata.

        Raises:
            InputError: float16 cannot hold them.
        """
        if self.scale is None:
            with np.errstate(over="ignore"):
                kept = vectors.astype(np.float16)
            if np.isinf(kept).any():
                raise InputError(
                    f"the encoder gives values of {np.nanmax(np.abs(vectors)):.3g}: float16 ends at 65,504"
                )
            return kept
        return np.where(np.isnan(vectors), NODATA, np.rint(vectors / self.scale)).astype(np.int8)

    def restore(self, kept: np.ndarray) -> np.ndarray:
        """Kept values `(n, D)` as float32; nodata is NaN."""
        if self.scale is None:
            return kept.astype(np.float32)
        return np.where(kept == NODATA, np.float32(np.nan), kept * self.scale)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"dtype": self.dtype, "scale": None if self.scale is None else self.scale.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rounding:
        """What `to_dict` gave; other keys are passed over."""
        scale = values.get("scale")
        return cls(values["dtype"], None if scale is None else np.asarray(scale, np.float32))


def described(card: Mapping[str, Any], width: int, rounding: Rounding, layout: dict[str, Any]) -> dict[str, Any]:
    """Attributes of embeddings: those of the convention, and all of the card as `geomim`.

    Args:
        card: What made the vectors: `checkpoint` and `source` are in it.
        width: Values a vector.
        rounding: How they are kept.
        layout: The convention's `chip_layout`.
    """
    said = {
        "zarr_conventions": [CONVENTION],
        "geoemb:type": "chip",
        "geoemb:dimensions": width,
        "geoemb:model": _uri(card["checkpoint"]),
        "geoemb:source_data": [_uri(card["source"])],
        "geoemb:data_type": rounding.dtype,
        "geoemb:chip_layout": layout,
        "geoemb:build_version": f"geomim {__version__}",
    }
    if rounding.scale is not None:
        quantised = {"method": "per_dimension_scale", "original_dtype": "float32", "quantized_dtype": "int8"}
        said["geoemb:quantization"] = quantised
    return said | {"geomim": {"format_version": FORMAT_VERSION, **card, **rounding.to_dict()}}


def _uri(name: str) -> str:
    """A file as an address; anything else, such as `timm:NAME`, as it is."""
    return Path(name).resolve().as_uri() if Path(name).exists() else name


def told_card(said: object, path: object) -> dict[str, Any]:
    """The card of embeddings out of their attributes.

    Raises:
        InputError: There is none, or it is of a newer format.
    """
    card = said.get("geomim") if isinstance(said, Mapping) else None
    if not isinstance(card, Mapping) or not {"format_version", "encoder", "dtype"} <= {*card}:
        raise InputError(f"'{path}' holds no vectors: expected a file that `geomim embed` wrote")
    if card["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format {card['format_version']}; this geomim reads up to {FORMAT_VERSION}: upgrade geomim"
        )
    return {**card}


def replaced(out: str | Path, card: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """That vectors that are there give way to those of another encoder, in a sentence.

    Args:
        out: Where they are.
        card: What is to be written.
        before: The card of what is there; None where nothing is.

    Raises:
        ConfigError: They are of another corpus or scene.
    """
    if before is None:
        return []
    if before.get("source") != card["source"]:
        raise ConfigError(
            f"--out '{out}' holds vectors of '{before.get('source')}', not of '{card['source']}': name another file"
        )
    return [f"'{out}' is replaced ({changes(before, card)})"]


def changes(before: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """What differs between two cards, in words."""
    short = ("checkpoint", "encoder", "image_size", "pool", "dtype", "overlap", "joint", "quickgelu")
    differ = [key for key in card if before.get(key) != card[key]]
    return ", ".join(f"{key} {before.get(key)} -> {card[key]}" if key in short else f"other {key}" for key in differ)


def write_tiles(
    path: Path,
    card: Mapping[str, Any],
    parts: Iterable[tuple[pa.Table, np.ndarray]],
    width: int,
    rounding: Rounding,
    size: int,
) -> None:
    """Write vectors of tiles as GeoParquet; one part of them is in memory at a time.

    Args:
        path: The file.
        card: What made them.
        parts: Tables with `COLUMNS`, and the vectors `(n, D)` of their rows as they are kept.
        width: D.
        rounding: How they are kept.
        size: Side of most tiles in pixels.
    """
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(rounding.dtype)), width)
    layout = {"layout_type": "irregular", "chip_size": [size, size]}
    said = {key: value for key, value in described(card, width, rounding, layout).items() if key != "zarr_conventions"}

    fields = [*(CATALOGUE.field(name) for name in COLUMNS), pa.field("embedding", kind, nullable=False)]

    def tables() -> Iterator[pa.Table]:
        for table, kept in parts:
            values = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(kept).ravel()), width)
            yield table.append_column("embedding", values)

    write_geoparquet(path, pa.schema(fields, {"embedding": json.dumps(said)}), tables())


class TileFile:
    """Vectors of tiles as `write_tiles` wrote them, read piece by piece.

    Args:
        path: The file.

    Attributes:
        path: The file.
        card: What made them, and their `name`.
        rounding: How they are kept.

    Raises:
        InputError: It holds no such vectors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no file '{path}': expected vectors that `geomim embed` wrote")
        try:
            self._file = pq.ParquetFile(self.path)
            said = json.loads((self._file.schema_arrow.metadata or {}).get(b"embedding", b"{}"))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"'{path}' cannot be read ({error}): embed again, or copy it again") from error
        self.card = {**told_card(said, path), "name": self.path.name}
        self.rounding = Rounding.from_dict(self.card)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def kept(self) -> Iterator[np.ndarray]:
        """Values as they are kept, a row group `(n, D)` at a time."""
        for number in range(self._file.num_row_groups):
            yield _matrix(self._file.read_row_group(number, ["embedding"])["embedding"])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids `(n,)`, rising, whether training reads the tiles `(n,)` bool, and vectors `(n, D)` float32."""
        for batch in self._file.iter_batches(2**13, columns=["id", "kept", "embedding"]):
            kept = batch["kept"].to_numpy(zero_copy_only=False)
            yield batch["id"].to_numpy(), kept, self.rounding.restore(_matrix(batch["embedding"]))

    def of(self, number: int) -> np.ndarray | None:
        """The vector `(D,)` of a tile by its id; None where there is no such tile."""
        found = pq.read_table(self.path, columns=["embedding"], filters=pc.field("id") == number)["embedding"]
        return self.rounding.restore(_matrix(found))[0] if len(found) else None

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What is known of tiles by their ids."""
        wanted = pc.field("id").isin(pa.array(numbers, pa.int64()))
        rows: list[dict[str, Any]] = pq.read_table(self.path, columns=list(COLUMNS), filters=wanted).to_pylist()
        return rows


def _matrix(column: Any) -> np.ndarray:
    """Lists of one length as `(n, D)`."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(column.flatten()).reshape(len(column), -1)
