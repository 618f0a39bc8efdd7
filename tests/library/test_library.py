"""The package from Python: few names, cheap to import, and the same objects as the command line's folders hold."""

import inspect
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

import fortifai_ray
from fortifai_ray import CrossEntropy
from fortifai_ray.cli import app
from fortifai_ray.library import StudyFolder
from fortifai_ray.library.given import overrides
from fortifai_ray.process.signals import Stopped, check_signals, passing_signals_on, signals_wait
from tests.histories.runs import ASKED, csv_lines, rows
from tests.report.studies import write_study

STUDIES = [
    "ChainFiles",
    "ReportPage",
    "StudyFolder",
    "UserError",
    "analyse",
    "load_study",
    "open_study",
    "plan",
    "sweep",
]
LOSSES = [
    *("ClippedFocal", "CrossEntropy", "DynamicTruncatedCrossEntropy", "Entropy", "Focal", "LovaszSoftmax"),
    *("TruncatedCrossEntropy", "UserLoss", "use_fused_loss"),
]
ANALYTIC: dict[str, Any] = {
    "name": "from_python",
    "family": {"kind": "gaussian", "dim": 1},
    "samples_per_generation": 20,
    "regime": {"kind": "replace"},
    "generations": 4,
    "vary": {"samples_per_generation": [20, 40], "seed": [0, 1, 2]},
    "collapse": {"metric": "trace_ratio", "threshold": 0.7, "direction": "below", "relative_to": "absolute"},
    "baseline": {"samples_per_generation": 20},
}


def test_the_public_names() -> None:
    """This list is the contract: a name more or less is a decision."""
    assert fortifai_ray.__all__ == sorted(STUDIES + LOSSES)
    assert set(fortifai_ray.__all__) <= set(dir(fortifai_ray))
    for name in fortifai_ray.__all__:
        assert callable(getattr(fortifai_ray, name))
        assert inspect.getdoc(getattr(fortifai_ray, name))
    assert (Path(fortifai_ray.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"vary.seed": range(3), "a": (1, 2)}, ["vary.seed=[0, 1, 2]", "a=[1, 2]"]),
        ({"a": np.arange(2), "b": np.float64(0.5), "c": np.linspace(0, 1, 2)}, ["a=[0, 1]", "b=0.5", "c=[0.0, 1.0]"]),
        ({"a": pl.Series([1, 2]), "b": Path("x/y"), "c": {"d": range(1)}}, ["a=[1, 2]", "b=x/y", "c={d: [0]}"]),
        (None, []),
        (
            {"a": {2, 1}, "b": CrossEntropy(normaliser="kept")},
            ["a=[1, 2]", "b={kind: cross_entropy, normaliser: kept}"],
        ),
        ("a=1", ["a=1"]),
    ],
)
def test_values_of_python_are_those_of_the_command_line(values: Any, lines: list[str]) -> None:
    """Ranges, tuples, arrays, series and paths mean what they look like."""
    assert overrides(values) == lines


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: fortifai_ray.load_study(None), "study: a study file, the name of a shipped study, or a mapping is"),
        (lambda: fortifai_ray.load_study(3), "study: a study file"),
        (lambda: fortifai_ray.open_study(None), "study: its folder, STORAGE/NAME"),
        (lambda: fortifai_ray.sweep("quickstart", storage=None), "storage: a folder or s3://BUCKET/PREFIX is needed"),
        (lambda: fortifai_ray.sweep("quickstart", address=6379), "address: a text such as 'auto'"),  # type: ignore
        (lambda: fortifai_ray.load_study("quickstart", set={"vary.seed": object()}), "set vary.seed: a number, a text"),
        (lambda: fortifai_ray.load_study("quickstart", set=3), "set: a text or a list of texts is needed, not 3"),
        (lambda: analysed(criterion=2.0), "criterion: a text or a list of texts is needed, not 2.0"),
        (lambda: analysed(by=None), "by: a text or a list of texts is needed, not None"),
        (lambda: analysed(baseline=["loss=ce", 1]), "baseline: a text or a list of texts is needed"),
        (lambda: analysed(metric=None), "metric: a column's name is needed, not None"),
        (lambda: analysed(step=0), "step: a column's name is needed, not 0"),
        (
            lambda: fortifai_ray.plan(ANALYTIC, cluster=3),
            "cluster: a mapping such as {'gpus': 64, 'cpus': 512} is needed",
        ),
        (lambda: analysed(first_step=-1), "first_step: a whole number from 0 on is needed, not -1"),
        (lambda: analysed(by="loss, gama"), "--by gama: no such column; did you mean gamma?"),
    ],
)
def test_arguments_of_another_type(call: Callable[[], Any], complaint: str) -> None:
    """One line, as for a mistake in a file."""
    with pytest.raises(fortifai_ray.UserError) as error:
        call()
    assert str(error.value).replace("history: --by", "--by").startswith(complaint)
    assert "\n" not in str(error.value)


def analysed(**changes: Any) -> StudyFolder:
    """Rows in memory as ``analyse`` takes them, with one argument changed."""
    asked = {name: value for name, value in ASKED.items() if name != "criteria"}
    return fortifai_ray.analyse(list(rows()), **{**asked, "criterion": "above 2x own generation 0", **changes})


def test_a_dry_run_says_what_the_command_line_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines, and numbers; nothing is written; a forecast takes a cluster in the command's words or as keys."""
    said = fortifai_ray.plan(ANALYTIC, tmp_path / "runs", set={"generations": 3})
    assert (said.chains, said.stored, said.generations) == (6, 0, 0)
    assert not (tmp_path / "runs" / "from_python").exists()
    assert [line for line in said.lines if line.startswith("samples per generation=")] == [
        "samples per generation=20 (3 chains): to be computed",
        "samples per generation=40 (3 chains): to be computed",
    ]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(ANALYTIC))
    with pytest.raises(SystemExit):
        app(["sweep", str(file), "--dry-run", "--storage", str(tmp_path / "runs")])
    assert capsys.readouterr().out == f"{fortifai_ray.plan(file, tmp_path / 'runs')}\n"
    for cluster in ("gpus=8,cpus=64,train=1", {"gpus": 8, "cpus": 64, "train": 1}):
        with pytest.raises(fortifai_ray.UserError, match="a forecast is for a grid of chains that train networks"):
            fortifai_ray.plan(ANALYTIC, tmp_path, cluster=cluster)


def test_importing_costs_nothing() -> None:
    """Neither the package nor its names; and ``sweep`` is one object, whatever was imported before it."""
    code = (
        "import sys, fortifai_ray\n"
        "from fortifai_ray import sweep, load_study\n"
        "heavy = {'torch', 'ray', 'mlflow', 'altair', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import fortifai_ray.sweep.plan\n"
        "assert sweep is fortifai_ray.sweep and callable(sweep)\n"
        "from fortifai_ray.sweep.plan import Plan\n"
        "try: fortifai_ray.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    plain = "import sys, fortifai_ray; assert not {'polars', 'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", plain], check=True)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no attribute 'nothing'" in done.stdout


@pytest.mark.parametrize("name", ["load_study", "sweep", "open_study", "analyse"])
def test_functions_are_documented(name: str) -> None:
    """What goes in, what comes out, what is raised; and every parameter by name."""
    function = getattr(fortifai_ray.library, name)  # type: ignore[attr-defined]
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "UserError"):
        assert section in text
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in text, parameter
    assert inspect.signature(getattr(fortifai_ray, name)) == inspect.signature(function)


@pytest.mark.parametrize("kind", [StudyFolder, fortifai_ray.ChainFiles])
def test_what_is_returned_is_documented(kind: type) -> None:
    """Each table says its shape, each method what it raises."""
    public = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
    told = inspect.getdoc(kind) or ""
    for name, member in public.items():
        text = inspect.getdoc(member) or ""
        assert text or f"{name}:" in told, name
        if inspect.isfunction(member) and name != "report":
            assert "Raises:" in text, name
    for table in ("generations", "chains", "fidelity", "collapse_points", "claims"):
        assert "Polars frame, a row per" in (inspect.getdoc(getattr(StudyFolder, table)) or "")


def test_a_folder_is_opened(tmp_path: Path) -> None:
    """Its tables are those on disk, what there is none of is empty, and it shows itself."""
    swept = write_study(tmp_path, seeds=2)
    study = fortifai_ray.open_study(swept)
    for name in ("generations", "chains", "fidelity"):
        table, file = getattr(study, name), pl.read_parquet(swept / "results" / f"{name}.parquet")
        assert table.columns[0] == "cell"
        assert table["cell"].unique().sort().to_list() == ["TCE γ=0.3", "TCE γ=0.9", "cross entropy"]
        assert_frame_equal(table.select(file.columns), file)
    assert study.fidelity.columns[:4] == ["cell", "unit", "fi_median", "fi_ratio"], "Polars prints four at each end"
    assert study.fidelity.columns[-4:] == ["fi_ratio_low", "fi_ratio_high", "n_chains", "n_censored"]
    assert study.collapse_points.is_empty()
    assert study.collapse_points.columns[0] == "cell"
    assert "critical" in study.collapse_points.columns
    assert study.claims.is_empty()
    assert "verdict" in study.claims.columns
    assert study.name == "quickstart"
    assert study.conclusions
    assert "FI ratio" in study._repr_html_()
    page = study.report()
    assert page == swept / "report.html"
    assert isinstance(page, Path)
    assert 'sandbox="allow-scripts"' in page._repr_html_()
    (swept / "results" / "chains.parquet").unlink()
    with pytest.raises(fortifai_ray.UserError, match=r"chains\.parquet not found"):
        _ = fortifai_ray.open_study(swept).chains


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda study: study.chain(), "9 chains answer to this"),
        (lambda study: study.chain("TCE γ=0.3"), "3 chains answer to this"),
        (lambda study: study.chain("TCE γ=0.33", 0), "did you mean TCE γ=0.3"),
        (lambda study: study.chain("TCE γ=0.3", 7), "there is no seed 7"),
        (lambda study: study.chain({"loss.gama": 0.3}, 0), "no chain has a key loss.gama; did you mean loss.gamma"),
        (lambda study: study.chain({"loss.gamma": 0.5}, 0), "no chain has loss.gamma=0.5"),
        (lambda study: study.chain(0), "an id, a cell's name or a mapping of columns is needed, not 0"),
        (lambda study: study.chain("TCE γ=0.3", "0"), "seed: a whole number is needed, not '0'"),
        (lambda study: study.chain("TCE γ=0.3", seed=0.5), "seed: a whole number is needed, not 0.5"),
        (lambda study: study.chain({"seed": True}), "seed: a whole number is needed, not True"),
        (lambda study: study.chain("TCE γ=0.3", 0).checkpoints["4"], "generation: a whole number is needed, not '4'"),
        (lambda study: study.chain("TCE γ=0.3", 0).checkpoints[:2], "generation: a whole number is needed, not slice"),
        (lambda study: study.chain("TCE γ=0.3", 0).dataset("4"), "generation: a whole number is needed, not '4'"),
        (lambda study: study.chain("TCE γ=0.3", 0).checkpoints[9], "there is no generation 9; those with one: 0, 1"),
        (lambda study: study.chain("TCE γ=0.3", 0).checkpoints[0], "is gone or damaged"),
        (lambda study: study.chain("TCE γ=0.3", 0).corpora[0], "generation 0 has no corpus"),
        (lambda study: study.chain("TCE γ=0.3", 0).dataset(), "no corpus is stored for it"),
    ],
)
def test_a_chain_that_is_not_there(ask: Callable[[StudyFolder], Any], complaint: str, tmp_path: Path) -> None:
    """One line that says what there is."""
    with pytest.raises(fortifai_ray.UserError, match=complaint):
        ask(fortifai_ray.open_study(write_study(tmp_path)))


def test_a_chain_by_id_by_name_and_by_columns(tmp_path: Path) -> None:
    """All three give the same one."""
    study = fortifai_ray.open_study(write_study(tmp_path))
    chains = [
        study.chain("tce-0.3-1"),
        study.chain("TCE γ=0.3", np.int64(1)),  # type: ignore[arg-type]
        study.chain({"loss.gamma": 0.3}, seed=1),
        study.chain({"loss.kind": "tce", "loss.gamma": 0.3, "seed": 1}),
    ]
    assert {chain.chain_id for chain in chains} == {"tce-0.3-1"}
    assert chains[0].generations["generation"].to_list() == sorted(chains[0].generations["generation"].to_list())
    assert (chains[0].cell, chains[0].seed) == ("TCE γ=0.3", 1)


def test_studies_are_loaded_as_by_the_command() -> None:
    """By name, as content, with values put in; a mistake is a ``UserError``."""
    by_name = fortifai_ray.load_study("quickstart", set={"training.epochs": 1, "vary.seed": [0]})
    assert by_name == fortifai_ray.load_study("quickstart", set=["training.epochs=1", "vary.seed=[0]"])
    assert fortifai_ray.load_study(ANALYTIC, set={"generations": 3}).generations_asked == 3
    for bad in (
        lambda: fortifai_ray.load_study("quickstrt"),
        lambda: fortifai_ray.load_study(ANALYTIC | {"generatons": 1}),
        lambda: fortifai_ray.sweep(fortifai_ray.load_study(ANALYTIC), set=["generations=3"]),
        lambda: fortifai_ray.sweep(ANALYTIC, "gs://bucket"),
        lambda: fortifai_ray.open_study("/nowhere"),
    ):
        with pytest.raises(fortifai_ray.UserError) as error:
            bad()
        assert "\n" not in str(error.value)


def test_histories_are_judged(tmp_path: Path) -> None:
    """``analyse`` takes plain values, and returns what ``open_study`` returns."""
    (tmp_path / "a.csv").write_text("\n".join(csv_lines()))
    study = fortifai_ray.analyse(
        tmp_path / "a.csv",
        metric="ppl",
        step="gen",
        by=["loss", "gamma"],
        seed="seed",
        baseline={"loss": "ce"},
        criterion="above 2x own generation 0",
        storage=tmp_path,
    )
    assert study.folder == tmp_path / "a"
    assert (
        study.fidelity["fi_ratio"].to_list() == fortifai_ray.open_study(tmp_path / "a").fidelity["fi_ratio"].to_list()
    )
    assert study.chain({"gamma": 0.9}, 1).cell == "loss=tce γ=0.9"


@pytest.mark.ray
def test_a_sweep_uses_the_ray_that_runs(tmp_path: Path, ray_instance: str) -> None:
    """It computes, leaves Ray and its environment as they were, and a second time computes nothing."""
    import os

    import ray

    before, called = dict(os.environ), time.time()
    study = fortifai_ray.sweep(ANALYTIC, tmp_path, progress=False)
    assert study._results.summary["wall_seconds"] < time.time() - called  # this program was there long before
    assert ray.is_initialized()
    assert {k: v for k, v in os.environ.items() if k.startswith(("RAY_", "TUNE_"))} == {
        k: v for k, v in before.items() if k.startswith(("RAY_", "TUNE_"))
    }
    assert (study.failed, study.unfinished) == ({}, [])
    assert study.generations.height == 2 * 3 * 4
    assert study.chain({"samples_per_generation": 40}, seed=2).generations["generation"].to_list() == [0, 1, 2, 3]
    again = fortifai_ray.sweep(fortifai_ray.load_study(ANALYTIC), tmp_path, progress=False)
    assert_frame_equal(again.fidelity, study.fidelity)
    assert again._results.summary["stages_computed"] == 0
    assert again._results.summary["wall_seconds"] < study._results.summary["wall_seconds"] + 60


def interrupted(done: list[str]) -> None:
    """What a sweep does of a signal: it ends what it writes, and returns."""
    with suppress(Stopped), signals_wait():
        signal.raise_signal(signal.SIGINT)
        done.append("written")
    with suppress(Stopped):
        check_signals()
    done.append("recorded")


def test_a_signal_goes_to_the_program_that_uses_the_package() -> None:
    """What is being written is written; then Ctrl-C is KeyboardInterrupt, by the program's own handler."""
    handler, done = signal.getsignal(signal.SIGINT), list[str]()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), passing_signals_on():
            interrupted(done)
        assert done == ["written", "recorded"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), passing_signals_on():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(ZeroDivisionError), passing_signals_on():
            _ = 1 / 0
    finally:
        signal.signal(signal.SIGINT, handler)


def test_off_the_main_thread_no_signal_is_touched() -> None:
    """A thread may sweep; handlers belong to the main thread."""
    handlers, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with passing_signals_on():
            seen.append(signal.getsignal(signal.SIGINT) is handlers)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
