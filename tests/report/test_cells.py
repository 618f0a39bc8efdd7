"""Cells: named so that no two are confused, baseline first, and the same in every table."""

import polars as pl
import pytest

from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import printable

BASELINE = {"loss.kind": "cross_entropy"}


def grid(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame({name.replace("__", "."): values for name, values in columns.items()}, strict=False)


def test_cells_are_named_by_what_varies_with_the_baseline_first() -> None:
    table = grid(loss__kind=["tce", "tce", "cross_entropy"], loss__gamma=[0.9, 0.3, None], seed=[0, 0, 0])
    cells = Cells.of(table, ["loss.kind", "loss.gamma"], BASELINE)
    assert cells.order == ["cross entropy", "TCE γ=0.3", "TCE γ=0.9"]
    assert cells.baselines == {"cross entropy"}
    assert cells.name(table)["cell"].to_list() == ["TCE γ=0.9", "TCE γ=0.3", "cross entropy"]


def test_a_key_of_numbers_and_words_is_text_and_still_has_its_baseline() -> None:
    """``family.ridge: [0.0, 0.05, adaptive]`` is a column of text; the baseline in the study file is the number."""
    table = grid(family__ridge=["adaptive", "0.05", "0.0"])
    cells = Cells.of(table, ["family.ridge"], {"family.ridge": 0.0})
    assert cells.baselines == {cells.order[0]} == {"ridge=0.0"}


def test_sections_are_kept_apart() -> None:
    table = grid(loss__kind=["tce"], loss__gamma=[0.3], regime__kind=["accumulate"], training__epochs=[2])
    assert Cells.of(table, table.columns, BASELINE).order == ["TCE γ=0.3 · accumulate · epochs=2"]


@pytest.mark.parametrize(
    "columns",
    [
        {"model__width": [64, 64, 128], "head__width": [64, 128, 64]},
        {"loss__kind": ["a b", "a_b", "c"]},
        {"corpus__path": [None, "x", "y"]},
    ],
)
def test_no_two_cells_share_a_name(columns: dict[str, list[object]]) -> None:
    table = grid(**columns)
    cells = Cells.of(table, table.columns, BASELINE)
    assert len(set(cells.order)) == 3
    assert cells.name(table)["cell"].n_unique() == 3


def test_baseline_keys_that_do_not_vary_are_columns_or_in_the_recipe() -> None:
    """A study that varies the ratio alone: every cell is cross entropy, and so its own baseline."""
    table = grid(regime__synthetic_ratio=[0.5, 1.0], loss__kind=["cross_entropy", "cross_entropy"])
    assert len(Cells.of(table, ["regime.synthetic_ratio"], {"loss.kind": "cross_entropy"}).baselines) == 2
    assert not Cells.of(table, ["regime.synthetic_ratio"], {"loss.kind": "tce"}).baselines
    recipe = {"training": {"init": "previous"}}
    assert len(Cells.of(table, ["regime.synthetic_ratio"], {"training.init": "previous"}, recipe).baselines) == 2
    assert not Cells.of(table, ["regime.synthetic_ratio"], {"training.init": "base"}, recipe).baselines


def test_a_study_that_varies_nothing_has_one_cell() -> None:
    table = grid(loss__kind=["tce", "tce"], loss__gamma=[0.3, 0.3], seed=[0, 1])
    assert Cells.of(table, [], BASELINE).order == ["TCE γ=0.3"]
    assert Cells.of(grid(seed=[0]), [], BASELINE).name(grid(seed=[0]))["cell"].to_list() == ["all chains"]


def test_an_unknown_cell_gets_no_name_instead_of_a_wrong_one() -> None:
    cells = Cells.of(grid(loss__kind=["tce"]), ["loss.kind"], BASELINE)
    assert cells.name(grid(loss__kind=["focal"]))["cell"].to_list() == [None]


def test_printable_disarms_what_a_terminal_or_browser_obeys() -> None:
    assert printable("a\x1b[31m\u202eb\ud800\tc\nd é 漢") == "a\ufffd[31m\ufffdb\ufffd\tc\nd é 漢"
