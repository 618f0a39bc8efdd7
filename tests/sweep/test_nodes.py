"""What a study asks a cluster for, from its ``resources:`` and the number of its chains."""

import pytest

from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.sweep.instance import wishes

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


def config(**resources: object) -> ResourcesConfig:
    return ResourcesConfig.model_validate(resources)


def test_without_a_word_it_asks_for_a_gpu_a_process_and_where_there_are_none_for_cpus() -> None:
    """Each chain at once has its trainer and its engine; on CPUs they share."""
    assert wishes(config(), 3, gpus=True, engines=True) == [[GPU] * 6, [CPU] * 3]


def test_what_the_study_says_is_asked_for() -> None:
    asked = config(chains_at_once=2, train={"workers": 4, "gpus_per_worker": 1}, engines={"count": 3, "gpus": 0.5})
    assert wishes(asked, 10, gpus=True, engines=True) == [[GPU] * 8 + [{"CPU": 1.0, "GPU": 0.5}] * 3]


@pytest.mark.parametrize(("gpus", "train"), [(False, "auto"), (True, 0)])
def test_no_gpu_is_asked_for_where_none_would_be_used(gpus: bool, train: object) -> None:
    """Families that train no network, and a study that says so: a GPU worker costs the more."""
    assert wishes(config(train={"gpus_per_worker": train}), 2, gpus=gpus, engines=False) == [[CPU] * 2]


def test_a_study_of_thousands_of_chains_does_not_flood_the_cluster() -> None:
    for bundles in wishes(config(), 5000, gpus=True, engines=True):
        assert len(bundles) == 256
