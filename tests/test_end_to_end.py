"""The command line on whole studies: real Ray, vLLM and MLflow, tables read with Polars; and a real `kill -9`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil
import pytest
from faults.studies import completed
from polars.testing import assert_frame_equal

import fortifai_ray

STUDY = """
name: tiny
family: {kind: language, model: {preset: llama-tiny, vocab_size: 512}}
corpus: {source: pydoc, train_tokens: 4096}
regime: {kind: mixed, synthetic_ratio: 0.75}
decoding: {temperature: 0.8, max_new_tokens: 56, context_tokens: 8}
training: {epochs: 1, batch_size: 8, block_size: 64, learning_rate: 2.0e-3}
engine: {dtype: float32}
evaluation: {signs: {documents: 16}, benchmarks: [{task: kr_test, path: QUESTIONS}]}
generations: 2
vary:
  loss: [{kind: cross_entropy}, {kind: tce, gamma: 0.05}]
collapse: {metric: perplexity, threshold: 2.0, direction: above}
"""

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Swept:
    """A study that has been swept."""

    study: Path
    storage: Path
    printed: str


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_instance: str) -> Swept:
    """The study on the shared Ray instance, two chains at once."""
    folder = tmp_path_factory.mktemp("swept")
    study, storage = write_study(folder), folder / "runs"
    return Swept(study, storage, sweep(study, storage, "--address", ray_instance))


def write_study(folder: Path) -> Path:
    question = {"context": "It returns", "sentence_true": "the value of x.", "sentence_false": "the value of y."}
    questions = folder / "questions.json"
    questions.write_text(json.dumps([question] * 20))
    file = folder / "tiny.yaml"
    file.write_text(STUDY.replace("QUESTIONS", str(questions)))
    return file


def command(study: Path, storage: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "fortifai_ray", "sweep", str(study), "--storage", str(storage), *arguments]


def sweep(study: Path, storage: Path, *arguments: str) -> str:
    """Run a sweep to its end; returns what it printed."""
    done = subprocess.run(command(study, storage, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(storage: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(storage / "tiny" / "results" / f"{name}.parquet")


def test_a_study_from_file_to_tables(swept: Swept, ray_instance: str) -> None:
    """Every part does its work, and leaves what the contract says; swept again, nothing is computed."""
    from mlflow import MlflowClient

    storage = swept.storage
    rows = table(storage, "generations")
    assert rows.height == 2 * 2
    assert rows["world_size"].to_list() == [1] * 4
    assert rows["loss.kind"].to_list() == ["cross_entropy"] * 2 + ["tce"] * 2
    assert rows["loss.gamma"].to_list() == [None, None, 0.05, 0.05]
    assert rows["regime.synthetic_ratio"].to_list() == [0.75] * 4
    # 4,096 tokens are 64 blocks; a quarter of them kept; rows of 56 tokens to within half a row of three quarters.
    assert rows.filter(generation=0)["synthetic_size"].to_list() == [0, 0]
    assert rows.filter(generation=1)["human_size"].to_list() == [1024, 1024]
    assert all(abs(size - 3072) <= 28 for size in rows.filter(generation=1)["synthetic_size"])
    assert rows["kept_fraction"][0] == 1.0
    assert rows["perplexity"].is_finite().all()
    assert rows.select((pl.col("train_seconds") > 0).all(), (pl.col("generate_seconds") > 0).all()).row(0) == (
        True,
        True,
    )
    assert not rows["reused"].any()
    # The last generation, after which nothing is trained, is measured as the others are.
    for sign in ("tail_coverage", "bigram_kl", "surplexity", "perplexity_synthetic_generation_0", "kr_accuracy"):
        assert rows[sign].is_finite().all(), sign
    assert rows["kr_scored"].to_list() == [20.0] * 4
    own = rows.filter(generation=0)
    assert own["perplexity_synthetic"].to_list() == own["perplexity_synthetic_generation_0"].to_list()
    details = json.loads(table(storage, "details")["details"][0])
    assert details["signs"]["counts"]["synthetic_rows_scored"] == 16
    assert sum(details["signs"]["histograms"]["perplexity_histogram"]) == 16
    chains = table(storage, "chains")
    assert chains["status"].to_list() == ["survived", "survived"]
    assert chains["censored"].all()
    fidelity = table(storage, "fidelity")
    assert sorted(fidelity["unit"].unique()) == ["generations", "synthetic"]

    (corpus, *_) = (folder for folder in (storage / "stages").glob("*/corpus"))
    written = pl.read_parquet(corpus)
    assert written.columns == ["row", "seed", "prompt_ids", "generated_ids", "weights_version"]
    assert written["weights_version"].n_unique() == 1
    assert (storage / "stages" / written["weights_version"][0] / "model.safetensors").is_file()

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(runs), len(children)) == (3, 2)
    assert {run.data.params["loss.kind"] for run in children} == {"cross_entropy", "tce"}
    for run in children:
        history = client.get_metric_history(run.info.run_id, "perplexity")
        assert [point.step for point in history] == [0, 1]
        assert client.list_artifacts(run.info.run_id, "samples")

    summary = json.loads((storage / "tiny" / "results" / "summary.json").read_text())
    assert summary["engine_starts"] == summary["plan"]["engines"], "one start per engine and sweep"
    moments = ["checked", "ray", "first_batch", "first_token", "last_step", "tables", "report"]
    assert list(summary["timeline"]) == moments, "in the order in which they come"
    assert {chain["training_mode"] for chain in summary["chains"]} == {"one process"}
    assert "one process" in " ".join(swept.printed.split())
    assert "TCE γ=0.05" in (storage / "tiny" / "report.html").read_text()

    again = sweep(swept.study, storage, "--address", ray_instance)
    assert "from the store" not in again
    assert table(storage, "generations")["reused"].all(), "a finished sweep computes nothing"
    assert_frame_equal(comparable(table(storage, "generations")), comparable(rows))
    after = json.loads((storage / "tiny" / "results" / "summary.json").read_text())
    assert after["stages_computed"] == 0
    assert after["last_computed"]["overhead"] == summary["overhead"], "how it was computed is still to be read"


def comparable(generations: pl.DataFrame) -> pl.DataFrame:
    """The table without what may differ between two runs of a study."""
    return generations.select(pl.exclude("^.*_seconds$", "reused"))


def in_partial(storage: Path, pattern: str) -> Callable[[], bool]:
    return lambda: bool(list((storage / "stages" / ".partial").glob(pattern)))


def kill_when(study: Path, storage: Path, arguments: list[str], condition: Callable[[], bool]) -> bool:
    """Start the sweep and `kill -9` its driver as soon as ``condition`` holds; False where it ended before."""
    victim = subprocess.Popen(command(study, storage, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while victim.poll() is None and time.monotonic() < deadline:
        if condition():
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            return True
        time.sleep(0.002)
    assert victim.poll() is not None, "the sweep neither ended nor came to the step it was to die in"
    return False


def finish_despite_a_killed_trial(study: Path, storage: Path, arguments: list[str]) -> None:
    """Run the sweep to its end, and `kill -9` the trial that is at work as soon as there is one."""
    driver = subprocess.Popen(command(study, storage, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    trials: list[psutil.Process] = []
    at_work = in_partial(storage, "*")
    while driver.poll() is None and not trials:
        time.sleep(0.05)
        if at_work():
            trials = [p for p in psutil.Process(driver.pid).children(recursive=True) if is_trial(p)]
    assert trials, "no trial was seen at work"
    os.kill(trials[0].pid, signal.SIGKILL)
    printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, printed.decode()


def is_trial(process: psutil.Process) -> bool:
    """Whether a process is a Tune trial: Ray names its actors' processes after class and method."""
    try:
        return any("Trainable" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_killed_sweep_ends_with_the_same_tables(swept: Swept, tmp_path: Path) -> None:
    """Killed in the middle of a training step, of writing a corpus and of an evaluation; on one logical CPU.

    Each time it is started again it keeps every step that was complete. The last time, the trial's process is killed
    instead, which Tune starts again. What it ends with is equal, but for seconds and `reused`, to the tables of a
    sweep that was never killed.
    """
    arguments = ["--set", "resources.num_cpus=1"]
    study, whole, killed = swept.study, swept.storage, tmp_path / "killed"

    def scoring() -> bool:  # a fit is complete, what follows is not
        rows = len(list((killed / "stages").glob("*/training.json")))
        return rows > fits and not in_partial(killed, "*/training.json")()

    fits = 0
    keep: dict[str, int] = {}
    conditions = [in_partial(killed, "*"), in_partial(killed, "*/corpus"), scoring]
    for condition in conditions:
        fits = len(list((killed / "stages").glob("*/training.json")))
        assert kill_when(study, killed, arguments, condition)
        now = completed(killed)
        assert {name: now[name] for name in keep} == keep, "a completed step was computed again"
        keep = now
    finish_despite_a_killed_trial(study, killed, arguments)
    now = completed(killed)
    assert {name: now[name] for name in keep} == keep
    assert now.keys() == completed(whole).keys()
    assert_frame_equal(comparable(table(killed, "generations")), comparable(table(whole, "generations")))
    for name in ("chains", "fidelity", "samples"):
        assert_frame_equal(table(killed, name), table(whole, name))


ANALYTIC = """
name: tiny
family: {kind: gaussian, dim: 1}
samples_per_generation: 20
generations: 5
vary:
  regime: [{kind: replace}, {kind: accumulate}]
  seed: {count: 300}
collapse: {metric: kl_divergence, relative_to: absolute, threshold: 0.5, direction: above}
claims:
  - id: replace
    source: closed form
    kind: theory
    statistic: {kind: metric, metric: log_variance_ratio, at: 4}
    where: {regime.kind: replace}
    relation: equals
    value: {theory: gaussian_replace_mean_log_variance, n: 20}
    tolerance: {absolute: 0.2}
    must_reject: {name: nothing happens, value: 0.2}
  - id: wrong
    source: nobody
    kind: replication
    statistic: {kind: metric, metric: trace_ratio, at: 4}
    where: {regime.kind: replace}
    relation: greater
    value: 1.5
"""


def test_an_analytic_study_runs_whole_cohorts(study: Path, tmp_path: Path, ray_instance: str) -> None:
    """Six hundred chains: a run per cell in MLflow, the chains in the tables, claims decided; then nothing to compute.

    n = 20 and g = 4 lose 0.27 of the log-variance on average, with a standard error of 0.043 over 300 chains.
    """
    from mlflow import MlflowClient

    study.write_text(ANALYTIC)
    storage = tmp_path / "runs"
    printed = sweep(study, storage, "--address", ray_instance)
    assert "engine starts 0" in " ".join(printed.split())
    rows = table(storage, "generations")
    assert rows.height == 2 * 300 * 5
    assert rows["chain_id"].n_unique() == table(storage, "chains")["chain_id"].n_unique() == 600
    assert rows["unit"].unique().to_list() == ["samples"]
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    children = [run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" in run.data.tags]
    assert len(children) == 2
    history = client.get_metric_history(children[0].info.run_id, "trace_ratio/median")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]

    checked = subprocess.run(
        [sys.executable, "-m", "fortifai_ray", "claims", str(storage / "tiny")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, "a replication that fails is a finding"
    assert [line.split()[0] for line in checked.stdout.splitlines()[:2]] == ["holds", "does"]
    again = sweep(study, storage, "--address", ray_instance)
    assert "in the last run nothing computed" in " ".join(again.split())


def test_images_run_like_any_family(study: Path, tmp_path: Path, ray_instance: str) -> None:
    """A VAE of the digits, two generations: scored, a picture of samples for each, and all of it found again."""
    study.write_text("""
name: tiny
family: {kind: vae, channels: 4, latent: 4}
samples_per_generation: 200
training: {epochs: 2}
evaluation: {samples: 100}
generations: 2
collapse: {metric: coverage, relative_to: own_generation_0, threshold: 0.5, direction: below}
""")
    storage = tmp_path / "runs"
    sweep(study, storage, "--address", ray_instance)
    rows = table(storage, "generations")
    assert rows["elbo"].is_finite().all()
    assert rows["synthetic_size"].to_list() == [0, 200]
    pictures = table(storage, "pictures")
    assert [png[:4] for png in pictures["png"]] == [b"\x89PNG"] * 2
    assert fortifai_ray.plan(study, storage).stored == 1, "a second sweep computes nothing"


def test_a_chain_from_python(swept: Swept) -> None:
    """Its checkpoints load with plain transformers, with their tokenizer; its corpora are Parquet and data sets."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chain = fortifai_ray.open_study(swept.storage / "tiny").chain({"loss.kind": "tce"})
    assert list(chain.checkpoints) == [0, 1]
    model = AutoModelForCausalLM.from_pretrained(chain.checkpoints[-1])
    tokenizer = AutoTokenizer.from_pretrained(chain.checkpoints[-1])
    assert model.config.vocab_size == len(tokenizer) == 512
    written = pl.read_parquet(chain.corpora[0])
    rows = chain.dataset(0)
    assert rows["generated_ids"][0] == written.sort("row")["generated_ids"][0].to_list()
    assert rows["text"][0] == tokenizer.decode(rows["generated_ids"][0], skip_special_tokens=True)
