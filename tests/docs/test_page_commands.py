"""Every command that a page shows is one: the real parsers take its options, the studies and paths that it names are
there, and what is cheap is run as it stands, in the page's own order.

Commands are the lines of fenced blocks without a language, and inline code that begins with a program.
``docs/commands.md`` is left out: the parser itself writes it.
"""

import argparse
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from fortifai_ray import UserError, load_study
from fortifai_ray.cli import app, main
from tests.histories.runs import rows

PROJECT = Path(__file__).resolve().parents[2]
BESIDE = [PROJECT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "cluster/README.md")]
PAGES = [*BESIDE, *(page for page in sorted((PROJECT / "docs").glob("*.md")) if page.name != "commands.md")]
ELSEWHERE = {  # programs that are not run here, and why not; the paths that they name are looked up all the same
    **dict.fromkeys((".", "export", "chmod", "tail"), "of the reader's shell"),
    **dict.fromkeys(("pip", "uv"), "fetch packages; the extras that they name are looked up"),
    **dict.fromkeys(("ray", "docker", "kubectl", "sbatch", "scancel"), "need machines; tests/cluster has their files"),
    "sh": "sets up a node; tests/cluster runs it",
    ".ci/run": "runs this test",
    "marimo": "opens an editor; tests/analysis runs the notebooks",
}
PARSED_ALONE = {  # commands of fortifai that are not run here, and where they are
    **dict.fromkeys(("report", "claims", "export", "gc"), "need a study that has run: tests/claims, export, storage"),
    "evaluate": "needs a checkpoint: tests/families/language",
    "fetch": "fetches a model: tests/engines/test_fetch.py",
    "doctor": "takes seconds: tests/test_doctor.py",
    "ui": "serves until it is stopped: tests/tracking/test_address.py",
}
COMMANDS: Any = typer.main.get_command(app)
INLINE = ("fortifai", "make", "python", "pip", "uv")
CODE = re.compile(r"`([^`]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUR_PATH = re.compile(r"(?:analysis|benchmarks|cluster|docs|scripts|sweeps|tests)/[\w./-]+")


class Shown(NamedTuple):
    """A command as a page has it."""

    words: list[str]
    into: str | None
    """The file after ``>``."""
    whole: bool
    """Whether it can be run as it stands; inline code, and what ends in …, may leave out arguments."""


def shown(page: Path) -> Iterator[Shown]:
    """The commands of a page: those of its blocks, in their order, and then the inline ones."""
    text = page.read_text(encoding="utf-8")
    for language, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "bash", "sh") else ():
            yield from _of_line(line, whole=True)
    for code in CODE.findall(BLOCK.sub("", text)):
        words = code.removeprefix(".venv/bin/").split()
        if len(words) > 1 and words[0] in INLINE:
            yield from _of_line(" ".join(words), whole=False)


def _of_line(line: str, *, whole: bool) -> Iterator[Shown]:
    words = [word for word in shlex.split(line, comments=True) if not word.startswith("[") and not word.endswith("]")]
    whole = whole and "…" not in words and len(words) == len(shlex.split(line, comments=True))
    words = [word.removesuffix("…") for word in words if word != "…"]
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        part, words = words[:end], words[end + 1 :]
        while re.match(r"[A-Z_]+=", part[0]):
            part = part[1:]
        part[0] = part[0].removeprefix(".venv/bin/")
        into = part[part.index(">") + 1] if ">" in part else None
        yield Shown(part[: part.index(">")] if into else part, into, whole)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's own folder, with the runs that docs/analyse.md judges."""
    names = {"gen": "generation", "ppl": "perplexity"}
    lines = [",".join(names.get(name, name) for name in next(rows()))]
    lines += [",".join("" if value is None else str(value) for value in row.values()) for row in rows()]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_the_commands_of_a_page(
    page: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is taken by its program, or is on the list of those that cannot be tried here."""
    for command in shown(page):
        program, *arguments = command.words
        named = [word for word in arguments if OUR_PATH.fullmatch(word) and not Path(word).stem.isupper()]
        assert all((PROJECT / path).exists() for path in named), command
        if program == "fortifai":
            _fortifai(arguments, command, monkeypatch, capsys)
        elif program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stderr)
        elif program == "python":
            _python(arguments, monkeypatch)
        else:
            assert program in ELSEWHERE, command
            asked = re.findall(r"fortifai-ray\[([\w,]+)\]", " ".join(arguments))
            assert {extra for extras in asked for extra in extras.split(",")} <= _extras(), command


def _extras() -> set[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def _fortifai(
    arguments: list[str], command: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parsed; its study, with what is put into it, is loaded; run where it is cheap."""
    if arguments[0].startswith("-"):
        assert arguments[0] in {option for parameter in COMMANDS.params for option in parameter.opts}
        return
    name = arguments[0]
    given = _parsed(name, arguments[1:], command.whole)
    if name == "sweep" and given and not given["file"].stem.isupper():
        _study(given["file"], given["override"] or [], monkeypatch, capsys)
    placeholders = [word for word in arguments if word.isupper()]
    runs = given and command.whole and not placeholders and (name != "sweep" or given["dry_run"])
    if runs and name not in PARSED_ALONE:
        said = _run(arguments, monkeypatch, capsys)
        if command.into:
            Path(command.into).write_text(said, encoding="utf-8")
            load_study(command.into)


def _parsed(name: str, arguments: list[str], whole: bool) -> dict[str, Any]:
    """What the command line makes of the arguments; nothing where inline code leaves out what is needed."""
    try:
        return dict(COMMANDS.commands[name].make_context(name, arguments).params)
    except Exception as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise
        return {}


def _study(
    file: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study that a reader has there: one of this project's, a shipped one, or the one that he has begun."""
    if (PROJECT / file).is_file():
        file = PROJECT / file
    elif file.stem.startswith("my") and not file.with_suffix(".yaml").is_file():
        _run(["new", file.stem], monkeypatch, capsys)
    try:
        load_study(file, set=overrides)
    except UserError as error:
        if "there is no folder models/" not in str(error):  # which `fortifai fetch` or `make wikitext2-5m` fills
            raise


def _run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints; it must succeed."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["fortifai", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert not end.value.code, (arguments, err)
    return out


class Parsed(Exception):
    """Arguments were taken."""


def _python(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's or a module's own parser takes the arguments; then it is stopped."""
    if arguments[0] == "-c":
        compile(arguments[1], "<page>", "exec")
        return
    module = arguments[1] if arguments[0] == "-m" else None
    spec = importlib.util.find_spec(module) if module else None
    assert spec is not None or not module, module
    source = Path(str(spec.origin)) if spec else PROJECT / arguments[0]
    if "parse_args" not in source.read_text(encoding="utf-8"):  # pytest, or a script that takes paths alone
        return
    before, take = dict(os.environ), argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        take(self, args, namespace)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", arguments[1 if module else 0 :])
        patch.syspath_prepend(PROJECT)
        run = runpy.run_module if module else runpy.run_path
        try:
            with pytest.raises(Parsed):
                run(module or str(PROJECT / arguments[0]), run_name="__main__")
        finally:
            os.environ.clear()
            os.environ.update(before)


def test_what_is_listed_is_shown() -> None:
    """A reason for not running what no page shows any longer is dropped; and the pages have been read."""
    words = [command.words for page in PAGES for command in shown(page)]
    assert {word[0] for word in words} >= set(ELSEWHERE)
    assert {word[1] for word in words if word[0] == "fortifai"} >= set(PARSED_ALONE) | {"sweep", "new", "studies"}
