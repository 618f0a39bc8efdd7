"""The sentence with which a report begins: true for every outcome, short for many cells, and first on the page."""

import re
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.report import write_report
from fortifai_ray.report.headline import headline
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import write_table

from .studies import write_study
from .test_search import searched  # noqa: F401 - a fixture

LASTS = {None: 1.0, 0.3: 0.4, 0.9: 1.0}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"slowness": LASTS}, ["TCE γ=0.3 (", ") and TCE γ=0.9 (", "stay faithful longer than cross entropy"]),
        ({"seeds": 2}, ["TCE γ=0.3 (", "per seed", "cannot be told from cross entropy"]),
        ({"slowness": {None: 1.0, 0.3: 0.4, 0.9: 2.5}}, ["TCE γ=0.9 (", "stays faithful less long than"]),
        ({"slowness": {None: 1.0, 0.3: 0.4, 0.9: 0.4}}, [") and TCE γ=", "stay faithful longer than cross entropy"]),
        ({"gammas": False, "slowness": {None: 0.5}}, ["focal stays faithful ", " times as long as cross entropy: "]),
        ({"slowness": {None: 0.01, 0.3: 0.01, 0.9: 0.01}}, ["cross entropy: none of 3 chains", "TCE γ=0.9: none"]),
        ({"seeds": 1}, ["TCE γ=0.3 (", "one seed"]),
    ],
)
def test_it_says_what_was_found(tmp_path: Path, options: dict[str, Any], parts: list[str]) -> None:
    said, reading = headline(open_study(write_study(tmp_path, **options)))
    assert all(part in said for part in parts), said
    assert said.endswith(".")
    assert "Collapse: held-out perplexity (per token) above 2×" in reading


def test_its_ratio_is_that_of_the_table(tmp_path: Path) -> None:
    """The first screen and the table below it are one number."""
    results = open_study(write_study(tmp_path, gammas=False, seeds=5, slowness={None: 0.5}))
    table = results.fidelity
    assert table is not None
    row = table.filter(~table["is_baseline"], table["unit"] == "generations").row(0, named=True)
    said, _ = headline(results)
    assert f"{row['fi_ratio']:.3g} [{row['fi_ratio_low']:.3g}, {row['fi_ratio_high']:.3g}]" in said


def test_the_best_of_several_cells_is_said_to_have_been_picked(tmp_path: Path) -> None:
    """Each interval holds for its own cell; of many cells without a difference one looks like one."""
    _, reading = headline(open_study(write_study(tmp_path / "many", slowness=LASTS)))
    assert "Each of 2 intervals is its own cell's: the ratio furthest from 1 is flattered by chance." in reading
    _, of_one = headline(open_study(write_study(tmp_path / "one", gammas=False, seeds=5)))
    assert "flattered" not in of_one


def test_many_cells_are_counted_and_not_listed(tmp_path: Path) -> None:
    """A grid of hundreds has a sentence, too: the cells furthest from 1 by name, and the number of the others."""
    study = write_study(tmp_path, slowness=LASTS)
    results = open_study(study)
    assert results.fidelity is not None
    assert results.chains is not None
    tables = {"generations": results.generations, "chains": results.chains, "fidelity": results.fidelity}
    for name, table in tables.items():
        tce = table.filter(table["loss.gamma"] == 0.3)
        gammas = [0.3 + 0.01 * number for number in range(1, 40)]
        more = [tce.with_columns(tce["loss.gamma"] * 0 + gamma) for gamma in gammas]
        if "chain_id" in table.columns:
            more = [part.with_columns(part["chain_id"] + f"-{n}") for n, part in enumerate(more)]
        for part in more:
            table = table.vstack(part)
        write_table(study, name, table)
    said, _ = headline(open_study(study))
    assert re.search(r"and 3\d further cells stay faithful longer than cross entropy", said), said
    assert len(said) < 400


def test_a_search_is_told_by_its_critical_values(searched: Path) -> None:  # noqa: F811
    said, reading = headline(open_study(searched))
    assert "critical synthetic ratio: cross entropy 0.9 [0.88 to 0.93]; TCE γ=0.3 > 0.95" in said
    assert "TCE γ=0.9 not determined" in said
    assert reading.startswith("90% intervals.")


def test_it_stands_above_the_curve_and_the_claims(tmp_path: Path) -> None:
    page = write_report(write_study(tmp_path, slowness=LASTS)).read_text()
    places = [
        page.index(part) for part in ('<p class="headline">', '<section id="curves">', '<section class="criterion">')
    ]
    assert places == sorted(places)


def test_sentences_name_cells_by_their_labels(tmp_path: Path) -> None:
    page = write_report(write_study(tmp_path, slowness=LASTS)).read_text()
    assert "TCE γ=0.3 stays faithful" in page
    assert "loss.kind=tce loss.gamma=0.3 stays faithful" not in page
