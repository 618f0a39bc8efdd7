"""The search under Ray Tune: it ends the tuner itself, finds the boundary, and can be restored."""

from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.cells import CellSearches
from fortifai_ray.study.search import BoundarySearch, OptimiseSearch

SEARCH = BoundarySearch(over="regime.synthetic_ratio", low=0.0, high=1.0, tolerance=0.1, at_once=2, budget=60)
BOUNDARIES = {"ce": 0.3, "tce": 0.7}


def searches() -> CellSearches:
    return CellSearches({name: BoundaryFinder(SEARCH) for name in BOUNDARIES})


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """A chain's last report."""
    return {"collapsed": config["value"] > BOUNDARIES[config["cell"]], "generations": 6}


@pytest.mark.ray
def test_tune_runs_a_search_to_its_end(ray_instance: str, tmp_path: Path) -> None:
    """Two cells side by side, several trials at once, no number of samples given: it finds both boundaries."""
    from ray import tune

    from fortifai_ray.sweep.searcher import BoundarySearcher

    searcher, boundaries = BoundarySearcher(searches()), dict(BOUNDARIES)

    def trial(config: dict[str, Any]) -> dict[str, Any]:  # local, so that workers need not import the tests
        return {"collapsed": config["value"] > boundaries[config["cell"]], "generations": 6}

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 0.5}),
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=4, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    grid = tuner.fit()
    assert searcher.searches.done
    assert not grid.errors
    points = {name: finder.result() for name, finder in searcher.searches.finders.items()}
    assert sum(point.chains_run for point in points.values()) == len(grid)
    for name, point in points.items():
        assert (point.bound, point.ended) == ("exact", "settled")
        assert point.low <= BOUNDARIES[name] <= point.high


def test_a_searcher_is_restored_with_its_running_trials(tmp_path: Path) -> None:
    """Trials that ran when it was saved report afterwards under their ids; nothing is suggested twice."""
    from fortifai_ray.sweep.searcher import BoundarySearcher

    searcher = BoundarySearcher(searches())
    configs = {f"trial{i}": searcher.suggest(f"trial{i}") for i in range(6)}
    for trial in ("trial0", "trial1"):
        searcher.on_trial_complete(trial, answer(configs[trial]))
    searcher.save(str(tmp_path / "state"))
    again = BoundarySearcher(searches())
    again.restore(str(tmp_path / "state"))
    for trial in ("trial2", "trial3", "trial4"):
        again.on_trial_complete(trial, answer(configs[trial]))
    again.on_trial_complete("trial5", None, error=True)
    number = 6
    while (config := again.suggest(f"trial{number}")) != "FINISHED":
        assert config not in list(configs.values())
        configs[f"trial{number}"] = config
        again.on_trial_complete(f"trial{number}", answer(config))
        number += 1
    assert sum(finder.result().chains_run for finder in again.searches.finders.values()) == number


def test_optimise_without_optuna_is_a_clear_error() -> None:
    """Where Optuna is installed, Tune's own searcher over the asked ranges; else one line that says what to install."""
    from fortifai_ray.sweep.searcher import optuna_search

    search = OptimiseSearch(over={"loss.gamma": [0.05, 1.0]})
    try:
        import optuna  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install optuna"):
            optuna_search(search, seed=0)
        return
    suggested = optuna_search(search, seed=0).suggest("trial")
    assert suggested is not None
    assert 0.05 <= suggested["loss.gamma"] <= 1.0
