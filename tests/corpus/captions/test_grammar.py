"""English of class names as publishers write them."""

import pytest

from geomim.corpus.captions.grammar import counted, length, listed, noun, rounded, sentence, share, with_article


@pytest.mark.parametrize(
    ("name", "one", "many"),
    [
        ("storage-tank", "storage tank", "storage tanks"),
        ("StorageTank", "storage tank", "storage tanks"),
        ("storagetank", "storage tank", "storage tanks"),
        ("large_vehicle", "large vehicle", "large vehicles"),
        ("Expressway-Service-area", "expressway service area", "expressway service areas"),
        ("vehicles", "vehicle", "vehicles"),
        ("ferry", "ferry", "ferries"),
        ("airport", "airport", "airports"),
        ("church", "church", "churches"),
        ("bus", "bus", "buses"),
        ("warehouses", "warehouse", "warehouses"),
        ("greenhouse", "greenhouse", "greenhouses"),
        ("railway", "railway", "railways"),
        ("person", "person", "people"),
        ("aircraft", "aircraft", "aircraft"),
        ("bareland", "area of bare land", "areas of bare land"),
        ("Water", "area of water", "areas of water"),
        ("Snow and ice", "area of snow and ice", "areas of snow and ice"),
        ("AnnualCrop", "annual crop", "annual crops"),
        ("HerbaceousVegetation", "area of herbaceous vegetation", "areas of herbaceous vegetation"),
        ("dense_residential", "dense residential area", "dense residential areas"),
        ("herbaceous", "herbaceous area", "herbaceous areas"),
        ("parking", "parking lot", "parking lots"),
        ("tree/shrub", "tree or shrub", "trees or shrubs"),
        ("bridge over water", "bridge over water", "bridges over water"),
        ("Boeing747", "Boeing747", "Boeing747s"),
        ("dam|dams", "dam", "dams"),
        ("roads|", "road", "roads"),
        ("|", "object", "objects"),
        ("lens", "lens", "lenses"),
        ("Rathaus", "rathaus", "rathauses"),
        ("森林", "森林", "森林"),
        ("🌲", "🌲", "🌲"),
        ("17", "object", "objects"),
        ("", "object", "objects"),
    ],
)
def test_nouns(name, one, many):
    found = noun(name)
    assert (found.one, found.many) == (one, many)
    assert noun(many) == found or name in ("17", "", "|", "Boeing747", "dam|dams", "Rathaus") or found.mass


def test_articles():
    an = ("airport", "hour", "oil tank", "unmarked road", "8-lane road", "étang", "island")
    a = ("ship", "university", "utility pole", "European road", "one-way street", "house", "unit", "us base")
    assert [with_article(word) for word in an] == [f"an {word}" for word in an]
    assert [with_article(word) for word in a] == [f"a {word}" for word in a]
    assert with_article("other building") == "another building" and with_article("otherworld") == "an otherworld"


def test_numbers_and_lists():
    ship = noun("ship")
    assert [counted(ship, n) for n in (1, 2, 10, 11)] == ["a ship", "2 ships", "10 ships", "many ships"]
    assert counted(ship, 4, True) == "four ships" and counted(ship, 40, True, "lots of") == "lots of ships"
    assert [listed(["A", "B", "C"][:n]) for n in (0, 1, 2, 3)] == ["", "A", "A and B", "A, B and C"]
    assert listed(["A", "B"], True) == "both A and B" and listed(["A", "B", "C"], True) == "A, B and C"
    assert [share(part) for part in (0.05, 0.34, 0.52, 0.65, 0.94)] == [
        "a tenth", "a third", "half", "two thirds", "nine tenths"]  # fmt: skip
    assert [rounded(value) for value in (0.416, 1.0, 11.6, 1349)] == ["0.42", "1", "12", "1,300"]
    assert [length(value) for value in (44.6, 994, 996, 12_400)] == ["45 m", "990 m", "1 km", "12 km"]
    assert all(abs(float(rounded(n / 7).replace(",", "")) - n / 7) <= 0.05 * n / 7 for n in range(1, 20000))
    assert sentence("öl") == "Öl."
