"""What the runs in MLflow should hold, and how they ended: plain data, made of a study's folder."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fortifai_ray.tracking import limits
from fortifai_ray.tracking.address import redact


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: its status, the reason of a failure, and results (numbers become metrics ``result/KEY``)."""

    status: str
    reason: str | None = None
    results: Mapping[str, object] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[tuple[str, int], float]:
        """Its results that are numbers, by the key of a metric and the step."""
        return {(limits.key(f"result/{key}"), 0): float(v) for key, v in self.results.items() if _is_number(v)}  # type: ignore[arg-type]

    @property
    def tags(self) -> dict[str, str]:
        """Its status, and all else, as text."""
        tags = {"fortifai.status": self.status} | ({"fortifai.reason": redact(self.reason)} if self.reason else {})
        others = {key: value for key, value in self.results.items() if value is not None and not _is_number(value)}
        return tags | {limits.key(f"fortifai.result.{key}"): limits.as_text(value) for key, value in others.items()}


@dataclass(frozen=True)
class RunContent:
    """What a nested run should hold.

    ``key`` identifies the run (a chain's id, a cell's, or ``search/CELL``), ``label`` names it for people. ``recipe``
    is nested, as in a study file; flattened, it is the run's parameters. ``series`` are the metrics by step (the
    generation), ``samples`` the artefacts by file name; ``end`` is None while the chain runs.
    """

    key: str
    label: str
    recipe: Mapping[str, object]
    series: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    samples: Mapping[str, bytes] = field(default_factory=dict)
    end: RunEnd | None = None

    @cached_property
    def stamp(self) -> str:
        """A hash of the content, by which a later sweep sees at once that nothing is missing."""
        return content_hash([self.recipe, sorted(self.series.items()), vars(self.end) if self.end else None])


@dataclass(frozen=True)
class HumanData:
    """Human data that chains began with: a name, the hash of its stage, and its section of the recipe."""

    name: str
    digest: str
    section: Mapping[str, Any]

    @property
    def as_input(self) -> Any:
        """MLflow's form of it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps(self.section, ensure_ascii=False, default=str)
        told = Dataset(name=self.name[-500:], digest=self.digest, source_type="fortifai", source=source)
        return DatasetInput(told, [InputTag("mlflow.data.context", "generation 0")])


@dataclass(frozen=True)
class Overview:
    """What the study's run should hold beside its files.

    ``values`` are metrics by name and step (the generation; 0 for what was found of a cell), ``data`` the human data;
    ``ended``: the study has, and this is all.
    """

    values: Mapping[tuple[str, int], float]
    tags: Mapping[str, str]
    data: Sequence[HumanData]
    ended: bool

    @property
    def stamp(self) -> str:
        """A hash of what it shows, which leaves out where it came from."""
        note = self.tags.get("mlflow.note.content")
        return content_hash([sorted(self.values.items()), note, [one.digest for one in self.data]])


def content_hash(value: Any) -> str:
    """A hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
