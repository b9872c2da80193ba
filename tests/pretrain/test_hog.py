"""Histograms of oriented gradients: the published numbers, chosen patches, nodata, bands."""

import dataclasses

import numpy as np
import pytest
import torch
from test_reference import NO_DRAWS, Reference, close
from torch import Tensor

from geomim.errors import BandError, ConfigError
from geomim.models.vit import ViT
from geomim.pretrain.context import Context, View
from geomim.pretrain.targets import HOG
from geomim.sensors import SENSORS, BandContract


def encoder(patch_size: int = 16, channels: int = 3, side: int = 48) -> ViT:
    return ViT(channels, side, patch_size, width=8, depth=1, heads=1)


def view_of(image: Tensor, network: ViT, valid: Tensor | None = None, sensor: str | None = None) -> View:
    batch = {"image": image, "sensor": sensor} | ({} if valid is None else {"valid": valid})
    return Context(batch, network, NO_DRAWS).views["image"]


def everywhere(view: View) -> Tensor:
    return torch.arange(view.length).expand(len(view.image), -1)


def assembled(cells: Tensor, view: View) -> Tensor:
    """`(B, L, C, r, c, bins)` of patches as `(B, C, rows, columns, bins)` of the image."""
    cells = cells.unflatten(1, view.grid).permute(0, 3, 1, 4, 2, 5, 6)
    return cells.flatten(2, 3).flatten(3, 4)


@pytest.mark.parametrize("suffix", ["", "_small"])
def test_reference_hog(reference_dir, suffix: str) -> None:
    file = Reference(reference_dir / "hog_dmjd.npz")
    sizes = {"bins": int(file.number("bins")), "cell": int(file.number("cell")), "eps": file.number("eps")}
    image = file[f"images{suffix}"].float()
    network = encoder(int(file.number("patch_size")), image.shape[1])
    hog, view = HOG(network, **sizes), view_of(image, network)
    histogram, known = hog.histogram(view, everywhere(view))
    assert known is None
    close(assembled(histogram, view), file[f"histogram{suffix}"])
    close(assembled(hog.whiten(histogram), view), file[f"whitened{suffix}"])
    if not suffix:
        answer = hog(view, everywhere(view))
        assert answer.values.shape[-1] == hog.dim and answer.element is None
        close(answer.values, file["target"])


def test_chosen_patches_are_those_of_the_whole_image() -> None:
    network = encoder(8, 2, 32)
    view = view_of(torch.randn(3, 2, 32, 48), network)
    hog = HOG(network, cell=4)
    whole = hog(view, everywhere(view)).values
    chosen = torch.stack([torch.randperm(view.length)[:5] for _ in range(3)])
    close(hog(view, chosen).values, whole.gather(1, chosen[..., None].expand(-1, -1, hog.dim)))


@pytest.mark.parametrize(("step", "bin"), [((0, 1), 0), ((0, -1), 0), ((1, 0), 4), ((-1, 0), 4), ((1, -1), 6)])
def test_orientation_has_no_sign(step: tuple[int, int], bin: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    network = encoder(8, 1, 16)
    view = view_of((step[0] * rows + step[1] * columns).expand(1, 1, 16, 16), network)
    histogram, _ = HOG(network).histogram(view, everywhere(view))
    inner = histogram[0, 0, 0, 0, 0]
    assert inner.argmax() == bin and inner[bin] > 0.8 * inner.sum()


def test_nodata_is_no_edge_and_its_cells_are_not_asked_for() -> None:
    network = encoder(8, 2, 32)
    image = torch.randn(1, 2, 32, 32)
    valid = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    valid[..., :4, :] = False  # a row of cells
    valid[..., 16:, 10] = False
    hog = HOG(network, cell=4)
    answers = []
    for fill in (0.0, 1e6, float("nan")):
        view = view_of(torch.where(valid, image, fill), network, valid)
        answers.append(hog(view, everywhere(view)))
    for answer in answers[1:]:
        assert torch.equal(answer.values, answers[0].values) and answer.values.isfinite().all()
    element = answers[0].element.unflatten(-1, (2, 2, hog.bins, 2))
    assert not element[0, :4, 0].any() and element[0, :4, 1].all() and element[0, 4:].all()
    far = everywhere(view)[:, [3 * 4 + 3]]
    clean = view_of(image, network)
    close(hog(view, far).values, hog(clean, far).values)


def test_scale_of_a_band_hardly_matters() -> None:
    network = encoder(8, 1, 32)
    hog, image = HOG(network), torch.randn(2, 1, 32, 32)
    one, two = (view_of(image * scale, network) for scale in (1.0, 50.0))
    assert (hog(one, everywhere(one)).values - hog(two, everywhere(two)).values).abs().max() < 0.1


def contract(name: str, bands: int | None = None) -> BandContract:
    sensor = SENSORS[name]
    sensor = dataclasses.replace(sensor, bands=sensor.bands[:bands])
    ones = tuple(np.ones(len(sensor.bands)).tolist())
    return BandContract(sensor, ones, ones)


def test_bands_are_chosen_by_name_for_every_sensor() -> None:
    network = encoder(8, 4, 32)
    network.contracts = {"naip": contract("naip"), "landsat7": contract("landsat7", 4)}
    hog = HOG(network, ["green", "nir"], cell=4)
    assert hog.dim == 4 * 9 * 2
    image = torch.randn(2, 4, 32, 32)
    for sensor, places in (("naip", [1, 3]), ("landsat7", [1, 3])):
        plain = encoder(8, 2, 32)
        picked = view_of(image[:, places], plain)
        given = view_of(image, network, sensor=sensor)
        close(hog(given, everywhere(given)).values, HOG(plain, cell=4)(picked, everywhere(picked)).values)


def test_what_cannot_be_is_refused() -> None:
    network = encoder(16, 4)
    with pytest.raises(ConfigError, match="divide a patch of 16 px; given 5 px"):
        HOG(network, cell=5)
    network.contracts = {"naip": contract("naip"), "landsat7": contract("landsat7")}
    with pytest.raises(ConfigError, match=r"naip, landsat7 differ in their bands.*--method.bands"):
        HOG(network)
    with pytest.raises(BandError, match="missing swir1"):
        HOG(network, ["red", "swir1"])
