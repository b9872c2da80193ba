"""`geomim predict`: a model and scenes become maps, or tables of objects."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from geomim.corpus.scenes import find_scenes
from geomim.errors import CheckpointError, ConfigError, MissingExtraError
from geomim.maps.classes import each, targets
from geomim.maps.drawing import Asked, make
from geomim.maps.files.layers import ENDINGS
from geomim.maps.files.rasters import check_place
from geomim.maps.probes import open_probe
from geomim.maps.scenes.areas import NoGroundError
from geomim.maps.walk.finder import Finder
from geomim.maps.walk.looker import Looker
from geomim.maps.walk.windows import check_overlap
from geomim.models.weights import read_checkpoint
from geomim.sensors import Sensor, get_sensor

_THRESHOLD = 0.3  # score of an object


def predict(
    scene: list[str],
    model: str,
    out: str,
    after: str | None = None,
    aoi: str | None = None,
    polygons: str | None = None,
    simplify: float | None = None,
    threshold: float | None = None,
    overlap: float = 0.5,
    flips: bool = False,
    resolution: Literal["patch", "pixel"] | None = None,
    encoder: str | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    heads: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Map scenes: classes, objects, or what changed between two dates, as a tuned task or a saved probe says.

    A map of classes is a cloud-optimised GeoTIFF that lies on its scene: band 1 holds class ids with names and colours,
    band 2 how sure they are in per cent, both 255 where there is no image. A `.qml` beside it is its style in QGIS, and
    hectares of each class are printed. Objects are polygons in the scene's system. Windows overlap, and classes cross
    over smoothly; the last windows are moved inside.

    What is stopped at any moment goes on when the same command is given again, and comes to the same map, byte for
    byte, or to the same objects. Maps that are there already are not made again.

    Examples:
        geomim predict scene.tif --model finetuned --out map.tif
        geomim predict SCENES --model evaluation --out maps --resolution pixel
        geomim predict scene.tif --model finetuned --out map.tif --polygons map.gpkg --simplify 20
        geomim predict scene.tif --model detector --out ships.gpkg --threshold 0.5 --aoi harbour.geojson
        geomim predict before.tif --after after.tif --model change --out changed.tif

    Args:
        scene: What `geomim corpus build` takes: files, folders, Sentinel-2 and Landsat products, STAC items, zarr,
            addresses such as `s3://`.
        model: A folder of `geomim finetune` or its `task.ckpt`; or a folder of `geomim evaluate`, best with --dense, or
            a probe file in it (of a folder the linear probe).
        out: A file of one scene: `.tif`, or of objects `.gpkg` or `.parquet`; or a folder for `NAME_classes.tif`,
            `NAME_change.tif` or `NAME_objects.gpkg`. A task of whole images writes one `.csv`, in a folder
            `classes.csv`.
        after: The second date, of a task of change. It is brought to the grid of the first; what one of them lacks is
            nodata.
        aoi: Vector file of polygons in any system: windows that they do not touch are not looked at, and what lies
            outside is left out.
        polygons: Where outlines of the classes are to be written, too, with hectares and how sure they are: a `.gpkg`
            or `.parquet` of one scene, or a folder.
        simplify: Metres by which these outlines are made simpler; neighbours keep one outline between them.
        threshold: Score that an object has at least; 0.3 where not given.
        overlap: Share of its side that a window has in common with the next, 0 to 0.9; more is smoother and slower.
            Tasks of whole images have no windows, and it says nothing there.
        flips: Take the mean over each window as it is, mirrored left to right, upside down, and both; four times the
            work.
        resolution: Of a probe's map: `patch` (the default) or `pixel`, which interpolates what it says of patches.
            Tuned tasks say something of every pixel.
        encoder: What a probe was fitted on, where it has moved since; its fingerprint must be the same.
        sensor: Name or YAML file of the scenes' sensor; needed only where a scene tells less than the model's bands.
        bands: Names of the file's bands in file order, where it does not name them. Without `sensor`, a scene of no
            stated unit is taken to store numbers as the model's sensor does, which is printed.
        heads: Attention heads of a published file that a probe was fitted on, which does not state them.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The files.

    Raises:
        CheckpointError: The model cannot be read, or the probe was fitted on another encoder.
        ConfigError: What is asked for is of another kind of model.
        BandError: A scene lacks bands that the model needs.
        InputError: A scene's numbers are far from those that the model was trained on, it cannot be read somewhere, two
            dates or an area and a scene do not meet, or the file to write is of another scene. Of several scenes the
            others are mapped first.
    """
    check_overlap(overlap)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold: expected a score from 0 to 1; given {threshold:g}")
    _check_folder("out", out)
    _check_folder("polygons", polygons)
    uris, opened = find_scenes(scene), _open(model, resolution, encoder, heads, device)
    flags = {"after": after, "aoi": aoi, "polygons": polygons, "simplify": simplify, "threshold": threshold}
    kind = _kind(opened, model, flags | {"flips": flips or None}, out, len(uris))
    read = get_sensor(sensor) if sensor else None
    for note in opened.notes:
        print(f"note: {note}")
    if isinstance(opened, Whole):
        return [opened.write(uris, out, read, bands)]
    opened = opened.flipped() if flips and isinstance(opened, Looker) else opened
    asked = Asked(model, overlap, read, bands, after, aoi, _THRESHOLD if threshold is None else threshold, simplify)
    outlines = dict(targets(uris, polygons, "polygons", ENDINGS, "polygons")) if polygons else {}

    def one(uri: str, path: Path) -> list[Path]:
        try:
            return make(opened, asked, uri, path, outlines.get(uri))
        except NoGroundError as error:
            if len(uris) == 1:
                raise
            print(f"note: {error}: it is left out")
            return []

    files = each(targets(uris, out, kind.suffix, kind.endings), one)
    if not files:
        raise NoGroundError(f"none of {len(uris)} scenes has ground in common with area '{aoi}'")
    return files


def _check_folder(flag: str, given: str | None) -> None:
    """Refuse the name of a file of another format, which would become a folder."""
    if given and given.lower().endswith(_OTHERS):
        raise ConfigError(
            f"--{flag}: '{given}' is of a format that is not written: expected {', '.join(_RASTERS[:1] + ENDINGS)} or "
            ".csv, as the model has it, or a folder"
        )


class Kind(NamedTuple):
    """What a model makes of a scene: in words, called what in a folder, with which endings, and by which flags."""

    what: str
    suffix: str
    endings: tuple[str, ...]
    flags: tuple[str, ...]


_OTHERS = (
    ".geojson",
    ".json",
    ".shp",
    ".kml",
    ".fgb",
    ".gdb",
    ".png",
    ".jpg",
    ".jp2",
    ".vrt",
    ".nc",
    ".zarr",
    ".geoparquet",
)
_RASTERS, _DRAWN = (".tif", ".tiff"), ("aoi", "polygons", "simplify", "flips")
_CLASSES = Kind("says classes of pixels or patches", "classes", _RASTERS, _DRAWN)
_CHANGE = Kind("says what changed between two dates", "change", _RASTERS, ("after", *_DRAWN))
_OBJECTS = Kind("finds objects", "objects", ENDINGS, ("aoi", "threshold"))
_WHOLE = Kind("says one class of an image", "table", (".csv",), ())


def _kind(opened: Any, model: str, flags: Mapping[str, Any], out: str, scenes: int) -> Kind:
    """What kind of model it is.

    Raises:
        ConfigError: A flag, or the ending of the file, is of another kind, or one is missing.
    """
    if isinstance(opened, Looker):
        kind = _CLASSES if opened.dates == 1 else _CHANGE
    else:
        kind = _WHOLE if isinstance(opened, Whole) else _OBJECTS
    for flag, given in flags.items():
        if given is not None and flag not in kind.flags:
            raise ConfigError(f"--{flag} says nothing here, as '{model}' {kind.what}: leave it out")
    others = {ending for one in (_CLASSES, _OBJECTS, _WHOLE) for ending in one.endings if ending not in kind.endings}
    if out.lower().endswith(tuple(others)):
        expected = f"expected {' or '.join(kind.endings)}, or a folder"
        raise ConfigError(f"--out: {expected}, as '{model}' {kind.what}; given '{out}'")
    if kind is _CHANGE and (flags["after"] is None or scenes > 1):
        raise ConfigError(f"'{model}' {kind.what}: give one scene, and the later one with --after")
    if flags["simplify"] is not None and flags["polygons"] is None:
        raise ConfigError("--simplify is of outlines: say with --polygons where to write them")
    return kind


@dataclass(frozen=True)
class Whole:
    """A task that says one class of an image, which is brought to a side in pixels."""

    task: Any
    size: int
    device: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of its encoder, in sentences."""
        return tuple(self.task.notes)

    def write(self, uris: Sequence[str], out: str, sensor: Sensor | None, bands: Sequence[str] | None) -> Path:
        """One table, a row a scene, each of which is read into memory whole; see `write_classes`."""
        path = Path(out) if out.lower().endswith(_WHOLE.endings) else Path(out) / "classes.csv"
        check_place("out", path)
        _finetune("predict").write_classes(self.task, uris, path, self.size, sensor, bands, self.device)
        return path


def _open(
    model: str, resolution: str | None, encoder: str | None, heads: int | None, device: str
) -> Looker | Finder | Whole:
    """What looks at the scenes, whatever kind of model it is."""
    if not is_task(model):
        if Path(model).is_file() and Path(model).suffix not in (".safetensors", ".json"):
            raise CheckpointError(
                f"'{model}' is neither a tuned task nor a probe: an encoder alone knows no classes; run geomim "
                "finetune, or geomim evaluate and give its folder"
            )
        looker = open_probe(model, encoder, heads, device)
        return looker.per_pixel() if resolution == "pixel" else looker
    given = {"--resolution patch": resolution == "patch", "--encoder": encoder, "--heads": heads}
    for flag, is_given in given.items():
        if is_given:
            raise ConfigError(f"{flag} is of probes; '{model}' is a tuned task, which says something of every pixel")
    predicting = _finetune("predict")
    task, name, size = predicting.open_task(Path(model))
    if name == "classification":
        return Whole(task, size, device)
    ways = {"segmentation": predicting.segmenter, "detection": predicting.finder, "change": predicting.changer}
    found: Looker | Finder = ways[name](task, size, device)
    return found


def is_task(model: str) -> bool:
    """Whether a model is a tuned task: a folder that holds one, or its file."""
    path = Path(model)
    return (path / "task.ckpt").is_file() or (path.suffix == ".ckpt" and "geomim_task" in read_checkpoint(path))


def _finetune(name: str) -> Any:
    """A module of the room of tasks, which asks for more libraries than maps do."""
    try:
        return importlib.import_module(f"geomim.finetune.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("geomim"):
            raise
        raise MissingExtraError(
            f"a tuned task needs '{error.name}', which is not installed: pip install 'geomim[finetune]'"
        ) from error
