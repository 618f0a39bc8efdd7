"""Ecosystems of networks: real training and generation in this process, shared in the store, and measured together."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.in_process import InProcess, WarmEngine
from fortifai_ray.families.language.lineages import divergence, shared
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.preflight import check_study

TEXT: dict[str, Any] = {
    "name": "lineages",
    "family": {
        "kind": "language",
        "model": {"preset": "llama-tiny", "vocab_size": 300, "hidden_size": 32, "layers": 1},
    },
    "corpus": {"source": "pydoc", "train_tokens": 1024, "held_out": 0.02},
    "decoding": {"temperature": 0.8, "max_new_tokens": 24, "context_tokens": 8},
    "training": {"batch_size": 8, "block_size": 32, "learning_rate": 1e-2},
    "engine": {"kind": "huggingface"},
    "generations": 2,
    "collapse": {"metric": "perplexity", "threshold": 100.0, "direction": "above"},
    "early_stopping": False,
}


def run(asked: Study, folder: Path, executor: InProcess | None = None) -> tuple[list[Any], Steps]:
    store = StageStore(folder)
    inputs = check_study(asked, store)
    steps = Steps(store)
    tasks = [ChainTask.of(asked, chain, inputs) for chain in asked.chains]
    return [result for task in tasks for result in run_chain(task, steps, executor or InProcess())], steps


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def ecosystem(mixing: list[list[float]] | None = None, **lineages: Any) -> dict[str, Any]:
    return {"lineages": lineages, "mixing": mixing or {"graph": "complete", "own": 0.5}}


BOTH = {
    "small": {},
    "large": {"family": {"model": {"layers": 2, "hidden_size": 64}}, "loss": {"kind": "tce", "gamma": 0.9}},
}


@dataclass(frozen=True)
class Counting(InProcess):
    """Counts the starts of engines."""

    starts: list[float] = field(default_factory=list)

    @cached_property
    def _engine(self) -> WarmEngine:
        return WarmEngine(on_start=self.starts.append)


@pytest.fixture(scope="module")
def executor() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def ran(storage: Path, executor: Counting) -> tuple[list[Any], Steps]:
    return run(make_study({**TEXT, "ecosystem": ecosystem(**BOTH)}, "s.yaml"), storage, executor)


def test_models_of_two_sizes_feed_each_other(ran: tuple[list[Any], Steps], executor: Counting) -> None:
    """An engine for each architecture starts once, however many generations there are; half of each training set is the
    other's text, and each lineage's rows have its own loss."""
    assert len(executor.starts) == 2
    rows = [result.row for result in ran[0]]
    assert [(row["lineage"], row["generation"]) for row in rows] == [
        ("small", 0), ("large", 0), ("small", 1), ("large", 1),
    ]  # fmt: skip
    assert [row["loss.kind"] for row in rows[:2]] == ["cross_entropy", "tce"]
    assert len({row["chain_id"] for row in rows}) == 2
    assert all(row["human_size"] == 0 and abs(row["synthetic_size"] - 1024) <= 24 for row in rows[2:])
    for row in rows:
        assert 1 < row["cross_perplexity"] < math.inf
        assert 0 < row["lineage_divergence"] <= math.log(2)
        assert 0 <= row["shared_ngrams"] <= 1


class Killed(Exception):
    """In place of a signal."""


@dataclass(frozen=True)
class Mortal(InProcess):
    """Killed in its third call, when what that wrote is not yet a stage."""

    calls: list[str] = field(default_factory=list)

    def fit(self, *arguments: Any) -> None:
        super().fit(*arguments)
        self._called("fit")

    def score(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().score(*arguments, **keywords)
        self._called("score")
        return result

    def write(self, *arguments: Any, **keywords: Any) -> Any:
        report = super().write(*arguments, **keywords)
        self._called("write")
        return report

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == 3:
            raise Killed(what)


def test_an_ecosystem_that_is_killed_again_and_again_ends_as_one_that_is_not(
    ran: tuple[list[Any], Steps], tmp_path: Path
) -> None:
    """Amid a fit, a score and a text, of either lineage: the next run goes on from there, and every row is the same."""
    asked, killed_in = make_study({**TEXT, "ecosystem": ecosystem(**BOTH)}, "s.yaml"), list[str]()
    while True:
        executor = Mortal()
        try:
            results, steps = run(asked, tmp_path, executor)
            break
        except Killed as death:
            killed_in.append(str(death))
    assert {*killed_in} == {"fit", "score", "write"}
    assert steps.reused > steps.computed

    def rows(results: list[Any]) -> list[dict[str, Any]]:
        of_a_run = ("reused", "seconds")
        return [{key: value for key, value in one.row.items() if not key.endswith(of_a_run)} for one in results]

    assert rows(results) == rows(ran[0])
    assert [one.samples for one in results] == [one.samples for one in ran[0]]
    assert [one.details for one in results] == [one.details for one in ran[0]]


def test_the_order_of_the_lineages_changes_no_stage(ran: tuple[list[Any], Steps], storage: Path) -> None:
    """The same lineages in another order are found in the store: nothing is computed."""
    swapped = ecosystem(**dict(reversed(BOTH.items())))
    results, steps = run(make_study({**TEXT, "ecosystem": swapped}, "s.yaml"), storage)
    assert steps.computed == 0
    known = {(r.row["lineage"], r.row["generation"]): r.row["perplexity"] for r in ran[0]}
    assert {(r.row["lineage"], r.row["generation"]): r.row["perplexity"] for r in results} == known


def test_one_lineage_is_found_in_the_store_of_its_chain(storage: Path) -> None:
    """Bit for bit, and so the same stages."""
    chain, _ = run(make_study(TEXT, "s.yaml"), storage)
    alone, steps = run(make_study({**TEXT, "ecosystem": ecosystem(solo={})}, "s.yaml"), storage)
    assert steps.computed == 0
    assert [r.row["perplexity"] for r in alone] == [r.row["perplexity"] for r in chain]


def test_an_outside_model_is_trained_once(storage: Path) -> None:
    """It writes anew in each generation, and the reader's training set is all its text."""
    mixing = [[0.0, 1.0], [0.0, 0.0]]
    asked = make_study({**TEXT, "ecosystem": ecosystem(mixing, reader={}, web={"frozen": True})}, "s.yaml")
    rows = {(r.row["lineage"], r.row["generation"]): r.row for r in run(asked, storage)[0]}
    assert rows["web", 0]["stage"] == rows["web", 1]["stage"]
    assert rows["web", 0]["synthetic_stage"] != rows["web", 1]["synthetic_stage"]
    assert rows["web", 1]["synthetic_size"] == 0
    assert rows["reader", 1]["synthetic_size"] > 900


BASELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # an ecosystem, and keys of its baseline: where generation 0 of lineage "small" is drawn by the same seed
    "another mixing": ({"small": {}, "large": {}}, {"ecosystem.mixing.own": 1.0}),
    "another lineage's loss": ({"small": {}, "large": {}}, {"ecosystem.lineages.large.loss.kind": "cross_entropy"}),
}


@pytest.mark.parametrize(("lineages", "baseline"), BASELINES.values(), ids=BASELINES)
def test_a_baseline_has_the_generation_0_of_its_own_ecosystem(
    lineages: dict[str, Any], baseline: dict[str, Any], ran: tuple[list[Any], Steps], storage: Path
) -> None:
    """What ecosystems share is found in the store, whatever they differ in; with the numbers that its rows have."""
    asked = make_study({**TEXT, "ecosystem": ecosystem(**lineages), "baseline": baseline}, "s.yaml")
    store = StageStore(storage)
    task, steps = ChainTask.of(asked, asked.chains[0], check_study(asked, store)), Steps(store)
    known = next(r.row for r in ran[0] if (r.row["lineage"], r.row["generation"]) == ("small", 0))
    assert task.baseline_metrics(steps, InProcess(), "small")["perplexity"] == known["perplexity"]
    assert steps.computed == 0


@pytest.mark.parametrize("baseline", [{"ecosystem": {"lineages": {"solo": {}}}}, {"ecosystem": None}])
def test_a_baseline_of_one_model_is_that_of_every_lineage(baseline: dict[str, Any], storage: Path) -> None:
    """It draws as a chain does: by the seed alone."""
    chain = run(make_study(TEXT, "s.yaml"), storage)[0][0].row
    asked = make_study({**TEXT, "ecosystem": ecosystem(small={}, other={}), "baseline": baseline}, "s.yaml")
    store = StageStore(storage)
    task, steps = ChainTask.of(asked, asked.chains[0], check_study(asked, store)), Steps(store)
    for name in ("small", "other"):
        assert task.baseline_metrics(steps, InProcess(), name)["perplexity"] == chain["perplexity"]
    assert steps.computed == 0


def test_a_lineage_that_the_baseline_lacks_has_no_reference(storage: Path) -> None:
    """Where the baseline has several models, none of which has its name."""
    lineages = {"ecosystem": {"lineages": {"c": {}, "d": {}}}}
    asked = make_study({**TEXT, "ecosystem": ecosystem(a={}, b={}), "baseline": lineages}, "s.yaml")
    store = StageStore(storage)
    task = ChainTask.of(asked, asked.chains[0], check_study(asked, store))
    assert task.baseline_metrics(Steps(store, replay=True), InProcess(), "a") == {}


def test_images_of_two_lineages(tmp_path: Path) -> None:
    content = {
        "name": "images",
        "family": {"kind": "vae", "data": {"source": "digits"}},
        "samples_per_generation": 64,
        "generations": 2,
        "ecosystem": ecosystem(a={}, b={"training": {"epochs": 2}}),
        "collapse": {"metric": "wasserstein", "threshold": 2.0, "direction": "above"},
        "early_stopping": False,
    }
    rows = [result.row for result in run(make_study(content, "s.yaml"), tmp_path)[0]]
    assert [row["synthetic_size"] for row in rows] == [0, 0, 64, 64]
    assert rows[0]["lineage_distance"] == pytest.approx(rows[1]["lineage_distance"])
    assert all(row["lineage_distance"] > 0 for row in rows)


def test_measures_of_ngrams() -> None:
    """JS: 0 for one text, ln 2 for texts without a common n-gram, ½ ln(4/3) + … by hand; shares by occurrences."""
    one, other = np.array([1, 1, 2, 3]), np.array([4, 5])
    assert divergence(one, one) == 0
    assert divergence(one, other) == pytest.approx(math.log(2))
    p, q = np.array([0.5, 0.25, 0.25, 0]), np.array([0.5, 0.5, 0, 0])
    m = (p + q) / 2
    by_hand = sum((r[r > 0] * np.log(r[r > 0] / m[r > 0])).sum() for r in (p, q)) / 2
    assert divergence(one, np.array([1, 2])) == pytest.approx(by_hand)
    assert shared(one, np.array([1])) == 0.5
    assert math.isnan(divergence(one, np.array([], dtype=int)))
