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
and images are fewer.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.curation.base import NAMED, By, Items, Kept, Step
from fortifai_ray.user_code import built, call_of, check_class, find_class, source_hash, takes
from fortifai_ray.validation import hint, mistake


class UserStep(Step):
    """A user's class. ``kind`` is ``module:Class``; further keys are its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = Field(description="`module:Class`")

    @property
    def share(self) -> float:
        return float(getattr(self._instance, "share", 1.0))

    @property
    def source(self) -> str | None:
        return source_hash(find_class(self.kind, "step of curation"))

    @property
    def _instance(self) -> Any:
        return built(self.kind, "step of curation", self.model_extra or {})

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        passed, contents = [], items.contents()
        for chain, (own, rng) in enumerate(zip(contents, items.generators(), strict=True)):
            given = (own, partial(_scores, items, chain), np.random.default_rng(rng.integers(2**63)))
            passed.append(self._keep(given, len(items.places[chain])))
        return passed

    def _keep(self, given: tuple[Any, ...], n: int) -> np.ndarray:
        method, where = self._instance.keep, f"curation.kind: {self.kind}.keep"
        arguments = next(count for count in (3, 2, 1) if takes(method, count))
        answer = call_of(where, method, *given[:arguments])
        try:
            found = np.asarray(answer)
            indices = np.flatnonzero(found) if found.dtype == bool and found.shape == (n,) else found
            kept = np.unique(indices.astype(np.int64, casting="safe" if indices.size else "unsafe"))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} must return indices of items: {error}") from None
        if indices.ndim != 1 or len(kept) != indices.size or (kept.size and not 0 <= kept[0] <= kept[-1] < n):
            raise UserError(f"{where} must return different indices from 0 to {n - 1}, or {n} truth values")
        return kept


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
    share = getattr(step._instance, "share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise mistake("curation", "kind", f"{kind}.share is the planned share, in (0, 1]: not {share!r}", kind)
    return step


def _check_class(cls: Any, kind: str) -> None:
    method = getattr(cls, "keep", None)
    if not callable(method):
        raise ValueError(f"{kind} has no method keep(items, scores, rng), which gives the indices of those that pass")
    if not any(takes(method, 1 + count) for count in (1, 2, 3)):
        raise ValueError(f"{kind}.keep{inspect.signature(method)} must take self and items, scores and rng, or fewer")
