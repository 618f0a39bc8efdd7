"""A family as the recursion sees it: the steps of a generation, and what each passes to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fortifai_ray.losses import Loss
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet


class Collapsed(Exception):
    """A generation that cannot be scored or continued: its reason is recorded, and the chain ends there."""


class Step(Protocol):
    """A completed step: a :class:`fortifai_ray.storage.store.Stage`, or, for a cohort of chains, arrays in memory."""

    @property
    def hash(self) -> str: ...

    @property
    def outputs(self) -> Mapping[str, Any]: ...

    @property
    def reused(self) -> bool: ...


S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Synthetic(Generic[S]):
    """Synthetic data: the step that made it, the pool that regimes draw from, and the steps that measured it."""

    stage: S
    pool: Pool
    measures: tuple[S, ...] = ()


Others = Mapping[str, tuple[S, Synthetic[S]]]
"""The model and the output of each other lineage, by its name."""


class Family(Protocol[S]):
    """A kind of model. Each method is one step of a generation, taken from the stage store if stored."""

    def human(self) -> Human:
        """The human training data, in the order of use."""

    def init(self, previous: S | None, generation: int) -> S:
        """The model that a generation's training starts from: scratch, base or the previous one."""

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: S, generation: int) -> S:
        """Train; raises :class:`Collapsed` where training diverged."""

    def evaluate(self, model: S, *, generation: int) -> S:
        """Score on held-out human data; raises :class:`Collapsed` where a score is not finite."""

    def generate(self, model: S, size: float, *, generation: int) -> Synthetic[S]:
        """``size`` units of synthetic data; for ``size`` 0 only examples for people to look at."""

    def curate(self, written: Synthetic[S], size: float, *, model: S, verifier: S, generation: int) -> Synthetic[S]:
        """``size`` units of ``written``, selected by the recipe's curation; ``verifier`` is generation 0's model."""

    @property
    def compared(self) -> float:
        """Units that each lineage writes at least, to be compared with the others."""

    def compare(self, model: S, written: Synthetic[S], others: Others[S]) -> S | None:
        """Measure one lineage's model and output against the others', by their names; None where nothing is."""


class Pooling(Family[S], Protocol[S]):
    """A family whose training sets may be judged as pools of unlabelled data."""

    def resample(self, data: TrainingSet, *, generation: int) -> tuple[TrainingSet, S]:
        """What is drawn from a training set by a step of curation that judges it, and that step."""


Metrics = Mapping[str, Any]
