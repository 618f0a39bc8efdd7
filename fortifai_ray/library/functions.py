"""What one does with studies: load, sweep, open, and judge what ran elsewhere. Each returns the same kind of object."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.library.given import Values, overrides, path_of, plain_values, texts
from fortifai_ray.library.study_folder import StudyFolder

if TYPE_CHECKING:
    from rich.console import Console

    from fortifai_ray.storage.location import Storage
    from fortifai_ray.study.study import Study
    from fortifai_ray.sweep.preflight import DryRun


def load_study(study: str | Path | Mapping[str, Any], *, set: Values = ()) -> Study:
    """Read and check a study.

    Args:
        study: a study file, the name of a shipped study (``"quickstart"``), or a study file's content.
        set: values to put in: ``{"training.epochs": 1}``, or ``["training.epochs=1"]`` as after ``--set``.

    Returns:
        The checked study. Its ``chains`` say what would run, its ``warnings`` what it cannot show.

    Raises:
        UserError: a mistake in it: the file, the key and what would be right, in one line.
    """
    from fortifai_ray.study.study import load_study as load
    from fortifai_ray.study.study import make_study

    if isinstance(study, Mapping):
        return make_study(plain_values(dict(study)), str(study.get("name", "study")), overrides(set))
    return load(
        Path(path_of(study, "study", "a study file, the name of a shipped study, or a mapping")), overrides(set)
    )


def sweep(
    study: Study | str | Path | Mapping[str, Any],
    storage: str | Path | Storage = "runs",
    *,
    address: str | None = None,
    set: Values = (),
    progress: bool | Console = True,
) -> StudyFolder:
    """Run or resume a study, as ``fortifai sweep`` does, and return what it measured.

    Every step is stored under the hash of all that determines it: a sweep that was interrupted resumes, one that is
    finished computes nothing. Ray is started here; where this process has started or joined it, that is used and left
    running. Ctrl-C ends the sweep as soon as what is finished is written, and is ``KeyboardInterrupt`` then. Off the
    main thread, no signal is answered.

    Args:
        study: what :func:`load_study` takes or returns.
        storage: folder of stages, results and runs, or ``s3://BUCKET/PREFIX``.
        address: a running Ray cluster.
        set: as for :func:`load_study`; not for a study that it has returned.
        progress: whether to show it, in a terminal or a notebook; or the ``rich`` console that shows it.

    Returns:
        The study's folder: ``generations``, ``chains``, ``fidelity``, ``collapse_points`` and ``claims`` as Polars
        frames, ``report()``, ``chain(…)``. Chains that failed for good are in ``failed``.

    Raises:
        UserError: a mistake that the user can mend, in one line, before anything starts.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    from fortifai_ray.process.signals import passing_signals_on, program_began
    from fortifai_ray.storage.location import Storage
    from fortifai_ray.sweep.sweep import run_sweep

    if not isinstance(address, str | None):
        raise UserError(f"address: a text such as 'auto' or '10.0.0.1:6379' is needed, not {address!r}")
    started = program_began() or time.time()
    loaded = _study_of(study, set)
    place, console = Storage.of(storage), _console(progress)
    if place.tracking_note:
        console.print(place.tracking_note, highlight=False, soft_wrap=True)
    with passing_signals_on():
        outcome = run_sweep(loaded, place, console, address, started)
    return _opened(outcome.folder, place, outcome.failed, outcome.unfinished)


def plan(
    study: Study | str | Path | Mapping[str, Any],
    storage: str | Path | Storage = "runs",
    *,
    set: Values = (),
    cluster: str | Mapping[str, float] | None = None,
) -> DryRun:
    """Say what :func:`sweep` would do, as ``fortifai sweep --dry-run`` does, and run nothing.

    Args:
        study, storage, set: as for :func:`sweep`.
        cluster: forecast time and idle shares on such a cluster, too: ``{"gpus": 64, "cpus": 512}``.

    Returns:
        What it would do, in ``lines``, as it prints itself; ``chains``, ``stored`` and ``generations`` are numbers.

    Raises:
        UserError: a mistake that the user can mend, in one line.
    """
    from fortifai_ray.storage.location import Storage
    from fortifai_ray.sweep.forecast import Cluster
    from fortifai_ray.sweep.preflight import dry_run

    text = ",".join(f"{key}={value}" for key, value in cluster.items()) if isinstance(cluster, Mapping) else cluster
    if not isinstance(text, str | None):
        raise UserError(f"cluster: a mapping such as {{'gpus': 64, 'cpus': 512}} is needed, not {cluster!r}")
    return dry_run(_study_of(study, set), Storage.of(storage), None if text is None else Cluster.of(text))


def _study_of(study: Study | str | Path | Mapping[str, Any], set: Values) -> Study:
    from fortifai_ray.study.study import Study

    if isinstance(study, Study) and overrides(set):
        raise UserError("set: is for a study that is loaded here; give it to load_study")
    return study if isinstance(study, Study) else load_study(study, set=set)


def open_study(study: str | Path) -> StudyFolder:
    """A study that has run, or runs.

    Args:
        study: its folder, ``STORAGE/NAME``, or ``s3://BUCKET/PREFIX/NAME``, of which a copy is fetched.

    Returns:
        As :func:`sweep` does.

    Raises:
        UserError: there is no study.
    """
    from fortifai_ray.storage.location import split_study
    from fortifai_ray.storage.mirror import opened_study

    study = path_of(study, "study", "its folder, STORAGE/NAME, or s3://BUCKET/PREFIX/NAME")
    with opened_study(study, push=False) as folder:
        return _opened(folder, split_study(study)[0])


def analyse(
    history: Any,
    *,
    metric: str,
    step: str,
    by: str | Sequence[str],
    seed: str,
    baseline: Mapping[str, Any] | str | Sequence[str],
    criterion: str | Sequence[str],
    confirm: int | None = None,
    first_step: int = 0,
    storage: str | Path | Storage = "runs",
    name: str | None = None,
) -> StudyFolder:
    """Judge run histories that were made elsewhere, as ``fortifai analyse`` does.

    Args:
        history: a CSV, JSON-lines or Parquet file with a row per chain and generation; a folder of TensorBoard or
            offline Weights & Biases runs; either on an object store, ``s3://…``; ``mlflow:EXPERIMENT``; or rows in
            memory: a Polars or pandas frame, a ``LazyFrame``, a list of mappings.
        metric: the column that the criterion judges.
        step: the column that counts generations from 0.
        by: the columns that tell the compared cells apart; in one text, commas separate them.
        seed: the column that repeats a cell.
        baseline: the chains that the others are compared with: ``{"loss": "ce"}``, or ``"loss=ce"``.
        criterion: ``"above 2x own generation 0"``, ``"below 0.75"``; or several.
        confirm: further generations that confirm a crossing; 1 by default.
        first_step: the step that is generation 0.
        storage: the results go to ``STORAGE/NAME``.
        name: the history's own by default; of rows in memory, ``history``, which other rows do not replace.

    Returns:
        As :func:`sweep` does; ``collapse_points`` and ``claims`` are empty, and its chains have no files.

    Raises:
        UserError: a mistake in a column, a row or an option, in one line; nothing is written then.
    """
    from fortifai_ray.histories.analyse import analyse_history
    from fortifai_ray.storage.location import Storage

    if not isinstance(first_step, int) or first_step < 0:
        raise UserError(f"first_step: a whole number from 0 on is needed, not {first_step!r}")
    for role, column in (("metric", metric), ("step", step), ("seed", seed)):
        if not isinstance(column, str):
            raise UserError(f"{role}: a column's name is needed, not {column!r}")
    listed = (
        [f"{key}={value}" for key, value in baseline.items()]
        if isinstance(baseline, Mapping)
        else texts(baseline, "baseline")
    )
    columns = by.split(",") if isinstance(by, str) else texts(by, "by")
    place = Storage.of(storage)
    folder = analyse_history(
        history,
        storage=place,
        name=name,
        metric=metric,
        step=step,
        by=[column.strip() for column in columns],
        seed=seed,
        baseline=listed,
        criteria=texts(criterion, "criterion"),
        confirm=confirm,
        first_step=first_step,
    )
    return _opened(folder, place)


def _opened(
    folder: Path, storage: Storage, failed: Mapping[str, str] | None = None, unfinished: Sequence[str] = ()
) -> StudyFolder:
    from fortifai_ray.results.reader import open_study as read

    return StudyFolder(read(folder), storage, failed, unfinished)


def _console(progress: bool | Console) -> Console:
    """Where progress is shown. A notebook without ipywidgets cannot show a live view: it gets lines."""
    from importlib.util import find_spec

    from rich.console import Console

    if isinstance(progress, Console):
        return progress
    console = Console(quiet=not progress)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(quiet=not progress, force_jupyter=False, force_terminal=False, width=_WIDTH)
    return console


_WIDTH = 120  # of lines that nothing wraps
