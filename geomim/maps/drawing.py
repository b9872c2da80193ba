"""One scene, or two dates of it, and what is made of them by whatever looks at scenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from geomim.corpus.scenes import Scene
from geomim.maps import classes, objects
from geomim.maps.classes import card_of, is_done, tags_for
from geomim.maps.files.layers import say
from geomim.maps.outlines import write_polygons
from geomim.maps.scenes.areas import Area, open_area
from geomim.maps.scenes.opening import check_scene, gsd_note, open_for, scale_note
from geomim.maps.scenes.pairs import PairInput, pair
from geomim.maps.walk.finder import Finder
from geomim.maps.walk.looker import Looker, Prepare
from geomim.maps.walk.strips import scene_card
from geomim.models.inputs import ContractInput
from geomim.sensors import Sensor


@dataclass(frozen=True)
class Asked:
    """What is asked of scenes.

    Attributes:
        model: What files say that they were made with.
        overlap: Share of its side that a window has in common with the next, from 0 to 0.9.
        sensor: What took the scenes, where they do not say.
        bands: Names of their bands in file order, where they do not name them.
        after: The second date.
        aoi: Vector file of an area of interest.
        threshold: Score that an object has at least.
        simplify: Metres by which outlines are made simpler.
    """

    model: str
    overlap: float = 0.5
    sensor: Sensor | None = None
    bands: Sequence[str] | None = None
    after: str | None = None
    aoi: str | None = None
    threshold: float = 0.3
    simplify: float | None = None


class Seen(NamedTuple):
    """A scene, or two dates as one, as a model sees it.

    Attributes:
        scene: Open.
        prepare: Brings its numbers to the model's contract.
        dates: Its scenes, each with what brings it there.
        area: What of it is asked for, or all.
    """

    scene: Scene
    prepare: Prepare
    dates: Sequence[tuple[Scene, ContractInput]]
    area: Area | None

    @property
    def also(self) -> dict[str, Any]:
        """What files depend on besides the first date."""
        own = {} if self.area is None else {"area": self.area.digest}
        later = [scene_card(scene.uri) | {"sensor": scene.sensor.to_dict()} for scene, _ in self.dates[1:]]
        return own | ({"first": self.dates[0][0].sensor.to_dict(), "later": later} if later else {})


def make(opened: Looker | Finder, asked: Asked, uri: str, path: Path, outlines: Path | None = None) -> list[Path]:
    """Make a map of classes or of what changed, or a table of objects, unless it is there.

    Args:
        opened: What looks at the scene.
        asked: How.
        uri: The scene.
        path: The file.
        outlines: Of a map's classes, too.

    Returns:
        The files.

    Raises:
        NoGroundError: The area of interest does not meet the scene.
        BandError: A scene lacks bands that the model needs.
        InputError: A scene's numbers are far from those that the model was trained on, it cannot be read somewhere, two
            dates do not meet, or a file is of another scene.
    """
    with _seen(opened, asked, uri) as seen:
        here = opened.at(seen.scene) if isinstance(opened, Looker) else opened
        walk, also = here.walk(seen.scene, asked.overlap), seen.also
        also |= {"threshold": asked.threshold} if isinstance(here, Finder) else {}
        card = card_of(seen.scene, here, walk, also)
        outlined = {**card, "simplify": asked.simplify, "outlines": True}
        there = outlines is not None and is_done(outlines, seen.scene, outlined)  # or is refused before the work
        if is_done(path, seen.scene, card):
            print(f"'{path}' is there already: take it away to make it again")
            if outlines is not None and not there:  # else said with the map
                classes.tell_beyond(seen.scene, walk)
        else:
            _check(opened, asked, seen)
            what = seen.scene, seen.prepare
            if isinstance(here, Finder):
                objects.draw(*what, here, walk, path, asked.model, asked.threshold, also, seen.area)
            else:
                classes.draw(*what, here, walk, path, asked.model, also, seen.area)
        if outlines is None or isinstance(here, Finder):
            return [path]
        if there:
            print(f"'{outlines}' is there already: take it away to make it again")
        else:
            _outline(seen.scene, here, outlined, asked, path, outlines)
        return [path, outlines]


@contextmanager
def _seen(opened: Looker | Finder, asked: Asked, uri: str) -> Iterator[Seen]:
    dates: list[tuple[Scene, ContractInput]] = []
    try:
        for one in (uri, asked.after):
            dates += [open_for(opened.contract, one, asked.sensor, asked.bands)] if one is not None else []
        (scene, prepare), *others = dates
        own: tuple[Scene, Prepare] = (scene, prepare)
        for later, other in others:
            own = pair(scene, later), PairInput(prepare, other)
        yield Seen(*own, dates, open_area(asked.aoi, scene) if asked.aoi else None)
    finally:
        for scene, _ in dates:
            scene.close()


def _check(opened: Looker | Finder, asked: Asked, seen: Seen) -> None:
    """Refuse numbers that are far from the model's; say what is assumed of each scene, and what is unusual."""
    scaled = isinstance(opened, Looker) and opened.scaled is not None
    for scene, prepare in seen.dates:
        note = (
            (scale_note(scene, opened.contract, opened.gsd),)
            if scaled
            else gsd_note(scene, opened.contract, opened.gsd)
        )
        check_scene(scene, prepare, opened.walk(scene, asked.overlap).places, opened.side, note)
    notes = (*(seen.scene.notes if len(seen.dates) > 1 else ()), *(seen.area.notes if seen.area else ()))
    for said in notes:
        print(f"note: {said}")


def _outline(scene: Scene, looker: Looker, card: Mapping[str, Any], asked: Asked, path: Path, outlines: Path) -> None:
    tags = tags_for(scene, card, looker.made_by, asked.model)
    say(write_polygons(path, outlines, looker.classes, asked.simplify, tags))
