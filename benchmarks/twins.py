"""A multispectral model of images and sentences beside its twin of red, green and blue.

    python benchmarks/twins.py --work WORK                   # an idle machine, please
    python benchmarks/twins.py --work WORK --quick           # a few steps: does it run

Tiles of 32 px of Sentinel-2 (EuroSAT's places, one flood scene, five L2A tiles) and of 100 places with water, about
2,500, whose sentences geomim wrote: from indices of their bands, from water masks as objects, and from the shares of
those masks. Both twins read the same tiles and sentences in the same order for as many steps, one all bands of a tile,
the other red, green and blue (`data.bands`). A third of the places is held out, none of them seen in training.

Asked on held-out tiles: mean recall of sentences of each origin (equal sentences are hits of each other's tiles),
and average precision of four queries of what covers the ground, where a tile is right if a fifth of it is that; chance
beside both. Means over seeds, which are of weights, order and crops; the split is the same.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from sensors import EUROSAT
from torch import Tensor
from water import SENSOR

from geomim.corpus.build import build
from geomim.corpus.captions.caption import caption
from geomim.corpus.captions.cover import NOUNS, bands_of, classify
from geomim.corpus.changes import split
from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.data.tiles import TileSet
from geomim.evaluate.figures import CHANCE
from geomim.evaluate.retrieval import mean_average_precision, retrieval
from geomim.evaluate.sentences import encode_sentences
from geomim.models.image_text import open_image_text
from geomim.models.inputs import ContractInput
from geomim.pretrain.module import Optimisation
from geomim.sensors import get_sensor
from geomim.verbs.pretrain import Training, train

TILE, SIDE = 32, 64
ENCODER = {"patch_size": 8, "width": 192, "depth": 6, "heads": 3, "spectral": True}
TWINS = {"all bands": None, "rgb": ["B04", "B03", "B02", "red", "green", "blue"]}
WATER = ("land", "water")
ORIGINS = ("index", "landcover", "m2b")
LEAST = 0.2


def corpora(data: Path, work: Path) -> list[Path]:
    """Build and caption the corpora that are not there yet."""
    l2a = [name for name in get_sensor("sentinel2").names if name != "B10"]
    flood, water = data / "sen1floods11", data / "water"
    work.mkdir(parents=True, exist_ok=True)
    (work / "water.yaml").write_text(SENSOR + "unit: reflectance\nscale: 0.0001\n")
    wanted: dict[str, dict[str, Any]] = {
        "eurosat": {"source": [str(data / "eurosat")], "sensor": "sentinel2", "bands": EUROSAT},
        "l2a": {"source": [str(data / "s2_l2a")], "sensor": "sentinel2", "bands": l2a},
        "flood": {"source": [str(flood / "Spain_7370579_S2Hand.tif")], "sensor": "sentinel2"},
        "water": {"source": [str(water / "images")], "sensor": str(work / "water.yaml")},
    }
    wanted["water"]["bands"] = ["coastal", "blue", "green", "red", "nir", "swir1", "swir2", *"-" * 5]
    for name, arguments in wanted.items():
        path, of = work / name, ["index"]
        if (path / "captioned").is_file():
            continue
        if name in ("flood", "water"):
            files = {flood / "Spain_7370579_LabelHand.tif": "Spain_7370579_S2Hand.tif"} if name == "flood" else None
            files = files or {one: f"{one.stem}.tif" for one in sorted((water / "labels").iterdir())}
            arguments["masks"], of = str(masks(files, work / f"{name}-masks")), ["index", "masks", "cover"]
        if name == "water":
            arguments |= {"split": str(groups(water / "location_groups.csv", work / "water-split.csv"))}
        build(out=str(path), tile=TILE, **arguments)
        if name != "water":
            split(str(path), test_share=0.33, block=1.0 if name == "flood" else 10.0)
        caption(str(path), of=of)
        (path / "captioned").touch()
    return [work / name for name in wanted]


def masks(files: dict[Path, str], out: Path) -> Path:
    """Masks as `geomim corpus build --masks` has them."""
    out.mkdir(exist_ok=True)
    for file, name in files.items():
        with rasterio.open(file) as scene:
            numbers, profile = scene.read(1), {"crs": scene.crs, "transform": scene.transform}
        where = {"height": len(numbers), "width": numbers.shape[1], "count": 1, "dtype": "uint8", "nodata": 255}
        with rasterio.open(out / name, "w", driver="GTiff", **where, **profile) as mask:
            mask.write(np.where(numbers < 0, 255, numbers > 0).astype(np.uint8), 1)
    (out / "classes.json").write_text(json.dumps(dict(enumerate(WATER))))
    return out


def groups(table: Path, out: Path) -> Path:
    """A third of the location groups to test on."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({int(row["location_group"]) for row in rows})
    held = set(np.random.default_rng(0).permutation(names)[: len(names) // 3].tolist())
    lines = [f"{row['tile']},{'test' if int(row['location_group']) in held else 'train'}" for row in rows]
    out.write_text("\n".join(["image,split", *lines]) + "\n")
    return out


def trained(folder: Path, made: list[Path], recipe: str, bands: list[str] | None, steps: int, seed: int) -> Path:
    """Train a model of images and sentences, or what is left of that; the checkpoint."""
    data = TileDataModule([str(path) for path in made], 64, SIDE, workers=0, seed=seed, bands=bands, turn=True)
    training = Training(max_steps=steps, precision="32-true", log_every=20, checkpoint_every=steps, progress_bar=False)
    return train(data, folder, recipe, {}, ENCODER, Optimisation(base_learning_rate=3e-3), training, seed, "last")


@torch.no_grad()
def score(checkpoint: Path, made: list[Path], bands: list[str] | None) -> dict[str, tuple[float, float]]:
    """Figures and chance by name, over the held-out tiles of all corpora."""
    model = open_image_text(str(checkpoint))
    vectors, shares, said = [], [], defaultdict[str, list[tuple[int, str]]](list)
    for path in made:
        corpus = Corpus.open(path)
        tiles = TileSet(corpus, split="test", bands=bands)
        raw, first = tiles.read(np.arange(len(tiles))), sum(map(len, vectors))
        contract = next(one for one in model.contracts.values() if set(one.names) == set(tiles.contract.names))
        images, valid = ContractInput(contract, tiles.contract.sensor)(raw["image"].float(), size=SIDE)
        seeing = model.fitted(contract)
        parts = zip(images.split(64), valid.split(64), strict=True)
        vectors.append(torch.cat([seeing.encode_image(*part) for part in parts]))
        shares.append(covered(corpus, raw["id"].numpy()))
        place = {number: first + row for row, number in enumerate(raw["id"].tolist())}
        for row in corpus.table(["id", "captions", "caption_origins"]).to_pylist():
            for text, origin in zip(row["captions"] or (), row["caption_origins"] or (), strict=True):
                if row["id"] in place:
                    said[origin].append((place[row["id"]], text))
    every, found = torch.cat(vectors), {}
    for origin in ORIGINS:
        of, texts = torch.tensor([at for at, _ in said[origin]]), [text for _, text in said[origin]]
        figures = retrieval(every, texts, of, model.encode_text)
        found[f"mean recall, {origin}"] = next(
            (one.value, one.beside[CHANCE]) for one in figures if one.metric == "mean recall"
        )
    queries = encode_sentences(model.encode_text, [f"{noun.one} in this picture" for noun in NOUNS])
    (figure, *_) = mean_average_precision(every, queries, torch.cat(shares) >= LEAST)
    return found | {"mAP@100, what covers the ground": (figure.value, figure.beside[CHANCE])}


def covered(corpus: Corpus, ids: np.ndarray) -> Tensor:
    """Share of each tile that each of `NOUNS` covers `(N, 4)`, by the indices of all its bands."""
    tiles, places = corpus.tiles(TILE), bands_of(corpus.sensor)
    rows = np.searchsorted(tiles.ids, ids)
    kinds = [classify(pixels, corpus.sensor, places) for pixels in tiles.read(rows)]
    return torch.tensor([[float((kind == place).mean()) for place in range(len(NOUNS))] for kind in kinds])


def main() -> None:
    """Read the arguments, train and score."""
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default, help="folder of the images")
    parser.add_argument("--work", type=Path, default=Path("bench-twins"), help="folder of corpora and runs")
    parser.add_argument("--recipe", default="remote_clip")
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps of 64 tiles")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"'{given.data}' is not there: nothing measured")
        return
    made, steps = corpora(given.data, given.work), 4 if given.quick else given.steps
    found = defaultdict[tuple[str, str], list[tuple[float, float]]](list)
    for seed in range(1 if given.quick else given.seeds):
        for twin, bands in TWINS.items():
            folder = given.work / f"{given.recipe}-{steps}-{twin.replace(' ', '_')}-{seed}"
            for name, figure in score(trained(folder, made, given.recipe, bands, steps, seed), made, bands).items():
                found[name, twin].append(figure)
                print(f"{name}/{twin}/seed {seed}: {figure[0]:.3f}  (chance {figure[1]:.3f})", flush=True)
    for (name, twin), figures in found.items():
        values, chance = [value for value, _ in figures], figures[0][1]
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name}/{twin}: {np.mean(values):.3f}  ({spread}, chance {chance:.3f})")


if __name__ == "__main__":
    main()
