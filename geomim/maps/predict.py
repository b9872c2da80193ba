"""Maps: what a probe or a clustering says of every patch of a whole scene, window by window."""

import colorsys
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from rich.progress import track
from torch import Tensor

from geomim.corpus.scenes import Scene, find_scenes, open_scene
from geomim.errors import BandError, CheckpointError, GeomimError, InputError
from geomim.evaluate.features import encode, fast_half
from geomim.evaluate.probes import patch_logits
from geomim.evaluate.saved import fingerprint, load_probe
from geomim.maps.clusters import fit_kmeans
from geomim.models.fitting import Chosen, contract_for, fitted
from geomim.models.hierarchical import Encoder
from geomim.models.inputs import ContractInput, patch_validity
from geomim.models.ranges import check_range
from geomim.models.weights import Loaded, contract_of, read_encoder
from geomim.sensors import BandContract, Sensor, get_sensor, match_bands, stated_contract

NODATA = 255
"""Value of a patch without image in a map; class ids run from 0 to 254."""

Decide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mapper:
    """An encoder ready to look at scenes.

    Attributes:
        encoder: Frozen, on `device`.
        contract: Bands and statistics its input must have.
        device: Where it runs.
        source: The encoder as it was read.
        gsd: Metres a pixel that a probe was fitted at, where positions follow them.
        batch: Windows encoded at a time.
    """

    encoder: Encoder
    contract: BandContract
    device: torch.device
    source: Encoder
    gsd: float | None = None
    batch: int = 16

    @property
    def margin(self) -> int:
        """Pixels at each side of a window whose answers are left to the neighbour, so that seams are mild."""
        return self.encoder.grid[0] // 8 * self.encoder.patch_size

    def at(self, scene: Scene) -> "Mapper":
        """The same for the metres a pixel of a scene, where positions follow them."""
        if not self.source.config.get("gsd_positions"):
            return self
        return replace(self, encoder=fitted(self.source, self.contract, scene.gsd).to(self.device))

    def open(self, uri: str, sensor: Sensor | None, bands: Sequence[str] | None) -> tuple[Scene, ContractInput]:
        """Open a scene that has the contract's bands; numbers of no stated unit are taken to be the contract's.

        Raises:
            BandError: It lacks a band, by name.
        """
        scene = self._open(uri, sensor, bands)
        untold = sensor is None and set(scene.sensor.meanings) == {(Sensor.unit, 1.0, 0.0)}
        try:
            given = self.contract.as_stored(scene.sensor) if untold else scene.sensor
            return scene, ContractInput(self.contract, given)
        except BandError as error:
            scene.close()
            raise BandError(f"'{uri}': {error}") from error

    def _open(self, uri: str, sensor: Sensor | None, bands: Sequence[str] | None) -> Scene:
        try:
            return open_scene(uri, sensor, bands)
        except BandError:
            if sensor is None or bands:
                raise
            # a product that names its bands may lack some that the encoder does not need
            needed = sensor.select([sensor.names[place] for place in self.contract.indices(sensor.bands)])
            with suppress(GeomimError), open_scene(uri) as named:
                match_bands(needed.bands, named.sensor.bands)
                return open_scene(uri, needed)
            raise

    @torch.no_grad()
    def tokens(self, numbers: Tensor, valid: Tensor, prepare: ContractInput) -> tuple[Tensor, Tensor]:
        """Patch tokens `(B, L, D)` float32 of windows, and which patches hold image `(B, L)`; both on the CPU."""
        images, seen = prepare(numbers.to(self.device), valid.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_half(self.device)):
            _, tokens, _ = encode(self.encoder, images)
        return tokens.float().cpu(), patch_validity(seen, self.encoder.patch_size).cpu()


def predict(
    checkpoint: str,
    probe: str,
    scene: list[str],
    out: str,
    sensor: str | None = None,
    bands: list[str] | None = None,
    heads: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Map scenes: a saved probe's class for each patch, as georeferenced GeoTIFFs of class ids.

    Args:
        checkpoint: The encoder the probe was fitted on: a geomim checkpoint, an exported folder, or a published MAE or
            SelectiveMAE file, then taken to be for 8-bit RGB.
        probe: A probe file that `geomim evaluate` wrote, or its folder (then the linear probe).
        scene: Rasters, or folders of them.
        out: Folder for `NAME_classes.tif`; or one `.tif` for one scene. Pixels are as large as a patch, 255 is
            nodata; class names and colours are in the file and beside it.
        sensor: Name or YAML file of the scenes' sensor.
        bands: Names of the file's bands in file order, where it does not name them. Without `sensor`, a scene of no
            stated unit is taken to store numbers as the encoder's sensor does, which is printed.
        heads: Attention heads of a published file, which does not state them.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The maps written.

    Raises:
        CheckpointError: The probe was fitted on another encoder, or cannot be read.
        BandError: A scene lacks bands that the encoder needs.
        InputError: A scene's numbers are far from those that the encoder was trained on.
    """
    answers, card = load_probe(probe)
    mapper = _mapper(checkpoint, heads, device, lambda _: (BandContract.from_dict(card.contract or {}), ()), card.gsd)
    if card.encoder != fingerprint(mapper.encoder):
        raise CheckpointError(
            f"probe '{probe}' was fitted on another encoder than '{checkpoint}': run `geomim evaluate` on this one"
        )
    if card.kind == "linear" and card.pool != "mean":
        raise CheckpointError(
            f"probe '{probe}' was fitted on the class token, which no patch has: run `geomim evaluate --pool mean`"
        )
    if card.scale != 1:
        changed = f"shrunk {card.scale:.3g}" if card.scale > 1 else f"enlarged {1 / card.scale:.3g}"
        print(
            f"note: the probe was fitted on images {changed} times, the map is made at the scene's own resolution: for "
            "like with like, evaluate on images of the encoder's size"
        )
    if len(card.classes) > NODATA:
        raise CheckpointError(f"a map holds at most {NODATA} classes; probe '{probe}' has {len(card.classes)}")
    names = card.classes

    def decide(tokens: Tensor) -> Tensor:
        return patch_logits(answers, tokens).argmax(2)

    read = None if sensor is None else get_sensor(sensor)
    targets = _targets(find_scenes(scene), out, "classes")
    for uri, path in targets:
        opened, prepare = mapper.open(uri, read, bands)
        with opened:
            here = mapper.at(opened)
            _check(here, opened, prepare)
            _draw(here, opened, prepare, decide, names, path)
    return [path for _, path in targets]


def cluster(
    checkpoint: str,
    scene: list[str],
    out: str,
    clusters: int = 8,
    sensor: str | None = None,
    bands: list[str] | None = None,
    seed: int = 0,
    sample: int = 20000,
    heads: int | None = None,
    all_bands: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Map scenes without labels: k-means of the patch embeddings, fitted on a sample of all the scenes together.

    Args:
        checkpoint: As for `predict`.
        scene: Rasters, or folders of them.
        out: Folder for `NAME_clusters.tif`; or one `.tif` for one scene. As `predict` writes them.
        clusters: Number of clusters, 2 to 255; numbered from the most frequent in the sample.
        sensor: As for `predict`.
        bands: As for `predict`.
        seed: Of the sample and the start.
        sample: About how many patches to fit on.
        heads: As for `predict`.
        all_bands: Give an encoder of any sensor all bands of the scenes, not only those it was trained on.
        device: As for `predict`.

    Returns:
        The maps written.
    """
    if not 2 <= clusters <= NODATA:
        raise InputError(f"clusters: expected 2 to {NODATA}, given {clusters}")
    read = None if sensor is None else get_sensor(sensor)
    targets = _targets(find_scenes(scene), out, "clusters")

    def of_first(loaded: Loaded) -> Chosen:
        with open_scene(targets[0][0], read, bands) as first:
            stated = sensor and stated_contract(sensor, first.sensor.names)
            same = stated and stated.sensor.meanings == first.sensor.meanings
            own = replace(stated, sensor=first.sensor) if stated and same else None
            return contract_for(loaded, checkpoint, first.sensor, own, all_bands)

    mapper = _mapper(checkpoint, heads, device, of_first)
    means = fit_kmeans(_sample(mapper, [uri for uri, _ in targets], read, bands, sample, seed), clusters, seed)
    names = [f"cluster {number}" for number in range(len(means.centres))]
    for uri, path in targets:
        opened, prepare = mapper.open(uri, read, bands)
        with opened:
            _draw(mapper.at(opened), opened, prepare, means.nearest, names, path)
    return [path for _, path in targets]


def _mapper(
    checkpoint: str, heads: int | None, device: str, choose: Callable[[Loaded], Chosen], gsd: float | None = None
) -> Mapper:
    """The encoder; one of any sensor is baked for the contract that is then chosen, and for the metres a pixel."""
    loaded = read_encoder(checkpoint, heads)
    spectral = loaded.encoder.config.get("spectral")
    contract, notes = choose(loaded) if spectral else contract_of(loaded, checkpoint)
    for note in notes:
        print(f"note: {note}")
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    return Mapper(fitted(loaded.encoder, contract, gsd).to(target), contract, target, loaded.encoder, gsd)


def _targets(scenes: Sequence[str], out: str, suffix: str) -> list[tuple[str, Path]]:
    if out.lower().endswith((".tif", ".tiff")):
        if len(scenes) > 1:
            raise InputError(f"{len(scenes)} scenes for one file '{out}': give a folder")
        return [(scenes[0], Path(out))]
    names = [f"{Path(uri).stem}_{suffix}.tif" for uri in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several scenes would be written to {', '.join(twice)}: map them into separate folders")
    return [(uri, Path(out) / name) for uri, name in zip(scenes, names, strict=True)]


def _windows(scene: Scene, mapper: Mapper) -> list[tuple[int, int]]:
    """Top and left of windows whose inner parts cover the scene."""
    step = mapper.encoder.image_size - 2 * mapper.margin
    rows, columns = (range(0, size, step) for size in (scene.height, scene.width))
    return [(row - mapper.margin, column - mapper.margin) for row in rows for column in columns]


def _read(scene: Scene, top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A window `(C, side, side)` and its validity; what lies outside the scene repeats its border and is not valid."""
    row, column = max(top, 0), max(left, 0)
    bottom, right = min(top + side, scene.height), min(left + side, scene.width)
    numbers, valid = scene.read_valid(Window(column, row, right - column, bottom - row))
    around = ((row - top, top + side - bottom), (column - left, left + side - right))
    return np.pad(numbers, ((0, 0), *around), mode="edge"), np.pad(valid, around)


def _check(mapper: Mapper, scene: Scene, prepare: ContractInput) -> None:
    """Refuse a scene whose numbers are far from the contract's; say what was assumed of them, and what is unusual."""
    if prepare.sensor != scene.sensor:
        told = dict.fromkeys(f"{u} = number * {s:g} + {o:g}" for u, s, o in prepare.contract.sensor.meanings)
        print(
            f"note: '{scene.uri}' states no unit: {', '.join(told)} is assumed, as the encoder was trained on; "
            "--sensor says otherwise"
        )
    if scene.assumed:
        names = ", ".join(scene.sensor.names)
        print(
            f"note: '{scene.uri}' names no bands: they are assumed to be {names}, in this order; --bands says otherwise"
        )
    if mapper.source.config.get("gsd_positions"):
        print(f"note: {_scale(mapper, scene)}")
    for note in scene.notes:
        print(f"note: '{scene.uri}': {note}")
    places = np.random.default_rng(0).permutation(_windows(scene, mapper))
    read = (_read(scene, top, left, mapper.encoder.image_size) for top, left in places.tolist())
    sample = ((torch.from_numpy(_plain(numbers))[None], torch.from_numpy(valid)[None]) for numbers, valid in read)
    for note in check_range(prepare, sample, f"'{scene.uri}'"):
        print(f"note: {note}")


def _scale(mapper: Mapper, scene: Scene) -> str:
    """For which metres a pixel positions are made, and whether the probe knows such."""
    gsd = scene.gsd or mapper.contract.sensor.gsd
    if gsd is None:
        return f"'{scene.uri}': nothing tells its metres a pixel: positions are those of unknown ones"
    said = f"'{scene.uri}': positions follow the metres a pixel: they are made for {gsd:.3g} m"
    said += ", which its sensor has, as the scene has no place" if scene.crs is None else ""
    if mapper.gsd and not 1 / 1.5 <= gsd / mapper.gsd <= 1.5:
        said += f"; the probe was fitted at {mapper.gsd:.3g} m, and may not know what things look like here"
    return said


def _plain(numbers: np.ndarray) -> np.ndarray:
    """Numbers of a type that torch computes with: it hardly does with unsigned ones of 16 and 32 bits."""
    return numbers.astype(np.float32) if numbers.dtype.kind in "ui" and numbers.dtype != np.uint8 else numbers


def _encoded(
    mapper: Mapper, scene: Scene, prepare: ContractInput, places: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[tuple[int, int]], Tensor, Tensor]]:
    """Windows a batch at a time: their places, patch tokens `(B, L, D)`, and which patches hold image `(B, L)`."""
    for start in range(0, len(places), mapper.batch):
        part = list(places[start : start + mapper.batch])
        read = [_read(scene, top, left, mapper.encoder.image_size) for top, left in part]
        numbers = torch.from_numpy(_plain(np.stack([numbers for numbers, _ in read])))
        valid = torch.from_numpy(np.stack([valid for _, valid in read]))
        yield part, *mapper.tokens(numbers, valid, prepare)


def _draw(
    mapper: Mapper, scene: Scene, prepare: ContractInput, decide: Decide, names: Sequence[str], path: Path
) -> None:
    """Decide every patch of a scene and write the map aside, then rename it."""
    patch, grid = mapper.encoder.patch_size, mapper.encoder.grid
    cut = mapper.margin // patch
    height, width = math.ceil(scene.height / patch), math.ceil(scene.width / patch)
    places = _windows(scene, mapper)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part.tif")
    steps = track(
        _encoded(mapper, scene, prepare, places),
        f"mapping {Path(scene.uri).name}",
        total=math.ceil(len(places) / mapper.batch),
        transient=True,
    )
    try:
        with _create(aside, _profile(scene, patch, height, width)) as raster:
            raster.write_colormap(1, _colours(len(names)))
            raster.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(names)})
            for part, tokens, seen in steps:
                ids = torch.where(seen, decide(tokens), NODATA).to(torch.uint8).view(-1, *grid).numpy()
                for (top, left), window in zip(part, ids, strict=True):
                    row, column = top // patch + cut, left // patch + cut
                    inner = window[cut : grid[0] - cut, cut : grid[1] - cut][: height - row, : width - column]
                    raster.write(inner, 1, window=Window(column, row, inner.shape[1], inner.shape[0]))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _write_names(path, names)
    print(f"wrote {path}: {height} x {width} patches of {patch} px, {len(names)} classes")


def _create(path: Path, profile: dict[str, object]) -> rasterio.io.DatasetWriter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a scene without place gives a map without place
        return rasterio.open(path, "w", **profile)


def _profile(scene: Scene, patch: int, height: int, width: int) -> dict[str, object]:
    profile: dict[str, object] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "nodata": NODATA,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    if scene.transform is not None:
        profile |= {"transform": scene.transform * Affine.scale(patch), "crs": scene.crs}
    return profile


def _colours(count: int) -> dict[int, tuple[int, int, int, int]]:
    """Well separated colours: hues a golden angle apart, in three shades."""
    colours = {}
    for index in range(count):
        hue, shade = index * 0.618034 % 1, (0.85, 0.6, 0.95)[index // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if index % 2 == 0 else 0.5, shade)
        colours[index] = (round(255 * red), round(255 * green), round(255 * blue), 255)
    return colours | {NODATA: (0, 0, 0, 0)}


def _write_names(path: Path, names: Sequence[str]) -> None:
    """Category names where GDAL and QGIS look for them."""
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    text = (
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand></PAMDataset>'
    )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path.with_name(path.name + ".aux.xml"))


def _sample(
    mapper: Mapper,
    scenes: Sequence[str],
    sensor: Sensor | None,
    bands: Sequence[str] | None,
    count: int,
    seed: int,
) -> Tensor:
    """About `count` embeddings of patches with image, from windows spread over all scenes."""
    each = max(1, math.ceil(count / len(scenes) / mapper.encoder.num_patches))
    kept = []
    generator = torch.Generator().manual_seed(seed)
    for uri in track(scenes, "sampling patches", transient=True):
        scene, prepare = mapper.open(uri, sensor, bands)
        with scene:
            here = mapper.at(scene)
            _check(here, scene, prepare)
            places = _windows(scene, here)
            chosen = torch.randperm(len(places), generator=generator)[:each].sort().values.tolist()
            for _, tokens, seen in _encoded(here, scene, prepare, [places[index] for index in chosen]):
                kept.append(tokens[seen])
    sampled = torch.cat(kept)
    if len(sampled) == 0:
        raise InputError(f"no patch with image in a sample of {', '.join(scenes)}: nothing to cluster")
    return sampled
