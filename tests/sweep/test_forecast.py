"""The forecast: its simulation against timed runs and cases worked out by hand; what it says, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fortifai_ray.cli import app
from fortifai_ray.errors import UserError
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.study.study import load_study
from fortifai_ray.sweep.forecast import BETWEEN, Cluster, setting_of
from fortifai_ray.sweep.plan import make_plan
from fortifai_ray.sweep.preflight import dry_run
from fortifai_ray.sweep.simulation import Generation, Setting, simulate

RECORDED = json.loads((Path(__file__).parent / "recorded_runs.json").read_text())
STUDY: dict[str, Any] = {
    "name": "forecast",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "training": {"block_size": 64},
    "generations": 3,
    "vary": {"seed": {"count": 40}},
    "collapse": {"metric": "perplexity", "relative_to": "absolute", "threshold": 9.0, "direction": "above"},
}


@pytest.mark.parametrize("name", RECORDED)
def test_it_says_how_long_real_sweeps_took(name: str) -> None:
    """Two sweeps on two cores, of 30 and 72 generations, by the seconds of their own steps and their engines' start.

    The tolerance is what :data:`BETWEEN` may be off by: half of its 2 s, over the generations of one of two chains.
    """
    run = RECORDED[name]
    chains = [[Generation(*steps) for steps in chain] for chain in run["chains"]]
    plan = make_plan(ResourcesConfig(), len(chains), 2.0, 2)
    outcome = simulate(chains, setting_of(plan, run["engine_start_seconds"]))
    off = BETWEEN / 2 * sum(map(len, chains)) / plan.chains_at_once
    assert outcome.wall == pytest.approx(run["wall_seconds"], abs=off)


ONE = Generation(10.0, 2.0, 6.0)


@pytest.mark.parametrize(
    ("chains", "places", "engines", "capacity", "at_once", "wall"),
    [
        ([[ONE]], [0], [1], 1, 1, 5 + 18 + 1),
        ([[ONE, ONE]], [0], [1], 1, 1, 5 + 2 * 19),
        ([[ONE], [ONE]], [0], [1], 1, 1, 5 + 2 * 19),
        ([[ONE], [ONE]], [0, 1], [2, 3], 1, 1, 5 + 19),
        ([[ONE], [ONE]], [0, 1], [2], 1, 1, 5 + 12 + 2 * 6 + 1),  # both wait for the one engine
        ([[ONE]], [0], [1, 2], 1, 2, 5 + 12 + 3 + 1),  # two engines halve it
        ([[ONE], [ONE]], [0, 0], [1, 2], 1, 1, 5 + 2 * 12 + 6 + 1),  # two trainers on a GPU
        ([[ONE], [ONE]], [0, 0], [0, 0], 2, 1, 5 + 19),  # a machine of two cores
        ([[ONE], [ONE]], [0, 0], [0, 0], 1, 1, 5 + 2 * 18 + 1),  # and of one
        ([[ONE]], [0], [], 1, 1, 5 + 12 + 1),  # nothing generates on engines
        ([[Generation(10.0, 0.0, 0.0)], [Generation(4.0, 0.0, 6.0)]], [0, 1], [0], 1, 1, 5 + 16 + 1),  # 4, 2 · 6, and 4
    ],
)
def test_the_simulation_is_what_one_works_out_by_hand(
    chains: list[list[Generation]], places: list[int], engines: list[int], capacity: int, at_once: int, wall: float
) -> None:
    outcome = simulate(chains, Setting(places, engines, capacity, at_once, start=5.0, between=1.0))
    assert outcome.wall == pytest.approx(wall)


steps = st.builds(Generation, *(st.floats(0.1, 50.0) for _ in range(3)))


@given(st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_no_work_is_lost_and_none_is_done_faster_than_it_can_be(
    chains: list[list[Generation]], places: int, engines: int
) -> None:
    """The devices' busy time is the chains' work, and the wall time lies between the bounds that follow from it."""
    numbers = [place % 3 for place in range(places)], [engine % 3 for engine in range(engines)]
    outcome = simulate(chains, Setting(*numbers, 1, 1, start=3.0, between=0.5))
    work = sum(sum(one) for chain in chains for one in chain)
    devices = len({*numbers[0], *numbers[1]})
    assert (1 - outcome.idle) * devices * outcome.wall == pytest.approx(work)
    alone = max(sum(sum(one) + 0.5 for one in chain) for chain in chains)
    assert max(3 + alone, work / devices) - 1e-6 <= outcome.wall
    assert outcome.wall <= 3 + work + 0.5 * sum(map(len, chains)) + 1e-6
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in (*outcome.warm_idle, outcome.trainers, outcome.engines))


@pytest.mark.parametrize(
    ("asked", "gpus", "places", "engines"),
    [
        ({}, 4, [2, 3], [0, 1]),
        ({}, 1, [0], [0]),
        ({"engines": {"count": 1}}, 4, [1, 2, 3], [0]),
        ({"train": {"gpus_per_worker": 0.5}, "engines": {"count": 1, "gpus": 1}}, 3, [1, 1, 2, 2], [0]),
        ({"train": {"gpus_per_worker": 0.5}, "engines": {"gpus": 0.5}}, 2, [1, 1], [0, 0]),
        ({"engines": {"gpus": 2, "count": 1}}, 3, [1], [0]),
    ],
)
def test_devices_are_those_that_ray_gives(
    asked: dict[str, Any], gpus: int, places: list[int], engines: list[int]
) -> None:
    """Engines first, each GPU filled before the next one is begun."""
    plan = make_plan(ResourcesConfig.model_validate(asked), 8, 64.0, 64, gpus=float(gpus))
    setting = setting_of(plan, 0.0)
    assert (list(setting.places), list(setting.engines)) == (places, engines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus=64", "cpus is missing"),
        ("", "nothing is no key"),
        ("cpus=8,gpu=1", "gpu is no key of a cluster; cpus, gpus,"),
        ("cpus=many", "cpus=many: a number above 0"),
        ("cpus=0", "cpus=0: a number above 0"),
        ("cpus=8,gpus=-1", "gpus=-1: a number from 0 on"),
        ("cpus=8,train=nan", "train=nan: a number above 0"),
        ("cpus=inf", "cpus=inf"),
        ("cpus", "cpus=: a number"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cluster.of(text)


def printed(tmp_path: Path, cluster: str, **changes: Any) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    return str(dry_run(load_study(file), tmp_path / "runs", Cluster.of(cluster)))


def test_what_a_forecast_says(tmp_path: Path) -> None:
    """Twice the chains of what fits take twice as long; a shorter way is named with the keys that lead to it."""
    text = printed(tmp_path, "gpus=8, cpus=64, start=0, train=60, generate=20, stored=100")
    assert "On the cluster: 4 chain(s) at once on 64 CPU(s) and 8 GPU(s)" in text
    assert "for 120 generations of 40 chains" in text
    minutes = float(text.partition("Forecast: ")[2].split()[0])
    assert minutes == pytest.approx(10 * 3 * (80 + BETWEEN) / 60, rel=0.1), "ten chains after one another in each place"
    assert "Shorter: " in text
    assert "resources.engines.count: 2 and resources.train.gpus_per_worker: 1" in text, (
        "a quarter of the work is theirs"
    )
    assert "Storage: 100.0 MB written a generation" in text
    assert "Assumed: the seconds given" in text


def test_what_it_refuses(tmp_path: Path) -> None:
    """Nothing measured and nothing given; chains that a search will choose, or that take milliseconds."""
    with pytest.raises(UserError, match="no generation of this study is in the store: say how many seconds"):
        printed(tmp_path, "cpus=8")
    gaussian = {"family": {"kind": "gaussian", "dim": 1}, "samples_per_generation": 20, "regime": {"kind": "replace"}}
    collapse = {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 0.5, "direction": "below"}
    file = tmp_path / "analytic.yaml"
    file.write_text(yaml.safe_dump({"name": "a", "generations": 3, **gaussian, "collapse": collapse}))
    study, eight = load_study(file), Cluster.of("cpus=8")
    with pytest.raises(UserError, match="--cluster: a forecast is for a grid of chains that train networks"):
        dry_run(study, tmp_path / "runs", eight)
    result = CliRunner().invoke(app, ["sweep", str(tmp_path / "study.yaml"), "--cluster", "cpus=8"])
    assert isinstance(result.exception, UserError)
    assert "add --dry-run" in str(result.exception)
