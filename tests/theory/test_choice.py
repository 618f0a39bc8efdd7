"""Laws of choices among K: against all K-tuples, counted one by one, and against integrals on a grid."""

import itertools

import numpy as np
import pytest

from fortifai_ray import theory

P = [0.4, 0.3, 0.2, 0.05, 0.05]


def by_tuples(law: np.ndarray, of: int, temperature: float) -> np.ndarray:
    """The law of the one chosen of ``of`` draws, by the rewards ln P; the first of those that are alike is the best."""
    chosen, rewards = np.zeros(len(law)), np.log(P)
    for drawn in itertools.product(range(len(law)), repeat=of):
        mass = np.prod(law[list(drawn)])
        if temperature:
            weights = np.exp(rewards[list(drawn)] / temperature)
            np.add.at(chosen, list(drawn), mass * weights / weights.sum())
        else:
            chosen[max(drawn, key=lambda outcome: rewards[outcome])] += mass
    return chosen


@pytest.mark.parametrize(("of", "temperature"), [(1, 0.0), (1, 2.0), (2, 0.0), (2, 1.0), (2, 0.3), (3, 0.0), (4, 0.0)])
def test_against_all_tuples(of: int, temperature: float) -> None:
    """Three generations, with two outcomes that are alike and share their mass."""
    law = np.array(P)
    for generation in range(3):
        given = {"outcomes": 5, "probabilities": P, "of": of, "temperature": temperature}
        assert theory.discrete_choice_heterozygosity(generation, **given) == pytest.approx(1 - (law**2).sum())
        assert theory.discrete_choice_reward(generation, **given) == pytest.approx((law * np.log(P)).sum())
        law = by_tuples(law, of, temperature)


def test_the_expected_reward_never_falls() -> None:
    """Ferbach et al. 2024, lemma 2.2; and it tends to the highest reward."""
    for of, temperature in ((2, 1.0), (2, 0.0), (7, 0.0)):
        rewards = [theory.discrete_choice_reward(g, 20, of, temperature, "zipf") for g in range(60)]
        assert all(later >= sooner - 1e-12 for sooner, later in itertools.pairwise(rewards))
        assert rewards[-1] == pytest.approx(np.log(1 / np.sum(1 / np.arange(1, 21))), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gaussians_on_a_grid(temperature: float) -> None:
    """p·e^(r/T), normalised on a grid, over and over again."""
    x = np.linspace(-20, 20, 40_001)
    law = np.exp(-((x - 0.5) ** 2) / (2 * 4.0))
    for generation in range(4):
        law /= law.sum()
        mean = (law * x).sum()
        variance = (law * (x - mean) ** 2).sum()
        own = {"std": 2.0, "preferred_std": 1.5, "temperature": temperature}
        assert theory.gaussian_choice_variance(generation, **own) == pytest.approx(variance / 4.0, rel=1e-6)
        error = theory.gaussian_choice_mean_error(generation, mean=0.5, preferred_mean=-1.0, **own)
        assert error == pytest.approx((mean - 0.5) ** 2 / 4.0, abs=1e-9)
        law *= np.exp(-((x + 1.0) ** 2) / (2 * 1.5**2) / temperature)


@pytest.mark.parametrize(
    "wrong", [{"of": 3, "temperature": 1.0}, {"of": 0}, {"of": 2.5}, {"of": 2, "temperature": -1.0}]
)
def test_outside_its_domain(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="of"):
        theory.discrete_choice_reward(1, 5, **wrong)
