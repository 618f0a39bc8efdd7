"""Detectors of array families: what they find against closed forms, and chains that train on what they draw."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.chain.recursion import Generation, recursion
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.cohort import Arrays, CohortFamily
from fortifai_ray.families.analytic.detecting import Detectors, features
from fortifai_ray.recipe.curation import Detector
from fortifai_ray.recipe.pools import Draw, Pool, TrainingSet
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study

CONTENT: dict[str, Any] = {
    "name": "arrays",
    "family": {"kind": "gaussian", "dim": 1},
    "samples_per_generation": 60,
    "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
    "generations": 4,
    "collapse": {"metric": "trace_ratio", "threshold": 0.5, "direction": "below"},
}


def generations(content: dict[str, Any], seeds: tuple[int, ...]) -> list[Generation[Arrays]]:
    recipe: Any = make_study(content, "arrays.yaml").chains[0].recipe
    return list(recursion(recipe, CohortFamily(recipe, seeds), lambda history: False, seeds))


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_two_gaussians_are_told_apart_as_well_as_they_can_be(ratio: float) -> None:
    """N(3, 2²) against N(3, (2·ratio)²): the best classifier's AUROC is (2/π) arctan(1/ratio), since the log-ratio
    rises with the square; within four standard errors (Hanley and McNeil 1982, at most 0.5/√n). Where a third escapes,
    a third of its lead over chance is lost."""
    random, n = np.random.default_rng(0), 2000
    human, written = 3 + 2 * random.normal(size=(2, n, 1)), 3 + 2 * ratio * random.normal(size=(2, n, 1))
    pools = {"human": human, "synthetic-0": written}
    data = TrainingSet(
        (
            Draw(Pool("human", np.ones(n), synthetic=False), np.arange(n)),
            Draw(Pool("synthetic-0", np.ones(n), synthetic=True), np.arange(n)),
        )
    )
    best = 2 / math.pi * math.atan(1 / ratio)
    for escape in (0.0, 1 / 3):
        step = Detector(escape=escape)
        detectors = Detectors.trained(step, human, "human", written, "synthetic-0")
        sets, found = detectors.resample(data, pools, Streams((0, 1), 1))
        expected = best - escape * (best - 0.5)
        assert (abs(found["detector_auroc"] - expected) < 4 * 0.5 / n**0.5).all()
        for own in sets.by_seed:
            assert own.human_size + own.synthetic_size == 2 * n
            assert (own.synthetic_ratio < 0.5) == (ratio < 1.0) or abs(own.synthetic_ratio - 0.5) < 0.05


def test_a_blind_detector_changes_nothing_and_no_chain_depends_on_another() -> None:
    """``bias: 0`` gives the numbers of a chain without a detector, bit for bit; a chain alone has those that it has in
    a cohort; as many samples are trained on in each chain as the pool has."""
    plain = generations(CONTENT, (0, 1, 2))
    blind = generations({**CONTENT, "curation": {"kind": "detector", "bias": 0.0}}, (0, 1, 2))
    seeing = generations({**CONTENT, "curation": {"kind": "detector", "bias": 4.0}}, (0, 1, 2))
    alone = generations({**CONTENT, "curation": {"kind": "detector", "bias": 4.0}}, (2,))
    for number in range(4):
        scores: list[Any] = [one[number].scores for one in (plain, blind, seeing, alone)]
        values = [one.outputs["trace_ratio"] for one in scores]
        assert (values[0] == values[1]).all()
        assert number == 0 or (values[2] != values[0]).all()
        assert values[3][0] == values[2][2]
        sizes = [one.human_size + one.synthetic_size for one in seeing[number].data.of_each(3)]
        assert sizes == [60, 60, 60]
    judged: Any = seeing[1].judged
    assert judged.outputs["detector_auroc"].shape == (3,)
    assert seeing[0].judged is None


def test_a_lineage_that_nobody_reads_has_its_detector(tmp_path: Path) -> None:
    """What it trains on is judged from generation 1 on, as that of the lineage which it reads."""
    ecosystem = {"lineages": {"reader": {}, "writer": {}}, "mixing": [[0.0, 1.0], [0.0, 1.0]]}
    study = make_study({**CONTENT, "curation": {"kind": "detector"}, "ecosystem": ecosystem}, "arrays.yaml")
    (task,) = cohorts(study.chains)
    table = cohort_rows(task, run_cohort(task, Steps(StageStore(tmp_path))))
    for name in ("reader", "writer"):
        own = table.filter(lineage=name)
        assert own["detector_auroc"].is_not_null().to_list() == [False, True, True, True], name


def test_whole_numbers_are_counted() -> None:
    """Outcomes and tokens have no order: of two laws that differ in one outcome, or only in what follows what, a
    classifier of their counts tells the samples apart."""
    random = np.random.default_rng(1)
    alternating = np.stack([random.permutation(2) for _ in range(300)]).repeat(8, axis=0).reshape(300, 16)
    texts = random.integers(0, 2, (300, 16))
    found = features(np.concatenate([alternating, texts]), texts)
    assert found.shape[0] == 600
    assert np.asarray(found.multiply(found).sum(1)).ravel() == pytest.approx(np.ones(600))
    step = Detector()
    detectors = Detectors.trained(step, texts[None], "human", alternating[None], "synthetic-0")
    data = TrainingSet(
        (
            Draw(Pool("human", np.ones(300), synthetic=False), np.arange(300)),
            Draw(Pool("synthetic-0", np.ones(300), synthetic=True), np.arange(300)),
        )
    )
    _, measured = detectors.resample(data, {"human": texts[None], "synthetic-0": alternating[None]}, Streams((0,), 1))
    assert measured["detector_auroc"][0] > 0.9


@pytest.mark.parametrize(
    ("ratio", "told"),
    [(0.0, []), (0.5, ["precision", "recall", "auroc"]), (1.0, ["precision", "recall"])],
)
def test_a_ratio_may_end_a_grid(ratio: float, told: list[str], tmp_path: Path) -> None:
    """At 0 there is nothing to detect, and at 1 nobody to be told from: what cannot be measured is null, and sets keep
    their size."""
    regime = {"kind": "mixed", "synthetic_ratio": ratio}
    study = make_study({**CONTENT, "regime": regime, "curation": {"kind": "detector"}}, "arrays.yaml")
    (task,) = cohorts(study.chains)
    table = cohort_rows(task, run_cohort(task, Steps(StageStore(tmp_path))))
    for name in ("precision", "recall", "auroc"):
        assert table[f"detector_{name}"].is_not_null().to_list() == [False, *[name in told] * 3], name
    assert (table["human_size"] + table["synthetic_size"]).to_list() == [60] * 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"regime": {"kind": "fixed_human", "human": 0, "synthetic": 60}}, r"regime: fixed_human has none; mixed or"),
        ({"regime": {"kind": "fixed_human", "human": 60, "synthetic": 0}}, r"regime: fixed_human has none; mixed or"),
        ({"regime": {"kind": "incremental", "fractions": 1}}, r"regime: incremental has none; mixed or"),
        ({"regime": {"kind": "replace"}}, r"curation.kind: .*regime: replace has none"),
        ({"curation": {"kind": "watermark"}}, r"watermark is for texts, and this family writes samples"),
        ({"curation": [{"kind": "detector"}, {"kind": "verifier"}]}, r"put it last"),
    ],
)
def test_pools_that_cannot_be_judged_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_study({**CONTENT, "curation": {"kind": "detector"}, **keys}, "arrays.yaml")
