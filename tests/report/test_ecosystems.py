"""The report of an ecosystem: it tells of the lineages that its study asks about, and says which of them cannot
collapse."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fortifai_ray.report.headline import headline
from fortifai_ray.report.page import curves, section
from fortifai_ray.report.tables import fidelity_rows, legend
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import LAST
from fortifai_ray.results.words import in_words

# The onset of each lineage by what lineage b is trained with; the criterion is met from there on.
ONSETS = {"cross_entropy": {"a": 2, "b": 3}, "tce": {"a": 4, "b": 6}, "focal": {"a": 1, "b": 3}}
OWN = "ecosystem.lineages.b.loss.kind"
GENERATIONS = 9


def ecosystem(folder: Path, kinds: Sequence[str] = ("cross_entropy", "tce"), **study: Any) -> StudyResults:
    """Lineages a and b, an outside model and a human-only one, over three seeds."""
    rows = [
        {"chain_id": f"{kind}-{name}-{seed}", "generation": g, "seed": seed, "lineage": name, OWN: kind}
        | {"loss.kind": "cross_entropy", "unit": "samples", "human_size": 50, "kl_divergence": value}
        | {"synthetic_size_cum": 0 if name in ("web", "press") else 50 * g}
        for kind in kinds
        for name, onset in {**ONSETS[kind], "web": GENERATIONS, "press": GENERATIONS}.items()
        for seed in range(3)
        for g in range(GENERATIONS)
        for value in [1.0 + 0.01 * seed if g < onset else 4.0]
    ]
    content = {
        "name": "eco",
        "generations": GENERATIONS,
        "vary": {OWN: list(kinds), "seed": [0, 1, 2]},
        "ecosystem": {"lineages": {"a": {}, "b": {}, "web": {"frozen": True}, "press": {}}},
        "collapse": {"metric": "kl_divergence", "threshold": 2.0, "relative_to": "absolute", "direction": "above"},
        "baseline": {OWN: "cross_entropy"},
        "claims": [],
    }
    return StudyResults(folder, content | study, judge=True, generations=pl.DataFrame(rows), samples=None)


def claim(*lineages: str, kind: str = "fi_ratio") -> dict[str, Any]:
    return {"id": "x", "statistic": {"kind": kind}, "where": {"lineage": [*lineages] if lineages[1:] else lineages[0]}}


@pytest.mark.parametrize(
    ("claims", "begins", "told"),
    [
        ([], "Lineage a stays faithful", ["Lineage a", "Lineage b"]),
        ([claim("b")], "Lineage b stays faithful", ["Lineage b"]),
        ([claim("b"), claim("a")], "Lineage b stays faithful", ["Lineage b", "Lineage a"]),
        ([claim("a", "b")], "Lineage a stays faithful", ["Lineage a", "Lineage b"]),
        ([claim("last to collapse")], "The last lineage to collapse stays faithful", ["The last lineage"]),
        ([claim("b", kind="onset_share")], "Lineage a stays faithful", ["Lineage a", "Lineage b"]),
        ([claim("web")], "Lineage a stays faithful", ["Lineage a", "Lineage b"]),  # it has no ratio
    ],
)
def test_the_headline_is_about_the_lineages_that_the_study_asks_about(
    tmp_path: Path, claims: list[dict[str, Any]], begins: str, told: list[str]
) -> None:
    said, reading = headline(ecosystem(tmp_path, claims=claims))
    assert said.startswith(begins)
    assert [
        who[0].upper() + who[1:] for who in re.findall("[Ll]ineage [ab]|[Tt]he (?:last|first) lineage", said)
    ] == told
    assert "times as long with b: TCE as with b: cross entropy (it lasts longer)" in said
    assert "web" not in said
    assert "press" not in said
    assert "3 pairs" in reading


def test_several_ecosystems_are_told_lineage_by_lineage(tmp_path: Path) -> None:
    said, _ = headline(ecosystem(tmp_path, ["cross_entropy", "tce", "focal"], claims=[claim("a")]))
    assert said.startswith("Lineage a stays faithful longer with b: TCE (")
    assert "; it stays faithful less long with b: focal (" in said
    assert said.endswith("than with b: cross entropy.")


def test_without_a_baseline_the_lineages_that_can_collapse_are_counted(tmp_path: Path) -> None:
    said, _ = headline(ecosystem(tmp_path, baseline={OWN: "lovasz"}))
    assert said.startswith("Collapsed, ")
    assert "lineage=a: all of 3 chains" in said
    assert "web" not in said
    assert "to collapse" not in said


def test_rows_of_the_whole_are_explained_and_stand_last(tmp_path: Path) -> None:
    results = ecosystem(tmp_path)
    assert results.cells.order[-2:] == ["b: TCE · first to collapse", "b: TCE · last to collapse"]
    [criterion] = results.criteria
    rows = {row.cell: row for row in fidelity_rows(results, criterion) if row.first}
    assert rows["b: TCE · last to collapse"].censored == "0", "neither the outside model nor the human-only one counts"
    [explained] = [line for line in legend(results) if line.startswith("First to collapse")]
    assert "not press and web, which train on none" in explained


def test_a_curve_does_not_miss_the_whole(tmp_path: Path) -> None:
    """Neither in the caption nor by a limit of its own."""
    results = ecosystem(tmp_path)
    [figure] = curves(results)
    assert "Not measured" not in figure.caption
    marks = [layer["encoding"] for layer in figure.spec["layer"] if "shape" in layer.get("encoding", {})]
    assert all(one["shape"]["scale"]["domain"] == one["color"]["scale"]["domain"] for one in marks), "one legend"
    rows = [row for data in figure.spec["datasets"].values() for row in data]
    assert not {row.get("cell") for row in rows} & results.cells.wholes


def test_a_chart_has_room_for_long_names(tmp_path: Path) -> None:
    """No name is cut: each stands beside its row in as many lines as it takes, and the row is as high."""
    results = ecosystem(tmp_path)
    onset, *_ = section(results, results.criteria[0]).figures
    axis = next(layer["encoding"]["y"]["axis"] for layer in onset.spec["layer"] if "y" in layer["encoding"])
    assert axis["labelLimit"] == 0
    [shown] = re.findall(
        r'"b: cross entropy . last to collapse": (\[.*?\])', axis["labelExpr"].encode().decode("unicode_escape")
    )
    assert shown == '["b: cross entropy", "last to collapse"]'
    assert onset.spec["height"] >= 36 * len(results.cells.order)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss.kind": "tce", "loss.gamma": 0.3}, "TCE γ=0.3"),
        ({"curation.kind": None, "curation.rate": None}, "no curation"),
        ({"curation.kind": "none", "curation.rate": None}, "no curation"),
        ({"regime.weights.human": None}, "no weights"),
        ({"regime.weights.human": 0.618}, "weights human=0.618"),
        ({"decoding.watermark.share": 0.5, "decoding.temperature": 1.0}, "watermark share=0.5 · temperature=1"),
        ({"ecosystem.mixing.graph": "ring", "ecosystem.mixing.own": 0.5}, "mixing graph=ring own=0.5"),
        ({"training.warmup_ratio": None}, "no warmup ratio"),
        ({"ecosystem.order": None, "lineage": None}, "no ecosystem"),
        ({"ecosystem.order": '["a", "b"]', "lineage": "a"}, "lineages=a, b · lineage=a"),
        ({"ecosystem.mixing": "[[0.7, 0.3], [0, 1]]", "lineage": LAST}, "mixing=0.7, 0.3 / 0, 1 · last to collapse"),
        ({"ecosystem.lineages.b.frozen": True, "lineage": "a"}, "b: frozen=true · lineage=a"),
        ({"curation": '[{"kind": "x", "by": "truth", "p": null}, {"kind": "y", "of": 4}]'}, "x by=truth then y of=4"),
        ({"family.mean": [0.0, 1.5]}, "mean=0, 1.5"),
        ({"family.mean": pl.Series([0.0, 1.5])}, "mean=0, 1.5"),
        ({"corpus.path": "[draft]/x.txt"}, "path=[draft]/x.txt"),
        ({"model.width": 64, "head.width": None}, "model.width=64"),
        ({"family.kind": "my_module:my_family"}, "my_module:my_family"),
    ],
)
def test_a_cell_is_named_as_people_write(values: dict[str, Any], words: str) -> None:
    assert in_words(values) == words
