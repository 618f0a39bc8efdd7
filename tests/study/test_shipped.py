"""Studies that come with the package are found by name; a file of the user's own goes before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fortifai_ray.cli import main
from fortifai_ray.errors import UserError
from fortifai_ray.study.shipped import about, find, folder, named, shipped
from fortifai_ray.study.study import load_study

NAMES = [study.name for study in shipped()]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is not the project's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_says_what_it_asks_and_how_long_it_takes() -> None:
    assert len(NAMES) > 40
    for study in shipped():
        assert study.line.endswith((".", "?")), study.name
        assert "yaml-language-server" not in study.about
        assert study.takes != "unknown", study.name


def test_a_name_finds_the_shipped_file() -> None:
    assert find(Path("quickstart")) == folder() / "quickstart.yaml"
    assert load_study(Path("search_gaussian")).name == "search_gaussian"


@pytest.mark.parametrize("own", ["quickstart", "quickstart.yaml", "quickstart.yml"])
def test_a_file_of_that_name_in_the_working_folder_wins(elsewhere: Path, own: str) -> None:
    (elsewhere / own).write_text("")
    assert find(Path("quickstart")) == Path(own)


def test_a_folder_of_that_name_is_no_study(elsewhere: Path) -> None:
    """``runs/quickstart`` holds a study's results: its name, said inside ``runs``, still means the study."""
    (elsewhere / "quickstart").mkdir()
    (elsewhere / "other").mkdir()
    assert find(Path("quickstart")) == folder() / "quickstart.yaml"
    assert find(Path("other")) == Path("other")  # reading it says what is wrong


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("quikstart", "the nearest is quickstart"),
        ("wikitext", "the nearest is wikitext2_small"),
        ("Quickstart", "the nearest is quickstart"),
        ("xyz", "the nearest is "),
        ("my.study", "no such file here, nor my.study.yaml"),
        ("sweeps/quickstart.yaml", "goes by its name: quickstart"),
        ("quickstart.yml", "goes by its name: quickstart"),
        ("./quickstart.yaml", "goes by its name: quickstart"),
        ("no/such.yaml", "cannot be read"),
        ("such.yaml", "cannot be read"),
        ("no/such", "cannot be read"),
    ],
)
def test_a_study_that_is_not_there(asked: str, said: str) -> None:
    """One line, with the name that was given first."""
    with pytest.raises(UserError) as error:
        load_study(Path(asked))
    assert said in str(error.value)
    assert str(error.value).startswith(str(Path(asked)))
    assert "\n" not in str(error.value)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["fortifai", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), *capsys.readouterr()


def test_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, with name and time whole also where the terminal is narrow."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(monkeypatch, capsys, "studies")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:-1]] == NAMES
    assert "about 6 minutes" in lines[1 + NAMES.index("quickstart")]
    whole = {study.name: study.line for study in shipped()}
    for line in lines[1:-1]:
        asks = line.split("  ")[-1].strip()
        assert len(line) <= 120, "as wide as a pipe is"
        left = whole[line.split()[0]].removeprefix(asks.removesuffix(" …"))
        assert left == "" or (asks.endswith(" …") and len(left) < len(whole[line.split()[0]]))


def test_one_is_printed_to_begin_with(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "studies", "search_gaussian")
    assert (code, out) == (0, (folder() / "search_gaussian.yaml").read_text(encoding="utf-8"))
    code, _, err = run(monkeypatch, capsys, "studies", "search_gausian")
    assert code == 2
    assert "nearest is search_gaussian" in err


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fortifai_ray import __version__

    assert run(monkeypatch, capsys, "--version") == (0, f"fortifai {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fortifai stu", {"studies"}),
        ("fortifai sweep search_g", {"search_gaussian"}),
        ("fortifai sweep min", {"mine.yaml"}),
        ("fortifai new --fam", {"--family"}),
    ],
)
def test_the_shell_completes_commands_options_and_studies(elsewhere: Path, words: str, found: set[str]) -> None:
    """Study files of the working folder among them."""
    (elsewhere / "mine.yaml").write_text("")
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_FORTIFAI_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv = ['fortifai']; from fortifai_ray.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert set(done.stdout.split()) == found, done.stderr


def test_the_first_comment_alone_is_about_a_study(elsewhere: Path) -> None:
    (elsewhere / "one.yaml").write_text("# yaml-language-server: $schema=x\n# One.\n# Two.\nname: one\n# three\n")
    assert about(Path("one.yaml")) == "One. Two."
    assert named("quickstart").line.endswith("every CPython carries?")
