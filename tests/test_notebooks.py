"""The notebooks: small, from start to end, each with a picture in every section; stripped as they are in git."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [book.stem for book in BOOKS]
SECONDS = 240  # of a cell, on a machine that has other work


@pytest.fixture(scope="module")
def kernel() -> Iterator[tuple]:
    """One for all, each begins with empty hands: libraries take longer to load than the notebooks to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOMIM_QUICK", "1")
        manager, client = start_new_kernel()
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def read(book: Path) -> nbformat.NotebookNode:
    return nbformat.read(book, as_version=4)


def sections(book: nbformat.NotebookNode) -> dict[str, list[nbformat.NotebookNode]]:
    """Cells below each heading of the second level."""
    found: dict[str, list[nbformat.NotebookNode]] = {}
    for cell in book.cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## (.+)", cell.source)):
            found[heading[1]] = []
        elif found:
            found[next(reversed(found))].append(cell)
    return found


def draws(cell: nbformat.NotebookNode) -> bool:
    """Whether a picture, or a map to move, came of it."""
    shown = [output.data for output in cell.get("outputs", ()) if "data" in output]
    return any("image/png" in one or "<iframe" in one.get("text/html", "") for one in shown)


@pytest.mark.parametrize("book", BOOKS, ids=NAMES)
def test_runs_small_and_every_section_has_a_picture(book: Path, kernel: tuple, tmp_path: Path) -> None:
    manager, client = kernel
    opened = read(book)
    clean = nbformat.v4.new_code_cell(f"%reset_selective -f ^[^_]\n%cd -q {tmp_path}")
    opened.cells.insert(0, clean)
    runner = NotebookClient(opened, km=manager, timeout=SECONDS)
    runner.kc = client
    runner.execute(reset_kc=False, cleanup_kc=False)
    without = [title for title, cells in sections(opened).items() if not any(map(draws, cells))]
    assert not without
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == [book.stem]  # nothing beside its own folder


def test_there_are_six_and_one_leads_to_the_next() -> None:
    assert [name[:2] for name in NAMES] == [f"{number}_" for number in range(1, 7)]
    for book, following in pairwise(BOOKS):
        assert f"]({following.name})" in read(book).cells[-1].source


@pytest.mark.parametrize("book", BOOKS, ids=NAMES)
def test_outputs_are_stripped_and_links_lead_somewhere(book: Path) -> None:
    opened = read(book)
    nbformat.validate(opened)
    for cell in opened.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert not cell.metadata
    text = "\n".join(cell.source for cell in opened.cells)
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert not [one for one in links if not re.match(r"\w+:", one) and not (book.parent / one).exists()]
    assert not re.search(r"""["'(](?:/|[A-Za-z]:\\|~/)\w""", text)  # a path of one machine


@pytest.mark.parametrize("book", BOOKS, ids=NAMES)
def test_what_is_needed_stands_in_the_first_cells(book: Path) -> None:
    first, code, *_ = read(book).cells
    assert first.source.startswith(f"# {book.stem[0]} · ") and "**To use yours**" in first.source
    assert 'QUICK = os.environ.get("GEOMIM_QUICK") == "1"  # ' in code.source
    assert f'made = Path("made/{book.stem}")' in code.source
    cells = [cell for cell in read(book).cells if cell.cell_type == "code"]
    assert sum(cell.source.count("GEOMIM_QUICK") for cell in cells) == 1
    assert any(re.search(r"^ *assert .+, \"[^\"]+\"$", cell.source, re.M) for cell in cells)  # checked, and said what


@pytest.mark.parametrize("book", BOOKS, ids=NAMES)
def test_geomim_is_asked_in_public(book: Path) -> None:
    """Nothing is taken from a helper beside the notebooks, nor by a name that is geomim's own."""
    taken = [line for cell in read(book).cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    taken = [line for line in taken if re.match(r"\s*(from|import) ", line)]
    assert taken and not [line for line in taken if re.search(r"\b_\w", line)]
    assert not list((ROOT / "notebooks").glob("*.py"))
