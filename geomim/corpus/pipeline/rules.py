"""Which tiles training may read: thresholds as queries on the catalogue's columns, so that none is cut again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import CATALOGUE
from geomim.errors import InputError, nearest

if TYPE_CHECKING:
    import duckdb

DECIDED = ("kept", "reason", "duplicate_of", "cluster")
"""Columns that say what was decided: no condition can ask for them."""


@dataclass(frozen=True)
class Rules:
    """What is asked of a tile; see `build` for the meaning of each.

    Tiles without a cloud mask pass `max_cloud`. `licence` is `only_licence` there; empty, it lets all in. With
    `protect`, val and test tiles are never dropped as duplicates: a published split stays whole, its copies leave
    train.
    """

    min_valid: float = 0.5
    max_cloud: float | None = None
    where: str | None = None
    quota: int = 16
    licence: list[str] | None = None
    non_commercial: bool = False
    near: int | None = 4
    overlap: float | None = 0.5
    protect: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InputError: A threshold is out of range, or the SQL condition is wrong.
        """
        for name in ("min_valid", "max_cloud", "overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"--{name.replace('_', '-')} is a share, 0 to 1; given {value}")
        if self.where:
            matching(CATALOGUE.empty_table().drop_columns(list(DECIDED)), self.where)
        if self.quota < 0:
            raise InputError(f"--quota is a number of tiles, 0 or more; given {self.quota}")


def rules_of(meta: dict[str, Any]) -> Rules:
    """What a recipe asks of a tile."""
    recipe = meta["recipe"]
    asked = {field.name: recipe[field.name] for field in fields(Rules) if field.name in recipe}
    return Rules(**asked | {"licence": recipe["only_licence"], "protect": meta["protect"]})


def reasons(tiles: pa.Table, rules: Rules) -> list[str]:
    """Why each tile cannot be used, whatever the others are; "" where it can.

    Args:
        tiles: Rows of the catalogue's columns, of whole scenes: the quota counts within a scene.
        rules: What is asked.

    Raises:
        InputError: `where` is no condition on these columns.
    """
    result = np.full(len(tiles), "", object)
    valid = tiles["valid_fraction"].to_numpy()
    _say(result, valid == 0, lambda row: "no valid pixel")
    _say(result, valid < rules.min_valid, lambda row: f"valid fraction {_floor(valid[row])} < {rules.min_valid:g}")
    if rules.max_cloud is not None:
        cloud, limit = pc.fill_null(tiles["cloud_fraction"], 0.0).to_numpy(), rules.max_cloud
        _say(result, cloud > limit, lambda row: f"cloud fraction {math.ceil(cloud[row] * 1000) / 1000:g} > {limit:g}")
    if not rules.non_commercial:
        closed = pc.fill_null(tiles["non_commercial"], False).to_numpy(zero_copy_only=False)
        _say(result, closed, lambda row: "licence forbids commercial use")
    if rules.licence:
        licence = tiles["licence"].to_pylist()
        other = np.array([one not in rules.licence for one in licence], bool)
        _say(result, other, lambda row: f"licence {licence[row] or 'none stated'}")
    if rules.where:
        _say(result, ~matching(tiles, rules.where), lambda row: f"where {rules.where}")
    _say(result, _beyond_quota(tiles, result == "", rules.quota), lambda row: f"quota of {rules.quota} tiles a scene")
    return result.tolist()


def _say(result: np.ndarray, rows: np.ndarray, words) -> None:
    """The first reason counts."""
    for row in np.flatnonzero(rows & (result == "")).tolist():
        result[row] = words(row)


def _floor(share: float) -> str:
    return f"{math.floor(share * 1000) / 1000:g}"  # never rounded up to the threshold


def _beyond_quota(tiles: pa.Table, usable: np.ndarray, quota: int) -> np.ndarray:
    """Low-information tiles after the first `quota` of their scene, in the order of their content hashes."""
    own = pc.equal(tiles["original"], tiles["id"]).to_numpy(zero_copy_only=False)  # copies go as copies
    low = np.flatnonzero(tiles["low_information"].to_numpy(zero_copy_only=False) & usable & own)
    beyond = np.zeros(len(tiles), bool)
    if len(low):
        scene = pc.dictionary_encode(tiles["source"].take(low)).combine_chunks().indices.to_numpy()
        order = np.lexsort((low, np.array(tiles["xxh3"].take(low).to_pylist()), scene))
        first = np.searchsorted(scene[order], scene[order])
        beyond[low[order[np.arange(len(low)) - first >= quota]]] = True
    return beyond


def matching(tiles: pa.Table, where: str) -> np.ndarray:
    """Rows that meet an SQL condition, `(n,)` bool.

    Args:
        tiles: Rows; some of many, as a condition says of each row by itself, and each time the same.
        where: What follows WHERE in a query on columns of `tiles`; DuckDB's SQL.

    Raises:
        InputError: It is no such condition.
    """
    import duckdb

    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.register("tiles", tiles)
        try:
            if len(duckdb.extract_statements(f"SELECT ({where}) FROM tiles")) != 1:
                raise InputError(f"'{where}' must be one condition on the catalogue's columns")
            _check_alone(where)
            connection.execute(f"SELECT 1 FROM tiles WHERE ({where}) LIMIT 0")  # takes no aggregates nor windows
            found = connection.execute(f"SELECT ({where}) AS met FROM tiles").fetchnumpy()["met"]
        except duckdb.Error as error:
            raise InputError(_wrong(where, str(error), tiles.column_names)) from error
    return np.ma.filled(found, False).astype(bool)


@lru_cache(8)
def _check_alone(where: str) -> None:
    """Refuse a condition that depends on other rows than a tile's own, on chance or on the time of day.

    It is asked of parts of the tiles, several times, and again by a rebuild.
    """
    import duckdb

    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        parsed = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({where}) FROM tiles"])
        nodes = list(_nodes(json.loads(parsed.fetchall()[0][0])))
        fickle = _fickle(connection)
    words = (word for node in nodes for word in (*node.get("column_names", ()), node.get("function_name", "")))
    left = sorted({word for word in words if word.lower() in fickle})
    if left:
        raise InputError(
            f"'{where}' is no condition on a tile alone: {', '.join(left)} is another each time; a tile's xxh3 is not, "
            "and xxh3 < '8' takes half of the tiles"
        )
    if any(node.get("class") == "SUBQUERY" for node in nodes):
        raise InputError(f"'{where}' is no condition on a tile alone: no query can stand in it, as it sees other tiles")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a tree of JSON."""
    if isinstance(tree, dict):
        yield tree
    for one in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(one)


def _fickle(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of functions, and of what SQL writes without brackets, whose values are not those of their arguments."""
    said = connection.execute("SELECT function_name, stability, macro_definition FROM duckdb_functions()").fetchall()
    found = {"current_timestamp", "current_time", "localtime", "localtimestamp"}
    found |= {name for name, stability, _ in said if stability not in (None, "CONSISTENT")}
    return found | {name for name, _, macro in said if macro and found.intersection(re.findall(r"\w+", macro))}


def _wrong(where: str, message: str, columns: Sequence[str]) -> str:
    first = message.splitlines()[0]
    quoted = first.split('"')[1] if first.count('"') >= 2 else ""
    hint = nearest(quoted, columns) if quoted else ""
    return f"'{where}' is no condition on the catalogue's columns ({first}){hint}"
