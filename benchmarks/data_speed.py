"""From a corpus to augmented batches, beside what the encoder can eat: images/s of each, measured in turn in one run.

    python benchmarks/data_speed.py --corpus CORPUS          # an idle machine, please
    python benchmarks/data_speed.py --corpus CORPUS --quick

Read, crop, scale, flip and normalise, in the training process, against a training step of `mae` with the network of
configs/pretrain/rsicd_cpu.yaml. Without --corpus, one of drawn scenes is built in a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from geomim.corpus.build import build
from geomim.corpus.synthetic import write_scenes
from geomim.data.datamodule import TileDataModule
from geomim.models.vit import ViT
from geomim.pretrain.recipes import mae
from geomim.randomness import Draws

SIDE = 64


def drawn(folder: Path) -> Path:
    """A small corpus of drawn scenes."""
    write_scenes(folder)
    build([str(folder / "scenes")], out=str(folder / "corpus"), tile=128)
    return folder / "corpus"


def batches(data: TileDataModule) -> Iterator[dict[str, Any]]:
    """Augmented batches, as training gets them."""
    for batch in data.train_dataloader():
        yield data.augment(batch)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="does it run")
    given = parser.parse_args()
    rounds = 3 if given.quick else given.rounds
    with tempfile.TemporaryDirectory() as folder:
        corpus = given.corpus or drawn(Path(folder))
        data = TileDataModule(str(corpus), given.batch, SIDE, workers=0)
        (contract,) = data.contracts.values()
        model = mae(ViT(len(contract.names), SIDE, 8, width=192, depth=6, heads=3), 0.25, 2, 96, 3)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        stream, waited, stepped = batches(data), [], []
        for _ in track(range(rounds + 2), "rounds"):
            start = time.perf_counter()
            batch = next(stream)
            read = time.perf_counter()
            model(batch, torch.tensor(0.5), Draws(0, batch["position"])).loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            waited.append(read - start)
            stepped.append(time.perf_counter() - read)
    data_rate, model_rate = (given.batch / statistics.median(times[2:]) for times in (waited, stepped))
    print(f"data_images_per_second: {data_rate:.0f}")
    print(f"model_images_per_second: {model_rate:.0f}")
    print(f"data_over_model: {data_rate / model_rate:.1f}")
    print(f"share_of_a_step_for_data: {100 * model_rate / (data_rate + model_rate):.1f} %")


if __name__ == "__main__":
    main()
