"""Rows of generations.parquet: a chain's and a cohort's have the columns of the contract, in its order."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.chain.recursion import Generation
from fortifai_ray.chain.rows import chain_row, generation_rows
from fortifai_ray.recipe.regimes import Draw, Pool, TrainingSet
from fortifai_ray.results.schema import generations_schema
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageStore
from fortifai_ray.study.study import Study, make_study


def study(**changes: Any) -> Study:
    content = {
        "name": "rows",
        "family": {"kind": "gaussian"},
        "samples_per_generation": 10,
        "generations": 2,
        "collapse": {"metric": "kl_divergence", "threshold": 0.5, "direction": "above", "relative_to": "absolute"},
        **changes,
    }
    return make_study(content, "rows.yaml")


def measured(**outputs: Any) -> Generation[Stage]:
    """Generation 1 of a chain, whose model was trained on 4 human and 12 synthetic samples, and is in the store."""
    pools = [Pool(name, np.ones(12, dtype=np.int64), synthetic) for name, synthetic in (("human", False), ("g0", True))]
    data = TrainingSet(tuple(Draw(pool, np.arange(size)) for pool, size in zip(pools, (4, 12), strict=True)))
    model = Stage("m1", Path("m1"), {"train_seconds": 2.0, **outputs}, reused=True)
    return Generation(1, data, model, Stage("s1", Path("s1"), {"evaluate_seconds": 0.5}, reused=False))


@pytest.mark.parametrize(
    "vary",
    [
        {"seed": [0, 1]},
        {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}], "seed": [0, 1]},
        {"regime": [{"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}], "samples_per_generation": [10, 20]},
    ],
    ids=["seed", "loss", "regime"],
)
def test_a_chains_row_and_a_cohorts_have_the_contracts_columns(tmp_path: Path, vary: dict[str, Any]) -> None:
    asked = study(vary=vary)
    columns = list(generations_schema(asked.varied, asked.chains[0].recipe.metrics))
    assert list(chain_row(asked.chains[0], measured(), 12, None)) == columns
    for task in cohorts(asked.chains):
        assert cohort_rows(task, run_cohort(task, Steps(StageStore(tmp_path)))).columns == columns


def test_a_key_that_the_recipe_lacks_is_null() -> None:
    mixed = study(regime={"kind": "mixed", "synthetic_ratio": 0.75}, loss={"kind": "tce", "gamma": 0.9}, vary={})
    row = chain_row(mixed.chains[0], measured(), 12, "horizon")
    assert (row["loss.gamma"], row["regime.synthetic_ratio"], row["synthetic_ratio_realised"]) == (0.9, 0.75, 0.75)
    assert (row["family.kind"], row["unit"], row["ended"]) == ("gaussian", "samples", "horizon")
    row = chain_row(study(vary={}).chains[0], measured(), 12, None)
    assert (row["loss.kind"], row["loss.gamma"], row["regime.synthetic_ratio"]) == ("cross_entropy", None, None)


@pytest.mark.parametrize("value", [None, 2, 2.5, True, np.float64(0.1), float("nan"), float("inf"), 10**18])
@pytest.mark.parametrize("vary", [{"seed": [0, 2**40]}, {"loss": [{"kind": "tce", "gamma": 1}], "generations": [2, 3]}])
def test_a_chains_row_is_that_of_a_cohort_of_one(value: Any, vary: dict[str, Any]) -> None:
    """Whatever a step has put out: the values and types that a table's columns give them."""
    for chain in study(vary=vary).chains:
        row = chain_row(chain, measured(kl_divergence=value, world_size=1), 12, None)
        own = {name: row[name] for name in row if name not in chain.varied and "." not in name}
        own |= {"seed": chain.recipe.seed, "kl_divergence": value, "chain_id": None, "unit": None}
        types = {**generations_schema((), chain.recipe.metrics), "chain_id": pl.String}
        table = pl.DataFrame([own], schema={name: types[name] for name in own}, strict=False).drop("chain_id", "unit")
        expected = generation_rows([chain], table).row(0, named=True)
        assert list(row) == list(expected)
        assert repr(row) == repr(expected)


def test_seconds_of_a_stored_step_are_shown_but_were_not_computed() -> None:
    row = chain_row(study(vary={}).chains[0], measured(), 12, None)
    assert (row["train_seconds"], row["evaluate_seconds"], row["computed_seconds"]) == (2.0, 0.5, 0.5)
    assert (row["reused"], row["stage"], row["synthetic_stage"]) == (False, "m1", None)


def test_the_threshold_of_dynamic_tce_is_a_metric_and_no_key() -> None:
    """Each epoch sets γ anew: the recipe has none, the last epoch's is measured."""
    asked = make_study(
        {
            "name": "dynamic",
            "family": {"kind": "vae", "channels": 4, "latent": 4},
            "loss": {"kind": "dynamic_tce", "variant": "intended"},
            "samples_per_generation": 32,
            "generations": 2,
            "collapse": {"metric": "elbo", "threshold": 2.0, "direction": "above"},
        },
        "dynamic.yaml",
    )
    row = chain_row(asked.chains[0], measured(gamma_by_epoch=[0.5, 0.625]), 12, None)
    assert (row["loss.gamma"], row["gamma_last_epoch"]) == (None, 0.625)
