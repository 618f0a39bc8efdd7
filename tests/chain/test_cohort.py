"""Cohorts: stored once for all their chains, the same numbers however seeds are grouped, rows as the contract says."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fortifai_ray.chain import cohort as cohort_module
from fortifai_ray.chain.cohort import CohortTask, cohort_rows, cohorts, run_cohort
from fortifai_ray.results.writer import ResultsWriter
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import NotStored, StageStore
from fortifai_ray.study.study import Study, make_study

REGIMES: list[dict[str, Any]] = [
    {"kind": "replace"},
    {"kind": "accumulate"},
    {"kind": "accumulate_subsample"},
    {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"},
    {"kind": "incremental"},
    {"kind": "fixed_human", "human": 8, "synthetic": 20},
]


def study(seeds: int, **changes: Any) -> Study:
    content = {
        "name": "cohorts",
        "family": {"kind": "gaussian", "dim": 2},
        "samples_per_generation": 12,
        "generations": 4,
        "vary": {"regime": REGIMES, "seed": {"count": seeds}},
        "collapse": {"metric": "kl_divergence", "threshold": 0.5, "direction": "above", "relative_to": "absolute"},
        **changes,
    }
    return make_study(content, "cohorts.yaml")


def rows(asked: Study, root: Path) -> pl.DataFrame:
    writer = ResultsWriter(asked, root / asked.name)
    for task in cohorts(asked.chains):
        writer.add_rows(cohort_rows(task, run_cohort(task, Steps(StageStore(root)))))
    return writer.close(asked.chains).collect()


def test_a_chain_does_not_depend_on_its_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, to the last bit, whether seven seeds are one cohort or four, under every regime and curation."""
    seconds = pl.selectors.contains("seconds")
    for name, changes in {
        "plain": {},
        "tce": {"loss": {"kind": "tce", "gamma": 0.9}},
        "verified": {"curation": {"kind": "verifier", "by": "truth", "select": "typical"}},
        "several": {
            "curation": [
                {"kind": "choice", "of": 3, "reward": "truth", "temperature": 1.0},
                {"kind": "verifier", "by": "truth", "false_reject": 0.2, "keep": 0.3},
            ]
        },
    }.items():
        together = rows(study(7, **changes), tmp_path / name / "together")
        monkeypatch.setattr(cohort_module, "_CHAINS", 2)
        apart = rows(study(7, **changes), tmp_path / name / "apart")
        monkeypatch.undo()
        assert_frame_equal(together.drop(seconds, "stage"), apart.drop(seconds, "stage"), check_exact=True)


def test_rows_are_the_contracts(tmp_path: Path) -> None:
    """Sizes, ratios and cumulative synthetic sizes of each regime, exactly, and a row per chain and generation."""
    table = rows(study(3), tmp_path)
    assert table.height == len(REGIMES) * 3 * 4
    assert table["unit"].unique().to_list() == ["samples"]
    first = table.filter(generation=0)
    assert first["human_size"].to_list() == [12] * first.height
    assert first["synthetic_size"].to_list() == [0] * first.height
    last = table.filter(generation=3).group_by("regime.kind", maintain_order=True).agg(
        pl.col("human_size", "synthetic_size", "synthetic_size_cum").first()
    )  # fmt: skip
    sizes = {row["regime.kind"]: tuple(row.values())[1:] for row in last.to_dicts()}
    assert sizes["replace"] == (0, 12, 36)
    assert sizes["accumulate"] == (12, 36, 12 + 24 + 36)
    assert sizes["mixed"] == (6, 6, 18)
    assert sizes["incremental"] == (12, 36, 12 + 24 + 36)
    assert sizes["fixed_human"] == (8, 20, 60)
    subsampled = table.filter(pl.col("regime.kind") == "accumulate_subsample", pl.col("generation") == 3)
    assert (subsampled["human_size"] + subsampled["synthetic_size"]).to_list() == [12] * 3
    assert (table["synthetic_size"] / (table["human_size"] + table["synthetic_size"])).to_list() == table[
        "synthetic_ratio_realised"
    ].to_list()


def test_a_cohort_is_computed_once(tmp_path: Path) -> None:
    """One stage for all its chains; a replay finds it, and names what is missing where it does not."""
    task = cohorts(study(5).chains)[0]
    with pytest.raises(NotStored, match="compute 5 chains"):
        run_cohort(task, Steps(StageStore(tmp_path), replay=True))
    first = run_cohort(task, Steps(StageStore(tmp_path)))
    again = run_cohort(task, Steps(StageStore(tmp_path), replay=True))
    assert (first.hash, first.reused, again.reused) == (again.hash, False, True)
    assert cohort_rows(task, again)["computed_seconds"].sum() == 0


def test_what_determines_a_cohort() -> None:
    """Its recipe and its seeds; not the study's name, its criterion or its resources."""

    def ids(**changes: Any) -> list[str]:
        return [task.id for task in cohorts(study(3, **changes).chains)]

    assert ids() == ids(name="other", resources={"num_cpus": 1})
    assert set(ids()).isdisjoint(ids(samples_per_generation=13))
    assert set(ids()).isdisjoint(ids(family={"kind": "gaussian", "dim": 2, "covariance_estimator": "unbiased"}))
    assert isinstance(cohorts(study(3).chains)[0], CohortTask)
