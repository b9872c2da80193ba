"""One training step of geomim's recipes beside other people's MAE, and beside what they should cost, in one process.

ViT-B/16, 224 px, fp32: forward, backward and optimiser step, with masking and selection. Every contender steps once a
round, so a busy machine slows them all alike; the median of the rounds counts. Figures come last, one `name: value`
a line; ratios are over the fastest MAE of the run at the same batch. `latent_mim` (with its larger crops, its copy and
the copy's update) stands beside what the FLOPs of its step predict from `mae`'s, and a spectral encoder beside a plain
one, both under `mae`.

    python benchmarks/pretrain_speed.py            # 15 minutes on 2 idle cores
    python benchmarks/pretrain_speed.py --quick    # does it run: tiny networks, 1 minute
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from geomim.models.build import build_encoder
from geomim.pretrain.context import Context
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import latent_mim, mae, selective_mae
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor

Loss = Callable[[Tensor], Tensor]


class Contender:
    """A network with its optimiser, for images of `side` px; `step` trains it once and returns the seconds."""

    def __init__(self, network: nn.Module, loss: Loss, side: int = 224) -> None:
        self.network, self.loss, self.side = network, loss, side
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step(self, images: Tensor) -> float:
        start = _now(images.device)
        self.loss(images).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return _now(images.device) - start

    def flops(self, images: Tensor) -> int:
        """FLOPs of forward and backward, as torch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.loss(images).backward()
        self.optimiser.zero_grad(set_to_none=True)
        return int(counter.get_total_flops())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def geomim(model: MaskedImageModel, device: torch.device) -> Contender:
    """A recipe of this project, in the middle of its first phase."""
    model = model.to(device)
    progress = torch.tensor(0.2, device=device)
    position = torch.arange(4096, device=device)

    def loss(images: Tensor) -> Tensor:
        model.before_step(progress)
        return model({"image": images, "sensor": "rgb"}, progress, Draws(0, position[: len(images)])).loss

    return Contender(model, loss, model.crop_size)


def hugging_face(size: dict[str, int], device: torch.device) -> Contender:
    """`ViTMAEForPreTraining`: its own defaults are MAE ViT-B/16 with a decoder of 8 blocks."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        intermediate_size=4 * size["width"],
        decoder_num_hidden_layers=size["decoder"],
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    network = ViTMAEForPreTraining(config).to(device).train()
    return Contender(network, lambda images: network(pixel_values=images).loss)


def lightly(size: dict[str, int], device: torch.device) -> Contender:
    """Lightly's MAE parts, wired for per-patch-normalised pixels like the others."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
    from timm.models.vision_transformer import VisionTransformer

    encoder = VisionTransformer(embed_dim=size["width"], depth=size["depth"], num_heads=size["heads"], num_classes=0)
    parts = nn.ModuleDict(
        {
            "encoder": MaskedVisionTransformerTIMM(vit=encoder),
            "embed": nn.Linear(size["width"], 512),
            "decoder": MaskedVisionTransformerDecoderTIMM(196, 512, size["decoder"], 16),
            "pred": nn.Linear(512, 768),
        }
    ).to(device)

    def loss(images: Tensor) -> Tensor:
        batch, length = len(images), 197
        keep, masked = utils.random_token_mask((batch, length), mask_ratio=0.75, device=images.device)
        seen = parts["embed"](parts["encoder"].encode(images, idx_keep=keep))
        tokens = utils.repeat_token(parts["decoder"].mask_token, (batch, length))
        tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
        answers = parts["pred"](utils.get_at_index(parts["decoder"](tokens), masked))
        target = utils.get_at_index(utils.patchify(images, 16), masked - 1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return nn.functional.mse_loss(answers, target)

    return Contender(parts, loss)


def contenders(size: dict[str, int], device: torch.device) -> dict[str, Contender]:
    """All networks of a run, freshly initialised."""
    contracts = {"rgb": BandContract(get_sensor("rgb"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    sizes = {"width": size["width"], "depth": size["depth"], "heads": size["heads"]}

    def encoder(spectral: bool = False) -> nn.Module:
        return build_encoder(contracts, 224, patch_size=16, spectral=spectral, **sizes)

    return {
        "geomim_mae": geomim(mae(encoder(), decoder_depth=size["decoder"]), device),
        "geomim_selective_d12": geomim(selective_mae(encoder(), decoder_depth=size["deep"]), device),
        "geomim_selective_d8": geomim(selective_mae(encoder(), decoder_depth=size["decoder"]), device),
        "geomim_latent_mim": geomim(latent_mim(encoder()), device),
        "geomim_spectral": geomim(mae(encoder(spectral=True), decoder_depth=size["decoder"]), device),
        "huggingface_mae": hugging_face(size, device),
        "lightly_mae": lightly(size, device),
    }


def selection_seconds(model: MaskedImageModel, images: Tensor, repeats: int) -> float:
    """Median seconds of choosing the patches alone: scores, tokens to compare, growth."""
    draws, progress = Draws(0, torch.arange(len(images), device=images.device)), torch.tensor(0.2)
    seconds = []
    for _ in range(repeats):
        start = _now(images.device)
        with torch.no_grad():
            model.masking(Context({"image": images}, model.encoder, draws), progress.to(images.device))
        seconds.append(_now(images.device) - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks and few rounds: does it run")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, at least 5 for a figure to quote")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    size = {"width": 768, "depth": 12, "heads": 12, "decoder": 8, "deep": 12}
    if arguments.quick:
        size, arguments.batch, arguments.rounds = {"width": 96, "depth": 2, "heads": 3, "decoder": 1, "deep": 2}, [4], 2
    runners = contenders(size, device)
    figures: dict[str, float] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("steps", total=len(arguments.batch) * (arguments.rounds + 1) * len(runners))
        for batch in arguments.batch:
            images = {one.side: torch.randn(batch, 3, one.side, one.side, device=device) for one in runners.values()}
            seconds: dict[str, list[float]] = {name: [] for name in runners}
            for timed in [False] + [True] * arguments.rounds:
                for name, runner in runners.items():
                    taken = runner.step(images[runner.side])
                    progress.advance(task)
                    if timed:
                        seconds[name].append(taken)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            fastest = min(value for name, value in median.items() if name.endswith("_mae"))
            peer = min(median["huggingface_mae"], median["lightly_mae"])
            for name, value in median.items():
                figures[f"{name}_batch{batch}_seconds"] = value
                figures[f"{name}_batch{batch}_spread"] = (max(seconds[name]) - min(seconds[name])) / value
            figures[f"mae_over_fastest_peer_batch{batch}"] = peer / median["geomim_mae"]
            for depth in (12, 8):
                name = f"selective_d{depth}"
                figures[f"{name}_over_fastest_mae_batch{batch}"] = fastest / median[f"geomim_{name}"]
            model = runners["geomim_selective_d12"].network
            figures[f"selection_batch{batch}_seconds"] = selection_seconds(model, images[224], arguments.rounds)
            plain, latent = (runners[f"geomim_{name}"] for name in ("mae", "latent_mim"))
            flops = latent.flops(images[latent.side]) / plain.flops(images[plain.side])
            taken = median["geomim_latent_mim"] / median["geomim_mae"]
            figures[f"latent_mim_flops_over_mae_batch{batch}"] = flops
            figures[f"latent_mim_over_what_flops_predict_batch{batch}"] = taken / flops
            figures[f"spectral_over_plain_batch{batch}"] = median["geomim_spectral"] / median["geomim_mae"]
    print(f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {device}")
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
