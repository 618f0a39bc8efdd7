"""The doctor: a working environment passes, each trap is named with its cure, and no password is shown."""

import importlib.util
import io
import os
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from fortifai_ray import doctor
from fortifai_ray.doctor import Finding, check_storage, check_tracking, diagnose, print_findings
from fortifai_ray.process.imports import hide_foreign_companions
from fortifai_ray.process.probes import probe


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def printed(findings: list[Finding]) -> tuple[bool, str]:
    output = io.StringIO()
    good = print_findings(findings, Console(file=output, width=200))
    return good, output.getvalue()


def test_this_environment_is_sound(tmp_path: Path) -> None:
    """Everything that this suite runs on passes, by real imports, and the storage stays as it was."""
    findings = {finding.name: finding for finding in diagnose(str(tmp_path))}
    essential = ["Python", "Ray", "torch", "transformers", "Polars", "PyArrow", "MLflow", "Storage"]
    assert {name: findings[name].ok for name in essential} == dict.fromkeys(essential, True)
    assert set(findings) - set(essential) == {"Machine", "Shared memory", "GPU", "torchvision", "vLLM", "MLflow runs"}
    assert list(tmp_path.iterdir()) == []
    good, text = printed(list(findings.values()))
    assert good, text


def test_what_is_missing_is_printed_with_its_cure_and_decides() -> None:
    """A note leaves studies runnable; one essential part that is missing does not."""
    fine, note = Finding("Ray", True, "2.60.0"), Finding("GPU", None, "none [at all]", "buy one")
    assert printed([fine, note])[0]
    good, text = printed([fine, note, Finding("torch", False, "not installed", "install it")])
    assert not good
    assert all(part in text for part in ("none [at all]", "→ buy one", "→ install it", "Studies cannot run: torch."))


def place_broken(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution whose import fails as a torchvision built for another torch does."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    place_version(folder, name, "0.28.0")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def place_version(folder: Path, name: str, version: str) -> None:
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(("torch", "ok"), [("2.13.0+cpu", None), ("2.13.0", False)])
def test_a_torchvision_for_another_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, ok: bool | None
) -> None:
    """The trap of this stack: it breaks transformers, and the error that users see does not say why. Beside a CPU build
    of torch it is kept out; beside another it does harm."""
    place_broken(tmp_path, "torchvision", monkeypatch)
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
    )
    finding = doctor._torchvision()
    assert finding.ok is ok
    assert ("torchvision::nms" if torch == "2.13.0" else "is kept out here") in finding.detail
    assert "pip uninstall torchvision" in finding.advice


@pytest.mark.parametrize(("torch", "hidden"), [("2.13.0+cpu", True), ("2.13.0", False)])
def test_a_torchvision_for_another_torch_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, hidden: bool
) -> None:
    """What asks whether it is installed, as transformers does, hears that it is not."""
    place_broken(tmp_path, "torchvision", monkeypatch)
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
    )
    hide_foreign_companions()
    try:
        assert (importlib.util.find_spec("torchvision") is None) == hidden
        hide_foreign_companions()  # again, as in a worker that was forked
        assert ("torchvision" in sys.modules) == hidden
    finally:
        sys.modules.pop("torchvision", None)


def test_it_knows_the_pythons_that_are_supported() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    asked = SpecifierSet(project["requires-python"])
    assert tuple((3, minor) for minor in range(30) if f"3.{minor}" in asked) == doctor.PYTHONS


def test_a_library_that_cannot_be_imported_is_essential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_broken(tmp_path, "brokenlibrary", monkeypatch)
    finding = doctor._library("Broken", "brokenlibrary", probe("import brokenlibrary", 60.0))
    assert (finding.ok, "0.28.0 is installed, but its import fails" in finding.detail) == (False, True)
    absent = doctor._library("Absent", "no-such-distribution", probe("import absent", 60.0))
    assert (absent.ok, absent.detail) == (False, "not installed")


def test_a_pinned_version_is_read_from_what_this_package_asks_for() -> None:
    """Extras in brackets are not part of the name, nor is a longer name that begins with it."""
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    assert doctor._pinned("ray", project["dependencies"]) == version("ray")
    assert doctor._pinned("scipy", project["dependencies"]) is None
    assert doctor._pinned("vllm", project["optional-dependencies"]["cpu"]) is None
    assert doctor._pinned("mlflow", ["mlflow==3.17.2 ; python_version < '3.12'"]) == "3.17.2"


class TestStorage:
    def test_a_folder_yet_to_be_made_is_fine_and_is_not_made(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "yet"
        finding = check_storage(str(folder))
        assert finding.ok is not False
        assert "writable" in finding.detail
        assert not folder.parent.exists()
        assert check_storage(folder.as_uri()).detail == finding.detail

    def test_a_file_in_its_place_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        finding = check_storage(str(tmp_path / "file" / "storage"))
        assert finding.ok is False
        assert f"{tmp_path / 'file'} is not a folder" in finding.detail

    def test_a_folder_that_cannot_be_written_is_named(self) -> None:
        """Nobody may write under /proc, not even root."""
        if not sys.platform.startswith("linux"):
            pytest.skip("needs /proc")
        finding = check_storage("/proc/self/storage")
        assert finding.ok is False
        assert "cannot write to /proc/self" in finding.detail

    def test_an_unknown_object_store_is_an_error_without_its_key(self) -> None:
        finding = check_storage("nosuch://key:hunter2@bucket/path")
        assert finding.ok is False
        assert "hunter2" not in finding.detail + finding.advice


class Answer(BaseHTTPRequestHandler):
    """A web server that is not MLflow: a page to those who give ada's password, 401 to others."""

    def do_POST(self) -> None:
        known = self.headers.get("Authorization") == "Basic YWRhOmh1bnRlcjI="  # ada:hunter2
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


class TestTracking:
    """A server that cannot be used is a note, never essential: studies run without it. (A real one: test_address.)"""

    def test_wrong_credentials_differ_from_a_server_that_is_not_mlflow(
        self, web_server: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{web_server}")
        assert "401" in check_tracking().detail
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:hunter2@127.0.0.1:{web_server}/")
        finding = check_tracking()
        assert finding.ok is None
        assert "not MLflow" in finding.detail
        assert "hunter2" not in finding.detail

    def test_a_dead_server_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        finding = check_tracking()
        assert (finding.ok, "no answer" in finding.detail) == (None, True)
        assert "MLFLOW_TRACKING_URI" in finding.advice

    def test_without_the_variable_the_runs_go_to_the_storage(self, tmp_path: Path) -> None:
        assert check_tracking(str(tmp_path)).detail.startswith(f"sqlite:///{tmp_path.resolve()}/mlflow.db")
