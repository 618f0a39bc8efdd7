"""The plan: it always fits what there is, so nothing can wait for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.resources import EngineResources, ResourcesConfig, TrainResources, make_plan


@given(
    st.sampled_from([1, 2, 3, 4, 16, 64]),
    st.integers(1, 64),
    st.integers(1, 40),
    st.integers(1, 8),
    st.one_of(st.just("auto"), st.integers(1, 20)),
    st.one_of(st.just("auto"), st.integers(1, 20)),
)
def test_a_plan_never_asks_for_more_than_there_is(
    cpus: int, cores: int, chains: int, workers: int, engines: int | str, at_once: int | str
) -> None:
    """Trials, training workers and engines fit together with room left for Ray Data, whatever was asked for."""
    resources = ResourcesConfig.model_validate(
        {"chains_at_once": at_once, "train": {"workers": workers}, "engines": {"count": engines}}
    )
    plan = make_plan(resources, chains, float(cpus), cores)
    training = plan.trial_cpus + (plan.workers * plan.worker_cpus if plan.workers > 1 else 0.0)
    assert plan.chains_at_once * training + plan.engines * plan.engine_cpus < cpus
    assert 1 <= plan.chains_at_once <= chains
    assert min(plan.trial_cpus, plan.engine_cpus, plan.worker_cpus) > 0
    assert plan.engines_at_once * plan.chains_at_once <= max(plan.engines, plan.chains_at_once)


@pytest.mark.parametrize(
    ("cpus", "at_once", "engines", "threads"), [(1, 1, 1, 1), (2, 2, 2, 1), (4, 4, 4, 1), (16, 6, 6, 2)]
)
def test_the_machine_is_filled(cpus: int, at_once: int, engines: int, threads: int) -> None:
    """Six chains: one a core while they last, and then more threads for each."""
    plan = make_plan(ResourcesConfig(), 6, float(cpus), cpus)
    assert (plan.chains_at_once, plan.engines, plan.threads) == (at_once, engines, threads)
    assert plan.shrunk == ()


def test_what_cannot_be_had_is_cut_and_said() -> None:
    """Eight chains at once and nine engines on one CPU: the plan shrinks, and names both keys."""
    resources = ResourcesConfig(chains_at_once=8, engines=EngineResources(count=9))
    plan = make_plan(resources, 10, 1.0, 1)
    assert (plan.chains_at_once, plan.engines) == (1, 2)
    assert "resources.chains_at_once: 8" in plan.shrunk[0]
    assert "resources.engines.count: 9" in plan.shrunk[1]


def test_two_workers_share_a_chains_part() -> None:
    """On two CPUs a chain with two workers runs alone, a worker a core."""
    plan = make_plan(ResourcesConfig(train=TrainResources(workers=2)), 4, 2.0, 2)
    assert (plan.chains_at_once, plan.workers, plan.threads, plan.engines) == (1, 2, 1, 2)
