"""A study's results, wherever they lie: a folder that a sweep left, or an MLflow experiment."""

from __future__ import annotations

from pathlib import Path

import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.tracking.from_mlflow import read_mlflow

_MOST_NAMED = 12  # studies that a message lists


def open_folder(folder: str | Path) -> StudyResults:
    """The results in ``STORAGE/NAME``, or in its ``results/``.

    Tables of chains and of fidelity that are missing are computed again from the generations.

    Raises:
        UserError: there is no such folder, it holds no study or several, or its tables cannot be read.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{path}: there is no such folder; give that of a study, STORAGE/NAME, as `fortifai sweep` leaves it"
        )
    if path.name == "results" and not (path / "study.yaml").is_file():
        path = path.absolute().parent
    if not (path / "study.yaml").is_file():
        studies = sorted(found.parent.name for found in path.glob("*/study.yaml"))
        if studies:
            shown = ", ".join(studies[:_MOST_NAMED]) + (", …" if len(studies) > _MOST_NAMED else "")
            raise UserError(f"{path} holds several studies' folders ({shown}): give one of them, {path / studies[0]}")
        raise UserError(
            f"{path} holds no study.yaml: give the folder of a study, STORAGE/NAME, as `fortifai sweep` leaves it"
        )
    return _shown(open_study(path, judge=True))


def open_experiment(tracking_uri: str, experiment: str) -> StudyResults:
    """The study that an MLflow experiment holds, judged here: no texts and no pictures.

    Args:
        tracking_uri: as MLflow has it; the path of a ``.db`` file is taken as SQLite's.
        experiment: its name: the study's.

    Raises:
        UserError: no such experiment, no study in it, or a server that cannot be reached.
    """
    if not experiment:
        raise UserError("MLflow: name the experiment, too: it is called as the study is")
    uri = tracking_uri if "://" in tracking_uri else f"sqlite:///{Path(tracking_uri).expanduser().absolute()}"
    try:
        runs = read_mlflow(uri, experiment)
    except UserError:
        raise
    except Exception as error:  # whatever the tracking store raises
        raise UserError(f"MLflow at {uri} cannot be read: {error}") from error
    study = dict(runs.study)
    results = StudyResults(
        Path(experiment),
        study,
        yaml.safe_dump(study, sort_keys=False, allow_unicode=True),
        judge=True,
        generations=runs.generations,
        failed=runs.failed,
        samples=None,
        pictures=None,
        claims=None,
        summary={},
        notes=["read from MLflow, which keeps no sample texts and no pictures"],
    )
    return _shown(results)


def _shown(results: StudyResults) -> StudyResults:
    """The results, where there is something to show; tables that the sweep did not leave are computed here."""
    if results.generations.is_empty():
        raise UserError(f"{results.folder}: no generation has been completed: there is nothing to show yet")
    _ = results.chains, results.fidelity
    return results
