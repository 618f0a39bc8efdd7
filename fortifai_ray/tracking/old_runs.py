"""The study's runs in MLflow: found again by their tags or made, and what they hold already."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fortifai_ray.tracking.info import ChainInfo
from fortifai_ray.tracking.text import as_text, batches, content_hash, metric_key, param_text, redact, some

if TYPE_CHECKING:  # the import itself takes four seconds and belongs to the background thread
    from mlflow import MlflowClient
    from mlflow.entities import Run

SAMPLES = "samples"
_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMS_PER_BATCH = 100
_TAG_LENGTH = 8000


@dataclass
class _RunState:
    """A run, and what it holds already, so that nothing is sent twice."""

    run_id: str
    status: str
    params: dict[str, str] = field(default_factory=dict)
    metric_keys: set[str] = field(default_factory=set)  # that the store had when the run was taken up
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # metric, step, value
    files: set[str] | None = field(default_factory=set)  # artefact paths; None: not asked yet


class StudyRuns:
    """The study's runs. Only the background thread calls MLflow, and finds or makes each run when it is first needed.

    After any failure :meth:`forget` drops what was believed about the store, since a request that failed may have been
    carried out all the same: the next attempt asks again.
    """

    def __init__(self, name: str, storage: Path, study: dict[str, Any], chains: dict[str, ChainInfo], uri: str) -> None:
        self.name = name
        self.storage = storage.expanduser().resolve()
        self.chains = chains
        self.uri = uri
        self.experiment_id: str | None = None
        self.parent_run_id: str | None = None
        self._study_hash = content_hash(study)
        self._client: MlflowClient | None = None
        self._parent: _RunState | None = None
        self._chain_runs: dict[str, _RunState] = {}
        self._study_step: int | None = None
        self._differing: dict[str, set[str]] = {}

    def forget(self) -> None:
        self._parent = None
        self._chain_runs = {}

    def differences(self) -> list[str]:
        """A line where this run measured something else than what MLflow holds: values there cannot be replaced."""
        if not self._differing:
            return []
        keys = some(sorted(set().union(*self._differing.values())))
        return [f"MLflow keeps the values of an earlier run where this one differs: {keys} in {some(self._differing)}"]

    def log_metrics(self, chain_id: str, values: Mapping[str, float], step: int, timestamp: int) -> None:
        run = self._chain(chain_id)
        infinite = {
            metric_key(f"fortifai.infinite.{key}.{step:03d}"): str(v) for key, v in values.items() if math.isinf(v)
        }
        finite = {metric_key(key): value for key, value in values.items() if not math.isinf(value)}
        new = {key: value for key, value in finite.items() if not self._holds(run, key, step, value, chain_id)}
        self._log_values(run, new, step, timestamp, infinite)

    def log_series(self, chain_id: str, series: Sequence[tuple[int, Mapping[str, float]]], timestamp: int) -> None:
        from mlflow.entities import Metric

        run = self._chain(chain_id)
        new = [
            Metric(metric_key(key), value, timestamp, step)
            for step, values in series
            for key, value in values.items()
            if math.isfinite(value) and not self._holds(run, metric_key(key), step, value, chain_id)
        ]
        for batch in batches(new, _METRICS_PER_BATCH):
            self._connect().log_batch(run.run_id, metrics=batch)
            for metric in batch:
                self._values(run, metric.key)[metric.step] = metric.value

    def log_picture(self, chain_id: str, picture: bytes, name: str) -> None:
        """A PNG as an artefact of the chain's run, beside its samples."""
        run, path = self._chain(chain_id), f"{SAMPLES}/{name}"
        if path not in self._files(run):
            with tempfile.TemporaryDirectory(prefix="fortifai-picture-") as folder:
                file = Path(folder) / name
                file.write_bytes(picture)
                self._connect().log_artifact(run.run_id, str(file), SAMPLES)
            self._files(run).add(path)

    def log_study_metrics(self, values: Mapping[str, float], timestamp: int) -> None:
        """The study's own metrics: one step for each time the sweep ran, until it has finished once."""
        run = self._study()
        keys = {metric_key(key): float(value) for key, value in values.items() if math.isfinite(value)}
        held = [step for key in keys for step in self._values(run, key)]
        if self._study_step is None:  # a second attempt must not take the first one's values for an earlier run's
            self._study_step = max(held, default=-1) + 1
        if not (held and run.status == "FINISHED"):
            self._log_values(run, keys, self._study_step, timestamp, {})

    def log_text(self, chain_id: str | None, text: str, path: str) -> None:
        """``text`` as the artefact ``path`` of the chain's run (of the study's where ``chain_id`` is None)."""
        run = self._study() if chain_id is None else self._chain(chain_id)
        if path not in self._files(run):
            self._connect().log_text(run.run_id, text, path)
            self._files(run).add(path)

    def log_file(self, path: Path) -> None:
        """A file or folder as an artefact of the study's run, in place of an earlier one of that name."""
        run = self._study()
        if path.is_dir():
            self._connect().log_artifacts(run.run_id, str(path), path.name)
        elif path.is_file():
            self._connect().log_artifact(run.run_id, str(path))
        else:
            raise FileNotFoundError(f"{path} does not exist")

    def finish_chain(
        self, chain_id: str, status: str, reason: str | None, results: Mapping[str, object], timestamp: int
    ) -> None:
        run = self._chain(chain_id)
        numbers: dict[str, float] = {}
        tags = {"fortifai.status": status} | ({"fortifai.reason": redact(reason)} if reason else {})
        for key, value in results.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                if not self._holds(run, metric_key(f"result/{key}"), 0, float(value), chain_id):
                    numbers[metric_key(f"result/{key}")] = float(value)
            elif value is not None:
                tags[metric_key(f"fortifai.result.{key}")] = as_text(value)
        self._log_values(run, numbers, 0, timestamp, tags)
        self._end(run, "FAILED" if status == "failed" else "FINISHED")

    def finish_study(self, status: str) -> None:
        self._study()
        for run in self._chain_runs.values():
            if run.status == "RUNNING":  # left open by this sweep, or by one that was killed
                self._end(run, "KILLED")
        self._end(self._study(), status)

    # finding and making

    def _connect(self) -> "MlflowClient":
        if self._client is None:
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported
                logging.getLogger(name).setLevel(logging.WARNING)
            # It writes a traceback of each error that it raises; what is raised, the sender tells in one line.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            self._client = MlflowClient(tracking_uri=self.uri)
        return self._client

    def _study(self) -> _RunState:
        if self._parent is not None:
            return self._parent
        client, experiment = self._connect(), self._experiment()
        tags = self._tags("study")
        query = f"tags.`fortifai.study_hash` = '{self._study_hash}' and tags.`fortifai.kind` = 'study'"
        found = [run for run in self._search(query) if tags.items() <= run.data.tags.items()]
        if found:
            parent = self._take_up(found[0])
            for run in self._search(f"tags.`mlflow.parentRunId` = '{parent.run_id}'"):
                self._chain_runs.setdefault(run.data.tags.get("fortifai.chain_id", ""), self._state(run))
        else:
            run = client.create_run(experiment, tags=tags, run_name=self.name)
            parent = _RunState(run.info.run_id, "RUNNING")
        self._parent, self.parent_run_id = parent, parent.run_id
        return parent

    def _chain(self, chain_id: str) -> _RunState:
        parent, chain = self._study(), self.chains[chain_id]
        run = self._chain_runs.get(chain_id)
        if run is None:
            tags = self._tags("chain") | {"fortifai.chain_id": chain_id, "mlflow.parentRunId": parent.run_id}
            made = self._connect().create_run(self._experiment(), tags=tags, run_name=chain.label)
            run = self._chain_runs[chain_id] = _RunState(made.info.run_id, "RUNNING")
        elif run.status in ("FAILED", "KILLED"):
            self._reopen(run)
        self._log_params(run, chain)
        return run

    def _experiment(self) -> str:
        """The experiment of the study's name. Artefacts go beside the database, unless a server places them."""
        if self.experiment_id is None:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

            try:
                self.experiment_id = self._find_or_make_experiment()
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
                # another sweep made one of this name between the look for it and its making: now it is found
                self.experiment_id = self._find_or_make_experiment()
        return self.experiment_id

    def _find_or_make_experiment(self) -> str:
        client = self._connect()
        served = urlsplit(self.uri).scheme in ("http", "https") or self.uri.startswith("databricks")
        location = None if served else (self.storage / "mlartifacts" / self.name).as_uri()
        name = self.name
        experiment = client.get_experiment_by_name(name)
        if experiment is not None and location not in (None, experiment.artifact_location):
            # the same study in another folder, or a database that moved: its artefacts must not go to the old place
            name = f"{self.name} ({content_hash(str(self.storage))[:8]})"
            experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return client.create_experiment(name, artifact_location=location)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _tags(self, kind: str) -> dict[str, str]:
        return {
            "fortifai.kind": kind,
            "fortifai.study": self.name,
            "fortifai.storage": str(self.storage),
            "fortifai.study_hash": self._study_hash,
        }

    def _search(self, query: str) -> "Iterator[Run]":
        token: str | None = None
        while True:
            page = self._connect().search_runs([self._experiment()], filter_string=query, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _state(self, run: "Run") -> _RunState:
        data = run.data
        return _RunState(run.info.run_id, run.info.status, dict(data.params), set(data.metrics), files=None)

    def _take_up(self, run: "Run") -> _RunState:
        state = self._state(run)
        if state.status in ("FAILED", "KILLED"):
            self._reopen(state)
        return state

    def _reopen(self, run: _RunState) -> None:
        self._connect().update_run(run.run_id, status="RUNNING")
        run.status = "RUNNING"

    def _end(self, run: _RunState, status: str) -> None:
        if run.status != status:  # ended so by an earlier sweep: its end time stays
            self._connect().set_terminated(run.run_id, status)
            run.status = status

    # what a run holds

    def _log_params(self, run: _RunState, chain: ChainInfo) -> None:
        from mlflow.entities import Param

        params = {metric_key(key): param_text(value) for key, value in chain.parameters.items()}
        changed = {key for key, value in params.items() if run.params.get(key, value) != value}
        if changed:
            self._differing.setdefault(chain.label, set()).update(changed)
        new = [Param(key, value) for key, value in params.items() if key not in run.params]
        for batch in batches(new, _PARAMS_PER_BATCH):
            self._connect().log_batch(run.run_id, params=batch)
            run.params.update((param.key, param.value) for param in batch)

    def _log_values(
        self, run: _RunState, values: Mapping[str, float], step: int, timestamp: int, tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, RunTag

        if tags:
            entries = [RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()]
            for some in batches(entries, _PARAMS_PER_BATCH):
                self._connect().log_batch(run.run_id, tags=some)
        metrics = [Metric(key, value, timestamp, step) for key, value in values.items()]
        for batch in batches(metrics, _METRICS_PER_BATCH):
            self._connect().log_batch(run.run_id, metrics=batch)
        for key, value in values.items():
            self._values(run, key)[step] = value

    def _values(self, run: _RunState, key: str) -> dict[int, float]:
        """A metric's values by step, asked of the store once."""
        if key not in run.values:
            history = self._connect().get_metric_history(run.run_id, key) if key in run.metric_keys else []
            run.values[key] = {metric.step: metric.value for metric in history}
        return run.values[key]

    def _holds(self, run: _RunState, key: str, step: int, value: float, chain_id: str) -> bool:
        """Whether the run has this step already; notes it where the value there is another one."""
        values = self._values(run, key)
        if step not in values:
            return False
        held = values[step]
        same = math.isclose(held, value, rel_tol=1e-9) or (math.isnan(held) and math.isnan(value))
        if not (same or key.endswith("_seconds") or key == "reused"):  # those differ from run to run by nature
            self._differing.setdefault(self.chains[chain_id].label, set()).add(key)
        return True

    def _files(self, run: _RunState) -> set[str]:
        if run.files is None:
            client = self._connect()
            run.files = {file.path for folder in (None, SAMPLES) for file in client.list_artifacts(run.run_id, folder)}
        return run.files
