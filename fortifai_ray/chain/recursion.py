"""The recursion, one loop for every family: train on synthetic and human data, evaluate, generate, and again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, cast

from fortifai_ray.recipe.curation import of_pool
from fortifai_ray.recipe.family import Collapsed, Family, Metrics, Pooling, S, Synthetic
from fortifai_ray.recipe.pools import Pool, TrainingSet
from fortifai_ray.recipe.recipe import Recipe


@dataclass(frozen=True)
class Generation(Generic[S]):
    """One round of the recursion. The steps that a collapsed generation did not reach are None."""

    number: int
    data: TrainingSet
    model: S | None = None
    scores: S | None = None
    synthetic: Synthetic[S] | None = None
    curated: Synthetic[S] | None = None
    collapse_reason: str | None = None
    judged: S | None = None  # its training set, as a pool

    def ended(self, recipe: Recipe) -> str | None:
        """Why the chain ends with this generation, as far as the recursion knows: ``recorded`` or ``horizon``."""
        if self.collapse_reason is not None:
            return "recorded"
        return "horizon" if self.number == recipe.generations - 1 else None


def recursion(
    recipe: Recipe, family: Family[S], stop: Callable[[list[Metrics]], bool], seeds: Sequence[int] | None = None
) -> Iterator[Generation[S]]:
    """Yield each generation as it completes; with ``seeds``, for a whole cohort at once.

    ``stop`` takes the metrics of each generation so far. Where it returns True, the chain ends with this generation.
    """
    human, regime, synthetic, history = family.human(), recipe.regime, list[Pool](), list[Metrics]()
    model: S | None = None
    first: S | None = None
    for g in range(recipe.generations):
        data, judged = regime.training_set(human, synthetic, g, seeds or (recipe.seed,)), None
        if g and of_pool(recipe.curation.steps):
            data, judged = cast(Pooling[S], family).resample(data, generation=g)
        try:
            model = family.fit(data, recipe.loss, start_from=family.init(model, g), generation=g)
            scores = family.evaluate(model, generation=g)
        except Collapsed as reason:
            yield Generation(g, data, collapse_reason=str(reason), judged=judged)
            return
        first = first or model
        history.append({**model.outputs, **scores.outputs})
        ends = g == recipe.generations - 1 or stop(history)
        size = 0.0 if ends else regime.synthetic_size(human.at(g + 1), g)
        written = family.generate(model, recipe.curation.to_generate(size), generation=g)
        curated = family.curate(written, size, model=model, verifier=first) if size else written
        synthetic.append(curated.pool)
        yield Generation(g, data, model, scores, written, curated, judged=judged)
        if ends:
            return


def first_metrics(recipe: Recipe, family: Family[S]) -> Metrics | None:
    """The metrics of a recipe's generation 0; None where it collapsed at once."""
    data = recipe.regime.training_set(family.human(), [], 0)
    try:
        model = family.fit(data, recipe.loss, start_from=family.init(None, 0), generation=0)
        return {**model.outputs, **family.evaluate(model, generation=0).outputs}
    except Collapsed:
        return None
