"""Where this program and its workers look for modules: among the libraries first, in the user's own folders last.

Python, and Ray in its workers, put the working folder first. A ``statistics.py``, a ``token.py`` or a folder ``torch/``
there would then hide the library of that name, and break whatever imports it. The standard library alone is imported
here, and as little of it as possible: this must run before such a file does harm.
"""

import os
import sys

# Names the folders of the user's own modules to a worker, which runs in another folder or on another machine.
FOLDERS = "FORTIFAI_MODULE_FOLDERS"
# As `python -P`: a process started by `python -c` or `python FILE` does not look in its folder first.
SAFE = "PYTHONSAFEPATH"
_HOME = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))  # where this package lies


def libraries_first() -> None:
    """Take the working folder, and the script's, from the front of the path, for this process and those it starts.

    Other folders in ``PYTHONPATH`` stay, as somebody put them there; the working folder is there by an empty part
    (``PYTHONPATH=$PYTHONPATH:/lib``) or a dot most of the time. It stays where this package itself runs from it.
    """
    named = _named()
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    count = _count_before_libraries(sys.path)
    front = [
        folder
        for place, folder in enumerate(sys.path[:count])
        if os.path.abspath(folder) in named or not (_same(folder, os.getcwd()) or (place == 0 and folder == script))
    ]
    sys.path[:count] = front
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    os.environ[SAFE] = "1"


def safe(path: list[str]) -> list[str]:
    """A process's path without what only that process, and nobody by ``PYTHONPATH``, put ahead of the libraries."""
    count, named = _count_before_libraries(path), _named()
    return [folder for folder in path[:count] if folder.endswith(".zip") or folder in named] + path[count:]


def own_folders() -> list[str]:
    """The folders that only this process looks into, and the working folder: the workers look there last."""
    common = safe(sys.path)
    own = [os.path.abspath(folder) for folder in sys.path if folder not in common]
    return list(dict.fromkeys([*own, os.getcwd()]))


def add_own_folders() -> None:
    """In a worker: look into the user's folders too, last, even where they were put first."""
    folders = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    if folders:
        sys.path[:] = [*(folder for folder in sys.path if folder not in folders), *folders]


def workers_environment() -> dict[str, str]:
    """The variables that tell workers where the user's own modules are, and to look there last."""
    return {FOLDERS: os.pathsep.join([*own_folders(), *home_of_package()]), SAFE: "1"}


def home_of_package() -> list[str]:
    """The folder that workers must look into to find this very package, where they would find none, or another."""
    first = next((f for f in safe(sys.path) if os.path.isfile(os.path.join(f, "fortifai_ray", "__init__.py"))), "")
    return [] if first and os.path.samefile(first, _HOME) else [_HOME]


def _named() -> list[str]:
    """The folders of ``PYTHONPATH``, without the working folder unless this package runs from it."""
    parts = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return [os.path.abspath(part) for part in parts if not _same(part, os.getcwd()) or _same(part, _HOME)]


def _count_before_libraries(path: list[str]) -> int:
    libraries = os.path.dirname(os.__file__)
    return path.index(libraries) if libraries in path else 0


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
