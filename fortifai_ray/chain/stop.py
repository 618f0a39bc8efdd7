"""When a chain may stop: once every criterion of the study is decided for it."""

from collections.abc import Callable, Sequence
from functools import cache

from fortifai_ray.recipe.family import Metrics
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion
from fortifai_ray.statistics.crossing import Evidence, Ruling, ruling_on_any
from fortifai_ray.study.search import SurvivalRules


class Stop:
    """Whether it is decided, under every criterion of the study, that a chain has collapsed or cannot collapse.

    Args:
        generations: how many the chain runs at most.
        baseline: gives the metrics of the baseline's generation 0; called at most once, where a criterion needs it.
    """

    def __init__(
        self,
        criteria: Sequence[Collapse],
        generations: int,
        survival: SurvivalRules,
        baseline: Callable[[], Metrics],
    ) -> None:
        self._criteria, self._generations, self._survival = criteria, generations, survival
        self._baseline = cache(baseline)
        self._rulings: list[Ruling] = []

    @property
    def reason(self) -> str | None:
        """What was decided, criterion by criterion; None while a criterion is open."""
        return None if "open" in self._rulings else ", ".join(dict.fromkeys(self._rulings)) or None

    def decided(self, history: Sequence[Metrics]) -> bool:
        """Whether the chain may stop after these generations' metrics."""
        # A criterion needs `confirm` generations after the first: before that no collapse can be confirmed.
        members = (member for criterion in self._criteria for member in criterion.members)
        early = len(history) <= min((member.confirm for member in members), default=0)
        if not self._criteria or (early and not self._survival.never_recorded):
            return False
        self._rulings = [self._ruling(criterion, history) for criterion in self._criteria]
        return "open" not in self._rulings

    def _ruling(self, criterion: Collapse, history: Sequence[Metrics]) -> Ruling:
        evidence = [self._evidence(member, history) for member in criterion.members]
        known = [one for one in evidence if one is not None]
        if len(known) < len(evidence):
            return "open"
        return ruling_on_any(known, criterion, self._generations, **self._survival.model_dump())

    def _evidence(self, criterion: CollapseCriterion, history: Sequence[Metrics]) -> Evidence | None:
        """None where a metric is known only once the generation has been written: it is not judged here."""
        if any(metrics.get(criterion.metric) is None for metrics in history):
            return None
        values = [float(metrics[criterion.metric]) for metrics in history]
        of_baseline = criterion.relative_to == "baseline_generation_0"
        baseline = self._baseline().get(criterion.metric) if of_baseline else None
        return Evidence(values, criterion.limit(values[0], baseline))
