"""Lovász-softmax against the Lovász extension written from its definition."""

import itertools

import pytest
import torch

from fortifai_ray.losses import LovaszSoftmax


def jaccard_loss(wrong: set[int], foreground: set[int]) -> float:
    """1 − |truth ∩ prediction| / |truth ∪ prediction| where ``wrong`` are the mispredicted targets."""
    return len(wrong) / len(foreground | wrong) if foreground | wrong else 0.0


def lovasz_extension(errors: list[float], foreground: set[int]) -> float:
    """∫₀¹ Jaccard loss of {i: error_i ≥ θ} dθ, the definition, summed over the steps between the sorted errors."""
    levels = sorted({0.0, 1.0, *errors})
    return sum(
        (high - low) * jaccard_loss({i for i, error in enumerate(errors) if error >= high}, foreground)
        for low, high in itertools.pairwise(levels)
    )


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_extension_over_the_classes_present(seed: int) -> None:
    """Padding left out; classes that no target has do not count."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, 6, dtype=torch.float64, generator=random)
    targets = torch.randint(0, 4, (9,), generator=random)
    targets[2] = -100
    kept = [i for i in range(9) if i != 2]
    p = logits.softmax(-1)
    losses = []
    for c in sorted({int(targets[i]) for i in kept}):
        foreground = {n for n, i in enumerate(kept) if targets[i] == c}
        errors = [float(1 - p[i, c] if targets[i] == c else p[i, c]) for i in kept]
        losses.append(lovasz_extension(errors, foreground))
    assert LovaszSoftmax()(logits, targets).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_its_gradient() -> None:
    """Against finite differences (it is piecewise linear in p, and no two errors are equal here)."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64, generator=random, requires_grad=True)
    targets = torch.randint(0, 5, (7,), generator=random)
    assert torch.autograd.gradcheck(lambda z: LovaszSoftmax()(z, targets), logits)


def test_nothing_but_padding() -> None:
    """Loss 0 and a gradient of exactly 0, not a mean of nothing."""
    logits = torch.randn(3, 5, requires_grad=True)
    loss = LovaszSoftmax()(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
