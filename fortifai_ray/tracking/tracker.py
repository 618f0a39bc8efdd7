"""Sends a study to MLflow without making the sweep wait."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fortifai_ray.tracking.info import ChainInfo, ChainStatus, StudyStatus, TrackingOutcome
from fortifai_ray.tracking.old_runs import SAMPLES, StudyRuns
from fortifai_ray.tracking.sender import Sender
from fortifai_ray.tracking.text import RECIPE, milliseconds, nested, plain, redact, tracking_uri_for

SEND_LATER = "once MLflow answers, the same `fortifai sweep` sends what is missing, and computes nothing again"
_RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class StudyTracker:
    """Sends one study to MLflow from a background thread; every method but :meth:`finish` returns at once.

    ``study`` is the resolved study file; ``chains`` are all the chains it may run. A chain's run is made when the chain
    first has something to say. The experiment bears the study's name; a study that changed gets a new parent run.
    """

    def __init__(
        self,
        name: str,
        storage: Path,
        study: Mapping[str, Any],
        chains: Sequence[ChainInfo],
        tracking_uri: str | None = None,
    ) -> None:
        uri = tracking_uri_for(storage, tracking_uri)
        self._runs = StudyRuns(name, storage, plain(study), {chain.chain_id: chain for chain in chains}, uri)
        self._sender = Sender(redact(uri), on_failure=self._runs.forget)
        self._announced: set[str] = set()
        self._outcome: TrackingOutcome | None = None
        text = yaml.safe_dump(plain(study), sort_keys=False, allow_unicode=True)
        self._sender.put("the study file", lambda: self._runs.log_text(None, text, "study.yaml"))

    def add_chain(self, chain_id: str, label: str, parameters: Mapping[str, object]) -> None:
        """Another chain, which nobody knew of before: a search chooses its chains as it goes."""
        self._runs.chains.setdefault(chain_id, ChainInfo(chain_id, label, parameters))

    def log_generation(
        self,
        chain_id: str,
        generation: int,
        metrics: Mapping[str, float | None],
        samples: str | None,
        picture: bytes | None = None,
    ) -> None:
        """A generation's metrics, with the generation as their step; its sample texts, or a picture (PNG) of samples.

        None is left out. NaN is sent as it is. MLflow's database turns an infinity into 1.8e308, so an infinite value
        becomes a tag (``fortifai.infinite.METRIC.GENERATION``) instead of a metric.
        Raises KeyError for a chain that was not announced.
        """
        self._announce(chain_id)
        now = milliseconds()
        values = {key: float(value) for key, value in metrics.items() if value is not None}
        what = f"generation {generation} of {self._runs.chains[chain_id].label}"
        self._sender.put(
            f"the metrics of {what}", lambda: self._runs.log_metrics(chain_id, values, step=generation, timestamp=now)
        )
        if samples is not None:
            path = f"{SAMPLES}/generation_{generation:03d}.txt"
            self._sender.put(f"the samples of {what}", lambda: self._runs.log_text(chain_id, samples, path))
        if picture is not None:
            name = f"generation_{generation:03d}.png"
            self._sender.put(f"the picture of {what}", lambda: self._runs.log_picture(chain_id, picture, name))

    def log_series(self, chain_id: str, series: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """The metrics of many generations at once, as (generation, values); infinities are left out.

        Raises KeyError for a chain that was not announced.
        """
        self._announce(chain_id)
        label, now = self._runs.chains[chain_id].label, milliseconds()
        self._sender.put(f"the metrics of {label}", lambda: self._runs.log_series(chain_id, series, now))

    def finish_chain(
        self, chain_id: str, status: ChainStatus, reason: str | None, results: Mapping[str, object]
    ) -> None:
        """Ends a chain's run. Numbers in ``results`` become metrics ``result/KEY``, anything else a tag."""
        self._announce(chain_id)
        label, results, now = self._runs.chains[chain_id].label, dict(results), milliseconds()
        self._sender.put(f"the end of {label}", lambda: self._runs.finish_chain(chain_id, status, reason, results, now))

    def finish(
        self,
        status: StudyStatus,
        artefacts: Sequence[Path] = (),
        metrics: Mapping[str, float] | None = None,
        patience: float = 60.0,
    ) -> TrackingOutcome:
        """Sends what is left, ends the study's run, and says what could not be sent; never raises.

        Chains still open are marked as killed. Everything unsent is tried once more; waiting ends when nothing has got
        through for ``patience`` seconds. A second call returns the first one's outcome.
        """
        if self._outcome is not None:
            return self._outcome
        now, values = milliseconds(), dict(metrics or {})
        self._sender.put("the study's metrics", lambda: self._runs.log_study_metrics(values, now))
        for path in artefacts:
            self._sender.put(f"the artefact {path.name}", partial(self._runs.log_file, path))
        self._sender.put("the end of the study", lambda: self._runs.finish_study(_RUN_STATUS[status]))
        unsent = self._sender.close(patience)
        if unsent:
            unsent.append(f"all of it is in {self._runs.storage / self._runs.name}: {SEND_LATER}")
        problems = [*unsent, *self._runs.differences()]
        self._outcome = TrackingOutcome(
            sent=not problems,
            problems=problems,
            uri=redact(self._runs.uri),
            experiment_id=self._runs.experiment_id,
            parent_run_id=self._runs.parent_run_id,
        )
        return self._outcome

    def _announce(self, chain_id: str) -> None:
        """Before a chain's first record, its recipe: on its own, so that a broken artefact store costs no metrics."""
        chain = self._runs.chains[chain_id]
        if chain_id not in self._announced:
            self._announced.add(chain_id)
            text = yaml.safe_dump(nested(plain(chain.parameters)), sort_keys=False, allow_unicode=True)
            self._sender.put(f"the recipe of {chain.label}", lambda: self._runs.log_text(chain_id, text, RECIPE))
