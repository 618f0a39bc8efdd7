"""The wheel is the whole product: installed elsewhere without the checkout, it lists, begins and runs studies."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the backend that the set-up of this environment has fetched: no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    if not UV.is_file():
        pytest.skip(f"no uv at {UV}: make setup puts it there")
    subprocess.run([str(UV), "build", "--wheel", "--quiet", "--out-dir", str(folder), str(PROJECT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel, and this environment's libraries behind it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    subprocess.run([str(UV), "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)], check=True)
    (packages,) = (folder / "env" / "lib").glob("*/site-packages")
    # As a path alone: its own .pth files, of the checkout among them, are not read.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


@pytest.fixture
def alone(wheel: Path, tmp_path: Path) -> Path:
    """The folder of commands of an environment that was empty before the wheel came with its extra and what they need,
    in the lock's versions: most of it from uv's cache, where the set-up put it."""
    venv.create(tmp_path / "env")
    links = os.environ.get("PIP_FIND_LINKS")
    torch = [] if links else ["--torch-backend", "cpu"]
    chosen = ["--constraints", "requirements-cpu.lock", "--excludes", "requirements-cpu.excludes", *torch]
    install = [str(UV), "pip", "install", "--quiet", "--python", str(tmp_path / "env" / "bin" / "python"), *chosen]
    found = {"UV_FIND_LINKS": links} if links else {}
    subprocess.run([*install, f"{wheel}[cpu]"], check=True, cwd=PROJECT, env=os.environ | found)
    return tmp_path / "env" / "bin"


def run(commands: Path, folder: Path, *command: str) -> str:
    """What a command of the environment prints, run in a folder without anything of this checkout."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(commands / command[0]), *command[1:]], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_has_the_studies_and_the_families(installed: Path, tmp_path: Path) -> None:
    """Shipped files, their schema, and the small pretrained model are found beside the installed package."""
    assert run(installed, tmp_path, "fortifai", "--version").startswith("fortifai ")
    listed = run(installed, tmp_path, "fortifai", "studies")
    shipped = {path.stem for path in (PROJECT / "sweeps").glob("*.yaml")}
    assert shipped <= {line.split()[0] for line in listed.splitlines()}
    look = (
        "import fortifai_ray, fortifai_ray.families.language.family, fortifai_ray.families.images.family\n"
        "from fortifai_ray.families.language.config import ModelConfig\n"
        "from fortifai_ray.study.shipped import SCHEMA, folder\n"
        "from fortifai_ray.study.study import load_study\n"
        "from pathlib import Path\n"
        "assert (folder() / SCHEMA).is_file() and ModelConfig(preset='llama-docs').folder.is_dir()\n"
        "print(load_study(Path('quickstart')).source, fortifai_ray.__file__)"
    )
    places = run(installed, tmp_path, "python", "-c", look).split()
    assert all(Path(place).is_relative_to(installed.parent) for place in places), places


@pytest.mark.end_to_end
def test_a_study_that_it_writes_runs(alone: Path, tmp_path: Path) -> None:
    """From an empty environment and an empty folder: begin a study, run it, and read its report."""
    run(alone, tmp_path, "fortifai", "new", "mine", "--family", "gaussian")
    told = run(alone, tmp_path, "fortifai", "sweep", "mine", "--set", "generations=3")
    assert "report: " in told
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert (tmp_path / "runs" / "mine" / "results" / "fidelity.parquet").is_file()


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_setting_up_refuses_another_python(tmp_path: Path, version: tuple[int, int]) -> None:
    """Before it makes an environment, in one line."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = {(*version, 0)}; $2"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(PROJECT / "scripts" / "setup.sh")],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()
