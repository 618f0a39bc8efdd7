"""Claims, pictures and measurements on the page: shown as what they are, folded where they are many."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from rich.console import Console

from fortifai_ray.metrics import METRICS
from fortifai_ray.report import print_tables, write_report
from fortifai_ray.report.page import FEW_METRICS, other_curves
from fortifai_ray.report.samples import MOST_BYTES, MOST_PICTURES, strips
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import write_table

from .browser import Opened
from .large import add_claims, add_metrics, add_pictures, claim, write_samples_study
from .studies import write_study

CLAIMS = [
    claim("variance-decay", "theory", "holds", wrong="rejects nothing happens (0.99)"),
    claim("tce-delays", "replication", "does not hold", source="ForTIFAI, <b>table 2</b>"),
    claim("bounded", "theory", "does not hold"),
    claim("too-few", "replication", "undecided", measured=None, low=None, high=None, why="3 chains, 100 asked for"),
]


def verdicts(page: str) -> dict[str, tuple[str, str]]:
    """By claim: its tone and its verdict."""
    rows = re.findall(r'<td class="(\w+)">(.*?)</td>\s*<td><b>(.*?)</b>', page)
    return {name: (tone, verdict) for tone, verdict, name in rows}


def test_a_replication_that_does_not_hold_is_a_finding_and_a_theory_is_not(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    add_claims(study, CLAIMS)
    page = write_report(study).read_text()
    assert verdicts(page) == {
        "variance-decay": ("good", "✓ holds"),
        "tce-delays": ("quiet", "✗ does not hold – a finding"),
        "bounded": ("bad", "✗ does not hold"),
        "too-few": ("quiet", "? undecided"),
    }
    assert "does not hold is a finding: at this study&#39;s scale" in page
    assert "theory: 1 holds, 1 does not hold · replication: 1 does not hold, 1 undecided" in page
    assert "0.37 [0.34, 0.41] at 99 %" in page
    assert "3 chains, 100 asked for" in page
    assert "<td>rejects nothing happens (0.99)</td>" in page
    assert "number fixed beforehand" in page
    assert "ForTIFAI, &lt;b&gt;table 2&lt;/b&gt;" in page


def test_claims_need_no_scrolling_on_a_wide_page(tmp_path: Path, open_page: Callable[..., Opened]) -> None:
    """At 1,300 pixels, whatever names and sources there are, and however many."""
    long = {"source": "derived: fortifai_ray.theory.gaussian_tce_variance_factor_of_what_is_left_after_truncation"}
    long |= {"wrong": "rejects nothing happens (1), rejects the factor of γ 0.99 (1.01)"}
    study = write_study(tmp_path)
    add_claims(study, [claim(f"tce-inflates-variance-{n}", "replication", "does not hold", **long) for n in range(20)])
    page = write_report(study)
    measure = "const one = document.querySelector('.claims'), around = one.parentElement; one.dataset.room = "
    measure += "[around.clientWidth - one.scrollWidth, around.clientHeight - one.scrollHeight].map(Math.sign)"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text())
    page.write_text(text.replace("</body>", f"<script>{measure}</script></body>"))
    assert 'data-room="0,0"' in open_page(page).dom


def test_claims_are_printed_as_last_checked(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    add_claims(study, CLAIMS[:2])
    stream = io.StringIO()
    print_tables(study, Console(file=stream, width=100, force_terminal=False))
    assert "holds         theory      variance-decay: 0.37 [0.34, 0.41] at 99 %; asked = 0.349" in stream.getvalue()


def test_claims_that_were_never_checked_or_cannot_be_read_are_noted(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert not open_study(study).notes
    (study / "study.yaml").write_text((study / "study.yaml").read_text().replace("claims: []", "claims: [{id: x}]"))
    assert "claims have not been checked" in open_study(study).notes[0]
    (study / "results/claims.parquet").write_bytes(b"PAR1 torn")
    assert "claims are not shown" in open_study(study).notes[0]
    write_table(study, "claims", pl.DataFrame({"id": ["x"]}))
    assert "claims are not shown" in open_study(study).notes[0]


def test_pictures_are_a_strip_per_cell_of_its_first_seed(tmp_path: Path) -> None:
    study = write_samples_study(tmp_path, sizes=(10, 30), chains=3, generations=40)
    add_pictures(study)
    shown, note = strips(open_study(study))
    assert [(strip.cell, strip.seed) for strip in shown] == [
        ("samples per generation=10", 0),
        ("samples per generation=30", 0),
    ]
    generations = [generation for generation, _ in shown[0].pictures]
    assert len(generations) == MOST_PICTURES
    assert (generations[0], generations[-1]) == (0, 39)
    kept = pl.read_parquet(study / "results/pictures.parquet").filter(chain_id="30-0", generation=39)["png"][0]
    address = shown[1].pictures[-1][1]
    assert address is not None
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == kept
    assert "lowest seed" in note


def test_what_is_no_png_or_too_large_is_said_and_never_shown(tmp_path: Path) -> None:
    study = write_samples_study(tmp_path, sizes=(10,), chains=1, generations=3)
    good = io.BytesIO()
    Image.new("L", (4, 4)).save(good, format="PNG")
    evil = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    large = good.getvalue() + b"\0" * MOST_BYTES
    rows = {"chain_id": ["10-0"] * 3, "generation": [0, 1, 2], "png": [good.getvalue(), evil, large]}
    write_table(study, "pictures", pl.DataFrame(rows))
    page = write_report(study).read_text()
    assert "onload" not in page.split("<script>")[0]
    assert page.count('<img src="data:image/png;base64,') == 1
    assert page.count("this picture cannot be shown") == 2


def test_a_study_without_pictures_has_no_such_section(tmp_path: Path) -> None:
    study = write_samples_study(tmp_path)
    assert 'id="pictures"' not in write_report(study).read_text()
    assert not open_study(study).notes
    (study / "results/pictures.parquet").write_bytes(b"PAR1 torn")
    assert "pictures of samples are not shown" in open_study(study).notes[0]


def test_many_metrics_are_folded_by_group_and_few_are_open(tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=2)
    [group] = other_curves(open_study(study))
    assert (group.small, len(group.figures)) == (False, 2)  # kept_fraction and prompt_overlap
    of_groups = {metric.group: name for name, metric in METRICS.items()}  # one of each: charts take time
    asked = {*of_groups.values(), "self_bleu", "kr_accuracy"} - {"perplexity", "kept_fraction", "prompt_overlap"}
    assert len(asked) > FEW_METRICS
    add_metrics(study, [*sorted(asked), "blimp_accuracy_low", "blimp_accuracy_high", "blimp_scored", "my_score"])
    groups = other_curves(open_study(study))
    assert all(group.small for group in groups)
    assert {group.title for group in groups} == {*of_groups, "Other measurements"}
    assert sum(len(group.figures) for group in groups) == len(asked) + 3  # my_score, and the two that were there
    titles = {group.title: [figure.title for figure in group.figures] for group in groups}
    assert titles["Other measurements"] == ["my score"]
    assert "self BLEU (BLEU, 0 to 1)" in titles["The synthetic corpus"]
    assert "KR accuracy (share of questions)" in titles["Benchmarks"]
    [caption] = [f.caption for group in groups for f in group.figures if f.title.startswith("KR accuracy (share")]
    assert caption.startswith("kr_accuracy: pairs whose true continuation is likelier than the false one")
    assert "Collapse moves it down (↓)." in caption


@pytest.mark.parametrize(
    ("put", "said"),
    [
        ({}, None),
        ({("10-3", 5, 0): float("inf"), ("10-4", 7, 0): float("nan")}, "2 of 1,000 values, in 2 chains"),
    ],
)
def test_values_that_are_no_number_are_counted(
    tmp_path: Path, put: dict[tuple[str, int, int], float], said: str | None
) -> None:
    page = write_report(write_samples_study(tmp_path, sizes=(10,), put=put)).read_text()
    assert ("Triangles at the edge" in page) == (said is not None)
    assert said is None or said in page


def test_a_metric_of_one_family_says_where_it_is_not_measured(tmp_path: Path) -> None:
    study = write_samples_study(tmp_path, sizes=(10, 30))
    table = pl.read_parquet(study / "results/generations.parquet")
    only = pl.when(pl.col("samples_per_generation") == 30).then("kl_divergence")
    write_table(study, "generations", table.with_columns(kl_divergence=only))
    assert "Not measured in samples per generation=10." in write_report(study).read_text()


def test_thousands_of_chains_make_a_small_page_that_opens(tmp_path: Path, open_page: Callable[..., Opened]) -> None:
    """3,000 chains of 100 generations; the scripts alone are about 0.9 MB."""
    study = write_samples_study(tmp_path, sizes=(10, 100, 1000), chains=1000, generations=100)
    add_claims(study, CLAIMS)
    page = write_report(study)
    empty = write_report(write_study(tmp_path, seeds=1, generations=1))
    assert page.stat().st_size - empty.stat().st_size < 1_000_000
    opened = open_page(page)
    assert opened.problems == []
    assert opened.requested == []
    assert undrawn(opened) == 0
    assert "chart-error" not in drawn_part(opened)


def test_folded_charts_are_drawn_when_unfolded_and_pictures_need_no_network(
    tmp_path: Path, open_page: Callable[..., Opened]
) -> None:
    study = write_study(tmp_path, seeds=2)
    add_metrics(study, [f"my_score_{number}" for number in range(FEW_METRICS + 1)])
    add_pictures(study)
    page = write_report(study)
    folded = open_page(page)
    unfolded = open_page(page, "measurements-0")  # a browser unfolds what an address points into
    first = len(other_curves(open_study(study))[0].figures)
    hidden = FEW_METRICS + 3  # with kept_fraction and prompt_overlap
    assert [undrawn(opened) for opened in (folded, unfolded)] == [hidden, hidden - first]
    for opened in (folded, unfolded):
        assert opened.problems == []
        assert opened.requested == []
        assert "chart-error" not in drawn_part(opened)
    shown = sum(len(strip.pictures) for strip in strips(open_study(study))[0])
    assert folded.dom.count('<img src="data:image/png;base64,') == shown > 0


def undrawn(opened: Opened) -> int:
    """How many of a page's charts have not been drawn."""
    charts, drawings = (drawn_part(opened).count(mark) for mark in ('<div class="chart">', 'class="marks"'))
    assert charts > 0
    return charts - drawings


def drawn_part(opened: Opened) -> str:
    return re.sub(r"<style>.*?</style>|<script.*?</script>", "", opened.dom, flags=re.DOTALL)
