"""A driver that is killed loses at most what the last ten seconds brought; the next one goes on from there."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.driver import GENERATIONS, Generations, make_study
from fortifai_ray.results.schema import part_paths, read_table
from fortifai_ray.results.writer import ResultsWriter

SEEDS, KILLED_AT, LOST = 200, 25.0, 10.0  # seconds of the driver's clock
# Its clock runs ten times as fast as ours, and generations come as fast as it takes them; it says what it has taken.
DRIVER = """
import json, sys, time
from pathlib import Path
from benchmarks import driver, replay
from fortifai_ray.sweep import recorder

real = time.monotonic
time.monotonic = lambda: 10 * real()
recorder.StudySync = replay.NoSync
running = driver.Driver(driver.make_study(int(sys.argv[1])), Path(sys.argv[2]))
started = time.monotonic()
for trial, content in driver.arriving(running.study, running.work):
    running.take(trial, content)
    running.callback.on_step_end(0, [])
    print(json.dumps([time.monotonic() - started, trial.trial_id]), flush=True)
    time.sleep(0.002)
"""


def test_a_killed_driver_loses_ten_seconds_at_most(tmp_path: Path) -> None:
    """kill -9 at any moment: the tables read, generations older than that are in them with their sample texts, each
    once; and what the next sweep takes from the store completes them."""
    child = [sys.executable, "-c", DRIVER, str(SEEDS), str(tmp_path)]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as driver:
        assert driver.stdout is not None
        taken = []
        for line in driver.stdout:
            taken.append(json.loads(line))
            if taken[-1][0] > KILLED_AT:
                driver.send_signal(signal.SIGKILL)
                break
        taken += [json.loads(line) for line in driver.stdout if line.endswith("]\n")]
    study = make_study(SEEDS)
    folder = tmp_path / study.name
    assert part_paths(folder, "generations"), "killed amid its work"
    old = sum(when < taken[-1][0] - LOST for when, _ in taken)
    assert 0 < old < len(taken) < GENERATIONS * len(study.chains)
    left = read_table(folder, "generations")
    texts = read_table(folder, "samples")
    assert left is not None
    assert texts is not None
    assert left.select("chain_id", "generation").is_unique().all()
    # A chain's generations come in order: so many of each are old.
    for chain_id in {chain_id for _, chain_id in taken[:old]}:
        of_chain = sum(one == chain_id for _, one in taken[:old])
        assert {*range(of_chain)} <= {*left.filter(chain_id=chain_id)["generation"]}
    with_texts = texts.select("chain_id", "generation").unique()
    assert left.join(with_texts, on=["chain_id", "generation"], how="anti").is_empty()

    made, writer = Generations(study), ResultsWriter(study, folder)
    for chain in study.chains[:8]:
        for generation in range(GENERATIONS):
            result = made.result(chain, generation)
            writer.add_generation(result.row, result.samples, result.picture, result.details)
    whole = writer.close(study.chains[:8]).collect()
    assert whole["chain_id"].to_list() == [chain.chain_id for chain in study.chains[:8] for _ in range(GENERATIONS)]
    assert not part_paths(folder, "generations")
