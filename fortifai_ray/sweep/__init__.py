"""The only home of Ray Tune. ``from fortifai_ray import sweep`` gives this room, and calling it is
:func:`fortifai_ray.library.sweep`: Python puts a package's room under its name, so that no function can have it."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(import_module("fortifai_ray.library").sweep)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return import_module("fortifai_ray.library").sweep(*arguments, **keywords)


sys.modules[__name__].__class__ = _Room
