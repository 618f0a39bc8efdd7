"""The fields of a RayJob (ray.io/v1), as the API reference of KubeRay and its CRD list them (KubeRay 1.5.1).

KubeRay's CRD is published in its Helm chart and in no package of a registry, and it is not copied here: these classes
state its fields, their types and what is required, and leave pod templates to the Kubernetes client's own models.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

PodTemplate = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class AuthOptions(_Fields):
    mode: Literal["disabled", "token"] | None = None


class AutoscalerOptions(_Fields):
    version: Literal["v1", "v2"] | None = None
    resources: dict[str, Any] | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    security_context: dict[str, Any] | None = None
    idle_timeout_seconds: Count | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: list[dict[str, Any]] | None = None
    env_from: list[dict[str, Any]] | None = None
    volume_mounts: list[dict[str, Any]] | None = None


class HeadGroupSpec(_Fields):
    template: PodTemplate
    ray_start_params: dict[str, str]
    head_service: dict[str, Any] | None = None
    enable_ingress: bool | None = None
    service_type: str | None = None


class WorkerGroupSpec(_Fields):
    group_name: str
    template: PodTemplate
    ray_start_params: dict[str, str]
    replicas: Count | None = None
    min_replicas: Count
    max_replicas: Count
    num_of_hosts: Count | None = None
    idle_timeout_seconds: Count | None = None
    suspend: bool | None = None
    scale_strategy: dict[str, Any] | None = None


class RayClusterSpec(_Fields):
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec] | None = None
    ray_version: str | None = None
    auth_options: AuthOptions | None = None
    autoscaler_options: AutoscalerOptions | None = None
    enable_in_tree_autoscaling: bool | None = None
    gcs_fault_tolerance_options: dict[str, Any] | None = None
    head_service_annotations: dict[str, str] | None = None
    managed_by: str | None = None
    suspend: bool | None = None


class SubmitterConfig(_Fields):
    backoff_limit: Count | None = None


class RayJobSpec(_Fields):
    entrypoint: str | None = None
    ray_cluster_spec: RayClusterSpec | None = None
    runtime_env_yaml: str | None = Field(None, alias="runtimeEnvYAML")
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitter_pod_template: PodTemplate | None = None
    submitter_config: SubmitterConfig | None = None
    shutdown_after_job_finishes: bool | None = None
    ttl_seconds_after_finished: Count | None = None
    active_deadline_seconds: Count | None = None
    backoff_limit: Count = 0
    cluster_selector: dict[str, str] | None = None
    deletion_strategy: dict[str, Any] | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_resources: str | None = None
    job_id: str | None = None
    managed_by: str | None = None
    metadata: dict[str, str] | None = None
    suspend: bool | None = None


class RayJob(_Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: RayJobSpec
