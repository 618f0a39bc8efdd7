"""A study's results, wherever they lie: a folder that a sweep left, or an MLflow experiment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.report.criteria import criteria_asked
from fortifai_ray.results.reader import Results, load_results
from fortifai_ray.statistics import chain_table, fidelity_table
from fortifai_ray.tracking.from_mlflow import read_mlflow

_MOST_NAMED = 12  # studies that a message lists


def open_folder(folder: str | Path) -> Results:
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
    return _judged(load_results(path))


def open_experiment(tracking_uri: str, experiment: str) -> Results:
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
    results = Results(
        directory=Path(experiment),
        study=study,
        study_text=yaml.safe_dump(study, sort_keys=False, allow_unicode=True),
        generations=runs.generations,
        chains=None,
        fidelity=None,
        samples=None,
        pictures=None,
        claims=None,
        summary={},
        notes=["read from MLflow, which keeps no sample texts and no pictures"],
    )
    return _judged(results, runs.failed)


def varied(results: Results) -> list[str]:
    """The varied keys, the seed among them."""
    return [*results.cells.keys, "seed"]


def generations_asked(results: Results) -> int:
    """The study's ``generations``, the largest where it varies.

    Raises:
        UserError: no chain has a horizon and the study file names no number.
    """
    if results.chains is not None and results.chains["horizon"].count():
        return int(str(results.chains["horizon"].max())) + 1
    asked = results.study.get("generations")
    if isinstance(asked, int):
        return asked
    raise UserError(f"{results.directory}: study.yaml names no generations: how long chains were to run is not known")


def failed(results: Results) -> list[str]:
    """The chains without a verdict under any criterion."""
    if results.chains is None:
        return []
    verdicts = results.chains.group_by("chain_id").agg((pl.col("status") == "failed").all().alias("failed"))
    return verdicts.filter("failed")["chain_id"].to_list()


def _judged(results: Results, lost: frozenset[str] = frozenset()) -> Results:
    """The results with the tables that the sweep did not leave, computed from the generations."""
    if results.generations.is_empty():
        raise UserError(f"{results.directory}: no generation has been completed: there is nothing to show yet")
    if results.chains is not None and (results.fidelity is not None or results.searched_keys):
        return results
    criteria, chains = criteria_asked(results.study), results.chains
    if not criteria:
        raise UserError(f"{results.directory}: study.yaml has no collapse criterion: nothing says what collapse is")
    keys = varied(results)
    try:
        if chains is None:
            asked = generations_asked(results)
            chains = chain_table(results.generations, criteria, results.baseline, keys, asked, failed=lost)
        fidelity = fidelity_table(chains, keys, results.baseline)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{results.directory}: its generations cannot be judged: {error}") from error
    notes = [
        note for note in results.notes if "onsets are not shown" not in note and "ratios are not shown" not in note
    ]
    return replace(results, chains=chains, fidelity=fidelity, notes=notes)
