"""The HTML page: opens offline without an error, loads nothing from anywhere, and lets no study's text run."""

import html.parser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from fortifai_ray.report import write_report
from fortifai_ray.report.samples import Sample, _table, sample_tables
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import read_table, write_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from tests.analysis.studies import compute_study

from .browser import Opened
from .studies import CRITERION, write_study

EVIL = "</script><script>document.title='owned'</script><img src=http://evil.example/x.png onerror=alert(1)> {{7*7}}"
STUDIES: dict[str, dict[str, Any]] = {
    "three seeds": {"slowness": {0.3: 0.55}},
    "one seed, no gamma": {"seeds": 1, "gammas": False},
    "seven seeds": {"seeds": 7, "slowness": {0.9: 0.3}},
    "nothing collapsed": {"seeds": 2, "slowness": {None: 0.1, 0.3: 0.1, 0.9: 0.1}},
    "one generation": {"generations": 1},
    "not finite": {"perplexity": {(None, 0, 4): float("inf"), (None, 1, 3): float("nan"), (0.3, 0, 4): 1e9}},
    "nothing finite": {
        "perplexity": {(g, s, n): float("nan") for g in (None, 0.3, 0.9) for s in range(3) for n in range(6)}
    },
    "several criteria": {
        "criteria": [
            CRITERION,
            CollapseCriterion(metric="prompt_overlap", threshold=0.045, direction="above", relative_to="absolute"),
            CollapseCriterion(metric="perplexity", threshold=3, direction="above", relative_to="own_generation_0"),
        ]
    },
    "hostile": {"name": "x<script>alert(1)<script>[red]", "text": EVIL, "fixed_prompts": False},
}


class Addresses(html.parser.HTMLParser):
    """Collects every address that a page's elements would load or lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction"}
        self.found += [value or "" for name, value in attrs if name in names]


@pytest.mark.parametrize("name", STUDIES)
def test_it_opens_offline_without_an_error_and_asks_for_nothing(
    tmp_path: Path, name: str, open_page: Callable[[Path], Opened]
) -> None:
    page = write_report(write_study(tmp_path, **STUDIES[name]))
    assert Addresses(page.read_text()).found == []
    assert page.stat().st_size < 5_000_000
    opened = open_page(page)
    assert opened.problems == []
    assert opened.requested == []
    assert 'data-charts="drawn"' in opened.dom
    assert "chart-error" not in re.sub(r"<style>.*?</style>|<script.*?</script>", "", opened.dom, flags=re.DOTALL)
    assert opened.dom.count("<svg") >= opened.dom.count('<div class="chart">') > 0
    assert "owned" not in re.findall(r"<title>.*?</title>", opened.dom)[0]


def test_the_check_above_can_fail(tmp_path: Path, open_page: Callable[[Path], Opened]) -> None:
    """A broken script and a foreign image are caught, and a script that got into the page is stopped."""
    broken = tmp_path / "broken.html"
    broken.write_text("<img src='http://evil.example/x.png'><script>nonsense.call()</script>")
    opened = open_page(broken)
    assert any("nonsense" in problem for problem in opened.problems)
    assert opened.requested == ["http://evil.example/x.png"]
    assert Addresses(broken.read_text()).found == ["http://evil.example/x.png"]
    page = write_report(write_study(tmp_path))
    page.write_text(page.read_text().replace("<main>", "<main><script>document.title='owned'</script>"))
    opened = open_page(page)
    assert any("Content Security Policy" in problem for problem in opened.problems)
    assert "<title>owned" not in opened.dom


def test_a_studys_texts_are_escaped(tmp_path: Path) -> None:
    page = write_report(write_study(tmp_path, **STUDIES["hostile"])).read_text()
    assert "<img src=http" not in page
    assert "<script>alert" not in page
    assert "document.title=&#39;owned&#39;" in page
    assert "{{7*7}}" in page
    assert page.count("</script>") == page.count('<script type="application/json">') + 1


def test_it_shows_curves_table_samples_recipe_and_versions(tmp_path: Path) -> None:
    study = write_study(tmp_path, slowness={0.3: 0.55})
    page = write_report(study).read_text()
    for part in (
        "held-out perplexity (per token) by generation",
        "above 2× the baseline&#39;s generation 0, confirmed by 1 further generation",
        "Onset per chain",
        "Ratio to the baseline, in generations",
        "Ratio to the baseline, in synthetic tokens",
        "kept fraction of target tokens by generation",
        "Prompt: “Prompt 0”",
        "preset: llama-tiny",
        "2.13.0+cpu",
        "overhead",
    ):
        assert part in page
    for drawn in ("train seconds by generation", "world size by generation"):
        assert drawn not in page


def test_writing_again_replaces_the_page_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    first = write_report(study).read_text()
    assert write_report(study).read_text() == first
    assert [path.name for path in study.iterdir() if path.is_file()] != []
    assert not list(study.glob("*.part"))


def _another_verdict(study: Path) -> None:
    table = pl.read_parquet(study / "results" / "chains.parquet")
    write_table(study, "chains", table.with_columns(onset=pl.col("onset") + 1))


def _another_title(study: Path) -> None:
    (study / "study.yaml").write_text((study / "study.yaml").read_text() + "# and a note\n")


def _another_maker(study: Path) -> None:
    page = (study / "report.html").read_text()
    (study / "report.html").write_text(page.replace('name="made-from" content="', 'name="made-from" content="0'))


def _another_failure(study: Path) -> None:
    summary = json.loads((study / "results" / "summary.json").read_text())
    (study / "results" / "summary.json").write_text(
        json.dumps({**summary, "chains": [{"chain_id": "1", "reason": "no"}]})
    )


def _another_run(study: Path) -> None:
    """Like the one before, it took its time and found all in the store."""
    summary = json.loads((study / "results" / "summary.json").read_text())
    (study / "results" / "summary.json").write_text(json.dumps({**summary, "wall_seconds": 1.0, "stages_reused": 5}))
    table = pl.read_parquet(study / "results" / "generations.parquet")
    write_table(study, "generations", table.with_columns(reused=pl.lit(True), computed_seconds=pl.lit(0.0)))


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda study: None, True),
        (_another_run, True),
        (_another_verdict, False),
        (_another_title, False),
        (_another_maker, False),
        (_another_failure, False),
        (lambda study: (study / "results" / "samples.parquet").unlink(), False),
    ],
)
def test_a_page_stays_only_while_it_shows_what_is_there(
    change: Callable[[Path], None], kept: bool, tmp_path: Path
) -> None:
    study = write_study(tmp_path)
    page = write_report(study)
    page.write_text(page.read_text() + "<!-- this very page -->")
    change(study)
    assert write_report(study, unless_same=True) == page
    assert ("this very page" in page.read_text()) == kept
    write_report(study)
    assert "this very page" not in page.read_text(), "it is written again where somebody asks for it"


def test_a_sweep_without_a_single_generation_still_gets_its_page(tmp_path: Path) -> None:
    """Every chain failed at once: the report says so, instead of hiding the failure behind its own."""
    study = write_study(
        tmp_path, failed=[f"{kind}-0" for kind in ("cross_entropy-None", "tce-0.3", "tce-0.9")], seeds=1
    )
    write_table(study, "generations", pl.read_parquet(study / "results/generations.parquet").clear())
    chains = pl.read_parquet(study / "results/chains.parquet").with_columns(status=pl.lit("failed"))
    write_table(study, "chains", chains)
    page = write_report(study).read_text()
    assert "no generation has been completed" in page
    assert "3 failed" in page


def test_only_study_and_generations_are_needed(tmp_path: Path, open_page: Callable[[Path], Opened]) -> None:
    study = write_study(tmp_path)
    for name in ("chains.parquet", "fidelity.parquet", "samples.parquet", "summary.json"):
        (study / "results" / name).unlink()
    opened = open_page(write_report(study))
    assert opened.problems == []
    assert "held-out perplexity (per token) by generation" in opened.dom
    assert "fidelity.parquet not found" in opened.dom


def test_a_study_that_varies_nothing(tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=1)
    for name in ("generations", "chains", "fidelity"):
        table = pl.read_parquet(study / "results" / f"{name}.parquet")
        write_table(study, name, table.filter(pl.col("loss.kind") == "cross_entropy"))
    content = yaml.safe_load((study / "study.yaml").read_text()) | {"vary": {}}
    (study / "study.yaml").write_text(yaml.safe_dump(content))
    page = write_report(study).read_text()
    assert "1 chain in 1 cell" in page
    assert "<td>baseline</td>" in page


def test_samples_follow_a_prompt_through_the_generations(tmp_path: Path) -> None:
    results = open_study(write_study(tmp_path, text="word"))
    tables, _ = sample_tables(results)
    assert [table.heading for table in tables] == ["Prompt: “Prompt 0”", "Prompt: “Prompt 1”", "Prompt: “Prompt 2”"]
    generation, samples = tables[0].lines[2]
    assert (generation, tables[0].cells) == (2, ["cross entropy", "TCE γ=0.3", "TCE γ=0.9"])
    assert samples == [Sample(None, "word word ", "word", " ")] * 3


def sample_after(earlier: str | None, text: str, prompts: tuple[str, str] = ("p", "p")) -> Sample:
    """How the text of generation 1 is shown below that of generation 0."""
    rows = [(0, earlier, prompts[0]), (1, text, prompts[1])]
    known = [
        dict(zip(("generation", "generated_text", "prompt_text"), row, strict=True))
        for row in rows
        if row[1] is not None
    ]
    table = _table(pl.DataFrame(known).with_columns(cell=pl.lit("a"), row=0), ["a"], [0, 1], "row")
    sample = table.lines[1][1][0]
    assert sample is not None
    return sample


@pytest.mark.parametrize(
    ("earlier", "text", "marked"),
    [
        ("the cat sat", "the dog sat", "dog"),
        ("the cat sat", "a cat sat", "a"),
        ("the cat", "the cat sat down", "sat"),
        ("the cat sat", "the cat", ""),  # only shorter: nothing in it differs
        ("the cat sat", "the cat sat", ""),
        ("the cat sat", "the  cat sat", "cat"),  # by a space alone: the word after it
        ("the cat", "the\ncat", "cat"),
        ("the cat\n", "the cat sat", "sat"),
        ("the cat", "the cat\n\n", ""),
        ("x", "", ""),
        (None, "the cat", ""),  # no text above it
    ],
)
def test_the_first_word_that_differs_from_the_text_above_is_marked(earlier: str | None, text: str, marked: str) -> None:
    """And nothing of the text is lost or made up."""
    sample = sample_after(earlier, text)
    assert (sample.changed, sample.same + sample.changed + sample.rest) == (marked, text)
    assert sample_after(earlier, text, ("p", "another")).changed == ""


def test_only_the_sample_texts_that_are_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chain's of each cell: a study of thousands of chains has gigabytes of them."""
    folder, read = write_study(tmp_path, seeds=9), dict[str, int]()

    def noted(*arguments: Any, columns: list[str] | None = None, **options: Any) -> pl.DataFrame | None:
        table = read_table(*arguments, columns=columns, **options)
        read.update({name: table.height for name in columns or table.columns} if table is not None else {})
        return table

    for module in ("fortifai_ray.report.samples", "fortifai_ray.results.reader"):
        monkeypatch.setattr(f"{module}.read_table", noted)
    tables, _ = sample_tables(open_study(folder))
    assert len(tables) == 3
    whole = read_table(folder, "samples")
    assert whole is not None
    assert read["generated_text"] == whole.height / 9


def test_samples_with_prompts_of_their_own_are_followed_by_row(tmp_path: Path) -> None:
    results = open_study(write_study(tmp_path, text="word", fixed_prompts=False))
    tables, _ = sample_tables(results)
    assert tables[0].heading == "Row 0"
    assert tables[0].lines[1][1][0] == Sample("Prompt 0 of generation 1", "word word ", "", "")


def test_a_command_that_only_mentions_reports_stays_fast() -> None:
    """``fortifai --help`` must not pay for Altair, Polars or Jinja."""
    code = (
        "import sys, json, fortifai_ray.report; "
        "print(json.dumps([m for m in ('altair', 'polars', 'jinja2', 'vl_convert', 'rich') if m in sys.modules]))"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == []


def test_an_ecosystem_as_a_whole_is_counted_as_no_chain(tmp_path: Path) -> None:
    """The first line counts two lineages of three seeds, not what is judged of both of them."""
    folder = compute_study(
        tmp_path,
        family={"kind": "gaussian", "dim": 1},
        samples_per_generation=20,
        generations=3,
        ecosystem={"lineages": {"a": {}, "b": {}}},
        vary={"seed": [0, 1, 2]},
        collapse={"metric": "trace_ratio", "relative_to": "absolute", "threshold": 1e-9, "direction": "below"},
    )
    page = write_report(folder).read_text(encoding="utf-8")
    assert "6 chains in 2 cells, 3 generations: 6 survived" in page
