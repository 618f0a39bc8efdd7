"""A user's own code, named ``module:name`` in a study file: imported, hashed, and checked for mistakes."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fortifai_ray.errors import UserError, in_short, named
from fortifai_ray.validation import hint, mistake

_OURS = ("__main__", "__mp_main__", "fortifai_ray")


def find_user_code(kind: str, what: str) -> Any:
    """The object that ``kind`` (``module:name``) names; ``what`` it should be (``loss``, ``family``) is for messages.

    Raises:
        ValueError: no such module or name, or a module that this process or its workers cannot import.
    """
    module_name, _, name = kind.partition(":")
    if module_name == "__main__":
        raise ValueError(f"a {what} defined in the running script cannot reach the workers: put it into a module")
    module = _import(module_name)
    code = getattr(module, name, None)
    if code is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise ValueError(f"{module_name} has no {name}{hint(name, own)}")
    return code


def names_code(value: Any) -> bool:
    """Whether a value of a study file names a user's code, as ``module:name``."""
    return isinstance(value, str) and ":" in value


def find_class(kind: str, what: str) -> Any:
    """As :func:`find_user_code`, of a class."""
    module_name, _, name = kind.partition(":")
    if not module_name or not name:
        raise ValueError(f"a {what} of your own is named module:Class, not {kind!r}")
    cls = find_user_code(kind, what)
    if not inspect.isclass(cls):
        raise ValueError(f"{kind} is not a class")
    return cls


def built(kind: str, what: str, settings: Mapping[str, Any]) -> Any:
    """An instance of a user's class, one for each of its settings."""
    return _built(kind, what, json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=64)
def _built(kind: str, what: str, settings: str) -> Any:
    return find_class(kind, what)(**json.loads(settings))


def check_class(
    section: str, kind: str, what: str, settings: Mapping[str, Any], check: Callable[[Any, str], None]
) -> None:
    """Check a user's class, the ``kind`` of a section of a study file: it can be imported, ``check(class, kind)``
    raises no ValueError, and it accepts the settings.

    Raises ValidationError, at the key that is wrong.
    """
    try:
        cls = find_class(kind, what)
        check(cls, kind)
    except ValueError as error:
        raise mistake(section, "kind", str(error), kind) from None
    known = inspect.signature(cls).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for key in settings:
            if key not in known:
                wrong = f"unknown key: {kind} takes {', '.join(known) or 'nothing'}"
                raise mistake(section, key, wrong, settings[key])
    try:
        built(kind, what, settings)
    except (Exception, SystemExit) as error:  # a user's code may fail in any way
        words = in_short(error) if isinstance(error, ValueError) else told(error, cls)  # some check their settings
        raise mistake(section, "kind", f"{kind} does not take these settings: {words}", kind) from error


def unknown_setting(function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> str | None:
    """What is wrong with a user's function of items and settings; None: nothing."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function in C tells no parameters
        return None
    known = list(signature.parameters.values())
    if not known or known[0].kind in (known[0].KEYWORD_ONLY, known[0].VAR_KEYWORD):
        return f"{name}{signature} must take the items as its first argument"
    del known[0]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return None
    names = [parameter.name for parameter in known if parameter.kind is not parameter.VAR_POSITIONAL]
    unknown = next((key for key in settings if key not in names), None)
    if unknown is not None:
        return f"{unknown}: unknown key: {name} takes {', '.join(names) or 'no settings'}"
    needed = [one.name for one in known if one.name in names and one.default is one.empty and one.name not in settings]
    return f"{needed[0]}: this setting of {name} is needed and missing" if needed else None


def takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether ``function`` can be called with so many arguments by position."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    return True


def call_of(where: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What a user's function returns; raises UserError, beginning with ``where``, for one that fails."""
    try:
        return function(*arguments, **settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may fail in any way
        raise UserError(f"{where} failed: {told(error, function)}") from error


def told(error: BaseException, code: Any) -> str:
    """An error in one line, with the last line of the user's own files that led to it: ``ValueError: no reward today,
    at my_rewards.py:12``. The files are those beside the one that defines ``code``."""
    module = inspect.getmodule(code)
    if module is None or module.__file__ is None:
        return named(error)
    file, ours = Path(module.__file__), Path(__file__).parent
    root = file.parents[module.__name__.count(".") + (file.name == "__init__.py")]
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [
        f"{path.relative_to(root)}:{line}"
        for path, line in places
        if file.parent in path.parents
        and ours not in path.parents
        and "site-packages" not in path.relative_to(file.parent).parts
    ]
    return f"{named(error)}, at {own[-1]}" if own else named(error)


def modules_here() -> list[str]:
    """The modules and packages that this process has imported from the current folder, as files and folders.

    They are sent to the nodes of a cluster, which may not see that folder.
    """
    here = Path.cwd()
    top_level = [module for name, module in sorted(sys.modules.items()) if "." not in name and name not in _OURS]
    files = [Path(file) for module in top_level if (file := getattr(module, "__file__", None))]
    places = [file.parent if file.name == "__init__.py" else file for file in files]
    return [str(place) for place in places if place.parent == here]


def source_of(kind: str, what: str) -> str:
    """As :func:`source_hash`, of whatever ``kind`` (``module:name``) names: an object is its module's. ValueError for
    what is in no file."""
    code = find_user_code(kind, what)
    own = inspect.isfunction(code) or inspect.isclass(code)
    try:
        return source_hash(code if own else sys.modules[kind.partition(":")[0]])
    except TypeError:
        raise ValueError(f"{kind} is Python's own, and no code of a file") from None


def source_hash(code: Any) -> str:
    """A hash of the whole module that defines a function or class, without the modules that it imports."""
    return hashlib.sha256(Path(inspect.getfile(code)).read_bytes()).hexdigest()


def _refuse_hidden(top: str) -> None:
    """Raise ValueError where a user's file has the name of a library, which comes before it."""
    mine = next((file for file in (Path(top, "__init__.py"), Path(f"{top}.py")) if file.is_file()), None)
    found = importlib.util.find_spec(top) if mine else None
    if mine is None or found is None or (found.has_location and mine.samefile(found.origin or "")):
        return
    whose = "Python's own" if top in sys.stdlib_module_names else "an installed"
    where = f" ({found.origin})" if found.has_location else ""
    raise ValueError(f"{top} is {whose} module{where}, which hides your {mine}: rename yours")


def _import(name: str) -> ModuleType:
    if not all(name.split(".")) or name.endswith(".py") or "/" in name or "\\" in name:
        dotted = ".".join(part for part in Path(name.removesuffix(".py")).parts if part.isidentifier()) or "my_module"
        raise ValueError(f"{name!r} is no module's name: Python imports it from the current folder, as {dotted}")
    here = str(Path.cwd())
    if name not in sys.modules and here not in sys.path:
        sys.path.append(here)  # last, so that a file here hides no library; workers are told of it as they start
    _refuse_hidden(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"there is no module {name} (looked for in the current folder, then installed)") from None
        raise ValueError(f"{name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # a user's file may fail in any way
        raise ValueError(f"{name} cannot be imported: {named(error)}") from error
