import pytest
import torch
from torch.nn import functional as F

from geomim.errors import InputError
from geomim.evaluate.linear import fit_linear, hold_out


def test_hold_out_takes_a_share_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    fit, held = hold_out(labels, 0.2, seed=3)
    assert labels[held].bincount(minlength=3).tolist() == [10, 2, 0]
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(61))
    assert not torch.equal(held, hold_out(labels, 0.2, seed=4)[1])
    with pytest.raises(InputError, match="two training images"):
        hold_out(torch.arange(5), 0.2, 0)


def blobs(count=300, width=12, classes=4, noise=1.0):
    torch.manual_seed(0)
    labels = torch.arange(count) % classes
    scale = 10.0 ** torch.linspace(-3, 3, width)  # features of very different size
    return (4 * torch.eye(classes, width)[labels] + noise * torch.randn(count, width)) * scale + scale, labels


def test_linear_probe_separates_what_is_separable():
    vectors, labels = blobs()
    fit = fit_linear(vectors, labels, 4)
    assert fit.held_out > 0.9
    assert (fit.probe(vectors).argmax(1) == labels).float().mean() > 0.95


def test_linear_probe_is_the_optimum_it_claims_to_be():
    """The gradient of penalised logistic regression vanishes at the folded weights."""
    vectors, labels = blobs(noise=3.0)
    vectors = vectors / vectors.std(0) + 30 * torch.randn(len(vectors), 1)  # almost everything is one common factor
    strength = 1e-3
    fit = fit_linear(vectors, labels, 4, strengths=(strength,))
    standard = (vectors - vectors.mean(0)) / vectors.std(0, unbiased=False)
    weight = (fit.probe.weight * vectors.std(0, unbiased=False)).detach().requires_grad_()
    bias = (fit.probe.bias + fit.probe.weight @ vectors.mean(0)).detach().requires_grad_()
    (F.cross_entropy(F.linear(standard, weight, bias), labels) + strength / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 2e-3 and bias.grad.abs().max() < 2e-3


def test_linear_probe_ignores_constant_features():
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (80,))
    vectors = torch.cat([torch.randn(80, 60), torch.full((80, 3), 7.0)], 1)
    vectors[:, 0] += 1.5 * labels
    fit = fit_linear(vectors, labels, 2)
    assert torch.isfinite(fit.probe.weight).all()
    assert (fit.probe.weight[:, -3:] == 0).all()
