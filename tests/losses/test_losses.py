"""Each loss against a float64 reference written plainly, its gradient against the formula and finite differences."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.losses import (
    ClippedFocal,
    CrossEntropy,
    DynamicTruncatedCrossEntropy,
    Entropy,
    Focal,
    Loss,
    PointwiseLoss,
    TruncatedCrossEntropy,
    value_and_derivative,
)
from fortifai_ray.losses.base import KINDS

log_probabilities = st.lists(st.floats(-30.0, -1e-9), min_size=1, max_size=20)

# Each loss with (value, derivative with respect to log p), by the formula of the paper or the published code.
REFERENCES: list[tuple[PointwiseLoss, Callable[[float], float], Callable[[float], float]]] = [
    (CrossEntropy(), lambda p: -math.log(p), lambda p: -1.0),
    (
        TruncatedCrossEntropy(gamma=0.3),
        lambda p: 0.0 if p > 0.3 else -math.log(p),
        lambda p: 0.0 if p > 0.3 else -1.0,
    ),
    (
        Focal(gamma=2.0, alpha=0.25),
        lambda p: -0.25 * (1 - p) ** 2 * math.log(p),
        lambda p: -0.25 * (1 - p) ** 2 + 0.25 * 2 * p * (1 - p) * math.log(p),
    ),
    (
        Focal(gamma=0.5),
        lambda p: -math.sqrt(1 - p) * math.log(p),
        lambda p: -math.sqrt(1 - p) + 0.5 * p / math.sqrt(1 - p) * math.log(p),
    ),
    (Focal(gamma=2.0, detach=True), lambda p: -((1 - p) ** 2) * math.log(p), lambda p: -((1 - p) ** 2)),
    (Entropy(gamma=2.0, alpha=0.5), lambda p: -0.5 * (1 - 2 * p) * math.log(p), lambda p: -0.5 * (1 - 2 * p)),
    (
        ClippedFocal(variant="fortifai", gamma=2.0, alpha=0.5),
        lambda p: 0.0 if (1 - p) ** 2 > 0.99 else -0.5 * math.log(p),
        lambda p: 0.0 if (1 - p) ** 2 > 0.99 else -0.5,
    ),
    (
        ClippedFocal(variant="intended", gamma=2.0, alpha=0.5),
        lambda p: 0.0 if (1 - p) ** 2 < 0.01 else -0.5 * (1 - p) ** 2 * math.log(p),
        lambda p: 0.0 if (1 - p) ** 2 < 0.01 else -0.5 * (1 - p) ** 2,
    ),
]
IDS = [repr(loss) for loss, *_ in REFERENCES]


@pytest.mark.parametrize(("loss", "value", "derivative"), REFERENCES, ids=IDS)
@given(values=log_probabilities)
def test_formula(
    loss: PointwiseLoss, value: Callable[[float], float], derivative: Callable[[float], float], values: list[float]
) -> None:
    """Value and derivative of each target on its own, from p near 1e-13 to p near 1."""
    log_p = torch.tensor(values, dtype=torch.float64)
    got, slope = value_and_derivative(loss, log_p)
    # The references take 1 − p of a rounded p: an absolute error of one part in 2**53 of 1, against 1 − p of 1e-9 at
    # least, so of relative size 1e-7 at worst, and of what is itself no larger than (1 − p)**0.5 times log p.
    assert got.tolist() == pytest.approx([value(math.exp(x)) for x in values], rel=1e-6, abs=1e-14)
    assert slope.tolist() == pytest.approx([derivative(math.exp(x)) for x in values], rel=1e-6, abs=1e-14)
    assert loss.kept(log_p).tolist() == [x != 0.0 for x in slope.tolist()]


@pytest.mark.parametrize("loss", [loss for loss, *_ in REFERENCES if "detach=True" not in repr(loss)], ids=repr)
def test_gradcheck(loss: PointwiseLoss) -> None:
    """Autograd against finite differences, away from thresholds; a detached weight is a constant there too."""
    point = torch.tensor([-8.0, -3.0, -1.5, -0.4, -0.2], dtype=torch.float64, requires_grad=True)
    if not isinstance(loss, Entropy | ClippedFocal):
        assert torch.autograd.gradcheck(loss, point)
        return
    weight = -loss(point).detach() / point.detach()
    assert torch.autograd.gradcheck(lambda log_p: -weight * log_p, point)
    assert torch.allclose(value_and_derivative(loss, point)[1], -weight, rtol=1e-12)


@given(st.lists(st.floats(-30.0, 0.0), min_size=1, max_size=20))
def test_gamma_one_is_cross_entropy_to_the_bit(values: list[float]) -> None:
    """No target has p > 1, and a factor to the power of 0 is 1: at their ends TCE and focal are cross entropy."""
    log_p = torch.tensor(values, dtype=torch.float64)
    for loss in (TruncatedCrossEntropy(gamma=1.0), Focal(gamma=0.0)):
        assert torch.equal(loss(log_p), CrossEntropy()(log_p))
        assert bool(loss.kept(log_p).all())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_target_has_a_finite_slope(gamma: float, dtype: torch.dtype) -> None:
    """At p = 1 the focal factor's own slope is infinite for γ < 1, and 0·∞ would be NaN."""
    log_p = torch.tensor([0.0, -1e-30, -1e-7], dtype=dtype)
    value, slope = value_and_derivative(Focal(gamma=gamma), log_p)
    assert bool(value.isfinite().all())
    assert bool(slope.isfinite().all())


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


@pytest.mark.parametrize("loss", [loss for loss, *_ in REFERENCES], ids=repr)
def test_a_nan_is_seen(loss: PointwiseLoss) -> None:
    """A model that broke gives a NaN loss, which training reports; it is neither truncated nor clamped away."""
    nan = torch.tensor([float("nan")])
    value, slope = value_and_derivative(loss, nan)
    assert np.isnan(value.item()) or np.isnan(slope.item())
    assert loss.kept(nan).all()


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.7, float("nan"), float("inf")])
def test_gamma_is_a_probability(gamma: float) -> None:
    """γ outside (0, 1] is refused with what would be right."""
    with pytest.raises(UserError, match=r"\(0, 1\]|finite number"):
        TruncatedCrossEntropy(gamma=gamma)


@given(st.lists(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), min_size=1, max_size=6), st.floats(0.0, 3.0))
def test_dynamic_threshold(batches: list[list[float]], alpha: float) -> None:
    """ForTIFAI's γ is of batch means, the intended one of the probabilities themselves; neither passes 1."""
    tensors = [torch.tensor(batch, dtype=torch.float64) for batch in batches]
    means, whole = [float(np.mean(batch)) for batch in batches], [p for batch in batches for p in batch]
    for variant, values in (("fortifai", means), ("intended", whole)):
        loss = DynamicTruncatedCrossEntropy(variant=variant, alpha=alpha)
        expected = min(1.0, np.mean(values) + alpha * np.std(values))
        assert loss.threshold(tensors) == pytest.approx(expected, abs=1e-12)
        assert 0.0 < loss.at(loss.threshold(tensors)).gamma <= 1.0


def test_dynamic_threshold_without_probabilities() -> None:
    """Nothing to learn a threshold from truncates nothing; a NaN is passed on, for training to report."""
    loss = DynamicTruncatedCrossEntropy(variant="intended")
    assert loss.threshold([torch.empty(0)]) == 1.0
    assert math.isnan(loss.threshold([torch.tensor([0.5, float("nan")])]))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"kind": "focal", "gamma": -1.0}, "greater than or equal to 0"),
        ({"kind": "focal", "gamma": math.inf}, "finite"),
        ({"kind": "entropy"}, "Field required"),
        ({"kind": "clipped_focal"}, "Field required"),
        ({"kind": "clipped_focal", "variant": "theirs"}, "'fortifai' or 'intended'"),
        ({"kind": "dynamic_tce", "variant": "intended", "alpha": -1}, "greater than or equal to 0"),
        ({"kind": "cross_entropy", "normaliser": "all"}, "'valid' or 'kept'"),
        ({"kind": "tce", "gamma": 0.3, "alpha": 1}, "Extra inputs"),
        ({"kind": "lovasz", "normaliser": "kept"}, "'valid'"),
    ],
)
def test_a_setting_out_of_range_is_refused(content: dict[str, object], complaint: str) -> None:
    """Every loss says what it takes."""
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(Loss).validate_python(content)


def test_checking_a_loss_imports_no_torch() -> None:
    """The command line reads study files, and says what is wrong with them, without waiting seconds for torch."""
    code = """
import sys
from pydantic import TypeAdapter
from fortifai_ray.losses import Loss
for loss in ({"kind": "tce", "gamma": 0.3}, {"kind": "focal"}, {"kind": "lovasz"}, {"kind": "cross_entropy"}):
    TypeAdapter(Loss).validate_python(loss).identity()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loss_of_this_package_is_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass with a kind registers itself: study files can name it, and an unknown kind's hint lists it."""
    monkeypatch.setitem(KINDS, "cubed", CrossEntropy)  # removed after the test

    class Cubed(PointwiseLoss):
        kind: Literal["cubed"] = "cubed"

        def __call__(self, log_p: torch.Tensor) -> torch.Tensor:
            return -(log_p**3)

    assert isinstance(TypeAdapter(Loss).validate_python({"kind": "cubed"}), Cubed)
    with pytest.raises(ValidationError, match="there is no loss 'cubedd'; did you mean cubed"):
        TypeAdapter(Loss).validate_python({"kind": "cubedd"})


def test_a_study_files_schema_lists_every_loss() -> None:
    schema = TypeAdapter(Loss).json_schema()
    kinds = [part["properties"]["kind"].get("const") for part in schema["$defs"].values()]
    assert {kind for kind in kinds if kind} == set(KINDS)
