"""What file names and metadata say about a scene: when it was taken, and under which licence it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-:]?([01]\d)[-:]?([0-3]\d)(?:[T_ ]?([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d))?(?!\d)"
)
_ZONE = re.compile(r":\d\d(?:[.,]\d+)? ?([+-])([01]\d)(?::?([0-5]\d))?(?![\d:])")  # file names hold no colons
_DAY_OF_YEAR = re.compile(r"(?<![A-Z0-9])(?:L[COETM]\d{7}|T\d\d[A-Z]{3}[.])((?:19|20)\d\d)([0-3]\d\d)(?!\d)")
_TIME_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED", "SENSING_TIME")


def acquisition_time(uri: str, tags: Mapping[str, str]) -> datetime | None:
    """When a scene was taken: from metadata that mean acquisition, else a date in the file name.

    TIFF's own date tag is when a program wrote the file, so it does not count.

    Args:
        uri: Path or address.
        tags: Metadata of the file.
    """
    upper = {key.upper(): value for key, value in tags.items()}
    told, name = [upper[key] for key in _TIME_TAGS if key in upper], Path(uri).name
    if not told and (numbered := _DAY_OF_YEAR.search(name)):
        return datetime(int(numbered[1]), 1, 1) + timedelta(days=int(numbered[2]) - 1)
    return next((time for text in (*told, name) if (time := date_in(text))), None)


def date_in(text: str) -> datetime | None:
    """The first date in a text, in UTC with its time of day where one follows; None where there is none."""
    for found in _DATE.finditer(text):
        try:
            time = datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]
        except ValueError:
            continue  # digits that are no date
        if zone := _ZONE.match(text, found.end() - 3):
            ahead = timedelta(hours=int(zone[2]), minutes=int(zone[3] or 0))
            time += -ahead if zone[1] == "+" else ahead
        return time
    return None


def licence(tags: Mapping[str, str]) -> str | None:
    """Licence that a file's metadata state, or None."""
    return next((tags[key] for key in ("LICENCE", "LICENSE", "TIFFTAG_COPYRIGHT") if tags.get(key)), None)
