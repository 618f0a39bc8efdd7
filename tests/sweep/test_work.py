"""The jobs of a grid: made when they are asked for, the same in the driver and in a trial."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.chain.chain import ChainTask, Inputs
from fortifai_ray.results.cells import ChainNames
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.work import Grid

IMAGES: dict[str, Any] = {
    "name": "work",
    "family": {"kind": "vae", "data": {"source": "digits"}},
    "samples_per_generation": 32,
    "generations": 2,
    "collapse": {"metric": "wasserstein", "threshold": 2.0, "direction": "above"},
}
LOSSES = [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}]
PLAN = Plan(cpus=1, chains_at_once=1, engines=0, workers=1, threads=1, trial_cpus=1, worker_cpus=1, engine_cpus=0)


def grid(study: Study) -> Grid:
    recipes = [cell.recipe for cell in study.cells] + [study.baseline_of(cell) for cell in study.cells]
    return Grid(study, Inputs({(type(one), one.shared_input): "prepared" for one in recipes}))


def keys(work: Grid) -> list[str]:
    return [key for config in work.configs(PLAN) for key in config["jobs"]]


@pytest.mark.parametrize("baseline", [{"loss.kind": "cross_entropy"}, {"loss.kind": "cross_entropy", "seed": 5}])
def test_a_job_is_that_of_its_chain(tmp_path: Path, baseline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the driver, and in a trial in another folder: also where all chains have one baseline, and where a path is
    relative to the driver's folder."""
    (tmp_path / "driver" / "data").mkdir(parents=True)
    (tmp_path / "trial").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    family = {"kind": "vae", "data": {"path": "data"}}
    study = make_study(
        IMAGES | {"family": family, "vary": {"loss": LOSSES, "seed": [5, 6, 7]}, "baseline": baseline}, "s"
    )
    work = grid(study)
    tasks = {chain.chain_id: ChainTask.of(study, chain, work.inputs) for chain in study.chains}
    monkeypatch.chdir(tmp_path / "trial")
    for each in (work, pickle.loads(pickle.dumps(work))):
        assert keys(each) == [chain.chain_id for chain in study.chains]
        for key in keys(each):
            job = each.job(key)
            assert (job.key, job.id, job.steps) == (key, key, 2)
            assert job.tasks == [tasks[key]]
            assert job.label == ChainNames(study).chain(tasks[key].chain)
        assert each.cells == list(study.chains)
        assert each.at_once == 6


def test_a_grid_is_little_larger_than_its_study() -> None:
    """It goes to every trial: a seed more is a name and a number, not a recipe."""
    sizes = []
    for seeds in (10, 210):
        study = make_study(IMAGES | {"vary": {"loss": LOSSES, "seed": {"start": 0, "count": seeds}}}, "s")
        sizes.append(len(pickle.dumps(grid(study))))
    assert (sizes[1] - sizes[0]) / 400 < 500
