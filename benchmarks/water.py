"""An encoder of seven bands on open water: pretrained on tiles without labels, probed on places it never saw.

    python benchmarks/water.py --work WORK             # an idle machine, please
    python benchmarks/water.py --work WORK --quick     # does it run

Data: 100 tiles of 128 px, channels 0 to 6 (coastal, blue, green, red, near infrared, two short-wave infrared; the
others leak the label), a water mask each, split by location group: a third of the groups is held out, and neither
pretraining nor a probe sees it. Asked: does a tile hold water (at least 1 % of it; accuracy of kNN, linear and
efficient probe), and which share of a patch is water (R2 of ridge regression and of the nearest neighbours on patch
tokens). Beside the encoder stand the same one with random weights, and pixel statistics of tile and patch. Seeds are
of weights, masks, crops and probes; the split is the same.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.corpus.build import build
from geomim.data.datamodule import TileDataModule
from geomim.evaluate.features import encode, masked_mean, random_like
from geomim.evaluate.knn import knn
from geomim.evaluate.linear import fit_linear
from geomim.evaluate.probes import efficient_logits, fit_efficient
from geomim.models.inputs import ContractInput
from geomim.models.patches import patchify
from geomim.models.vit import ViT
from geomim.models.weights import read_encoder
from geomim.pretrain.module import Optimisation
from geomim.verbs.pretrain import Training, train

SIDE, PATCH, BANDS = 128, 8, 7
SENSOR = """\
name: water-tiles
bands:
  - {name: coastal, wavelength: 443}
  - {name: blue, wavelength: 482}
  - {name: green, wavelength: 561}
  - {name: red, wavelength: 655}
  - {name: nir, wavelength: 865}
  - {name: swir1, wavelength: 1609}
  - {name: swir2, wavelength: 2201}
"""


def read(data: Path) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Names, numbers `(N, 7, 128, 128)`, masks `(N, 128, 128)` in 0..1, and which are of held-out groups."""
    with (data / "location_groups.csv").open(newline="") as file:
        group = {row["tile"]: int(row["location_group"]) for row in csv.DictReader(file)}
    names = sorted(group)
    held = set(
        np.random.default_rng(0).permutation(sorted(set(group.values())))[: len(set(group.values())) // 3].tolist()
    )
    images, masks = [], []
    for name in names:
        with rasterio.open(data / "images" / name) as scene:
            images.append(scene.read(range(1, BANDS + 1)).astype(np.float32))
        with rasterio.open(data / "labels" / Path(name).with_suffix(".png").name) as label:
            masks.append((label.read(1) > 0).astype(np.float32))
    test = torch.tensor([group[name] in held for name in names])
    return names, torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), test


def pretrained(data: Path, names: Sequence[str], test: Tensor, work: Path, recipe: str, steps: int, seed: int) -> Path:
    """Train on the tiles of the groups that are not held out; the checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "sensor.yaml").write_text(SENSOR)
    kept = [str(data / "images" / name) for name, out in zip(names, test.tolist(), strict=True) if not out]
    corpus, folder = work / "corpus", work / f"{recipe}-{steps}-{seed}"
    if not (corpus / "corpus.lock").is_file():
        bands = ["coastal", "blue", "green", "red", "nir", "swir1", "swir2", *"-" * 5]
        build(kept, out=str(corpus), tile=SIDE, sensor=str(work / "sensor.yaml"), bands=bands)
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return folder / "checkpoints" / "last.ckpt"
    module = TileDataModule(str(corpus), 32, SIDE, workers=0, turn=True, seed=seed)
    method = {"decoder_depth": 2, "decoder_width": 96, "decoder_heads": 3}
    encoder = {"patch_size": PATCH, "width": 192, "depth": 6, "heads": 3}
    training = Training(max_steps=steps, precision="32-true", log_every=20, checkpoint_every=steps, progress_bar=False)
    return train(module, folder, recipe, method, encoder, Optimisation(base_learning_rate=3e-3), training, seed)


@torch.no_grad()
def tokens(encoder: ViT | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of tiles `(N, D)` and of patches `(N, L, D)`; means and deviations where there is no encoder."""
    if encoder is None:
        bands = patchify(images, PATCH).unflatten(-1, (-1, BANDS))
        patches = torch.cat([bands.mean(-2), bands.std(-2)], -1)
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1), patches
    parts = [encode(encoder, part)[1] for part in images.split(16)]
    patches = torch.cat(parts)
    return masked_mean(patches, torch.ones(patches.shape[:2], dtype=torch.bool)), patches


def r2(said: Tensor, right: Tensor) -> float:
    """Share of the variance that is explained."""
    return float(1 - (said - right).square().sum() / (right - right.mean()).square().sum())


def ridge(features: Tensor, values: Tensor, held: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression on standardised features, its penalty chosen on `held` rows; what it says of `asked`."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)

    def fit(rows: Tensor, penalty: float) -> Tensor:
        x = F.pad((features[rows] - mean) / std, (0, 1), value=1.0).double()
        gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(gram, x.T @ values[rows].double())

    def say(weights: Tensor, rows: Tensor) -> Tensor:
        return (F.pad((rows - mean) / std, (0, 1), value=1.0).double() @ weights).float()

    penalties = [10.0**power for power in range(-6, 1)]
    best = max(penalties, key=lambda penalty: r2(say(fit(~held, penalty), features[held]), values[held]))
    return say(fit(torch.ones_like(held), best), asked)


def neighbours(train_on: Tensor, values: Tensor, asked: Tensor, k: int = 20) -> Tensor:
    """Mean of the values of the k most similar patches."""
    train_on, asked = F.normalize(train_on, dim=1), F.normalize(asked, dim=1)
    return torch.cat([values[(part @ train_on.T).topk(k, dim=1).indices].mean(1) for part in asked.split(1024)])


def main() -> None:
    """Read the arguments, train and score."""
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=default, help="folder of the images")
    parser.add_argument("--work", type=Path, default=Path("bench-water"), help="folder of corpus and runs")
    parser.add_argument("--recipe", default="mae")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of 32 tiles")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    given = parser.parse_args()
    data = given.data / "water"
    if not data.is_dir():
        print(f"'{data}' is not there: nothing measured")
        return
    names, images, masks, test = read(data)
    has_water = (masks.mean((1, 2)) >= 0.01).long()
    share = patchify(masks[:, None], PATCH).mean(-1)
    wet = float(has_water[test].float().mean())
    print(f"tiles: {int((~test).sum())} train, {int(test.sum())} test, {wet:.2f} of them with water")
    for seed in range(1 if given.quick else given.seeds):
        steps = 4 if given.quick else given.steps
        loaded = read_encoder(pretrained(data, names, test, given.work, given.recipe, steps, seed))
        (contract,) = loaded.contracts.values()
        ready, _ = ContractInput(contract, contract.sensor)(images)
        encoder = loaded.encoder
        contenders = {given.recipe: encoder, "random": random_like(encoder, seed), "pixels": None}
        for name, network in contenders.items():
            tile, patches = tokens(network, ready)
            labels = has_water[~test]
            nearest = knn(tile[~test], labels, tile[test], 2, k=10).argmax(1)
            linear = fit_linear(tile[~test], labels, 2, seed).probe(tile[test]).argmax(1)
            answers = {"knn": nearest, "linear": linear}
            if network is not None:
                (fit,) = fit_efficient(patches[~test].half(), labels, 2, (seed,))
                answers["efficient"] = efficient_logits(fit.probe, patches[test].half()).argmax(1)
            for probe, said in answers.items():
                print(f"has water/{name}/seed {seed}/{probe}: {float((said == has_water[test]).float().mean()):.3f}")
            inside, outside = patches[~test].flatten(0, 1), patches[test].flatten(0, 1)
            values, right = share[~test].flatten(), share[test].flatten()
            held = (torch.arange(int((~test).sum())) % 5 == 0).repeat_interleave(patches.shape[1])
            said = {"ridge": ridge(inside, values, held, outside), "knn": neighbours(inside, values, outside)}
            for probe, value in said.items():
                print(f"water share/{name}/seed {seed}/{probe} R2: {r2(value, right):.3f}", flush=True)


if __name__ == "__main__":
    main()
