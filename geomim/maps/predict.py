"""Maps: what a probe or a clustering says of every patch of a whole scene, window by window."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window
from rich.progress import track
from torch import Tensor

from geomim.corpus.scenes import Scene, find_scenes
from geomim.errors import CheckpointError, InputError
from geomim.evaluate.features import device_of, encode, fast_half
from geomim.evaluate.probes import patch_logits
from geomim.evaluate.saved import fingerprint, load_probe
from geomim.maps.clusters import fit_kmeans
from geomim.maps.opening import check_scene, chosen_for, open_for, scale_note
from geomim.maps.rasters import NODATA, aside, create, name_classes, placed, write_names
from geomim.maps.windows import Walk, blend, read_window
from geomim.models.fitting import Chosen, fitted
from geomim.models.hierarchical import Encoder
from geomim.models.inputs import ContractInput, patch_validity
from geomim.models.weights import Loaded, contract_of, read_encoder
from geomim.sensors import BandContract, Sensor, get_sensor

Decide = Callable[[Tensor], Tensor]
"""Patch tokens `(B, L, D)` to scores `(B, L, K)`, which windows are blended by."""


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

    def walk(self, scene: Scene) -> Walk:
        """Where windows lie over a scene: each half over the next, as patches at a border know least around them."""
        side = self.encoder.grid[0]
        return Walk(scene.height, scene.width, self.encoder.patch_size, side, side // 2)

    def at(self, scene: Scene) -> "Mapper":
        """The same for the metres a pixel of a scene, where positions follow them."""
        if not self.source.config.get("gsd_positions"):
            return self
        return replace(self, encoder=fitted(self.source, self.contract, scene.gsd).to(self.device))

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

    Windows of the encoder's size overlap by half, the last ones moved inside, and are blended.

    Args:
        checkpoint: The encoder the probe was fitted on: a geomim checkpoint, an exported folder, or a published MAE or
            SelectiveMAE file, then taken to be for 8-bit RGB.
        probe: A probe file that `geomim evaluate` wrote, best with --dense, or its folder (then the linear probe).
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
    if card.kind == "linear" and card.pool == "class":
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
        return patch_logits(answers, tokens)

    read = None if sensor is None else get_sensor(sensor)
    targets = _targets(find_scenes(scene), out, "classes")
    for uri, path in targets:
        opened, prepare = open_for(mapper.contract, uri, read, bands)
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
        return chosen_for(loaded, checkpoint, targets[0][0], sensor, bands, all_bands)

    mapper = _mapper(checkpoint, heads, device, of_first)
    means = fit_kmeans(_sample(mapper, [uri for uri, _ in targets], read, bands, sample, seed), clusters, seed)
    names = [f"cluster {number}" for number in range(len(means.centres))]
    for uri, path in targets:
        opened, prepare = open_for(mapper.contract, uri, read, bands)
        with opened:
            _draw(mapper.at(opened), opened, prepare, means.scores, names, path)
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
    target = device_of(device)
    return Mapper(fitted(loaded.encoder, contract, gsd).to(target), contract, target, loaded.encoder, gsd)


def _targets(scenes: Sequence[str], out: str, suffix: str) -> list[tuple[str, Path]]:
    if out.lower().endswith((".tif", ".tiff")):
        if len(scenes) > 1:
            raise InputError(f"{len(scenes)} scenes for one file '{out}': give a folder")
        if Path(out).absolute() == Path(scenes[0]).absolute():
            raise InputError(f"--out would be written over the scene '{out}': name another file")
        return [(scenes[0], Path(out))]
    names = [f"{Path(uri).stem}_{suffix}.tif" for uri in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several scenes would be written to {', '.join(twice)}: map them into separate folders")
    return [(uri, Path(out) / name) for uri, name in zip(scenes, names, strict=True)]


def _check(mapper: Mapper, scene: Scene, prepare: ContractInput) -> None:
    also = [scale_note(scene, mapper.contract, mapper.gsd)] if mapper.source.config.get("gsd_positions") else []
    check_scene(scene, prepare, mapper.walk(scene).places, mapper.encoder.image_size, also)


def _encoded(
    mapper: Mapper, scene: Scene, prepare: ContractInput, places: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[tuple[int, int]], Tensor, Tensor]]:
    """Windows a batch at a time: their places, patch tokens `(B, L, D)`, and which patches hold image `(B, L)`."""
    for start in range(0, len(places), mapper.batch):
        part = list(places[start : start + mapper.batch])
        read = [read_window(scene, top, left, mapper.encoder.image_size) for top, left in part]
        numbers, valid = (torch.from_numpy(np.stack(one)) for one in zip(*read, strict=True))
        yield part, *mapper.tokens(numbers, valid, prepare)


def _draw(
    mapper: Mapper, scene: Scene, prepare: ContractInput, decide: Decide, names: Sequence[str], path: Path
) -> None:
    """Take the highest score of every patch of a scene; the map is written aside, then renamed."""
    walk = mapper.walk(scene)
    (height, width), cells = walk.shape, (walk.side, walk.side)

    def look(numbers: Tensor, valid: Tensor) -> tuple[np.ndarray, np.ndarray]:
        tokens, seen = mapper.tokens(numbers, valid, prepare)
        return decide(tokens).transpose(1, 2).unflatten(2, cells).numpy(), seen.unflatten(1, cells).numpy()

    with aside(path) as part_file, create(part_file, _profile(scene, walk.cell, height, width)) as raster:
        name_classes(raster, names)
        for top, scores in blend(scene, walk, look, mapper.batch):
            ids = np.where(np.isnan(scores[0]), NODATA, scores.argmax(0)).astype(np.uint8)
            raster.write(ids, 1, window=Window(0, top, width, len(ids)))
    write_names(path, names)
    print(f"wrote {path}: {height} x {width} patches of {walk.cell} px, {len(names)} classes")


def _profile(scene: Scene, patch: int, height: int, width: int) -> dict[str, object]:
    return {
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "nodata": NODATA,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    } | placed(scene, patch)


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
        scene, prepare = open_for(mapper.contract, uri, sensor, bands)
        with scene:
            here = mapper.at(scene)
            _check(here, scene, prepare)
            places = here.walk(scene).places
            chosen = torch.randperm(len(places), generator=generator)[:each].sort().values.tolist()
            for _, tokens, seen in _encoded(here, scene, prepare, [places[index] for index in chosen]):
                kept.append(tokens[seen])
    sampled = torch.cat(kept)
    if len(sampled) == 0:
        raise InputError(f"no patch with image in a sample of {', '.join(scenes)}: nothing to cluster")
    return sampled
