"""One entry of ``benchmarks``: what its metrics are called, and which columns it adds to a generation's row."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from fortifai_ray.metrics import COUNTS, Metric
from fortifai_ray.metrics import METRICS as REGISTRY
from fortifai_ray.validation import Section, a_name

TIES = "ties"


def _existing(path: str) -> str:
    if not os.path.exists(path):  # False, too, where that cannot be known
        raise ValueError(f"there is no {path or 'empty path'} (looked for from {Path.cwd().name}/)")
    return path


LocalPath = Annotated[str, AfterValidator(_existing)]


class Entry(Section):
    """One entry of ``benchmarks``."""

    stem: ClassVar[str]  # the beginning of the names of the task's metrics
    metrics: ClassVar[tuple[Metric, ...]]  # of an entry without a name
    accuracies: ClassVar[dict[str, str]] = {}  # by suffix, the harness's metric and filter, or the KR-test's scoring
    has_ties: ClassVar[bool] = False  # whether its choices may score alike: it then reports how often they do
    task: str
    name: Annotated[str, a_name("_")] | None = Field(
        None,
        description="the beginning of its metrics' names (`mine` for `mine_accuracy`) in place of the task's own; "
        "needed if a task occurs twice",
    )
    limit: int | None = Field(
        None, ge=1, description="use only the first so many documents (of each paradigm for BLiMP); null for all"
    )

    @property
    def prefix(self) -> str:
        """The beginning of the names of this entry's metrics."""
        return self.name or self.stem

    def metric(self, suffix: str) -> str:
        """A metric's full name, e.g. ``blimp_accuracy``."""
        return f"{self.prefix}_{suffix}" if self.prefix else suffix

    @property
    def counts(self) -> dict[str, str]:
        """The columns of the entry's counts, by count."""
        return {count: f"{self.prefix or self.task}_{count}" for count in COUNTS}

    @property
    def columns(self) -> tuple[str, ...]:
        """What the entry adds to a generation's row: the keys of :meth:`.report.BenchmarkReport.metrics`."""
        return (*self._measures(), *self.counts.values())

    @property
    def declared(self) -> tuple[Metric, ...]:
        """The metrics of an entry that reports under a name of its own, but for names that are built in."""
        names = {self.metric(metric.name.removeprefix(f"{self.stem}_")): metric for metric in self.metrics}
        return tuple(
            replace(metric, name=name, title="", role=None, rank=0)
            for name, metric in names.items()
            if name not in REGISTRY.built_in
        )

    def _measures(self) -> Iterator[str]:
        """Names of its measures and of the ends of their intervals."""
        yield from self._with_interval(*self.accuracies)
        if self.has_ties:
            yield self.metric(TIES)

    def _with_interval(self, *suffixes: str) -> Iterator[str]:
        for suffix in suffixes:
            yield from (self.metric(f"{suffix}{end}") for end in ("", "_low", "_high"))
