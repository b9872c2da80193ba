"""Labels as publishers write them, on real imagery."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geomim.errors import InputError
from geomim.finetune.datamodule import Windows
from geomim.finetune.labels import open_labels
from geomim.finetune.places import Split
from geomim.sensors import BandContract, get_sensor


def contract(sensor, names=None, mean=110.0, std=50.0):
    bands = get_sensor(sensor, names)
    return BandContract(bands, (mean,) * len(bands.bands), (std,) * len(bands.bands))


def labelled(windows):
    return {
        part: torch.stack([windows.sample(cut)["mask"] for cut in cuts]) for part, cuts in windows.parts.items() if cuts
    }


def test_thirty_polygons_of_five_classes_over_two_dates(data_dir):
    names = ["blue", "green", "red", "nir", "swir1", "swir2", "-", "-"]
    polygons = data_dir / "landsat7_polygons" / "training_data.shp"
    labels = open_labels([str(data_dir / "landsat7")], str(polygons), bands=names)
    assert labels.classes == ("barren", "forest", "herbaceous", "urban", "water") and len(labels.items) == 2
    encoder = contract("landsat7", ["blue", "green", "red", "nir"], 500.0, 300.0)
    windows = Windows(labels, encoder, 32, Split(val=False), batch_size=4)
    masks = labelled(windows)
    assert set(masks["test"].unique().tolist()) == set(masks["train"].unique().tolist()) == {-1, 0, 1, 2, 3, 4}
    assert sum((own >= 0).sum() for own in masks.values()) > 598, "hundreds of labelled pixels in each of two dates"
    images = next(iter(windows.train_dataloader()))["image"]
    assert images.shape == (4, 4, 32, 32) and images.abs().mean() < 10


def test_buildings_and_projected_geojson(data_dir):
    folder = data_dir / "solaris_vectors"
    labels = open_labels(
        [str(folder / "sample_geotiff.tif")], str(folder / "geotiff_labels.geojson"), class_column="building"
    )
    assert labels.classes == ("background", "building") and len(labels.items[0].shapes) == 43
    custom = str(folder / "geotiff_custom_proj_labels.geojson")
    labels = open_labels([str(folder / "sample_geotiff_custom_proj.tif")], custom)
    assert len(labels.items[0].shapes) == 19 and "taken to be in that of" in labels.notes[0]
    with pytest.raises(InputError, match="they lie on no scene, neither"):
        open_labels([str(folder / "sample_geotiff.tif")], custom)


def test_oriented_boxes_of_three_publishers(data_dir):
    labels = open_labels([str(data_dir / "obb" / "images")], str(data_dir / "obb" / "labelTxt"))
    assert (labels.kind, labels.classes, len(labels.items[0].labels)) == (
        "oboxes",
        ("large-vehicle", "small-vehicle"),
        64,
    )
    folds = [Windows(labels, contract("rgb"), 128, Split(fold=fold, val=False)).test_dataloader() for fold in range(5)]
    found = torch.cat([boxes for fold in folds for batch in fold for boxes in batch["obox"]])
    assert (found[:, 2] >= found[:, 3]).all() and found[:, 2].median() > 20 and len(found) == 64, "each once"
    dior = data_dir / "obb" / "dior"
    labels = open_labels([str(dior / "JPEGImages")], str(dior / "Annotations"))
    assert labels.classes == ("golffield",) and labels.items[0].corners[0].tolist() == [
        [133, 237],
        [684, 237],
        [684, 672],
        [133, 672],
    ]
    with pytest.raises(InputError, match="HRSC XML labels: no image is left"):
        open_labels([str(data_dir / "obb" / "images")], str(data_dir / "obb" / "hrsc"))
    with pytest.raises(InputError, match="several labels"):
        open_labels([str(data_dir / "obb")])


def test_trees_are_the_same_in_csv_and_in_xml(data_dir):
    folder = data_dir / "trees"
    image = str(folder / "OSBS_029.tif")
    one, two = (open_labels([image], str(folder / f"OSBS_029.{form}")) for form in ("csv", "xml"))
    assert len(one.items[0].labels) == 61 and one.classes == two.classes == ("Tree",)
    assert np.array_equal(one.items[0].corners, two.items[0].corners)


def test_boxes_of_aircraft_and_any_kind_of_box(data_dir):
    labels = open_labels([str(data_dir / "airbus")])
    assert (labels.kind, len(labels.items), sum(len(item.labels) for item in labels.items)) == ("boxes", 50, 1754)
    few = replace(labels, items=labels.items[:12], kind="oboxes")
    windows = Windows(few, contract("rgb"), 512, Split(val=False), batch_size=2)
    batch = next(iter(windows.train_dataloader()))
    assert batch["image"].shape == (2, 3, 512, 512) and batch["obox"][0].shape[1] == 5
    assert not {cut.item for cut in windows.parts["train"]} & {cut.item for cut in windows.parts["test"]}


def test_masks_of_roads_change_and_water(data_dir):
    roads = open_labels([str(data_dir / "epfl_roads")])
    assert (roads.kind, len(roads.items)) == ("mask", 50) and "from 128 on" in roads.notes[0]
    change = open_labels([str(data_dir / "change_levir")])
    windows = Windows(change, contract("rgb"), 128, batch_size=2)
    batch = next(iter(windows.train_dataloader()))
    assert batch["image"].shape == (2, 2, 3, 128, 128) and batch["mask"].shape == (2, 128, 128)
    water = open_labels([str(data_dir / "water")], places=str(data_dir / "water" / "location_groups.csv"))
    assert len(water.items) == 100 and all(item.place for item in water.items)
    encoder = contract("sentinel2", ["B02", "B03", "B04"], 500.0, 300.0)
    names = ("-", "blue", "green", "red", *"-" * 8)
    windows = Windows(replace(water, asked=replace(water.asked, bands=names)), encoder, 128)
    groups = {part: {water.items[cut.item].place for cut in cuts} for part, cuts in windows.parts.items()}
    assert groups["test"] and not groups["test"] & (groups["train"] | groups["val"])
