"""The notebooks run as scripts, on what ships with them, on another study and on what is no study at all."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import yaml

from fortifai_ray.process.search_path import SAFE
from fortifai_ray.results.schema import write_table

from .studies import ANALYSIS, NOTEBOOKS, Run, compute_study

GAUSSIAN = {"family": {"kind": "gaussian"}, "samples_per_generation": 40, "generations": 12}
KL = {"metric": "kl_divergence", "relative_to": "absolute", "threshold": 0.3, "direction": "above"}


def test_there_are_five_notebooks() -> None:
    """The issue's five questions each have one."""
    assert NOTEBOOKS == ["collapse_onset", "explorer", "phase_diagram", "theory", "what_collapses_first"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each notebook as ``python analysis/NAME.py``, started in another folder, two at a time."""
    folder = tmp_path_factory.mktemp("elsewhere")

    # Tests of the command line leave PYTHONSAFEPATH to what this process starts; a terminal has none.
    environment = {name: value for name, value in os.environ.items() if name != SAFE}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ANALYSIS / f"{name}.py")]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(NOTEBOOKS, pool.map(run, NOTEBOOKS), strict=True))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_as_a_script_with_the_results_that_ship(
    name: str, scripts: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    """It ends well from any folder, and says nothing of trouble."""
    assert scripts[name].returncode == 0, scripts[name].stderr
    assert "Traceback" not in scripts[name].stderr
    assert scripts[name].stdout == ""


@pytest.mark.parametrize("name", ["collapse_onset", "phase_diagram", "theory", "what_collapses_first"])
def test_shows_another_study(name: str, discrete_study: Path, run_notebook: Run) -> None:
    """A study of another family is shown, not the one that ships."""
    shown, _ = run_notebook(name, "--results", str(discrete_study))
    assert "second" in shown
    assert "discrete" in shown
    assert "vega-lite" in shown  # a chart was drawn


def test_a_results_folder_inside_a_study_is_taken_as_the_study(discrete_study: Path, run_notebook: Run) -> None:
    """``STORAGE/NAME/results`` is an easy slip."""
    shown, _ = run_notebook("collapse_onset", "--results", str(discrete_study / "results"))
    assert "second" in shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_wrong_folder_gets_a_sentence(name: str, tmp_path: Path, run_notebook: Run) -> None:
    """No traceback: what is wrong, and what would be right."""
    shown, definitions = run_notebook(name, "--results", str(tmp_path / "nowhere"))
    assert "there is no such folder" in shown
    assert "results" not in definitions or definitions["results"] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "holds no study.yaml"),
        ({"one/study.yaml": "name: one", "two/study.yaml": "name: two"}, "give the folder of one"),
        ({"study.yaml": "[1, 2]"}, "is not a study file"),
        ({"study.yaml": "name: x"}, "run or resume the sweep first"),
        ({"study.yaml": "name: x", "results/generations.parquet": "text"}, "cannot be read as Parquet"),
    ],
)
def test_a_folder_that_is_no_study_gets_a_sentence(
    content: dict[str, str], words: str, tmp_path: Path, run_notebook: Run
) -> None:
    """Empty, a storage of several studies, broken files: each has words of its own."""
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shown, _ = run_notebook("collapse_onset", "--results", str(tmp_path))
    assert words in shown


def test_mlflow_that_is_not_there_gets_a_sentence(tmp_path: Path, run_notebook: Run) -> None:
    """A wrong database is not created, and is named."""
    shown, _ = run_notebook("theory", "--mlflow", str(tmp_path / "no.db"), "--experiment", "x")
    assert "does not exist" in shown
    assert not (tmp_path / "no.db").exists()


def test_one_seed_without_a_baseline_says_what_cannot_be_concluded(tmp_path: Path, run_notebook: Run) -> None:
    """No intervals, no ratios, no tests: and why."""
    vary = {"regime": [{"kind": "replace"}, {"kind": "accumulate"}]}
    study = compute_study(tmp_path, **GAUSSIAN, vary=vary, collapse=KL, baseline={"loss.kind": "focal"})
    shown, _ = run_notebook("collapse_onset", "--results", str(study))
    assert "there is no baseline cell" in shown
    assert "There is nothing to test" in shown
    shown, _ = run_notebook("theory", "--results", str(study))
    assert "no interval" in shown
    shown, _ = run_notebook("phase_diagram", "--results", str(study))
    assert "varies no numeric key" in shown


def test_nothing_collapsed_says_so(tmp_path: Path, run_notebook: Run) -> None:
    """All chains censored: the curves are flat, and the sentences say that this is a lower bound."""
    vary = {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}], "seed": {"count": 3}}
    study = compute_study(tmp_path, **GAUSSIAN, vary=vary, collapse=KL | {"threshold": 1e9})
    shown, _ = run_notebook("collapse_onset", "--results", str(study))
    assert "none of 6 chains collapsed" in shown


def test_everything_collapsed_at_generation_0_says_so(tmp_path: Path, run_notebook: Run) -> None:
    """A threshold that generation 0 crosses judges nothing."""
    vary = {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}], "seed": {"count": 3}}
    study = compute_study(tmp_path, **GAUSSIAN, vary=vary, collapse=KL | {"threshold": -1.0})
    shown, _ = run_notebook("collapse_onset", "--results", str(study))
    assert "meet it at generation 0" in shown


def test_missing_tables_are_computed_from_the_generations(
    discrete_study: Path, tmp_path: Path, run_notebook: Run
) -> None:
    """A sweep that was killed leaves generations alone: onsets and ratios come out the same."""
    (tmp_path / "results").mkdir()
    for name in ("study.yaml", "results/generations.parquet"):
        (tmp_path / name).write_bytes((discrete_study / name).read_bytes())
    whole, part = (
        run_notebook("collapse_onset", "--results", str(at))[1]["results"] for at in (discrete_study, tmp_path)
    )
    keys = ["chain_id", "metric"]
    assert part.chains.sort(keys).equals(whole.chains.sort(keys))
    assert part.fidelity.select("fi_ratio", "fi_median").equals(whole.fidelity.select("fi_ratio", "fi_median"))


def test_no_generation_at_all_gets_a_sentence(discrete_study: Path, tmp_path: Path, run_notebook: Run) -> None:
    """A study that has only begun."""
    (tmp_path / "study.yaml").write_bytes((discrete_study / "study.yaml").read_bytes())
    table = pl.read_parquet(discrete_study / "results" / "generations.parquet").clear()
    write_table(tmp_path, "generations", table)
    shown, _ = run_notebook("what_collapses_first", "--results", str(tmp_path))
    assert "no generation has been completed" in shown


def test_texts_and_pictures_that_are_not_there_get_a_sentence(discrete_study: Path, run_notebook: Run) -> None:
    """The explorer has nothing to show of a study of numbers."""
    shown, _ = run_notebook("explorer", "--results", str(discrete_study))
    assert "keeps no sample texts" in shown
    assert "keeps no pictures" in shown


def test_what_is_written_is_no_markup(tmp_path: Path, run_notebook: Run) -> None:
    """A generated text, a cell's name and a study's name cannot run in the page."""
    shipped = ANALYSIS / "data" / "language"
    (tmp_path / "results").mkdir()
    for path in (shipped / "results").iterdir():
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    study = yaml.safe_load((shipped / "study.yaml").read_text(encoding="utf-8")) | {"name": "<script>a()</script>"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    samples = pl.read_parquet(shipped / "results" / "samples.parquet")
    harmful = pl.lit("<img src=x onerror=b()>")
    write_table(tmp_path, "samples", samples.with_columns(generated_text=harmful))
    for name in ("explorer", "collapse_onset", "what_collapses_first"):
        page, _, _ = run_notebook(name, "--results", str(tmp_path))[0].partition("printed:")
        assert ("&lt;img src=x" in page) == (name == "explorer")
        assert "&lt;script&gt;a()" in page
        assert "<img src=x" not in page
        assert "<script>a()" not in page


def test_a_searchs_chains_are_not_compared_by_cell(discrete_study: Path, tmp_path: Path, run_notebook: Run) -> None:
    """They lie at different values of the key: the plane is drawn, and means over them are refused, in words."""
    shutil.copytree(discrete_study, tmp_path / "study")
    path = tmp_path / "study" / "study.yaml"
    search = {"kind": "boundary", "over": "regime.synthetic_ratio", "low": 0.5, "high": 1.0, "tolerance": 0.05}
    study = yaml.safe_load(path.read_text(encoding="utf-8")) | {"search": search}
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    for name in ("collapse_onset", "theory", "what_collapses_first"):
        shown, _ = run_notebook(name, "--results", str(tmp_path / "study"))
        assert "searched over regime.synthetic_ratio" in shown
        assert "vega-lite" not in shown
    shown, _ = run_notebook("phase_diagram", "--results", str(tmp_path / "study"))
    assert "vega-lite" in shown
