"""What a lineage's numbers may depend on, over random ecosystems of arrays: never on the order in which lineages
stand, on the seeds beside its own, on what was computed before a sweep was killed, nor, where draws are shared, on
names."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai_ray.chain.cohort import CohortTask, cohort_rows, cohorts, run_cohort, run_cohorts
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study

FAMILIES: list[dict[str, Any]] = [
    {"kind": "gaussian", "dim": 2},
    {"kind": "discrete", "outcomes": 6, "probabilities": "zipf"},
    {"kind": "exponential_family", "member": "bernoulli", "mean": 0.3},
    {"kind": "exponential_family", "member": "poisson", "mean": 4.0},
    {"kind": "kde", "shape": "blobs"},
    {"kind": "linear_regression", "dim": 2},
    {"kind": "gmm"},
]
REGIMES: list[dict[str, Any]] = [
    {"kind": "replace"},
    {"kind": "accumulate"},
    {"kind": "accumulate_subsample"},
    {"kind": "mixed", "synthetic_ratio": 0.6},
    {"kind": "mixed", "synthetic_ratio": 0.4, "human": "fresh"},
    {"kind": "incremental"},
]
SEEDS = [3, 11, 4]
OF_A_RUN = ("chain_id", "lineage", "stage", "reused", "computed_seconds", "train_seconds", "generate_seconds")


@st.composite
def ecosystems(draw: st.DrawFn) -> dict[str, Any]:
    """``family``, ``names`` (ascending), ``own`` keys and ``row`` of the mixing of each, and how they draw."""
    names = sorted(draw(st.sets(st.sampled_from("abcdefgh"), min_size=2, max_size=4)))
    own, rows = dict[str, Any](), dict[str, list[float]]()
    for name in names:
        keys = {"samples_per_generation": draw(st.sampled_from([5, 8, 13])), "regime": draw(st.sampled_from(REGIMES))}
        if draw(st.booleans()):
            keys["loss"] = {"kind": "tce", "gamma": 0.8}
        own[name] = keys | ({"frozen": True} if draw(st.integers(0, 5)) == 0 else {})
        weights = draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)))
        total = sum(weights)
        rows[name] = [one / total for one in weights] if total else [float(one == name) for one in names]
    draws = draw(st.sampled_from(["own", "shared"]))
    return {"family": draw(st.sampled_from(FAMILIES)), "names": names, "own": own, "rows": rows, "draws": draws}


def tasks(made: dict[str, Any], order: Sequence[int], names: Sequence[str], seeds: Sequence[int]) -> list[CohortTask]:
    """The cohorts of an ecosystem whose lineages stand in this order under these names."""
    before = made["names"]
    ecosystem = {
        "lineages": {names[place]: made["own"][before[place]] for place in order},
        "mixing": [[made["rows"][before[row]][column] for column in order] for row in order],
        "draws": made["draws"],
    }
    content = {
        "name": "random",
        "family": made["family"],
        "generations": 4,
        "ecosystem": ecosystem,
        "vary": {"seed": list(seeds)},
        "collapse": {"metric": "kept_fraction", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
    }
    return cohorts(make_study(content, "random.yaml").chains)


@contextmanager
def stored() -> Iterator[StageStore]:
    with tempfile.TemporaryDirectory() as folder:
        yield StageStore(Path(folder))


def numbers(asked: Sequence[CohortTask], store: StageStore, names: Sequence[str]) -> list[pl.DataFrame]:
    """Of each of ``names`` in turn, without what differs from run to run."""
    table = pl.concat([cohort_rows(task, run_cohort(task, Steps(store))) for task in asked], how="diagonal_relaxed")
    kept = table.drop(*OF_A_RUN, "evaluate_seconds").select(sorted({*table.columns} - {*OF_A_RUN, "evaluate_seconds"}))
    return [
        kept.filter(table["lineage"] == name).sort("seed", "generation").select(pl.exclude("^ecosystem.*$"))
        for name in names
    ]


def same(one: list[pl.DataFrame], other: list[pl.DataFrame]) -> bool:
    return all(mine.equals(theirs) for mine, theirs in zip(one, other, strict=True))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(made=ecosystems(), data=st.data())
def test_bit_for_bit(made: dict[str, Any], data: st.DataObject) -> None:
    names, places = made["names"], list(range(len(made["names"])))
    order = data.draw(st.permutations(places), label="order")
    with stored() as store:
        known = numbers(tasks(made, places, names, SEEDS), store, names)
    with stored() as store:
        assert same(known, numbers(tasks(made, order, names, SEEDS), store, names))
    with stored() as store:  # killed after one seed, computed with another's neighbours
        (first,) = tasks(made, places, names, SEEDS[1:2])
        run_cohort(first, Steps(store))
        rest = [task for seed in SEEDS for task in tasks(made, places, names, [seed])]
        found = {one.task.seeds[0]: one.stage.reused for one in run_cohorts(rest, Steps(store))}
        assert found == {SEEDS[0]: False, SEEDS[1]: True, SEEDS[2]: False}
        assert same(known, numbers(rest, store, names))
    if made["draws"] == "shared":
        others = [f"{name}{name}x" for name in names]
        with stored() as store:
            assert same(known, numbers(tasks(made, places, others, SEEDS), store, others))
