"""Addresses without what signs them, and with it where one was given in this run.

Names of sources, recipes, reports and sentences hold the plain form, so that a token is never published, and a build
that goes on with a fresh token is the same build. Whoever opens an address asks for its full form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|/vsi[a-z0-9_]+[/?])", re.IGNORECASE)
_QUERY = re.compile(r"\?([^\s'\"<>#}]+)")
_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#'\"]+)@", re.IGNORECASE)

_SECRET = re.compile(
    r"sig|.*signature|x-(amz|goog|oss|cos|obs)-.*|q-(sign|ak|key|header|url).*|.*token|.*secret.*|.*passw(or)?d|pwd|"
    r".*api[-_]?key|.*access[-_]?key([-_]?id)?|.*credentials?|auth|.*authorization|.*subscription[-_]?key|tk|jwt|hmac|"
    r".*(auth|app|map|private|hmac)[-_]?key|app[-_]?code|connect[-_]?id|sas|.*session(id)?|ticket|"
    r"hdne?a|hdnts|__gda__|header\..*|userpwd",
    re.IGNORECASE,
)
"""Parts of a query that sign by themselves."""

_BESIDE = re.compile(
    r"s[vsrpetik]|srt|spr|sdd|sip|ske|skt|sks|skv|skoid|sktid|s[acu]oid|ses|expires?|exp|policy|key-pair-id|"
    r"googleaccessid|user(name)?",
    re.IGNORECASE,
)
"""Parts that say how long and for whom another one signs: nothing without it."""

_given: dict[str, str] = {}  # full forms by plain ones, of this process


def has_address(text: str) -> bool:
    """Whether there is an address in a text: `https://`, `s3://`, `/vsicurl/` and the like."""
    return _ADDRESS.search(text) is not None


def split_list(text: str) -> list[str]:
    """Words between commas; a comma in an address stays in it, unless another address or a path from / follows."""
    words: list[str] = []
    for word in text.split(","):
        if words and has_address(words[-1]) and not word.startswith("/") and not has_address(word):
            words[-1] += f",{word}"
        else:
            words.append(word)
    return words


def plain(text: str) -> str:
    """An address, or a sentence with some, without logins and without the parts of queries that sign.

    What identifies stays: the path, and every other part of the query. `container@account` of Azure is no login.
    """
    if not has_address(text):
        return text
    return _QUERY.sub(lambda found: _unsigned(found[1]), _LOGIN.sub(_no_login, text))


def _no_login(found: re.Match[str]) -> str:
    web = found[1].lower() in ("http", "https", "ftp", "ftps")
    return f"{found[1]}://" if web or ":" in found[2] else found[0]


def _unsigned(query: str) -> str:
    parts = [part.partition("=") for part in query.split("&")]
    signed = any(_signs(name, value) for name, _, value in parts)
    left = []
    for name, equals, value in parts:
        inner = unquote(value)
        if _signs(name, value) or (signed and _BESIDE.fullmatch(name)):
            continue
        left.append(name + equals + (value if plain(inner) == inner else quote(plain(inner), safe="")))
    return f"?{'&'.join(left)}" if left else ""


def _signs(name: str, value: str) -> bool:
    named = name.lower() == "key" and not re.search(r"\.\w{1,7}$", value)  # else a file in a store
    return named or _SECRET.fullmatch(unquote(name)) is not None


def keep(address: str) -> str:
    """The plain form of what a user gives; the full one is kept in memory, for this run.

    Args:
        address: Or any text that ends in one, such as `NAME=https://...`; all else stays as it is.
    """
    bare, found = plain(address), _ADDRESS.search(address)
    if found and bare != address:
        _given[bare[found.start() :].partition("#")[0]] = address[found.start() :].partition("#")[0]
    return bare


def full(address: str) -> str:
    """The form to open: as it was given in this run, or the plain one, which the environment may sign."""
    name, mark, choice = address.partition("#")  # what is chosen in a cube
    return _given.get(name, name) + mark + choice


def kept() -> dict[str, str]:
    """All full forms by their plain ones, to send to another process."""
    return dict(_given)


def keep_all(addresses: Mapping[str, str]) -> None:
    """Take over the full forms that another process was given."""
    _given.update(addresses)
