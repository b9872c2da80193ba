"""The wheel alone must be enough: configs and source cards travel inside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked far from the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, code: str) -> str:
    """Run code that sees the wheel and not the clone."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"]
    done = subprocess.run(command, cwd=site.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_runs_outside_the_clone(site: Path) -> None:
    assert run(site, "import geomim; print(geomim.__file__)").startswith(str(site))
    assert "geomim corpus build" in run(site, "from geomim.cli import main; main(['--help'])")


@pytest.mark.parametrize("folder", ["configs", "datasets"])
def test_carries_configs_and_cards(site: Path, folder: str) -> None:
    ours = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob("*.yaml"))
    assert ours
    found = run(site, f"from geomim.resources import shipped; print(*[shipped(path) for path in {ours}])")
    assert found.split() == [str(site / "geomim" / path) for path in ours]
