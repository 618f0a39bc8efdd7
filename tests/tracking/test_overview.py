"""What a study's own run shows: curves by generation that are never sent twice, findings, a description, its data."""

import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow.entities import Run

from fortifai_ray.results.cells import _as_in_tables
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import RECIPE_COLUMNS, write_table
from fortifai_ray.study.study import Chain
from fortifai_ray.tracking.content import StudyContent
from fortifai_ray.tracking.database import Database
from fortifai_ray.tracking.overview import _distinct, provenance
from fortifai_ray.tracking.sync import StudySync

from .folders import generations_table, rows_of, runs, steps, write_end, write_generations, write_study
from .test_content import search

SEEDS: dict[str, Any] = {
    "generations": 4,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}], "seed": [0, 1, 2]},
}
NOTE = "mlflow.note.content"
CE, TCE = "median wasserstein/cross entropy", "median wasserstein/TCE γ 0.3"
ONCE = [(0, 301.0), (1, 903.0), (2, 2709.0), (3, 8127.0)]


def judged(folder: Path) -> None:
    """Write what a sweep writes in the end of the generations that are there."""
    write_end(folder, [])
    for name in ("chains", "fidelity"):
        (folder / "results" / f"{name}.parquet").unlink(missing_ok=True)
    results = open_study(folder, judge=True)
    for name, table in (("chains", results.chains), ("fidelity", results.fidelity)):
        assert table is not None
        write_table(folder, name, table)


def measured(chain: Chain, generations: int = 4) -> list[dict[str, Any]]:
    """Rows that grow from 300 and the seed: threefold under cross entropy, about 1.5-fold under TCE, by the seed."""
    growth = 3.0 if chain.recipe.loss.kind == "cross_entropy" else 1.5 + 0.02 * chain.recipe.seed
    first = 300.0 + chain.recipe.seed
    stages = [f"{chain.chain_id}-{generation}" for generation in range(generations)]
    rows = rows_of(chain, generations)
    return [{**row, "wasserstein": first * growth**g, "stage": stages[g]} for g, row in enumerate(rows)]


def parent(storage: Path) -> Run:
    (run,) = runs(storage)[""]
    return run


@pytest.mark.parametrize("by", ["database", "client"])
def test_a_finished_study_shows_curves_findings_and_where_it_comes_from(
    by: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either way into the store; and a sweep that finds another report sends none of it again."""
    if by == "client":
        monkeypatch.setattr(Database, "of", lambda client, uri: None)
    folder, study = write_study(storage, **SEEDS)
    write_generations(folder, [row for chain in study.chains for row in measured(chain)])
    judged(folder)
    for chain in study.chains:
        record = storage / "stages" / f"{chain.chain_id}-0" / "manifest.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"inputs": {"data": [{"pool": "0123abcd/8", "items": "1"}]}}))
    for report in ("<p>curves</p>", "<p>other curves</p>"):
        (folder / "report.html").write_text(report)
        assert StudySync(folder, storage).close("finished").problems == []
        run = parent(storage)
        assert steps(storage, run, CE) == ONCE
        assert [step for step, _ in steps(storage, run, TCE)] == [0, 1, 2, 3]
        assert len(steps(storage, run, "result/FI median cross entropy")) == 1
    low, ratio, high = (run.data.metrics[f"result/FI ratio{end} TCE γ 0.3"] for end in (" low", "", " high"))
    assert 1 < low <= ratio <= high
    assert "result/FI ratio cross entropy" not in run.data.metrics, "the baseline's is 1"
    told = run.data.tags
    assert told[NOTE].startswith("**TCE γ=0.3 ")
    assert "Collapse: " in told[NOTE]
    assert str(folder) in told[NOTE]
    assert told["mlflow.source.name"]
    assert told["fortifai.version"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "0123abcd")
    assert json.loads(data.dataset.source)["source"] == "digits"


def test_medians_arrive_as_cells_complete_a_generation_and_each_once(storage: Path) -> None:
    """A median over some of the seeds would change; a sweep that was interrupted goes on where it was."""
    folder, study = write_study(storage, **SEEDS)
    content = StudyContent(folder)

    def so_far(*generations: int) -> dict[tuple[str, int], float]:
        rows = [row for chain, most in zip(study.chains, generations, strict=False) for row in measured(chain, most)]
        write_generations(folder, rows)
        return dict(content.overview.read(ended=False).values)

    assert so_far(3, 3) == {}
    assert so_far(3, 1, 2) == {(CE, 0): 301.0}
    write_end(folder, [])
    assert StudySync(folder, storage).close("interrupted").problems == []
    assert steps(storage, parent(storage), CE) == ONCE[:1]
    assert parent(storage).data.tags.get(NOTE) is None
    assert so_far(4, 4, 4, 1, 1, 0) == {(CE, step): value for step, value in ONCE}
    so_far(*[4] * 6)
    judged(folder)
    assert StudySync(folder, storage).close("finished").problems == []
    assert steps(storage, parent(storage), CE) == ONCE
    assert len(steps(storage, parent(storage), TCE)) == 4


def test_failed_chains_do_not_hold_back_their_cell_and_a_later_success_is_told(storage: Path) -> None:
    """Values that a later sweep changes are logged again, the last of them shown, without a complaint."""
    folder, study = write_study(storage, **SEEDS)
    write_generations(folder, [row for chain in study.chains[:2] for row in measured(chain)])
    judged(folder)
    assert StudySync(folder, storage).close("failed").problems == []
    assert parent(storage).data.metrics.get(CE) is None, "one seed of the cell has not begun, and did not fail"
    write_generations(folder, [row for chain in study.chains[:3] for row in measured(chain)])
    judged(folder)
    chains = open_study(folder).chains
    assert chains is not None
    lost = pl.col("chain_id") == study.chains[2].chain_id
    failed = chains.with_columns(status=pl.when(lost).then(pl.lit("failed")).otherwise("status"))
    write_table(folder, "chains", failed)
    assert StudySync(folder, storage).close("failed").problems == []
    assert parent(storage).data.metrics[CE] == 8113.5
    judged(folder)
    for _ in range(2):
        assert StudySync(folder, storage).close("finished").problems == []
    assert parent(storage).data.metrics[CE] == 8127.0
    assert sorted(steps(storage, parent(storage), CE))[-2:] == [(3, 8113.5), (3, 8127.0)]


@pytest.mark.parametrize(
    "vary",
    [
        {"seed": [0, 1]},
        {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}], "seed": [0, 1]},
        {"samples_per_generation": [100, 200], "training.learning_rate": [0.001, 1], "seed": [0]},
        {"family.channels": [4, 8]},
    ],
)
def test_cells_are_named_as_in_the_report(vary: dict[str, Any], storage: Path) -> None:
    """Whatever they vary: the curves, the findings, the list of runs and the description speak of the same cells."""
    folder, study = write_study(storage, vary=vary)
    write_generations(folder, [row | recipe_columns(chain) for chain in study.chains for row in measured(chain)])
    judged(folder)
    cells = set(open_study(folder).cells.order)
    overview = StudyContent(folder).overview
    assert {overview.cell(chain) for chain in study.chains} == cells
    curves = {key.partition("/")[2] for key, _ in overview.read(ended=True).values if key.startswith("median ")}
    assert curves == set(_distinct(list(cells)).values())


def test_numbers_beside_words_are_named_as_the_tables_store_them() -> None:
    values = [0.0, 0.05, "adaptive", None]
    rows = pl.concat([pl.DataFrame({"x": [one]}, {"x": pl.Float64}).cast(pl.String) for one in values[:2]])
    assert [*_as_in_tables(values)] == [*rows["x"], "adaptive", None]
    assert _as_in_tables([0.0, None]) == [0.0, None]


def recipe_columns(chain: Chain) -> dict[str, Any]:
    return {key: chain.recipe.flat().get(key) for key in RECIPE_COLUMNS}


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["TCE γ=0.3", "cross entropy"], ["TCE γ 0.3", "cross entropy"]),
        (["a/b · c", "x=1.5e-05, y=2"], ["a_b c", "x 1.5e-05 y 2"]),
        (["path=a b", "path=a=b"], ["path=a b", "path=a=b"]),  # they would become one
    ],
)
def test_cells_have_names_that_mlflow_takes_and_no_two_become_one(cells: list[str], names: list[str]) -> None:
    assert list(_distinct(cells).values()) == names


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/x/bin/fortifai", "sweep", "my study.yaml"], "fortifai sweep 'my study.yaml'"),
        (["/x/fortifai_ray/__main__.py", "sweep", "s.yaml"], "fortifai sweep s.yaml"),
        (["fortifai", "sweep", "s.yaml", "--tracking-uri", "http://ada:pw@host"], None),
        (["notebooks/own.py", "--key", "secret"], "own.py"),
        ([""], "python"),
    ],
)
def test_the_source_is_the_command_without_secrets(
    argv: list[str], name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the commit of the folder in which it was given, where that is a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr("sys.argv", argv)
    told = provenance.__wrapped__()
    assert "mlflow.source.git.commit" not in told
    assert "pw@" not in told["mlflow.source.name"]
    assert name is None or told["mlflow.source.name"] == name
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert len(provenance.__wrapped__()["mlflow.source.git.commit"]) == 40


def test_a_searchs_critical_values_are_curves_by_round(tmp_path: Path) -> None:
    """With the ends of their intervals, by cell, as far as they were known; and the last ones as final values."""
    folder, study, _ = search(tmp_path)
    state = json.loads((folder / "results" / "search.json").read_text())
    rounds = [(1, None, 0.0, 1.0), (2, None, 0.25, 0.75), (3, 0.5, 0.4, 0.6)]
    state["course"] = {f"{study.cells[0].cell_id}/0": rounds}
    (folder / "results" / "search.json").write_text(json.dumps(state))
    write_table(folder, "generations", generations_table([r for chain in study.chains for r in rows_of(chain)]))
    write_end(folder, study.chains)
    values = StudyContent(folder).overview.read(ended=True).values
    curves = {name: value for name, value in values.items() if "by round" in name[0]}
    assert curves == {
        ("critical value by round/cross entropy", 3): 0.5,
        **{("critical value low by round/cross entropy", one[0]): one[2] for one in rounds},
        **{("critical value high by round/cross entropy", one[0]): one[3] for one in rounds},
    }
