import pytest
import torch

from geomim.evaluate.classes import class_scores, confusion


def test_confusion_counts_what_is_taken_for_what():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]])
    counts = confusion(answers, labels, 4)
    assert counts.tolist() == [[1.5, 1.5, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert counts.diagonal().sum() / counts.sum() == (answers == labels).double().mean()


def test_classes_by_hand():
    """Of 95 and 5 with 90 and 1 right: precision 90/94 and 1/6, recall 90/95 and 1/5, F1 180/189 and 2/11."""
    found = class_scores(torch.tensor([[90.0, 5.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found["precision"] == [pytest.approx(90 / 94), pytest.approx(1 / 6), None]
    assert found["recall"] == [pytest.approx(90 / 95), pytest.approx(1 / 5), None]
    assert found["f1"] == [pytest.approx(180 / 189), pytest.approx(2 / 11), None]
    assert found["support"] == [95, 5, 0]
    never = class_scores(torch.tensor([[95.0, 0.0], [5.0, 0.0]]))
    assert [never[name][1] for name in ("precision", "recall", "f1", "support")] == [None, 0, 0, 5]
