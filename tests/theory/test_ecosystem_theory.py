"""Gaussian lineages in closed form: against the cases that are known otherwise, and against simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray import theory
from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.theory.registry import closed_forms_of

RING = [[0.5, 0.25, 0.0, 0.25], [0.25, 0.5, 0.25, 0.0], [0.0, 0.25, 0.5, 0.25], [0.25, 0.0, 0.25, 0.5]]


@pytest.mark.parametrize("generation", [0, 1, 7])
def test_lineages_apart_are_chains(generation: int) -> None:
    """W = 1: each as under replace; a lineage that stays as it is keeps generation 0's value."""
    alone = theory.gaussian_ecosystem_mean_variance([10, 20], np.eye(2).tolist(), 1, generation)
    assert alone == pytest.approx(theory.gaussian_replace_mean_variance(20, generation))
    still = theory.gaussian_ecosystem_mean_variance([10, 20], np.eye(2).tolist(), 1, generation, [False, True])
    assert still == pytest.approx(theory.gaussian_replace_mean_variance(20, 0))


def test_variance_and_error_sum_to_the_truth() -> None:
    for lineage in range(4):
        arguments: Any = ([12] * 4, RING, lineage, 9)
        both = theory.gaussian_ecosystem_mean_variance(*arguments) + theory.gaussian_ecosystem_mean_error(*arguments)
        assert both == pytest.approx(1)


def test_readers_of_one_outside_model_never_collapse() -> None:
    """v → (1 − C_00)(1 − 1/n): one fit's loss below the outside model, whatever the generation."""
    mixing = [[1.0, 0.0], [1.0, 0.0]]
    late = theory.gaussian_ecosystem_mean_variance([10, 10], mixing, 1, 50, [True, False])
    assert late == pytest.approx((1 - 1 / 10) ** 2)


ECOSYSTEMS: dict[str, dict[str, Any]] = {
    "sizes": {
        "lineages": {"a": {}, "b": {"samples_per_generation": 40}, "c": {}},
        "mixing": [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]],
    },
    "star": {"lineages": {"hub": {}, "b": {}, "c": {}}, "mixing": {"graph": "star", "own": 0.5}},
    "outside": {
        "lineages": {"a": {}, "web": {"frozen": True}, "press": {"regime": {"kind": "mixed", "synthetic_ratio": 0.0}}},
        "mixing": [[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    },
}


@pytest.mark.parametrize("name", ECOSYSTEMS)
def test_simulation_agrees(name: str, tmp_path: Path) -> None:
    """4,000 chains, each lineage's mean variance and squared error within 4.5 standard errors, in early and late
    generations; and each lineage finds its closed forms by its recipe."""
    content = {
        "name": "theory",
        "family": {"kind": "gaussian"},
        "samples_per_generation": 20,
        "generations": 13,
        "ecosystem": ECOSYSTEMS[name],
        "vary": {"seed": {"start": 7_000_000, "count": 4000}},
        "collapse": {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
    }
    study = make_study(content, "s.yaml")
    store = StageStore(tmp_path)
    table = pl.concat([cohort_rows(task, run_cohort(task, Steps(store))) for task in cohorts(study.chains)])
    for member in study.chains[0].members:
        own = table.filter(lineage=member.lineage)
        offered = {form.metric: form for form in closed_forms_of(member.facts)}
        assert set(offered) == {"trace_ratio", "mean_error"}
        for metric, form in offered.items():
            for generation in (0, 3, 12):
                values = own.filter(generation=generation)[metric].to_numpy()
                error = values.std() / np.sqrt(len(values))
                assert abs(values.mean() - form.at(generation)) < 4.5 * error, (member.lineage, metric, generation)


def test_it_is_offered_where_it_holds() -> None:
    """Not where lineages differ in more than their size, draw alike, mix in human data or have new ones in each
    generation, or for single chains; and no chain's form is offered for a lineage."""
    content: dict[str, Any] = {
        "name": "theory",
        "family": {"kind": "gaussian"},
        "generations": 3,
        "collapse": {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
    }
    human = {"regime": {"kind": "mixed", "synthetic_ratio": 0.0, "human": "fresh"}}
    growing = {"samples_per_generation": {"initial": 10, "growth": {"kind": "linear", "increment": 1}}}
    for change, common in (
        ({"draws": "shared"}, {}),
        ({"lineages": {"a": {}, "b": {"loss": {"kind": "tce", "gamma": 0.9}}}}, {}),
        ({}, {"regime": {"kind": "mixed", "synthetic_ratio": 0.5}}),
        ({"lineages": {"a": {}, "b": human}}, {}),
        ({"lineages": {"a": {"samples_per_generation": 10}, "b": {}}}, growing),
    ):
        study = make_study({**content, **common, "ecosystem": {"lineages": {"a": {}, "b": {}}, **change}}, "s.yaml")
        assert not closed_forms_of(next(study.members).facts), (change, common)
    chain = make_study(content, "s.yaml").chains[0]
    assert not [form for form in closed_forms_of(chain.facts) if "ecosystem" in form.name]
