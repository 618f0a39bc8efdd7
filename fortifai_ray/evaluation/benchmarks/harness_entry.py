"""An entry of ``benchmarks`` that is any task, tag or group of lm-evaluation-harness."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.entry import Entry, LocalPath
from fortifai_ray.metrics import BENCHMARKS, METRICS, Metric

if TYPE_CHECKING:
    from fortifai_ray.evaluation.benchmarks.harness_figures import Asked, Figure

_DIRECTIONS: dict[bool, Literal["above", "below"]] = {True: "below", False: "above"}


class LmEval(Entry):
    """Any task, tag or group of lm-evaluation-harness, its own or one in a folder; its data are where its file says: on
    the hub, in the hub's cache here, or local."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    stem: ClassVar[str] = ""
    task: Literal["lm_eval"] = "lm_eval"
    name: str = Field(
        pattern=r"^[^\s/\\]+$",
        description="its name in lm-evaluation-harness (`lm_eval ls tasks` lists them); its metrics' names begin with "
        "it, those of a group's tasks with theirs",
    )
    label: str | None = Field(
        None,
        pattern=r"^\w+$",
        exclude_if=lambda value: value is None,
        description="the beginning of its metrics' names in place of its own, where a task occurs twice",
    )
    measures: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="which of its metrics, by their names there, each a column: `acc` becomes `NAME_acc`; that of one "
        "filter: `exact_match,strict-match`; null: all. A group has those of each of its tasks, too",
    )
    num_fewshot: int | None = Field(None, ge=0, description="examples before each document; null: as the task has it")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="tokens generated at most, where a task generates; null: as the task has it",
    )
    path: LocalPath | None = Field(None, description="a folder with task files of one's own, beside the harness's")

    @model_validator(mode="after")
    def _it_can_be_had(self) -> Self:
        if self.path is not None and not Path(self.path).is_dir():
            raise ValueError(f"path: {self.path} is a file; give the folder of its task files")
        try:
            known = self._asked
        except UserError as error:
            raise ValueError(f"name: {error}") from None
        if not known.figures and not self.measures:
            raise ValueError(
                f"measures: {self.name} is written in Python and says at run time what it measures: give them"
            )
        if self.num_fewshot and not known.examples:
            raise ValueError(f"num_fewshot: {self.name} is fixed at no examples by its authors; leave it out")
        for measure in self.measures or ():
            if known.figures and not any(_is_of(figure, measure) for figure in known.figures):
                there = dict.fromkeys(figure.key.removesuffix(",none") for figure in known.figures)
                raise ValueError(f"measures: {self.name} has no metric {measure} (there are {', '.join(there)})")
        return self

    @property
    def _asked(self) -> "Asked":
        from fortifai_ray.evaluation.benchmarks.harness_figures import asked

        return asked(self.name, self.path)

    @property
    def figures(self) -> "tuple[Figure, ...]":
        """What it reports: its own, then those of its parts."""
        from fortifai_ray.evaluation.benchmarks.harness_figures import Figure

        if known := self._asked.figures:
            wanted = self.measures
            return tuple(one for one in known if wanted is None or any(_is_of(one, each) for each in wanted))
        split = [measure.partition(",") for measure in self.measures or ()]
        return tuple(Figure(self.name, metric, chosen or "none", None, own=True) for metric, _, chosen in split)

    @property
    def prefix(self) -> str:
        return self.label or _word(self.name)

    def column(self, figure: "Figure") -> str:
        """The column of a figure."""
        part = "" if figure.own else _word(figure.task)
        begin = self.prefix if figure.own else f"{self.label}_{part}" if self.label else part
        return f"{begin}_{_word(figure.key.removesuffix(',none'))}"

    @property
    def declared(self) -> tuple[Metric, ...]:
        return tuple(
            Metric(
                name,
                definition=f"{figure.key.removesuffix(',none')} of {figure.task}",
                source="lm-evaluation-harness",
                direction=None if figure.higher_is_better is None else _DIRECTIONS[figure.higher_is_better],
                group=BENCHMARKS,
            )
            for figure in self.figures
            if (name := self.column(figure)) not in METRICS.built_in
        )

    @property
    def files(self) -> dict[str, Path]:
        """None that are read here: the task names its data."""
        return {}

    def _measures(self) -> Iterator[str]:
        yield from (self.column(figure) for figure in self.figures)


def _is_of(figure: "Figure", measure: str) -> bool:
    metric, _, chosen = measure.partition(",")
    return figure.metric == metric and chosen in ("", figure.filter)


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")
