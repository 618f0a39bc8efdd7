"""Closed forms that analytic chains must meet: what study files' claims name as ``{theory: NAME, …}``.

Generation 0 is already one fit, to n human samples; ``generation`` g has g + 1 fits behind it. Where a source is given
as *derived*, the formula follows from the lines in its docstring, and tests check it by simulation.

Every module of this package registers its closed forms (:mod:`fortifai_ray.theory.registry`); each is also an attribute
of the package, ``theory.gaussian_replace_mean_variance(n=100, generation=9)``.
"""

import importlib
import pkgutil
from collections.abc import Callable

from fortifai_ray.theory.registry import CLOSED_FORMS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Callable[..., float]:
    if name not in CLOSED_FORMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return CLOSED_FORMS[name].function
