"""Small copies of public sources in their publishers' own layouts, for torchgeo's classes to open."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

SIZE = 32


def pixels(*seed: int, bands: int = 3, size: int = SIZE, high: int = 250, dtype: str = "uint8") -> np.ndarray:
    """`(bands, size, size)` random numbers that no other seed gives."""
    return np.random.default_rng(seed).integers(1, high, (bands, size, size)).astype(dtype)


def picture(path: Path, *seed: int, array: np.ndarray | None = None) -> None:
    """An RGB picture, or a mask where `array` is `(H, W)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = pixels(*seed).transpose(1, 2, 0) if array is None else array
    Image.fromarray(given).save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def raster(path: Path, array: np.ndarray, epsg: int = 32632, step: float = 10, x: float = 500000) -> None:
    """A GeoTIFF of `(bands, H, W)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "photometric": "MINISBLACK",
        "count": len(array),
        "height": array.shape[1],
        "width": array.shape[2],
    }
    where = {"crs": f"EPSG:{epsg}", "transform": from_origin(x, 5000000, step, step)}
    with rasterio.open(path, "w", dtype=array.dtype, **profile, **where) as file:
        file.write(array)


def lines(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def mask(values: Iterable[int] = (0, 1), dtype: str = "uint8") -> np.ndarray:
    """`(SIZE, SIZE)`: one column stripe a value."""
    given = list(values)
    return np.array(given, dtype)[np.arange(SIZE) * len(given) // SIZE][None].repeat(SIZE, 0)


def coloured(colours: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """`(SIZE, SIZE, 3)`: one column stripe a colour."""
    given = np.array(list(colours), np.uint8)
    return given[np.arange(SIZE) * len(given) // SIZE][None].repeat(SIZE, 0)


def eurosat(root: Path) -> None:
    folder = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    for place, split in enumerate(("train", "val", "test")):
        for number, name in enumerate(("AnnualCrop", "SeaLake")):
            raster(
                folder / name / f"{name}_{place + 1}.tif", pixels(place, number, bands=13, high=9000, dtype="uint16")
            )
        lines(root / f"eurosat-{split}.txt", (f"{name}_{place + 1}.jpg" for name in ("AnnualCrop", "SeaLake")))


def _by_split(root: Path, folder: str, prefix: str, names: tuple[str, ...], suffix: str, size: int = SIZE) -> None:
    for place, split in enumerate(("train", "val", "test")):
        for number, name in enumerate(names):
            array = pixels(place, number, size=size).transpose(1, 2, 0)
            picture(root / folder / name / f"{name}{place:02d}{suffix}", array=array)
        lines(root / f"{prefix}-{split}.txt", (f"{name}{place:02d}{suffix}" for name in names))


def ucmerced(root: Path) -> None:
    _by_split(root, "UCMerced_LandUse/Images", "uc_merced", ("beach", "river"), ".tif", 256)


def resisc45(root: Path) -> None:
    _by_split(root, "NWPU-RESISC45", "resisc45", ("island", "lake"), ".jpg")


def patternnet(root: Path) -> None:
    for number, name in enumerate(("beach", "bridge")):
        picture(root / "PatternNet/images" / name / f"{name}001.jpg", number)


def million_aid(root: Path) -> None:
    for place, split in enumerate(("train", "test")):
        picture(root / split / "agriculture_land/grassland/meadow/P0115918.jpg", place, 0)
        picture(root / split / "water_area/beach/P0060208.jpg", place, 1)


def firerisk(root: Path) -> None:
    for place, split in enumerate(("train", "val")):
        for number, name in enumerate(("High", "Water")):
            picture(root / "FireRisk" / split / name / f"{place}{number}.png", place, number)


def skyscript(root: Path) -> None:
    for number in range(2, 8):
        picture(root / f"images{number}" / "a_US.jpg", number)
    for split, kept in (("train", "train_top30pct"), ("val", "val_5K"), ("test", "test_30K")):
        file = root / f"SkyScript_{kept}_filtered_by_CLIP_openai.csv"
        lines(file, ["filepath,title", f"images2/a_US.jpg,a {split} rivière", "images3/a_US.jpg,a harbour with ships"])


def bigearthnet(root: Path) -> None:
    bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    for place, split in enumerate(("train", "val", "test")):
        name = f"S2A_MSIL2A_20170613T101031_0_{place}"
        folder = root / "BigEarthNet-v1.0" / name
        for number, band in enumerate(bands):
            size = {"B01": 20, "B09": 20}.get(band, 120 if band in ("B02", "B03", "B04", "B08") else 60)
            array = np.full((1, size, size), 100 * (number + 1), "uint16")
            raster(folder / f"{name}_{band}.tif", array, step=1200 / size)
        labels = ["Pastures"] if place == 0 else ["Pastures", "Sea and ocean"]
        (folder / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": labels}))
        lines(root / f"bigearthnet-{split}.csv", [f"{name},S1A_{place}"])


def oscd(root: Path) -> None:
    images = root / "Onera Satellite Change Detection dataset - Images"
    names = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    for place, (split, region) in enumerate((("Train", "paris"), ("Train", "abudhabi"), ("Test", "brasilia"))):
        for date in (1, 2):
            for number, band in enumerate(names):
                array = np.full((1, SIZE, SIZE), 1000 * date + 10 * number + place, "uint16")
                raster(images / region / f"imgs_{date}_rect" / f"{band}.tif", array)
        lines(images / region / "dates.txt", ["date_1: 20160101", "date_2: 20180101"])
        labels = root / f"Onera Satellite Change Detection dataset - {split} Labels"
        picture(labels / region / "cm" / "cm.png", array=mask((0, 255)))


def cloud_cover(root: Path) -> None:
    # torchgeo 0.8 names the folders by split, 0.10 as the publisher does
    for folder, split in (("train", "train"), ("test", "test"), ("public", "train"), ("private", "test")):
        place = ("train", "test").index(split)
        lines(root / folder / f"{split}_metadata.csv", ["chip_id,location", f"chip{place},x"])
        for number, band in enumerate(("B02", "B03", "B04", "B08")):
            array = pixels(place, number, bands=1, high=9000, dtype="uint16")
            raster(root / folder / f"{split}_features" / f"chip{place}" / f"{band}.tif", array)
        raster(root / folder / f"{split}_labels" / f"chip{place}.tif", mask((0, 1))[None])


def sen12ms(root: Path) -> None:
    for season in ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter"):
        (root / season).mkdir(parents=True)
    for place, split in enumerate(("train", "test")):
        for kind, bands, dtype in (("lc", 4, "uint16"), ("s1", 2, "float32"), ("s2", 13, "uint16")):
            array = pixels(place, bands, bands=bands, high=9000, dtype=dtype)
            raster(root / f"ROIs1158_spring/{kind}_{place}/ROIs1158_spring_{kind}_{place}_p30.tif", array)
        lines(root / f"{split}_list.txt", [f"ROIs1158_spring_s2_{place}_p30.tif"])


def seco(root: Path) -> None:
    for date in range(5):
        for number, band in enumerate(("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")):
            array = np.full((1, 264, 264), 1000 * date + number + 1, "uint16")
            raster(root / "seasonal_contrast_100k" / "000000" / f"2018{date + 1:02d}01" / f"{band}.tif", array)


def naip(root: Path) -> None:
    for place, quarter in enumerate(("ne", "sw")):
        file = root / f"m_3807511_{quarter}_18_060_20181104.tif"
        raster(file, pixels(place, bands=4), 26918, 1, 400000 + 1000 * place)


def l8biome(root: Path) -> None:
    for place, name in enumerate(("LC80010112014080LGN00", "LC80010732013109LGN00")):
        folder = root / f"shrubland{place}" / name
        raster(folder / f"{name}.TIF", pixels(place, bands=11, high=20000, dtype="uint16"), step=30)
        raster(folder / f"{name}_fixedmask.TIF", mask((0, 64, 128, 255))[None], step=30)


def chesapeake(root: Path) -> None:
    from torchgeo.datasets import ChesapeakeCVPR

    files = ChesapeakeCVPR._files  # what the class looks for to tell that all was extracted
    if isinstance(files, dict):  # by part of the dataset from torchgeo 0.10 on
        files = [name for part in files.values() for name in part]
    for name in files:
        if "." in Path(name).name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        else:
            (root / name).mkdir(parents=True, exist_ok=True)
    features = []
    for place, split in enumerate(("train", "val", "test")):
        stem = f"de_1m_2013_extended-debuffered-{split}_tiles/m_3807503_ne_18_{place}"
        raster(root / f"{stem}_naip-new.tif", pixels(place, bands=4), 26918, 1)
        raster(root / f"{stem}_lc.tif", mask((1, 2, 6, 15))[None], 26918, 1)
        x = -8400000 + 1000 * place
        ring = [[x, 4600000], [x + 32, 4600000], [x + 32, 4600032], [x, 4600032], [x, 4600000]]
        properties = {"split": f"de-{split}", "naip-new": f"{stem}_naip-new.tif", "lc": f"{stem}_lc.tif"}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": features}
    (root / "spatial_index.geojson").write_text(json.dumps(content))


def _voc(objects: Iterable[tuple[str, tuple[int, int, int, int]]]) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    written = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    return f"<annotation><filename>x.jpg</filename>{written}</annotation>"


def dior(root: Path) -> None:
    rows = ["image_path,label_path,split"]
    for place, split in enumerate(("train", "val", "test")):
        image = f"Images_{'test' if split == 'test' else 'trainval'}/{place:05d}.jpg"
        label = "" if split == "test" else f"Annotations_trainval/{place:05d}.xml"
        picture(root / image, place)
        if label:
            lines(root / label, [_voc([("ship", (2, 3, 12, 9)), ("windmill", (20, 20, 30, 31))])])
        rows.append(f"{image},{label},{split}")
    lines(root / "sample_df.csv", rows)


def dota(root: Path) -> None:
    rows = ["split,version,image_path,annotation_path"]
    for place, split in enumerate(("train", "val")):
        picture(root / split / "images" / f"P{place:04d}.png", place)
        file = root / split / "annotations" / "version2.0" / f"P{place:04d}.txt"
        boxes = [] if split == "val" else ["3 2 9 4 7 10 1 8 plane 0", "20 20 30 20 30 25 20 25 helipad 1"]
        lines(file, ["imagesource:GoogleEarth", "gsd:0.5", *boxes])
        rows.append(f"{split},2.0,{split}/images/P{place:04d}.png,{file.relative_to(root)}")
    lines(root / "samples.csv", rows)


def vhr10(root: Path) -> None:
    folder = root / "NWPU VHR-10 dataset"
    images, annotations = [], []
    for place in range(2):
        picture(folder / "positive image set" / f"{place + 1:03d}.jpg", place)
        picture(folder / "negative image set" / f"{place + 1:03d}.jpg", 9, place)
        images.append({"id": place, "file_name": f"{place + 1:03d}.jpg", "height": SIZE, "width": SIZE})
        shape = {"bbox": [4, 5, 10, 8], "area": 80, "iscrowd": 0, "segmentation": [[4, 5, 14, 5, 14, 13, 4, 13]]}
        annotations.append({"id": place, "image_id": place, "category_id": 10 - place, **shape})
    categories = [{"id": number, "name": str(number)} for number in range(1, 11)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (root / "NWPU VHR-10 dataset.zip").touch()


def fair1m(root: Path) -> None:
    points = "".join(f"<point>{x},{y}</point>" for x, y in ((3, 2), (9, 4), (7, 10), (1, 8), (3, 2)))
    names = "<possibleresult><name>Boeing747</name></possibleresult>"
    label = f"<object>{names}<points>{points}</points></object>"
    text = f"<annotation><source><filename>0.tif</filename></source><objects>{label}</objects></annotation>"
    folders = {"train": ("train/part1", "train/part2"), "val": ("validation",), "test": ("test",)}
    for number, (split, parts) in enumerate(folders.items()):
        for place, part in enumerate(parts):
            picture(root / part / "images" / f"{place}.tif", number, place)
            if split != "test":
                lines(root / part / "labelXml" / f"{place}.xml", [text])


def soda_a(root: Path) -> None:
    rows = ["image_path,label_path,split"]
    for place, split in enumerate(("train", "val", "test")):
        picture(root / "Images" / f"{place}.jpg", place)
        labels = {"annotations": [{"poly": [3, 2, 13, 2, 13, 8, 3, 8], "category_id": 4}]}
        lines(root / "Annotations" / f"{place}.json", [json.dumps(labels)])
        rows.append(f"Images/{place}.jpg,Annotations/{place}.json,{split}")
    lines(root / "sample_df.csv", rows)


def nasa_marine_debris(root: Path) -> None:
    for place in range(2):
        raster(root / "source" / f"{place}.tif", pixels(place))
        (root / "labels").mkdir(exist_ok=True)
        np.save(root / "labels" / f"{place}.npy", np.array([[1.0, 2, 11, 12, 1], [5, 5, 5, 9, 1]]))


def reforestree(root: Path) -> None:
    picture(root / "tiles" / "Site" / "Site RGB_0.png", 0)
    rows = ["img_path,xmin,ymin,xmax,ymax,group,AGB", "Site RGB_0.png,1,2,11,12,cacao,3.5"]
    lines(root / "mapping" / "final_dataset.csv", rows)


def loveda(root: Path) -> None:
    for place, split in enumerate(("Train", "Val", "Test")):
        for number, scene in enumerate(("Urban", "Rural")):
            picture(root / split / scene / "images_png" / f"{10 * place + number}.png", place, number)
            if split != "Test":
                picture(root / split / scene / "masks_png" / f"{10 * place + number}.png", array=mask((0, 1, 4, 7)))


_ISPRS = ((255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0))


def potsdam(root: Path) -> None:
    for place, name in enumerate(("top_potsdam_2_10", "top_potsdam_5_15")):
        raster(root / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif", pixels(place, bands=4))
        picture(root / f"{name}_label.tif", array=coloured(_ISPRS))


def vaihingen(root: Path) -> None:
    for place, area in enumerate((1, 6)):
        picture(root / "top" / f"top_mosaic_09cm_area{area}.tif", place)
        picture(root / f"top_mosaic_09cm_area{area}.tif", array=coloured(_ISPRS))


def inria(root: Path) -> None:
    folder = root / "AerialImageDataset"
    for place, name in enumerate(("austin1", "austin6")):
        raster(folder / "train" / "images" / f"{name}.tif", pixels(place))
        raster(folder / "train" / "gt" / f"{name}.tif", mask((0, 255))[None])
    raster(folder / "test" / "images" / "tyrol-e1.tif", pixels(7))


def deepglobe_landcover(root: Path) -> None:
    colours = ((0, 255, 255), (255, 255, 255), (0, 0, 0))
    for place, split in enumerate(("training_data", "test_data")):
        picture(root / "data" / split / "images" / f"{place}_sat.jpg", place)
        picture(root / "data" / split / "masks" / f"{place}_mask.png", array=coloured(colours))


def landcoverai(root: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        picture(root / "output" / f"M-33_{place}.jpg", place)
        picture(root / "output" / f"M-33_{place}_m.png", array=mask((0, 1, 2, 4)))
        lines(root / f"{split}.txt", [f"M-33_{place}"])


def gid15(root: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        picture(root / "GID" / "img_dir" / split / f"{place}.tif", place)
        if split != "test":
            picture(root / "GID" / "ann_dir" / split / f"{place}_15label.png", array=mask((0, 1, 15)))


def spacenet1(root: Path) -> None:
    ring = [[500000, 5000000], [500080, 5000000], [500080, 4999900], [500000, 4999900], [500000, 5000000]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    for place, split in enumerate(("train", "test")):
        folder = root / "SN1_buildings" / split
        raster(folder / "3band" / f"3band_AOI_1_RIO_img{place + 1}.tif", pixels(place))
        if split == "train":
            content = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
            lines(folder / "geojson" / f"Geo_AOI_1_RIO_img{place + 1}.geojson", [json.dumps(content)])


def levir_cd(root: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        for number, date in enumerate(("A", "B")):
            picture(root / date / f"{split}_1.png", place, number)
        picture(root / "label" / f"{split}_1.png", array=mask((0, 255)))


def xview2(root: Path) -> None:
    for place, split in enumerate(("train", "test")):
        for number, date in enumerate(("pre", "post")):
            name = f"hurricane-harvey_0000000{place}_{date}_disaster"
            picture(root / split / "images" / f"{name}.png", place, number)
            picture(root / split / "targets" / f"{name}_target.png", array=mask((0, 0, 4 * number)))


MINIATURES: dict[str, Callable[[Path], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        eurosat, ucmerced, resisc45, patternnet, million_aid, firerisk, skyscript, bigearthnet, oscd, cloud_cover,
        sen12ms, seco, naip, l8biome, chesapeake, dior, dota, vhr10, fair1m, soda_a, nasa_marine_debris, reforestree,
        loveda, potsdam, vaihingen, inria, deepglobe_landcover, landcoverai, gid15, spacenet1, levir_cd, xview2,
    )
}  # fmt: skip
