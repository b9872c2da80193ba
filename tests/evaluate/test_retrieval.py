import math

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalMAP

from geomim.evaluate import retrieval
from geomim.evaluate.figures import CHANCE
from geomim.evaluate.retrieval import average_precision, mean_average_precision, recalls


def by_name(figures):
    return {one.metric: one for one in figures}


def test_recalls_of_three_images_by_hand():
    # similarities of the images (rows) with sentences a, b, b, c: image 0 owns a and b, image 1 owns b, image 2 owns c
    images = torch.eye(3)
    sentences = F.normalize(torch.tensor([[3.0, 2, 0], [1, 3, 0], [1, 3, 0], [0, 3, 2]]), dim=1)
    of, same = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    found = by_name(recalls("retrieval", images, sentences, of, same, ks=(1, 2)))
    assert found["i2t R@1"].value == 1.0  # every image's nearest sentence is one of its own, or equals it
    # a: image 0 first. b, twice: image 1 first, which owns it. c: image 1 first, 2 second
    assert found["t2i R@1"].value == 0.75 and found["t2i R@2"].value == 1.0
    own = by_name(recalls("official", images, sentences, of, ks=(1, 2)))
    # b of image 0 finds image 1, which owns an equal sentence, yet not that one
    assert own["t2i R@1"].value == 0.5 and own["t2i R@2"].value == 1.0
    expected = (1 + 1 + 0.75 + 1) / 4
    assert found["mean recall"].value == pytest.approx(expected)
    assert found["mean recall"].low <= expected <= found["mean recall"].high


def naive(images, sentences, of, texts, k, equal):
    """Recall as one would say it."""
    owned = [{texts[t] if equal else t for t in range(len(of)) if of[t] == i} for i in range(len(images))]
    name = (lambda t: texts[t]) if equal else (lambda t: t)
    both = images @ sentences.T
    forth = [any(name(t) in owned[i] for t in both[i].topk(min(k, len(of))).indices.tolist()) for i in range(len(both))]
    back = [
        any(name(t) in owned[i] for i in both[:, t].topk(min(k, len(images))).indices.tolist()) for t in range(len(of))
    ]
    return sum(forth) / len(forth), sum(back) / len(back)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("cells", [2**25, 7])
def test_recalls_are_those_of_a_plain_count_in_any_blocks(monkeypatch, equal, cells):
    monkeypatch.setattr(retrieval, "CELLS", cells)
    torch.manual_seed(0)
    images, kinds = F.normalize(torch.randn(14, 6), dim=1), F.normalize(torch.randn(9, 6), dim=1)
    of = torch.cat([torch.arange(14), torch.randint(0, 14, (20,))]).sort().values
    texts = torch.randint(0, 9, (34,))
    texts = torch.unique(texts, return_inverse=True)[1] if equal else torch.arange(34)
    sentences = kinds[texts] if equal else F.normalize(torch.randn(34, 6), dim=1)
    found = by_name(recalls("r", images, sentences, of, texts if equal else None))
    for k in (1, 5, 10):
        forth, back = naive(images, sentences, of.tolist(), texts.tolist(), k, equal)
        assert found[f"i2t R@{k}"].value == pytest.approx(forth)
        assert found[f"t2i R@{k}"].value == pytest.approx(back)


def test_chance_is_that_of_drawing_k_without_putting_back():
    images, sentences = F.normalize(torch.randn(20, 8), dim=1), F.normalize(torch.randn(60, 8), dim=1)
    found = by_name(recalls("r", images, sentences, torch.arange(60) // 3, ks=(1, 5)))
    assert found["t2i R@5"].beside[CHANCE] == pytest.approx(5 / 20)
    assert found["i2t R@5"].beside[CHANCE] == pytest.approx(1 - math.comb(57, 5) / math.comb(60, 5))


def test_a_model_that_says_the_same_of_everything_is_near_chance():
    images, sentences = torch.ones(40, 4) / 2, torch.ones(200, 4) / 2
    for one in recalls("r", images, sentences, torch.arange(200) // 5):
        assert one.value <= one.beside[CHANCE] + 1e-9


def test_more_nearest_than_there_are_is_all_of_them():
    found = by_name(recalls("r", torch.eye(2), torch.eye(2).flip(0), torch.arange(2)))
    assert found["i2t R@1"].value == 0 and found["i2t R@10"].value == 1


@pytest.mark.parametrize("top", [5, 100, None])
def test_average_precision_is_torchmetrics(top):
    torch.manual_seed(0)
    scores, relevant = torch.rand(40, 6), torch.rand(40, 6) < 0.3
    given = average_precision(scores, relevant, top)
    for kind in range(6):
        theirs = RetrievalMAP(top_k=top)(scores[:, kind], relevant[:, kind], torch.zeros(40, dtype=torch.long))
        assert float(given[kind]) == pytest.approx(float(theirs), abs=1e-6)
        if top is None:
            assert float(given[kind]) == pytest.approx(average_precision_score(relevant[:, kind], scores[:, kind]))


def test_map_leaves_out_classes_without_an_image_and_stands_beside_chance():
    images, classes = torch.eye(4), torch.eye(4)
    relevant = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]).bool()
    (figure,) = mean_average_precision(images, classes, relevant)
    assert figure.value == 1.0 and 0 < figure.beside[CHANCE] < 1
    both = relevant | torch.tensor([[0, 1, 0, 0]] + [[0] * 4] * 3).bool()
    assert [one.metric for one in mean_average_precision(images, classes, both)] == [
        "t2i mAP@100",
        "multi-label mAP",
    ]
