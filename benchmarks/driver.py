"""What the driver of a large study costs, without Ray and without a model: what trials would send, it makes up.

    python -m benchmarks.driver [--part tables|mlflow|replay|replay_single] [--scale 0.1] [--rate 8] [--s3]

20,000 chains × 5 generations × 80 metrics, with sample texts and details. Generations arrive pickled, as from trials,
64 chains side by side, and pass through the callback, the recorder and the writer; the tables are flushed after every
20 of them, as they come within five seconds on a cluster of 64 GPUs.

The last line is one JSON object. ``ms_per_generation`` is the CPU time of the driver (all threads; making the
generations up is not in it), ``growth`` the last tenth's over the first tenth's, ``peak_gib`` the process's peak, the
tables' last form and the report included, which take ``close_seconds`` of CPU time.

``mlflow_lag_seconds`` is the wall time from the last generation of 2,000 chains, which arrive at ``--rate`` a second,
to all of their nested runs being complete in MLflow on SQLite (counted there), ``mlflow_ms_per_generation`` the CPU
time of the whole process by then. At 8 a second this takes 20 minutes; ``--scale`` counts here, too.

``replay_…`` and ``single_…`` are what a finished study costs that is run again (:mod:`benchmarks.replay`).
"""

import argparse
import json
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.replay import NoSync, replay, replay_single
from fortifai_ray.chain.chain import GenerationResult, Inputs
from fortifai_ray.evaluation.signs.model import PROBABILITIES
from fortifai_ray.report.charts.histograms import TEXTS
from fortifai_ray.results.writer import ResultsWriter
from fortifai_ray.storage.location import Storage
from fortifai_ray.study.study import Chain, Study, load_study
from fortifai_ray.sweep import recorder as recorder_module
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.reports import Finished, Report
from fortifai_ray.sweep.trials import _Reports
from fortifai_ray.sweep.work import Grid
from fortifai_ray.tracking.runs import search_runs
from fortifai_ray.tracking.sync import StudySync

SEEDS = 10_000  # of each of the quickstart's two losses
GENERATIONS = 5
MLFLOW_SEEDS = 1_000
AT_ONCE = 64
PER_FLUSH = 20
_BENCHMARKS = (
    "[{task: kr_test, pairs: 200}, {task: kr_test, pairs: 200, name: other}, {task: wikitext, path: README.md}]"
)
_WORDS = 20_000


def make_study(seeds: int) -> Study:
    """The quickstart with more seeds and 80 metrics."""
    overrides = [f"vary.seed={{start: 0, count: {seeds}}}", f"evaluation.benchmarks={_BENCHMARKS}"]
    return load_study(Path(__file__).parents[1] / "sweeps" / "quickstart.yaml", overrides)


class Generations:
    """Made-up generations of a study's chains."""

    def __init__(self, study: Study) -> None:
        self._rng = np.random.default_rng(7)
        self._words = [f"word{number}" for number in range(_WORDS)]
        self._metrics = list(study.cells[0].recipe.metrics)

    def result(self, chain: Chain, generation: int) -> GenerationResult:
        """One generation of a chain; perplexity doubles each time."""
        values = self._rng.random(len(self._metrics)).tolist()
        flat = chain.recipe.flat()
        columns = ("family.kind", "loss.kind", "loss.gamma", "regime.kind", "regime.synthetic_ratio")
        row: dict[str, Any] = {
            "chain_id": chain.chain_id,
            "generation": generation,
            **chain.varied,
            **{name: flat.get(name) for name in columns},
            "seed": chain.recipe.seed,
            "unit": "tokens",
            "synthetic_ratio_realised": float(generation > 0),
            "human_size": 49152 if generation == 0 else 0,
            "synthetic_size": 49152 if generation else 0,
            "synthetic_size_cum": 49152 * generation,
            **dict(zip(self._metrics, values, strict=True)),
            "perplexity": 300.0 * (1.5 + 0.5 * values[0]) ** generation,
            "train_seconds": 20.0,
            "generate_seconds": 10.0,
            "evaluate_seconds": 3.0,
            "reused": False,
            "computed_seconds": 33.0,
            "world_size": 1,
            "ended": "horizon" if generation == GENERATIONS - 1 else None,
            "collapse_reason": None,
            "stage": f"{chain.chain_id}{generation:016x}",
            "synthetic_stage": f"{generation:016x}{chain.chain_id}",
        }
        samples = [
            {"row": number, "prompt_text": self._text(16), "generated_text": self._text(112)} for number in range(4)
        ]
        histograms = {f"{PROBABILITIES}_{text}": self._rng.integers(0, 9, 100).tolist() for text in TEXTS}
        counts = {f"count_{number}": number for number in range(40)}
        return GenerationResult(row, {"signs": {"counts": counts, "histograms": histograms}}, samples)

    def _text(self, words: int) -> str:
        return " ".join(map(self._words.__getitem__, self._rng.integers(0, _WORDS, words).tolist()))


def arriving(study: Study, work: Grid) -> Iterator[tuple[Any, bytes]]:
    """What trials report, pickled: 64 chains run side by side."""
    made, chains = Generations(study), list(study.chains)
    for start in range(0, len(chains), AT_ONCE):
        group = chains[start : start + AT_ONCE]
        for generation in range(GENERATIONS):
            for chain in group:
                reports = [Report(chain.chain_id, made.result(chain, generation), 5, 0)]
                if generation == GENERATIONS - 1:
                    reports.append(Report(chain.chain_id, Finished()))
                yield _trial(chain), pickle.dumps({"reports": reports, "moments": {}})


def _trial(chain: Chain) -> Any:
    return SimpleNamespace(trial_id=chain.chain_id, config={"jobs": [chain.chain_id]})


class Driver:
    """A sweep's driver without Ray: the callback and what is behind it."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        console = Console(file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        self.recorder = Recorder(study, Storage.of(folder), console)
        recipes = [cell.recipe for cell in study.cells] + [study.baseline_of(cell) for cell in study.cells]
        self.work = Grid(study, Inputs({(type(one), one.shared_input): None for one in recipes}))
        progress = SweepProgress(console)
        for chain in study.chains:
            progress.add(chain.chain_id, chain.keys, GENERATIONS)
        self.callback = _Reports(self.work, self.recorder, progress)

    def take(self, trial: Any, content: bytes) -> None:
        self.callback.on_trial_result(0, [], trial, pickle.loads(content))


def tables(scale: float, folder: Path) -> dict[str, Any]:
    """The driver's CPU time for each generation, and its peak memory."""
    recorder_module.StudySync = NoSync  # type: ignore[misc,assignment]  # MLflow is measured by itself
    driver = Driver(make_study(max(2, round(SEEDS * scale))), folder)
    costs: list[float] = []
    source = arriving(driver.study, driver.work)
    for number, (trial, content) in enumerate(source, 1):
        before = time.process_time()
        driver.take(trial, content)
        if number % PER_FLUSH == 0:
            driver.recorder.flush(at_most_every=0.0)
        costs.append(time.process_time() - before)
    tenth = len(costs) // 10
    before_close = _peak_gib()
    started = time.process_time()
    outcome = driver.recorder.close(None)
    return {
        "generations": len(costs),
        "ms_per_generation": round(1e3 * float(np.mean(costs)), 3),
        "growth": round(sum(costs[-tenth:]) / sum(costs[:tenth]), 3),
        "peak_gib": round(_peak_gib(), 3),
        "peak_gib_before_close": round(before_close, 3),
        "close_seconds": round(time.process_time() - started, 2),
        "report_mb": round(outcome.report.stat().st_size / 1e6, 2),
    }


def mlflow(scale: float, rate: float, folder: Path) -> dict[str, Any]:
    """How far MLflow lags behind the last generation."""
    from mlflow import MlflowClient

    study = make_study(max(2, round(MLFLOW_SEEDS * scale)))
    out, made = folder / study.name, Generations(study)
    writer = ResultsWriter(study, out)
    sync = StudySync(out, folder, f"sqlite:///{folder}/mlflow.db")
    started, cpu, flushed, count = time.monotonic(), time.process_time(), 0.0, 0
    for start in range(0, len(study.chains), AT_ONCE):
        for generation in range(GENERATIONS):
            for chain in study.chains[start : start + AT_ONCE]:
                result = made.result(chain, generation)
                writer.add_generation(result.row, result.samples, result.picture, result.details)
                count += 1
                time.sleep(max(0.0, started + count / rate - time.monotonic()))
                if time.monotonic() - flushed > recorder_module.FLUSH_SECONDS:
                    flushed = time.monotonic()
                    writer.flush()
                    sync.poke()
    ended = time.monotonic()
    writer.close(study.chains)
    writer.write_json("summary", {"chains": []})
    (out / "report.html").touch()
    outcome = sync.close("finished")
    lag = time.monotonic() - ended
    assert outcome.problems == [], outcome.problems
    client, query = MlflowClient(f"sqlite:///{folder}/mlflow.db"), "tags.`fortifai.kind` = 'chain'"
    runs = list(search_runs(client, str(outcome.experiment_id), query))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(f"result/{key}" in run.data.metrics for run in runs for key in ("onset", "fi_generations"))
    return {
        "mlflow_runs": len(runs),
        "mlflow_lag_seconds": round(lag, 1),
        "mlflow_ms_per_generation": round(1e3 * (time.process_time() - cpu) / count, 1),
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the chains")
    parser.add_argument("--part", choices=("tables", "mlflow", "replay", "replay_single"), help="by default, all")
    parser.add_argument("--s3", action="store_true", help="the replay is of an object store")
    parser.add_argument("--rate", type=float, default=8.0, help="generations a second, for MLflow")
    parser.add_argument("--out", type=Path, help="leave the study in this folder")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "tables": lambda folder: tables(options.scale, options.out or folder),
        "mlflow": lambda folder: mlflow(options.scale, options.rate, folder),
        "replay": lambda folder: replay(options.scale, folder, s3=options.s3),
        "replay_single": lambda folder: replay_single(options.scale, folder),
    }
    measured: dict[str, Any] = {}
    for part in parts if options.part is None else (options.part,):
        with tempfile.TemporaryDirectory(prefix="fortifai-driver-") as folder:
            measured |= parts[part](Path(folder))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
