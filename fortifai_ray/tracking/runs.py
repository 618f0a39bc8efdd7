"""A study's runs in MLflow, each made to hold what it should: whatever it holds already is not sent again."""

import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.results.schema import flatten
from fortifai_ray.storage.location import ARTIFACTS
from fortifai_ray.tracking import limits
from fortifai_ray.tracking.address import LIST_VIEW, is_server, list_view, one_line, some
from fortifai_ray.tracking.database import Database
from fortifai_ray.tracking.held import held_by
from fortifai_ray.tracking.run_content import Overview, RunContent, content_hash
from fortifai_ray.tracking.run_state import OVERVIEW, STAMP, RunState, search_runs, state_of
from fortifai_ray.validation import dump_yaml

if TYPE_CHECKING:  # The import takes four seconds and belongs to the background thread.
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SAMPLES = "samples"
_RECIPE = "recipe.yaml"
_NESTED = "fortifai.runs"  # a tag of a study's run: how many are nested in it
# What MLflow takes for a GenAI application without it, unless its page is switched to model training.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


class StudyRuns:
    """A study's run and the nested runs of its chains. Used by one thread; each is looked up, or made, when first used.

    Runs are identified by their tags, never by their names: a sweep that was killed or is repeated continues in the
    runs it has. A study that has changed gets a run of its own.
    """

    def __init__(self, storage: Path, study: Mapping[str, Any], uri: str) -> None:
        self.experiment_id: str | None = None
        self.study_run_id: str | None = None
        self._name = str(study["name"])
        self._storage = storage.expanduser().resolve()
        self._uri = uri
        self._view = {LIST_VIEW: list_view(study)}
        self._study_hash = content_hash(study)
        self._client: MlflowClient | None = None
        self._database: Database | None = None
        self._study_state: RunState | None = None
        self._states: dict[str, RunState] = {}
        self._differing: dict[str, set[str]] = {}
        self._refused: dict[str, dict[str, str]] = {}  # by reason and key, the run

    def forget(self, key: str) -> None:
        """Drop what is known of a run. A request that failed may have been carried out: the next attempt looks."""
        self._study_state = None
        self._states.pop(key, None)

    def differences(self) -> list[str]:
        """A line where this sweep measured something other than what MLflow holds: values there cannot be replaced."""
        if not self._differing:
            return []
        keys = some(sorted(set().union(*self._differing.values())))
        return [f"MLflow keeps the values of an earlier run where this one differs: {keys} in {some(self._differing)}"]

    def refusals(self) -> list[str]:
        """A line for each reason for which MLflow refused a value; the others of the same request got through."""
        return [
            f"MLflow refuses {some(keys)} in {some(dict.fromkeys(keys.values()))}: {reason}; the tables have them"
            for reason, keys in self._refused.items()
        ]

    def hold(self, content: RunContent) -> None:
        """Make a nested run hold its content: parameters, metrics, results, and last the artefacts.

        Of a run that an earlier sweep has ended with all of its content, nothing is asked. MLflow's databases store an
        infinity as 1.8e308, a plausible number: infinities stay in the result tables alone.
        """
        state, end = self._chain(content), content.end
        if state.stamp and (end is None or state.stamp == content.stamp):
            return
        values = {
            (limits.key(name), step): value
            for step, metrics in content.series.items()
            for name, value in metrics.items()
            if not math.isinf(value)
        }
        names = {name for metrics in content.series.values() for name in metrics}
        files, stamped, status = self._lacking_files(state, content), dict[str, str](), None
        if end is not None:
            values |= end.numbers
            stamped = {**end.tags, STAMP: content.stamp}
            status = "FAILED" if end.status == "failed" else "FINISHED"
        self._log_all(state, content.recipe, names, values, {} if files else stamped, status, content.label)
        if files:
            self._log_files(state, files)
            self._write(state, {}, {}, stamped, None, content.label)
        state.stamp = content.stamp if stamped else None

    def hold_study(self, overview: Overview) -> None:
        """Make the study's own run hold what it shows; a value that has changed since is logged again.

        Of an overview that an earlier sweep has sent whole, nothing is asked.
        """
        study, stamp = self._study(), overview.stamp
        if study.overview and (not overview.ended or study.overview == stamp):
            return
        values = {(limits.key(name), step): v for (name, step), v in overview.values.items() if math.isfinite(v)}
        names = dict.fromkeys(name for name, _ in overview.values)
        self._log_all(study, {}, names, values, overview.tags, None, self._name, replace=True)
        if new := [one for one in overview.data if one.digest not in study.inputs]:
            self._connect().log_inputs(study.run_id, [one.as_input for one in new])
            study.inputs.update(one.digest for one in new)
        if overview.ended:  # last: it says that all of it is there
            self._write(study, {}, {}, {OVERVIEW: stamp}, None, self._name)
            study.overview = stamp

    def hold_file(self, file: Path, folder: str | None = None) -> None:
        """Log a file as an artefact of the study's run, in ``folder`` of its artefacts, replacing an earlier one."""
        self._connect().log_artifact(self._study().run_id, str(file), folder)

    def end_study(self, status: str, run_status: str, fingerprint: str | None = None) -> None:
        """End the study's run, and the nested runs that a killed sweep has left open.

        ``fingerprint`` is that of the study's folder, where these runs hold all of it.
        """
        study = self._study()
        for state in self._states.values():
            if state.status == "RUNNING":
                self._end(state, "KILLED")
        stamp = {STAMP: fingerprint, _NESTED: str(len(self._states))} if fingerprint else {}
        self._log(study, "tags", _tags({"fortifai.status": status, **stamp}), self._name)
        self._end(study, run_status)

    def hold_all_of(self, fingerprint: str) -> bool:
        """Whether the runs of an earlier sweep hold all of a folder with this fingerprint, and nothing is left to send.

        False where that cannot be seen at once, as of a server.
        """
        held = held_by(self._uri, {STAMP: fingerprint, **self._tags("study")}, _NESTED)
        if held is not None:
            self.experiment_id, self.study_run_id = held
        return held is not None

    # finding and making runs

    def _connect(self) -> "MlflowClient":
        if self._client is None:
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported.
                logging.getLogger(name).setLevel(logging.WARNING)
            # It logs a traceback of each error that it raises; the caller reports those in one line.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            self._client = MlflowClient(tracking_uri=self._uri)
            self._database = Database.of(self._client, self._uri)
        return self._client

    def _study(self) -> RunState:
        if self._study_state is None:
            tags = self._tags("study")
            query = f"tags.`fortifai.study_hash` = '{self._study_hash}' and tags.`fortifai.kind` = 'study'"
            runs = self._search(query)
            state = next((state_of(run) for run in runs if tags.items() <= run.data.tags.items()), None)
            if state is None:
                state = self._make(tags, self._name)
            else:
                self._reopen(state)
                for run in self._search(f"tags.`mlflow.parentRunId` = '{state.run_id}'"):
                    self._states.setdefault(run.data.tags.get("fortifai.chain_id", ""), state_of(run))
            self._study_state, self.study_run_id = state, state.run_id
        return self._study_state

    def _chain(self, content: RunContent) -> RunState:
        study = self._study()
        state = self._states.get(content.key)
        if state is None:
            tags = {"fortifai.chain_id": content.key, "mlflow.parentRunId": study.run_id}
            state = self._states[content.key] = self._make(self._tags("chain") | tags, content.label)
        self._reopen(state)
        return state

    def _experiment(self) -> str:
        if self.experiment_id is None:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

            try:
                self.experiment_id = self._find_or_make_experiment()
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
                # Another sweep has made it since this one looked.
                self.experiment_id = self._find_or_make_experiment()
        return self.experiment_id

    def _find_or_make_experiment(self) -> str:
        """The experiment of the study's name. Artefacts go beside the database, unless a server places them."""
        client, name = self._connect(), self._name
        location = None if is_server(self._uri) else (self._storage / ARTIFACTS / name).as_uri()
        experiment = client.get_experiment_by_name(name)
        if experiment is not None and location not in (None, experiment.artifact_location):
            # The same study in another folder, or a database that moved: artefacts must not go to the old place.
            name = f"{name} ({content_hash(str(self._storage))[:8]})"
            experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return client.create_experiment(name, artifact_location=location, tags=_KIND | self._view)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        for key, value in (_KIND | self._view).items():
            if key not in experiment.tags or (key in self._view and experiment.tags[key] != value):
                client.set_experiment_tag(experiment.experiment_id, key, value)
        return experiment.experiment_id

    def _tags(self, kind: str) -> dict[str, str]:
        return {
            "fortifai.kind": kind,
            "fortifai.study": self._name,
            "fortifai.storage": str(self._storage),
            "fortifai.study_hash": self._study_hash,
        }

    def _make(self, tags: Mapping[str, str], name: str) -> RunState:
        run = self._connect().create_run(self._experiment(), tags=dict(tags), run_name=limits.run_name(name))
        return RunState(run.info.run_id, "RUNNING")

    def _search(self, query: str) -> "Iterator[Run]":
        return search_runs(self._connect(), self._experiment(), query)

    def _reopen(self, state: RunState) -> None:
        if state.status in ("FAILED", "KILLED"):
            self._connect().update_run(state.run_id, status="RUNNING")
            state.status, state.stamp = "RUNNING", None

    def _end(self, state: RunState, status: str) -> None:
        if state.status != status:  # A run that an earlier sweep ended in the same way keeps its end time.
            self._connect().set_terminated(state.run_id, status)
            state.status = status

    # what a run holds

    def _log_all(
        self,
        state: RunState,
        recipe: Mapping[str, object],
        names: Iterable[str],
        values: Mapping[tuple[str, int], float],
        tags: Mapping[str, str],
        status: str | None,
        label: str,
        *,
        replace: bool = False,
    ) -> None:
        """Log the parameters, the values by metric and step, and the whole names of both, as far as a run lacks them,
        and the tags; the run ends with a ``status``."""
        flat = flatten(recipe)
        lacks = {limits.key(name): value for name, value in flat.items() if limits.key(name) not in state.params}
        params = {key: limits.param_value(value, _RECIPE) for key, value in lacks.items()}
        whole = {tag: name for tag, name in limits.whole_names([*flat, *names]).items() if tag not in state.named}
        lacking = {
            of: value for of, value in values.items() if not self._has(state, *of, value, None if replace else label)
        }
        self._write(state, params, lacking, {**whole, **tags}, status, label)
        state.params.update(params)
        state.named.update(whole)
        for (key, step), value in lacking.items():
            self._values(state, key)[step] = value

    def _write(
        self,
        state: RunState,
        params: Mapping[str, str],
        values: Mapping[tuple[str, int], float],
        tags: Mapping[str, str],
        status: str | None,
        label: str,
    ) -> None:
        """Into the database, else by the client: in one request if all of it fits into one."""
        from mlflow.entities import Metric, Param

        ended = status if status != state.status else None  # a run that ended in the same way keeps its end time
        if self._database is not None:
            if params or values or tags or ended:
                told = {key: limits.tag_value(value) for key, value in tags.items()}
                self._database.log(state.run_id, params, values, told, ended)
            state.status = ended or state.status
            return
        if ended is not None:
            self._end(state, ended)
        now = int(time.time() * 1000)
        entries: dict[limits.Kind, list[Any]] = {
            "params": [Param(key, value) for key, value in params.items()],
            "metrics": [Metric(key, value, now, step) for (key, step), value in values.items()],
            "tags": _tags(tags),
        }
        if not self._logged_at_once(state, entries):
            for kind, some_of_them in entries.items():
                self._log(state, kind, some_of_them, label)

    def _logged_at_once(self, state: RunState, entries: Mapping[limits.Kind, Sequence[Any]]) -> bool:
        """Send entries of several kinds as one request; False where they do not fit, or MLflow refuses one of them."""
        if not limits.fit(entries):
            return False
        try:
            if any(entries.values()):
                self._connect().log_batch(state.run_id, entries["metrics"], entries["params"], entries["tags"])
        except Exception as error:
            if not limits.is_refusal(error):
                raise
            return False
        return True

    def _has(self, state: RunState, key: str, step: int, value: float, label: str | None) -> bool:
        """Whether a run has a metric at this step; where its value there is another one, the difference is noted under
        the run's label, if there is one: without it the value counts as lacking."""
        values = self._values(state, key)
        if step not in values:
            return False
        held = values[step]
        if not (math.isclose(held, value, rel_tol=1e-9) or (math.isnan(held) and math.isnan(value))):
            if label is None:
                return False
            self._differing.setdefault(label, set()).add(key)
        return True

    def _values(self, state: RunState, key: str) -> dict[int, float]:
        """A metric's values by step, asked for once."""
        if key not in state.values:
            history = self._connect().get_metric_history(state.run_id, key) if key in state.metric_keys else []
            last = sorted(history, key=lambda metric: metric.timestamp)
            state.values[key] = {metric.step: metric.value for metric in last}
        return state.values[key]

    def _lacking_files(self, state: RunState, content: RunContent) -> dict[str, bytes]:
        """The artefacts that a run lacks, by path."""
        files, held = {f"{_SAMPLES}/{name}": data for name, data in content.samples.items()}, self._files(state)
        new = {path: data for path, data in files.items() if path not in held}
        return new if _RECIPE in held else {_RECIPE: dump_yaml(content.recipe).encode(), **new}

    def _log_files(self, state: RunState, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory(prefix="fortifai-samples-") as folder:
            for path, data in files.items():
                file = Path(folder) / path
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)
            self._connect().log_artifacts(state.run_id, folder)
        self._files(state).update(files)

    def _log(self, state: RunState, kind: limits.Kind, entries: Sequence[Any], label: str) -> None:
        """Send entries; one that MLflow refuses is left out and noted, and costs the others nothing."""
        for batch in limits.batches(kind, entries):
            request: dict[str, Any] = {kind: batch}
            try:
                self._connect().log_batch(state.run_id, **request)
            except Exception as error:
                if not limits.is_refusal(error):
                    raise
                half = len(batch) // 2
                if half:
                    self._log(state, kind, batch[:half], label)
                    self._log(state, kind, batch[half:], label)
                else:
                    self._refused.setdefault(one_line(error), {})[batch[0].key] = label

    def _files(self, state: RunState) -> set[str]:
        """The paths of a run's artefacts, asked for once."""
        if state.files is None:
            client = self._connect()
            artefacts = [file for folder in (None, _SAMPLES) for file in client.list_artifacts(state.run_id, folder)]
            state.files = {file.path for file in artefacts}
        return state.files


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, limits.tag_value(value)) for key, value in tags.items()]
