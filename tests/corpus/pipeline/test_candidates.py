import errno
from concurrent.futures import BrokenExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.progress import Progress

from geomim.corpus.duplicates.fingerprint import orientations
from geomim.corpus.duplicates.votes import Blocks, crop_pairs
from geomim.corpus.pipeline import candidates, crops
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.staging import BLOCKS
from geomim.errors import CorpusError

EDGE = 96
SOURCE = 5  # tiles of each


def patches(tiles=300, each=12):
    """Blocks of tiles, some of which are seen in another one, moved and turned and with bits changed; and a crowd."""
    rng = np.random.default_rng(0)
    tile = np.repeat(np.arange(tiles), each)
    hashes = rng.integers(0, 2**63, len(tile), np.uint64) << np.uint64(1)
    xy = rng.integers(30, 60, (len(tile), 2))
    for copy in range(200, tiles):
        here, there = tile == copy, tile == (copy * 7) % 190
        turn, (x, y) = copy % 8, (copy % 11, copy % 13)
        bit = np.uint64(1) << rng.integers(1, 64, each).astype(np.uint64)
        hashes[here] = orientations(hashes[there])[turn] ^ np.where(np.arange(each) % 2, bit, np.uint64(0))
        moved = xy[there] + (x, y)
        moved = moved[:, ::-1] if turn & 4 else moved
        xy[here] = np.where(np.array([turn & 1, turn & 2]) > 0, EDGE - 1 - moved, moved)
    hashes[60 * each + 1 : 80 * each : each] = hashes[110 * each + 1 : 130 * each : each]  # one match only
    hashes[::each] = np.uint64(0xF0E1D2C3B4A59686) ^ (np.uint64(2) << (np.arange(tiles) % 40).astype(np.uint64))
    return Blocks(tile, hashes, xy.astype(np.int16), np.full((len(tile), 2), EDGE, np.int32))


def stage(folder, blocks, tasks=4):
    """Files as cutting leaves them, and what `find_crops` lays beside."""
    names = []
    for number, some in enumerate(np.array_split(np.arange(blocks.tile.max() + 1), tasks)):
        rows = blocks[np.flatnonzero(np.isin(blocks.tile, some))]
        columns = [rows.tile, rows.shape[:, 0], rows.hash, rows.xy[:, 0], rows.xy[:, 1]]
        names.append(folder / f"task-{number}")
        names[-1].mkdir(parents=True)
        pq.write_table(
            pa.table([pa.array(c) for c in columns], BLOCKS.names).cast(BLOCKS), names[-1] / "blocks.parquet"
        )
    made = folder / "crops.part"
    made.mkdir()
    pq.write_table(pa.table({"id": pa.array([3, 4], pa.int64())}), made / "copies.parquet")
    np.save(made / "sources.npy", np.arange(SOURCE, blocks.tile.max() + 1 + SOURCE, SOURCE))
    return made, names, [pq.read_metadata(name / "blocks.parquet").num_rows for name in names]


def propose(folder, blocks, count, workers=1, tasks=4):
    made, names, rows = stage(folder, blocks, tasks)
    with Progress(disable=True) as progress, Workers(progress, workers) as pool:
        counts = candidates.propose(made, names, rows, pool, count)
    files = sorted(made.glob("candidates-*.parquet"))
    table = pa.concat_tables(pq.read_table(file) for file in files)
    assert [number for number, _ in counts] == [pq.read_metadata(file).num_rows for file in files]
    for file, (_, several) in zip(files, counts, strict=True):
        votes = pq.read_table(file)["votes"].to_numpy()
        assert (votes[:several] > 1).all() and (votes[several:] == 1).all()
    assert {file.name for file in made.iterdir()} == {"copies.parquet", *(file.name for file in files)}
    return table, [file.read_bytes() for file in files]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_partitions_propose_what_memory_proposes(tmp_path, monkeypatch, count):
    monkeypatch.setattr(candidates, "QUERIES", 700)
    blocks = patches()
    table, _ = propose(tmp_path, blocks, count, tasks=count + 1)
    table = table.sort_by([(name, "ascending") for name in ("a", "b", "turn")])
    alone = crop_pairs(blocks[np.flatnonzero(~np.isin(blocks.tile, [3, 4]))], min_votes=1)
    alone = alone[np.flatnonzero(alone.one // SOURCE != alone.two // SOURCE)]
    assert len(alone.one) > (alone.votes > 1).sum() > 90 and set(alone.orientation.tolist()) == set(range(8))
    for name, column in (("a", alone.one), ("b", alone.two), ("turn", alone.orientation), ("votes", alone.votes)):
        assert np.array_equal(table[name].to_numpy(), column)
    assert np.array_equal(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1), alone.offset)


def test_two_workers_write_the_bytes_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "ROWS", 1000)  # else all of it stays in this process
    blocks = patches()
    one, two = (propose(tmp_path / str(workers), blocks, 3, workers)[1] for workers in (1, 2))
    assert one == two and len(one) == 3


def test_no_blocks_no_candidates(tmp_path):
    made, names, _ = stage(tmp_path, patches(), 1)
    pq.write_table(BLOCKS.empty_table(), names[0] / "blocks.parquet")
    with Progress(disable=True) as progress, Workers(progress, 1) as pool:
        assert candidates.propose(made, names, [0], pool) == [(0, 0)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "more memory"),
        (BrokenExecutor("a child process terminated abruptly"), "more memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "more disk"),
    ],
)
def test_a_corpus_too_large_for_the_machine_is_one_sentence(tmp_path, monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(crops, "_find", fail)
    with pytest.raises(CorpusError, match=f"needs {words} than there is: .* --crops false"):
        crops.find_crops(tmp_path, None, None, None)
