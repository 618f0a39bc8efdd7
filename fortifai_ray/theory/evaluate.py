"""A claim's value as a closed form, ``{theory: NAME, …arguments}``, by its name in :mod:`fortifai_ray.theory`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fortifai_ray.validation import hint

GENERATION = "generation"  # taken from the claim's statistic where a closed form depends on it and none is given


def closed_forms() -> Mapping[str, Callable[..., Any]]:
    """The registry; imported on the first call, as few studies need it."""
    from fortifai_ray.theory import THEORY

    return THEORY


def evaluate(value: Mapping[str, Any], generation: int | None) -> float:
    """The closed form's value.

    Args:
        value: ``{theory: NAME, …arguments}``.
        generation: the statistic's generation, None where it has no single one.

    Raises:
        ValueError: no such closed form, wrong arguments, or arguments outside its domain.
    """
    name, given = str(value["theory"]), {key: item for key, item in value.items() if key != "theory"}
    forms = closed_forms()
    if name not in forms:
        raise ValueError(f"there is no closed form {name!r}{hint(name, sorted(forms))}")
    signature = inspect.signature(forms[name])
    if GENERATION in signature.parameters and GENERATION not in given:
        if generation is None:
            raise ValueError(f"{name} depends on the generation, and the statistic names none: give generation: …")
        given[GENERATION] = generation
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{name}{signature} does not take these arguments: {error}") from None
    try:
        result = float(forms[name](**given))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{name}: {error}") from error
    if result != result:
        raise ValueError(f"{name} is not a number for {given}")
    return result
