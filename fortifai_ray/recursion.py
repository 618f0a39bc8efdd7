"""The recursion: train on what the last generation wrote, score it, let it write, again. One loop for every family."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fortifai_ray.losses import Loss
from fortifai_ray.recipe import Recipe
from fortifai_ray.regimes import Draw, Pool, TrainingSet
from fortifai_ray.store import Stage


class Collapsed(Exception):
    """A generation that cannot be scored, or followed by another: the reason is recorded, and the chain ends there."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic corpus: its stage, and the pool that regimes draw from."""

    stage: Stage
    pool: Pool


class Family(Protocol):
    """A kind of model. Each method is one step of a generation, taken from the stage store where it is there."""

    def human(self) -> Draw:
        """Generation 0's training data."""

    def init(self, previous: Stage | None, generation: int) -> Stage:
        """The model that a generation's training starts from: scratch, base or the previous one."""

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Stage, generation: int) -> Stage:
        """Train; raises :class:`Collapsed` where training diverged."""

    def evaluate(self, model: Stage) -> Stage:
        """Score on held-out human data; raises :class:`Collapsed` where the model gives no finite score."""

    def generate(self, model: Stage, size: float, *, generation: int) -> Synthetic:
        """``size`` units of synthetic data; for ``size`` 0 only what a person would want to look at."""


@dataclass(frozen=True)
class Generation:
    """One round of the recursion. What a collapsed generation did not get to is None."""

    number: int
    data: TrainingSet
    model: Stage | None = None
    scores: Stage | None = None
    synthetic: Synthetic | None = None
    collapse_reason: str | None = None


Metrics = Mapping[str, Any]


def recursion(recipe: Recipe, family: Family, stop: Callable[[list[Metrics]], bool]) -> Iterator[Generation]:
    """The generations of one chain, each as it is completed.

    ``stop(metrics of each generation so far)`` says that collapse is confirmed: the chain then ends with the
    generation at hand.
    """
    human, synthetic, history = family.human(), list[Pool](), list[Metrics]()
    model: Stage | None = None
    for g in range(recipe.generations):
        data = recipe.regime.training_set(human, synthetic, g)
        try:
            model = family.fit(data, recipe.loss, start_from=family.init(model, g), generation=g)
            scores = family.evaluate(model)
        except Collapsed as reason:
            yield Generation(g, data, collapse_reason=str(reason))
            return
        history.append({**model.outputs, **scores.outputs})
        ends = g == recipe.generations - 1 or stop(history)
        size = 0.0 if ends else recipe.regime.synthetic_size(human.size)
        written = family.generate(model, size, generation=g)
        synthetic.append(written.pool)
        yield Generation(g, data, model, scores, written)
        if ends:
            return


def first_metrics(recipe: Recipe, family: Family) -> Metrics | None:
    """The metrics of a recipe's generation 0; None where it collapsed at once."""
    data = recipe.regime.training_set(family.human(), [], 0)
    try:
        model = family.fit(data, recipe.loss, start_from=family.init(None, 0), generation=0)
        return {**model.outputs, **family.evaluate(model).outputs}
    except Collapsed:
        return None
