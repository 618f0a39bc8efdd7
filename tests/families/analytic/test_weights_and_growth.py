"""Human data weighed in the loss, and training sets that grow: counts, closed forms, an independent loop, mistakes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray import theory
from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic import Discrete, Gaussian
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.weighting import fit_with_loss, likelihood_rank, sample_weights
from fortifai_ray.losses import CrossEntropy, Focal, TruncatedCrossEntropy
from fortifai_ray.recipe.regimes import (
    Accumulate,
    AccumulateSubsample,
    Human,
    Incremental,
    Mixed,
    Pool,
    Regime,
    Replace,
    Weights,
)
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.theory.growth import sample_sizes
from fortifai_ray.theory.registry import closed_forms_of

from .loops import assert_mean, run

CHAINS = range(2_000)
PYDOC = {"source": "pydoc"}
HALF = {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}


def study(**changes: Any) -> Study:
    content = {
        "name": "weighed",
        "family": {"kind": "gaussian"},
        "samples_per_generation": 20,
        "generations": 4,
        "vary": {"seed": [0, 1]},
        "collapse": {"metric": "kl_divergence", "threshold": 0.5, "direction": "above"},
        **changes,
    }
    return make_study({key: value for key, value in content.items() if value is not None}, "weighed.yaml")


@pytest.mark.parametrize(
    ("regime", "generation"),
    [
        (Mixed(synthetic_ratio=0.8, weights=Weights(human=0.6)), 1),
        (Accumulate(weights=Weights(human=0.6)), 3),
        (AccumulateSubsample(weights=Weights(human=0.6)), 3),
        (Incremental(weights=Weights(human=0.6)), 2),
    ],
)
def test_the_human_part_has_its_share_of_the_loss(regime: Regime, generation: int) -> None:
    """Whatever the two parts' sizes; weights are 1 in the mean, and generation 0 has none."""
    human = Human(Pool("human", np.ones(100), synthetic=False), np.arange(100), 20)
    pools = [Pool(f"s{g}", np.ones(100), synthetic=True) for g in range(generation)]
    data = regime.training_set(human, pools, generation)
    weights = data.item_weights()
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    of_human = np.concatenate([np.full(len(draw.items), not draw.pool.synthetic) for draw in data.draws])
    assert weights[of_human].sum() / weights.sum() == pytest.approx(0.6)
    assert data.describe()[-1] == {"human_weight": 0.6}
    assert regime.training_set(human, [], 0).item_weights() is None
    plain = regime.model_copy(update={"weights": None}).training_set(human, pools, generation)
    assert plain.describe() == data.describe()[:-1]


def test_a_set_of_one_part_is_not_weighed() -> None:
    """A share of 0 or 1 of synthetic data in a grid or a search: nothing to weigh, and the same stage as without."""
    human, pool = Human(Pool("h", np.ones(9), synthetic=False), np.arange(9), 9), Pool("s", np.ones(9), synthetic=True)
    for ratio in (0.0, 1.0):
        data = Mixed(synthetic_ratio=ratio, weights=Weights(human=0.3)).training_set(human, [pool], 1)
        assert data.item_weights() is None
        assert data.describe() == Mixed(synthetic_ratio=ratio).training_set(human, [pool], 1).describe()


@pytest.mark.parametrize("human", ["kept", "fresh"])
def test_weighed_gaussians_meet_their_closed_form(human: str) -> None:
    """The mean's error under weights far from those by size, which the same chains do not meet."""
    n, ratio, w, family = 20, 0.6, 0.8, Gaussian(dim=8)
    scores = run(family, n, CHAINS, 6, Mixed(synthetic_ratio=ratio, human=human, weights=Weights(human=w)))
    for g in (1, 5):
        expected = theory.gaussian_weights_mean_error(n, g, ratio, w, human)
        wrong = theory.gaussian_mixed_mean_error(n, g, ratio, human)
        assert_mean(scores["mean_error"][g], expected, expected - wrong)
        assert_mean(scores["trace_ratio"][g], 1 - expected, expected)


def test_the_golden_weight_is_the_best() -> None:
    """The minimum of the exact error over a grid of weights, and the fixed point of the limit, for several k."""
    for human, synthetic in ((5_000, 5_000), (2_000, 8_000), (8_000, 2_000)):
        k, n = human / synthetic, human + synthetic
        weights = np.linspace(0.05, 0.95, 181)
        errors = [theory.gaussian_weights_mean_error(n, 200, synthetic / n, w, "fresh") for w in weights]
        best = theory.golden_weight(k)
        assert abs(weights[int(np.argmin(errors))] - best) <= 0.005 + 2 / n
        assert human * min(errors) == pytest.approx(theory.weights_limit_error(k, best), rel=1e-3)
        assert theory.weights_limit_error(k, best) == pytest.approx(best)
        assert theory.weights_limit_error(k, 1.0) == 1.0
    assert theory.golden_weight(1.0) == pytest.approx(2 / (1 + math.sqrt(5)))


def test_a_losses_weights_multiply_the_regimes() -> None:
    """Two fits by hand: ranks under the weighed fit, then both weights."""
    data = Discrete(outcomes=4, probabilities="zipf").human(30, Streams((0, 1), 0))
    given = np.tile(np.repeat([1.5, 0.5], 15), (2, 1))
    for loss in (TruncatedCrossEntropy(gamma=0.6), Focal(gamma=2.0)):
        family = Discrete(outcomes=4)
        first = family.fit(data, given)
        of_loss = sample_weights(loss, likelihood_rank(family.log_likelihood(first, data)))
        model, kept = fit_with_loss(family, data, loss, 0, given)
        np.testing.assert_array_equal(model["probabilities"], family.fit(data, of_loss * given)["probabilities"])
        np.testing.assert_array_equal(kept, (of_loss != 0).mean(-1))
    plain, kept = fit_with_loss(Discrete(outcomes=4), data, CrossEntropy(), 0, given)
    by_hand = [np.bincount(own[:, 0].astype(int), w, 4) / w.sum() for own, w in zip(data, given, strict=True)]
    np.testing.assert_allclose(plain["probabilities"], by_hand)
    assert kept.tolist() == [1.0, 1.0]


def test_a_weighed_cohort_is_a_plain_loop(tmp_path: Path) -> None:
    """The rows of a study, against one chain computed here with np.average from the same streams."""
    asked = study(regime={**HALF, "weights": {"human": 0.7}})
    [task] = cohorts(asked.chains)
    table = cohort_rows(task, run_cohort(task, Steps(StageStore(tmp_path)))).filter(seed=1)
    family = Gaussian()
    human = family.human(20 + 3 * 10, Streams((1,), -1))[0, :, 0]
    samples, weights = human[:20], np.ones(20)
    for g in range(4):
        mean = np.average(samples, weights=weights)
        variance = np.average((samples - mean) ** 2, weights=weights)
        assert table["mean_error"][g] == pytest.approx(mean**2, rel=1e-9)
        assert table["trace_ratio"][g] == pytest.approx(variance, rel=1e-9)
        written = family.generate({"mean": np.array([[mean]]), "covariance": np.array([[[variance]]])}, 10,
                                  Streams((1,), g))[0, :, 0]  # fmt: skip
        samples = np.concatenate([human[20 + 10 * g : 30 + 10 * g], written])
        weights = np.repeat([0.7, 0.3], 10)


def test_without_weights_no_recipe_changes() -> None:
    """A null is no key of the recipe: every chain's id and stage stay."""
    plain, null = (study(regime=regime).chains[0].recipe for regime in (HALF, {**HALF, "weights": None}))
    assert plain.chain_id == null.chain_id
    assert "regime.weights" not in " ".join(plain.flat())


@pytest.mark.parametrize(
    ("law", "sizes"),
    [
        ({"kind": "linear", "increment": 2.5}, [10, 12, 15, 18]),
        ({"kind": "linear", "increment": 0}, [10, 10, 10, 10]),
        ({"kind": "power", "exponent": 2.0}, [10, 40, 90, 160]),
        ({"kind": "power", "exponent": 0.5}, [10, 14, 17, 20]),
        ({"kind": "geometric", "ratio": 1.5}, [10, 15, 22, 34]),
    ],
)
def test_sizes_follow_their_law(tmp_path: Path, law: dict[str, Any], sizes: list[int]) -> None:
    """The tables' sizes under every regime that follows them: half to even, as Python rounds."""
    regimes: list[dict[str, Any]] = [
        {"kind": "replace"},
        {"kind": "accumulate"},
        {"kind": "accumulate_subsample"},
        HALF,
        {**HALF, "human": "kept"},
    ]
    asked = study(samples_per_generation={"initial": 10, "growth": law}, vary={"regime": regimes, "seed": [0, 1]})
    for task in cohorts(asked.chains):
        table = cohort_rows(task, run_cohort(task, Steps(StageStore(tmp_path)))).filter(seed=0)
        kind, human, synthetic = (
            task.recipe.regime.kind,
            table["human_size"].to_list(),
            table["synthetic_size"].to_list(),
        )
        total = [h + s for h, s in zip(human, synthetic, strict=True)]
        assert total == (np.cumsum(sizes).tolist() if kind == "accumulate" else sizes), kind
        assert (kind == "mixed") == all(abs(s - total[g + 1] / 2) <= 0.5 for g, s in enumerate(synthetic[1:]))
        assert task.recipe.grows == (kind.startswith("accumulate") or sizes[-1] > sizes[0])


def test_growing_chains_meet_their_closed_forms() -> None:
    """Under replace and accumulate; the fixed size's prediction is far off."""
    law = {"growth": "power", "exponent": 1.5}
    sizes = sample_sizes(8, generations=6, **law)  # type: ignore[arg-type]
    for regime, form, constant in (
        (Replace(), theory.gaussian_growth_mean_variance, theory.gaussian_replace_mean_variance),
        (Accumulate(), theory.gaussian_growth_accumulate_mean_variance, theory.gaussian_accumulate_mean_variance),
    ):
        scores = run(Gaussian(dim=3), sizes[0], CHAINS, 6, regime, budgets=sizes)
        expected = form(5, 8, **law)
        assert_mean(scores["trace_ratio"][5], expected, 1 - expected)
        assert abs(scores["trace_ratio"][5].mean() - expected) < abs(constant(8, 5) - expected) / 4


def test_superlinear_growth_keeps_what_linear_growth_loses() -> None:
    """∏ (1 − 1/n_g) against its known limits: sin(π/√n)/(π/√n) for squares, 0 as g^(−1/n) for lines."""
    x = 1 / math.sqrt(10)
    squares = theory.gaussian_growth_mean_variance(20_000, 10, "power", exponent=2.0)
    assert squares == pytest.approx(math.sin(math.pi * x) / (math.pi * x), rel=1e-4)
    early, late = (theory.gaussian_growth_mean_variance(g - 1, 10, "linear", increment=10) for g in (1_000, 100_000))
    assert late / early == pytest.approx(100 ** (-1 / 10), rel=1e-3)


def test_no_other_theory_is_offered() -> None:
    """Closed forms of plain sets do not hold under weights or growth, and the other way round."""

    def names(**changes: Any) -> set[str]:
        return {form.name for form in closed_forms_of(study(**changes).cells[0].recipe.flat())}

    growing = {"initial": 10, "growth": {"kind": "power", "exponent": 2.0}}
    assert names(regime={**HALF, "weights": {"human": 0.6}}) == {
        "gaussian_weights_mean_error",
        "gaussian_weights_mean_variance",
    }
    assert names(regime=HALF) == {"gaussian_mixed_mean_error", "gaussian_mixed_mean_variance"}
    assert all("growth" in name for name in names(samples_per_generation=growing))
    assert len(names(samples_per_generation=growing)) == 2
    assert names(samples_per_generation=growing, regime=HALF) == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regime": {**HALF, "weights": {"human": 1.2}}}, r"regime\S*weights\.human.*1.2"),
        ({"regime": {**HALF, "weights": {"human": -0.1}}}, r"weights\.human"),
        ({"regime": {**HALF, "weights": {"synthetic": 0.5}}}, r"weights\.synthetic|unknown key|not permitted"),
        ({"regime": {**HALF, "weights": 0.6}}, "weights"),
        ({"regime": {"kind": "replace", "weights": {"human": 0.6}}}, "one of them alone; leave weights out"),
        ({"regime": {"kind": "incremental", "fractions": 1, "weights": {"human": 0.6}}}, "one of them alone"),
        ({"regime": {"kind": "fixed_human", "human": 0, "synthetic": 9, "weights": {"human": 0.6}}}, "one of them"),
        ({"samples_per_generation": {"initial": 1, "growth": {"kind": "linear", "increment": 1}}}, "initial"),
        ({"samples_per_generation": {"initial": 10}}, "growth"),
        ({"samples_per_generation": {"initial": 10, "growth": {"kind": "linear"}}}, "increment"),
        ({"samples_per_generation": {"initial": 10, "growth": {"kind": "linear", "increment": -3}}}, "increment"),
        ({"samples_per_generation": {"initial": 10, "growth": {"kind": "geometrical", "ratio": 2}}}, "geometric"),
        ({"samples_per_generation": {"initial": 10, "growth": {"kind": "geometric", "ratio": 0.5}}}, "ratio"),
        (
            {"samples_per_generation": {"initial": 10, "growth": {"kind": "power", "exponent": 20}}},
            "at most 10,000,000",
        ),
        ({"samples_per_generation": {"initial": 10, "growth": {"kind": "power", "exponent": 999}}}, "at most 10,000,0"),
        (
            {
                "samples_per_generation": {"initial": 10, "growth": {"kind": "power", "exponent": 2}},
                "regime": {"kind": "incremental"},
            },
            "incremental sets the size of its training sets itself",
        ),
        (
            {
                "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
                "corpus": PYDOC,
                "samples_per_generation": None,
                "regime": {**HALF, "weights": {"human": 0.6}},
                "curation": {"kind": "detector"},
            },
            "a detector's pool has no labels",
        ),
        (
            {
                "family": {"kind": "vae", "latent": 2},
                "regime": {**HALF, "weights": {"human": 0.6}},
                "samples_per_generation": 100,
            },
            "language models and analytic families",
        ),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        study(**changes)
    assert "\n" not in str(error.value)
