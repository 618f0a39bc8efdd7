"""The launcher's files against Ray's own schema and providers, as far as those work without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
from moto import mock_aws
from ray.autoscaler._private.local import node_provider as local_provider
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster.files import CLUSTER, LAUNCHER, launcher


def prepared(name: str, **changes: Any) -> dict[str, Any]:
    """A file as `ray up` prepares it, its defaults filled in; ``changes`` replace top-level keys."""
    config: dict[str, Any] = prepare_config(launcher(name) | changes)
    return config


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_file_keeps_to_rays_schema(name: str) -> None:
    validate_config(prepared(name))


def test_rays_schema_is_one_that_can_fail() -> None:
    """A misspelt key is reported, so that the test above means something."""
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepared("aws.yaml", idle_timeout=10))


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_command_of_rays_defaults_slips_in(name: str) -> None:
    """Where a list is not given, Ray fills in its own: another Ray version, and a dashboard open to all."""
    config = prepared(name)
    text = str([value for key, value in config.items() if key.endswith("_commands")])
    assert "0.0.0.0" not in text
    assert "pip install -U" not in text


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_workers_come_when_asked_for_and_may_be_spot(name: str) -> None:
    config = prepared(name)
    head, worker = (config["available_node_types"][kind] for kind in ("head", "gpu_worker"))
    assert head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == config["max_workers"] > 0


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """moto's EC2 and IAM, and a home folder for the SSH key that Ray makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield boto3.client("ec2", region_name=launcher("aws.yaml")["provider"]["region"])


def test_aws_bootstraps_and_launches(aws: Any, tmp_path: Path) -> None:
    """Ray's AWS provider makes role, key, network and group for the file, and EC2 takes both kinds of nodes."""
    cls = _get_node_provider_cls({"type": "aws"})
    config = cls.bootstrap_config(cls.fillout_available_node_types_resources(prepared("aws.yaml")))
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert {"CPU": 4, "GPU": 1}.items() <= kinds["gpu_worker"]["resources"].items()
    assert list((tmp_path / ".ssh").glob("*.pem"))
    image = aws.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    provider = cls(config["provider"], config["cluster_name"])
    for kind, role in (("head", "head"), ("gpu_worker", "worker")):
        tags = {TAG_RAY_NODE_KIND: role, TAG_RAY_USER_NODE_TYPE: kind}
        provider.create_node(kinds[kind]["node_config"] | {"ImageId": image}, tags, 1)
    launched = {
        instance["InstanceType"]: instance
        for reservation in aws.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    }
    assert set(launched) == {"m5.xlarge", "g5.xlarge"}
    assert launched["g5.xlarge"]["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in launched["m5.xlarge"]


def test_on_prem_lists_the_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's local provider takes the file's hosts: one head, the others workers, all of them kept."""
    monkeypatch.setattr(local_provider, "get_lock_path", lambda name: str(tmp_path / "lock"))
    monkeypatch.setattr(local_provider, "get_state_path", lambda name: str(tmp_path / "state"))
    cls = _get_node_provider_cls({"type": "local"})
    config = cls.bootstrap_config(prepared("on_prem.yaml"))
    provider = cls(config["provider"], config["cluster_name"])
    written = launcher("on_prem.yaml")["provider"]
    hosts = {kind: list(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: kind})) for kind in ("head", "worker")}
    state = provider.state.get()
    assert set(state) == {written["head_ip"], *written["worker_ips"]}
    assert hosts["worker"] == []  # `ray up` starts them
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(written["worker_ips"])


def test_on_prem_keeps_no_key_of_its_own() -> None:
    """SSH uses the user's agent; a path to a key would be one more thing to get wrong."""
    assert launcher("on_prem.yaml")["auth"] == {"ssh_user": "researcher"}
    assert "ssh_private_key" not in (CLUSTER / "on_prem.yaml").read_text()
