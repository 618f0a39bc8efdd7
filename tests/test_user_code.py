"""A user's own module reaches workers that do not see the folder it lies in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fortifai_ray.user_code import modules_here

PROGRAM = """
import sys
from pathlib import Path

from fortifai_ray.sweep.instance import ray_instance
from fortifai_ray.user_code import find_user_code

find_user_code("my_module:answer", "loss")
with ray_instance(sys.argv[1], None):
    import ray

    for file in ("my_module.py", "beside.py", "package/__init__.py"):
        Path(file).unlink()  # as on a node that does not see this folder

    @ray.remote(num_cpus=0)
    def on_a_worker():
        return find_user_code("my_module:answer", "loss")()

    print(ray.get(on_a_worker.remote()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module, which imports another that lies beside it, and a package."""
    (tmp_path / "my_module.py").write_text(
        "import beside\nimport package\n\n\ndef answer():\n    return beside.VALUE\n"
    )
    (tmp_path / "beside.py").write_text("VALUE = 42\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    return tmp_path


def test_what_was_imported_from_the_current_folder_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a cluster from being sent installed packages, or this one, or all that lies in the folder."""
    (folder / "unused.py").touch()
    monkeypatch.chdir(folder)
    assert modules_here() == []
    monkeypatch.syspath_prepend(str(folder))
    import my_module  # noqa: F401

    found = modules_here()
    for name in ("my_module", "beside", "package"):
        monkeypatch.delitem(sys.modules, name)
    assert found == [str(folder / name) for name in ("beside.py", "my_module.py", "package")]


@pytest.mark.ray
def test_a_worker_that_does_not_see_the_folder_has_the_modules(folder: Path, ray_instance: str) -> None:
    """Protects `fortifai sweep --address`, run on the head, from needing the study's folder on every node."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, ray_instance]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["42"]
