"""A user's steps and rewards are called before anything starts, on a few items of human data: what they make of these
tells most mistakes in time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.curation import places
from fortifai_ray.recipe.curation.base import REWARD, By, Kept, Step

_FEW, _MOST = 8, 256  # items: a reward may be a large model's
_ALIKE = 1e-3  # relative difference between two rewards of one item, as of a model on a GPU


@dataclass(frozen=True)
class HumanItems:
    """Items of one chain as a step sees them (:class:`fortifai_ray.recipe.curation.Items`); scores are made up.

    Attributes:
        content: an array (n, …) of samples or images, or n texts.
        truth: whether the family knows the truth.
    """

    content: Any
    truth: bool
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> np.ndarray:
        return np.arange(len(self.content))[None]

    def contents(self) -> Sequence[Any]:
        return [self.content]

    def scores(self, by: By) -> np.ndarray:
        if by == "truth" and not self.truth:
            raise ValueError("the truth is not known here: generation_0 or own is right")
        return -1.0 - np.random.default_rng(0).random((1, len(self.content)))

    def typical(self, by: By) -> np.ndarray:
        return np.array([-1.5])

    def plausible(self) -> np.ndarray | None:
        return None

    def generators(self) -> Iterator[np.random.Generator]:
        yield np.random.default_rng(0)

    def origin(self, chain: int) -> str:
        return f"tried on {len(self.content)} human items"


def try_code(steps: Sequence[Step], human: Callable[[int], Any], *, truth: bool) -> None:
    """Call a user's code in ``steps`` on human items: a few, and where it fails on these, on more.

    Args:
        human: gives at most so many items, as :attr:`HumanItems.content`.

    Raises:
        UserError: it fails, answers wrongly, or gives the same items another answer when it is asked again.
    """
    for place, step in zip(places(steps), steps, strict=True):
        if step.source is None:
            continue
        try:
            with suppress(UserError):
                _try(step, human(_FEW), truth)
                continue
            _try(step, human(_MOST), truth)
        except UserError as error:
            raise UserError(str(error).replace("curation.", f"{place}.", 1)) from error.__cause__


def _try(step: Step, content: Any, truth: bool) -> None:
    items, again = HumanItems(content, truth), HumanItems(content, truth)
    passed, then = _answer(step, items), _answer(step, again)
    rewards, others = (each.notes.get(REWARD, np.zeros(0)) for each in (items, again))
    if not np.array_equal(passed[0], then[0]) or not np.allclose(rewards, others, rtol=_ALIKE):
        raise UserError(
            f"{step.code} gave the same items another answer when it was asked again: it may depend on its arguments "
            f"alone, {'which are the items' if rewards.size else 'and draw from rng'} ({items.origin(0)})"
        )


def _answer(step: Step, items: HumanItems) -> Kept:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run shows them; here they would stand around the one line of an error
        return step.let_pass(items, len(items.content), step.candidates)
