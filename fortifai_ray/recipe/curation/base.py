"""What the steps of a curation share: what they see of the written items, and how what they keep is measured."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import CURATION, Metric
from fortifai_ray.validation import Section, hint, shown

Content = Literal["samples", "texts", "images"]
"""What a family's items are, for a step: samples of an analytic family are arrays of numbers."""

Truth = Literal["plausible", "unmarked"]
"""What ought to pass a step: what is plausible under a family's truth (:data:`PLAUSIBLE`), or bears no watermark."""

KEPT, PRECISION, RECALL, REWARD = "curated_kept", "curation_precision", "curation_recall", "curation_reward"
REALLY, DETECTED = "detection_precision", "detection_recall"  # of what is removed
FOUND_RIGHT, FOUND, AUROC = "detector_precision", "detector_recall", "detector_auroc"  # in a pool
_OF_EACH, _OWN = (KEPT, PRECISION, RECALL), (REWARD, REALLY, DETECTED)
_SOURCE, _DETECTION = "fortifai_ray.recipe.curation", "fortifai_ray.recipe.curation.detection"
METRICS = (
    Metric(
        KEPT, "share", "items that every step of the curation let pass, over those written", _SOURCE, group=CURATION
    ),
    Metric(
        PRECISION,
        "share",
        "of the items that every step of the curation let pass, those that are true, where all steps have one truth",
        _SOURCE,
        "below",
        group=CURATION,
    ),
    Metric(RECALL, "share", "of the true items written, those that every step let pass", _SOURCE, group=CURATION),
    Metric(
        REWARD,
        "reward",
        "mean reward of the items that a choice chose among: under replace, the model's expected reward",
        "Ferbach et al. 2024, lemma 2.2",
        group=CURATION,
    ),
    Metric(REALLY, "share", "of the rows removed, those that bear the watermark", _DETECTION, "below", group=CURATION),
    Metric(DETECTED, "share", "of the rows that bear it, those removed", _DETECTION, "below", group=CURATION),
    Metric(
        FOUND_RIGHT,
        "share",
        "of the pool's items that are synthetic by the classifier, those that are",
        _DETECTION,
        "below",
        group=CURATION,
    ),
    Metric(
        FOUND,
        "share",
        "of the pool's synthetic items, those that are so by the classifier",
        _DETECTION,
        "below",
        group=CURATION,
    ),
    Metric(
        AUROC,
        "probability",
        "that the classifier gives a human item of the pool a higher probability of being human than a synthetic one",
        "Drayson et al. 2025",
        "below",
        group=CURATION,
    ),
)

PLAUSIBLE = 0.05
"""An item is *plausible* where its likelihood under the truth is at least the quantile at this level of the human
data's: of human items, 5% are not."""

NAMED = ("generation_0", "own", "truth")


class Judge(Section):
    """A model that scores items and is none of the chain's: one of these keys."""

    model: Mapping[str, Any] | None = Field(None, description="another causal LM: {path: folder} or {hub: name}")
    family: Mapping[str, Any] | None = Field(
        None,
        description="keys in which an analytic family differs from the chain's, e.g. {signal: 1.2}: the truth of that "
        "family, as of a verifier that errs systematically",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.model is None) == (self.family is None):
            raise ValueError("give one of model (of a language model) and family (of an analytic one)")
        return self


By = Literal["generation_0", "own", "truth"] | Judge


def checked_judge(value: Any) -> Any:
    """The judge that a study file names; ValueError for one that does not exist."""
    if isinstance(value, Mapping):
        return Judge.model_validate(value)
    if isinstance(value, str) and value not in NAMED:
        raise ValueError(
            f"there is no judge {shown(value)}; another is {{model: …}} or {{family: …}}{hint(value, NAMED)}"
        )
    return value


class Items(Protocol):
    """What a family shows a step of the items that B chains wrote, n each; B is 1 but for a cohort of arrays."""

    @property
    def notes(self) -> dict[str, Any]:
        """What a step computed of these items and needs again."""

    @property
    def places(self) -> np.ndarray:
        """(B, n) The number of each item among those that were written, ascending: steps before may have left gaps."""

    def contents(self) -> Sequence[Any]:
        """Each chain's items: an array (n, …) of samples or images, or n texts."""

    def scores(self, by: By) -> np.ndarray:
        """(B, n) Log-likelihood of each item in nats (the mean per generated token of a text)."""

    def typical(self, by: By) -> np.ndarray:
        """(B,) The median score of human training data."""

    def plausible(self) -> np.ndarray | None:
        """(B, n) Whether each item is plausible under the truth (:data:`PLAUSIBLE`); None where no truth is known."""

    def generators(self) -> Iterator[np.random.Generator]:
        """A generator per chain, by its seed, the generation and the step; draw from one before taking the next."""

    def origin(self, chain: int) -> str:
        """Where a chain's items come from, in words."""


@contextmanager
def told_of(items: Items, chain: int) -> Iterator[None]:
    """A UserError within says which chain's items it met, too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} ({items.origin(chain)})") from error.__cause__


Kept = Sequence[np.ndarray] | np.ndarray
"""Of each chain, the indices of the items that a step let pass: ascending, each (k,)."""


class Step(Section):
    """One step: from items that a generation wrote, or that the step before kept, to those that it lets pass."""

    takes: ClassVar[tuple[Content, ...]] = ("samples", "texts", "images")
    judged_by: ClassVar[str] = "by"  # the key that names its judge
    truth_is: ClassVar[Truth | None] = "plausible"  # what ought to pass it
    of_pool: ClassVar[bool] = False  # whether it judges the next training set as a whole, and not what was written
    measures: ClassVar[tuple[str, ...]] = ()  # its own metrics, beside those of every step
    version: ClassVar[int] = 1  # bump when a cohort's samples pass otherwise

    kind: str

    @property
    def share(self) -> float:
        """The share of the items that it keeps, as planned: so many more are generated, and no more are trained on."""
        return 1.0

    @property
    def steps(self) -> "tuple[Step, ...]":
        """The steps of a curation that is one step: itself."""
        return (self,)

    @property
    def candidates(self) -> int:
        """How many items are written for each prompt, of which it keeps one."""
        return 1

    @property
    def judges(self) -> tuple[By, ...]:
        """The models under which it scores items, as far as they are known beforehand."""
        return ()

    def to_generate(self, size: float) -> float:
        """Units to generate so that ``size`` of them remain."""
        return math.ceil(size / self.share)

    @property
    def source(self) -> str | None:
        """A hash of a user's code behind it."""
        return None

    @property
    def code(self) -> str:
        """What of a user's code it calls, with the key that names it."""
        return f"curation.kind: {self.kind}"

    def identity(self) -> dict[str, Any]:
        """What of this step determines a corpus: its settings, and the source code of a user's own."""
        return {**self.model_dump(mode="json"), **({"source": self.source} if self.source else {})}

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        """What passes, of which the first ``count`` are trained on.

        ``block``: numbers of written items that share a prompt, with those of the choices before this step.
        """
        raise NotImplementedError

    def truth(self, items: Items) -> np.ndarray | None:
        """(B, n) Which items ought to pass; None where that is unknown."""
        return items.plausible() if self.truth_is == "plausible" else None

    def measure(self, items: Items, passed: Kept, true: np.ndarray | None) -> dict[str, np.ndarray]:
        """(B,) Each of :attr:`measures`; ``true`` is the :meth:`truth` of the items, some of which have ``passed``."""
        return {}


@dataclass(frozen=True)
class Selection:
    """What one step let pass, which items ought to (B, n), and its measures of each chain: (B,), None where unknown;
    ``found`` are its own."""

    passed: Kept
    true: np.ndarray | None
    kept: np.ndarray
    precision: np.ndarray | None
    recall: np.ndarray | None
    found: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def measures(self) -> dict[str, np.ndarray]:
        """By metric, without what is unknown."""
        found = {KEPT: self.kept, PRECISION: self.precision, RECALL: self.recall, **self.found}
        return {name: values for name, values in found.items() if values is not None}


def apply(step: Step, items: Items, count: int, block: int = 1) -> Selection:
    """One step's selection, measured against the truth."""
    passed, total = step.let_pass(items, count, block), items.places.shape[1]
    kept = np.array([len(own) / total if total else np.nan for own in passed])
    true = step.truth(items)
    found = step.measure(items, passed, true)
    if true is None:
        return Selection(passed, None, kept, None, None, found)
    hits = _within(true, passed)
    return Selection(passed, true, kept, ratio(hits, kept * total), ratio(hits, true.sum(1)), found)


def _within(true: np.ndarray, passed: Kept) -> np.ndarray:
    """(B,) How many of the items that passed are true."""
    return np.array([own_true[own].sum() for own_true, own in zip(true, passed, strict=True)], dtype=np.float64)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """1 where there is nothing to be wrong, or to be lost."""
    return np.divide(part, whole, out=np.ones(len(part)), where=whole > 0)


def one_truth(steps: Sequence[Step], *, known: bool) -> bool:
    """Whether the same truth is known of all steps; ``known``: whether what is plausible is."""
    truths = {step.truth_is if known or step.truth_is != "plausible" else None for step in steps}
    return len(truths) == 1 and None not in truths


def measured_once(steps: Sequence[Step | Mapping[str, Any]]) -> set[str]:
    """The metrics of its own that one step alone measures (:attr:`Step.measures`, or its measures by name)."""
    each = [step.measures if isinstance(step, Step) else step for step in steps]
    counts = Counter(name for names in each for name in names if name in _OWN)
    return {name for name, count in counts.items() if count == 1}


def together(each: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of a curation from those of ``each`` step: numbers or arrays (B,).

    Those of a single step are the curation's. Of several, the share, precision and recall of the ``whole`` are counted
    over what was written; each step has its own, numbered from 1, of what it read. What several steps measure of their
    own is numbered, too.
    """
    if len(each) == 1:
        return {name: each[0][name] for name in (*_OF_EACH, *_OWN) if name in each[0]}
    once, found = measured_once(each), dict(whole)
    for number, step in enumerate(each, start=1):
        names = [name for name in (*_OF_EACH, *_OWN) if name in step]
        found |= {name if name in once else f"{name}_{number}": step[name] for name in names}
    return found
