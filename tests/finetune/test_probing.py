"""Heads fitted on what an encoder said once: the right pixels, each window once, and floors by the same fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import photograph, save
from tiny_encoder import checkpoint
from torch.nn import functional as F

from geomim.finetune import probing
from geomim.finetune.backbones import Encoder, open_backbone
from geomim.finetune.datamodule import Cut, Windows
from geomim.finetune.labels import open_labels
from geomim.finetune.probing import PIXELS, Probing
from geomim.finetune.run import RANDOM, Running
from geomim.finetune.training import Training
from geomim.sensors import BandContract, get_sensor
from geomim.verbs.finetune_stages import keep

SIDE, COUNT, KINDS = 32, 6, ("field", "lake", "road", "town")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Probing, Windows]:
    """Images whose right half is darker, which is their second class; a strip is not labelled."""
    return shaded(tmp_path_factory.mktemp("probing"), np.arange(SIDE) >= SIDE // 2, "linear")


def shaded(folder: Path, dark: np.ndarray, head: str) -> tuple[Probing, Windows]:
    """Images that are darker in some columns, which is their second class; a strip is not labelled."""
    checkpoint(folder / "tiny.ckpt", contract := BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3),
               image_size=SIDE, patch_size=8, width=32, depth=2, heads=2)  # fmt: skip
    for number in range(COUNT):
        image, mask = photograph(number, SIDE), np.zeros((SIDE, SIDE), np.uint8)
        image[:, dark] //= 4
        image[:, ~dark] = image[:, ~dark] // 2 + 128
        mask[:, dark], mask[:4] = 1, 255
        save(folder / "images" / f"{number}.png", image)
        save(folder / "labels" / f"{number}.png", mask)
    (folder / "labels" / "classes.json").write_text('{"0": "light", "1": "dark"}')
    labels = open_labels([str(folder / "images")], str(folder / "labels"))
    given = {"encoder": Encoder(str(folder / "tiny.ckpt")), "classes": ["light", "dark"], "training": Training("all")}
    tuning = Probing("mask", given | {"head": head}, Running(probe=True), 0)
    return tuning, Windows(labels, open_backbone(str(folder / "tiny.ckpt")).contract or contract, SIDE, batch_size=4)


@pytest.mark.parametrize("start", ["", RANDOM, PIXELS])
def test_the_fitted_task_says_of_kept_pixels_what_the_fit_says(made: tuple[Probing, Windows], start: str) -> None:
    tuning, windows = made
    task = tuning.train(windows, 0, start)
    right = []
    for cut in windows.parts["train"]:
        columns, labels = tuning._kept[start][cut]
        sample = windows.sample(cut)
        assert 60 < len(labels) <= 130 and columns.dtype == (torch.float32 if start == PIXELS else torch.float16)
        assert abs(float(labels.float().mean()) - 0.5) < 0.05 and not sample["mask"][:4].ge(0).any()
        with torch.no_grad():
            said = task(sample["image"][None])[0]
        assert said.shape == (2, SIDE, SIDE)
        known = sample["mask"] >= 0
        right.append(float((said.argmax(0) == sample["mask"])[known].float().mean()))
        head = task.model.head.predict
        kept = F.linear(columns.float(), head.weight[:, :, 0, 0], head.bias).detach()
        of = said.flatten(1).T
        nearest = torch.cdist(kept, of[known.flatten()]).amin(1)
        assert float(nearest.max()) < 0.05 * float(of.abs().max()), "each kept pixel is one of the image"
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(("head", "told"), [("linear", False), ("both", True)])
def test_what_is_finer_than_a_patch_is_told_by_the_values_beside_the_maps(
    tmp_path: Path, head: str, told: bool
) -> None:
    tuning, windows = shaded(tmp_path, np.arange(SIDE) // 2 % 2 == 1, head)
    task = tuning.train(windows, 0)
    sample = windows.sample(windows.parts["test"][0])
    with torch.no_grad():
        said = task(sample["image"][None])[0].argmax(0)
    known = sample["mask"] >= 0
    right = float((said == sample["mask"])[known].float().mean())
    assert right > 0.95 if told else right < 0.7


def test_folds_share_what_is_kept(made: tuple[Probing, Windows], monkeypatch: pytest.MonkeyPatch) -> None:
    tuning, windows = made
    tuning.train(windows, 0)
    read: list[Cut] = []
    whole = probing.Samples.__getitem__
    monkeypatch.setattr(
        probing.Samples, "__getitem__", lambda self, at: (read.append(self.cuts[at]), whole(self, at))[1]
    )
    before, windows.parts["train"] = windows.parts["train"], windows.parts["test"] + windows.parts["train"][:1]
    try:
        tuning.train(windows, 0)
    finally:
        windows.parts["train"] = before
    assert read == windows.parts["test"], "those of the first fold are not read again"


def test_pixels_are_read_where_the_head_enlarges_its_answers() -> None:
    maps = torch.randn(3, 4, 5)
    whole = F.interpolate(maps[None], scale_factor=8, mode="bilinear")[0, :, :30, :37]
    some = torch.tensor([0, 36, 500, 29 * 37 + 36])
    found = probing._at(maps, some, torch.Size((30, 37)), 8)
    assert torch.allclose(found, whole.flatten(1)[:, some].T, atol=1e-5)


def test_a_task_of_band_values_comes_back_from_its_file(made: tuple[Probing, Windows], tmp_path: Path) -> None:
    tuning, windows = made
    task, image = tuning.train(windows, 0, PIXELS), windows.sample(windows.parts["test"][0])["image"][None]
    keep(tmp_path, task, windows)
    again = type(task).load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True).eval()
    with torch.no_grad():
        assert torch.equal(again(image), task(image)) and again.hparams["head"] == "pixels"


def test_a_scene_far_from_the_contract_is_fitted_all_the_same(
    made: tuple[Probing, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning, windows = Probing(*(getattr(made[0], name) for name in ("kind", "arguments", "running", "seed"))), made[1]
    whole = windows.sample
    monkeypatch.setattr(windows, "sample", lambda cut, *of: (one := whole(cut, *of)) | {"image": 400 * one["image"]})
    assert tuning.train(windows, 0, PIXELS).model.head.predict.weight.isfinite().all(), "squares beyond half precision"


def test_what_is_not_measured_has_no_part_in_the_floor_of_classes(tmp_path: Path) -> None:
    """An image, and the half of it that it repeats: what a window holds beyond that is padding."""
    checkpoint(tmp_path / "tiny.ckpt", contract := BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3),
               image_size=SIDE, patch_size=8, width=32, depth=2, heads=2)  # fmt: skip
    for number in range(12):
        half = photograph(number, SIDE)[:, : SIDE // 2] // (1 + number % 2)
        for name, image in (("whole", np.concatenate([half, half], 1)), ("half", half)):
            save(tmp_path / "images" / KINDS[number % 2] / f"{number:02} {name}.png", image)
    labels = open_labels([str(tmp_path / "images")])
    given = {"encoder": Encoder(str(tmp_path / "tiny.ckpt")), "classes": KINDS[:2], "training": Training("all")}
    tuning, windows = Probing("class", given, Running(probe=True), 0), Windows(labels, contract, SIDE, batch_size=4)
    task = tuning.train(windows.undivided(), 0, PIXELS)
    kept = torch.cat([columns for _, (columns, _) in sorted(tuning._kept[PIXELS].items())])
    assert len(kept) == 24 and torch.allclose(kept[::2], kept[1::2], atol=1e-5) and kept[:, :3].std(0).min() > 0.1
    answers: list[torch.Tensor] = []
    task.model.register_forward_hook(lambda *given: answers.append(given[-1]))
    windows.parts["test"] = windows.undivided().parts["train"]
    tuning.test(task, windows.test_dataloader())
    tuning.shown(task, windows, windows.parts["test"], 24)
    said = torch.cat(answers)
    assert len(said) == 48 and torch.allclose(said[::2], said[1::2], atol=1e-4) and torch.equal(said[:24], said[24:])


def test_a_decay_is_chosen_where_no_class_is_left_out_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of classes lie by class: a quarter of them in that order would be all that there is of one."""
    checkpoint(tmp_path / "tiny.ckpt", contract := BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3),
               image_size=SIDE, patch_size=8, width=32, depth=2, heads=2)  # fmt: skip
    for number in range(24):
        save(tmp_path / "images" / KINDS[number // 6] / f"{number:02}.png", photograph(number, SIDE))
    labels = open_labels([str(tmp_path / "images")])
    given = {"encoder": Encoder(str(tmp_path / "tiny.ckpt")), "classes": sorted(KINDS), "training": Training("all")}
    seen: list[tuple[set[int], ...]] = []

    def left_out(_: torch.Tensor, of: torch.Tensor, parts: torch.Tensor, *__: object) -> list[float]:
        seen.append(tuple({*of[parts != part].tolist()} for part in parts.unique()))
        return [0.0]

    monkeypatch.setattr(probing, "_left_out", left_out)
    Probing("class", given, Running(probe=True), 0).train(Windows(labels, contract, SIDE))
    assert [*map(len, seen)] == [4]
    assert all(one == {0, 1, 2, 3} for parts in seen for one in parts)
