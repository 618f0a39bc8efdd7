"""The search's parts: settings, lattice, test of monotony, cells side by side, verdicts, table."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.cells import CellSearches
from fortifai_ray.search.monotone import PROVEN, contradiction
from fortifai_ray.search.points import CollapsePoint, Lattice, collapse_points
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.crossing import ruling
from fortifai_ray.study.search import BoundarySearch, OptimiseSearch, SurvivalRules, refuse_search
from tests.search.laws import logistic

CRITERION = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")

RATIO = {"over": "regime.synthetic_ratio", "low": 0.0, "high": 1.0, "tolerance": 0.02}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above", confirm=1)
HALVED = CollapseCriterion(metric="accuracy", threshold=0.5, direction="below", confirm=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 1.0}, "low must be below high"),
        ({"tolerance": 0.0}, "greater than 0"),
        ({"tolerance": 0.3}, "at most a quarter of the range"),
        ({"tolerance": 0.0001}, "narrow the range first"),
        ({"scale": "log"}, "low must be above 0"),
        ({"level": 1.0}, "less than or equal to 0.99"),
        ({"speed": 1}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each with a line that says what would be right."""
    with pytest.raises(ValidationError, match=message):
        BoundarySearch.model_validate({**RATIO, **changes})


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"over": "regime.synthetic_ration"}, "did you mean regime.synthetic_ratio?"),
        ({"over": "loss.kind"}, "not a number"),
        ({"over": "seed"}, "the seed is noise"),
        ({"over": "decoding.temperature"}, "is varied as well"),
    ],
)
def test_a_key_that_cannot_be_searched_is_refused(search: dict[str, Any], message: str) -> None:
    """Unknown, no number, the seed, or varied already: file and key are named."""
    recipe = {"regime.synthetic_ratio": 1.0, "loss.kind": "tce", "seed": 0, "decoding.temperature": 0.8}
    with pytest.raises(UserError, match=rf"^study.yaml: search.over: .*{message}"):
        refuse_search(
            BoundarySearch.model_validate({**RATIO, **search}),
            [recipe],
            ["decoding.temperature"],
            [CRITERION],
            is_baseline=False,
            source="study.yaml",
        )


def test_what_optimise_refuses() -> None:
    """Ranges the wrong way round, and a log scale for a key that is not searched."""
    with pytest.raises(ValidationError, match="low must be below high"):
        OptimiseSearch(over={"loss.gamma": [1.0, 0.05]})
    with pytest.raises(ValidationError, match="is not searched"):
        OptimiseSearch(over={"loss.gamma": [0.05, 1.0]}, log=["training.learning_rate"])


def test_values_are_round_and_shared_between_searches() -> None:
    """Whatever the range, values lie on the same lattice; a search at a tenth of the tolerance has all of them too."""
    coarse = Lattice(BoundarySearch.model_validate(RATIO), whole=False)
    other = Lattice(BoundarySearch.model_validate({**RATIO, "low": 0.333, "high": 0.9}), whole=False)
    fine = Lattice(BoundarySearch.model_validate({**RATIO, "tolerance": 0.002}), whole=False)
    values = [{lattice.value(place) for place in lattice.places} for lattice in (coarse, other, fine)]
    assert values[0] == {round(0.01 * i, 2) for i in range(101)}
    assert values[1] == {value for value in values[0] if 0.333 <= value <= 0.9}
    assert values[0] < values[2]


def test_a_monotone_key_is_hardly_ever_called_crooked() -> None:
    """400 streams of 60 answers, looked at after each fourth: the bound of 1/1000 allows 3 alarms with 99.9%."""
    alarms, rng = 0, np.random.default_rng(0)
    for _ in range(400):
        places = rng.integers(0, 101, 60)
        chance = np.clip(places / 100, 0.2, 0.6)
        answers = [(int(p), i, bool(rng.random() < c)) for i, (p, c) in enumerate(zip(places, chance, strict=True))]
        alarms += any(contradiction(answers[:n], 0, 100, (1,)) > PROVEN for n in range(4, 61, 4))
    assert alarms <= 3


def test_answers_of_one_seed_do_not_count_as_many() -> None:
    """Seeds asked often, each with a threshold of its own: monotone each, and no contradiction in whatever order."""
    rng = np.random.default_rng(0)
    thresholds = rng.uniform(0, 100, 12)
    answers = [(p, seed, p > t) for seed, t in enumerate(thresholds) for p in rng.integers(0, 101, 8).tolist()]
    assert contradiction(answers, 0, 100, (1,)) < 0


def test_cells_take_turns_and_are_restored() -> None:
    """No cell runs ahead, none is left out; with every round out there is nothing to ask."""
    search = BoundarySearch.model_validate(RATIO)
    searches = CellSearches({name: BoundaryFinder(search) for name in ("ce", "tce")})
    asked = searches.ask(6)
    assert [name for name, _ in asked] == ["ce", "tce"] * 3
    assert len(searches.ask(99)) == 2 * 5 - 6
    assert searches.ask(1) == []
    for name, probe in asked[:3]:
        searches.tell(name, probe, probe.value > 0.5, 6)
    again = CellSearches.from_state(json.loads(json.dumps(searches.state())))
    assert again.state() == searches.state()
    assert again.ask(1) == []
    again.release()
    laws = {"ce": logistic(0.3, 0.001), "tce": logistic(0.7, 0.001)}
    while not again.done:
        for name, probe in again.ask(3):
            known = {(p.place, p.seed): p.value > 0.5 for n, p in asked[:3] if n == name}
            answer = known.get((probe.place, probe.seed), laws[name].collapsed(probe.value, probe.seed))
            again.tell(name, probe, answer, 6)
    assert 0.25 < again.finders["ce"].result().critical < 0.35
    assert 0.65 < again.finders["tce"].result().critical < 0.75


NO_RECORD = SurvivalRules(never_recorded=True)
SLOW = SurvivalRules(never_recorded=True, largest_step=1.5)


@pytest.mark.parametrize(
    ("values", "rules", "expected"),
    [
        ([300, 700, 800], SurvivalRules(), "collapsed"),
        ([300, 300, 300, 300, 300], SurvivalRules(), "open"),  # training may yet diverge: nothing is certain
        ([300, 300, 300, 300], NO_RECORD, "open"),  # generations 4 and 5 may both cross
        ([300, 300, 300, 300, 300], NO_RECORD, "no_room_left"),  # generation 5 could not be confirmed
        ([300, 300, 300, 300, 700], NO_RECORD, "open"),  # crossed at 4, and 5 may confirm it
        ([300, 300, 300], SLOW, "open"),  # 300 · 1.5² = 675 at generation 4, confirmed at 5
        ([300, 300, 260], SLOW, "too_far"),  # 260 · 1.5² = 585 does not cross 600
        ([300, 300, 700], SLOW, "open"),  # already across
    ],
)
def test_a_chain_ends_only_when_nothing_can_change_its_verdict(
    values: list[float], rules: SurvivalRules, expected: str
) -> None:
    """Six generations, a limit of 600, confirmed by one more."""
    assert ruling(values, 600.0, DOUBLED, 6, **rules.model_dump()) == expected


@pytest.mark.parametrize("criterion", [DOUBLED, HALVED])
def test_no_continuation_contradicts_a_verdict(criterion: CollapseCriterion) -> None:
    """Random chains within the declared pace, judged at every generation: the end never disagrees."""
    rng, limit, generations = np.random.default_rng(0), 2.0, 7
    step = 1.6 if criterion.log_scale else 0.5
    rules, ruled = SurvivalRules(never_recorded=True, largest_step=step), 0
    for _ in range(400):
        moves = rng.uniform(-1, 1, generations).cumsum()
        values = 1.5 * step**moves if criterion.log_scale else 2.4 + step * moves
        whole = ruling(values.tolist(), limit, criterion, generations) == "collapsed"
        for g in range(1, generations):
            early = ruling(values[:g].tolist(), limit, criterion, generations, **rules.model_dump())
            if early != "open":
                ruled += early in ("too_far", "no_room_left")
                assert (early == "collapsed") == whole
    assert ruled > 100


def test_a_step_without_its_premise_is_refused() -> None:
    """A bound on the metric bounds nothing where a generation may be recorded as collapsed."""
    with pytest.raises(ValidationError, match="never_recorded: true"):
        SurvivalRules(largest_step=1.5)


def test_the_table_has_the_contract_s_columns() -> None:
    """A row per cell and criterion: the cell's keys (without seed and searched key), the criterion, the point."""
    point = CollapsePoint(0.62, 0.6, 0.64, 0.9, "exact", 70, 420, 70, "settled")
    bound = CollapsePoint(1.0, 1.0, None, 0.9, "lower", 21, 126, 21, "settled")
    cells = [{"loss.kind": "cross_entropy", "loss.gamma": None, "seed": 0}, {"loss.kind": "tce", "loss.gamma": 0.3}]
    table = collapse_points([(cells[0], DOUBLED, point), (cells[1], DOUBLED, bound)], "regime.synthetic_ratio")
    wanted = ["over", "critical", "low", "high", "level", "bound", "chains_run", "generations_run"]
    assert [name for name in table.columns if name in wanted] == wanted
    assert table["loss.gamma"].to_list() == [None, 0.3]
    assert table["high"].to_list() == [0.64, None]
    assert "seed" not in table.columns
    assert collapse_points([], "regime.synthetic_ratio").columns == [
        name for name in table.columns if not name.startswith("loss.")
    ]
