"""Open a study's results: from the folder that a sweep left, or from an MLflow experiment."""

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

    Missing tables of chains and fidelity intervals are computed from the generations.

    Raises:
        UserError: the folder does not exist, holds no study or several, or its tables cannot be read.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{path}: there is no such folder; give a study's folder, STORAGE/NAME, as `fortifai sweep` makes it"
        )
    if path.name == "results" and not (path / "study.yaml").is_file():
        path = path.absolute().parent
    if not (path / "study.yaml").is_file():
        studies = sorted(file.parent.name for file in path.glob("*/study.yaml"))
        if studies:
            shown = ", ".join(studies[:_MOST_NAMED]) + (", …" if len(studies) > _MOST_NAMED else "")
            raise UserError(f"{path} holds several studies ({shown}): give the folder of one, {path / studies[0]}")
        raise UserError(
            f"{path} holds no study.yaml: give a study's folder, STORAGE/NAME, as `fortifai sweep` makes it"
        )
    return _shown(open_study(path, judge=True))


def open_experiment(tracking_uri: str, experiment: str) -> StudyResults:
    """The study in an MLflow experiment, downloaded and kept until this process ends.

    Raises:
        UserError: as :func:`~fortifai_ray.tracking.download.experiment_folder`, or its tables cannot be read.
    """
    results = _shown(open_study(_downloads.enter_context(experiment_folder(tracking_uri, experiment)), judge=True))
    results.notes.append(f"read from MLflow, experiment {experiment}")
    return results


def _shown(results: StudyResults) -> StudyResults:
    """The results with their tables read, or computed; refused before the first generation is complete."""
    if results.generations.is_empty():
        raise UserError(f"{results.folder}: no generation has been completed: there is nothing to show yet")
    _ = results.chains, results.fidelity
    return results
