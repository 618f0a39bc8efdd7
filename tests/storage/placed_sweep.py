"""``fortifai`` with trials and training workers bound to the nodes of ``separate_nodes.py`` that are meant for them."""

import sys
from dataclasses import replace
from typing import Any

from fortifai_ray.cli import main
from fortifai_ray.sweep import sweep, trials
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.ray_executor import RayExecutor

_make_plan, _executor = sweep.make_plan, trials._executor


def _plan(*arguments: Any, **options: Any) -> Plan:
    """The plan, of one thread each: several would round otherwise than those of a run in one place."""
    return _make_plan(*arguments, **options).model_copy(update={"threads": 1})


def _bound(plan: Plan, pool: Any) -> RayExecutor:
    executor = _executor(plan, pool)
    return replace(executor, worker_resources={**executor.worker_resources, "trainer": 1})


if __name__ == "__main__":
    sweep.make_plan = _plan
    trials._executor = _bound
    trials._trial_bundle = lambda plan: {"trials": 0.5}  # its node has no CPUs: nothing else is ever placed there
    sys.exit(main())
