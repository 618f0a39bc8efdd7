"""The kinds of steps: a verifier, surplexity, and the best of several by a reward."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fortifai_ray.errors import UserError, named
from fortifai_ray.recipe.curation.base import NAMED, REWARD, By, Items, Kept, Step, checked_judge, told_of
from fortifai_ray.user_code import call_of, find_user_code, names_code, source_of, unknown_setting
from fortifai_ray.validation import Section

_BY = (
    "the model that scores: the chain's own generation 0, which saw only human data, the model that wrote the items "
    "(own), the truth if known, or another ({model: …} or {family: …})"
)


class NoCuration(Step):
    """All generated data may be trained on."""

    kind: Literal["none"] = "none"

    @property
    def steps(self) -> tuple[Step, ...]:
        return ()

    def to_generate(self, size: float) -> float:
        return size


class _Ranked(Step):
    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of the generated data that is kept")

    @property
    def share(self) -> float:
        return self.keep


class Verifier(_Ranked):
    """A verifier scores each item by its log-likelihood, and the best are kept (Feng et al. 2024; Yi et al. 2025).

    With a stated error rate it is a verdict instead: what is plausible under the truth passes, but for errors.
    """

    kind: Literal["verifier"] = "verifier"
    by: Annotated[By, BeforeValidator(checked_judge)] = Field("generation_0", description=_BY)
    select: Literal["likeliest", "typical"] = Field(
        "likeliest",
        description="keep the highest scores, or those closest to the human training data's median score (which "
        "rejects both gibberish and the bland text that a likelihood alone prefers)",
    )
    false_accept: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        exclude_if=lambda value: value is None,  # some recipes are older than the key
        description="a stated error rate: the share of the items implausible under the truth that pass all the same",
    )
    false_reject: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        exclude_if=lambda value: value is None,
        description="likewise, the share of the plausible items that do not pass",
    )

    @model_validator(mode="after")
    def _errs_against_the_truth(self) -> Self:
        for name in ("false_accept", "false_reject"):
            if getattr(self, name) is not None and self.by != "truth":
                raise ValueError(f"{name}: an error rate is against the truth: add by: truth")
        if self.states_errors and self.select != "likeliest":
            raise ValueError("select: a verdict with an error rate ranks nothing: leave it out")
        return self

    @property
    def states_errors(self) -> bool:
        """Whether it is a verdict with a stated error rate."""
        return self.false_accept is not None or self.false_reject is not None

    @property
    def judges(self) -> tuple[By, ...]:
        return (self.by,)

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        if self.states_errors:
            return self._verdicts(items)
        typical = items.typical(self.by) if self.select == "typical" else 0.0
        return select(items.scores(self.by), count, self, typical)

    def _verdicts(self, items: Items) -> Kept:
        plausible = items.plausible()
        assert plausible is not None, "checked with the recipe: the family's truth is known"
        accept, reject = self.false_accept or 0.0, self.false_reject or 0.0
        return [
            np.flatnonzero(np.where(true, own.random(len(true)) >= reject, own.random(len(true)) < accept))
            for true, own in zip(plausible, items.generators(), strict=True)
        ]


class Surplexity(_Ranked):
    """Keep the items that most surprise the model that wrote them (Gambetta et al. 2024, Learning by Surprise)."""

    kind: Literal["surplexity"] = "surplexity"

    @property
    def judges(self) -> tuple[By, ...]:
        return ("own",)

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        return select(items.scores("own"), count, self, 0.0)


def select(scores: np.ndarray, count: int, curation: Step, typical: float | np.ndarray) -> np.ndarray:
    """The ``count`` best items, in the order in which they were written.

    Args:
        scores: (..., items) log-likelihoods: under the verifier, or under the model that wrote the items (surplexity).
        typical: (...) the human data's median score, for ``select: typical``.

    Returns:
        (..., count) indices into the items, ascending; all items where there are fewer. Ties go to the earlier item.
    """
    if isinstance(curation, Surplexity):
        badness = scores  # low likelihood is high surprise
    elif isinstance(curation, Verifier) and curation.select == "typical":
        badness = np.abs(scores - np.asarray(typical)[..., None])
    else:
        badness = -scores
    best = np.argsort(badness, axis=-1, kind="stable")[..., :count]
    return np.sort(best, axis=-1)


class RewardFunction(Section):
    """A reward of one's own, ``module:function`` of the items of one chain; further keys are its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    function: str = Field(description="`module:function`: takes the items (an array or a list of texts), gives numbers")
    _short: bool = PrivateAttr(default=False)

    @classmethod
    def named(cls, function: str) -> Self:
        """The function without settings, which a resolved recipe has by its name alone, as its study file does."""
        reward = cls(function=function)
        reward._short = True
        return reward

    @model_serializer(mode="wrap")
    def _as_given(self, whole: SerializerFunctionWrapHandler) -> Any:
        return self.function if self._short else whole(self)

    @model_validator(mode="after")
    def _is_found(self) -> Self:
        function = find_user_code(self.function, "reward")
        if not callable(function):
            raise ValueError(f"{self.function} is not a function")
        if wrong := unknown_setting(function, self.function, self.model_extra or {}):
            raise ValueError(wrong)
        source_of(self.function, "reward")
        return self

    def of(self, items: Any) -> np.ndarray:
        """(n,) The reward of each item. Raises UserError for a function that fails, or gives no number for each."""
        if not (n := len(items)):
            return np.zeros(0)
        given = call_of(self.code, find_user_code(self.function, "reward"), items.copy(), **(self.model_extra or {}))
        try:
            found = np.asarray(given)
            rewards = found.astype(np.float64) if found.dtype.kind in "biufO" else np.empty(())
        except Exception as error:  # such as of a tensor with a gradient
            raise UserError(f"{self.code} must return {n} numbers, one an item: {named(error)}") from None
        if rewards.shape != (n,):
            got = f"the shape {found.shape}" if found.dtype.kind in "iufb" else f"a {type(given).__name__}"
            raise UserError(f"{self.code} must return {n} numbers, one an item: not {got}")
        if bad := int(np.isnan(rewards).sum()):
            raise UserError(f"{self.code} returned NaN for {bad} of {n} items, e.g. {np.isnan(rewards).argmax()}")
        return rewards

    @property
    def code(self) -> str:
        """What it calls, with the key that names it."""
        return f"curation.reward: {self.function}"


def _checked_reward(value: Any) -> Any:
    if names_code(value):
        return RewardFunction.named(value)
    if isinstance(value, Mapping) and "function" in value:
        return RewardFunction.model_validate(value)
    if isinstance(value, str) and value not in NAMED:
        try:
            return checked_judge(value)
        except ValueError as error:
            raise ValueError(f"a function of your own is module:function, and {error}") from None
    return checked_judge(value)


class Choice(Step):
    """The best of K items of each prompt by a reward, or a choice among them (Ferbach et al. 2024).

    Item k of the K is chosen with probability e^(r_k/T) / Σ_j e^(r_j/T) at temperature T: Bradley and Terry's model
    (Plackett's and Luce's for K > 2), of which 0 is the best of K (Ferbach et al. 2024, equation 1, has T = 1).
    """

    judged_by: ClassVar[str] = "reward"
    measures: ClassVar[tuple[str, ...]] = (REWARD,)

    kind: Literal["choice"] = "choice"
    of: int = Field(2, ge=1, le=100_000, description="K, how many items are written for each prompt")
    reward: Annotated[
        By | RewardFunction,
        BeforeValidator(
            _checked_reward, json_schema_input_type=By | Annotated[str, Field(pattern=":")] | RewardFunction
        ),
    ] = Field(
        "generation_0",
        description="what people prefer: a function of your own (`module:function`, or {function: …, with its "
        "settings}), or the log-likelihood under a model, as a verifier's",
    )
    temperature: float = Field(0.0, ge=0.0, description="T of the choice; 0: the best of K")

    @property
    def share(self) -> float:
        return 1 / self.of

    @property
    def candidates(self) -> int:
        return self.of

    @property
    def judges(self) -> tuple[By, ...]:
        return () if isinstance(self.reward, RewardFunction) else (self.reward,)

    @property
    def source(self) -> str | None:
        if not isinstance(self.reward, RewardFunction):
            return None
        return source_of(self.reward.function, "reward")

    @property
    def code(self) -> str:
        return self.reward.code if isinstance(self.reward, RewardFunction) else super().code

    def to_generate(self, size: float) -> float:
        return float(np.ceil(size) * self.of)

    def measure(self, items: Items, passed: Kept, true: np.ndarray | None) -> dict[str, np.ndarray]:
        rewards: np.ndarray = items.notes[REWARD]
        return {REWARD: rewards.mean(-1) if rewards.size else np.full(len(rewards), np.nan)}

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        if isinstance(self.reward, RewardFunction):
            rewards = np.stack([self._rewards(items, chain, own) for chain, own in enumerate(items.contents())])
        else:
            rewards = items.scores(self.reward)
        items.notes[REWARD] = rewards
        if self.temperature:
            noise = np.stack([own.gumbel(size=len(row)) for own, row in zip(items.generators(), rewards, strict=True)])
            with np.errstate(over="ignore"):
                rewards = rewards / self.temperature + noise  # its largest is the choice (Gumbel's trick)
        chains, n = rewards.shape
        if n % block == 0 and (items.places == np.arange(n)).all():  # every prompt has all of its items, each once
            best = rewards.reshape(chains, -1, block).argmax(-1)
            return best + np.arange(0, n, block)
        return [_best_of_each(own, of // block) for own, of in zip(rewards, items.places, strict=True)]

    def _rewards(self, items: Items, chain: int, own: Any) -> np.ndarray:
        assert isinstance(self.reward, RewardFunction)
        with told_of(items, chain):
            return self.reward.of(own)


def _best_of_each(rewards: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The index of the largest of each group's rewards, the first of those that are alike; groups ascend."""
    order = np.lexsort((-rewards, group))
    return np.sort(order[np.unique(group, return_index=True)[1]])
