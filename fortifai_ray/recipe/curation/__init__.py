"""Curation: which of the synthetic data a generation wrote may enter the next training set.

A curated chain generates more than it needs, and trains on what each of its steps lets pass. A family shows its items
(:class:`Items`): what they are, how likely they are under a model; the steps are the same for every family. One step
is a section, ``curation: {kind: verifier, keep: 0.5}``, several are a list of them, each of which takes what the one
before kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union

from pydantic import ConfigDict, PlainValidator, RootModel, SerializeAsAny, TypeAdapter

from fortifai_ray.recipe.curation.base import (
    AUROC,
    FOUND,
    FOUND_RIGHT,
    KEPT,
    METRICS,
    PLAUSIBLE,
    PRECISION,
    RECALL,
    By,
    Content,
    Items,
    Judge,
    Kept,
    Step,
    apply,
    measured_once,
    one_truth,
    ratio,
    together,
)
from fortifai_ray.recipe.curation.deduplicate import Deduplicate
from fortifai_ray.recipe.curation.detection import Detector, Watermark, resampled
from fortifai_ray.recipe.curation.kinds import Choice, NoCuration, Surplexity, Verifier, select
from fortifai_ray.recipe.curation.user import UserStep, validate_user_step
from fortifai_ray.user_code import names_code
from fortifai_ray.validation import hint, mistake, shown

__all__ = [
    "AUROC",
    "FOUND",
    "FOUND_RIGHT",
    "KEPT",
    "METRICS",
    "PLAUSIBLE",
    "PRECISION",
    "RECALL",
    "By",
    "Content",
    "Curation",
    "Deduplicate",
    "Detector",
    "Items",
    "Judge",
    "Kept",
    "NoCuration",
    "Several",
    "Step",
    "Surplexity",
    "UserStep",
    "Verifier",
    "Watermark",
    "apply",
    "blocks",
    "judges",
    "measured",
    "of_pool",
    "of_written",
    "one_truth",
    "places",
    "ratio",
    "resampled",
    "select",
    "sizes",
    "sources",
    "together",
    "with_judges",
]

_SEVERAL = 2  # bump when the measures of several steps change: the whole's are counted over what was written
_STEPS = (Verifier, Surplexity, Choice, Deduplicate, Watermark, Detector)
_KINDS: dict[str, type[Step]] = {"none": NoCuration, **{step.model_fields["kind"].default: step for step in _STEPS}}


class Several(RootModel[tuple[SerializeAsAny[Step], ...]]):
    """Two steps or more, each of which takes what the one before kept."""

    model_config = ConfigDict(frozen=True)

    @property
    def kind(self) -> str:
        """For people and for what asks whether anything is curated."""
        return " + ".join(step.kind for step in self.root)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.root

    def to_generate(self, size: float) -> float:
        """Units to generate so that ``size`` of them remain after all steps."""
        return self.root[0].to_generate(sizes(self.root, size)[0])


def sizes(steps: Sequence[Step], size: float) -> list[float]:
    """Units that each step must leave, so that ``size`` remain after the last."""
    after = [size]
    for step in reversed(steps[1:]):
        after.append(step.to_generate(after[-1]))
    return after[::-1]


def blocks(steps: Sequence[Step]) -> list[int]:
    """For each step, how many items written one after the other share a prompt, by it and the choices before it."""
    found, block = [], 1
    for step in steps:
        block *= step.candidates
        found.append(block)
    return found


def places(steps: Sequence[Step]) -> list[str]:
    """Where each step stands in a study file."""
    return ["curation"] if len(steps) == 1 else [f"curation.{number}" for number in range(len(steps))]


def judges(steps: Sequence[Step]) -> list[tuple[str, By]]:
    """Each judge of the steps, and where a study file names it."""
    placed = zip(places(steps), steps, strict=True)
    return [(f"{place}.{step.judged_by}", by) for place, step in placed for by in step.judges]


def with_judges(curation: Any, change: Callable[[Judge], Judge]) -> Any:
    """The same curation with each judge that is none of the chain's models changed: a path made absolute."""
    if isinstance(curation, Several):
        return Several(tuple(with_judges(step, change) for step in curation.root))
    changed = [change(by) for by in curation.judges if isinstance(by, Judge)]
    return curation.model_copy(update={curation.judged_by: changed[0]}) if changed else curation


def sources(steps: Sequence[Step]) -> dict[str, Any]:
    """What a cohort's key needs to know of a curation beside its settings: a user's code, and the versions of what
    gave other samples or measures at first; empty where there is none."""
    found = [step.source for step in steps]
    versions = {step.kind: step.version for step in steps if step.version > 1}
    versions |= {"several": _SEVERAL} if len(steps) > 1 else {}
    return {**({"curation": found} if any(found) else {}), **({"curation_versions": versions} if versions else {})}


def measured(steps: Sequence[Step], *, truth: bool) -> tuple[str, ...]:
    """The metrics of a curation, of a family whose truth is known or not; see :func:`together`."""
    pool, steps = [name for step in steps if step.of_pool for name in step.measures], of_written(steps)
    whole = [KEPT, *((PRECISION, RECALL) if one_truth(steps, known=truth) else ())] if steps else []
    if len(steps) <= 1:
        return (*whole, *(name for step in steps for name in step.measures), *pool)
    once, numbered = measured_once(steps), list[str]()
    for number, step in enumerate(steps, start=1):
        known = (PRECISION, RECALL) if one_truth([step], known=truth) else ()
        numbered += [f"{name}_{number}" for name in (KEPT, *known, *step.measures) if name not in once]
    return (*whole, *numbered, *(name for step in steps for name in step.measures if name in once), *pool)


def of_pool(steps: Sequence[Step]) -> Step | None:
    """The step that judges the next generation's training set as a whole, if any."""
    return next((step for step in steps if step.of_pool), None)


def of_written(steps: Sequence[Step]) -> list[Step]:
    """The steps that judge what a generation wrote: all others."""
    return [step for step in steps if not step.of_pool]


def _one(value: Any) -> Step:
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"a curation is a section such as {{kind: verifier, keep: 0.5}}, or a list of them, not {shown(value)}"
        )
    kind = value.get("kind")
    if names_code(kind):
        return validate_user_step(value)
    if kind is None:
        raise mistake("curation", "kind", f"this key is needed and missing (kinds: {', '.join(_KINDS)})", value)
    if not isinstance(kind, str) or kind not in _KINDS:
        own = "a step of your own is named module:Class"
        raise mistake(
            "curation",
            "kind",
            f"there is no {kind if isinstance(kind, str) else shown(kind)}; {own}{hint(str(kind), _KINDS)}",
            kind,
        )
    return _KINDS[kind].model_validate(value)


_LIST = TypeAdapter(list[Annotated[Step, PlainValidator(_one)]])


def _validate(value: Any) -> Step | Several:
    if isinstance(value, Several):
        return value
    if not isinstance(value, list | tuple):
        return _one(value)
    steps = _LIST.validate_python(value)
    if not steps:
        raise ValueError("this list of steps is empty: {kind: none} is right where nothing is curated")
    for number, step in enumerate(steps):
        if not step.steps:
            raise mistake("curation", f"{number}.kind", "none keeps everything: leave it out of the list", "none")
    for number, step in enumerate(steps[:-1]):
        if step.of_pool:
            raise mistake("curation", f"{number}.kind", f"{step.kind} judges the whole pool: put it last", step.kind)
    return steps[0] if len(steps) == 1 else Several(tuple(steps))


_AnyStep: Any = Union[(NoCuration, *_STEPS, UserStep)]

Curation = Annotated[
    Step | Several,
    PlainValidator(_validate, json_schema_input_type=_AnyStep | list[_AnyStep]),
    SerializeAsAny(),
]
"""One step, validated by its ``kind`` (of this package, or a path ``module:Class``), or a list of them."""
