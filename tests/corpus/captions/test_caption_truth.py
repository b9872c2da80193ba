"""Every count, place, size and share that a caption states is true of the labels, over thousands of them."""

import csv
import re
from collections import Counter, defaultdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from caption_truth import VAGUE, Objects, Untrue, prove_cover
from rasterio.features import rasterize, shapes

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.grammar import noun
from geomim.corpus.captions.objects import called, from_boxes, from_masks
from geomim.corpus.captions.templates import by_boxes, covering, placed
from geomim.corpus.store import CATALOGUE

WORDS = {
    "small-vehicle": ("a small vehicle", "small vehicles"),
    "StorageTank": ("a storage tank", "storage tanks"),
    "large_vehicle": ("a large vehicle", "large vehicles"),
    "ground track field": ("a ground track field", "ground track fields"),
    "airport": ("an airport", "airports"),
    "person": ("a person", "people"),
    "ferry": ("a ferry", "ferries"),
    "aircraft": ("an aircraft", "aircraft"),
    "Water": ("an area of water", "areas of water", "mass"),
    "Snow and ice": ("an area of snow and ice", "areas of snow and ice", "mass"),
    "tree/shrub": ("a tree or shrub", "trees or shrubs"),
}


def table(rows):
    names = ("id", "size", "slot", "source", "valid_fraction", "boxes")
    blank = {"slot": 0, "source": "a.tif", "valid_fraction": 1.0}
    return pa.table(
        {name: pa.array([(blank | row)[name] for row in rows], CATALOGUE.field(name).type) for name in names}
    )


def draw(random, count):
    """Label sets of turned and upright boxes, some across the border of their tile."""
    rows = []
    for number in range(count):
        size = int(random.choice([32, 100, 256]))
        kinds = random.choice(list(WORDS), random.integers(1, 9), replace=False)
        boxes = []
        for _ in range(int(random.integers(1, random.choice([3, 12, 60])))):
            x, y = random.uniform(0, size, 2).clip(0, size - 1e-6)
            w, h, turn = (
                random.uniform(1, size / 5),
                random.uniform(1, size / 5),
                random.choice([0, random.uniform(0, 3)]),
            )
            corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
            turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            boxes.append({"polygon": (turned + np.array([x, y])).ravel().tolist(), "label": str(random.choice(kinds))})
        rows.append({"id": number, "size": size, "boxes": boxes})
    return rows


def written(rows, origin="b2c", seed=0, middle=0.5, gsd=None, corpus=None, names=None):
    """Sentences by row of boxes, or of a corpus's masks."""
    tiles, given = table(rows), (names or {}, Counter())
    objects = from_boxes(corpus, tiles, *given) if origin == "b2c" else from_masks(corpus, tiles, *given, 16)
    for place, own in objects.by_tile():
        row = rows[place]
        chance = partial(Chance, seed, row["id"], origin)
        yield row, by_boxes(own, row["size"], middle, chance), placed(own, row["size"], gsd, chance)


def as_seen(boxes, cut=False):
    return [{"what": one["label"], "polygon": one["polygon"], "cut": cut} for one in boxes]


@pytest.mark.parametrize(("middle", "gsd"), [(0.5, None), (1 / 3, 0.3), (0.8, 12.5)])
def test_hundreds_of_tiles_with_boxes(middle, gsd):
    random, forms, count = np.random.default_rng(0), Counter(), 0
    for row, faithful, richer in written(draw(random, 400), middle=middle, gsd=gsd):
        truth = Objects(WORDS, row["size"], middle, gsd)
        assert 1 <= len(faithful) <= 5 and len(set(faithful)) == len(faithful) and richer
        for sentence in [*faithful, *richer]:
            truth.prove(sentence, as_seen(row["boxes"]))
            forms[re.sub(r"\d[\d,.]*", "#", sentence)] += 1
            count += 1
        for sentence in faithful:  # flips and turns leave them true
            assert not re.search(r"left|right|upper|lower|north|south|east|west|top|bottom", sentence)
    assert count > 1600 and len(forms) > 500


def slants(random, count, size):
    """Which pixels of some tiles are valid `(n, size, size)`: they end along a line of any direction."""
    turn, far = random.uniform(0, 2 * np.pi, count), random.uniform(-0.3, 0.5, count) * size
    rows, cols = np.mgrid[:size, :size] + 0.5 - size / 2
    return cols * np.cos(turn)[:, None, None] + rows * np.sin(turn)[:, None, None] < far[:, None, None]


def stored(classes=(), **arrays):
    """A corpus of some arrays."""
    arrays = {name: SimpleNamespace(shape=values.shape, path=name, read=lambda slots, of=values: of[slots])
              for name, values in arrays.items()}  # fmt: skip
    return SimpleNamespace(classes=list(classes), array=lambda name, size: arrays.get(name))


def test_boxes_that_nodata_cuts():
    random, count, size = np.random.default_rng(5), Counter(), 48
    rows, valid = draw(random, 100), slants(random, 100, size)
    for slot, row in enumerate(rows):
        boxes = [one | {"polygon": (np.array(one["polygon"]) * size / row["size"]).tolist()} for one in row["boxes"]]
        row.update(size=size, slot=slot, boxes=boxes, valid_fraction=float(valid[slot].mean()))
    for row, faithful, richer in written(rows, gsd=2.0, corpus=stored(valid=valid)):
        truth = Objects(WORDS, size, gsd=2.0, valid=valid[row["slot"]])
        seen, whole = truth.prepare(as_seen(row["boxes"])), Objects(WORDS, size).prepare(as_seen(row["boxes"]))
        count["hidden"] += len(whole) - len(seen)
        count["cut"] += sum(one["cut"] for one in seen) > sum(one["cut"] for one in whole)
        for sentence in [*faithful, *richer]:
            truth.prove(sentence, as_seen(row["boxes"]))
            count["sentences"] += 1
    assert count["sentences"] > 400 and count["hidden"] > 100 and count["cut"] > 10, count


def test_the_checker_finds_what_is_untrue():
    random, found, lies = np.random.default_rng(1), 0, 0
    swaps = [("in the middle of", "outside the middle of"), ("upper", "lower"), ("is located", "are located")]
    swaps += [(f" {number} ", f" {number + 1} ") for number in range(2, 9)]
    for row, faithful, richer in written(draw(random, 300), gsd=0.5):
        truth = Objects(WORDS, row["size"], gsd=0.5)
        for sentence in [*faithful, *richer]:
            for old, new in swaps:
                if old in sentence and "about" not in sentence:
                    lies += 1
                    try:
                        truth.prove(sentence.replace(old, new, 1), as_seen(row["boxes"]))
                    except Untrue:
                        found += 1
    assert lies > 500 and found > 0.97 * lies  # as many there as here may be
    airport = {"what": "airport", "polygon": [9, 9, 12, 9, 12, 12, 9, 12]}
    truth = Objects(WORDS, 32, gsd=1.0)
    truth.prove("An airport that spans about 3 m lies in the upper left quarter of the picture.", [airport])
    for lie in (
        "Two airports can be seen in this picture.", "A ferry can be seen in this picture.", "Something else.",
        "Part of an airport can be seen in this picture.", "There are many airports in this picture.",
        "An airport that spans about 4 m lies in the upper left quarter of the picture.",
        "An airport can be seen away from the middle of this remote sensing picture.",
    ):  # fmt: skip
        with pytest.raises(Untrue):
            truth.prove(lie, [airport])


def test_draws_are_addressed():
    rows = draw(np.random.default_rng(2), 60)
    one = {row["id"]: (faithful, richer) for row, faithful, richer in written(rows, gsd=1.0)}
    assert one == {row["id"]: (a, b) for row, a, b in written(rows[::-1], gsd=1.0)}  # whatever the order,
    assert {key: one[key] for key in range(7, 19)} == {row["id"]: (a, b) for row, a, b in written(rows[7:19], gsd=1.0)}
    other = {row["id"]: (a, b) for row, a, b in written(rows, gsd=1.0, seed=1)}
    assert sum(one[key] != other[key] for key in one) > 50
    twins = [rows[0] | {"id": number} for number in range(40)]  # equal labels, other ids
    assert len({tuple(faithful) for _, faithful, _ in written(twins)}) > 30
    assert Chance(0, 1, "a").below(2**31) != Chance(0, 1, "b").below(2**31)
    assert sorted(Chance(3).some(range(9), 9)) == list(range(9)) and Chance(3).some(range(2), 5).__len__() == 2


def test_counts_are_exact_to_ten_and_vague_above():
    def many(count):
        boxes = [{"polygon": [10 + n, 10, 13 + n, 10, 13 + n, 13, 10 + n, 13], "label": "ferry"} for n in range(count)]
        ((_, faithful, _),) = written([{"id": 3, "size": 64, "boxes": boxes}])
        return " ".join(faithful)

    assert "a ferry" in many(1).lower()
    assert re.search(r"10 ferries|ten ferries", many(10).lower()) and not any(
        word in many(10).lower() for word in VAGUE
    )
    assert any(word in many(11).lower() for word in VAGUE) and not re.search(r"\d|eleven", many(11))


def test_classes_are_called_as_the_user_says():
    def words(classes, names=None):
        return [one and one.one for one in called(classes, names or {})]

    assert words(["Truncated_airplane", "Airplane", None]) == ["airplane", "airplane", "object"]
    assert words(["Truncated_airplane", "Airplane"], {"Airplane": "plane"}) == ["plane", "plane"]
    assert words(["Truncated_airplane", "Airplane"], {"Truncated_airplane": None}) == [None, "airplane"]
    assert words(["Truncated_airplane", "Airplane"], {"truncated airplane": "plane"}) == ["plane", "airplane"]
    assert words(["background", "no-change", "Non_building", "other", "northern road"], {"other": "thing"}) == [
        None, None, None, "thing", "northern road"]  # fmt: skip


def parts_of(mask, value, valid):
    """Boxes of what is valid of the 8-connected parts of a class, how many pixels that is, and whether nodata is near.

    By GDAL's polygons, and by the pixels that it burns for each.
    """
    height, width = valid.shape
    bad = np.pad(~valid, 1, constant_values=True)
    near = np.logical_or.reduce([bad[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    for shape, found in shapes((mask == value).astype(np.uint8), connectivity=8):
        if found:
            own = rasterize([shape], valid.shape).astype(bool)
            ys, xs = (at.nonzero()[0] for at in ((own & valid).any(1), (own & valid).any(0)))
            if len(ys):
                x1, y1, x2, y2 = (float(at) for at in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
                yield [x1, y1, x2, y1, x2, y2, x1, y2], int((own & valid).sum()), bool((own & near).any())


def masks_of(mask, classes, words, valid, least=16):
    return [
        {"what": name, "polygon": box, "cut": cut}
        for value, name in enumerate(classes)
        if name in words
        for box, seen, cut in parts_of(mask, value, valid)
        if seen >= least
    ]


def prove_masks(masks, classes, words, stuff, valid=None):
    """Sentences on some masks of one size `(n, s, s)`, all proved; how many."""
    valid = np.ones(masks.shape, bool) if valid is None else valid
    corpus, size = stored(classes, mask=masks, valid=valid), masks.shape[1]
    parts = valid.mean((1, 2)).tolist()
    rows = [{"id": 10 + slot, "size": size, "slot": slot, "boxes": None, "valid_fraction": part}
            for slot, part in enumerate(parts)]  # fmt: skip
    truth, count = Objects(words, size, gsd=2.0), 0
    for row, faithful, richer in written(rows, "m2b", gsd=2.0, corpus=corpus):
        objects = masks_of(masks[row["slot"]], classes, words, valid[row["slot"]])
        assert objects
        for sentence in [*faithful, *richer]:
            truth.prove(sentence, objects)
            count += 1
    nouns = called(list(classes), {})
    for slot, mask in enumerate(masks):
        shares = {stuff[name]: float((mask == value).mean()) for value, name in enumerate(classes) if name in stuff}
        given = {one: float((mask == value).mean()) for value, one in enumerate(nouns) if one and (mask == value).any()}
        for sentence in covering(given, Chance(0, slot)):
            prove_cover(sentence, shares)
            count += 1
    return count


def test_masks():
    random = np.random.default_rng(3)
    coarse = random.integers(0, 4, (60, 12, 12), dtype=np.uint8)
    masks = coarse.repeat(5, 1).repeat(5, 2)
    masks[20:40] = np.where(random.random((20, 60, 60)) < 0.1, 255, masks[20:40])
    masks[40:] = np.where(random.random((20, 60, 60)) < 0.97, 1, masks[40:])
    words = {"forest": ("an area of forest", "areas of forest", "mass"), "building": ("a building", "buildings")}
    words["lake"] = ("a lake", "lakes")
    stuff = {"forest": "forest", "building": "buildings", "lake": "lakes"}
    assert prove_masks(masks, ["background", "forest", "building", "lake"], words, stuff) > 300
    assert prove_masks(masks, ["no", "forest", "building", "lake"], words, stuff, slants(random, 60, 60)) > 200


def test_shares_of_all_kinds():
    random, count = np.random.default_rng(4), 0
    names = ["forest", "water", "building", "field", "road"]
    for number in range(3000):
        shares = random.dirichlet(np.full(5, random.choice([0.2, 1, 5]))) * random.choice([1, 1, 0.8, 0.3])
        if number % 5 == 0:
            shares[2:] = 0
            shares = shares / shares.sum()
        given = {noun(name): part for name, part in zip(names, shares.tolist(), strict=True) if part}
        for sentence in covering(given, Chance(number)):
            prove_cover(sentence, {noun(name).stuff: part for name, part in zip(names, shares.tolist(), strict=True)})
            count += 1
    assert count > 5000
    two = {noun("forest"): 0.66, noun("water"): 0.34}
    assert covering(two, Chance(0))[0] == "About two thirds of the picture is covered by forest, the rest by water."
    assert covering({noun("forest"): 0.04}, Chance(0)) == []
    with pytest.raises(Untrue):
        prove_cover("About two thirds of the picture is covered by forest.", {"forest": 0.5})


def airbus(data, edge):
    """Boxes of the Airbus sample on tiles of some size, as cutting gives them: a box goes with its middle."""
    boxes = defaultdict(list)
    for row in csv.DictReader(open(data / "airbus" / "boxes.csv")):
        x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
        top, left = int((y1 + y2) / 2 // edge), int((x1 + x2) / 2 // edge)
        x1, x2, y1, y2 = x1 - left * edge, x2 - left * edge, y1 - top * edge, y2 - top * edge
        boxes[row["image"], top, left].append({"polygon": [x1, y1, x2, y1, x2, y2, x1, y2], "label": row["class"]})
    return [{"id": n, "size": edge, "boxes": boxes[key]} for n, key in enumerate(sorted(boxes))]


@pytest.mark.parametrize("edge", [512, 2560])
def test_airbus(data_dir, edge):
    count = 0
    for row, faithful, richer in written(airbus(data_dir, edge), gsd=0.5):
        truth = Objects({"plane": ("an airplane", "airplanes")}, edge, gsd=0.5)
        objects = [
            {"what": "plane", "polygon": one["polygon"], "cut": "Truncated" in one["label"]} for one in row["boxes"]
        ]
        for sentence in [*faithful, *richer]:
            truth.prove(sentence, objects)
            count += 1
    assert count > 250


def test_epfl_roads(data_dir):
    files = sorted((data_dir / "epfl_roads" / "groundtruth").iterdir())
    masks = np.stack([(rasterio.open(file).read(1) >= 128).astype(np.uint8) for file in files])
    count = prove_masks(masks, ["background", "road"], {"road": ("a road", "roads")}, {"road": "roads"})
    assert count > 200


def test_change_levir(data_dir):
    files = sorted((data_dir / "change_levir" / "label").iterdir())
    masks = np.stack([(rasterio.open(file).read(1) > 0).astype(np.uint8) for file in files])
    words = {"building": ("a building", "buildings")}
    assert prove_masks(masks, ["no change", "building"], words, {"building": "buildings"}) > 30


def test_water(data_dir):
    files = sorted((data_dir / "water" / "labels").iterdir())
    masks = np.stack([(rasterio.open(file).read(1) > 0).astype(np.uint8) for file in files])
    words = {"water": ("an area of water", "areas of water", "mass")}
    assert prove_masks(masks, ["background", "water"], words, {"water": "water"}) > 300
