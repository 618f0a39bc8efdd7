"""A step of a user's own: a class that says which items may be trained on, named by a dotted path.

In ``my_filters.py``, beside the study file or installed::

    class Short:
        share = 0.5                            # planned: twice as much is generated as is needed; 1 where left out

        def __init__(self, words: int = 20):
            self.words = words

        def keep(self, items, scores, rng):    # the indices of those that pass, or n truth values
            return [i for i, text in enumerate(items) if len(text.split()) <= self.words]

and in the study file ``curation: {kind: "my_filters:Short", words: 10}``. ``items`` are those of one chain: n texts of
a language model, an array (n, …) of samples or images of others. ``scores(by)`` gives the n log-likelihoods in nats
under ``"generation_0"``, ``"own"`` (the model that wrote the items) or, of samples, ``"truth"``; ``rng`` is a NumPy
generator, from which alone it may draw. ``keep`` may also take the items alone, or the items and the scores. More may
pass than ``share`` says: the first are trained on. Where fewer do, arrays of samples are repeated in turn, and texts
and images are fewer. What passes depends on these arguments alone: one object serves all chains and generations that a
process happens to compute.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.curation.base import NAMED, By, Items, Kept, Step, told_of
from fortifai_ray.user_code import built, call_of, check_class, source_of, takes, told
from fortifai_ray.validation import hint, mistake, shown


class UserStep(Step):
    """A user's class. ``kind`` is ``module:Class``; further keys are its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = Field(description="`module:Class`")

    @property
    def share(self) -> float:
        return float(getattr(self._instance, "share", 1.0))

    @property
    def source(self) -> str | None:
        return source_of(self.kind, "step of curation")

    @property
    def _instance(self) -> Any:
        return built(self.kind, "step of curation", self.model_extra or {})

    @property
    def code(self) -> str:
        return f"curation.kind: {self.kind}.keep"

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        passed, contents = [], items.contents()
        for chain, (own, rng) in enumerate(zip(contents, items.generators(), strict=True)):
            given = (own.copy(), partial(_scores, items, chain), np.random.default_rng(rng.integers(2**63)))
            with told_of(items, chain):
                passed.append(self._keep(given, len(own)))
        return passed

    def _keep(self, given: tuple[Any, ...], n: int) -> np.ndarray:
        if not n:
            return np.zeros(0, np.int64)
        method = self._instance.keep
        arguments = next(count for count in (3, 2, 1) if takes(method, count))
        answer = call_of(self.code, method, *given[:arguments])
        try:
            found = np.asarray(answer)
        except Exception:  # such as of a tensor with a gradient, or rows of several lengths
            found = np.empty((), object)
        if found.dtype == bool and found.shape == (n,):
            return np.flatnonzero(found)
        if found.shape != (0,) and (found.ndim != 1 or found.dtype.kind not in "iu"):
            raise UserError(f"{self.code} must return indices of items, or {n} truth values: not {_in_words(answer)}")
        kept = np.unique(found.astype(np.int64))
        if len(kept) != len(found) or (len(kept) and not 0 <= kept[0] <= kept[-1] < n):
            raise UserError(f"{self.code} must return different indices from 0 to {n - 1}, or {n} truth values")
        return kept


def _in_words(answer: Any) -> str:
    """What a step returned: ``None``, ``an ndarray of float64, shape (40, 2)``, ``a list of str``."""
    if answer is None:
        return "None"
    if hasattr(answer, "dtype") and hasattr(answer, "shape"):
        return f"{answer.dtype} of the shape {tuple(answer.shape)}"
    of = f" of {type(answer[0]).__name__}" if isinstance(answer, list | tuple) and answer else ""
    return f"a {type(answer).__name__}{of}"


def _scores(items: Items, chain: int, by: By = "generation_0") -> np.ndarray:
    if by not in NAMED:
        raise ValueError(f"there is no judge {by!r}{hint(str(by), NAMED)}")
    return items.scores(by)[chain]


def validate_user_step(content: Mapping[str, Any]) -> UserStep:
    """A user's step, checked: its module can be imported, it has ``keep``, and it accepts the settings.

    Raises ValidationError, at the key that is wrong.
    """
    kind = content["kind"]
    settings = {key: value for key, value in content.items() if key != "kind"}
    check_class("curation", kind, "step of curation", settings, _check_class)
    step = UserStep.model_validate(dict(content))
    method = step._instance.keep
    if not any(takes(method, count) for count in (1, 2, 3)):
        wrong = f"{kind}.keep{inspect.signature(method)} must take items, scores and rng, or the first of these"
        raise mistake("curation", "kind", wrong, kind)
    try:
        share = getattr(step._instance, "share", 1.0)
    except Exception as error:  # a property may fail in any way
        raise mistake("curation", "kind", f"{kind}.share failed: {told(error, method)}", kind) from error
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise mistake("curation", "kind", f"{kind}.share is the planned share, in (0, 1]: not {shown(share)}", kind)
    return step


def _check_class(cls: Any, kind: str) -> None:
    method = getattr(cls, "keep", None)
    if not callable(method):
        raise ValueError(f"{kind} has no method keep(items, scores, rng), which gives the indices of those that pass")
