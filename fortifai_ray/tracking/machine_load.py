"""The load of the machine that a sweep's driver runs on, as MLflow's system metrics of the study's run."""

import logging
import os
from typing import Protocol

from fortifai_ray.tracking.address import one_line

log = logging.getLogger("fortifai_ray.tracking")

LONG = 600.0  # seconds: of a sweep that takes so long, one wonders what its machine does
_EVERY = 30.0  # seconds between two looks at it
_SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"  # MLflow's own


class Monitor(Protocol):
    """MLflow's thread that looks at the machine and logs what it sees."""

    def start(self) -> None: ...

    def finish(self) -> None: ...


def is_due(seconds: float) -> bool:
    """Whether a sweep that has run so many seconds is to be watched: a long one, or any where MLflow's switch is on."""
    asked = os.environ.get(_SWITCH, "").strip().lower()
    return asked not in ("false", "0") and (asked in ("true", "1") or seconds >= LONG)


def watch(run_id: str, uri: str) -> Monitor | None:
    """Begin to log CPU, memory, disk, network and GPUs of this machine to a run; goes on where an earlier sweep ended.
    None, and a warning, where that cannot be."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor: Monitor = SystemMetricsMonitor(run_id, sampling_interval=_EVERY, resume_logging=True, tracking_uri=uri)
        monitor.start()
    except Exception as error:  # whatever MLflow, its store or the machine's counters raise
        log.warning("MLflow gets no system metrics: %s", one_line(error))
        return None
    return monitor
