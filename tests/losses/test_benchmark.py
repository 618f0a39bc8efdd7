"""The benchmark measures what it claims: requested kept fractions, allocated memory, and verdicts that can be bad."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import losses as benchmark
from benchmarks.losses import (
    BASELINE,
    FLOP_FORMULAS,
    LIGER,
    PLAIN,
    Inputs,
    cases,
    flops,
    make_inputs,
    measure,
    peak_bytes,
    thresholds,
    training_steps,
    verdicts,
)
from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.losses.fused import fused_linear_sums


def test_thresholds_keep_the_fraction_asked_for() -> None:
    """To the target; and the operations that are then counted are the formula's."""
    inputs = make_inputs(200, 16, 300, torch.float32, "cpu")
    gammas = thresholds(inputs, [1.0, 0.5, 0.2])
    available, _ = cases("cpu", gammas)
    full = flops(available[BASELINE], inputs)
    for fraction, gamma in gammas.items():
        sums = fused_linear_sums(*inputs, TruncatedCrossEntropy(gamma=gamma))
        assert sums.kept.sum().item() == 200 * fraction
        assert flops(available[f"fused k={fraction}"], inputs) * 3 == round(full * (1 + 2 * fraction))


@pytest.mark.parametrize(
    "arguments", [["--shapes", "4096x512"], ["--kept", "0"], ["--kept", "1", "half"], ["--repeats", "0"]]
)
def test_a_mistake_on_the_command_line_starts_nothing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option."""
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 2
    assert f"argument {arguments[0]}: {arguments[-1]}: " in capsys.readouterr().err


def test_peak_memory_is_what_is_taken() -> None:
    """The plain formula holds logits and their log-softmax at once, at least; and no ten copies of them."""
    n, v = 512, 20_000
    inputs = make_inputs(n, 8, v, torch.float32, "cpu")
    available, _ = cases("cpu", thresholds(inputs, [1.0]))
    peak = peak_bytes(available[PLAIN], inputs)
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 2 * n * v * 4 <= peak <= 10 * n * v * 4


def row(implementation: str, **changes: Any) -> dict[str, Any]:
    values = {"time_ratio": 0.5, "flop_ratio": 2 / 3, "peak_ratio_to_plain": 0.05, "seconds": 1.0, "peak_bytes": 100}
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


def test_on_a_gpu_the_fused_head_is_judged_against_liger() -> None:
    """Speed at k ≤ 0.9 alone, memory at every k, on the same shape; times against cross entropy are a CPU's target."""
    liger = row(LIGER, seconds=2.0, peak_bytes=100)
    rows = [row("fused k=1.0", seconds=9.0, flop_ratio=1.0), row("fused k=0.9", flop_ratio=2.8 / 3), liger]
    met = verdicts(rows, "cuda")
    assert all(met.values())
    assert len(met) == 5
    assert not any(name.startswith("time") for name in met)
    for change in ({"seconds": 2.5}, {"peak_bytes": 101}):
        missed = [name for name, good in verdicts([*rows, row("fused k=0.5", **change)], "cuda").items() if not good]
        assert len(missed) == 1
        assert "liger" in missed[0]
    elsewhere = row("fused k=0.5", seconds=2.5, shape="4096x2048x128000")
    assert all(verdicts([*rows, elsewhere], "cuda").values())
    assert not any("liger" in name for name in verdicts([*rows[:2], {**row(LIGER), "missing": "not here"}], "cuda"))


def test_an_implementation_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another project's code may not fit the installed torch: its row says why, the others are measured."""

    def broken(_: Inputs) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    available = {name: case for name, case in cases("cpu", {1.0: 1.0})[0].items() if name in (BASELINE, PLAIN)}
    monkeypatch.setattr(benchmark, "cases", lambda *_: ({**available, "other": broken}, {}))
    rows = {row["implementation"]: row for row in measure("16x4x32", [1.0], torch.float32, "cpu", 1)}
    assert rows["other"]["missing"] == "fails: no kernel image"
    assert rows[BASELINE]["time_ratio"] == 1.0
    assert rows[PLAIN]["seconds"] > 0


def test_a_product_added_in_float32_is_counted() -> None:
    """As a GPU adds 16-bit products to a float32 gradient: torch's own formula fails on it."""
    a, b = torch.ones(6, 5, dtype=torch.bfloat16, device="meta"), torch.ones(6, 4, dtype=torch.bfloat16, device="meta")
    total = torch.zeros(5, 4, device="meta")
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        torch.addmm(total, a.T, b, out_dtype=torch.float32, out=total)
    assert counter.get_total_flops() == 2 * 5 * 6 * 4


def test_the_heads_share_of_a_training_step() -> None:
    """At k = 1 nothing is saved; at k = 0 two thirds of the head's operations would be."""
    for step in training_steps([1.0, 0.0]).values():
        assert step["k=1.0"] == 1.0
        assert step["k=0.0"] == pytest.approx(1 - 2 / 3 * step["head"])
        assert 0.05 < step["head"] < 0.5
