import math
import random
import sys

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalMAP

from geomim.evaluate.figures import CHANCE
from geomim.evaluate.retrieval import average_precision, mean_average_precision, retrieval

room = sys.modules["geomim.evaluate.retrieval"]


def by_name(figures):
    return {one.metric: one for one in figures}


def knows(vectors):
    """A text tower that has a vector for each sentence, whatever its capitals."""
    return lambda sentences: torch.stack([vectors[sentence.lower()] for sentence in sentences])


def test_recalls_of_three_images_by_hand():
    # similarities of the images (rows) with sentences a, b, b, c: image 0 owns a and b, image 1 owns b, image 2 owns c
    tower = knows({"a": torch.tensor([3.0, 2, 0]), "b": torch.tensor([1.0, 3, 0]), "c": torch.tensor([0.0, 3, 2])})
    given = torch.eye(3), ["a", "b", "b", "c"], torch.tensor([0, 0, 1, 2]), tower
    found = by_name(retrieval(*given, ks=(1, 2)))
    assert found["i2t R@1"].value == 1.0  # every image's nearest sentence is one of its own, or equals it
    # a: image 0 first. b, twice: image 1 first, which owns it. c: image 1 first, 2 second
    assert found["t2i R@1"].value == 0.75 and found["t2i R@2"].value == 1.0
    own = by_name(retrieval(*given, official=True, ks=(1, 2)))
    # b of image 0 finds image 1, which owns an equal sentence, yet not that one
    assert own["t2i R@1"].value == 0.5 and own["t2i R@2"].value == 1.0
    expected = (1 + 1 + 0.75 + 1) / 4
    assert found["mean recall"].value == pytest.approx(expected)
    assert found["mean recall"].low <= expected <= found["mean recall"].high
    assert {one.task for one in found.values()} == {"retrieval"} and own["t2i R@1"].task == "retrieval-official"


def together(count, of, texts, k):
    """Share of images that find a sentence of their own among the first k, over orders of the different sentences."""
    draw, hits = random.Random(1), 0
    for _ in range(3000):
        order = draw.sample(sorted(set(texts)), len(set(texts)))
        first = sorted(texts, key=order.index)[:k]
        hits += len({owner for owner, text in zip(of, texts, strict=True) if text in first})
    return hits / 3000 / count


def slow(images, sentences, of, texts, k, equal):
    """Recall and its chance as one would say it, one query after the other."""
    owner = lambda i, t: of[t] == i or (equal and any(of[o] == i and texts[o] == texts[t] for o in range(len(of))))  # noqa: E731

    def share(queries, gallery, similar, good):
        right, luck = 0, 0.0
        for q in range(queries):
            order = sorted(range(gallery), key=lambda g: -similar(q, g))
            right += any(good(q, g) for g in order[:k])
            bad = sum(not good(q, g) for g in range(gallery))
            luck += 1 - math.comb(bad, min(k, gallery)) / math.comb(gallery, min(k, gallery))
        return right / queries, luck / queries

    both = (images @ sentences.T).tolist()
    forth = share(len(images), len(of), lambda i, t: both[i][t], owner)
    if equal:  # equal sentences stand together
        forth = forth[0], together(len(images), of, texts, k)
    back = share(len(of), len(images), lambda t, i: both[i][t], lambda t, i: owner(i, t))
    return *forth, *back


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("cells", [2**25, 7])
def test_recalls_and_chance_are_those_of_a_slow_count_in_any_blocks(monkeypatch, equal, cells):
    monkeypatch.setattr(room, "CELLS", cells)
    torch.manual_seed(0)
    images = F.normalize(torch.randn(14, 6), dim=1)
    of = torch.cat([torch.arange(14), torch.randint(0, 14, (20,))]).sort().values
    texts = [f"says {int(kind)}" for kind in (torch.randint(0, 9, (34,)) if equal else torch.arange(34))]
    vectors = {text: F.normalize(torch.randn(6), dim=0) for text in sorted(set(texts))}
    sentences = torch.stack([vectors[text] for text in texts])
    found = by_name(retrieval(images, texts, of, knows(vectors), official=not equal))
    values = []
    for k in (1, 5, 10):
        forth, forth_chance, back, back_chance = slow(images, sentences, of.tolist(), texts, k, equal)
        values += [forth, back]
        assert found[f"i2t R@{k}"].value == pytest.approx(forth)
        assert found[f"t2i R@{k}"].value == pytest.approx(back)
        assert found[f"i2t R@{k}"].beside[CHANCE] == pytest.approx(forth_chance, abs=0.02 if equal else 1e-9)
        assert found[f"t2i R@{k}"].beside[CHANCE] == pytest.approx(back_chance)
    assert found["mean recall"].value == pytest.approx(sum(values) / 6)


def test_vectors_at_random_are_at_chance_where_sentences_repeat(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    kinds = (torch.rand(240, generator=draw) * 3).exp().long()
    texts, of, found = [f"says {kind}" for kind in kinds.tolist()], torch.arange(240) // 2, []
    for _ in range(40):
        images = F.normalize(torch.randn(120, 32, generator=draw), dim=1)
        tower = knows({text: F.normalize(torch.randn(32, generator=draw), dim=0) for text in sorted(set(texts))})
        found.append(by_name(retrieval(images, texts, of, tower)))
        luck = [found[0][f"i2t R@{k}"].beside[CHANCE] for k in (1, 5, 10)]  # which no vector has a part in
        monkeypatch.setattr(room, "_chance_together", lambda *_, luck=luck: luck)
    for k in (1, 5, 10):
        mean = sum(one[f"i2t R@{k}"].value for one in found) / len(found)
        assert mean == pytest.approx(found[0][f"i2t R@{k}"].beside[CHANCE], abs=0.03)


def test_images_without_a_sentence_are_no_candidates():
    tower = knows({"a": torch.tensor([1.0, 0.1]), "b": torch.tensor([0.1, 1.0])})
    images, of = torch.eye(2)[[0, 0, 1]], torch.tensor([1, 2])  # image 0 looks as 1 does, and has no sentence
    found = by_name(retrieval(images, ["a", "b"], of, tower, ks=(1,)))
    assert found["t2i R@1"].value == 1.0 and found["t2i R@1"].beside[CHANCE] == 0.5


def test_the_official_form_capitalises_as_the_script_does():
    asked = []

    def tower(sentences):
        asked.extend(sentences)
        return torch.ones(len(sentences), 2)

    retrieval(torch.eye(2), ["a Big lake .", "TWO ships"], torch.arange(2), tower, official=True)
    assert asked == ["A big lake .", "Two ships"]


def test_a_model_that_says_the_same_of_everything_is_near_chance():
    texts = [f"t{number}" for number in range(200)]
    same = retrieval(torch.ones(40, 4) / 2, texts, torch.arange(200) // 5, lambda some: torch.ones(len(some), 4))
    for one in same:
        assert one.value <= one.beside[CHANCE] + 1e-9


def test_more_nearest_than_there_are_is_all_of_them():
    tower = knows({"a": torch.tensor([0.0, 1]), "b": torch.tensor([1.0, 0])})
    found = by_name(retrieval(torch.eye(2), ["a", "b"], torch.arange(2), tower))
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
