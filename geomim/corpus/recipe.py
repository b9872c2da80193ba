"""What decides the bytes of a corpus."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from geomim.corpus.labels import open_masks
from geomim.corpus.pipeline.plan import Plan
from geomim.corpus.pipeline.rules import rules_of
from geomim.corpus.slicing import TILE, Grid
from geomim.errors import InputError
from geomim.sensors import get_sensor


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a corpus; see `build` for the meaning of each.

    `tile` is empty until the sources have told it, where the user does not.
    """

    source: list[str]
    tile: list[int]
    stride: int | None
    edge: str
    seed: int
    sensor: str | None
    bands: list[str] | None
    resolution: float | None
    harmonise: bool
    warp: str | None
    clouds: str | None
    labels: str | None
    masks: str | None
    split: str | None
    allow_unmatched: bool
    test_share: float
    crops: bool
    against: list[str] | None
    skip_unreadable: bool
    licence: str | None
    attribution: str | None
    compression: str | None
    min_valid: float
    max_cloud: float | None
    where: str | None
    quota: int
    only_licence: list[str] | None
    non_commercial: bool
    near: int | None
    overlap: float | None

    def plan(self) -> Plan:
        """How scenes are read and cut."""
        sensor = get_sensor(self.sensor) if self.sensor else None
        grid = Grid(tuple(self.tile) or (TILE,), self.stride, self.seed, self.edge)
        options = {name: getattr(self, name) for name in ("resolution", "warp", "clouds", "harmonise")}
        return Plan(grid, sensor, self.bands, self.masks, self.crops, options)

    def check(self) -> None:
        """Refuse what makes no sense, before anything is read.

        Raises:
            InputError: An argument is wrong.
        """
        if self.near is not None and not 0 <= self.near <= 12:
            raise InputError(f"--near is a number of bits, 0 to 12; given {self.near}")
        if self.labels and self.masks:
            raise InputError("--labels and --masks both label tiles: give one of them")
        if self.split and self.test_share:
            raise InputError("--split and --test-share both split the scenes: give one of them")
        if self.masks:
            open_masks(self.masks, again=True)  # says now what is wrong with the folder
        self.plan()
        rules_of({"recipe": asdict(self), "protect": False}).check()
