"""Half precision where the hardware has it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.pretrain import half
from geomim.pretrain.half import HalfOnCpu, OnePrecision, arithmetic, computing

PLACES = [("auto", True, "cuda"), ("gpu", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("accelerator", "gpu", "asked"), PLACES)
def test_half_precision_is_for_what_multiplies_it_in_hardware(accelerator, gpu, asked, fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(half, "fast_half", lambda device: fast and device == asked)
    monkeypatch.setattr(half, "_has_avx512_bf16", lambda: False)
    assert arithmetic("auto", accelerator) == ("bf16-mixed" if fast else "32-true")
    assert arithmetic("auto", "mps") == "32-true"
    assert [arithmetic(word, accelerator) for word in ("bf16-mixed", "32-true")] == ["bf16-mixed", "32-true"]


def test_a_cpu_with_avx512_bf16_and_no_amx_has_attention_of_its_own(monkeypatch):
    monkeypatch.setattr(half, "fast_half", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for has, said in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(half, "_has_avx512_bf16", lambda has=has: has)
        assert arithmetic("auto", "auto") == said
    assert isinstance(computing("bf16-mixed", "auto")["plugins"][0], HalfOnCpu)
    assert computing("32-true", "auto") == {"precision": "32-true", "plugins": []}
    monkeypatch.setattr(half, "fast_half", lambda device: True)
    assert computing("bf16-mixed", "cpu") == {"precision": "bf16-mixed", "plugins": []}


def test_attention_of_its_own_is_attention_in_half_precision_and_leaves_no_switch_behind():
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 17, 8).requires_grad_() for _ in range(3)]
    seen = torch.rand(2, 1, 1, 17) > 0.3
    expected = F.scaled_dot_product_attention(*parts, attn_mask=seen)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with HalfOnCpu().forward_context():
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        found = F.scaled_dot_product_attention(*(part.bfloat16() for part in parts), attn_mask=seen)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    gradients = [torch.autograd.grad(out.square().sum(), parts) for out in (found.float(), expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before


@pytest.mark.parametrize(
    ("first", "own", "others", "fits"), [(32, 32, 32, True), (32, 16, 32, False), (32, 32, 16, False)]
)
def test_ranks_that_would_compute_in_different_precisions_are_refused(first, own, others, fits):
    strategy = SimpleNamespace(
        broadcast=lambda _: str(first), reduce_boolean_decision=lambda same: same and first == others
    )
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"--training\.precision 32-true or bf16-mixed"):
        OnePrecision(str(own)).on_fit_start(SimpleNamespace(strategy=strategy), None)
