import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.evaluate.knn import knn
from geomim.evaluate.linear import LinearProbe, fit_linear
from geomim.evaluate.probes import (
    EfficientPooling,
    EfficientProbe,
    efficient_logits,
    fit_efficient,
    patch_logits,
    queries_for,
)


def reference_heads(reference_dir):
    """Every setting of the file: its values without prefix, and the head with its weights."""
    values = {
        key: torch.from_numpy(np.asarray(value))
        for key, value in np.load(reference_dir / "efficient_probing.npz").items()
    }
    for setting, (queries, narrower) in enumerate(
        zip(values["num_queries"].tolist(), values["d_out"].tolist(), strict=True)
    ):
        prefix = f"s{setting}_"
        given = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        state = {
            key.removeprefix("state_dict/"): value for key, value in given.items() if key.startswith("state_dict/")
        }
        probe = EfficientProbe(values["patch_tokens"].shape[-1], int(values["num_classes"]), queries, narrower)
        probe.load_state_dict(state)
        yield values, given, probe


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_reference_efficient_probe(reference_dir):
    settings = 0
    for values, given, probe in reference_heads(reference_dir):
        probe.eval()
        with torch.no_grad():
            close(probe[0].attention(values["patch_tokens"]), given["attention"])
            close(probe[0](values["patch_tokens"]), given["pooled"])
            close(probe[1](probe[0](values["patch_tokens"])), given["normed"])
            close(probe(values["patch_tokens"]), given["logits"])
            close(probe[0](values["tokens"]), given["pooled_with_cls"])
            close(probe(values["tokens"]), given["logits_with_cls"])
        settings += 1
    assert settings > 0


def test_reference_efficient_probe_training(reference_dir):
    for values, given, probe in reference_heads(reference_dir):
        close(probe.train()(values["patch_tokens"]).detach(), given["logits_training"])
        close(probe[1].running_mean, given["running_mean_after"])
        close(probe[1].running_var, given["running_var_after"])


def test_queries_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"48.*5 \* 1"):
        EfficientPooling(48, 5)
    assert [queries_for(width) for width in (768, 192, 48, 50, 7)] == [32, 32, 24, 25, 7]


def test_knn_is_the_brute_force_answer():
    torch.manual_seed(0)
    train, labels, test = torch.randn(60, 8), torch.randint(0, 4, (60,)), torch.randn(25, 8)
    expected = []
    for row in test:
        similarity = F.cosine_similarity(row[None], train)
        votes = [0.0] * 4
        for index in similarity.argsort(descending=True)[:20].tolist():
            votes[int(labels[index])] += float(np.exp(float(similarity[index]) / 0.07))
        expected.append(int(np.argmax(votes)))
    assert knn(train, labels, test, 4, batch=7).argmax(1).tolist() == expected
    assert knn(train, labels, train, 4, k=1).argmax(1).tolist() == labels.tolist()
    assert len(knn(train[:3], labels[:3], test, 4)) == 25  # fewer images than neighbours


def marked_patches(count=240, tokens=9, width=16, classes=3):
    """Which of the patches is marked is random; what it is marked with is the class: a mean hardly shows it."""
    torch.manual_seed(0)
    labels = torch.arange(count) % classes
    images = torch.randn(count, tokens, width)
    place = torch.randint(tokens, (count,))
    images[torch.arange(count), place] = 3 * torch.eye(classes, width)[labels]
    images[torch.arange(count), place, -1] = 8  # what attention can find it by
    return images.half(), labels


def test_efficient_probe_attends_to_the_patch_that_matters_and_repeats():
    images, labels = marked_patches()
    start = time.perf_counter()
    seen = []
    arguments = dict(seeds=(0, 1), epochs=20, batch=32, progress=seen.append)
    fits = fit_efficient(images[:180], labels[:180], 3, **arguments)
    assert time.perf_counter() - start < 30
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)
    right = [(efficient_logits(fit.probe, images[180:]).argmax(1) == labels[180:]).float().mean() for fit in fits]
    assert min(right) > 0.9
    linear = fit_linear(images[:180].float().mean(1), labels[:180], 3)
    assert (linear.probe(images[180:].float().mean(1)).argmax(1) == labels[180:]).float().mean() < min(right)
    again = fit_efficient(images[:180], labels[:180], 3, **arguments)
    for one, other in zip(fits, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.probe.parameters(), other.probe.parameters(), strict=True))
    assert not torch.equal(fits[0].probe[2].weight, fits[1].probe[2].weight)


def test_a_linear_probe_of_patches_averages_to_its_answer_for_the_image():
    probe, tokens = LinearProbe(6, 3), torch.randn(2, 5, 6)
    torch.testing.assert_close(patch_logits(probe, tokens).mean(1), probe(tokens.mean(1)))
    assert patch_logits(EfficientProbe(6, 3, 2).eval(), tokens).shape == (2, 5, 3)
