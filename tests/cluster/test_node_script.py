"""``cluster/node.sh`` with stubs for what it calls: which packages it installs, and when it installs none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.files import CLUSTER, PROJECT

PYTHON3 = """#!/bin/sh
echo "python3 $*" >> "$CALLS"
case "$*" in *" venv "*) mkdir -p .venv ;; esac
"""


class Node:
    """A copy of the files that the script reads, and a PATH with stubs that record their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        (folder / "cluster").mkdir()
        (folder / "bin").mkdir()
        for name in ("cluster/node.sh", "cluster/requirements-gpu.lock", "requirements-cpu.lock", "pyproject.toml"):
            shutil.copy(PROJECT / name, folder / name)
        self.stub("python3", PYTHON3)
        self.stub("nvidia-smi", "#!/bin/sh\nexit 9\n")

    def stub(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    def set_up(self, *arguments: str) -> list[str]:
        """The script's calls, in order. Raises CalledProcessError where it fails."""
        self.calls.write_text("")
        environment = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self.calls)}
        subprocess.run(["sh", str(self.folder / "cluster" / "node.sh"), *arguments], check=True, env=environment)
        return self.calls.read_text().splitlines()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_node_without_a_gpu_gets_the_cpu_set(node: Node) -> None:
    calls = node.set_up()
    assert any(call.startswith("python3 -m uv venv") and "--python 3.11 .venv" in call for call in calls)
    installs = [call for call in calls if " pip install " in call and " -r " in call]
    assert len(installs) == 1
    assert installs[0].endswith("--no-deps --compile-bytecode --torch-backend cpu -r requirements-cpu.lock")
    assert calls[-1].endswith("--no-deps --editable .")


def test_a_node_with_a_gpu_gets_the_gpu_set(node: Node) -> None:
    """It chooses no build of torch: that of the lock file has the CUDA that vLLM's wheel was built for."""
    node.stub("nvidia-smi", "#!/bin/sh\nexit 0\n")
    (install,) = [call for call in node.set_up() if " -r " in call]
    assert install.endswith("--no-deps --compile-bytecode -r cluster/requirements-gpu.lock")


def test_the_kind_can_be_said(node: Node) -> None:
    """A login node has no GPU, but the nodes behind it have."""
    assert any("cluster/requirements-gpu.lock" in call for call in node.set_up("gpu"))


def test_a_node_that_is_set_up_is_left_alone_until_its_set_changes(node: Node) -> None:
    """Installing again would replace packages under a running Ray."""
    node.set_up()
    assert node.set_up() == []
    with (node.folder / "requirements-cpu.lock").open("a") as lock:
        lock.write("another-package==1.0\n")
    assert len(node.set_up()) > 2


def test_a_set_up_that_failed_is_begun_again(node: Node) -> None:
    node.stub("python3", PYTHON3 + 'case "$*" in *--editable*) exit 1 ;; esac\n')
    with pytest.raises(subprocess.CalledProcessError):
        node.set_up()
    node.stub("python3", PYTHON3)
    assert len(node.set_up()) > 2


def test_an_unknown_kind_is_refused(node: Node) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        node.set_up("tpu")
    assert failed.value.returncode == 2


@pytest.mark.parametrize("name", ["node.sh", "slurm.sbatch"])
def test_scripts_pass_shellcheck(name: str) -> None:
    checked = subprocess.run(
        [str(Path(sys.executable).parent / "shellcheck"), str(CLUSTER / name)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
