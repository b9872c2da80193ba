"""Builds killed at random moments, continued, and compared byte by byte.

python benchmarks/kill_resume.py                 # 20 builds, each killed 1 to 3 times, 2 processes; 5 minutes
python benchmarks/kill_resume.py --builds 2
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
from pathlib import Path

from geomim.corpus.synthetic import write_scenes

BUILD = "import sys; from geomim.corpus.build import build; build([sys.argv[1]], sys.argv[2], tile=64, workers=2)"


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file but the report's."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] != "report"
    }


def run(scenes: Path, out: Path, seconds: float | None = None) -> tuple[bool, float]:
    """Run a build, killed with all its workers after some seconds; whether it was, and how long it ran."""
    start = time.perf_counter()
    command = [sys.executable, "-c", BUILD, str(scenes), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True, time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the build ended with {process.returncode}")
    return False, time.perf_counter() - start


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        scenes, out = Path(folder) / "scenes", Path(folder) / "corpus"
        write_scenes(scenes, scenes=80, size=256)
        images = scenes / "scenes"
        run(images, out)
        expected, same, kills = digest(out), 0, 0
        shutil.rmtree(out)
        _, seconds = run(images, out)
        for _ in range(arguments.builds):
            shutil.rmtree(out)
            for _ in range(chance.randint(1, 3)):
                kills += run(images, out, chance.uniform(1.0, seconds))[0]
            run(images, out)
            same += digest(out) == expected
    print(f"undisturbed_build_s: {seconds:.1f}")
    print(f"kills: {kills}")
    print(f"same_bytes: {same} of {arguments.builds}")
    raise SystemExit(same != arguments.builds)


if __name__ == "__main__":
    main()
