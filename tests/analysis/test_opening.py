"""A study opens from its folder and from MLflow, with the same answer."""

from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import write_table
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.tracking.sync import StudySync
from support.opening import open_experiment, open_folder

from .studies import Run, compute_study


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study's folder, and the database that it was logged to."""
    folder = tmp_path_factory.mktemp("logged")
    study_dir = compute_study(
        folder,
        family={"kind": "gaussian"},
        samples_per_generation=30,
        generations=6,
        vary={"regime.synthetic_ratio": [0.5, 1.0], "seed": {"count": 2}},
        regime={"kind": "mixed", "synthetic_ratio": 1.0},
        collapse={"metric": "kl_divergence", "relative_to": "absolute", "threshold": 0.05, "direction": "above"},
        baseline={"regime.synthetic_ratio": 1.0},
    )
    (study_dir / "report.html").write_text("")
    outcome = StudySync(study_dir, folder, f"sqlite:///{folder}/mlflow.db").close("finished")
    assert outcome.problems == []
    return study_dir, folder / "mlflow.db"


def test_mlflow_and_the_folder_conclude_the_same(logged: tuple[Path, Path]) -> None:
    """The same onsets, ratios and sentences."""
    here, there = open_folder(logged[0]), open_experiment(str(logged[1]), "second")
    assert here.chains is not None and there.chains is not None  # noqa: PT018
    assert here.fidelity is not None and there.fidelity is not None  # noqa: PT018
    columns = ["chain_id", "onset", "status", "fi_generations"]
    assert there.chains.select(columns).sort(columns).equals(here.chains.select(columns).sort(columns))
    assert conclusions(there.fidelity, there.chains) == conclusions(here.fidelity, here.chains)


@pytest.mark.parametrize("name", ["collapse_onset", "phase_diagram", "theory", "what_collapses_first"])
def test_a_notebook_shows_an_experiment(name: str, logged: tuple[Path, Path], run_notebook: Run) -> None:
    """``--mlflow URI --experiment NAME``."""
    shown, _ = run_notebook(name, "--mlflow", f"sqlite:///{logged[1]}", "--experiment", "second")
    assert "read from MLflow" in shown
    assert "vega-lite" in shown


def test_an_experiment_that_is_not_there_is_named(logged: tuple[Path, Path]) -> None:
    """With those that are."""
    with pytest.raises(UserError, match=r"there are .*second"):
        open_experiment(str(logged[1]), "first")
    with pytest.raises(UserError, match="give the experiment's name"):
        open_experiment(str(logged[1]), "")


def test_a_study_without_a_criterion_is_refused(discrete_study: Path, tmp_path: Path) -> None:
    """Without tables of verdicts and without a criterion there is nothing to judge by."""
    (tmp_path / "study.yaml").write_text("name: x\ngenerations: 20\n")
    table = pl.read_parquet(discrete_study / "results" / "generations.parquet")
    write_table(tmp_path, "generations", table)
    with pytest.raises(UserError, match=r"study\.yaml: collapse: missing"):
        open_folder(tmp_path)
