"""The fork server: a worker is what Ray's own start makes, only sooner, and nothing depends on the server's life.

One instance answers for all: what its workers say of themselves, and what becomes of them and of the server.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fortifai_ray.process import forked_worker
from fortifai_ray.process.forked_worker import ENGINES, KIND, SOCKETS, WORKERS
from fortifai_ray.sweep.fork_server import TEXTS, forked_workers

PROGRAM = """
import json, os, signal, sys, time
import psutil
from fortifai_ray.process.forked_worker import ENGINES, KIND
from fortifai_ray.sweep.instance import ray_instance

class Worker:
    def about(self):
        import random, threading, numpy, torch, fortifai_ray  # which settles the path
        names = [WorkerID.from_random().hex()]
        thread = threading.Thread(target=lambda: names.append(WorkerID.from_random().hex()))
        thread.start(), thread.join()
        return {
            "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgrp(), "arguments": sys.argv[1:2],
            "random": random.random(), "numpy": numpy.random.rand(), "names": names[0], "names of a thread": names[1],
            "threads": torch.get_num_threads(),
            "own": os.environ.get("OWN"), "path": sys.path, "child": os.spawnlp(os.P_WAIT, "true", "true"),
            "modules": "ray.tune" in sys.modules,
        }

with ray_instance(None, 2, ("numpy", "ray.tune", "torch")):
    import ray
    from ray._raylet import WorkerID

    Actor = ray.remote(num_cpus=0, max_restarts=1, max_task_retries=2)(Worker)
    answers, kept = {}, []  # an actor without a handle ends
    def actor(**variables):
        kept.append(Actor.options(runtime_env={"env_vars": variables} if variables else {}).remote())
        return kept[-1]

    first, second = actor(), actor()
    server = psutil.Process(ray.get(first.about.remote())["parent"])
    answers["server"] = [server.ppid(), os.getpid(), server.pid]
    answers["plain"] = ray.get([first.about.remote(), second.about.remote()])
    answers["own"] = ray.get(actor(OWN="a", OMP_NUM_THREADS="2").about.remote())
    answers["engine"] = ray.get(actor(**{KIND: ENGINES}).about.remote())
    os.kill(answers["plain"][0]["pid"], signal.SIGKILL)
    answers["again"] = ray.get(first.about.remote())
    answers["beside"] = ray.get(second.about.remote())
    ray.kill(second)
    for _ in range(300):  # one whose threads are still ending looks like a zombie, too
        answers["zombies"] = [p.pid for p in server.children() if p.status() == psutil.STATUS_ZOMBIE]
        if not answers["zombies"]:
            break
        time.sleep(0.1)
    server.kill()
    answers["without"] = ray.get(actor(OWN="b").about.remote())
    left = psutil.Process().children(recursive=True)
    left += [p for pid in (answers["again"]["pid"], answers["engine"]["pid"]) for p in [psutil.Process(pid)]]
_, alive = psutil.wait_procs(left, timeout=30)
answers["alive"] = [p.name() for p in alive]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """What the workers of one instance said."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="this system does not fork workers")
class TestWorkers:
    def test_are_forked_with_everything_imported(self, answers: dict[str, Any]) -> None:
        parent, program, server = answers["server"]
        assert parent == program
        assert [each["parent"] for each in answers["plain"]] == [server, server]
        assert all(each["modules"] for each in answers["plain"])
        assert answers["engine"]["parent"] != server, "engines have a server of their own"

    def test_are_as_Ray_starts_them(self, answers: dict[str, Any]) -> None:
        """But for what they inherit; the last was started by Ray's own program, after the server had been killed."""
        plain = answers["without"]
        assert plain["parent"] not in (answers["server"][2], answers["engine"]["parent"])
        for each in (*answers["plain"], answers["own"], answers["engine"]):
            assert each["group"] == each["pid"], "the raylet ends a whole group"
            assert each["arguments"][0].partition("=")[0] == plain["arguments"][0].partition("=")[0]
            assert each["path"] == plain["path"]
            assert each["child"] == 0, "a program that it starts has a status"
            assert each["threads"] == (2 if each is answers["own"] else 1)
        assert (answers["own"]["own"], plain["own"], answers["engine"]["own"]) == ("a", "b", None)

    @pytest.mark.parametrize("numbers", ["random", "numpy", "names", "names of a thread"])
    def test_draw_numbers_of_their_own(self, answers: dict[str, Any], numbers: str) -> None:
        """Ray's names of objects, too: two workers with the same would take one another's for theirs."""
        drawn = [each[numbers] for each in (*answers["plain"], answers["own"], answers["engine"])]
        assert len(set(drawn)) == len(drawn)

    def test_die_alone_and_come_back(self, answers: dict[str, Any]) -> None:
        first, second = answers["plain"]
        assert answers["again"]["pid"] != first["pid"]
        assert answers["beside"]["pid"] == second["pid"]
        assert answers["zombies"] == []

    def test_none_outlives_its_instance(self, answers: dict[str, Any]) -> None:
        assert answers["alive"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not fork workers")
def test_it_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    """However that ends: here by SIGKILL, before any worker was asked for."""
    program = (
        "import os, sys, pathlib; from fortifai_ray.sweep.fork_server import forked_workers\n"
        "with forked_workers(pathlib.Path(sys.argv[1]), [], ['json']):\n"
        "    print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 60
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))


def test_only_its_owner_reaches_it(tmp_path: Path) -> None:
    with forked_workers(tmp_path, [], ["json"]) as variables:
        folder = Path(variables[SOCKETS])
        assert (folder.stat().st_mode & 0o777, {each.name for each in folder.iterdir()}) == (0o700, {WORKERS, ENGINES})
    assert list(tmp_path.iterdir()) == []
    with forked_workers(tmp_path, [], []) as variables:
        assert variables == {}, "nothing to import"


@pytest.mark.parametrize("environment", [{}, {SOCKETS: "/nowhere"}])
def test_no_server_is_an_error_that_leads_to_rays_own_start(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SOCKETS, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    context = json.dumps({"env_vars": {KIND: ENGINES}})
    monkeypatch.setattr(sys, "argv", ["", "/rays/default_worker.py", f"{forked_worker.CONTEXT}={context}"])
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    forked_worker.main()
    assert started == [[sys.executable, "/rays/setup_worker.py", *sys.argv[1:]]]


def test_what_is_imported_for_all_starts_no_threads_that_a_fork_misses() -> None:
    """Polars has some; what comes from this package would bring it along unseen."""
    own = [name for name in TEXTS if name.startswith("fortifai_ray")]
    program = "import sys; [__import__(name) for name in sys.argv[1:]]; assert 'polars' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, *own], check=True)
    assert own
