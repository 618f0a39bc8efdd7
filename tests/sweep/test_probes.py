"""Probes: the chains that a configuration means, and the verdict on them, without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import AnyOf, Collapse, CollapseCriterion
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.search import BoundaryWork, chain_status
from fortifai_ray.sweep.work import Verdict, run_job

SEARCH = {"kind": "boundary", "over": "regime.synthetic_ratio", "low": 0.0, "high": 1.0, "tolerance": 0.1}


def study(**changes: Any) -> Study:
    content = {
        "name": "probes",
        "family": {"kind": "gaussian", "dim": 1},
        "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
        "samples_per_generation": 20,
        "generations": 8,
        "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}]},
        "collapse": {"metric": "kl_divergence", "threshold": 0.1, "direction": "above", "relative_to": "absolute"},
        "search": SEARCH,
        **changes,
    }
    return make_study({key: value for key, value in content.items() if value is not None}, "probes.yaml")


def inputs(asked: Study) -> Inputs:
    return Inputs({(type(cell.recipe), None): None for cell in asked.cells})


def test_a_probe_is_the_chain_that_a_grid_would_have() -> None:
    """Same id, and so the same stages: a search finds what a grid has computed, and the other way round."""
    searched = study()
    probe = searched.probe(searched.cells[1], {"regime.synthetic_ratio": 0.3}, 5)
    vary = {"loss": [{"kind": "tce", "gamma": 0.9}], "regime.synthetic_ratio": [0.3], "seed": [5]}
    (chain,) = study(search=None, vary=vary).chains
    assert probe.chain_id == chain.chain_id
    assert probe.varied == {"loss.kind": "tce", "loss.gamma": 0.9, "regime.synthetic_ratio": 0.3, "seed": 5}
    assert searched.varied == list(probe.varied)


def test_whole_numbers_stay_whole() -> None:
    """A key that takes whole numbers gets one, not 12.0: the recipe's hash would not be the grid's."""
    search = {**SEARCH, "over": "samples_per_generation", "low": 10, "high": 50, "tolerance": 2}
    searched = study(search=search)
    recipe = searched.probe(searched.cells[0], {"samples_per_generation": 12.0}, 0).recipe
    assert recipe.flat()["samples_per_generation"] == 12
    assert isinstance(recipe.flat()["samples_per_generation"], int)


@pytest.mark.parametrize("kind", ["above", "outside", "any of several"])
def test_a_verdict_is_that_of_the_chain_table(kind: str) -> None:
    """One chain's status by rows alone equals the table's: missing, broken and recorded generations too."""
    rng = np.random.default_rng(0)
    seen = set()
    for case in range(200):
        relative = ("absolute", "own_generation_0", "baseline_generation_0")[case % 3]
        common = {"metric": "perplexity", "relative_to": relative, "confirm": int(rng.integers(0, 3))}
        criterion: Collapse = CollapseCriterion(threshold=2.0, direction="above", **common)
        if kind == "outside":
            criterion = CollapseCriterion(threshold=(0.7, 4.0), direction="outside", **common)
        elif kind == "any of several":
            losses = CollapseCriterion(metric="loss", threshold=2.0, direction="above", relative_to="own_generation_0")
            criterion = AnyOf(any_of=(criterion, losses))
        count = int(rng.integers(1, 7))
        values: list[float | None] = list(
            rng.choice([0.5, 1.0, 3.0, 5.0, float("nan")], count, p=[0.3, 0.3, 0.2, 0.15, 0.05])
        )
        reasons: list[str | None] = [None] * count
        if rng.random() < 0.3:
            values[-1], reasons[-1] = (None if rng.random() < 0.5 else values[-1]), "diverged"
        elif rng.random() < 0.2:
            values[int(rng.integers(0, count))] = None
        baseline = None if rng.random() < 0.2 else 1.0
        rows = pl.DataFrame(
            {"chain_id": "c", "generation": range(count), "seed": 0, "loss.kind": "tce", "perplexity": values}
            | {
                "loss": rng.choice([1.0, 1.5, 2.5], count),
                "synthetic_size_cum": 0,
                "collapse_reason": pl.Series(reasons, dtype=pl.String),
            }
        )
        references = [] if baseline is None else [("c", "perplexity", baseline)]
        table = chain_table(rows, [criterion], {"loss.kind": "cross_entropy"}, ["loss.kind"], 7, references=references)
        status = chain_status(rows, criterion, {metric: value for _, metric, value in references})
        assert status == table["status"].item(), (values, reasons, criterion, baseline)
        seen.add(status)
    assert seen == {"collapsed", "unconfirmed", "survived", "failed"}


def test_a_probe_measured_against_the_baseline_has_a_limit(tmp_path: Path) -> None:
    """No baseline chain runs beside a probe, so its generation 0 is computed for it, and recorded for the tables."""
    criterion = {"metric": "wasserstein", "threshold": 3.0, "direction": "above"}
    asked = study(collapse=criterion)
    work, steps = BoundaryWork(asked, inputs(asked)), Steps(StageStore(tmp_path))
    name = list(work.names)[1]
    config = {"cell": name, "value": 1.0, "seed": 3, "place": 10}
    *_, verdict = run_job(work.job(config), steps, InProcess())
    assert isinstance(verdict, Verdict)
    ((chain_id, metric, value),) = verdict.references
    assert (chain_id, metric) == (work.chain(config).chain_id, "wasserstein")
    vary = {"loss.kind": ["cross_entropy"], "regime.synthetic_ratio": [1.0], "seed": [3]}
    (baseline,) = study(search=None, vary=vary, collapse=criterion).chains
    from fortifai_ray.chain.cohort import CohortTask, cohort_rows, run_cohort

    whole = CohortTask([baseline], baseline.recipe.located())
    first = cohort_rows(whole, run_cohort(whole, steps)).filter(pl.col("generation") == 0)
    assert value == pytest.approx(first["wasserstein"].item(), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"seed": [0, 1]}}, "vary: a boundary search chooses the seeds of its chains"),
        ({"search": {**SEARCH, "high": 1.5}}, "search: regime.synthetic_ratio: .*lies in .0, 1.: 1.5 does not"),
        ({"search": {**SEARCH, "over": "regime.ratio"}}, "regime.ratio: unknown key; did you mean synthetic_ratio"),
        ({"search": {**SEARCH, "over": "loss.gamma"}}, "search.over: loss.gamma: not a key of the recipe"),
        (
            {"search": {**SEARCH, "over": "samples_per_generation", "low": 10.5, "high": 50, "tolerance": 2}},
            "takes only whole numbers, not 10.5",
        ),
        ({"search": {**SEARCH, "tolerence": 1}}, "search.tolerence: unknown key"),
        ({"search": {"kind": "boundry"}}, "search"),
        ({"search": {"kind": "optimise", "over": {"loss.gamma": [0.1, 0.9]}}}, "search.over: loss.gamma: not a key"),
        (
            {"search": {"kind": "optimise", "over": {"samples_per_generation": [10, 50]}}},
            "vary: an optimise search takes one recipe",
        ),
        (
            {"vary": {}, "search": {"kind": "optimise", "over": {"samples_per_generation": [10, 50]}}},
            "compares with the baseline, which is this recipe itself",
        ),
        (
            {
                "collapse": {
                    "metric": "trace_ratio",
                    "threshold": 0.5,
                    "direction": "below",
                    "relative_to": "absolute",
                },
                "search": {**SEARCH, "survival": {"never_recorded": True, "largest_step": 0.5}},
            },
            "largest_step: for trace_ratio it is a factor, above 1",
        ),
        (
            {
                "collapse": {
                    "any_of": [
                        {"metric": "trace_ratio", "threshold": 0.5, "direction": "below"},
                        {"metric": "mean_error", "threshold": 1.0, "direction": "above", "relative_to": "absolute"},
                    ]
                },
                "search": {**SEARCH, "survival": {"never_recorded": True, "largest_step": 1.5}},
            },
            "largest_step: it bounds one metric's steps, and collapse has trace_ratio, mean_error",
        ),
    ],
)
def test_a_search_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """In one line that names the file and the key, before anything starts."""
    with pytest.raises(UserError, match=f"^probes.yaml: .*{message}"):
        study(**changes)
