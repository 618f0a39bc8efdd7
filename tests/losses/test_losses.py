"""Losses against float64 references written plainly, and their gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fortifai_ray.losses import CrossEntropy, TruncatedCrossEntropy

log_probabilities = st.lists(st.floats(-30.0, 0.0), min_size=1, max_size=20)


@given(log_probabilities, st.floats(0.01, 1.0))
def test_tce_is_cross_entropy_where_p_is_at_most_gamma_and_zero_elsewhere(values: list[float], gamma: float) -> None:
    """ForTIFAI's definition, target by target: ℓ = −log p · 1[p ≤ γ]."""
    log_p = torch.tensor(values, dtype=torch.float64)
    expected = [0.0 if value > math.log(gamma) else -value for value in values]
    assert TruncatedCrossEntropy(gamma=gamma)(log_p).tolist() == expected
    kept = TruncatedCrossEntropy(gamma=gamma).kept(log_p).tolist()
    assert kept == [value <= math.log(gamma) for value in values]


@given(log_probabilities)
def test_gamma_one_is_cross_entropy_to_the_bit(values: list[float]) -> None:
    """No target has p > 1."""
    log_p = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(TruncatedCrossEntropy(gamma=1.0)(log_p), CrossEntropy()(log_p))
    assert bool(TruncatedCrossEntropy(gamma=1.0).kept(log_p).all())


def test_truncated_targets_have_exactly_no_gradient() -> None:
    """A truncated target moves nothing: gradients are 0 and not merely small, also for a batch of nothing else."""
    log_p = torch.log(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).requires_grad_()
    TruncatedCrossEntropy(gamma=0.5)(log_p).sum().backward()
    assert log_p.grad is not None
    assert log_p.grad.tolist() == [-1.0, -1.0, 0.0]
    sure = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = TruncatedCrossEntropy(gamma=0.5)(sure).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert sure.grad is not None
    assert sure.grad.tolist() == [0.0] * 4


def test_a_nan_is_seen() -> None:
    """A model that broke gives a NaN loss, which training reports; it is not truncated away."""
    assert np.isnan(TruncatedCrossEntropy(gamma=0.5)(torch.tensor([float("nan")])).item())


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.7, float("nan"), float("inf")])
def test_gamma_is_a_probability(gamma: float) -> None:
    """γ outside (0, 1] is refused with what would be right."""
    with pytest.raises(ValidationError, match=r"\(0, 1\]"):
        TruncatedCrossEntropy(gamma=gamma)
