"""The study files that come with the package: found by their names, and what each says of itself.

In a checkout they are ``sweeps/``, in an installed package ``study/files/`` beside this module (``pyproject.toml`` puts
them there). A file begins with a comment: what it asks, and in its last sentence how long it takes.
"""

import difflib
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from fortifai_ray.errors import UserError

SCHEMA = "study.schema.json"  # beside the files; each names it in its first line, for editors
_USUAL = " on two cores"
_EDITORS = "yaml-language-server:"
_TAKES = re.compile(r"\s*Takes ([^.]+)\.$")
_SENTENCE = re.compile(r"(?<! al)[.?](?= |$)")
_ENDINGS = (".yaml", ".yml")
_NARROWEST = 20  # so much of what a study asks is shown, even where that makes the line too long


@dataclass(frozen=True)
class Shipped:
    """A study file that comes with the package."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def about(self) -> str:
        """The comment that the file begins with, in one line, without what is there for editors."""
        return about(self.path)

    @cached_property
    def line(self) -> str:
        """What it asks: the first sentence of the comment."""
        end = _SENTENCE.search(self.about)
        return self.about[: end.end()] if end else self.about

    @cached_property
    def takes(self) -> str:
        """How long it takes, and on what: ``about 6 minutes on two cores``."""
        found = _TAKES.search(self.about)
        return found[1] if found else "unknown"


def about(file: Path) -> str:
    """The comment that a study file begins with, in one line, without what is there for editors."""
    with file.open(encoding="utf-8") as lines:
        comment = [line.lstrip("# ").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    return " ".join(line for line in comment if not line.startswith(_EDITORS))


def folder() -> Path:
    """Where the shipped study files lie."""
    installed = Path(__file__).parent / "files"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sweeps"


def shipped() -> Iterator[Shipped]:
    """Every shipped study, by name."""
    yield from (Shipped(path) for path in sorted(folder().glob("*.yaml")))


def named(name: str) -> Shipped:
    """The shipped study of a name. Raises :class:`UserError`, which says the nearest name."""
    known = {study.name: study for study in shipped()}
    if name not in known:
        raise UserError(f"{name}: {_unknown(name, known)}")
    return known[name]


def _unknown(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    meant = f"; the nearest is {nearest[0]}" if nearest else ""
    return f"no study of that name is shipped{meant} (fortifai studies lists them)"


def find(file: Path) -> Path:
    """The study file that a path or a name asks for: the file itself; for a plain name, ``NAME.yaml`` in the working
    folder, else the shipped study.

    Raises:
        UserError: there is none, and no file of that path which could not be read.
    """
    known = {study.name: study.path for study in shipped()}
    if file.is_file():
        return file
    if file.suffix in _ENDINGS or len(file.parts) != 1:
        if not file.exists() and file.stem in known:
            raise UserError(f"{file}: there is no such file; the study that is shipped goes by its name: {file.stem}")
        return file
    own = [path for ending in _ENDINGS if (path := Path(f"{file}{ending}")).is_file()]
    if own or str(file) in known:
        return own[0] if own else known[str(file)]
    if file.exists():  # a folder, say
        return file
    raise UserError(f"{file}: there is no such file here, nor {file}.yaml, and {_unknown(str(file), known)}")


def print_shipped(console: Console) -> None:
    """A line for each shipped study: its name, how long it takes, and what it asks, cut at a word where the line ends
    ("…")."""
    rows = [("study", "takes", "asks")]
    rows += [(study.name, study.takes.removesuffix(_USUAL), study.line) for study in shipped()]
    name, takes = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    for row in rows:
        asks = textwrap.shorten(row[2], max(_NARROWEST, console.width - name - takes), placeholder=" …")
        console.print(f"{row[0]:{name}}{row[1]:{takes}}{asks}", highlight=False, markup=False, soft_wrap=True)
    console.print("Times are of two cores. Run one by its name: fortifai sweep quickstart", highlight=False)
