"""The outcome of a search, in the terminal and on the page: points with intervals, ratios, refusals, best points."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from rich.console import Console

from fortifai_ray.report import print_tables, write_report
from fortifai_ray.results.schema import write_table
from fortifai_ray.search.points import CollapsePoint, collapse_points
from fortifai_ray.statistics.criterion import CollapseCriterion

from .browser import Opened
from .studies import write_study

OVER = "regime.synthetic_ratio"
CRITERION = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
POINTS = {
    None: CollapsePoint(0.9, 0.88, 0.93, 0.9, "exact", 31, 155, 4, "settled"),
    0.3: CollapsePoint(0.95, 0.95, None, 0.9, "lower", 40, 200, 4, "settled"),
    0.9: CollapsePoint(
        None, None, None, 0.9, "undetermined", 12, 60, 4, "refused", f"collapsed at {OVER} = 0.2: 4 of 4"
    ),
}


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """A study's folder with the probes of a boundary search, and its outcome."""
    study = write_study(tmp_path, name="searched", seeds=3)
    for name in ("generations", "chains"):
        table = pl.read_parquet(study / "results" / f"{name}.parquet")
        write_table(study, name, table.with_columns((0.8 + 0.05 * pl.col("seed")).alias(OVER)))
    cells = [({"loss.kind": "tce" if gamma else "cross_entropy", "loss.gamma": gamma}, gamma) for gamma in POINTS]
    table = collapse_points([(cell, CRITERION, POINTS[gamma]) for cell, gamma in cells], OVER)
    write_table(study, "collapse_points", table)
    put_search(study, {"kind": "boundary", "over": OVER, "level": 0.9}, {"kind": "boundary", "done": True})
    return study


def put_search(study: Path, search: dict[str, Any], outcome: dict[str, Any]) -> None:
    content = yaml.safe_load((study / "study.yaml").read_text())
    (study / "study.yaml").write_text(yaml.safe_dump({**content, "search": search}))
    (study / "results" / "search.json").write_text(json.dumps(outcome))


def printed(study: Path) -> str:
    out = io.StringIO()
    print_tables(study, Console(file=out, width=140))
    return " ".join(out.getvalue().split())


def test_points_are_told_with_interval_bound_and_ratio(searched: Path) -> None:
    """A bound is never shown as a number of its own, and a refused cell says on what evidence."""
    said = printed(searched)
    assert "collapse point: synthetic ratio" in said
    assert "0.9 0.88 to 0.93 baseline" in said
    assert "> 0.95" in said
    assert "≥ 1.06" in said
    assert "not determined" in said
    assert "was refused: collapsed at synthetic ratio = 0.2: 4 of 4." in said
    assert "FI median" not in said


def test_best_points_are_ranked(searched: Path) -> None:
    """The largest ratio first; a point without a ratio last, and a lower bound marked as one."""
    none = dict.fromkeys(("fi_ratio", "fi_ratio_low", "fi_ratio_high"))
    tried = [
        {"values": {"loss.gamma": 0.2}, **none, "bound": "undetermined", "n_pairs": 6},
        {"values": {"loss.gamma": 0.4}, **none, "fi_ratio": 1.1, "bound": "lower", "n_pairs": 6},
        {"values": {"loss.gamma": 0.3}, "fi_ratio": 1.3, "fi_ratio_low": 1.2, "fi_ratio_high": 1.5}
        | {"bound": "exact", "n_pairs": 6},
    ]
    put_search(searched, {"kind": "optimise", "over": {"loss.gamma": [0.1, 0.5]}}, {"points": tried, "criterion": "c"})
    said = printed(searched)
    places = [said.index(f"γ={value}") for value in (0.3, 0.4, 0.2)]
    assert places == sorted(places)
    assert "1.3 1.2 to 1.5 6" in said
    assert "≥ 1.1" in said


@pytest.mark.parametrize("kind", ["boundary", "optimise"])
def test_the_page_draws_what_was_found(searched: Path, kind: str, open_page: Callable[..., Opened]) -> None:
    """In a browser: both charts of a search are there, nothing fails, nothing is fetched."""
    if kind == "optimise":
        tried = [
            {"values": {"loss.gamma": g}, "fi_ratio": 1 + g, "fi_ratio_low": 1.0, "fi_ratio_high": 2.0}
            | {"bound": "exact", "n_pairs": 6}
            for g in (0.1, 0.2, 0.3)
        ]
        outcome = {"points": tried, "criterion": "perplexity"}
        put_search(searched, {"kind": "optimise", "over": {"loss.gamma": [0.1, 0.5]}}, outcome)
    opened = open_page(write_report(searched))
    assert not opened.problems
    assert not [url for url in opened.requested if not url.startswith("file:")]
    assert opened.dom.count("<canvas") + opened.dom.count("<svg") >= (2 if kind == "boundary" else 1)
    assert "Collapse point" in opened.dom


def test_a_search_that_has_not_ended_yet_can_be_read(searched: Path) -> None:
    """No points yet: said in a note, without a traceback."""
    (searched / "results" / "collapse_points.parquet").unlink()
    (searched / "results" / "search.json").unlink()
    assert "run or resume the sweep" in printed(searched)
