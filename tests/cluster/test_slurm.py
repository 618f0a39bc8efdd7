"""``cluster/slurm.sbatch`` without nodes: `srun`, `scontrol` and Ray are stubs that record their calls."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.files import CLUSTER

NODES = ("node-a", "node-b", "node-c")
# Each stub writes its name and arguments; Ray's also the token that it gets, and then it blocks, as `--block` does.
STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; printf "%s\\n" $HOSTS',
    "srun": 'echo "srun $*" >> "$CALLS"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": 'echo "fe80::1 10.1.2.3 172.17.0.1"',
    "ray": 'echo "ray $* [$RAY_AUTH_MODE, $(stat -c %a "$RAY_AUTH_TOKEN_PATH"), $(wc -c < "$RAY_AUTH_TOKEN_PATH")]" '
    '>> "$CALLS"; exec -a "$0 that blocks" sleep 60',
    "fortifai": 'echo "fortifai $*" >> "$CALLS"; cat "$RAY_AUTH_TOKEN_PATH" > "$CALLS.token"; '
    'if [ -n "${WARNED:-}" ]; then trap "echo ended > $CALLS.ended; exit 143" TERM; '
    "kill -TERM $PPID; sleep 30 & wait; fi; "
    "exit ${FAILS:-0}",
    "python": 'case "$1" in *.py) echo "python $*" >> "$CALLS"; sleep 0.3 ;; *) exec "$PYTHON" "$@" ;; esac',
}


class Job:
    """A folder to submit from, and a PATH with the stubs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        stubs = folder / ".venv" / "bin"
        stubs.mkdir(parents=True)
        for name, script in STUBS.items():
            (stubs / name).write_text(f"#!/bin/bash\n{script}\n")
            (stubs / name).chmod(0o755)

    def run(self, *arguments: str, nodes: tuple[str, ...] = NODES, **environment: str) -> tuple[int, list[str]]:
        """The job's exit code and its calls: the study's command last, the rest sorted."""
        self.calls.write_text("")
        slurm = {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "20123",
            "SLURM_JOB_NODELIST": "node-[a-c]",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_ON_NODE": "1",
        }
        test = {"CALLS": str(self.calls), "HOSTS": " ".join(nodes), "PYTHON": sys.executable}
        run = subprocess.run(
            ["bash", str(CLUSTER / "slurm.sbatch"), *arguments],
            env={"PATH": os.environ["PATH"], **slurm, **test, **environment},
            timeout=60,
        )
        return run.returncode, self.calls.read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_head_workers_and_the_study(job: Job) -> None:
    """One head on the first node, a Ray node on each other one, and the study at the head's address when all are up."""
    code, calls = job.run("sweeps/quickstart.yaml", "--set", "training.epochs=1")
    assert code == 0
    address = "10.1.2.3:20123"
    steps = [call for call in calls if call.startswith("srun") and " ray start " in call]
    assert len(steps) == 2
    assert steps[0].startswith("srun --nodes=1 --ntasks=1 --nodelist=node-a ray start --head")
    assert "--node-ip-address=10.1.2.3 --port=20123 --include-dashboard=false" in steps[0]
    assert steps[1].startswith(f"srun --nodes=2 --ntasks=2 --exclude=node-a ray start --address={address}")
    assert all("--num-cpus=8 --num-gpus=1" in step and step.endswith("--block") for step in steps)
    waits = [call for call in calls if call.startswith("python cluster/nodes.py")]
    assert [wait.split()[2] for wait in waits] == ["1", "3"]
    assert calls.index(waits[0]) < calls.index(steps[1])
    assert calls[-1] == (
        f"fortifai sweep sweeps/quickstart.yaml --storage {job.folder}/runs --address {address} --set training.epochs=1"
    )


def test_ray_asks_for_a_token_that_only_the_user_can_read(job: Job) -> None:
    """Each job has its own token, in a file of mode 600 that is removed afterwards; never on a command line."""
    tokens = set()
    for _ in range(2):
        _, calls = job.run("study.yaml", FORTIFAI_STORAGE=str(job.folder / "storage"))
        started = [call for call in calls if call.startswith("ray start")]
        assert len(started) == 2
        assert all(call.endswith("[token, 600, 65]") for call in started)
        token = Path(f"{job.calls}.token").read_text().strip()
        assert not any(token in call for call in calls)
        tokens.add(token)
    assert len(tokens) == 2
    assert not list((job.folder / "storage").glob(".ray-token*"))


def test_one_node_is_enough(job: Job) -> None:
    code, calls = job.run("study.yaml", nodes=("node-a",))
    assert code == 0
    assert len([call for call in calls if "ray start" in call and call.startswith("srun")]) == 1


def test_a_study_that_fails_fails_the_job_and_leaves_nothing_running(job: Job) -> None:
    """The exit code is the study's, so that `sacct` shows it; Ray's steps end, and the token is removed."""
    code, _ = job.run("study.yaml", FAILS="3")
    assert code == 3
    assert not list((job.folder / "runs").glob(".ray-token*"))
    deadline = time.monotonic() + 20
    while running := [process for process in psutil.process_iter(["cmdline"]) if belongs_to(process, job)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.1)


def test_slurms_warning_stops_the_study_before_its_ray(job: Job) -> None:
    """The batch shell alone gets it (`--signal=B:`): it hands it on, waits for the study's end, and says 143."""
    code, _ = job.run("study.yaml", nodes=("node-a",), WARNED="yes")
    assert code == 143
    assert Path(f"{job.calls}.ended").read_text() == "ended\n"
    assert not list((job.folder / "runs").glob(".ray-token*"))


def belongs_to(process: psutil.Process, job: Job) -> bool:
    return any(str(job.folder) in argument for argument in process.info["cmdline"] or ())


def test_a_job_without_a_study_says_how(job: Job) -> None:
    code, calls = job.run()
    assert (code, calls) == (2, [])


def test_the_directives_are_slurms() -> None:
    """They come before the first command, or Slurm ignores them."""
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert directives
    assert max(directives) < first
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=\S+", lines[number]) for number in directives)
