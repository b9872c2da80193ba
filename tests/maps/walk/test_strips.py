import contextlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from geomim.errors import InputError, UnreadableError
from geomim.maps.walk.strips import Strips, address, digest, scene_card


def strip(number):
    return np.full((2, 3, 5), number, np.uint8)


def test_what_is_finished_is_there_when_the_work_goes_on(tmp_path):
    path, card = tmp_path / "map.tif", {"scene": "a", "overlap": 0.5}
    with pytest.raises(KeyboardInterrupt), Strips(path, card) as strips:
        for number in range(3):
            strips.add(strip(number))
        raise KeyboardInterrupt
    with Strips(path, card) as strips:
        assert strips.done == 3
        strips.add(strip(3))
        assert [int(one.max()) for one in strips] == [0, 1, 2, 3]
        strips.remove()
    assert list(tmp_path.iterdir()) == []


def test_floats_come_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 4, 9)).astype(np.float32)
    with Strips(tmp_path / "map.tif", {}) as strips:
        strips.add(values)
        assert next(iter(strips)).tobytes() == values.tobytes()


def test_what_was_begun_otherwise_is_thrown_away_aloud(tmp_path, capsys):
    path = tmp_path / "map.tif"
    with Strips(path, {"scene": "a", "overlap": 0.5}) as strips:
        strips.add(strip(0))
    with Strips(path, {"scene": "a", "overlap": 0.25}) as strips:
        assert strips.done == 0
    assert "begins anew" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # of what has not begun nothing stays


def read(count, error=None):
    yield from range(count)
    if error:
        raise error


@pytest.mark.parametrize(
    ("error", "kept"), [(UnreadableError("at row 5"), 2), (InputError("answers are not finite"), 0), (None, 0)]
)
def test_only_a_scene_that_could_not_be_read_may_be_another_file_when_it_goes_on(tmp_path, capsys, error, kept):
    path = tmp_path / "map.tif"
    card = {"scene": "a", "files": [["a", 10, 1]], "later": [{"scene": "b", "files": [["b", 3, 1]]}]}
    with contextlib.suppress(InputError), Strips(path, card) as strips:
        strips.fill(read(2, error), strip)
    mended = {"files": [["a", 11, 2]], "later": [{"scene": "b", "files": [["b", 4, 2]]}]}
    with Strips(path, card | mended) as strips:
        assert strips.done == kept
        strips.remove()
    assert ("rows before that are kept" in capsys.readouterr().out) == bool(kept)


def test_no_strip_takes_the_place_of_one_that_could_not_be_kept(tmp_path):
    def slow(number):  # so that the next one waits already when this one fails
        time.sleep(0.05)
        if number == 2:
            raise OSError(28, "No space left on device")
        return strip(number)

    with pytest.raises(OSError, match="No space"), Strips(tmp_path / "map.tif", {}) as strips:
        strips.fill(read(5), slow)
    with Strips(tmp_path / "map.tif", {}) as strips:
        assert [int(one.max()) for one in strips] == [0, 1]
        strips.fill(iter(range(strips.done, 5)), strip)
        assert [int(one.max()) for one in strips] == [0, 1, 2, 3, 4]


def test_a_second_process_is_refused(tmp_path):
    with Strips(tmp_path / "map.tif", {}) as strips:
        strips.add(strip(0))
        with pytest.raises(InputError, match="another process"), Strips(tmp_path / "map.tif", {}):
            pass
        assert strips.done == 1 and next(iter(strips)).max() == 0
    with Strips(tmp_path / "map.tif", {}) as strips:
        assert strips.done == 1


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    path = tmp_path / "map.tif"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), Strips(path, {}) as strips:
        strips.add(strip(0))
        monkeypatch.setattr(os, "fsync", full)
        strips.add(strip(1))
    monkeypatch.undo()
    with Strips(path, {}) as strips:
        assert strips.done == 1


def slowly(path):
    with Strips(path, {}) as strips:
        while True:
            strips.add(strip(strips.done % 200))


def test_killed_at_any_moment_every_strip_is_whole(tmp_path):
    path, done = tmp_path / "map.tif", 0
    for wait in (0.05, 0.013, 0.031):
        process = multiprocessing.get_context("fork").Process(target=slowly, args=(path,))
        process.start()
        while not (path.with_name(".map.tif.work") / f"{done + 2:06d}.tif").exists():
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with Strips(path, {}) as strips:
            assert strips.done > done + 2
            assert [int(one.min()) for one in strips] == [number % 200 for number in range(strips.done)]
            done = strips.done


def test_a_card_changes_with_the_file(tmp_path):
    scene = tmp_path / "scene.tif"
    scene.write_bytes(b"a")
    before = scene_card(str(scene))
    assert before["scene"] == str(scene) and digest(before) == digest(scene_card(str(scene)))
    scene.write_bytes(b"ab")
    assert digest(scene_card(str(scene))) != digest(before)


def test_a_file_by_its_address_is_the_same_scene(tmp_path):
    scene = tmp_path / "scene.tif"
    scene.write_bytes(b"a")
    before = scene_card(f"file://{scene}")
    assert before == scene_card(str(scene)) and before["files"] and address(f"file://{scene}") == str(scene)
    scene.write_bytes(b"ab")
    assert scene_card(f"file://{scene}") != before
    assert address("s3://bucket/scene.tif") == "s3://bucket/scene.tif"


def test_where_nothing_can_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "map.tif", tmp_path / "file" / "deeper" / "map.tif"):
        with pytest.raises(InputError, match=r"map.tif' cannot be written in folder .*: give another --out"):
            Strips(path, {}).__enter__()
    with Strips(tmp_path / "not" / "there" / "map.tif", {}) as strips:
        strips.add(strip(0))
        assert strips.done == 1


def test_the_folder_goes_while_another_process_looks_into_it(tmp_path, monkeypatch):
    """It waits for its lock, and makes a file in the folder that is being taken away."""
    path, unlink = tmp_path / "map.tif", os.unlink

    def late(file, **given):
        unlink(file, **given)
        if os.path.basename(file) == "lock":
            (tmp_path / ".map.tif.work" / "lock").touch()

    with Strips(path, {}) as strips:
        strips.add(strip(0))
        monkeypatch.setattr(os, "unlink", late)
        strips.remove()
    monkeypatch.undo()
    with Strips(path, {}) as strips:
        assert strips.done == 0
