"""MLflow's runs give the same answer as the Parquet: a real database, written by the tracker that sweeps use."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.statistics import CollapseCriterion, chain_table, fidelity_table
from fortifai_ray.tracking import ChainInfo, ChainStatus, StudyTracker
from fortifai_ray.tracking.from_mlflow import RECORDED_COLLAPSE, StudyRuns, generations_from_mlflow, read_mlflow

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
N = 6
STUDY: dict[str, Any] = {
    "name": "small",
    "generations": N,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}], "seed": [0, 1, 2]},
    "collapse": [DOUBLED.model_dump(mode="json")],
    "baseline": CROSS_ENTROPY,
}
CURVES: dict[tuple[str, int], list[float]] = {
    ("ce", 0): [329, 351, 517, 1114, 3993, 15072],
    ("ce", 1): [333.3, 340, 1 / 3 * 1e4, math.inf, math.inf, math.inf],
    ("ce", 2): [331, 350, 420, math.nan],  # recorded as collapsed
    ("tce", 0): [330, 367, 506, 964, 1934, 4471],
    ("tce", 1): [330, 340, 350, 360, 370, 380],
    ("tce", 2): [330, 340],  # failed
}
Sent = tuple[str, pl.DataFrame]


def chain(name: str, seed: int) -> ChainInfo:
    loss = {"loss.kind": "cross_entropy"} if name == "ce" else {"loss.kind": "tce", "loss.gamma": 0.3}
    shared = {"family.kind": "language", "regime.kind": "replace", "generations": N, "seed": seed, "stop": ["a"]}
    return ChainInfo(f"{name}-{seed}", f"{name} {seed}", {**shared, **loss})


def send(tracker: StudyTracker, row: dict[str, Any]) -> None:
    recorded = {RECORDED_COLLAPSE: 1.0} if row["collapse_reason"] else {}
    metrics = {"perplexity": row["perplexity"], "synthetic_size_cum": row["synthetic_size_cum"], **recorded}
    tracker.log_generation(row["chain_id"], row["generation"], metrics, None)


@pytest.fixture(scope="module")
def sent(study: Callable[..., pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A database that holds the study, and the table that it was made of."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    table = study(CURVES).with_columns(
        collapse_reason=pl.when(pl.col("perplexity").is_nan()).then(pl.lit("the loss is NaN"))
    )
    tracker = StudyTracker("small", folder, STUDY, [chain(*key) for key in CURVES], uri)
    for row in table.iter_rows(named=True):
        send(tracker, row)
    for name, seed in CURVES:
        failed = (name, seed) == ("tce", 2)
        status: ChainStatus = "failed" if failed else "survived" if (name, seed) == ("tce", 1) else "collapsed"
        tracker.finish_chain(f"{name}-{seed}", status, "out of memory" if failed else None, {"onset": 1.0})
    outcome = tracker.finish("failed")
    assert outcome.sent, outcome.problems
    return uri, table


@pytest.fixture(scope="module")
def runs(sent: Sent) -> StudyRuns:
    return read_mlflow(sent[0], "small")


def test_the_table_is_the_one_that_was_logged(sent: Sent, runs: StudyRuns) -> None:
    table = sent[1].sort("chain_id", "generation")
    columns = ["chain_id", "generation", "seed", "loss.kind", "loss.gamma", "perplexity"]
    assert runs.generations.select(columns).equals(table.select(columns))  # to the last bit, NaN and infinity included
    assert runs.generations["synthetic_size_cum"].equals(table["synthetic_size_cum"])
    assert runs.generations["collapse_reason"].is_not_null().equals(table["collapse_reason"].is_not_null())
    assert runs.generations.select("family.kind", "regime.kind").unique().rows() == [("language", "replace")]
    assert generations_from_mlflow(sent[0], "small").equals(runs.generations)


def test_the_answer_is_the_parquets(sent: Sent, runs: StudyRuns) -> None:
    asked = chain_table(sent[1], [DOUBLED], CROSS_ENTROPY, VARIED, N, failed=["tce-2"])
    criteria = [CollapseCriterion.model_validate(item) for item in runs.study["collapse"]]
    chains = chain_table(
        runs.generations, criteria, runs.study["baseline"], runs.varied, runs.generations_asked, failed=runs.failed
    )
    assert chains.equals(asked)
    assert chains["status"].to_list() == ["collapsed"] * 4 + ["survived", "failed"]
    found = fidelity_table(chains, runs.varied, runs.study["baseline"], n_resamples=99)
    assert found.equals(fidelity_table(asked, VARIED, CROSS_ENTROPY, n_resamples=99))


def test_what_the_study_says_of_itself(runs: StudyRuns) -> None:
    assert (runs.varied, runs.generations_asked, runs.failed) == (VARIED, N, frozenset({"tce-2"}))
    assert runs.study["name"] == "small"


def test_chains_computed_in_cohorts_come_from_the_table_that_the_sweep_left(
    study: Callable[..., pl.DataFrame], tmp_path: Path
) -> None:
    curves = {("ce", seed): [100.0, 150.0 + seed, 300.0, 400.0] for seed in range(3)}
    table = study(curves)
    table.write_parquet(tmp_path / "generations.parquet")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    cell = ChainInfo("cell", "cross entropy", {"loss.kind": "cross_entropy", "generations": 4})
    tracker = StudyTracker(
        "cohorts", tmp_path, STUDY | {"name": "cohorts", "vary": {"seed": {"count": 3}}}, [cell], uri
    )
    tracker.log_series("cell", [(g, {"perplexity/median": 1.0}) for g in range(4)])
    tracker.finish_chain("cell", "finished", None, {})
    outcome = tracker.finish("finished", [tmp_path / "generations.parquet"])
    assert outcome.sent, outcome.problems
    runs = read_mlflow(uri, "cohorts")
    assert runs.varied == ["seed"]
    asked = chain_table(table, [DOUBLED], CROSS_ENTROPY, ["seed"], 4)
    assert chain_table(runs.generations, [DOUBLED], CROSS_ENTROPY, ["seed"], 4).equals(asked)
    (next(iter(tmp_path.rglob("mlartifacts/**/generations.parquet")))).unlink()
    with pytest.raises(UserError, match=r"no readable generations\.parquet"):
        read_mlflow(uri, "cohorts")


def test_an_experiment_that_holds_no_study_is_named(sent: Sent) -> None:
    with pytest.raises(UserError, match=r"no experiment 'smal': there are .*small"):
        read_mlflow(sent[0], "smal")
    with pytest.raises(UserError, match="holds no study"):
        read_mlflow(sent[0], "Default")
    missing = sent[0].replace("mlflow.db", "mlflow2.db")
    with pytest.raises(UserError, match="does not exist"):
        read_mlflow(missing, "small")
    assert not Path(missing.removeprefix("sqlite:///")).exists()
