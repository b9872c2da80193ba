import numpy as np
import pytest
import torch

from geomim.errors import InputError
from geomim.evaluate.fewshot import VALIDATION, draw, few_shot, possible
from geomim.evaluate.linear import fit_linear


def test_only_what_every_class_has_images_for():
    labels = np.array([0] * 40 + [1] * 12)
    able, notes = possible(labels, ["sea", "city"], [1, 4, 8, 16])
    assert able == [1, 4, 8] and "few-shot with 16 images a class is left out: 'city' has 12 training" in notes[0]
    with pytest.raises(InputError, match=r"none of 16, 32 .*'city' has 12"):
        possible(labels, ["sea", "city"], [16, 32])
    with pytest.raises(InputError, match="'river' has 0"):
        possible(labels, ["sea", "city", "river"], [1])


def test_draws_are_of_their_class_apart_and_nested():
    labels = torch.arange(120) % 3
    drawn = draw(labels, 3, 8, seed=1)
    assert drawn.shape == (3, VALIDATION + 8) and (labels[drawn] == torch.arange(3)[:, None]).all()
    assert len(drawn.unique()) == drawn.numel()
    assert torch.equal(drawn, draw(labels, 3, 8, seed=1)) and not torch.equal(drawn, draw(labels, 3, 8, seed=2))
    assert torch.equal(drawn[:, : VALIDATION + 4], draw(labels, 3, 4, seed=1))


def test_more_images_help_and_the_test_split_chooses_nothing():
    torch.manual_seed(0)
    centres = 1.2 * torch.randn(5, 16)
    labels = torch.arange(250) % 5
    features = centres[labels] + torch.randn(250, 16)
    train, test = features[:200], features[200:]
    draws = torch.stack([draw(labels[:200], 5, 16, seed) for seed in range(3)])
    one, most = few_shot(train, test, draws, labels[200:], [1, 16], {"majority class": 0.25})
    assert (one.metric, most.metric) == ("1-shot", "16-shot") and most.value > one.value > 0.3
    assert most.beside == {"chance": 0.2, "majority class": 0.25}
    assert most.balanced == pytest.approx(most.value)  # as many test images of each class
    assert most.low < most.value < most.high
    right = [(fit_rows(train, drawn, 16, test) == labels[200:]).double().mean() for drawn in draws]
    assert most.value == pytest.approx(float(torch.stack(right).mean()))


def fit_rows(train, drawn, number, test):
    held, fit = drawn[:, :VALIDATION], drawn[:, VALIDATION : VALIDATION + number]
    kinds = torch.arange(5)
    probe = fit_linear(
        train[fit.flatten()],
        kinds.repeat_interleave(number),
        5,
        held_out=(train[held.flatten()], kinds.repeat_interleave(VALIDATION)),
    ).probe
    return probe(test).argmax(1)


def test_a_strength_is_chosen_on_what_is_held_out():
    torch.manual_seed(0)
    features, labels = torch.randn(20, 30), torch.arange(20) % 2
    right = fit_linear(features, labels, 2, held_out=(features, labels))
    wrong = fit_linear(features, labels, 2, held_out=(features, 1 - labels))
    assert right.held_out == 1.0 and wrong.held_out < 0.5
