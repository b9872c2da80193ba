"""Builds and maps killed at random moments, continued, and compared byte by byte.

    python benchmarks/kill_resume.py               # 20 builds and 20 maps, each killed 1 to 3 times; 15 minutes
    python benchmarks/kill_resume.py --times 2     # of each

A build is that of 80 drawn scenes by 2 processes; a map is `geomim predict` over scene, encoder and probe of maps.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from maps import draw, make

from geomim.corpus.synthetic import write_scenes

BUILD = "import sys; from geomim.corpus.build import build; build([sys.argv[1]], sys.argv[2], tile=64, workers=2)"
SIDE = 2000


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file, hidden ones too, but the report's."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] != "report"
    }


def run(command: Sequence[str], seconds: float | None = None) -> tuple[bool, float]:
    """Run a command, killed with all its workers after some seconds; whether it was, and how long it ran."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True, time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {process.returncode}")
    return False, time.perf_counter() - start


def repeat(name: str, command: Sequence[str], out: Path, times: int, chance: random.Random) -> bool:
    """Kill, continue, compare; whether what is in the folder `out` always was the same."""
    run(command)
    expected, same, kills = digest(out), 0, 0
    shutil.rmtree(out)
    _, seconds = run(command)
    for _ in range(times):
        shutil.rmtree(out)
        for _ in range(chance.randint(1, 3)):
            kills += run(command, chance.uniform(1.0, seconds))[0]
        run(command)
        same += digest(out) == expected
    print(f"undisturbed_{name}_s: {seconds:.1f}")
    print(f"{name}_kills: {kills}")
    print(f"{name}_same_bytes: {same} of {times}", flush=True)
    return same == times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("build", "map"), nargs="+", default=["build", "map"])
    arguments = parser.parse_args()
    chance, good = random.Random(arguments.seed), True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "build" in arguments.only:
            write_scenes(folder / "drawn", scenes=80, size=256)
            out = folder / "corpus"
            command = [sys.executable, "-c", BUILD, str(folder / "drawn" / "scenes"), str(out)]
            good &= repeat("build", command, out, arguments.times, chance)
        if "map" in arguments.only:
            draw(scene := folder / "scene.tif", SIDE)
            made = [str(make(folder)), "--out", str(folder / "maps" / "map.tif"), "--overlap", "0.5"]
            command = [sys.executable, "-m", "geomim.cli", "predict", str(scene), "--model", *made]
            good &= repeat("map", command, folder / "maps", arguments.times, chance)
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
