"""The recursion, one loop for every family: train on synthetic and human data, evaluate, generate, and again.

A chain has one lineage. Several lineages, an ecosystem, go through each step of a generation together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, cast

from fortifai_ray.recipe.curation import of_pool
from fortifai_ray.recipe.ecosystem import demands, mixed
from fortifai_ray.recipe.family import Collapsed, Family, Metrics, Pooling, S, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet
from fortifai_ray.recipe.recipe import Recipe

Decided = Callable[[list[Metrics]], bool]


@dataclass(frozen=True)
class Generation(Generic[S]):
    """One round of the recursion of one lineage. The steps that a collapsed generation did not reach are None."""

    number: int
    data: TrainingSet
    model: S | None = None
    scores: S | None = None
    synthetic: Synthetic[S] | None = None
    curated: Synthetic[S] | None = None
    collapse_reason: str | None = None
    judged: S | None = None  # its training set, as a pool
    lineage: str | None = None
    compared: S | None = None  # with the other lineages

    def ended(self, recipe: Recipe) -> str | None:
        """Why the chain ends with this generation, as far as the recursion knows: ``recorded`` or ``horizon``."""
        if self.collapse_reason is not None:
            return "recorded"
        return "horizon" if self.number == recipe.generations - 1 else None


@dataclass
class Lineage(Generic[S]):
    """One model of the recursion, and how far it has come.

    Attributes:
        stop: takes the metrics of each generation so far, and says whether it is decided what becomes of this lineage.
        reads: which share of its synthetic data is the last output of which lineage.
        frozen: whether it is trained once, on generation 0's data.
        seeds: of the chains of a cohort; one chain's by default.
    """

    recipe: Recipe
    family: Family[S]
    stop: Decided
    name: str | None = None
    reads: Mapping[str | None, float] = field(default_factory=lambda: {None: 1.0})
    frozen: bool = False
    seeds: Sequence[int] | None = None
    synthetic: list[Pool] = field(default_factory=list)
    history: list[Metrics] = field(default_factory=list)
    first: S | None = None
    now: Generation[S] | None = None
    unread: str | None = None  # a lineage that it reads, and that has written nothing

    @cached_property
    def human(self) -> Human:
        return self.family.human()

    @property
    def lives(self) -> bool:
        return self.now is None or self.now.collapse_reason is None

    def learn(self, g: int) -> None:
        """Train and evaluate; a generation that collapses is the lineage's last."""
        family, at, data = self.family, 0 if self.frozen else g, TrainingSet(())
        judged: S | None = None
        try:
            if self.unread is not None:
                raise Collapsed(f"lineage {self.unread}, which it reads, has written nothing")
            seeds = self.seeds or (self.recipe.seed,)
            data = self.recipe.regime.training_set(self.human, self.synthetic, at, seeds)
            if at and of_pool(self.recipe.curation.steps):
                data, judged = cast(Pooling[S], family).resample(data, generation=g)
            start = family.init(self.now.model if self.now and at else None, at)
            model = family.fit(data, self.recipe.loss, start_from=start, generation=at)
            scores = family.evaluate(model, generation=at)
        except Collapsed as reason:
            self.now = Generation(g, data, collapse_reason=str(reason), judged=judged, lineage=self.name)
            return
        self.first = self.first or model
        self.history.append({**model.outputs, **scores.outputs})
        self.now = Generation(g, data, model, scores, judged=judged, lineage=self.name)

    def needs(self, g: int) -> float:
        """Units of synthetic data for the next generation."""
        return 0.0 if self.frozen else self.recipe.regime.synthetic_size(self.human.at(g + 1), g)

    def write(self, g: int, size: float, *, compared: bool) -> None:
        """Generate and curate ``size`` units, and at least as many as it takes to be ``compared``."""
        assert self.now is not None
        assert self.now.model is not None
        assert self.first is not None
        model = self.now.model
        least = self.family.compared if compared else 0.0
        written = self.family.generate(model, max(self.recipe.curation.to_generate(size), least), generation=g)
        curated = written
        if size:
            curated = self.family.curate(written, size, model=model, verifier=self.first, generation=g)
        self.now = replace(self.now, synthetic=written, curated=curated)

    def compare(self, others: Sequence["Lineage[S]"]) -> None:
        """Measure this lineage's model and output against those of the others that live."""
        assert self.now is not None
        known = {str(one.name): one.now for one in others if one is not self and one.now}
        theirs = {
            name: (now.model, now.synthetic) for name, now in sorted(known.items()) if now.model and now.synthetic
        }
        if theirs and self.now.model and self.now.synthetic:
            self.now = replace(self.now, compared=self.family.compare(self.now.model, self.now.synthetic, theirs))


def recursion(
    recipe: Recipe, family: Family[S], stop: Decided, seeds: Sequence[int] | None = None
) -> Iterator[Generation[S]]:
    """Yield each generation of a single chain as it completes; with ``seeds``, for a whole cohort at once.

    ``stop`` takes the metrics of each generation so far. Where it returns True, the chain ends with this generation.
    """
    return together([Lineage(recipe, family, stop, seeds=seeds)])


def together(lineages: Sequence[Lineage[S]]) -> Iterator[Generation[S]]:
    """Yield each generation of each lineage as all have completed it.

    A lineage that collapses ends; the others read its last output again. The chain ends where every lineage has
    collapsed or is decided.
    """
    recipe, pools = lineages[0].recipe, dict[str | None, Pool]()
    shares = {one.name: one.reads for one in lineages}
    for g in range(recipe.generations):
        alive = [one for one in lineages if one.lives]
        for one in alive:
            one.learn(g)
        writing = [one for one in alive if one.lives]
        ends = g == recipe.generations - 1 or all([one.stop(one.history) for one in writing])
        sizes = {} if ends else {one.name: size for one in writing if (size := one.needs(g))}
        asked = demands(shares, sizes)
        for one in _in_turns(writing, g):
            one.write(g, asked.get(one.name, 0.0), compared=len(lineages) > 1)
            assert one.now is not None
            assert one.now.curated is not None
            pools[one.name] = one.now.curated.pool
        for one in writing:
            one.compare(writing)
            one.unread = next((str(name) for name in one.reads if name not in pools and one.name in sizes), None)
            if not ends and one.unread is None:
                one.synthetic.append(mixed(one.name, shares, sizes, pools))
        yield from (one.now for one in alive if one.now is not None)
        if ends:
            return


def _in_turns(lineages: Sequence[Lineage[S]], g: int) -> list[Lineage[S]]:
    """Lineages of one model side by side, and in each generation from the other end: an engine that holds one
    architecture goes to another as seldom as can be. No number depends on it."""
    return sorted(lineages, key=lambda one: repr(one.recipe.family), reverse=g % 2 == 1)


def first_metrics(recipe: Recipe, family: Family[S]) -> Metrics | None:
    """The metrics of a recipe's generation 0; None where it collapsed at once."""
    data = recipe.regime.training_set(family.human(), [], 0)
    try:
        model = family.fit(data, recipe.loss, start_from=family.init(None, 0), generation=0)
        return {**model.outputs, **family.evaluate(model, generation=0).outputs}
    except Collapsed:
        return None
