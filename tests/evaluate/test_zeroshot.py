import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from geomim.errors import InputError
from geomim.evaluate.figures import CHANCE
from geomim.evaluate.sentences import class_vectors, class_words, encode_sentences, read_prompts
from geomim.evaluate.zeroshot import NUMBERS, classification, count_pixels, counted, counting, segmentation


def values(figures):
    return {one.metric: one.value for one in figures}


def test_accuracy_and_that_of_classes_alike_are_torchmetrics():
    torch.manual_seed(0)
    images, classes = F.normalize(torch.randn(50, 6), dim=1), F.normalize(torch.randn(4, 6), dim=1)
    labels = torch.randint(0, 4, (50,))
    figures = classification(images, labels, classes)
    for one, average in zip(figures, ("micro", "macro"), strict=True):
        theirs = multiclass_accuracy((images @ classes.T).argmax(1), labels, 4, average=average)
        assert one.value == pytest.approx(float(theirs)) and one.beside[CHANCE] == 0.25


def test_a_class_is_the_mean_of_its_unit_vectors():
    known = {"a x": [2.0, 0], "b x": [0, 1], "a y": [0, 3], "b y": [0, 1]}
    asked = []

    def encode_text(sentences):
        asked.extend(sentences)
        return torch.tensor([known[sentence] for sentence in sentences])

    vectors = class_vectors(encode_text, ["x", "y"], ("a {class}", "b {class}"))
    assert torch.allclose(vectors, torch.tensor([[0.5**0.5, 0.5**0.5], [0, 1]]))
    encode_sentences(encode_text, ["a x", "b x", "a x"])
    assert asked[4:] == ["a x", "b x"]  # equal sentences once
    with pytest.raises(InputError, match="1 of 1 sentence vectors of the model are not finite"):
        encode_sentences(lambda sentences: torch.full((1, 2), torch.nan), ["a"])


def test_published_prompts():
    assert read_prompts("remoteclip") == ("a satellite photo of {class}.",)
    assert "a centered satellite photo of the {class}." in read_prompts("clip-eurosat")
    resisc = read_prompts("clip-resisc45")
    assert len(set(resisc)) == 18 and "aerial view of a {class}." in resisc


def test_prompts_of_a_file_and_those_that_are_none(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("seen from above: {class}\n{class}\n")
    assert read_prompts(str(file)) == ("seen from above: {class}", "{class}")
    for text, said in (("", "line 1 is ''"), ("{class}\n\n{class}", "line 2 is ''"), ("a city", "is 'a city'")):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_prompts(str(file))
    with pytest.raises(InputError, match="did you mean 'remoteclip'"):
        read_prompts("remote_clip")


def test_names_as_words():
    classes = ["DenseResidential", "sea_lake", "03-Storage Tank", "AnnualCrop", "HDHouse", "river"]
    words = ["dense residential", "sea lake", "storage tank", "annual crop", "hd house", "river"]
    assert class_words(classes, {}) == words
    assert class_words(["denseresidential", "b"], {"denseresidential": "dense homes"})[0] == "dense homes"
    with pytest.raises(InputError, match=r"'Sea_Lake' and 'SeaLake' are both 'sea lake'.*--names"):
        class_words(["Sea_Lake", "SeaLake"], {})
    with pytest.raises(InputError, match="two classes to tell apart; given sea"):
        class_words(["sea"], {})
    with pytest.raises(InputError, match="'see' that the data lack; did you mean 'sea'"):
        class_words(["sea", "b"], {"see": "sea"})
    with pytest.raises(InputError, match="class '12_' is '' in words"):
        class_words(["12_", "b"], {})


def test_the_only_number_of_a_sentence():
    said = {"three planes": 3, "Ten ships.": 10, "there are 4 cars": 4, "a someone": None, "two of 3": None}
    said |= {"12 cars": None, "0 cars": None, "no cars": None, "one": 1, "": None, "10 cars": 10, "2.5 ha": None}
    said |= {"twenty-one cars": None, "eleven cars": None, "a hundred and two": None, "a city of weights": None}
    assert {text: counted(text) for text in said} == said


def test_counting_finds_the_number_of_the_most_similar_caption():
    def encode_text(sentences):  # understands words, and takes every digit for a five
        place = [next((NUMBERS.index(w) for w in s.split() if w in NUMBERS), 4) for s in sentences]
        return F.one_hot(torch.tensor(place), 10).float()

    images, texts = torch.eye(10)[[2, 4, 8]], ["three ships", "two or 3", "five cars here", "8 planes", "no number"]
    figures = counting(images, texts, torch.tensor([0, 0, 1, 2, 2]), encode_text)
    # image 2 says nine where eight are told; of digits all say five, the image's own nearest or not
    assert values(figures)["top-1 (words)"] == pytest.approx(2 / 3) and figures[0].beside[CHANCE] == 0.1


def test_segmentation_is_torchmetrics_and_leaves_nodata_out():
    torch.manual_seed(0)
    patches, classes = F.normalize(torch.randn(3, 16, 5), dim=2), F.normalize(torch.randn(4, 5), dim=1)
    masks = torch.randint(0, 3, (3, 12, 12)).to(torch.uint8)
    masks[0, :4] = 255
    valid = torch.ones(3, 1, 24, 24, dtype=torch.bool)
    valid[1, :, 12:] = False
    pixels = count_pixels(patches, (4, 4), classes, masks, valid)
    assert int(pixels.sum()) == 3 * 144 - 48 - 72
    scores = (patches @ classes.T).transpose(1, 2).reshape(3, 4, 4, 4)
    answer = F.interpolate(scores, (12, 12), mode="bilinear").argmax(1)
    truth = masks.long()
    truth[1, 6:] = 255
    found = values(segmentation(pixels))
    theirs = multiclass_jaccard_index(answer, truth, 4, average="macro", ignore_index=255)
    assert found["mean IoU"] == pytest.approx(float(theirs))
    assert found["pixel accuracy"] == pytest.approx(float((answer == truth)[truth < 255].double().mean()))
    with pytest.raises(InputError, match="no valid pixel of any mask has a class"):
        segmentation(count_pixels(patches, (4, 4), classes, torch.full_like(masks, 255), valid))
    chance = {one.metric: one.beside[CHANCE] for one in segmentation(pixels)}
    assert chance["pixel accuracy"] == pytest.approx(0.25)


def test_patches_that_say_the_mask_give_it_back():
    masks = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]], dtype=torch.uint8)
    patches, classes = torch.eye(2)[None], torch.eye(2)
    valid = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    assert values(segmentation(count_pixels(patches, (1, 2), classes, masks, valid))) == {
        "mean IoU": 1.0,
        "pixel accuracy": 1.0,
    }
