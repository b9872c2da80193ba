import copy
from typing import Any

import lightning
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from geomim.errors import ConfigError
from geomim.finetune.training import Training, Tuned, add_lora, merge_lora

DEPTH = 3


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        32, 8, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=0, global_pool="avg", fc_norm=False
    )


class Task(Tuned):
    """The least that a task is; keeps what it saw of its backbone at every step."""

    def __init__(self, network: nn.Module, **training: Any) -> None:
        super().__init__()
        self.save_hyperparameters({"training": Training(**training)})
        self.network, self.head = network, nn.Linear(network.num_features, 2)
        self.tune(network)
        self.seen: list[tuple[float, bool, float]] = []

    def training_step(self, batch: Tensor) -> Tensor:
        weight = next(one for name, one in self.network.named_parameters() if "weight" in name)
        rate = max((g["lr"] for g in self.optimizers().param_groups if g["backbone"]), default=0.0)
        self.seen.append((weight.detach().sum().item(), self.network.training, rate))
        return self.head(self.network(batch)).square().mean()


def fit(task: Task, steps: int = 5) -> Task:
    torch.manual_seed(1)
    images = [torch.randn(2, 3, 32, 32) for _ in range(steps)]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, torch.utils.data.DataLoader(images, batch_size=None))
    return task


def rates(network: nn.Module, **training: Any) -> dict[str, float]:
    task = Task(network, **training)
    names = {id(one): name for name, one in task.named_parameters()}
    return {names[id(one)]: group["lr"] for group in task.groups() for one in group["params"]}


def test_block_learns_as_far_below_the_head_as_it_lies():
    found = rates(vit(), learning_rate=1.0, layer_decay=0.5)
    assert found["head.weight"] == found["head.bias"] == 1
    for block in range(DEPTH):
        assert found[f"network.blocks.{block}.attn.qkv.weight"] == 0.5 ** (DEPTH - block)
    assert found["network.patch_embed.proj.weight"] == found["network.pos_embed"] == 0.5 ** (DEPTH + 1)
    assert set(found) == {name for name, _ in Task(vit()).named_parameters()}


def test_pyramids_decay_by_block_through_their_stages():
    swin = SwinTransformer(32, 4, embed_dim=16, depths=(1, 2), num_heads=(1, 2), window_size=4, num_classes=0)
    found = rates(swin, learning_rate=1.0, layer_decay=0.5)
    blocks = [found[f"network.layers.{one}.mlp.fc1.weight"] for one in ("0.blocks.0", "1.blocks.0", "1.blocks.1")]
    assert blocks == sorted(blocks) and blocks[-1] == 0.5 and found["network.patch_embed.proj.weight"] < blocks[0]
    found = rates(timm.create_model("test_resnet", num_classes=0), learning_rate=1.0, layer_decay=0.5)
    stages = [found[f"network.layer{stage}.0.conv1.weight"] for stage in (1, 2, 3, 4)]
    assert stages == sorted(stages) and len(set(stages)) == 4 and found["network.conv1.0.weight"] < stages[0]


def test_vectors_tokens_and_positions_do_not_decay():
    task = Task(vit(), weight_decay=0.1)
    by = {id(one): group["weight_decay"] for group in task.groups() for one in group["params"]}
    still = {name for name, one in task.named_parameters() if by[id(one)] == 0}
    assert {"network.pos_embed", "network.cls_token", "head.bias", "network.norm.weight"} <= still
    assert not still & {"head.weight", "network.blocks.0.mlp.fc1.weight", "network.patch_embed.proj.weight"}


@pytest.mark.parametrize("name", ["vit", "test_resnet"])
def test_frozen_backbone_is_untouched_to_the_bit(name: str):
    task = Task(vit() if name == "vit" else timm.create_model(name, num_classes=0), freeze="all")
    before = copy.deepcopy(task.state_dict())
    after = fit(task).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}  # running statistics among them
    assert changed == {"head.weight", "head.bias"}


def test_backbone_moves_from_its_step_on():
    task = fit(Task(vit(), freeze="first", head_first=0.4, warmup=0.0, learning_rate=1e-3))
    sums, moods, rate = zip(*task.seen, strict=True)
    assert moods == (False, False, True, True, True)
    assert len(set(sums[:3])) == 1 and len(set(sums[2:])) == 3
    assert rate[:2] == (0, 0) and rate[2] == max(rate) == pytest.approx(1e-3 * 0.75)


@pytest.mark.parametrize(("share", "moods"), [(0.99, (False, False, True)), (0.01, (False, True, True))])
def test_the_head_goes_first_and_the_backbone_follows_however_few_the_steps(share, moods):
    seen = fit(Task(vit(), freeze="first", head_first=share), 3).seen
    assert tuple(mood for _, mood, _ in seen) == moods


def test_rate_rises_and_falls_in_steps():
    task = Task(vit(), warmup=0.5, layer_decay=1.0, learning_rate=1.0)
    assert [seen[2] for seen in fit(task, 4).seen] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_a_small_loss_moves_as_far_as_a_large_one():
    """As where few pixels have a label."""

    class Faint(Task):
        def training_step(self, batch: Tensor) -> Tensor:
            return 1e-5 * super().training_step(batch)

    large, small = (dict(fit(kind(vit()), 1).network.named_parameters()) for kind in (Task, Faint))
    far = torch.cat([((small[name] - one) / (large[name] - one)).flatten() for name, one in vit().named_parameters()])
    assert (far - 1).abs().nanmedian() < 1e-3


def test_every_trained_parameter_has_a_gradient():
    for training in ({}, {"lora": 2}, {"freeze": "all"}):
        task = Task(vit(), **training)
        task.head(task.network(torch.randn(2, 3, 32, 32))).sum().backward()
        grouped = {id(one) for group in task.groups() for one in group["params"]}
        assert {id(one) for one in task.parameters() if one.grad is not None} == grouped


def test_low_rank_matrices_start_at_nothing_and_merge_into_the_same():
    images, network = torch.randn(2, 3, 32, 32), vit()
    network.eval()
    plain, keys = network(images), set(network.state_dict())
    add_lora(network, 2)
    assert torch.equal(network(images), plain)
    task = Task(vit(), lora=2, layer_decay=1.0, learning_rate=0.1)
    fit(task).network.eval()
    trained = task.network(images)
    assert not torch.allclose(trained, plain, atol=1e-3)
    own = {name: one for name, one in task.network.named_parameters() if "lora" not in name}
    assert all(
        torch.equal(one, dict(vit().named_parameters())[name.replace(".base_layer", "")]) for name, one in own.items()
    )
    merge_lora(task.network)
    assert set(task.network.state_dict()) == keys
    torch.testing.assert_close(task.network(images), trained, rtol=1e-4, atol=1e-5)


def test_low_rank_matrices_beside_every_matrix_of_attention_and_mlp():
    network = vit()
    add_lora(network, 2)
    names = {name.split(".lora_")[0] for name, one in network.named_parameters() if one.requires_grad}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == {f"blocks.{block}.{part}" for block in range(DEPTH) for part in parts}


def test_low_rank_matrices_that_are_read_past_are_refused():
    eva = timm.models.eva.Eva(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=0, qkv_fused=True)
    with pytest.raises(ConfigError, match=r"lora 2 has no effect on Eva.*set lora to 0"):
        fit(Task(eva, lora=2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"freeze": "al"}, "did you mean 'all'"),
        ({"freeze": "all", "lora": 4}, "leave one of them out"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"warmup": 1.0}, r"warmup in \[0, 1\)"),
        ({"head_first": 0.0}, "head_first"),
        ({"lora": -1}, "lora at least 0"),
    ],
)
def test_bad_settings_are_named(given: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Training(**given)


def test_convolutions_have_no_low_rank_matrices():
    with pytest.raises(ConfigError, match="no attention and no MLP in ResNet"):
        Task(timm.create_model("test_resnet", num_classes=0), lora=4)


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"max_epochs": -1}, "give max_epochs or max_steps"),
        ({"devices": 2, "strategy": "ddp"}, "ddp_find_unused_parameters_true"),
    ],
)
def test_trainers_that_cannot_work_are_refused(trainer: dict[str, Any], said: str):
    task = Task(vit(), freeze="first")
    task.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **trainer)
    with pytest.raises(ConfigError, match=said):
        task.configure_optimizers()


def test_settings_are_stored_as_plain_values():
    assert Task(vit(), lora=2).hparams["training"]["lora"] == 2
