"""One spectral encoder for several sensors, and what it makes of bands that it was not probed on.

    python benchmarks/sensors.py --work WORK                   # an idle machine, please
    python benchmarks/sensors.py --work WORK --quick           # a few steps: does it run

Part 1, `together`: a spectral encoder is trained on tiles of NAIP, Landsat 7, Sentinel-2 (L1C and L2A) and RGB
photographs together, and beside it a plain one on each of RGB and Sentinel-2 alone, with as many steps of as many
images, in the same architecture. Each is probed on RSICD (30 classes, published test split) and EuroSAT (10 classes,
places of 10 km held out), beside random initialisation and pixel statistics.
Part 2, `bands`, in the manner of GeoCrossBench: encoders are trained on four bands of Sentinel-2 (blue, green, red,
near infrared), a linear probe is fitted on them, and tested on other bands: none of them (red edges and short-wave
infrared), and all thirteen. The spectral encoder is baked for the bands of the test; the plain one, which knows only
its own, gets in each channel the given band nearest in wavelength.

Needs the images of $GEOMIM_TEST_DATA (or ../shared/data). Corpora and runs go to WORK and are made once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import timm
import torch
from rich.progress import track
from torch import Tensor, nn

from geomim.corpus.build import build
from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.data.labelled import open_labelled
from geomim.evaluate.features import frozen, pixel_statistics, random_like
from geomim.evaluate.knn import knn
from geomim.evaluate.linear import fit_linear
from geomim.models.inputs import ContractInput
from geomim.models.weights import Loaded, read_encoder
from geomim.pretrain.module import Optimisation
from geomim.sensors import BandContract, Sensor, get_sensor
from geomim.verbs.export import export
from geomim.verbs.pretrain import Training, train

SIDE, PATCH = 64, 8
ENCODER = {"patch_size": PATCH, "width": 192, "depth": 6, "heads": 3}
METHOD = {"decoder_depth": 2, "decoder_width": 96, "decoder_heads": 3}
EUROSAT = "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split()
VISIBLE = ("B02", "B03", "B04", "B08")
OTHERS = ("B05", "B06", "B07", "B11", "B12")


def corpora(data: Path, work: Path) -> dict[str, Path]:
    """Build the corpora that are not there yet."""
    l2a = [name for name in get_sensor("sentinel2").names if name != "B10"]
    rsicd = data / "rsicd"
    wanted = {
        "rgb": dict(
            source=[str(rsicd / "classes")],
            tile=128,
            sensor="rgb",
            labels="folder",
            split=str(rsicd / "captions.jsonl"),
            allow_unmatched=True,
        ),
        "naip": dict(source=[str(data / "naip")], tile=64, sensor="naip"),
        "landsat7": dict(source=[str(data / "landsat7")], tile=32, sensor="landsat7"),
        "l1c": dict(source=[str(data / "sen1floods11/Spain_7370579_S2Hand.tif")], tile=32, sensor="sentinel2"),
        "l2a": dict(source=[str(data / "s2_l2a")], tile=32, sensor="sentinel2", bands=l2a),
    }
    four = [name if name in VISIBLE else "-" for name in l2a]
    wanted["l1c-four"] = wanted["l1c"] | {"bands": list(VISIBLE)}
    wanted["l2a-four"] = wanted["l2a"] | {"bands": four}
    for name, arguments in wanted.items():
        if not (work / name / "corpus.lock").is_file():
            build(out=str(work / name), **arguments)
    return {name: work / name for name in wanted}


def trained(folder: Path, tiles: Sequence[Path], steps: int, seed: int, **encoder: object) -> Path:
    """Train an encoder, or take the one that is there; the checkpoint."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return last
    sizes = [Corpus.open(path).sizes[0] for path in tiles]
    data = TileDataModule([str(path) for path in tiles], 64, SIDE, sizes, workers=0, seed=seed)
    optimizer = Optimisation(base_learning_rate=3e-3)
    training = Training(max_steps=steps, precision="32-true", log_every=20, checkpoint_every=steps, progress_bar=False)
    return train(data, folder, "mae", METHOD, ENCODER | encoder, optimizer, training, seed)


def eurosat(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers `(N, 13, 64, 64)` in the order of `EUROSAT`, classes, and which are of held-out places."""
    with (data / "eurosat/index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["class"] for row in rows})
    groups = sorted({row["group10km"] for row in rows})
    held = set(np.random.default_rng(0).permutation(groups)[: len(groups) // 3].tolist())
    images = []
    for row in rows:
        with rasterio.open(data / "eurosat" / row["class"] / Path(row["file"]).name) as scene:
            images.append(scene.read().astype(np.float32))
    labels = torch.tensor([names.index(row["class"]) for row in rows])
    return torch.from_numpy(np.stack(images)), labels, torch.tensor([row["group10km"] in held for row in rows])


def subset(contract: BandContract, names: Sequence[str]) -> BandContract:
    """A contract of some of its bands."""
    places = [contract.names.index(name) for name in names]
    mean, std = (tuple(values[place] for place in places) for values in (contract.mean, contract.std))
    return dataclasses.replace(contract, sensor=contract.sensor.select(list(names)), mean=mean, std=std)


@torch.no_grad()
def vectors(encoder: nn.Module | None, images: Tensor, valid: Tensor) -> Tensor:
    """Mean-pooled features, or pixel statistics where there is no encoder."""
    extractor = pixel_statistics() if encoder is None else frozen(encoder)
    return torch.cat([extractor.forward(*part)[0] for part in zip(images.split(64), valid.split(64), strict=True)])


def score(features: Tensor, labels: Tensor, test: Tensor) -> dict[str, float]:
    """Accuracy of kNN and of a linear probe."""
    classes = int(labels.max()) + 1
    fit = fit_linear(features[~test], labels[~test], classes)
    nearest = knn(features[~test], labels[~test], features[test], classes).argmax(1)
    linear = fit.probe(features[test]).argmax(1)
    return {name: float((said == labels[test]).float().mean()) for name, said in (("knn", nearest), ("linear", linear))}


def together(made: dict[str, Path], data: Path, work: Path, steps: int, seeds: range) -> None:
    """Part 1: one encoder of all sensors beside encoders of one."""
    rgb, optical = [made["rgb"]], [made["l1c"], made["l2a"]]
    everything = [*rgb, made["naip"], made["landsat7"], *optical]
    for seed in seeds:
        runs = {
            "spectral, all": trained(work / f"all-{seed}", everything, steps, seed, spectral=True),
            "plain, rgb": trained(work / f"rgb-{seed}", rgb, steps, seed),
            "plain, sentinel2": trained(work / f"l1c-{seed}", optical[:1], steps, seed),
        }
        check_bakes(runs["spectral, all"], work / f"exports-{seed}")
        for name, run in runs.items():
            loaded = read_encoder(run)
            for task, (images, labels, test, sensor) in tasks(made, data).items():
                contract = contract_for(loaded, sensor)
                if contract is None:
                    continue
                encoder = loaded.encoder.bake(contract) if "spectral" in name else loaded.encoder
                prepared, valid = ContractInput(contract, sensor)(images, size=SIDE)
                floors = {"random initialisation": random_like(encoder, seed), "pixel statistics": None}
                for who, network in {name: encoder, **(floors if "plain" in name else {})}.items():
                    found = score(vectors(network, prepared, valid), labels, test)
                    report(f"together/{task}/{who}/seed {seed}", found)


def check_bakes(run: Path, folder: Path) -> None:
    """Bake every sensor, hold it against the unbaked encoder, and load its export in stock timm."""
    loaded = read_encoder(run)
    for key, contract in loaded.contracts.items():
        images = torch.randn(4, len(contract.names), SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            unbaked = loaded.encoder(images, sensor=key).tokens
            baked = loaded.encoder.bake(contract)(images).tokens
            export(str(run), str(folder / key), sensor=key)
            stock = timm.create_model(f"local-dir:{folder / key}", pretrained=True).eval().forward_features(images)
        gaps = [float((one - unbaked).abs().max()) for one in (baked, stock)]
        print(f"baked/{key}: {gaps[0]:.2e}\nbaked/{key}/timm: {gaps[1]:.2e}")


def tasks(made: dict[str, Path], data: Path) -> dict[str, tuple[Tensor, Tensor, Tensor, Sensor]]:
    """Images, classes, which are for testing, and their bands."""
    rsicd = open_labelled(made["rgb"])
    parts = [rsicd.train, rsicd.test]
    numbers = torch.cat([images for part in parts for images, _ in part.read(np.arange(len(part)))])
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    test = torch.arange(len(labels)) >= len(rsicd.train)
    sentinel = get_sensor("sentinel2").select(EUROSAT)
    return {"rsicd": (numbers, labels, test, rsicd.sensor), "eurosat": (*eurosat(data), sentinel)}


def contract_for(loaded: Loaded, sensor: Sensor) -> BandContract | None:
    """The contract of most bands that a sensor has; None where an encoder knows none of it."""
    able = [one for one in loaded.contracts.values() if one.sensor.name == sensor.name]
    return max(able, key=lambda one: len(one.names), default=None)


def bands(made: dict[str, Path], data: Path, work: Path, steps: int, seeds: range) -> None:
    """Part 2: probes fitted on four bands and tested on others."""
    four = [made["l1c-four"], made["l2a-four"]]
    images, labels, test = eurosat(data)
    sensor, full = get_sensor("sentinel2").select(EUROSAT), contract_of(made["l1c"])
    for seed in seeds:
        runs = {
            "spectral": trained(work / f"four-spectral-{seed}", four, steps, seed, spectral=True, band_dropout=0.25),
            "spectral, no band dropout": trained(work / f"four-steady-{seed}", four, steps, seed, spectral=True),
            "plain": trained(work / f"four-plain-{seed}", four[:1], steps, seed),
        }
        for name, run in runs.items():
            encoder = read_encoder(run).encoder
            features = {}
            for case, names in {"same": VISIBLE, "none of them": OTHERS, "all": full.names}.items():
                contract = subset(full, names)
                prepared, valid = ContractInput(contract, sensor)(images, size=SIDE)
                if name == "plain":
                    prepared = prepared[:, [list(names).index(nearest(band, names)) for band in VISIBLE]]
                features[case] = vectors(encoder if name == "plain" else encoder.bake(contract), prepared, valid)
            train_on = features["same"][~test]
            fit = fit_linear(train_on, labels[~test], int(labels.max()) + 1)
            for case, values in features.items():
                said = fit.probe(values[test]).argmax(1)
                near = knn(train_on, labels[~test], values[test]).argmax(1)
                found = {"linear": float((said == labels[test]).float().mean())}
                report(
                    f"bands/{case}/{name}/seed {seed}", found | {"knn": float((near == labels[test]).float().mean())}
                )


def nearest(wanted: str, names: Sequence[str]) -> str:
    """The band of some that is nearest in wavelength to one of Sentinel-2."""
    centre = {band.name: band.wavelength or 0.0 for band in get_sensor("sentinel2").bands}
    return min(names, key=lambda name: abs(centre[name] - centre[wanted]))


def contract_of(corpus: Path) -> BandContract:
    """Bands and statistics of a corpus."""
    (contract,) = TileDataModule(str(corpus), 1, SIDE, workers=0).contracts.values()
    return contract


def report(name: str, values: dict[str, float]) -> None:
    """One figure a line."""
    for key, value in values.items():
        print(f"{name}/{key}: {value:.3f}", flush=True)


def main() -> None:
    """Read the arguments and run the parts."""
    default = Path(os.environ.get("GEOMIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=default, help="folder of the images")
    parser.add_argument("--work", type=Path, default=Path("bench-sensors"), help="folder of corpora and runs")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of 64 images for each encoder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=["together", "bands"])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"'{given.data}' is not there: nothing measured")
        return
    steps, seeds = (4, range(1)) if given.quick else (given.steps, range(given.seeds))
    work = given.work / "quick" if given.quick else given.work / f"steps-{steps}"
    made = corpora(given.data, given.work / "corpora")
    for part in track((together, bands), "parts"):
        if given.only in (None, part.__name__):
            part(made, given.data, work, steps, seeds)


if __name__ == "__main__":
    main()
