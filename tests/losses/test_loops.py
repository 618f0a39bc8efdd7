"""Losses as modules of other people's loops: the numbers of torch's own loss where they should be, and of the head."""

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fortifai_ray.errors import UserError
from fortifai_ray.losses import (
    ClippedFocal,
    CrossEntropy,
    DynamicTruncatedCrossEntropy,
    Entropy,
    Focal,
    LovaszSoftmax,
    TruncatedCrossEntropy,
    UserLoss,
)
from tests.losses.heads import gradients, make_head, plain

POINTWISE: list[Any] = [
    CrossEntropy(),
    TruncatedCrossEntropy(gamma=0.4),
    TruncatedCrossEntropy(gamma=0.4, normaliser="kept"),
    Focal(gamma=2.0),
    Entropy(gamma=2.0),
    ClippedFocal(variant="intended"),
    UserLoss(kind="tests.losses.test_loops:squared"),
]


def squared(log_p: torch.Tensor) -> torch.Tensor:
    return log_p**2


@pytest.mark.parametrize("loss", POINTWISE, ids=str)
def test_both_calls_give_the_losses_of_this_packages_training(loss: Any) -> None:
    """From logits and from hidden states and weight, with padding, bias and cap; sum and mean."""
    head = make_head(24, 6, 20, torch.float64, bias=True)
    head.targets[::5] = -100
    sums = plain(head, loss, 30.0)
    logits = 30.0 * torch.tanh(F.linear(head.hidden, head.weight, head.bias) / 30.0)
    for module, expected in (
        (loss.as_module(), sums.mean(loss.normaliser)),
        (loss.as_module(reduction="sum"), sums.total),
    ):
        assert isinstance(module, torch.nn.Module)
        assert module(logits.view(4, 6, 20), head.targets.view(4, 6)).item() == pytest.approx(
            expected.item(), rel=1e-12
        )
        fused = module(head.hidden, head.weight, head.targets, bias=head.bias, softcap=30.0)
        assert fused.item() == pytest.approx(expected.item(), rel=1e-12)
        again = pickle.loads(pickle.dumps(module))
        assert again(logits, head.targets) == module(logits, head.targets)
    assert not list(loss.as_module().parameters())
    got = torch.autograd.grad(fused, head[:3])  # type: ignore[arg-type]
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(got, gradients(sums, head), strict=True))


def test_cross_entropy_is_torchs() -> None:
    """To the bit of float32: value and reduction."""
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1] = -100
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert CrossEntropy().as_module()(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert CrossEntropy().as_module()(logits, torch.full_like(labels, -100)) == 0.0


def test_trainers_callable_shifts_and_divides() -> None:
    """The label after a position is its target; the sum is divided by what the trainer counted, an int or a tensor."""
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    loss = CrossEntropy().for_trainer()
    for outputs in ({"loss": None, "logits": logits}, (logits, None)):
        for items in (16, torch.tensor(16)):
            assert loss(outputs, labels, num_items_in_batch=items).item() == pytest.approx(total.item() / 16, rel=1e-6)
        assert pickle.loads(pickle.dumps(loss))(outputs, labels).item() == pytest.approx(total.item() / 8, rel=1e-6)
    assert loss({"logits": logits}, torch.full_like(labels, -100), num_items_in_batch=0) == 0.0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_numbers(dtype: torch.dtype) -> None:
    """As data sets and tokenizers give them; torch's own loss takes one type alone."""
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 1, 2])
    module, head = CrossEntropy().as_module(), torch.randn(5, 5)
    assert module(logits, labels.to(dtype)).item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert module(logits, head, labels.to(dtype)) == module(logits, head, labels)


def test_lovasz_by_rows() -> None:
    """Each row's own loss, weighted by its targets; a batch of one row may be given flat."""
    loss = LovaszSoftmax()
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, 2:] = -100
    expected = (2 * loss(logits[0], labels[0]) + 5 * loss(logits[1], labels[1])) / 7
    assert loss.as_module()(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.as_module()(logits[1], labels[1]).item() == pytest.approx(loss(logits[1], labels[1]).item(), rel=1e-6)


WRONG: dict[str, tuple[Any, str]] = {
    "γ is set by the loop": (lambda: DynamicTruncatedCrossEntropy(variant="intended").for_trainer(), r"\.at\(gamma\)"),
    "the same as a module": (lambda: DynamicTruncatedCrossEntropy(variant="fortifai").as_module(), r"\.at\(gamma\)"),
    "reduction": (lambda: CrossEntropy().as_module("none"), "'none' is not one of mean, sum"),
    "no labels": (lambda: CrossEntropy().for_trainer()((torch.zeros(1, 2, 3),), None), "labels: none"),
    "labels of another length": (
        lambda: CrossEntropy().for_trainer()((torch.zeros(1, 2, 3),), torch.zeros(1, 3, dtype=torch.long)),
        r"labels: shape \(1, 3\)",
    ),
    "no logits": (lambda: CrossEntropy().for_trainer()({"logits": None}, torch.zeros(1, 2).long()), "no logits"),
    "labels that are no numbers of classes": (
        lambda: CrossEntropy().as_module()(torch.zeros(4, 3), torch.zeros(4)),
        "whole numbers are needed, not float32",
    ),
    "padding of another kind": (
        lambda: CrossEntropy().for_trainer()((torch.zeros(1, 2, 3),), torch.tensor([[1, -1]])),
        r"labels: -1 is no class, 0 to 2, nor -100",
    ),
    "a larger vocabulary": (
        lambda: CrossEntropy().as_module()(torch.zeros(4, 3), torch.zeros(5, 3), torch.full((4,), 5)),
        r"labels: 5 is no class, 0 to 4",
    ),
    "shapes": (lambda: CrossEntropy().as_module()(torch.zeros(4, 3), torch.zeros(3)), "expected logits"),
    "shapes of a head": (
        lambda: CrossEntropy().as_module()(torch.zeros(4, 3), torch.zeros(5, 2), torch.zeros(4).long()),
        "shapes do not fit",
    ),
    "a bias without a weight": (
        lambda: CrossEntropy().as_module()(torch.zeros(4, 3), torch.zeros(4).long(), bias=torch.zeros(3)),
        "expected logits",
    ),
    "whole logits": (
        lambda: LovaszSoftmax().as_module()(torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4).long()),
        "needs whole logits",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_in_one_line(name: str) -> None:
    """What is wrong, and what would be right."""
    call, message = WRONG[name]
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
