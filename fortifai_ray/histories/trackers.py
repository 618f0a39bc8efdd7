"""Histories in trackers: an MLflow experiment, TensorBoard's event files, and runs of Weights & Biases that were logged
offline. Each gives :class:`~fortifai_ray.histories.source.Run` objects."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.histories.source import BESIDE, Columns, Run
from fortifai_ray.tracking.address import one_line, prepare_environment, redact
from fortifai_ray.tracking.run_state import search_runs
from fortifai_ray.validation import hint

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVENTS, OFFLINE = "*tfevents*", "*.wandb"
_BLOCK, _HEADER = 32768, 7  # of W&B's files, bytes
_BEFORE = b":W&B"


def mlflow_runs(tracking_uri: str, experiment: str, asked: Columns) -> Iterator[Run]:
    """The runs of an MLflow experiment that are not deleted; parameters and tags are their settings.

    Raises:
        UserError: no such database or experiment, or the store does not answer.
    """
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    if tracking_uri.startswith("sqlite:///") and not database.is_file():  # MLflow would create it
        raise UserError(
            f"mlflow:{experiment}: {database} does not exist; set MLFLOW_TRACKING_URI, or give its --storage"
        )
    try:
        yield from _experiment(tracking_uri, experiment, asked)
    except UserError:
        raise
    except Exception as error:  # whatever the tracking store raises
        raise UserError(f"mlflow:{experiment}: {redact(tracking_uri)} cannot be read: {one_line(error)}") from error


def _experiment(tracking_uri: str, experiment: str, asked: Columns) -> Iterator[Run]:
    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        names = sorted(one.name for one in client.search_experiments())
        raise UserError(f"mlflow:{experiment}: there is no such experiment{hint(experiment, names)}")
    wanted = {*asked.metrics, asked.step, *asked.labels, *BESIDE}
    for run in search_runs(client, known.experiment_id, ""):
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        logged = run.data.metrics
        fetched = wanted & set(logged) if logged.keys() & set(asked.metrics) else set()
        series = {name: _history(client, run.info.run_id, name) if name in fetched else {} for name in logged}
        yield Run(run.info.run_name or run.info.run_id, {**tags, **run.data.params}, series)


def _history(client: "MlflowClient", run_id: str, name: str) -> dict[int, float]:
    """A metric by step; of two values at one step, as a run that was resumed logs them, the later."""
    values = sorted(client.get_metric_history(run_id, name), key=lambda one: one.timestamp)
    return {one.step: one.value for one in values}


def event_runs(folder: Path) -> Iterator[Run]:
    """The runs of a TensorBoard folder: one for each folder of event files, named by its path; hyperparameters are its
    settings, also where ``add_hparams`` wrote them into a folder of their own inside the run's.

    Raises:
        UserError: a file is no event file.
    """
    files = sorted(folder.rglob(EVENTS)) if folder.is_dir() else [folder]
    read = dict[Path, tuple[dict[str, dict[int, float]], dict[str, Any]]]()
    for file in files:  # in the order of time: a later value of a step replaces an earlier one
        scalars, settings = read.setdefault(file.parent, (defaultdict(dict), {}))
        for event in _events(file):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    settings |= _hyperparameters(value.metadata.plugin_data.content)
                elif (number := _scalar(value)) is not None:
                    scalars[value.tag][event.step] = number
    for parent, (scalars, settings) in read.items():
        inside = [one for path, (_, one) in read.items() if path.parent == parent]
        known = settings or {key: value for one in inside for key, value in one.items()}
        name = parent.relative_to(folder).as_posix() if folder.is_dir() else parent.name
        yield Run(folder.name if name == "." else name, known, scalars)


def _events(file: Path) -> Iterator[Any]:
    """The events of a file, up to where a writer that was killed broke off: each is framed by its length and sums."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = file.read_bytes(), 0
    while place + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        if place + 16 + size > len(content):
            if place == 0:
                raise UserError(f"{file}: is no event file of TensorBoard")
            return
        yield _parsed(Event, content[place + 12 : place + 12 + size], file)
        place += 16 + size


def _parsed(kind: Any, content: bytes, file: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise UserError(f"{file}: cannot be read ({error}): it is damaged, or of another kind") from error


def _scalar(value: Any) -> float | None:
    """A summary's number: written as such by PyTorch, as a tensor of one by TensorFlow 2; None for anything else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name not in ("", "scalars"):
        return None
    tensor = value.tensor
    formats = {1: "<f", 2: "<d", 3: "<i", 9: "<q", 19: "<e"}  # TensorFlow's numbers of types
    packed = formats.get(tensor.dtype)
    if packed and len(tensor.tensor_content) == struct.calcsize(packed):
        return float(struct.unpack(packed, tensor.tensor_content)[0])
    listed = [*tensor.float_val, *tensor.double_val, *tensor.int_val, *tensor.int64_val]
    return float(listed[0]) if len(listed) == 1 else None


def _hyperparameters(content: bytes) -> dict[str, Any]:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind") or "", None) for name, value in values.items()}


def offline_runs(path: Path) -> Iterator[Run]:
    """The runs in a folder of Weights & Biases (``wandb/``, ``offline-run-…/``) or in one ``.wandb`` file; its
    configuration, nested keys joined by dots, are its settings.

    Raises:
        UserError: the package wandb is missing, or a file is not one of its.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # protobuf makes it on import
    except ImportError as error:
        raise UserError(
            f"{path}: to read offline runs of Weights & Biases takes its package: `pip install wandb`; or export the "
            "runs as CSV"
        ) from error
    for file in sorted(path.rglob(OFFLINE)) if path.is_dir() else [path]:
        name, settings = file.parent.name, dict[str, Any]()
        series = defaultdict[str, dict[int, float]](dict)
        for content in _records(file):
            record = _parsed(Record, content, file)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                _take_step(record.history, series)
            elif kind in ("config", "run"):
                settings |= _configuration(record.config if kind == "config" else record.run.config)
                name = (record.run.display_name or name) if kind == "run" else name
        yield Run(name, settings, series)


def _take_step(history: Any, series: dict[str, dict[int, float]]) -> None:
    values = {".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in history.item}
    step = int(values.get("_step", history.step.num))
    for name, value in values.items():
        if (isinstance(value, int | float) and not isinstance(value, bool)) or value in (
            "NaN",
            "Infinity",
            "-Infinity",
        ):
            series[name][step] = float(value)


def _configuration(config: Any) -> dict[str, Any]:
    from fortifai_ray.results.schema import flatten

    given = {".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in config.update}
    return flatten({key: value for key, value in given.items() if key != "_wandb"})


def _records(file: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: blocks of 32 KiB, as LevelDB's log has them; a record may go over several."""
    content = file.read_bytes()
    if not content.startswith(_BEFORE):
        raise UserError(f"{file}: is no file of Weights & Biases")
    place, parts = _HEADER, list[bytes]()
    while place + _HEADER <= len(content):
        if (left := _BLOCK - place % _BLOCK) < _HEADER:  # too little for a header: padding
            place += left
            continue
        _, size, part = struct.unpack_from("<IHB", content, place)
        if part == 0 or place + _HEADER + size > len(content):  # a writer that was killed broke off
            return
        piece = content[place + _HEADER : place + _HEADER + size]
        parts = [*parts, piece] if part in (3, 4) else [piece]  # 1: whole, 2: first, 3: middle, 4: last
        place += _HEADER + size
        if part in (1, 4):
            yield b"".join(parts)
