"""Where the runs are: the tracking store's address, that address without credentials, and MLflow's own page on it."""

import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.results.schema import varied_keys
from fortifai_ray.storage.location import ARTIFACTS, DATABASE
from fortifai_ray.tracking import limits
from fortifai_ray.tracking.held import last_experiments

# MLflow's page asks the address of an experiment, not the experiment, for its view, its order and its columns. The last
# two are those of a shared view, as the page's own "Share" writes it into such a tag; the address names it.
LIST_VIEW = "mlflow.sharedViewState.grid"
_RUNS = "/runs?workflowType=machine_learning"
_ORDER = {"orderByKey": "tags.`mlflow.runName`", "orderByAsc": True}  # by their names the runs read as the grid
_RESULTS = ("metrics.`result/onset`", "tags.`fortifai.status`")
_MOST_COLUMNS = 20  # a tag of an experiment may have 5,000 characters
_MOST_NAMED = 5


def tracking_uri_for(storage: Path, tracking_uri: str | None = None) -> str:
    """Where a storage's runs go: the URI given, else ``MLFLOW_TRACKING_URI``, else ``STORAGE/mlflow.db``."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{_database(storage)}"


def list_view(study: Mapping[str, Any]) -> str:
    """A list of runs that reads as the study's grid: a column for each varied key, the onset and the status."""
    columns = [f"params.`{limits.key(key)}`" for key in varied_keys(study)[:_MOST_COLUMNS]]
    return json.dumps({"selectedColumns": [*columns, *_RESULTS], **_ORDER})


def _list_of(experiment: str, has_view: bool) -> str:
    """Where MLflow's page lists the runs of an experiment; one that an earlier version made has no view of its own."""
    view = {"viewStateShareKey": LIST_VIEW.rpartition(".")[2]} if has_view else _ORDER | {"orderByAsc": "true"}
    return f"/#/experiments/{experiment}{_RUNS}&{urlencode(view)}"


def is_server(uri: str) -> bool:
    """Whether ``uri`` names a server, which decides itself where artefacts go, rather than a database."""
    return urlsplit(uri).scheme in ("http", "https") or uri.startswith("databricks")


def redact(text: str) -> str:
    """``text`` without the credentials of any URI in it, nor the values of MLflow's password and token variables."""
    text = re.sub(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/]*@", r"\1***@", text)
    text = re.sub(r"(?i)([?&](?:password|passwd|token|secret|sig)=)[^&\s]+", r"\1***", text)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return text


def one_line(error: BaseException) -> str:
    """As :func:`fortifai_ray.errors.in_short`, without credentials."""
    return in_short(error, redact)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    told = list(names)
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def prepare_environment() -> None:
    """Make MLflow give up quickly and stay silent, except where the user has set the variables.

    By default, a request to a dead server takes many minutes to fail (retrying is our job), the end of a run prints its
    address into the progress view, and usage statistics go to MLflow's makers.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)


def open_ui(storage: Path, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Serve MLflow's page on the storage's runs in the foreground; this process becomes the server and never returns.

    Where ``MLFLOW_TRACKING_URI`` names a server, the runs are there: its address is printed instead.

    Raises:
        UserError: the storage has no runs, or the port is taken.
    """
    uri, database = tracking_uri_for(storage), _database(storage)
    if is_server(uri):
        print(f"The runs are at {redact(uri)} (MLFLOW_TRACKING_URI): open that address.")
        return
    if not os.environ.get("MLFLOW_TRACKING_URI", "").strip() and not database.is_file():
        raise UserError(
            f"{database} does not exist: no study has logged its runs under {storage}; give the storage that the sweep "
            "used (`fortifai ui --storage …`), or run a sweep first"
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port") from error
    address = f"[{host}]" if ":" in host else host
    page = f"http://{address}:{port}"
    print(
        f"MLflow on {redact(uri)}: {page} in about ten seconds; Ctrl-C ends it.\n"
        'Choose "Model training" at the top left: MLflow opens experiments as GenAI applications until then.'
    )
    last = last_experiments(uri, _MOST_NAMED, LIST_VIEW)
    named = [f"  {name}: {page}{_list_of(one, has_view)}" for one, name, has_view in last]
    print(*(["Or open a study's runs at once:", *named] if named else []), sep="\n", flush=True)
    # In the environment, not in arguments: the process list must not show a database's password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Clients' artefacts must not land in whatever folder the server was started from.
    environment.setdefault("MLFLOW_ARTIFACTS_DESTINATION", (storage.expanduser().resolve() / ARTIFACTS).as_uri())
    server = ["-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    os.execve(sys.executable, [sys.executable, *server], environment)


def _database(storage: Path) -> Path:
    return storage.expanduser().resolve() / DATABASE
