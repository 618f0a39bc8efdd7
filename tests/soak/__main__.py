"""The soak: a study of many small chains under random ``kill -9``, held against the same study left alone.

``make soak``, or ``PYTHONPATH=tests python -m soak [--chains 200] [--seed 0] [--folder FOLDER]``. On a Ray
cluster of a head and three workers on this machine it kills trials, engines, whole workers (a new one joins) and the
sweep itself, which is run again until it ends. Then the tables must be those of the undisturbed study, bit for bit but
for clocks, no finished step computed twice, nothing left locked or half-written, and MLflow's runs whole. The last line
is one JSON object; the exit code is 1 where anything was lost.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # before Ray is imported
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
os.environ |= {"RAY_worker_niceness": "0"}  # Ray's workers give way to everything else: on a busy machine for minutes
os.environ.pop("MLFLOW_TRACKING_URI", None)

from faults.studies import sweep

from .audit import Watch, assert_same_results, left_locked, leftovers, unfinished_runs
from .killer import Killer
from .machines import machines
from .studies import SoakStudy, write_studies

_LONGEST = 3600.0  # seconds for a study: more is a hang


def main() -> int:
    """The command."""
    given = _arguments()
    folder = Path(given.folder or mkdtemp(prefix="fortifai-soak-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    studies = write_studies(folder, given.chains, given.texts)
    whole, storage = folder / "whole", folder / "killed"
    _say(f"{given.chains} chains, seed {given.seed}, in {folder}; first undisturbed")
    undisturbed = {
        study.name: _timed(lambda study=study: sweep(study.file, whole, seconds=_LONGEST)) for study in studies
    }
    _say(f"undisturbed: {undisturbed}")
    result: dict[str, Any] = {"chains": given.chains, "seed": given.seed, "undisturbed_seconds": undisturbed}
    with machines(given.workers) as cluster:
        killer, watch = Killer(cluster, given.seed), Watch(storage)
        soaks = {study.name: _soak(study, storage, killer, watch, cluster.address) for study in studies}
    result |= {"soaked": soaks, "kills": dict(killer.kills), "stages": watch.look()}
    result |= _verdict(studies, whole, storage)
    print(json.dumps(result), flush=True)
    return 0 if result["nothing_lost"] else 1


def _soak(study: SoakStudy, storage: Path, killer: Killer, watch: Watch, address: str) -> dict[str, Any]:
    """Run a study to its end, however often it is killed; returns how that went."""
    killer.begin(watch.look(), study.pause, study.engines)
    started, ends = time.monotonic(), []
    log = storage.parent / f"{study.name}.log"
    while True:
        with log.open("ab") as output:
            driver = _start(study, storage, address, output)
            while driver.poll() is None:
                assert time.monotonic() - started < _LONGEST, f"{study.name} does not end; see {log}"
                if dead := killer.machines.replace_the_dead():
                    _say(f"{study.name}: {dead} raylets ended by themselves, and were replaced")
                steps = watch.look()
                if kind := killer.try_to_kill(steps, driver):
                    _say(f"{study.name}: killed a {kind}; {steps} steps complete")
                time.sleep(0.2)
        ends.append(driver.returncode)
        _say(f"{study.name}: the sweep ended with {driver.returncode}")
        if driver.returncode == 0:
            return {"seconds": round(time.monotonic() - started, 1), "runs": len(ends), "exit_codes": ends}


def _start(study: SoakStudy, storage: Path, address: str, output: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fortifai_ray", "sweep", str(study.file), "--storage", str(storage)]
    return subprocess.Popen([*command, "--address", address], stdout=output, stderr=subprocess.STDOUT)


def _verdict(studies: list[SoakStudy], whole: Path, storage: Path) -> dict[str, Any]:
    """What was compared, and what is wrong."""
    wrong = [f"locked: {name}" for name in left_locked(storage)]
    wrong += [f"left over: {name}" for name in leftovers(storage)]
    rows = 0
    for study in studies:
        wrong += [f"MLflow: {problem}" for problem in unfinished_runs(study, storage)]
        try:
            rows += assert_same_results(study, storage, whole)
        except AssertionError as error:
            wrong.append(f"{study.name}: {str(error).splitlines()[0]}")
    return {"rows_compared": rows, "wrong": wrong, "nothing_lost": not wrong}


def _timed(call: Any) -> float:
    started = time.monotonic()
    call()
    return round(time.monotonic() - started, 1)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--chains", type=int, default=200, help="small chains in all")
    parser.add_argument("--texts", type=int, default=3, help="of them, language models, which engines write for")
    parser.add_argument("--workers", type=int, default=3, help="raylets beside the head's")
    parser.add_argument("--seed", type=int, default=0, help="fixes the order of the kills")
    parser.add_argument("--folder", help="where the studies and their storages go; a temporary one if left out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
