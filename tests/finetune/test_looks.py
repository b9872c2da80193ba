"""What many images hold: each kind of numbers is judged, single images are told, and equal words are said once."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geomim.errors import InputError
from geomim.finetune import looks
from geomim.finetune.datamodule import Windows
from geomim.finetune.labels import Item, Labels, open_labels
from geomim.finetune.labels.items import Asked
from geomim.finetune.looks import Looks
from geomim.finetune.places import Split
from geomim.sensors import BandContract, get_sensor

RGB = BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3)
NAMES = ("red", "green", "blue")
SIDE = 32


def write(path: Path, pixels: np.ndarray, number: int = 0, names: tuple[str, ...] = NAMES, **options: object) -> str:
    """An image on ground of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {"height": SIDE, "width": SIDE, "count": len(pixels), "dtype": pixels.dtype, "driver": "GTiff"}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000 + 5000 * number, 4_000_000, 10, 10)}
    with rasterio.open(path, "w", **given | place | options) as raster:
        raster.write(pixels)
        raster.descriptions = names
    return str(path)


def noise(number: int, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(60, 160, (bands, SIDE, SIDE)).astype(np.uint8)


def of_classes(folder: Path, count: int = 6) -> Windows:
    for number in range(count):
        path = folder / ("field", "lake")[number % 2] / f"{number}.tif"
        if not path.exists():
            write(path, noise(number).astype(np.float32), number)
    return Windows(open_labels([str(folder)]), RGB, SIDE, Split(val=False))


@pytest.mark.parametrize("odd", [0, 3])
def test_each_kind_of_numbers_is_judged_wherever_it_comes(tmp_path: Path, odd: int) -> None:
    for number in range(6):
        pixels = (noise(number) / 255).astype(np.float32) if number == odd else noise(number)
        write(tmp_path / ("field", "lake")[number % 2] / f"{number}.tif", pixels, number)
    with pytest.raises(InputError, match=rf"{odd}\.tif': band .* too small.*") as error:
        of_classes(tmp_path)
    assert ("--sensor goes for all" in str(error.value)) == bool(odd), "of the first, no other kind is known"


def test_the_later_image_of_a_pair_is_judged_too(tmp_path: Path) -> None:
    before = write(tmp_path / "a.tif", noise(0))
    after = write(tmp_path / "b.tif", (noise(1) / 255).astype(np.float32))
    pair = Item(before, SIDE, SIDE, after=after, mask=write(tmp_path / "mask.tif", noise(2, 1) % 2, names=("change",)))
    with pytest.raises(InputError, match=r"b\.tif': band .* too small"):
        Windows(Labels("change", ("no", "yes"), (pair,), numbers=(0, 1)), RGB, SIDE)


def test_a_single_image_of_other_numbers_is_told_and_stays(tmp_path: Path) -> None:
    for number in (3, 4):
        path = tmp_path / ("field", "lake")[number % 2] / f"{number}.tif"
        write(path, (noise(number) / 255).astype(np.float32), number)
    windows = of_classes(tmp_path)
    (said,) = (note for note in windows.notes if "odd numbers" in note)
    assert said.startswith("2 of 6 images looked at hold odd numbers (") and "too small" in said
    assert said.endswith(" and 1 more)")
    assert len({cut.item for cuts in windows.parts.values() for cut in cuts}) == 6


def test_what_is_assumed_of_many_images_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        write(tmp_path / ("field", "lake")[number % 2] / f"{number}.tif", noise(number), number, names=("",) * 3,
              photometric="MINISBLACK")  # fmt: skip
    labels = open_labels([str(tmp_path)], sensor="rgb")
    assert labels.asked == Asked(sensor="rgb")
    (said,) = (note for note in Windows(labels, RGB, SIDE).notes if "names no bands" in note)
    assert said.endswith("in this order; --bands says otherwise; so with 5 more")
    assert "names no bands" not in capsys.readouterr().out


def test_images_without_a_measured_pixel_are_left_out_and_told(tmp_path: Path) -> None:
    nothing = np.full((3, SIDE, SIDE), np.nan, np.float32)
    write(tmp_path / "field" / "0.tif", nothing, 0)
    write(tmp_path / "lake" / "1.tif", np.zeros((3, SIDE, SIDE), np.uint8), 1, nodata=0)
    masked = write(tmp_path / "lake" / "3.tif", noise(3), 3)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as raster:
        raster.write_mask(np.zeros((SIDE, SIDE), bool))
    windows = of_classes(tmp_path, 12)
    used = {cut.item for cuts in windows.parts.values() for cut in cuts}
    names = {Path(windows.labels.items[item].image).name for item in used}
    assert names == {f"{number}.tif" for number in range(12)} - {"0.tif", "1.tif", "3.tif"}
    assert any(note.startswith("3 images without a measured pixel are left out (") for note in windows.notes)
    blank, path = Looks(1), str(tmp_path / "field" / "0.tif")
    blank.at(0, *windows.open(path), [(0, 0)], SIDE)  # of a scene of masks or boxes
    assert blank.notes == [f"1 images have no measured pixel where they were looked at ({path})"]
    for name in ("field", "lake"):
        for number in range(2):
            write(tmp_path / "empty" / name / f"{number}.tif", nothing, number)
    with pytest.raises(InputError, match="no image is left: 4 images without a measured pixel"):
        of_classes(tmp_path / "empty", 0)


def test_of_very_many_images_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, whole = of_classes(tmp_path), looks.looks
    scene, prepare = windows.open(windows.labels.items[0].image)
    read: list[int] = []
    monkeypatch.setattr(looks, "check_range", lambda *_: ())
    monkeypatch.setattr(looks, "looks", lambda *given: (read.append(1) or one for one in whole(*given)))
    many = Looks(20_000)
    for number in range(20_000):
        many.at(number, scene, prepare, [(0, 0)], SIDE)
    assert 200 < len(read) < 300
