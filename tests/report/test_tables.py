"""The terminal's tables: each number has its criterion, bounds are marked, and gaps are named."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from fortifai_ray.errors import UserError
from fortifai_ray.report import print_tables
from fortifai_ray.report.page import render_page, section
from fortifai_ray.report.tables import conclusion_lines, facts, fidelity_rows, legend
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import write_table
from fortifai_ray.statistics.criterion import CollapseCriterion

from .large import TRACE, write_samples_study
from .studies import CRITERION, write_study


def printed(study: Path, width: int = 110) -> str:
    """What ``print_tables`` shows in a terminal of that width, line ends and paddings taken out."""
    stream = io.StringIO()
    print_tables(study, Console(file=stream, width=width, force_terminal=False))
    return " ".join(stream.getvalue().split())


def test_criterion_cells_units_and_run_are_all_there(tmp_path: Path) -> None:
    text = printed(write_study(tmp_path, slowness={0.3: 0.55}))
    assert "above 2× the baseline's generation 0, confirmed by 1 further generation" in text
    for cell in ("cross entropy", "TCE γ=0.3", "TCE γ=0.9"):
        assert cell in text
    assert text.count("generations 2.57 2.47 baseline tokens") == 1
    assert "1.45 [1.22, 1.61]" in text
    assert "FI (fidelity interval): how long a chain stays faithful" in text
    assert "wall 5 min 12 s" in text
    assert "overhead 0.301" in text


def test_the_numbers_are_the_fidelity_tables(tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=7)
    row = pl.read_parquet(study / "results/fidelity.parquet").filter(pl.col("loss.gamma") == 0.9, unit="synthetic")
    assert f"[{row['fi_ratio_low'][0]:.3g}, {row['fi_ratio_high'][0]:.3g}]" in printed(study)
    assert f"{row['fi_median'][0] / 1000:.0f}k" in printed(study)


def test_where_training_sets_grow_their_size_at_the_onset_is_a_unit_too(tmp_path: Path) -> None:
    """A third line a cell, a third chart, a third sentence; where they do not, there are two."""
    study = write_study(tmp_path)
    assert "training set at the onset" not in printed(study)
    generations = pl.read_parquet(study / "results/generations.parquet")
    g = pl.col("generation")
    write_table(study, "generations", generations.with_columns(synthetic_size_cum=95_000 * g * (g + 1) // 2))
    for name in ("chains", "fidelity"):
        (study / f"results/{name}.parquet").unlink()
    results = open_study(study, judge=True)
    lines = fidelity_rows(results, results.criteria[0])
    assert [line.unit for line in lines] == ["generations", "tokens", "tokens at onset"] * 3
    text = " ".join([*legend(results), *conclusion_lines(results)])
    assert "in synthetic tokens in the training set at the onset" in text
    assert "times as long as the baseline in synthetic data in the training set at the onset" in text
    charts = [figure.title for figure in section(results, results.criteria[0]).figures]
    assert charts[-1] == "Ratio to the baseline, in synthetic tokens in the training set at the onset"


def test_a_criterion_is_said_once_above_its_sentences(tmp_path: Path) -> None:
    """In the terminal, on the page and from Python; what is left out is counted in sentences."""
    results = open_study(write_study(tmp_path, criteria=[CRITERION, CRITERION.model_copy(update={"threshold": 1.5})]))
    lines, page = conclusion_lines(results), render_page(results, "")
    heads = [f"Under {one.words}:" for one in results.criteria]
    assert [line for line in lines if not line.startswith("- ")] == heads
    assert not any("perplexity" in line for line in lines if line.startswith("- "))
    assert [page.count(f"<p>{head}</p>".replace("'", "&#39;")) for head in heads] == [1, 1]
    size = len(lines) - 2
    for most in range(1, size):
        cut = conclusion_lines(results, most)
        assert sum(line.startswith("- ") for line in cut) == most
        assert cut[-1] == f"… and {size - most} further sentence{'s' * (size - most > 1)} in report.html"
        assert cut[-2].startswith("- "), "no heading without a sentence"
    assert conclusion_lines(results, size) == lines


def test_a_run_that_computed_nothing_says_so_beside_how_it_was_computed(tmp_path: Path) -> None:
    """The page, which is kept, and the terminal then tell the same time; and so they do after any run."""
    study = write_study(tmp_path)
    path = study / "results" / "summary.json"
    summary = json.loads(path.read_text())
    ran = {**summary, "told": {"wall_seconds": 300.0, "overhead": 0.25}}
    path.write_text(json.dumps(ran))
    first = facts(open_study(study))
    assert ("wall, up to the tables", "5 min 00 s") in first
    assert ("overhead", "0.25") in first
    again = {**ran, "wall_seconds": 2.0, "told": {"wall_seconds": 1.0, "overhead": None}, "stages_computed": 0}
    path.write_text(json.dumps({**again, "last_computed": ran}))
    assert facts(open_study(study)) == [*first[:-1], ("in the last run", "nothing computed"), first[-1]]


def test_every_criterion_has_its_own_table(tmp_path: Path) -> None:
    others = [
        CollapseCriterion(
            metric="prompt_overlap", threshold=0.045, direction="above", relative_to="absolute", confirm=0
        ),
        CollapseCriterion(
            metric="perplexity", threshold=3, direction="above", relative_to="own_generation_0", confirm=2
        ),
    ]
    text = printed(write_study(tmp_path, criteria=[CRITERION, *others]))
    assert "prompt overlap above 0.045, at the first crossing" in text
    assert "above 3× its own generation 0, confirmed by 2 further generations" in text


def test_censored_chains_are_marked_as_bounds(tmp_path: Path) -> None:
    """TCE γ=0.3 outlives its horizon in every seed: mean and ratio are lower bounds, and no median is made up."""
    text = printed(write_study(tmp_path, slowness={0.3: 0.1}))
    assert "3 3 generations not reached ≥5 ≥" in text
    assert "≥475k" in text


def test_nothing_collapsed_gives_no_ratio_at_all(tmp_path: Path) -> None:
    text = printed(write_study(tmp_path, slowness={None: 0.1, 0.3: 0.1, 0.9: 0.1}))
    assert text.count("undetermined") == 5  # two cells in two units, and the legend


def test_failed_chains_are_counted_and_explained(tmp_path: Path) -> None:
    study = write_study(tmp_path, slowness={0.3: 0.1}, failed=["tce-0.3-1"])
    summary = json.loads((study / "results/summary.json").read_text())
    summary["chains"][0] |= {"label": "loss.kind=tce seed=1", "status": "failed", "reason": "out of [red]memory\x1b[2J"}
    (study / "results/summary.json").write_text(json.dumps(summary))
    text = printed(study)
    assert "2 (+1 failed) 2 generations" in text
    assert "loss.kind=tce seed=1: failed: out of [red]memory\ufffd[2J" in text


def test_a_name_is_text_and_not_markup(tmp_path: Path) -> None:
    assert "x[bold][red]y collapse" in printed(write_study(tmp_path, name="x[bold][red]y"))


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_cut_off(tmp_path: Path, width: int) -> None:
    """Whatever wraps, it wraps whole: the table in an ordinary terminal holds every word of a wide one's."""
    study = write_study(tmp_path, slowness={0.3: 0.1})
    narrow, wide = sorted(printed(study, width).split()), sorted(printed(study, 400).split())
    assert [word for word in narrow if "─" not in word] == [word for word in wide if "─" not in word]


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("results/chains.parquet", "onsets are not shown"),
        ("results/fidelity.parquet", "fidelity intervals and ratios are not shown"),
        ("results/samples.parquet", "sample texts are not shown"),
        ("results/summary.json", "time, overhead and failures are not shown"),
    ],
)
def test_a_missing_file_is_noted(tmp_path: Path, missing: str, note: str) -> None:
    study = write_study(tmp_path)
    (study / missing).unlink()
    text = printed(study, 400)
    assert note in text
    assert missing in text


@pytest.mark.parametrize("damage", ["study.yaml", "results/generations.parquet"])
@pytest.mark.parametrize("content", [None, b"{: not it"])
def test_what_cannot_be_reported_on_is_an_error_that_names_the_file(
    tmp_path: Path, damage: str, content: bytes | None
) -> None:
    """The command line turns it into exit code 2."""
    study = write_study(tmp_path)
    (study / damage).unlink() if content is None else (study / damage).write_bytes(content)
    with pytest.raises(UserError, match=damage) as caught:
        printed(study)
    assert isinstance(caught.value, UserError)


def test_a_hundred_cells_are_capped_and_the_note_says_where_the_rest_is(tmp_path: Path) -> None:
    study = write_samples_study(tmp_path, sizes=range(10, 110), chains=2, criteria=[TRACE])
    text = printed(study)
    assert "samples per generation=33 " in text
    assert "samples per generation=34 " not in text
    assert "and 76 further cells: results/fidelity.parquet and report.html list them all" in text
    assert "further cells" not in printed(write_study(tmp_path))


def test_many_failures_are_capped(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    failures = [{"label": f"chain {index}", "status": "failed", "reason": f"out of {index}"} for index in range(50)]
    (study / "results/summary.json").write_text(json.dumps({"chains": failures}))
    text = printed(study)
    assert "chain 11: failed" in text
    assert "chain 12: failed" not in text
    assert "chains ended for 38 more reasons: results/summary.json lists them all" in text


def test_chains_that_failed_alike_are_one_line(tmp_path: Path) -> None:
    """A mistake in a user's code is met by every chain."""
    study = write_study(tmp_path)
    failures = [{"label": f"seed={seed}", "status": "failed", "reason": "no luck"} for seed in range(300)]
    (study / "results/summary.json").write_text(json.dumps({"chains": [*failures, {**failures[0], "reason": "NaN"}]}))
    text = printed(study, 200)
    assert "seed=0 and 299 other chains: failed: no luck" in text
    assert "seed=0: failed: NaN" in text
    assert text.count("seed=") == 2


def test_which_criterion_comes_first_is_told(tmp_path: Path) -> None:
    text = printed(write_samples_study(tmp_path, sizes=(10,), chains=40, generations=30), 200)
    assert (
        "crossed first: trace ratio (fitted covariance over the true one's) below 0.5, or KL divergence above" in text
    )
    assert "of 40 (" in text


def test_units_are_each_cells_own(tmp_path: Path) -> None:
    """A study may compare families: tokens of a language model, samples of a Gaussian."""
    study = write_samples_study(tmp_path, sizes=(10, 20), chains=1, criteria=[TRACE])
    table = pl.read_parquet(study / "results/generations.parquet")
    unit = pl.when(pl.col("samples_per_generation") == 10).then(pl.lit("tokens")).otherwise(pl.lit("samples"))
    write_table(study, "generations", table.with_columns(unit=unit))
    results = open_study(study)
    assert [row.unit for row in fidelity_rows(results, TRACE)] == ["generations", "tokens", "generations", "samples"]
    assert results.unit == "samples or tokens"


def test_a_damaged_optional_table_is_noted(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    (study / "results/fidelity.parquet").write_bytes(b"PAR1 torn")
    assert "fidelity.parquet cannot be read as Parquet" in printed(study, 400)
