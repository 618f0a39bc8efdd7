"""A study's folder out of MLflow: what a sweep uploaded, laid out as in its storage."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fortifai_ray.errors import UserError
from fortifai_ray.tracking.address import one_line, prepare_environment, redact
from fortifai_ray.tracking.run_state import search_runs

if TYPE_CHECKING:  # The import takes four seconds.
    from mlflow import MlflowClient
    from mlflow.entities import Run


@contextmanager
def experiment_folder(tracking_uri: str, experiment: str) -> Iterator[Path]:
    """The study that an experiment holds, in a folder laid out as ``STORAGE/NAME`` that lasts as long as the context.

    Where the experiment holds several versions of the study, it is the one that was started last; of a study that still
    runs, the folder has the generations that were uploaded so far.

    Args:
        tracking_uri: as MLflow has it; the path of a ``.db`` file is taken as SQLite's.
        experiment: its name, which is the study's.

    Raises:
        UserError: no such database, experiment or study, none of its tables is there yet, or the store does not answer.
    """
    if not experiment:
        raise UserError("MLflow: give the experiment's name, too: it is the study's")
    uri = tracking_uri if "://" in tracking_uri else f"sqlite:///{Path(tracking_uri).expanduser().absolute()}"
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.is_file():  # MLflow would create it.
        raise UserError(f"{database} does not exist: no study has logged its runs there")
    with tempfile.TemporaryDirectory(prefix="fortifai-mlflow-") as folder:
        try:
            study = _download(uri, experiment, Path(folder))
        except UserError:
            raise
        except Exception as error:  # whatever the tracking store raises
            raise UserError(f"MLflow at {redact(uri)} cannot be read: {one_line(error)}") from error
        yield study


def _download(uri: str, experiment: str, folder: Path) -> Path:
    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = _study_run(client, experiment)
    study = folder / run.data.tags["fortifai.study"]
    study.mkdir()
    try:
        client.download_artifacts(run.info.run_id, "", str(study))
    except Exception as error:  # whatever the artefact store raises
        raise UserError(f"MLflow's run {run.info.run_id} has no readable artefacts: {one_line(error)}") from error
    if run.info.status != "RUNNING":  # The tables are complete: what was uploaded before is in them.
        shutil.rmtree(study / "results" / "parts", ignore_errors=True)
    for name in ("study.yaml", "results"):
        if not (study / name).exists():
            raise UserError(
                f"experiment {experiment!r}: its study's run {run.info.run_id} has no {name} yet: sweep the study "
                "again, which computes nothing that is stored"
            )
    return study


def _study_run(client: "MlflowClient", experiment: str) -> "Run":
    """The run of the experiment's study that was started last."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments())) or "none"
        raise UserError(f"MLflow has no experiment {experiment!r}: there are {names}")
    studies = list(search_runs(client, known.experiment_id, "tags.`fortifai.kind` = 'study'"))
    if not studies:
        raise UserError(
            f"experiment {experiment!r} holds no study: those of `fortifai sweep` carry the tag fortifai.kind"
        )
    return max(studies, key=lambda run: run.info.start_time)
