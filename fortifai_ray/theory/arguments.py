"""What every closed form asks of its arguments."""

from typing import Any, Literal, get_args

Human = Literal["kept", "fresh"]
"""Whether a regime's human samples are always the same, or new ones in each generation."""


def check_arguments(n: int, generation: int) -> None:
    """Raise ValueError for a sample too small to have a variance, or a generation before the first."""
    if n < 2 or generation < 0:
        raise ValueError(f"n must be 2 or more and generation 0 or more (n {n}, generation {generation})")


def check_choice(name: str, given: str, choices: Any) -> None:
    """Raise ValueError where ``given`` is none of the strings of the literal type ``choices``."""
    if given not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}: {given!r} is not")
