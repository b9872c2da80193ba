"""`geomim cluster`: a map without labels, of a k-means of patch embeddings."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim.corpus.scenes import Scene, find_scenes
from geomim.errors import InputError
from geomim.evaluate.saved import fingerprint
from geomim.maps.classes import card_of, draw, each, is_done, targets
from geomim.maps.clusters import KMeans, fit_kmeans
from geomim.maps.files.rasters import NODATA
from geomim.maps.scenes.opening import check_scene, chosen_for, open_for, scale_note
from geomim.maps.walk.encoder import Frozen, open_encoder
from geomim.maps.walk.looker import Looker, Prepare
from geomim.maps.walk.strips import digest
from geomim.maps.walk.windows import read_window
from geomim.models.fitting import Chosen
from geomim.models.inputs import ContractInput, patch_validity
from geomim.models.weights import Loaded
from geomim.sensors import Sensor, get_sensor

_OVERLAP = 0.5  # patches at a window's border know least around them
_Placed = tuple[Tensor, Tensor]
_FEW = 8  # windows that say nothing, as it were, beside those that tell what a place adds


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

    Embeddings also tell where in the window a patch is, which is no land: the mean of each place is taken off first.
    Maps are written as `geomim predict` writes them, and go on where they were stopped. Confidence is that of a soft
    assignment: nearer than all others by a unit of the mean squared distance of a value counts e times as much.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file, then taken to be
            for 8-bit RGB.
        scene: What `geomim corpus build` takes: files, folders, products, addresses.
        out: Folder for `NAME_clusters.tif`; or one `.tif` for one scene. Pixels are as large as a patch.
        clusters: Number of clusters, 2 to 255; numbered from the most frequent in the sample.
        sensor: Name or YAML file of the scenes' sensor.
        bands: Names of the file's bands in file order, where it does not name them. Without `sensor`, a scene of no
            stated unit is taken to store numbers as the encoder's sensor does, which is printed.
        seed: Of the sample and the start.
        sample: About how many patches to fit on.
        heads: Attention heads of a published file, which does not state them.
        all_bands: Give an encoder of any sensor all bands of the scenes, not only those it was trained on.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The maps.

    Raises:
        BandError: A scene lacks bands that the encoder needs.
        InputError: A scene's numbers are far from those that the encoder was trained on, or no patch holds image.
    """
    if not 2 <= clusters <= NODATA:
        raise InputError(f"clusters: expected 2 to {NODATA}, given {clusters}")
    read = None if sensor is None else get_sensor(sensor)
    pairs = targets(find_scenes(scene), out, "clusters")

    def of_first(loaded: Loaded) -> Chosen:
        return chosen_for(loaded, checkpoint, pairs[0][0], sensor, bands, all_bands)

    frozen = open_encoder(checkpoint, heads, device, of_first)
    for note in frozen.notes:
        print(f"note: {note}")
    tokens, at = _sample(frozen, [uri for uri, _ in pairs], read, bands, sample, seed)
    places = effect_of_place(tokens, at, frozen.encoder.num_patches)
    looker = _looker(frozen, fit_kmeans(tokens - places[at], clusters, seed), places)

    def make(uri: str, path: Path) -> list[Path]:
        opened, prepare = open_for(frozen.contract, uri, read, bands)
        with opened:
            here, walk = looker.at(opened), looker.walk(opened, _OVERLAP)
            if is_done(path, opened, card_of(opened, here, walk)):
                print(f"'{path}' is there already: take it away to make it again")
            else:
                draw(opened, prepare, here, walk, path, checkpoint)
        return [path]

    return each(pairs, make)


def effect_of_place(tokens: Tensor, at: Tensor, count: int) -> Tensor:
    """What the place in the window adds to embeddings, `(count, D)`, which would be clustered as if it were land.

    It is the mean of a place less that of all, drawn towards nothing where few windows tell of it.

    Args:
        tokens: `(N, D)` embeddings of patches.
        at: `(N,)` int64, their places in their windows.
        count: Patches of a window.
    """
    sums = tokens.new_zeros(count, tokens.shape[1]).index_add_(0, at, tokens - tokens.mean(0))
    return sums / (at.bincount(minlength=count)[:, None] + _FEW)


def _looker(frozen: Frozen, means: KMeans, places: Tensor) -> Looker:
    mean, std, centres, shift = (one.to(frozen.device) for one in (means.mean, means.std, means.centres, places))
    near, names = KMeans(mean, std, centres), tuple(f"cluster {number}" for number in range(len(centres)))

    def decide(tokens: Tensor) -> Tensor:
        return (near.scores(tokens - shift) / tokens.shape[-1]).softmax(-1)

    fitted = torch.cat([means.mean[None], means.std[None], means.centres, places]).tolist()
    made_by = digest({"encoder": fingerprint(frozen.source), "clusters": fitted})
    return frozen.looker(names, decide, made_by)


def _sample(
    frozen: Frozen, scenes: Sequence[str], sensor: Sensor | None, bands: Sequence[str] | None, count: int, seed: int
) -> _Placed:
    """About `count` embeddings of patches with image and their places, from windows spread over all scenes."""
    each = max(1, math.ceil(count / len(scenes) / frozen.encoder.num_patches))
    kept: list[_Placed] = []
    generator = torch.Generator().manual_seed(seed)
    for uri in track(scenes, "sampling patches", console=Console(stderr=True), transient=True):
        scene, prepare = open_for(frozen.contract, uri, sensor, bands)
        with scene:
            here = frozen.at(scene.gsd)
            places = here.looker((), lambda tokens: tokens, "").walk(scene, _OVERLAP).places
            also = [scale_note(scene, frozen.contract)] if frozen.follows else []
            check_scene(scene, prepare, places, frozen.encoder.image_size, also)
            chosen = torch.randperm(len(places), generator=generator)[:each].sort().values.tolist()
            kept += [_tokens(here, scene, prepare, places[index]) for index in chosen]
    sampled, at = (torch.cat(part) for part in zip(*kept, strict=True))
    if len(sampled) == 0:
        raise InputError(f"no patch with image in a sample of {', '.join(scenes)}: nothing to cluster")
    return sampled, at


def _tokens(
    frozen: Frozen, scene: Scene, prepare: ContractInput | Prepare, place: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Embeddings `(n, D)` of the patches of a window that hold image, and their places in it, `(n,)`."""
    numbers, valid = (torch.from_numpy(one)[None] for one in read_window(scene, *place, frozen.encoder.image_size))
    images, seen = prepare(numbers.to(frozen.device), valid.to(frozen.device))
    tokens = frozen.tokens(images)[0].flatten(1).T
    at = patch_validity(seen, frozen.encoder.patch_size)[0].nonzero().flatten()
    return tokens[at].cpu(), at.cpu()
