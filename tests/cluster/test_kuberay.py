"""``cluster/kuberay.yaml``: KubeRay's fields, Kubernetes' own models for the pods, and how its parts fit together."""

import json
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from cluster.files import CLUSTER
from cluster.kuberay_fields import RayJob
from fortifai_ray.cli import app

CLAIM, UI, JOB = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())


def pods() -> Iterator[dict[str, Any]]:
    """The pod specs in the file: the page's, the head's, the workers'."""
    cluster = JOB["spec"]["rayClusterSpec"]
    yield UI["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])


def test_the_job_has_kuberays_fields() -> None:
    job = RayJob.model_validate(JOB)
    assert job.spec.ray_cluster_spec is not None
    assert job.spec.ray_cluster_spec.auth_options is not None
    assert job.spec.ray_cluster_spec.auth_options.mode == "token"


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("spec", {"entryPoint": "fortifai"}),
        ("rayClusterSpec", {"authOptions": {"mode": "on"}}),
        ("spec", {"suspend": "no"}),
    ],
)
def test_a_field_that_kuberay_does_not_have_is_reported(where: str, wrong: dict[str, Any]) -> None:
    """The check above catches what it is meant for."""
    job = json.loads(json.dumps(JOB))
    (job["spec"] if where == "spec" else job["spec"]["rayClusterSpec"]).update(wrong)
    with pytest.raises(ValidationError):
        RayJob.model_validate(job)


@pytest.mark.parametrize("wanted", ["V1PersistentVolumeClaim", "V1Pod", "V1PodTemplateSpec"])
def test_pods_and_claim_are_kubernetes_own(wanted: str) -> None:
    """The official client reads each and writes it back unchanged; it would drop what its API does not know."""
    client = pytest.importorskip("kubernetes.client", reason="the kubernetes client is not installed")
    cluster = JOB["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    parts = {"V1PersistentVolumeClaim": [CLAIM], "V1Pod": [UI], "V1PodTemplateSpec": templates}[wanted]
    api = client.ApiClient()
    for part in parts:
        read = api.deserialize(json.dumps(part), wanted, "application/json")
        assert api.sanitize_for_serialization(read) == part


def test_ray_is_the_version_that_the_images_hold() -> None:
    """The operator chooses its commands by that version."""
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_entrypoint_is_a_command_line_that_the_project_takes() -> None:
    command, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert command == "fortifai"
    file = arguments[1].removeprefix("/app/")
    answer = CliRunner().invoke(app, [arguments[0], str(CLUSTER.parent / file), *arguments[2:], "--help"])
    assert answer.exit_code == 0
    assert (CLUSTER.parent / file).is_file()
    storage = arguments[arguments.index("--storage") + 1]
    for pod in pods():
        mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
        assert {"name": "storage", "mountPath": storage} in mounts


def test_every_pod_mounts_the_one_claim() -> None:
    """Stages that some nodes do not see would be computed again, or be missing."""
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert claims == [{"claimName": CLAIM["metadata"]["name"]}]


def test_nobody_runs_as_root() -> None:
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods())


def test_chains_run_on_the_workers() -> None:
    """The head offers no CPU; each worker offers the GPU that is its limit."""
    cluster = JOB["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_cluster_ends_with_the_job() -> None:
    """An idle GPU costs as much as a busy one."""
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_mlflow_listens_on_its_pods_loopback() -> None:
    (container,) = UI["spec"]["containers"]
    assert container["command"] == ["fortifai", "ui", "--storage", "/mnt/fortifai"]
    assert "ports" not in container
