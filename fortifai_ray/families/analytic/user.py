"""A user's own family: a class that computes one chain, named by a dotted path.

In ``my_family.py``, beside the study file or installed::

    class Laplace:
        metrics = ("scale",)

        def __init__(self, scale: float = 1.0):
            self.scale = scale

        def human(self, n, rng):            # (n, …) samples of the truth; rng is a NumPy generator
            return rng.laplace(0.0, self.scale, (n, 1))

        def fit(self, data):                # anything that can be pickled
            return abs(data).mean()

        def evaluate(self, model):          # a number for each of ``metrics``
            return {"scale": model}

        def generate(self, model, n, rng):  # (n, …) samples of the model
            return rng.laplace(0.0, model, (n, 1))

and in the study file ``family: {kind: "my_family:Laplace", scale: 2.0}``. A method ``log_likelihood(model, data)``,
giving the n numbers log p, is needed for losses other than cross entropy and for curation; a method ``truth()``, giving
the model that is true, for a verifier ``by: truth``. To weigh samples under a loss, ``fit`` must take
``fit(data, weights)``. Draw from ``rng`` alone: results must depend on nothing but the recipe. ``metrics`` may hold
:class:`fortifai_ray.metrics.Metric` objects in place of names, e.g. ``Metric("scale", scale="log")``:
a plain name gets no direction, and its onset is interpolated linearly.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict

from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams
from fortifai_ray.metrics import Metric, declared, register
from fortifai_ray.user_code import built, call_of, check_class, find_class, source_hash, takes

_METHODS = {"human": 2, "fit": 1, "evaluate": 1, "generate": 3}
_OPTIONAL = {
    "log_likelihood": "a loss other than cross_entropy, and curation, need it",
    "truth": "a verifier by: truth needs it",
}
_MODEL = "model"


class UserFamily(AnalyticFamily):
    """A user's class, called chain by chain. ``kind`` is ``module:Class``; further keys are its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return declared(_find(self.kind).metrics)

    @property
    def truth_is_known(self) -> bool:
        return all(callable(getattr(_find(self.kind), method, None)) for method in _OPTIONAL)

    def identity(self) -> dict[str, Any]:
        """Settings, and a hash of the whole module that defines the class (not of what that module imports)."""
        return {**self.model_dump(mode="json"), "source": source_hash(_find(self.kind))}

    def human(self, n: int, streams: Streams) -> Array:
        generators = streams.generators("human")
        return self._samples("human", [self._call("human", n, _own(each)) for each in generators], n)

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        if weights is None:
            fitted = [self._call("fit", own) for own in data]
        else:
            self._require_weights()
            fitted = [self._call("fit", own, weight) for own, weight in zip(data, weights, strict=True)]
        if any(_has_nan(model) for model in fitted):
            raise self._refused(f"fit returned a NaN on {data.shape[1]} samples")
        return {_MODEL: _objects(fitted)}

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        scores, names = [self._call("evaluate", own) for own in model[_MODEL]], [each.name for each in self.metrics]
        for each in scores:
            if not isinstance(each, Mapping) or set(each) != set(names):
                got = ", ".join(map(str, each)) if isinstance(each, Mapping) else repr(each)
                wanted = f"a number for each of {', '.join(names)} (its metrics)"
                raise self._refused(f"evaluate must return {wanted}, not {got}")
        try:
            return {name: np.array([float(each[name]) for each in scores]) for name in names}
        except (TypeError, ValueError) as error:
            raise self._refused(f"evaluate must return numbers: {error}") from None

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        each = zip(model[_MODEL], streams.generators("sample"), strict=True)
        return self._samples("generate", [self._call("generate", own, n, _own(rng)) for own, rng in each], n)

    def log_likelihood(self, model: Model, data: Array) -> Array:
        self._require("log_likelihood")
        models = np.broadcast_to(model[_MODEL], len(data))
        logs = [self._call("log_likelihood", own, part) for own, part in zip(models, data, strict=True)]
        result = self._array("log_likelihood", logs)
        if result.shape != data.shape[:2] or np.isnan(result).any():
            raise self._refused(f"log_likelihood must return {data.shape[1]} numbers, one a sample")
        return result

    def truth(self) -> Model:
        self._require("truth")
        return {_MODEL: _objects([self._call("truth")])}

    def check_methods(self, *, weighs: bool, ranks: bool, by_truth: bool) -> None:
        """Check that the class has what the recipe's loss, regime (``weighs``) and curation (``ranks``) need.

        Raises ValueError naming what is missing.
        """
        try:
            if ranks:
                self._require("log_likelihood")
            if by_truth:
                self._require("truth")
            if weighs:
                self._require_weights()
        except UserError as error:
            raise ValueError(str(error)) from None

    def _require(self, method: str) -> None:
        if not callable(getattr(_find(self.kind), method, None)):
            raise UserError(f"family.kind: {self.kind} has no method {method}: {_OPTIONAL[method]}")

    def _require_weights(self) -> None:
        if not takes(_find(self.kind).fit, 3):
            raise self._refused(
                "fit must take fit(data, weights) for a loss other than cross_entropy, or regime.weights"
            )

    def _refused(self, message: str) -> UserError:
        """The error of a method, which begins ``message``."""
        return UserError(f"family.kind: {self.kind}.{message}")

    def _call(self, method: str, *arguments: Any) -> Any:
        instance = built(self.kind, "family", self.model_extra or {})
        return call_of(f"family.kind: {self.kind}.{method}", getattr(instance, method), *arguments)

    def _samples(self, method: str, drawn: list[Any], n: int) -> Array:
        samples = self._array(method, drawn)
        if samples.ndim < 2 or samples.shape[1] != n:
            raise self._refused(f"{method} must return {n} samples, (n, …): not the shape {samples.shape[1:]}")
        # Samples of one number each are columns, as in every other family.
        return samples[..., None] if samples.ndim == 2 else samples

    def _array(self, method: str, parts: list[Any]) -> Array:
        try:
            return np.stack([np.asarray(part, dtype=np.float64) for part in parts])
        except (TypeError, ValueError) as error:
            raise self._refused(f"{method} must return an array of numbers: {error}") from None


def validate_user_family(content: Mapping[str, Any]) -> UserFamily:
    """A user's family, checked: its module can be imported, it has every method, and it accepts the settings.

    Raises ValidationError, at the key that is wrong.
    """
    kind = content["kind"]
    check_class("family", kind, "family", {k: v for k, v in content.items() if k != "kind"}, _check_methods)
    return UserFamily.model_validate(dict(content))


def _find(kind: str) -> Any:
    return find_class(kind, "family")


def _check_methods(cls: Any, kind: str) -> None:
    metrics = getattr(cls, "metrics", None)
    names = metrics if isinstance(metrics, tuple | list) else ()
    if not names or not all(isinstance(name, str | Metric) for name in names):
        raise ValueError(
            f'{kind} must say what evaluate returns: a class attribute metrics = ("name", …), names or Metric objects'
        )
    register(*declared(names))
    for method, arguments in _METHODS.items():
        function = getattr(cls, method, None)
        if not callable(function):
            raise ValueError(f"{kind} has no method {method}")
        if not takes(function, 1 + arguments):
            raise ValueError(f"{kind}.{method}{inspect.signature(function)} must take self and {arguments} more")


def _own(generator: np.random.Generator) -> np.random.Generator:
    """A copy of a generator, for the user to keep: the stream's own moves on to the next chain."""
    bits = np.random.Philox(key=0)
    bits.state = dict(generator.bit_generator.state)  # type: ignore[assignment]
    return np.random.Generator(bits)


def _objects(models: list[Any]) -> Any:
    """(B,) One object per chain; NumPy would take arrays apart."""
    array = np.empty(len(models), dtype=object)
    for place, model in enumerate(models):
        array[place] = model
    return array


def _has_nan(model: Any) -> bool:
    """Whether a NaN is among a model's numbers, as far as plain containers and arrays show them."""
    if isinstance(model, Mapping):
        return any(_has_nan(part) for part in model.values())
    if isinstance(model, tuple | list):
        return any(_has_nan(part) for part in model)
    return isinstance(model, float | np.floating | np.ndarray) and bool(np.any(np.not_equal(model, model)))
