"""`geomim predict` on whole scenes: memory beyond the model's own, and speed beside the bare model and torchgeo's grid.

    python benchmarks/maps.py --work WORK             # an idle machine, please; half an hour
    python benchmarks/maps.py --work WORK --sides 20000 --overlap 0 --only torchgeo
    python benchmarks/maps.py --work WORK --quick     # does it run

A scene of 4 bands of uint16 is drawn, deflated in blocks of 512; an encoder of width 192, depth 6 and patches of 16
with a linear probe of 10 classes looks at windows of 224 px. Each measurement is a process of its own, whose greatest
resident memory the kernel tells: the bare model on batches of that size held in memory, before and after each of the
others, as a machine is not always equally fast; `geomim predict`; and the loop
that torchgeo's documentation shows, GridGeoSampler and a DataLoader, with probabilities summed in an array of the whole
scene. Threads are torch's own for all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.maps.probes import open_probe
from geomim.maps.walk.windows import Walk
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract
from geomim.verbs.predict import predict

SIDE, PATCH, CLASSES, GSD, BATCH = 224, 16, 10, 10, 16


def draw(path: Path, side: int) -> None:
    """A scene of smooth fields and noise, row of blocks by row of blocks."""
    place = rasterio.Affine(GSD, 0, 500_000, 0, -GSD, 5_000_000)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 4, "height": side, "width": side, "crs": "EPSG:32632"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    draws, part = np.random.default_rng(0), path.with_suffix(".part")
    with rasterio.open(part, "w", transform=place, **profile) as raster:
        raster.descriptions = ("B02", "B03", "B04", "B08")
        for top in range(0, side, 512):
            rows = min(512, side - top)
            waves = np.sin((top + np.arange(rows))[:, None] / 90) + np.cos(np.arange(side)[None] / 70)
            noise = draws.integers(0, 60, (4, rows, side))
            raster.write((1200 + 300 * waves + noise).astype(np.uint16), window=Window(0, top, side, rows))
    part.rename(path)


def make(folder: Path) -> Path:
    """An encoder with drawn weights and a probe of it, which are as fast as trained ones."""
    torch.manual_seed(0)
    contract = BandContract(SENSORS["sentinel2"].select(("B02", "B03", "B04", "B08")), (1200.0,) * 4, (300.0,) * 4)
    encoder = ViT(4, SIDE, PATCH, 192, 6, 3).eval()
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, folder / "encoder.ckpt")
    names, own = tuple(f"class {number}" for number in range(CLASSES)), fingerprint(encoder)
    told = {"accuracy": 1.0, "checkpoint": str(folder / "encoder.ckpt")}
    card = ProbeCard("linear", names, "patch", own, contract.to_dict(), **told)
    return save_probe(folder / "linear.safetensors", LinearProbe(192, CLASSES), card)


def bare(probe: Path, scene: Path, overlap: float, out: Path) -> tuple[int, float]:
    """Windows and seconds of the model alone, on batches of noise in memory."""
    looker = open_probe(str(probe))
    with rasterio.open(scene) as raster:
        walk = Walk(raster.height, raster.width, PATCH, SIDE // PATCH, round(overlap * SIDE / PATCH))
    count, images = len(walk.places), torch.randn(BATCH, 4, SIDE, SIDE)
    valid, done = torch.ones(BATCH, 1, SIDE, SIDE, dtype=torch.bool), min(count, 4096)
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, done, BATCH):
            looker.look(images[: done - at], valid[: done - at])
    return count, (time.perf_counter() - start) * count / done


def mapped(probe: Path, scene: Path, overlap: float, out: Path) -> tuple[int, float]:
    """The same of `geomim predict`."""
    start = time.perf_counter()
    predict([str(scene)], str(probe), str(out), overlap=overlap)
    return 0, time.perf_counter() - start


def gridded(probe: Path, scene: Path, overlap: float, out: Path) -> tuple[int, float]:
    """The same of torchgeo's loop: patches of all windows are summed in an array as large as the map."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Scene(RasterDataset):
        filename_glob = scene.name

    looker, start = open_probe(str(probe)), time.perf_counter()
    dataset = Scene(str(scene.parent))
    sampler = GridGeoSampler(dataset, SIDE, round(SIDE * (1 - overlap)))
    side = rasterio.open(scene).height
    sums, windows = torch.zeros(CLASSES, -(-side // PATCH) + 14, -(-side // PATCH) + 14), 0
    mean, std = torch.tensor(looker.contract.mean)[:, None, None], torch.tensor(looker.contract.divisor)[:, None, None]
    places = Walk(side, side, PATCH, SIDE // PATCH, round(overlap * SIDE / PATCH)).places
    with torch.inference_mode():
        for batch in DataLoader(dataset, BATCH, sampler=sampler, collate_fn=stack_samples):
            images = (batch["image"].float() - mean) / std
            found = looker.look(images, torch.ones(len(images), 1, SIDE, SIDE, dtype=torch.bool))
            for one in found:
                top, left = (value // PATCH for value in places[min(windows, len(places) - 1)])
                sums[:, top : top + one.shape[1], left : left + one.shape[2]] += one
                windows += 1
    ids = sums.argmax(0).to(torch.uint8)[: side // PATCH, : side // PATCH].numpy()
    with rasterio.open(out, "w", driver="GTiff", dtype="uint8", count=1, height=len(ids), width=len(ids)) as raster:
        raster.write(ids, 1)
    return windows, time.perf_counter() - start


def alone(work: Callable[..., tuple[int, float]], *given: Any) -> tuple[int, float, float]:
    """Windows, seconds and the greatest memory in MiB of a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *given))


def _measured(work: Callable[..., tuple[int, float]], *given: Any) -> tuple[int, float, float]:
    return *work(*given), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="maps-benchmark", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=1, help="of which the median counts")
    parser.add_argument("--only", choices=("predict", "torchgeo"), help="both where not given")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    probe = make(given.work.absolute())
    for side in [600] if given.quick else given.sides:
        scene = given.work.absolute() / f"scene_{side}.tif"
        if not scene.exists():
            draw(scene, side)
        told = probe, scene, given.overlap
        count, before, own = alone(bare, *told, scene.with_name("none"))
        print(f"bare_{side}: {count / before:.1f} windows/s, {own:.0f} MiB")
        ways = {"predict": mapped, "torchgeo": gridded}
        for name, work in ways.items() if given.only is None else [(given.only, ways[given.only])]:
            out = given.work.absolute() / f"{name}_{side}.tif"
            ratios, took, peak, ground = [], [], 0.0, (side * GSD / 1000) ** 2
            for _ in range(given.rounds):
                for old in given.work.glob(f"{name}_{side}.*"):
                    old.unlink()
                seen, seconds, used = alone(work, *told, out)
                after = alone(bare, *told, scene.with_name("none"))[1]
                ratios.append((before + after) / 2 * (seen or count) / count / seconds)
                took, peak, before = [*took, seconds], max(peak, used), after
            print(f"{name}_{side}_km2_s: {ground / np.median(took):.2f}")
            print(f"{name}_{side}_over_bare: {np.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")
            print(f"{name}_{side}_memory_beyond_bare: {peak - own:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
