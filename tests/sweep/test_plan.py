"""The plan: it always fits what there is, so nothing can wait for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.errors import UserError
from fortifai_ray.study.resources import EngineResources, ResourcesConfig, TrainResources
from fortifai_ray.sweep.plan import make_plan


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


@given(
    st.integers(0, 16),
    st.integers(1, 40),
    st.integers(1, 9),
    st.booleans(),
    st.one_of(st.just("auto"), st.integers(1, 20)),
    st.one_of(st.just("auto"), st.integers(1, 20)),
)
def test_a_plan_never_asks_for_more_gpus_than_there_are(
    gpus: int, chains: int, workers: int, writes: bool, engines: int | str, at_once: int | str
) -> None:
    """Shares that Ray can give, and all that chains and engines hold at once fits: no trial waits for ever."""
    resources = ResourcesConfig.model_validate(
        {"chains_at_once": at_once, "train": {"workers": workers}, "engines": {"count": engines}}
    )
    plan = make_plan(resources, chains, 64.0, 64, engines=writes, gpus=float(gpus))
    held = plan.chains_at_once * plan.workers * plan.worker_gpus + plan.engines * plan.engine_gpus
    assert held <= gpus + 1e-9
    assert (plan.worker_gpus > 0) == (gpus > 0)
    assert (plan.engine_gpus > 0) == (gpus > 0 and writes)
    for share in (plan.worker_gpus, plan.engine_gpus):
        assert share < 1 or share == int(share)
    assert plan.trial_gpus == (plan.worker_gpus if workers == 1 else 0)


@pytest.mark.parametrize(
    ("gpus", "workers", "at_once", "engines", "worker_gpus", "engine_gpus"),
    [
        (1, 1, 1, 1, 0.45, 0.45),
        (2, 1, 1, 1, 1.0, 1.0),
        (8, 1, 4, 4, 1.0, 1.0),
        (8, 4, 1, 1, 1.0, 1.0),
        (4, 4, 1, 1, 0.45, 1.0),
    ],
)
def test_gpus_are_filled(
    gpus: int, workers: int, at_once: int, engines: int, worker_gpus: float, engine_gpus: float
) -> None:
    """Whole GPUs where one chain finds them, else shares of those there are."""
    plan = make_plan(ResourcesConfig(train=TrainResources(workers=workers)), 6, 64.0, 64, gpus=float(gpus))
    assert (plan.chains_at_once, plan.engines) == (at_once, engines)
    assert (plan.worker_gpus, plan.engine_gpus) == (worker_gpus, engine_gpus)


@pytest.mark.parametrize(
    ("count", "worker", "engine", "at_once", "engines"),
    [
        (20, 1.0, 1.0, 44, 20),
        (20, 0.25, 1.0, 176, 20),
        (10, 1.0, 2.0, 44, 10),
        (32, 1.0, 1.0, 32, 32),
        (40, 1.0, 1.0, 32, 32),
        (2, 1.0, 0.5, 63, 2),
    ],
)
def test_engines_that_are_fewer_than_chains_leave_their_gpus_to_training(
    count: int, worker: float, engine: float, at_once: int, engines: int
) -> None:
    """Where training takes longer than writing, fewer engines serve more chains, and no GPU is without a process."""
    asked = {"train": {"gpus_per_worker": worker}, "engines": {"count": count, "gpus": engine}}
    plan = make_plan(ResourcesConfig.model_validate(asked), 1000, 512.0, 512, gpus=64.0)
    assert (plan.chains_at_once, plan.engines) == (at_once, engines)
    assert plan.chains_at_once * plan.worker_gpus + plan.engines * plan.engine_gpus <= 64


def test_gpus_that_cannot_be_had_are_refused() -> None:
    """More GPUs than there are: one line, instead of a trial that waits for ever."""
    resources = ResourcesConfig(train=TrainResources(workers=4, gpus_per_worker=1))
    with pytest.raises(UserError, match=r"4 x 1 GPU.*of 2 available"):
        make_plan(resources, 2, 8.0, 8, gpus=2.0)
    with pytest.raises(UserError, match="of 0 available"):
        make_plan(resources, 2, 8.0, 8)


def test_two_workers_share_a_chains_part() -> None:
    """On two CPUs a chain with two workers runs alone, a worker a core."""
    plan = make_plan(ResourcesConfig(train=TrainResources(workers=2)), 4, 2.0, 2)
    assert (plan.chains_at_once, plan.workers, plan.threads, plan.engines) == (1, 2, 1, 2)


@pytest.mark.parametrize(
    ("gpus", "workers", "at_once", "engines", "worker_gpus"),
    [(4, 1, 1, 1, 1.0), (8, 1, 2, 3, 1.0), (8, 2, 2, 2, 1.0), (3, 2, 1, 1, 0.5)],
)
def test_engines_over_several_gpus_are_planned_whole(
    gpus: int, workers: int, at_once: int, engines: int, worker_gpus: float
) -> None:
    """Two GPUs to an engine: what is left trains, nothing is promised twice, and the plan says what spreads."""
    resources = ResourcesConfig.model_validate(
        {"train": {"workers": workers}, "engines": {"gpus": 2, "count": "auto" if gpus < 8 else engines}}
    )
    plan = make_plan(resources, 6, 64.0, 64, gpus=float(gpus))
    assert plan.chains_at_once * plan.workers * plan.worker_gpus + plan.engines * plan.engine_gpus <= gpus
    assert (plan.chains_at_once, plan.engines, plan.engine_gpus) == (at_once, engines, 2.0)
    assert plan.worker_gpus == worker_gpus
    assert "warm engine(s) spread over 2 GPUs each (tensor parallel)" in plan.describe()


def test_an_engine_never_spreads_over_nodes() -> None:
    """Two GPUs on each of four nodes hold four engines of two, and none of four: that is said, not waited for."""
    of_two = ResourcesConfig(chains_at_once=1, engines=EngineResources(count=4, gpus=2))
    plan = make_plan(of_two, 1, 64.0, 64, gpus=9.0, node_gpus=[2.0, 2.0, 2.0, 3.0])
    assert (plan.engines, plan.shrunk) == (4, ())
    plan = make_plan(of_two, 1, 64.0, 64, gpus=9.0, node_gpus=[1.0, 1.0, 1.0, 2.0, 4.0])
    assert plan.engines == 3
    assert "resources.engines.count: 4 engines do not fit on 9 GPU(s): 3 will start" in plan.shrunk[0]
    of_four = ResourcesConfig(engines=EngineResources(gpus=4))
    with pytest.raises(UserError, match="an engine over 4 GPUs needs them on one node, and the largest has 2"):
        make_plan(of_four, 1, 64.0, 64, gpus=8.0, node_gpus=[2.0, 2.0, 2.0, 2.0])


def test_a_part_of_a_second_gpu_is_refused() -> None:
    """Ray gives shares of one GPU, or whole ones."""
    with pytest.raises(ValueError, match=r"a share of one GPU or a whole number of them, not 1\.5"):
        EngineResources(gpus=1.5)


def test_engines_get_no_second_gpu_by_themselves() -> None:
    """Ten workers on ten GPUs: an engine's share is at most one GPU, for only one that was asked for spreads."""
    plan = make_plan(ResourcesConfig(train=TrainResources(workers=10)), 1, 64.0, 64, gpus=10.0)
    assert plan.engine_gpus == 1.0


def test_engines_that_leave_training_no_gpu_are_refused() -> None:
    """Two GPUs to an engine and none other: training would go on without one, unseen."""
    with pytest.raises(UserError, match="an engine 2, of 2 available"):
        make_plan(ResourcesConfig(engines=EngineResources(gpus=2)), 1, 64.0, 64, gpus=2.0)
