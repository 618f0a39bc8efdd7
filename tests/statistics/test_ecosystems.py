"""The first and the last lineage to collapse: by hand, with censored, unconfirmed and failed lineages."""

from typing import Any

import polars as pl
import pytest

from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.ecosystems import of_human_data
from fortifai_ray.statistics.judged import Terms

CRITERION = CollapseCriterion(metric="v", relative_to="absolute", threshold=1.0, direction="above", confirm=1)
EARLY, LATE, NEVER, OPEN = [0, 2, 2, 2, 2], [0, 0, 0, 2, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2]


def judged(curves: dict[str, list[float]], **asked: Any) -> dict[str, dict[str, Any]]:
    rows = [
        {"chain_id": name, "lineage": name, "seed": 0, "generation": g, "v": float(v), "human_size": 5}
        | {"synthetic_size_cum": 0.0 if name.startswith("outside") else 10.0 * g}
        for name, curve in curves.items()
        for g, v in enumerate(curve)
    ]
    table = Terms([CRITERION], {}, ["seed", "lineage"], 5).chains(pl.DataFrame(rows), **asked)
    return {row["lineage"]: row for row in table.to_dicts()}


CASES: dict[str, tuple[list[list[float]], tuple[Any, ...], tuple[Any, ...]]] = {
    # onset, status and fi_generations of the first, then of the last
    "both collapse": ([EARLY, LATE], (0.5, "collapsed", 0.5), (2.5, "collapsed", 2.5)),
    "one survives": ([EARLY, NEVER], (0.5, "collapsed", 0.5), (None, "survived", 4.0)),
    "none collapses": ([NEVER, NEVER], (None, "survived", 4.0), (None, "survived", 4.0)),
    "one is unconfirmed": ([LATE, OPEN], (2.5, "collapsed", 2.5), (None, "unconfirmed", 3.5)),
    "three": ([LATE, EARLY, EARLY], (0.5, "collapsed", 0.5), (2.5, "collapsed", 2.5)),
}


@pytest.mark.parametrize(("curves", "first", "last"), CASES.values(), ids=CASES)
def test_wholes(curves: list[list[float]], first: tuple[Any, ...], last: tuple[Any, ...]) -> None:
    rows = judged({f"lineage{number}": curve for number, curve in enumerate(curves)})
    for name, expected in (("first to collapse", first), ("last to collapse", last)):
        row = rows[name]
        assert (row["onset"], row["status"], row["fi_generations"]) == expected
        assert row["censored"] == (row["onset"] is None)
    assert len({row["chain_id"] for row in rows.values()}) == len(curves) + 2


@pytest.mark.parametrize(
    ("curves", "first", "last"),
    [
        ({"a": EARLY, "b": LATE, "outside": NEVER}, 0.5, 2.5),
        ({"a": LATE, "outside": EARLY}, 2.5, 2.5),  # a criterion that it meets by chance
        ({"a": NEVER, "outside": EARLY}, None, None),
        ({"a": EARLY, "outside": NEVER, "outside2": OPEN}, 0.5, 0.5),
        ({"outside": NEVER, "outside2": NEVER}, None, None),
        ({"outside": LATE, "outside2": EARLY}, 0.5, 2.5),  # where no other is, they are what there is
    ],
)
def test_lineages_of_human_data_do_not_count(
    curves: dict[str, list[float]], first: float | None, last: float | None
) -> None:
    """A frozen or a human-only lineage cannot collapse by construction, and would hold the last one back for ever."""
    rows = judged(curves)
    assert (rows["first to collapse"]["onset"], rows["last to collapse"]["onset"]) == (first, last)
    assert {name for name in rows if "collapse" not in name} == set(curves)


def test_a_lineage_that_found_nothing_to_read_counts() -> None:
    """It has neither human nor synthetic data in the generation that ended it."""
    rows = [
        {"chain_id": name, "lineage": name, "seed": 0, "generation": g, "human_size": human, "synthetic_size_cum": 0}
        for name, sizes in (("reader", (9, 0)), ("outside", (9, 9)), ("one_model", (9, 9)))
        for g, human in enumerate(sizes)
    ]
    table = pl.DataFrame(rows).with_columns(pl.col("lineage").replace("one_model", None))
    assert of_human_data(table) == ["outside"]


def test_a_failed_lineage_leaves_no_verdict() -> None:
    rows = judged({"a": EARLY, "b": [0.0]}, failed={"b"})
    assert rows["a"]["status"] == "collapsed"
    assert {rows[name]["status"] for name in ("first to collapse", "last to collapse")} == {"failed"}


def test_one_lineage_is_no_whole() -> None:
    assert set(judged({"a": EARLY})) == {"a"}


def test_fidelity_has_them() -> None:
    rows = [
        {"chain_id": f"{name}{seed}", "lineage": name, "seed": seed, "generation": g, "v": v}
        | {"human_size": 5, "synthetic_size_cum": g}
        for seed in range(3)
        for name, curve in (("a", EARLY), ("b", LATE))
        for g, v in enumerate(curve)
    ]
    terms = Terms([CRITERION], {}, ["seed", "lineage"], 5)
    table = terms.fidelity(terms.chains(pl.DataFrame(rows)))
    medians = dict(table.filter(unit="generations").select("lineage", "fi_median").iter_rows())
    assert medians == {"a": 0.5, "b": 2.5, "first to collapse": 0.5, "last to collapse": 2.5}
