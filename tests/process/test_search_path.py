"""Libraries come first: no file of the working folder hides one, and a user's own modules are still found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from traps import BEFORE_THE_PROGRAM, LIBRARIES, set_traps

from fortifai_ray.process import search_path
from fortifai_ray.user_code import find_user_code

PROJECT = Path(__file__).resolve().parents[2]


def remove(folder: Path, name: str) -> None:
    for trap in (folder / f"{name}.py", folder / name / "__init__.py"):
        trap.unlink(missing_ok=True)


@pytest.mark.parametrize("python_path", ["PROJECT", "PROJECT:", ":PROJECT", ".:PROJECT", "PROJECT:HERE"])
@pytest.mark.parametrize("program", ["script", "module"])
def test_no_file_of_the_working_folder_hides_a_library(tmp_path: Path, python_path: str, program: str) -> None:
    """The command line starts in a folder full of traps, however the path was set.

    A dot, an empty part and the folder's own name in PYTHONPATH hide what Python imports as it starts: nothing can mend
    that, so those traps are left out there.
    """
    set_traps(tmp_path)
    early = BEFORE_THE_PROGRAM if program == "module" else set()
    if python_path != "PROJECT":
        early = {*BEFORE_THE_PROGRAM, *LIBRARIES.split()} - {
            "statistics",
            "numpy",
            "torch",
            "ray",
            "token",
            "queue",
            "tokenizers",
        }
    for name in early:
        remove(tmp_path, name)
    value = python_path.replace("PROJECT", str(PROJECT)).replace("HERE", str(tmp_path))
    run = "from fortifai_ray.__main__ import main; main()"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fortifai").write_text(run)  # as the installed script
    command = [str(tmp_path / "bin" / "fortifai")] if program == "script" else ["-m", "fortifai_ray"]
    done = subprocess.run(
        [sys.executable, *command, "sweep", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("own", "named", "stays"),
    [
        (["HERE"], "", []),
        ([""], "", []),
        (["/somewhere/bin"], "", []),
        (["HERE", "/lib"], "/lib", ["/lib"]),
        (["/scripts", "HERE", "/lib"], ":/lib", ["/lib"]),
        (["/lib", "HERE"], "/lib:.", ["/lib"]),
        (["/lib", "HERE"], "/lib:HERE", ["/lib"]),
        ([], "", []),
    ],
)
def test_what_python_puts_first_by_itself_is_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: list[str], named: str, stays: list[str]
) -> None:
    """Protects the folders that somebody put into PYTHONPATH, the libraries, and everything after them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", named.replace("HERE", str(tmp_path)))
    libraries = ["/usr/lib/python311.zip", os.path.dirname(os.__file__), "/site-packages", str(tmp_path)]
    path = [part.replace("HERE", str(tmp_path)) for part in own] + libraries
    assert search_path.safe(path) == [*stays, *libraries]


def test_a_worker_looks_into_the_users_folders_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even into one that Ray has put first, for this package to be found there."""
    monkeypatch.setattr(sys, "path", ["/checkout", "/lib", "/site-packages"])
    monkeypatch.setenv(search_path.FOLDERS, os.pathsep.join(["/study", "/checkout"]))
    search_path.add_own_folders()
    assert sys.path == ["/lib", "/site-packages", "/study", "/checkout"]


@pytest.mark.parametrize(
    ("file", "kind", "complaint"),
    [
        ("statistics.py", "statistics:MyLoss", "statistics is Python's own module"),
        ("time.py", "time:loss", "time is Python's own module"),
        ("sys.py", "sys:loss", "sys is Python's own module"),
        ("numpy.py", "numpy:abs", "numpy is an installed module"),
        ("torch/__init__.py", "torch:loss", "torch is an installed module"),
        ("yaml/__init__.py", "yaml.losses:loss", "yaml is an installed module"),
    ],
)
def test_a_clash_of_names_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str, complaint: str
) -> None:
    """A user who named a module like a library is told which of the two is meant, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("def loss(log_p):\n    return -log_p\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match="rename yours") as error:
        find_user_code(kind, "loss")
    assert complaint in str(error.value)
    assert file in str(error.value)


def test_a_folder_that_is_no_package_clashes_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `json/` of data is no module: Python passes over it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json").mkdir()
    assert callable(find_user_code("json:dumps", "loss"))
