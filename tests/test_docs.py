"""The pages: links lead somewhere, commands are those that geomim takes, and no page is long."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from geomim.cli import VERBS, _load, parse
from geomim.errors import ConfigError
from geomim.pretrain.recipes import RECIPES
from geomim.verbs.config import make_parser, read_config

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted((ROOT / "docs").glob("*.md"))
TOLD = [ROOT / "README.md", *ROOMS]
"""Pages that a user reads; all others that are linked are written for who works on geomim."""
PAGES = [*TOLD, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "datasets").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OTHERS = {"help", "debug", "signal"}
"""Flags that no signature has: geomim's own of every verb, and SLURM's."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_no_page_is_long() -> None:
    lines = {named(page): len(page.read_text().splitlines()) for page in TOLD}
    assert lines.pop("README.md") <= 165
    assert not {name: count for name, count in lines.items() if count > 120}


def test_contents_name_every_page() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    assert not [room.name for room in ROOMS if room.name != "README.md" and f"]({room.name})" not in contents]


def test_every_verb_is_in_the_table_with_what_help_says_of_it() -> None:
    table = (ROOT / "docs" / "verbs.md").read_text()
    assert re.findall(r"^\| `geomim (.+?)` \| (.+?) \| `\[([\w,]+)\]` \|", table, re.M) == [
        (name, verb.summary, verb.extra) for name, verb in VERBS.items()
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*re.findall(r"^\| `\[(\w+)\]` \|", table, re.M)} == extras.keys() - {"bench", "dev"}


@pytest.mark.parametrize("page", ["README.md", "docs/README.md"])
def test_pages_that_count_the_verbs_count_them_right(page: str) -> None:
    assert re.findall(r"\ball (\d+)(?=\]\(docs/verbs\.md\)| commands)", (ROOT / page).read_text()) == [f"{len(VERBS)}"]


@cache
def anchors(page: Path) -> frozenset[str]:
    """What `page#...` may say, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text()), re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


def dead(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:href|src)="([^"]+)"', prose):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_resolve(page: Path) -> None:
    assert not dead(page, page.read_text())


def test_a_dead_link_is_found() -> None:
    links = "[a](docs/demo.md) [`b`](docs/nowhere.md) [c](#scores) [d](docs/demo.md#nowhere) [e](https://a.b/c)"
    assert dead(ROOT / "README.md", links) == ["docs/nowhere.md", "docs/demo.md#nowhere"]


def commands(text: str) -> Iterator[list[str]]:
    """What follows `geomim` in the lines of fenced blocks, without comments and with continued lines as one."""
    for language, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if not language else ():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word in ("geomim", "geomim.cli") and (place == 0 or words[place - 1] == "-m"):
                    yield words[place + 1 :]


def read(words: list[str]) -> dict[str, Any]:
    """The arguments of a command as its verb reads them, defaults included.

    Raises:
        ConfigError: The verb takes none of these.
    """
    verb = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in VERBS), None)
    assert verb, f"geomim {' '.join(words)} is no verb"
    rest = words[len(verb.split()) :]
    return vars(read_config(rest)) if verb == "pretrain" else parse(_load(verb), rest, verb)


TYPED = [(f"{named(page)}: {' '.join(words)}", words) for page in TOLD for words in commands(page.read_text())]


@pytest.mark.parametrize("words", [words for _, words in TYPED], ids=[name for name, _ in TYPED])
def test_commands_are_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where configs/ are
    assert read(words)


def test_commands_are_found_and_held_to_their_verb() -> None:
    block = "```\nmake demo  # geomim no\ngeomim plot a \\\n  b  # it's\nsrun python -m geomim.cli show c\n```\n"
    assert list(commands(block)) == [["plot", "a", "b"], ["show", "c"]]
    with pytest.raises(ConfigError, match="unknown argument 'oot'"):
        read(["plot", "a", "--oot", "b"])
    with pytest.raises(ConfigError, match=r"unknown key 'training\.hours'"):
        read(["pretrain", "--data.corpus", "a", "--training.hours", "1"])
    with pytest.raises(AssertionError, match="geomim corpus append a is no verb"):
        read(["corpus", "append", "a"])


@cache
def flags() -> frozenset[str]:
    """Every flag of every verb, and of `pretrain` with every recipe."""
    signatures = [signature(_load(verb)) for verb, one in VERBS.items() if not one.target.endswith(":run")]
    dotted = {action.dest for recipe in RECIPES for action in make_parser(recipe)._actions}
    return frozenset(name for one in signatures for name in one.parameters) | dotted | OTHERS


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_flags_and_verbs_in_the_text_exist(page: Path) -> None:
    codes = re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))
    told = [flag for code in codes for flag in re.findall(r"(?<!\S)--([\w.-]+)", code)]
    assert not [flag for flag in told if flag.replace("-", "_") not in flags()]
    verbs = [code.removeprefix("geomim ").split(" --")[0].split() for code in codes if code.startswith("geomim ")]
    unknown = [words for words in verbs if words != ["VERB"] and not {" ".join(words[:n]) for n in (1, 2)} & {*VERBS}]
    assert not unknown
