import pytest
import torch

from geomim.evaluate.classes import ClassScores, class_scores, confusion


def test_confusion_counts_what_is_taken_for_what():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]])
    counts = confusion(answers, labels, 4)
    assert counts.tolist() == [[1.5, 1.5, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert counts.diagonal().sum() / counts.sum() == (answers == labels).double().mean()


def test_classes_by_hand():
    """Of 95 and 5 with 90 and 1 right: precision 90/94 and 1/6, recall 90/95 and 1/5, F1 180/189 and 2/11."""
    sea, oil, none = class_scores(torch.tensor([[90.0, 5.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert (sea.precision, sea.recall, sea.f1) == pytest.approx((90 / 94, 90 / 95, 180 / 189))
    assert (oil.precision, oil.recall, oil.f1) == pytest.approx((1 / 6, 1 / 5, 2 / 11))
    assert (sea.support, oil.support) == (95, 5)
    assert none == ClassScores(None, None, None, 0)
    never = class_scores(torch.tensor([[95.0, 0.0], [5.0, 0.0]]))[1]
    assert never == ClassScores(None, 0.0, 0.0, 5)
