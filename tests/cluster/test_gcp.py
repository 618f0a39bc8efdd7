"""``cluster/gcp.yaml`` through Ray's Google Cloud provider, against the API as Google's own client describes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

from cluster.files import launcher

discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
pytest.importorskip("google_auth_httplib2", reason="google-auth-httplib2 is not installed")

DONE = {"name": "operation", "status": "DONE"}
ANSWERS: dict[str, Any] = {  # by method and the end of the path: every request that Ray makes
    "GET cloudresourcemanager.* /v1/projects/[^/]+$": {"projectId": "my-project", "lifecycleState": "ACTIVE"},
    "POST .*:getIamPolicy$": {"bindings": []},
    "POST .*:setIamPolicy$": {},
    "GET iam.*/serviceAccounts/.+$": {"email": "ray@my-project.example", "projectId": "my-project"},
    "GET compute.*/projects/my-project$": {"name": "my-project", "commonInstanceMetadata": {}},
    "POST .*/setCommonInstanceMetadata$": DONE,
    "GET .*/operations/operation$": DONE,
    "GET .*/subnetworks$": {"items": [{"selfLink": "https://compute/subnetworks/default"}]},
    "POST .*/instances$": DONE,
}


class Cloud:
    """Replaces the client's HTTP connection: answers Ray's requests, and keeps the bodies it sends."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    def request(self, uri: str, method: str = "GET", body: str | None = None, **options: Any) -> tuple[Any, bytes]:
        import httplib2

        host, path = re.fullmatch(r"https://([^/]+)(/[^?]*).*", uri).groups()  # type: ignore[union-attr]
        asked = f"{method} {host} {path}" if host.startswith("cloudresourcemanager") else f"{method} {host}{path}"
        (answer,) = [answer for pattern, answer in ANSWERS.items() if re.match(pattern, asked)]
        if path.endswith("/instances"):
            self.launched.append(json.loads(body or ""))
        return httplib2.Response({"status": 200}), json.dumps(answer).encode()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    """Google's own client, over a connection that goes nowhere; and a home folder for the SSH key that Ray makes."""
    from ray.autoscaler._private.gcp import config, node

    monkeypatch.setenv("HOME", str(tmp_path))
    http = Cloud()
    monkeypatch.setattr(node.GCPCompute, "get_new_authorized_http", lambda compute, connection: connection)
    for name, api in (("_create_crm", "cloudresourcemanager"), ("_create_iam", "iam"), ("_create_compute", "compute")):
        client = discovery.build(api, "v1", http=http, static_discovery=True)
        monkeypatch.setattr(config, name, lambda credentials=None, client=client: client)
    return http


def test_gcp_bootstraps_and_launches(cloud: Cloud) -> None:
    """Ray's provider makes account, key and network for the file, and sends what the Compute API describes."""
    from ray.autoscaler._private.gcp.config import bootstrap_gcp
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

    config = bootstrap_gcp(prepare_config(launcher("gcp.yaml")))
    provider = GCPNodeProvider(config["provider"], config["cluster_name"])
    for kind, role in (("head", "head"), ("gpu_worker", "worker")):
        tags = {TAG_RAY_NODE_KIND: role, TAG_RAY_USER_NODE_TYPE: kind, TAG_RAY_NODE_NAME: f"ray-fortifai-{role}"}
        provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    head, worker = cloud.launched
    described = discovery.build("compute", "v1", http=cloud, static_discovery=True)._schema.schemas
    for instance in (head, worker):
        assert list(not_described(instance, "Instance", described)) == []
    assert head["machineType"].endswith("/e2-standard-4")
    assert worker["machineType"].endswith("/g2-standard-8")
    assert worker["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in head


def test_what_the_api_does_not_know_is_reported(cloud: Cloud) -> None:
    """The check above catches a misspelt key, a value of the wrong type and an unknown word."""
    described = discovery.build("compute", "v1", http=cloud, static_discovery=True)._schema.schemas
    for wrong in (
        {"machinetype": "e2-standard-4"},
        {"disks": [{"autoDelete": "yes"}]},
        {"scheduling": {"provisioningModel": "CHEAP"}},
    ):
        assert list(not_described(wrong, "Instance", described))


def not_described(value: Any, schema: str | dict[str, Any], described: dict[str, Any], at: str = "") -> Iterator[str]:
    """The places of ``value`` that an API's description (Google's discovery format) does not allow."""
    rule = described[schema] if isinstance(schema, str) else described.get(schema.get("$ref", ""), schema)
    kind = rule.get("type", "object")
    kinds = {"object": dict, "array": list, "boolean": bool, "integer": int, "number": (int, float)}
    if kind == "string" and isinstance(value, int) and "int64" in rule.get("format", ""):
        return  # the API takes a number where its description says a string of digits
    if not isinstance(value, kinds.get(kind, str)):
        yield f"{at}: {value!r} is no {kind}"
    elif kind == "array":
        for number, item in enumerate(value):
            yield from not_described(item, rule["items"], described, f"{at}[{number}]")
    elif kind == "object":
        for key, item in value.items():
            inner = rule.get("properties", {}).get(key) or rule.get("additionalProperties")
            if inner is None:
                yield f"{at}.{key}: not known"
            else:
                yield from not_described(item, inner, described, f"{at}.{key}")
    elif value not in rule.get("enum", [value]):
        yield f"{at}: {value!r} is none of {rule['enum']}"
