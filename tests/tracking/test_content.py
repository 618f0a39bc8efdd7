"""The runs that a study's folder asks for: cells of batched chains, searches, and the chains that a search chose."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fortifai_ray.results.cells import ChainNames
from fortifai_ray.results.schema import write_table
from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.points import collapse_points
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.tracking import content as content_module
from fortifai_ray.tracking.content import StudyContent, seed_quantiles

from .folders import generations_table, rows_of, write_end, write_generations, write_study

GAUSSIAN: dict[str, Any] = {
    "family": {"kind": "gaussian", "dim": 1},
    "regime": {"kind": "mixed"},
    "samples_per_generation": 20,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}]},
    "collapse": {"metric": "kl_divergence", "threshold": 0.15, "direction": "above", "relative_to": "absolute"},
}
OVER = "regime.synthetic_ratio"
SEARCH: dict[str, Any] = {"kind": "boundary", "over": OVER, "low": 0.0, "high": 1.0, "tolerance": 0.2}


def test_batched_chains_share_the_run_of_their_cell(tmp_path: Path) -> None:
    """Its recipe has no seed; chains of other cells count for those."""
    changes = {"regime": {"kind": "replace"}, "vary": {**GAUSSIAN["vary"], "seed": {"count": 3}}}
    folder, study = write_study(tmp_path, **GAUSSIAN | changes)
    rows = [row for chain in study.chains for row in rows_of(chain, kl_divergence=float(chain.recipe.seed))]
    write_table(folder, "generations", generations_table(rows))
    write_end(folder, study.chains)
    content = StudyContent(folder)
    assert list(content.chains({}, ended=True)) == []
    first, second = content.cells()
    assert (first.label, second.label) == ("cross entropy", "TCE γ=0.9")
    assert first.key == study.cells[0].cell_id
    assert "seed" not in first.recipe
    assert list(first.series) == [0, 1, 2]
    assert first.series[2]["kl_divergence/median"] == 1.0
    assert not [name for name in first.series[0] if name.startswith("trace_ratio")], "it was never measured"


def search(tmp_path: Path) -> tuple[Path, Study, list[BoundaryFinder]]:
    """A folder with a search for the boundary in two cells, which lies at 0.5 in the one and 0.7 in the other."""
    folder, study = write_study(tmp_path, **GAUSSIAN, search=SEARCH)
    (criterion,), settings = study.settings.collapse, study.settings.search
    assert isinstance(settings, BoundarySearch)
    finders = [BoundaryFinder(settings) for _ in study.cells]
    for finder, boundary in zip(finders, (0.5, 0.7), strict=True):
        while not finder.done:
            for probe in finder.ask():
                finder.tell(probe, probe.value > boundary, 3)
    points = ((cell.varied, criterion, finder.result()) for cell, finder in zip(study.cells, finders, strict=True))
    write_table(folder, "collapse_points", collapse_points(points, settings.over))
    names = [f"{cell.cell_id}/0" for cell in study.cells]
    state = {name: finder.state() for name, finder in zip(names, finders, strict=True)}
    (folder / "results" / "search.json").write_text(json.dumps({"kind": "boundary", "searches": {"finders": state}}))
    return folder, study, finders


def test_a_cells_search_has_its_probes_and_its_point(tmp_path: Path) -> None:
    """The probes in the order of their values; the recipe has neither the seed nor the key searched."""
    folder, study, finders = search(tmp_path)
    content = StudyContent(folder)
    assert list(content.cells()) == []
    for run, cell, finder in zip(content.searches(), study.cells, finders, strict=True):
        assert (run.key, run.label) == (f"search/{cell.cell_id}/0", ChainNames(study).cell(cell))
        assert "synthetic_ratio" not in run.recipe["regime"]
        assert run.recipe["search"]["over"] == OVER
        assert "seed" not in run.recipe
        answers = sorted((probe.value, float(bool(answer.collapsed))) for probe, answer in finder.answers.items())
        assert [tuple(step.values()) for step in run.series.values()] == answers
        assert list(run.series) == list(range(len(answers)))
        assert run.end is not None
        assert run.end.results == vars(finder.result())


def test_the_study_of_a_search_shows_its_critical_values(tmp_path: Path) -> None:
    """With their intervals; there are no curves over seeds, since the seeds of a value are few."""
    folder, study, finders = search(tmp_path)
    write_generations(folder, [row for cell in study.cells for row in rows_of(cell, kl_divergence=0.1)])
    write_end(folder, [])
    overview = StudyContent(folder).overview
    assert dict(overview.read(ended=False).values) == {}
    shown = overview.read(ended=True)
    for cell, finder in zip(("cross entropy", "TCE γ 0.9"), finders, strict=True):
        point = finder.result()
        assert shown.values[f"result/critical value {cell}", 0] == point.critical
        assert shown.values[f"result/critical value low {cell}", 0] == point.low
    assert "critical synthetic ratio" in shown.tags["mlflow.note.content"]


def chosen(study: Study, over: str, value: float, seed: int) -> list[Chain]:
    """A chain that the study's search chose, and its baseline's."""
    chain = study.probe(study.cells[0], {over: value}, seed)
    return [chain, study.chain(study.baseline_of(chain))]


@pytest.mark.parametrize(
    ("over", "vary", "settings"),
    [
        ("regime.synthetic_ratio", {}, SEARCH),
        ("loss.gamma", {"seed": [0, 1]}, {"kind": "optimise", "over": {"loss.gamma": [0.1, 0.9]}, "budget": 3}),
    ],
)
def test_a_chain_that_a_search_chose_has_its_whole_recipe(
    tmp_path: Path, over: str, vary: dict[str, list[int]], settings: dict[str, object]
) -> None:
    """From the study file and the varied keys of its rows, though no grid has it; that of an optimisation's baseline,
    too. Rows of another study's chains are not shown."""
    changes = {"regime": {"kind": "mixed", "synthetic_ratio": 0.5}, "loss": {"kind": "tce", "gamma": 0.3}}
    if settings is SEARCH:
        changes["regime"] = {"kind": "mixed"}
    folder, study = write_study(tmp_path, **changes, vary=vary, search=settings)
    chains = chosen(study, over, 0.25, 1)[: 1 if settings is SEARCH else 2]
    rows = [row for chain in chains for row in rows_of(chain)]
    stranger = rows_of(chains[0], 1, chain_id="of another study")
    write_table(folder, "generations", generations_table([*rows, *stranger]))
    contents = list(StudyContent(folder).chains({}, ended=False))
    assert [content.key for content in contents] == [chain.chain_id for chain in chains]
    assert [content.recipe for content in contents] == [chain.recipe.model_dump(mode="json") for chain in chains]


def test_only_generations_that_are_new_are_read(tmp_path: Path) -> None:
    folder, study = write_study(tmp_path)
    write_table(folder, "generations", generations_table([row for chain in study.chains for row in rows_of(chain)]))
    known = {study.chains[0].chain_id: 1, study.chains[1].chain_id: 2}
    (content,) = StudyContent(folder).chains(known, ended=False)
    assert (content.key, list(content.series)) == (study.chains[0].chain_id, [2])


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 500])
def test_chains_are_read_some_at_a_time(
    tmp_path: Path, ended: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has what it would have by itself, those that have no generations too; once they have ended, all of it, and
    the samples that are new."""
    monkeypatch.setattr(content_module, "_BATCH", batch)
    folder, study = write_study(tmp_path, vary={"seed": {"start": 0, "count": 5}})
    *measured, absent = study.chains
    write_generations(folder, [row for number, chain in enumerate(measured) for row in rows_of(chain, 1 + number % 3)])
    write_end(folder, study.chains)
    known = {measured[0].chain_id: 0, measured[2].chain_id: 1}
    content = StudyContent(folder)
    contents = {run.key: run for run in content.chains(known, ended=ended)}
    assert [chain.chain_id for chain in content.due(known, ended=ended)] == list(contents)
    due = [*measured, absent] if ended else measured[1:]
    assert list(contents) == [chain.chain_id for chain in due]
    for number, chain in enumerate(measured):
        if chain in due:
            there = list(range(1 + number % 3))
            new = [g for g in there if g > known.get(chain.chain_id, -1)]
            assert list(contents[chain.chain_id].series) == (there if ended else new)
            assert list(contents[chain.chain_id].samples) == [f"generation_{g:03d}.txt" for g in new]
            assert (contents[chain.chain_id].end is not None) == ended


def test_quantiles_are_over_the_cells_seeds() -> None:
    """Each cell's own seeds, each generation; chains of no cell and metrics never measured are left out."""
    table = pl.DataFrame(
        {
            "chain_id": ["a", "b", "c", "a", "b", "c"],
            "generation": [0, 0, 0, 1, 1, 1],
            "trace_ratio": [1.0, 3.0, 100.0, 2.0, 4.0, 100.0],
            "perplexity": [None] * 6,
        },
        schema_overrides={"perplexity": pl.Float64},
    )
    cells = dict(seed_quantiles(table, {"a": "cell", "b": "cell"}, ["trace_ratio", "perplexity"]))
    assert list(cells) == ["cell"]
    assert list(cells["cell"]) == [0, 1]
    values, later = cells["cell"].values()
    assert values["trace_ratio/mean"] == values["trace_ratio/median"] == 2.0
    assert values["trace_ratio/q05"] == pytest.approx(1.1)
    assert later["trace_ratio/q95"] == pytest.approx(3.9)
    assert not [name for name in values if name.startswith("perplexity")]


def test_a_long_chain_is_shown_at_two_hundred_generations() -> None:
    """The first and the last among them."""
    table = pl.DataFrame({"chain_id": "a", "generation": range(2000), "x": [float(g) for g in range(2000)]})
    ((_, series),) = seed_quantiles(table, {"a": "cell"}, ["x"])
    assert len(series) == 200
    assert (min(series), max(series)) == (0, 1999)
