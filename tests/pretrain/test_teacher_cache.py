"""A teacher's features of whole tiles on disk: equal to running it, resampled as pixels are, stale ones refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_corpus import write_corpus
from tiny_teacher import write_teacher
from torch.nn import functional as F

from geomim.cli import main
from geomim.data import features
from geomim.data.augment import Augment
from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError, CorpusError
from geomim.models.build import build_encoder
from geomim.pretrain.context import Context
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.targets import FrozenTeacher
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor

CPU = torch.device("cpu")
STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


@pytest.fixture
def corpus(tmp_path):
    return str(write_corpus(tmp_path / "corpus", nodata=True))


@pytest.fixture
def name(tmp_path):
    return write_teacher(tmp_path / "teacher")


def prepared(corpus, name, folder, levels=2, **options):
    """Data, encoder, and a teacher with its cache, which nothing has been written to."""
    data = TileDataModule(corpus, batch_size=18, image_size=16, workers=0, **options)
    encoder = build_encoder(data.contracts, 16, patch_size=4, width=24, depth=2, heads=2)
    teacher = FrozenTeacher(name, encoder, levels, str(folder))
    return data, encoder, teacher, data.provide(frozenset(), None, teacher)


def seen(teacher, encoder, batch):
    return teacher(Context(batch, encoder, Draws(0, batch["position"])).views["image"])


def test_whole_tiles_give_what_the_teacher_says_and_flips_flip_it(corpus, name, tmp_path) -> None:
    data, encoder, teacher, said = prepared(corpus, name, tmp_path / "cache", turn=True, **STILL)
    size = 18 * 17 * (2 * 24 + 1) * 2
    room = f"{size / 1e9:.3g} GB"
    assert said == [f"the teacher's features take {room} in '{tmp_path / 'cache'}'; {room} are computed first"]
    assert not (tmp_path / "cache").exists()
    data.features.fill(CPU)
    data.features.attach()
    assert (tmp_path / "cache" / "0-rgb.f16").stat().st_size == size
    batch = next(iter(data.train_dataloader()))
    assert batch["teacher"].dtype == torch.float16
    whole, cut = data.augment.whole(batch), data.augment(batch)
    right, attention = seen(FrozenTeacher(name, encoder, 2), encoder, whole)
    flips = Draws(0, batch["position"])("flip", 3) < 0.5
    assert flips.any(0).all() and not flips.all(0).any()
    teacher.network = None  # never asked
    levels, looks = seen(teacher, encoder, cut)
    for given, wanted in zip([*levels, looks[..., None]], [*right, attention[..., None]], strict=True):
        for row, (upside, mirrored, turned) in enumerate(flips.tolist()):
            grid = wanted[row, -16:].unflatten(0, (4, 4))
            grid = grid.flip(0) if upside else grid
            grid = grid.flip(1) if mirrored else grid
            grid = grid.transpose(0, 1) if turned else grid
            torch.testing.assert_close(given[row, -16:], grid.flatten(0, 1), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(levels[-1][:, 0], right[-1][:, 0], rtol=2e-3, atol=2e-3)


def test_features_are_those_of_the_ground_that_the_crop_shows() -> None:
    """A teacher that says the mean of each patch, of tiles that change evenly."""
    contract = BandContract(get_sensor("rgb"), (0.0,) * 3, (1.0,) * 3)
    augment = Augment({"rgb": contract}, 32, scale=(0.3, 0.8), turn=True)

    def means(batch):
        cells = F.avg_pool2d(batch["image"], 4).flatten(2).transpose(1, 2)
        return F.pad(cells, (0, 0, 1, 0))

    down, right = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing="ij")
    image = torch.stack([down, right, down * right]).expand(16, -1, -1, -1)
    raw = {"image": image, "sensor": "rgb", "position": torch.arange(16)}
    kept = means(augment.whole(raw))
    cut = augment(raw | {"teacher": kept.half()})
    wrong = (cut["teacher"] - means(cut)).abs()
    assert wrong.max() < 0.07 and wrong.mean() < 0.003  # of 0..1; half a cell at the edge of a tile
    assert (kept - means(cut)).abs().mean() > 0.1


def test_stale_features_are_refused_with_what_changed(corpus, name, tmp_path) -> None:
    folder = tmp_path / "cache"
    data = prepared(corpus, name, folder)[0]
    data.features.fill(CPU)
    assert prepared(corpus, name, folder)[3][0].endswith("and are there")
    with pytest.raises(ConfigError, match=r"something else, as levels tell: give --method.cache another folder"):
        prepared(corpus, name, folder, levels=1)
    with pytest.raises(ConfigError, match="as tiles tell"):
        prepared(corpus, name, folder, split="val")
    write_teacher(tmp_path / "teacher", mlp_ratio=2.0)
    with pytest.raises(ConfigError, match="as weights tell"):
        prepared(corpus, name, folder)


def test_a_full_disk_and_a_missing_file_are_refused(corpus, name, tmp_path, monkeypatch) -> None:
    data = prepared(corpus, name, tmp_path / "cache")[0]
    with pytest.raises(ConfigError, match=r"a --method.cache that all machines share"):
        data.train_dataloader()
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"1e-06 GB are free: give --method.cache on a larger disk"):
        prepared(corpus, name, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_interrupted_caching_goes_on(corpus, name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(features, "_READ", 4)
    prepared(corpus, name, tmp_path / "whole")[0].features.fill(CPU)
    data, _, teacher, _ = prepared(corpus, name, tmp_path / "cache")
    honest, calls = teacher.features, []

    def stopped(batch):
        calls.append(batch["id"].tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(batch)

    monkeypatch.setattr(teacher, "features", stopped)
    with pytest.raises(KeyboardInterrupt):
        data.features.fill(CPU)
    file = tmp_path / "cache" / "0-rgb.f16"
    with file.open("ab") as half:
        half.write(b"a torn row")
    with pytest.raises(ConfigError, match="not whole here"):
        data.train_dataloader()
    again, _, teacher, _ = prepared(corpus, name, tmp_path / "cache")
    honest = teacher.features
    monkeypatch.setattr(teacher, "features", lambda batch: calls.append(batch["id"].tolist()) or honest(batch))
    again.features.fill(CPU)
    assert calls[2:4] == [[108, 109, 110, 111]] * 2 and len(calls) == 3 + 3
    assert file.read_bytes() == (tmp_path / "whole" / "0-rgb.f16").read_bytes()


def test_what_cannot_be_kept_is_not_kept(corpus, name, tmp_path, monkeypatch) -> None:
    data, _, teacher, _ = prepared(corpus, name, tmp_path / "cache")
    monkeypatch.setattr(teacher, "features", lambda batch: torch.full((len(batch["id"]), *teacher.shape), 1e6))
    with pytest.raises(CorpusError, match=r"tiles \[100, .*exceed float16.*leave out --method.cache"):
        data.features.fill(CPU)
    assert not (tmp_path / "cache" / "0-rgb.f16").stat().st_size
    read = data.sets[0].read
    monkeypatch.setattr(data.sets[0], "read", lambda rows: read(rows) | {"unreadable": torch.tensor(rows) == 3})
    with pytest.raises(CorpusError, match=r"tiles \[103\] of .*cannot be read.*corpus verify"):
        data.features.fill(CPU)


def test_a_run_fills_its_cache_and_goes_on_with_it(corpus, name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = (
        f"pretrain --recipe mask_align --method.teacher {name} --method.levels 2 --method.cache cache --data.workers 2 "
        "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 2 --encoder.heads 2 "
        "--training.precision 32-true --training.accelerator cpu --training.progress_bar false --data.corpus corpus "
        "--data.batch_size 4 --training.log_every 1 --training.max_steps 4"
    ).split()
    assert main([*flags, "--name", "one", "--training.milestones", "2"]) == 0
    before = (tmp_path / "cache" / "0-rgb.f16").stat().st_mtime_ns
    said = json.loads((tmp_path / "cache" / "0-rgb.json").read_text())
    assert {"corpus lock", "weights", "bands", "grid"} < set(said)
    half = tmp_path / "runs" / "one" / "checkpoints" / "step-0000002.ckpt"
    assert main([*flags, "--name", "two", "--resume", str(half), "--data.workers", "0"]) == 0
    assert (tmp_path / "cache" / "0-rgb.f16").stat().st_mtime_ns == before
    assert "and are there" in capsys.readouterr().out
    one, two = (
        torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("one", "two")
    )
    for key, values in one.items():
        torch.testing.assert_close(values, two[key], rtol=1e-5, atol=1e-6)
    assert main([*flags, "--name", "three", "--method.levels", "1"]) == 2
    assert "as levels tell" in capsys.readouterr().err and not (tmp_path / "runs" / "three").exists()


def test_without_a_cache_nothing_is_kept(corpus, name) -> None:
    data = TileDataModule(corpus, image_size=16)
    encoder = build_encoder(data.contracts, 16, patch_size=4, width=24, depth=2, heads=2)
    assert RECIPES["mask_align"](encoder, teacher=name, levels=2).cached is None
