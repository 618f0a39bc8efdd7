"""The curation of families whose corpora are stages: each step's corpus is a stage, made of the one before."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.recipe.curation import (
    KEPT,
    METRICS,
    PRECISION,
    RECALL,
    By,
    Step,
    apply,
    blocks,
    one_truth,
    sizes,
    together,
)
from fortifai_ray.recipe.family import Synthetic
from fortifai_ray.recipe.pools import Pool
from fortifai_ray.seeds import generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey

LOG = "curation.json"  # in a curated corpus: what was read, what passed
_MEASURES = tuple(metric.name for metric in METRICS)


@dataclass(frozen=True)
class Written:
    """One chain's items, as a step sees them (:class:`fortifai_ray.recipe.curation.Items`), scored when asked.

    Attributes:
        places: (1, n) their numbers among those that were written.
        content: gives the n items.
        score: log-likelihoods of the items under a model, (n,).
        score_human: those of human training data, (m,).
        seed: of the chain.
        generation: that wrote them.
        number: of the step among those of the curation, from 0.
    """

    places: np.ndarray
    content: Callable[[], Any]
    score: Callable[[By], np.ndarray]
    score_human: Callable[[By], np.ndarray]
    seed: int
    generation: int
    number: int
    notes: dict[str, Any] = field(default_factory=dict)

    def contents(self) -> Sequence[Any]:
        return [self.content()]

    def scores(self, by: By) -> np.ndarray:
        if by == "truth":
            raise ValueError("the truth of texts and images is not known: generation_0 or own is right here")
        if (key := f"scores by {by!r}") not in self.notes:
            self.notes[key] = self.score(by)[None]
        scores: np.ndarray = self.notes[key]
        return scores

    def typical(self, by: By) -> np.ndarray:
        return np.array([np.median(self.score_human(by))])

    def plausible(self) -> np.ndarray | None:
        return None

    def generators(self) -> Iterator[np.random.Generator]:
        yield generator(self.seed, "curation", self.generation, self.number)

    def origin(self, chain: int) -> str:
        return f"generation {self.generation}"


@dataclass(frozen=True)
class Planned:
    """A step at work: its number, the corpus that it reads and the generation that wrote it, the units that it must
    leave, the items that share a prompt, and the chain's models by the names of judges."""

    number: int
    step: Step
    corpus: Stage
    generation: int
    needed: float
    block: int
    models: Mapping[Any, Stage]

    def places(self, count: int) -> np.ndarray:
        """(1, count) The numbers of the corpus's items among those that were written, by the log of the step before."""
        log = self.corpus.path / LOG
        if not log.is_file():
            return np.arange(count)[None]
        return np.array(json.loads(log.read_text(encoding="utf-8"))["passed_rows"][:count])[None]

    def choose(self, items: Written, count: int, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The indices of the items to be trained on, at most ``count``, and the stage's outputs, but for its sizes;
        what passed is logged in ``folder``."""
        selection = apply(self.step, items, count, self.block)
        (passed,), (places,) = selection.passed, items.places
        kept = passed[:count]
        measures = {name: float(values[0]) for name, values in selection.measures.items() if np.isfinite(values[0])}
        summary = {"kind": self.step.kind, "read": len(places), "passed": len(passed), "kept": len(kept), **measures}
        log = {**summary, "step": self.step.identity(), "passed_rows": places[passed].tolist()}
        (folder / LOG).write_text(json.dumps(log), encoding="utf-8")
        return kept, {**measures, "details": {"curation": [summary]}}


def curate_steps(
    steps: Steps,
    version: int,
    curation: Sequence[Step],
    written: Synthetic[Stage],
    size: float,
    *,
    model: Stage,
    verifier: Stage,
    generation: int,
    inputs: Callable[[Step, float], Mapping[str, Any]],
    choose: Callable[[Planned, Path], Mapping[str, Any]],
    pool: Callable[[Stage], Pool],
) -> Synthetic[Stage]:
    """The corpus that every step of a curation leaves of ``written``: a stage for each step.

    Args:
        generation: that wrote it.
        size: units that are to remain; a step's own are :func:`fortifai_ray.recipe.curation.sizes`.
        inputs: the family's own share of the key of a step that must leave so many units.
        choose: writes a step's corpus into a folder, and returns the stage's outputs.
        pool: of a curated corpus.
    """
    if not curation:
        return written
    done, models = list[Stage](), {"own": model, "generation_0": verifier}
    asked = zip(curation, sizes(curation, size), blocks(curation), strict=True)
    for number, (step, needed, block) in enumerate(asked):
        corpus = done[-1] if done else written.stage
        scorer = model if "own" in step.judges else verifier
        key = {
            "written": corpus.hash,
            "scorer": scorer.hash,
            "curation": step.identity(),
            **inputs(step, needed),
            **({"block": block} if block > 1 else {}),
        }
        planned = Planned(number, step, corpus, generation, needed, block, models)
        done.append(steps.run(StageKey("curate", version, key), "curate", partial(choose, planned)))
    last, each = done[-1], [stage.outputs for stage in done]
    details = [one for outputs in each for one in (outputs.get("details") or {}).get("curation", ())]
    beside = [{key: value for key, value in one.outputs.items() if key not in (*_MEASURES, "details")} for one in done]
    whole = together(each, _counted(curation, each, details))
    outputs = {**beside[-1], **whole, "details": {"curation": details}}
    before = [replace(stage, outputs=rest) for stage, rest in zip(done[:-1], beside[:-1], strict=True)]
    return Synthetic(replace(last, outputs=outputs), pool(last), tuple(before))


def _counted(
    steps: Sequence[Step], each: Sequence[Mapping[str, Any]], details: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The measures of a curation as a whole, over what was written: by the logs of its steps.

    Steps that have a truth here leave nothing unread (:class:`Watermark`): the product of their recalls is that of all.
    """
    found = {KEPT: details[-1]["passed"] / details[0]["read"]} if details and details[0]["read"] else {}
    if one_truth(steps, known=False):
        found |= {PRECISION: each[-1][PRECISION], RECALL: math.prod(one[RECALL] for one in each)}
    return found
