"""Nodes for a study, on a cluster that starts them when they are asked for.

A sweep plans for what is there when it starts, so it asks first: with a placement group for each training worker and
each engine that it could use at once. The autoscaler serves these one by one, as far as the cluster's limits go, and
they end with the driver, however it ends. Ray's own ``request_resources`` is served whole or not at all, and stays,
with the nodes that it holds, until somebody takes it back.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fortifai_ray.errors import UserError
from fortifai_ray.study.resources import ResourcesConfig

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

Bundle = dict[str, float]

_MOST = 256  # groups: past that their number costs Ray more than another node would bring
_QUIET_SECONDS = 20.0  # some rounds of the autoscaler, each of five seconds, in which it starts nothing more


def bring_nodes(
    resources: ResourcesConfig,
    chains: int,
    *,
    trained: bool,
    engines: bool,
    say: Callable[[str], None],
    patience: float = 1800.0,
) -> None:
    """Ask the cluster that this process is connected to for what ``chains`` chains could use, and wait for it.

    Returns at once where no autoscaler started the nodes that there are; else when all has come, or some of it and
    nothing more comes (the cluster's limits, a cloud without spare machines). ``trained`` is whether any chain trains a
    network: those that do not are computed together and need one node. ``engines`` is whether any generates on warm
    engines.

    Raises:
        UserError: nothing that a chain could run on came within ``patience`` seconds.
    """
    if not _is_autoscaled():
        return
    *first, last = wishes(resources, chains if trained else 1, gpus=trained, engines=engines)
    for bundles in first:
        if _ask(bundles, say, _QUIET_SECONDS):
            return
    if not _ask(last, say, patience):
        raise UserError(
            "--address: the cluster started no worker for this study: `ray status` on its head says why (its "
            "max_workers, the cloud's quota, no spot machines)"
        )


def wishes(resources: ResourcesConfig, chains: int, *, gpus: bool, engines: bool) -> list[list[Bundle]]:
    """What ``chains`` chains could use at once, a bundle for each process; each list is for where the one before fails.

    With GPUs first, then on CPUs alone; only the one or the other where the study says how many GPUs it wants.
    """
    workers, asked = resources.train.workers, resources.chains_at_once
    at_once = chains if asked == "auto" else min(asked, chains)
    on_cpus: list[Bundle] = [{"CPU": 1.0}] * min(at_once * workers, _MOST)
    trainer = resources.train.gpus_per_worker if gpus else 0.0
    if trainer == 0:
        return [on_cpus]
    bundle: Bundle = {"CPU": 1.0, "GPU": 1.0 if trainer == "auto" else float(trainer)}
    on_gpus = [bundle] * (at_once * workers)
    share = resources.engines.gpus
    if engines and share != 0:
        count = at_once if resources.engines.count == "auto" else resources.engines.count
        on_gpus += [{"CPU": 1.0, "GPU": 1.0 if share == "auto" else float(share)}] * count
    return [on_gpus[:_MOST], on_cpus] if trainer == "auto" else [on_gpus[:_MOST]]


def _status() -> "ClusterStatus":
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    return get_cluster_status(ray.get_runtime_context().gcs_address)


def _is_autoscaled() -> bool:
    """An autoscaler gives each of its nodes the name of its type: others are named after themselves.

    Ray Client (ray://) has no way to ask for it.
    """
    from ray.util.client import ray as client

    if client.is_connected():
        return False
    status = _status()
    nodes = (*status.active_nodes, *status.idle_nodes)
    return any(node.ray_node_type_name not in ("", f"node_{node.node_id}") for node in nodes)


def _ask(bundles: list[Bundle], say: Callable[[str], None], patience: float) -> bool:
    """Hold a placement group for each bundle until all are placed, or nothing more comes; then let go.

    Returns whether the cluster has any of what was asked for, be it in use. Where it has none, that is waited for
    during ``patience`` seconds in which nothing comes.
    """
    from ray.util import placement_group, remove_placement_group

    groups = [placement_group([bundle]) for bundle in bundles]
    try:
        return _wait({group.id.hex() for group in groups}, bundles[0], say, patience)
    finally:
        for group in groups:
            remove_placement_group(group)


def _wait(groups: set[str], bundle: Bundle, say: Callable[[str], None], patience: float) -> bool:
    import ray
    from ray.util import placement_group_table

    seen, moved = "", time.monotonic()
    while True:
        table, status, now = placement_group_table(), _status(), time.monotonic()
        placed = sum(table[name]["state"] == "CREATED" for name in groups if name in table)
        coming = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
        nodes = len(status.active_nodes) + len(status.idle_nodes)
        state = f"{nodes} node(s) in the cluster, {coming} on the way: room for {placed} of {len(groups)} processes"
        if state != seen:
            say(state)
        if state != seen or coming:
            seen, moved = state, now
        have = ray.cluster_resources()
        some = all(have.get(name, 0.0) >= share for name, share in bundle.items())
        if placed == len(groups) or now - moved > (_QUIET_SECONDS if some else patience):
            return some
        time.sleep(1)
