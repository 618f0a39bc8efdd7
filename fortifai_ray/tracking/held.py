"""What MLflow's database holds, asked of the database: MLflow's import alone takes seconds."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

_FINISHED = """
SELECT runs.run_uuid, runs.experiment_id, runs.artifact_uri FROM runs JOIN experiments USING (experiment_id)
WHERE runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
AND runs.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value = ?)
"""
_TAGS = "SELECT key, value FROM tags WHERE run_uuid = ?"
_NESTED = """
SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND status <> 'RUNNING'
AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?)
"""
_EXPERIMENTS = """
SELECT experiment_id, name, experiment_id IN (SELECT experiment_id FROM experiment_tags WHERE key = ?)
FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id <> 0 ORDER BY last_update_time DESC LIMIT ?
"""


def held_by(uri: str, tags: Mapping[str, str], nested: str) -> tuple[str, str] | None:
    """The experiment and the run of a study that has ended with these tags, the runs below it and its artefacts too.

    Args:
        uri: a SQLite database's; of anything else nothing is known at once.
        tags: what identifies the run, the rarest first.
        nested: the tag that counts the runs below it.

    Returns:
        None where there is no such run, or a part of it is gone.
    """
    try:
        with closing(_opened(uri)) as connection:
            for run, experiment, artefacts in connection.execute(_FINISHED, next(iter(tags.items()))).fetchall():
                own = dict(connection.execute(_TAGS, (run,)).fetchall())
                (ended,) = connection.execute(_NESTED, (run,)).fetchone()
                if tags.items() <= own.items() and own.get(nested) == str(ended) and _is_there(artefacts):
                    return str(experiment), str(run)
    except (OSError, sqlite3.Error):  # no, an older or a damaged database: MLflow itself will say what is wrong
        return None
    return None


def last_experiments(uri: str, most: int, tag: str) -> list[tuple[str, str, bool]]:
    """The experiments that were changed last: the id and name of each, and whether it has a tag; none where that is not
    seen in a SQLite file."""
    try:
        with closing(_opened(uri)) as connection:
            found = connection.execute(_EXPERIMENTS, (tag, most)).fetchall()
            return [(str(one), str(name), bool(tagged)) for one, name, tagged in found]
    except (OSError, sqlite3.Error):
        return []


def _opened(uri: str) -> sqlite3.Connection:
    """A SQLite database, to be read.

    Raises:
        FileNotFoundError: the URI names none, or one that does not exist.
    """
    database = Path(unquote(uri.partition("///")[2]))
    if not uri.startswith("sqlite:///") or not database.is_file():
        raise FileNotFoundError(uri)
    return sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True)


def _is_there(artefacts: str) -> bool:
    """Whether a run's artefacts are where its record says; of those that are not on this machine it is assumed."""
    parts = urlsplit(artefacts)
    return parts.scheme != "file" or Path(url2pathname(parts.path)).is_dir()
