"""A study's results, wherever they lie: a folder that a sweep left, or an MLflow experiment."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from pathlib import Path

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.tracking.download import experiment_folder

_MOST_NAMED = 12  # studies that a message lists
_downloads = ExitStack()
atexit.register(_downloads.close)


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
    """The study that an MLflow experiment holds, downloaded for as long as this process runs.

    Raises:
        UserError: as :func:`~fortifai_ray.tracking.download.experiment_folder`, or its tables cannot be read.
    """
    results = _shown(open_study(_downloads.enter_context(experiment_folder(tracking_uri, experiment)), judge=True))
    results.notes.append(f"read from MLflow, experiment {experiment}")
    return results


def _shown(results: StudyResults) -> StudyResults:
    """The results, where there is something to show; tables that the sweep did not leave are computed here."""
    if results.generations.is_empty():
        raise UserError(f"{results.folder}: no generation has been completed: there is nothing to show yet")
    _ = results.chains, results.fidelity
    return results
