"""The benchmark measures what it says: kept fractions as asked, memory as taken, and verdicts that can be bad."""

from typing import Any

import pytest
import torch

from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.losses.benchmark import (
    BASELINE,
    PLAIN,
    cases,
    flops,
    make_inputs,
    peak_bytes,
    thresholds,
    training_steps,
    verdicts,
)
from fortifai_ray.losses.fused import fused_linear_sums


def test_thresholds_keep_the_fraction_asked_for() -> None:
    """To the target; and the operations that are then counted are the formula's."""
    inputs = make_inputs(200, 16, 300, torch.float32, "cpu")
    gammas = thresholds(inputs, [1.0, 0.5, 0.2])
    found, _ = cases("cpu", gammas)
    full = flops(found[BASELINE], inputs)
    for fraction, gamma in gammas.items():
        sums = fused_linear_sums(*inputs, TruncatedCrossEntropy(gamma=gamma))
        assert sums.kept.sum().item() == 200 * fraction
        assert flops(found[f"fused k={fraction}"], inputs) * 3 == round(full * (1 + 2 * fraction))


def test_peak_memory_is_what_is_taken() -> None:
    """The plain formula holds logits and their log-softmax at once, at least; and no ten copies of them."""
    n, v = 512, 20_000
    inputs = make_inputs(n, 8, v, torch.float32, "cpu")
    found, _ = cases("cpu", thresholds(inputs, [1.0]))
    peak = peak_bytes(found[PLAIN], inputs)
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 2 * n * v * 4 <= peak <= 10 * n * v * 4


def row(implementation: str, **changes: Any) -> dict[str, Any]:
    values = {"time_ratio": 0.5, "flop_ratio": 2 / 3, "peak_ratio_to_plain": 0.05}
    return {"shape": "4096x512x128000", "implementation": implementation, **values, **changes}


def test_a_target_missed_on_one_shape_is_missed() -> None:
    """Time, operations and memory each by itself; what was not measured is left out."""
    good = row("fused k=0.5")
    assert all(verdicts([good]).values())
    assert len(verdicts([good])) == 3
    for change in ({"time_ratio": 0.76}, {"flop_ratio": 0.67}, {"peak_ratio_to_plain": 0.11}):
        assert list(verdicts([good, row("fused k=0.5", **change)]).values()).count(False) == 1
    assert len(verdicts([row("fused k=0.5", peak_ratio_to_plain=None)])) == 2
    assert verdicts([row(BASELINE)]) == {}


def test_the_heads_share_of_a_training_step() -> None:
    """At k = 1 nothing is saved; at k = 0 two thirds of the head's operations would be."""
    for step in training_steps([1.0, 0.0]).values():
        assert step["k=1.0"] == 1.0
        assert step["k=0.0"] == pytest.approx(1 - 2 / 3 * step["head"])
        assert 0.05 < step["head"] < 0.5
