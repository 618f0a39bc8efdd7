"""Chains whose training data people choose: the best of K, or a choice at a temperature (Ferbach et al. 2024).

In the limit of many samples, the next generation's law is p_{t+1} = p_t·H_t, where H_t(x) is K times the probability
that x is chosen among itself and K − 1 more draws of p_t (their lemma 2.1): Bradley and Terry's for K = 2. For K → ∞
it tends to e^{r/T}/E_{p_t} e^{r/T} (their lemma 2.2's limit, with T = 1). So the expected reward never falls.
Generation 0 is fitted to human data, generation g to what was chosen g times.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.discrete import Probabilities, true_probabilities
from fortifai_ray.theory.registry import Recipe, closed_form

_Law = npt.NDArray[np.float64]
_ENOUGH = 64  # K from which a choice counts as one of many: its law is off by a share of about Var(e^r)/(K (E e^r)²)


def _of_truth(recipe: Recipe) -> bool:
    """Whether the reward is the log-likelihood under the truth, and the law of the choice is known."""
    known = not recipe.get("curation.temperature") or recipe.get("curation.of", 2) <= 2
    return recipe.get("curation.reward") == "truth" and known


def _of_another_gaussian(recipe: Recipe) -> bool:
    """Whether the reward is the log-likelihood under another Gaussian, and the choice is among many."""
    other = any(recipe.get(f"curation.reward.family.{key}") is not None for key in ("mean", "std"))
    return other and bool(recipe.get("curation.temperature")) and recipe.get("curation.of", 2) >= _ENOUGH


def _key(key: str, default: float) -> Callable[[Recipe], float]:
    def read(recipe: Recipe) -> float:
        value = recipe.get(key)
        return default if value is None else float(value)

    return read


def _preferred(key: str, default: float) -> Callable[[Recipe], float]:
    """A key of the Gaussian that the reward is the log-likelihood under: its own, else the chain's."""

    def read(recipe: Recipe) -> float:
        return _key(f"curation.reward.family.{key}", _key(f"family.{key}", default)(recipe))(recipe)

    return read


_TEMPERATURE = _key("curation.temperature", 0.0)


_AMONG_OUTCOMES: dict[str, Any] = {
    "family": "discrete",
    "regime": "replace",
    "curation": "choice",
    "when": _of_truth,
    "limit": "n → ∞",
    "of": _key("curation.of", 2),
    "temperature": _TEMPERATURE,
}
_OF_GAUSSIANS: dict[str, Any] = {
    "family": "gaussian",
    "regime": "replace",
    "curation": "choice",
    "when": _of_another_gaussian,
    "limit": "n and K → ∞",
    "temperature": _TEMPERATURE,
    "std": _key("family.std", 1.0),
    "preferred_std": _preferred("std", 1.0),
}


@closed_form("heterozygosity", **_AMONG_OUTCOMES)
def discrete_choice_heterozygosity(
    generation: int,
    outcomes: int,
    of: float,
    temperature: float = 0.0,
    probabilities: Probabilities = "uniform",
    exponent: float = 1.0,
) -> float:
    """1 − Σ p_g² where what is likelier under the truth is preferred: Ferbach et al. 2024's lemma 2.1, applied g times.

    For T = 0 and any K, or for K = 2 and any T; ValueError for the others.
    """
    return 1 - float((_chosen(generation, outcomes, of, temperature, probabilities, exponent) ** 2).sum())


@closed_form("curation_reward", **_AMONG_OUTCOMES)
def discrete_choice_reward(
    generation: int,
    outcomes: int,
    of: float,
    temperature: float = 0.0,
    probabilities: Probabilities = "uniform",
    exponent: float = 1.0,
) -> float:
    """E_{p_g} ln p*, the expected reward of what generation g writes, in the same setting: it grows with g (Ferbach et
    al. 2024, lemma 2.2)."""
    truth = true_probabilities(probabilities, outcomes, exponent)
    law = _chosen(generation, outcomes, of, temperature, probabilities, exponent)
    return float((law[truth > 0] * np.log(truth[truth > 0])).sum())


def _chosen(
    generation: int, outcomes: int, of: float, temperature: float, probabilities: Probabilities, exponent: float
) -> _Law:
    """(outcomes,) p_g, from the truth on."""
    if generation < 0 or of < 1 or of != int(of) or temperature < 0:
        raise ValueError(f"generation ≥ 0, a whole of ≥ 1, temperature ≥ 0: not {generation}, {of}, {temperature}")
    if temperature and of > 2:
        raise ValueError(f"a choice among more than two at a temperature has no closed form here (of {of:g})")
    truth = true_probabilities(probabilities, outcomes, exponent)
    law = truth[truth > 0]
    rewards = np.log(law)
    for _ in range(generation):
        law = _best(law, rewards, int(of)) if not temperature or of == 1 else _of_two(law, rewards / temperature)
        law /= law.sum()  # rounding would grow
    whole = np.zeros(outcomes)
    whole[truth > 0] = law
    return whole


def _best(law: _Law, rewards: _Law, of: int) -> _Law:
    """The law of the best of K draws: F(r)^K − F(r−)^K for the outcomes of one reward, in proportion among them."""
    levels, level = np.unique(rewards.round(12), return_inverse=True)
    mass = np.bincount(level, law, minlength=len(levels))
    below = np.concatenate([[0.0], np.cumsum(mass)])
    chosen = np.diff(below**of)
    return law * np.divide(chosen, mass, out=np.zeros_like(mass), where=mass > 0)[level]


def _of_two(law: _Law, rewards: _Law) -> _Law:
    """The law of a choice between two draws: 2 p(x) Σ_y p(y) σ(r(x) − r(y))."""
    wins = 1 / (1 + np.exp(rewards[None] - rewards[:, None]))
    return 2 * law * (wins @ law)


def _precisions(generation: int, temperature: float, std: float, preferred_std: float) -> tuple[float, float]:
    """Of the truth, and of what g choices add to it."""
    if generation < 0 or temperature <= 0 or std <= 0 or preferred_std <= 0:
        raise ValueError(
            "generation is 0 or more, temperature, std and preferred_std are above 0: not "
            f"{generation}, {temperature}, {std}, {preferred_std}"
        )
    return 1 / std**2, generation / (temperature * preferred_std**2)


@closed_form("trace_ratio", **_OF_GAUSSIANS)
def gaussian_choice_variance(generation: int, temperature: float, preferred_std: float, std: float = 1.0) -> float:
    """σ_g²/σ² = 1/(1 + g·σ²/(T·v)), where r = ln N(x; m, v) is preferred: p_g ∝ p_0·e^{g·r/T} adds up precisions.

    Ferbach et al. 2024, the limit K → ∞ of lemma 2.1; derived for Gaussians.
    """
    own, added = _precisions(generation, temperature, std, preferred_std)
    return own / (own + added)


@closed_form("mean_error", **_OF_GAUSSIANS, mean=_key("family.mean", 0.0), preferred_mean=_preferred("mean", 0.0))
def gaussian_choice_mean_error(
    generation: int,
    temperature: float,
    preferred_mean: float,
    preferred_std: float,
    mean: float = 0.0,
    std: float = 1.0,
) -> float:
    """(μ_g − μ)²/σ² in the same setting: μ_g is the mean of μ and m, weighed by the precisions, and tends to m."""
    own, added = _precisions(generation, temperature, std, preferred_std)
    return float((added / (own + added) * (preferred_mean - mean) / std) ** 2)
