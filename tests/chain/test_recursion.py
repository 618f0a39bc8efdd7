"""The recursion, run for a family small enough to know by heart: a Gaussian fitted by maximum likelihood."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fortifai_ray.chain.recursion import first_metrics, recursion
from fortifai_ray.losses import Loss
from fortifai_ray.recipe.family import Collapsed, Synthetic
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.recipe.regimes import Accumulate, Human, Pool, Regime, Replace, TrainingSet
from fortifai_ray.seeds import generator
from fortifai_ray.storage.store import Stage


def recipe(regime: Regime, generations: int) -> Recipe:
    """A recipe for the loop; the family below looks at no more of it than the loop does."""
    return Recipe(family={"kind": "toy"}, regime=regime, generations=generations)


@dataclass
class Gaussian:
    """N samples a generation, fitted by maximum likelihood, with the samples kept by pool."""

    samples: int
    writes: int | None = None  # as many as asked for, or a fixed number
    diverges_at: int | None = None
    data: dict[str, np.ndarray] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def human(self) -> Human:
        self.data["human"] = generator(0, "human").normal(size=self.samples)
        return Human(Pool("human", np.ones(self.samples), synthetic=False), np.arange(self.samples), self.samples)

    def init(self, previous: Stage | None, generation: int) -> Stage:
        return previous or Stage("start", Path(), {})

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Stage, generation: int) -> Stage:
        self.log.append(f"fit {generation} from {start_from.hash}")
        if not data.human_size + data.synthetic_size:
            raise Collapsed("nothing to train on")
        if generation == self.diverges_at:
            raise Collapsed("diverged")
        x = np.concatenate([self.data[draw.pool.stage][draw.items] for draw in data.draws])
        return Stage(f"model-{generation}", Path(), {"mean": x.mean(), "variance": x.var(), "count": len(x)})

    def evaluate(self, model: Stage, *, generation: int) -> Stage:
        self.log.append(f"evaluate {model.hash}")
        return Stage(f"scores-{model.hash}", Path(), {"variance": model.outputs["variance"]})

    def generate(self, model: Stage, size: float, *, generation: int) -> Synthetic:
        self.log.append(f"generate {generation}: {size:g}")
        count = int(size) if self.writes is None else self.writes
        deviation = model.outputs["variance"] ** 0.5
        self.data[f"s{generation}"] = generator(0, "s", generation).normal(model.outputs["mean"], deviation, count)
        return Synthetic(Stage(f"s{generation}", Path(), {}), Pool(f"s{generation}", np.ones(count), synthetic=True))

    def curate(self, written: Synthetic, size: float, *, model: Stage, verifier: Stage, generation: int) -> Synthetic:
        self.log.append(f"curate {written.stage.hash}: {size:g} by {verifier.hash}")
        return written


def test_the_loop_goes_train_evaluate_generate() -> None:
    """Each generation starts from the last, is trained on what that wrote, and the last one need not write."""
    family = Gaussian(20)
    generations = list(recursion(recipe(Replace(), 3), family, lambda history: False))
    assert family.log == [
        "fit 0 from start",
        "evaluate model-0",
        "generate 0: 20",
        "curate s0: 20 by model-0",
        "fit 1 from model-0",
        "evaluate model-1",
        "generate 1: 20",
        "curate s1: 20 by model-0",
        "fit 2 from model-1",
        "evaluate model-2",
        "generate 2: 0",
    ]
    assert [g.data.synthetic_ratio for g in generations] == [0, 1, 1]


def test_accumulate_trains_on_everything_so_far() -> None:
    """n, 2n, 3n samples (Gerstgrasser et al. 2024)."""
    family = Gaussian(20)
    generations = list(recursion(recipe(Accumulate(), 3), family, lambda history: False))
    assert [g.model.outputs["count"] for g in generations if g.model] == [20, 40, 60]


def test_replace_loses_variance_as_the_theory_says() -> None:
    """E σ̂²_g = (1 − 1/n)^(g+1) under replace with maximum likelihood (Shumailov et al. 2024).

    n = 20, g = 4, 400 chains: within four standard errors of the mean over chains.
    """
    finals = []
    for chain in range(400):
        family = Gaussian(20)
        rng = np.random.default_rng(chain)
        family.human = lambda f=family, r=rng: _human(f, r)  # type: ignore[method-assign]
        family.generate = lambda model, size, generation, f=family, r=rng: _write(f, r, model, generation)  # type: ignore
        *_, last = recursion(recipe(Replace(), 5), family, lambda history: False)
        assert last.scores is not None
        finals.append(last.scores.outputs["variance"])
    error = np.std(finals, ddof=1) / np.sqrt(len(finals))
    assert abs(np.mean(finals) - (1 - 1 / 20) ** 5) < 4 * error


def _human(family: Gaussian, rng: np.random.Generator) -> Human:
    family.data["human"] = rng.normal(size=family.samples)
    return Human(Pool("human", np.ones(family.samples), synthetic=False), np.arange(family.samples), family.samples)


def _write(family: Gaussian, rng: np.random.Generator, model: Stage, generation: int) -> Synthetic:
    name = f"s{generation}"
    family.data[name] = rng.normal(model.outputs["mean"], model.outputs["variance"] ** 0.5, family.samples)
    return Synthetic(Stage(name, Path(), {}), Pool(name, np.ones(family.samples), synthetic=True))


def test_a_confirmed_collapse_ends_the_chain() -> None:
    """The generation that confirms it is the last, and is still reported."""
    seen: list[int] = []

    def stop(history: list) -> bool:
        seen.append(len(history))
        return len(history) == 2

    generations = list(recursion(recipe(Replace(), 9), Gaussian(20), stop))
    assert [g.number for g in generations] == [0, 1]
    assert seen == [1, 2]


def test_an_empty_corpus_is_a_collapse_with_a_reason() -> None:
    """A generation that writes nothing leaves the next without data: recorded, and no crash."""
    *_, last = recursion(recipe(Replace(), 5), Gaussian(20, writes=0), lambda history: False)
    assert (last.number, last.collapse_reason, last.model) == (1, "nothing to train on", None)


@pytest.mark.parametrize("generation", [0, 2])
def test_a_diverged_generation_is_a_collapse_with_a_reason(generation: int) -> None:
    """Recorded at its generation, which ends the chain; the model before it is not taken for its own."""
    *_, last = recursion(recipe(Replace(), 5), Gaussian(20, diverges_at=generation), lambda history: False)
    assert (last.number, last.collapse_reason, last.model) == (generation, "diverged", None)


def test_the_first_metrics_are_those_of_generation_0() -> None:
    """What a criterion is relative to; None where generation 0 collapsed at once."""
    first = next(recursion(recipe(Replace(), 2), Gaussian(20), lambda history: False))
    assert first.scores is not None
    metrics = first_metrics(recipe(Replace(), 2), Gaussian(20))
    assert metrics is not None
    assert metrics["variance"] == first.scores.outputs["variance"]
    assert first_metrics(recipe(Replace(), 2), Gaussian(20, diverges_at=0)) is None
