"""`geomim predict`: a model and scenes become maps."""

import importlib
from pathlib import Path
from typing import Any, Literal

from geomim.corpus.scenes import find_scenes
from geomim.errors import CheckpointError, ConfigError, MissingExtraError
from geomim.maps.classes import card_of, draw, is_done, targets
from geomim.maps.looker import Looker
from geomim.maps.opening import check_scene, gsd_note, open_for, scale_note
from geomim.maps.probes import open_probe
from geomim.models.weights import read_checkpoint
from geomim.sensors import get_sensor


def predict(
    scene: list[str],
    model: str,
    out: str,
    overlap: float = 0.5,
    flips: bool = False,
    resolution: Literal["patch", "pixel"] | None = None,
    encoder: str | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    heads: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Map scenes: the class of each pixel or patch that a tuned task or a saved probe says, and how sure it is.

    A map is a cloud-optimised GeoTIFF that lies on its scene: band 1 holds class ids with names and colours, band 2
    how sure they are in per cent, both 255 where there is no image. A `.qml` beside it is its style in QGIS, and
    hectares of each class are printed. Windows overlap and cross over smoothly; the last ones are moved inside.

    What is stopped at any moment goes on when the same command is given again, and comes to the same bytes. Maps that
    are there already are not made again.

    Examples:
        geomim predict scene.tif --model finetuned --out map.tif
        geomim predict SCENES --model evaluation --out maps --resolution pixel
        geomim predict naip.tif --model evaluation --out map.tif --sensor naip --overlap 0.75 --flips

    Args:
        scene: What `geomim corpus build` takes: files, folders, Sentinel-2 and Landsat products, STAC items, zarr,
            addresses such as `s3://`.
        model: A folder of `geomim finetune` or its `task.ckpt`, of segmentation; or a folder of `geomim evaluate`, best
            with --dense, or a probe file in it (of a folder the linear probe).
        out: A `.tif` of one scene; or a folder for `NAME_classes.tif`.
        overlap: Share of its side that a window has in common with the next, 0 to 0.9; more is smoother and slower.
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
        The maps.

    Raises:
        CheckpointError: The model cannot be read, or the probe was fitted on another encoder.
        BandError: A scene lacks bands that the model needs.
        InputError: A scene's numbers are far from those that the model was trained on, it cannot be read somewhere, or
            the file to write is of another scene.
    """
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap: expected a share of a window from 0 to 0.9; given {overlap:g}")
    pairs = targets(find_scenes(scene), out, "classes")
    looker = _open(model, resolution, encoder, heads, device)
    looker = looker.flipped() if flips else looker
    for note in looker.notes:
        print(f"note: {note}")
    for uri, path in pairs:
        _map(uri, path, looker, model, overlap, sensor, bands)
    return [path for _, path in pairs]


def _open(model: str, resolution: str | None, encoder: str | None, heads: int | None, device: str) -> Looker:
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
    predicting, run = (_finetune(name) for name in ("predict", "run"))
    task, size = predicting.open_task(Path(model), run.TASKS)
    if not isinstance(task, run.TASKS["segmentation"]):
        raise CheckpointError(f"'{model}' is no task of segmentation: use geomim finetune predict")
    looker: Looker = predicting.segmenter(task, size, device)
    return looker


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


def _map(
    uri: str,
    path: Path,
    looker: Looker,
    model: str,
    overlap: float,
    sensor: str | None,
    bands: list[str] | None,
) -> None:
    """One scene and its map, unless it is there."""
    scene, prepare = open_for(looker.contract, uri, get_sensor(sensor) if sensor else None, bands)
    with scene:
        here, walk = looker.at(scene), looker.walk(scene, overlap)
        if is_done(path, scene, card_of(scene, here, walk)):
            print(f"'{path}' is there already: take it away to make it again")
            return
        scaled = (scale_note(scene, looker.contract, looker.gsd),) if looker.scaled else gsd_note(scene, looker.gsd)
        check_scene(scene, prepare, walk.places, looker.side, scaled)
        draw(scene, prepare, here, walk, path, model)
