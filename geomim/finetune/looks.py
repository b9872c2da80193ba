"""What the numbers of many labelled images are: in another unit they train a task of nothing, and no error says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, islice

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.readers import RasterReader
from geomim.errors import InputError, UnreadableError
from geomim.finetune.labels.items import some
from geomim.maps.scenes.opening import assumed_of, looks
from geomim.maps.walk.windows import read_window
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range

_LOOKED, _FEW, _SAID = 256, 4, 6  # images that are looked at, windows of each, and sentences of what was assumed


class Looks:
    """What is to be said of the numbers of many images, equal words once.

    The first image of each kind of numbers is judged as the scene of a map is, and may be refused. Of others, spread
    over all of them, few windows are looked at, and what is wrong is said: a small image may just be dark.

    Args:
        count: How many images there are.
    """

    def __init__(self, count: int) -> None:
        self._every, self._looked, self._kinds = -(-count // _LOOKED), 0, set[object]()
        self._assumed: dict[str, list[str]] = defaultdict(list)
        self._unusual, self._odd, self._blank, self._empty = list[str](), list[str](), list[str](), list[str]()

    def at(
        self, number: int, scene: Scene, prepare: ContractInput, places: Sequence[tuple[int, int]], side: int
    ) -> None:
        """Look at an image.

        Args:
            number: Its place among all.
            scene: Opened by `open_for`.
            prepare: As it gave it.
            places: Top and left of its windows.
            side: Of the windows, in pixels.

        Raises:
            InputError: It is the first of its kind, and its numbers must be in another unit.
        """
        for said in assumed_of(scene, prepare):
            self._assumed[said].append(scene.uri)
        kind = scene.dtype, scene.sensor.names, scene.sensor.meanings
        first = kind not in self._kinds
        if not first and number % self._every:
            return
        windows = (one for one in islice(looks(scene, places, side), None if first else _FEW) if one[1].any())
        if (head := next(windows, None)) is None:  # which tells nothing of its kind
            self._blank.append(scene.uri)
            return
        self._kinds.add(kind)
        self._looked += 1
        try:
            unusual = check_range(prepare, chain([head], windows), f"'{scene.uri}'")
            self._unusual += unusual if first else ()
        except InputError as error:
            if isinstance(error, UnreadableError) or (first and len(self._kinds) == 1):
                raise
            if first:
                said = "other images hold numbers of another kind, and --sensor goes for all: bring them to one unit"
                raise InputError(f"{error}; {said}") from error
            self._odd.append(str(error))

    def empty(self, scene: Scene, top: int, left: int, side: int) -> bool:
        """Whether no pixel of a window is measured; it is read only where the file leaves that open."""
        own = scene.reader
        plain = isinstance(own, RasterReader) and own.alpha is None and not own.masked
        if plain and scene.nodata is None and scene.dtype.kind != "f":
            return False
        if found := not read_window(scene, top, left, side)[1].any():
            self._empty.append(scene.uri)
        return found

    @property
    def notes(self) -> list[str]:
        """All of it, in sentences."""
        more = {said: f"; so with {len(uris) - 1} more" * (len(uris) > 1) for said, uris in self._assumed.items()}
        assumed = [f"'{uris[0]}'{said}{more[said]}" for said, uris in self._assumed.items()]
        counted = {
            "more such sentences are left out": assumed[_SAID:],
            f"of {self._looked} images looked at hold odd numbers ({some(self._odd, 1)})": self._odd,
            f"images have no measured pixel where they were looked at ({some(self._blank)})": self._blank,
            f"images without a measured pixel are left out ({some(self._empty)})": self._empty,
        }
        return [*assumed[:_SAID], *self._unusual, *(f"{len(own)} {said}" for said, own in counted.items() if own)]
