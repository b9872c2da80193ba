"""`geomim embed` of a corpus beside its bare encoder on the same images: tiles/s of each, measured in turn in one run.

    python benchmarks/embed.py                    # an idle machine, please: 100,000 tiles of 64 px
    python benchmarks/embed.py --quick            # does it run

The tiles are drawn, 8-bit RGB; the encoder is that of configs/pretrain/rsicd_cpu.yaml (192 wide, 6 deep, patches of 8).
A round is one chunk of tiles, read, prepared, encoded and rounded as the verb does, beside as many images that lie
prepared in memory; writing the file comes last and counts as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rich.progress import track

from geomim.corpus.build import build
from geomim.evaluate.features import fast_half
from geomim.models.build import build_encoder
from geomim.sensors import SENSORS, BandContract
from geomim.verbs import tile_vectors
from geomim.verbs.embed import embed

SIDE, BATCH, ROUND = 64, 128, 2048


def drawn(folder: Path, tiles: int) -> Path:
    """A corpus of drawn tiles."""
    random, across = np.random.default_rng(0), 64
    (folder / "scenes").mkdir()
    for number in range(-(-tiles // across**2)):
        rows = min(across, -(-(tiles - number * across**2) // across)) * SIDE
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": rows, "width": across * SIDE}
        with rasterio.open(folder / "scenes" / f"{number:03d}.tif", "w", photometric="rgb", **profile) as raster:
            raster.write(random.integers(0, 256, (3, rows, across * SIDE), np.uint8))
    build([str(folder / "scenes")], str(folder / "corpus"), tile=SIDE, sensor="rgb", near=None, crops=False)
    return folder / "corpus"


def checkpoint(path: Path) -> torch.nn.Module:
    """An encoder of random weights, and its file."""
    contract = BandContract(SENSORS["rgb"], (127.0,) * 3, (74.0,) * 3)
    encoder = build_encoder({"rgb": contract}, image_size=SIDE, patch_size=8, width=192, depth=6, heads=3).eval()
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 2, "recipe": "mae", "recipe_args": {}, "encoder": encoder.config, "step": 0}
    torch.save({"state_dict": state, "geomim": details | {"contracts": {"rgb": contract.to_dict()}}}, path)
    return encoder


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="does it run")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own, bare, chunk = [], [], 256 if given.quick else ROUND
    with tempfile.TemporaryDirectory() as folder:
        corpus = drawn(Path(folder), 1024 if given.quick else given.tiles)
        encoder = checkpoint(Path(folder) / "encoder.ckpt").to(device)
        images = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
        tile_vectors.CHUNK, original = chunk, tile_vectors.TileEncoder.__call__
        busy = 0.0

        @torch.inference_mode()
        def alone() -> float:
            start = time.perf_counter()
            for _ in range(chunk // BATCH):
                with torch.autocast(device.type, torch.bfloat16, enabled=fast_half(device)):
                    tokens = encoder(images).tokens[:, 1:].float().mean(1)
            tokens.cpu()
            return time.perf_counter() - start

        def in_turn(self: tile_vectors.TileEncoder, tiles: object) -> np.ndarray:
            nonlocal busy
            if len(tiles) < chunk:
                return original(self, tiles)
            before = time.perf_counter()
            bare.append(alone())
            start = time.perf_counter()
            found = original(self, tiles)
            own.append(time.perf_counter() - start)
            busy += start - before
            return found

        for _ in track(range(2), "warming up"):
            alone()
        tile_vectors.TileEncoder.__call__ = in_turn
        start = time.perf_counter()
        embed(str(corpus), str(Path(folder) / "encoder.ckpt"), str(Path(folder) / "tiles.parquet"))
        took, count = time.perf_counter() - start - busy, len(own) * chunk
    print(f"tiles: {count}")
    print(f"bare_tiles_per_second: {chunk / statistics.median(bare):.0f}")
    print(f"embed_tiles_per_second: {chunk / statistics.median(own):.0f}")
    print(f"embed_over_bare: {statistics.median(a / b for a, b in zip(bare, own, strict=True)):.3f}")
    print(f"whole_verb_over_bare: {sum(bare) / took:.3f}   # opening, checking and writing included")


if __name__ == "__main__":
    main()
