"""Charts draw what the tables say: no survivors' medians, no vanished NaN, limits where the chains were judged."""

from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

from fortifai_ray.report.charts.curves import MOST_POINTS, collapse_curves
from fortifai_ray.report.charts.encodings import broad, colours
from fortifai_ray.report.charts.onset import onset_chart, ratio_chart
from fortifai_ray.results.cells import Cells
from fortifai_ray.statistics.criterion import AnyOf, CollapseCriterion

from .large import TRACE, write_samples_study
from .studies import CRITERION, write_study

BASELINE = {"loss.kind": "cross_entropy"}

KEYS = ("loss.kind", "loss.gamma")


def tables(study: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    names = ("generations", "chains", "fidelity")
    generations, chains, fidelity = (pl.read_parquet(study / "results" / f"{name}.parquet") for name in names)
    return generations, chains, fidelity


def cells_of(generations: pl.DataFrame) -> Cells:
    return Cells.of(generations, KEYS, BASELINE)


def layers(chart: Any, mark: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The chart's layers of one mark, each with its data."""
    spec = chart.to_dict()
    marked = [layer for layer in spec["layer"] if layer["mark"]["type"] == mark]
    return [(layer, spec["datasets"][layer["data"]["name"]]) for layer in marked if "data" in layer]


def curve(chart: Any, cell: str) -> dict[int, float]:
    """The thick line of a cell: median by generation."""
    thick = [data for layer, data in layers(chart, "line") if layer["mark"]["strokeWidth"] > 2]
    return {row["generation"]: row["value"] for data in thick for row in data if row["cell"] == cell}


def test_the_median_ends_where_the_first_chain_stops(tmp_path: Path) -> None:
    """Cross entropy's chains stop after their collapse is confirmed, each at its own generation."""
    generations, chains, _ = tables(write_study(tmp_path, seeds=7, slowness={None: 0.75}))
    own = generations.filter(pl.col("loss.kind") == "cross_entropy")
    lasts = own.group_by("chain_id").agg(pl.col("generation").max())["generation"]
    assert lasts.n_unique() > 1, "the fixture must have chains of different lengths"
    drawn = curve(collapse_curves(generations, chains, "perplexity", cells_of(generations)), "cross entropy")
    assert max(drawn) == lasts.min()
    assert drawn[0] == pytest.approx(own.filter(generation=0)["perplexity"].median(), rel=1e-5)


def test_a_failed_chain_does_not_shorten_the_median(tmp_path: Path) -> None:
    study = write_study(tmp_path, slowness={0.3: 0.1}, failed=["tce-0.3-1"])
    generations, chains, _ = tables(study)
    cut = generations.filter((pl.col("chain_id") != "tce-0.3-1") | (pl.col("generation") < 2))
    assert max(curve(collapse_curves(cut, chains, "perplexity", cells_of(generations)), "TCE γ=0.3")) == 5
    assert max(curve(collapse_curves(cut, None, "perplexity", cells_of(generations)), "TCE γ=0.3")) == 1


def test_the_limit_is_the_one_the_chains_were_judged_by(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path))
    starts = generations.filter(pl.col("loss.kind") == "cross_entropy", generation=0)["perplexity"]
    [(_, [limit])] = [
        pair for pair in layers(collapse_curves(generations, chains, "perplexity", cells_of(generations)), "rule")
    ]
    assert limit["value"] == pytest.approx(2 * starts.median())
    assert (limit["low"], limit["high"]) == (pytest.approx(2 * starts.min()), pytest.approx(2 * starts.max()))


def test_values_that_are_no_number_are_drawn_apart(tmp_path: Path) -> None:
    put = {(None, 0, 4): float("inf"), (None, 1, 3): float("nan"), (0.3, 0, 4): 1e9}
    generations, chains, _ = tables(write_study(tmp_path, perplexity=put))
    chart = collapse_curves(generations, chains, "perplexity", cells_of(generations))
    shown = {row["shown"] for _, data in layers(chart, "point") for row in data if row.get("shown")}
    assert shown == {"NaN", "∞"}
    assert 3 not in curve(chart, "cross entropy")
    assert "Infinity" not in chart.to_json()
    assert "NaN," not in chart.to_json()


def test_a_log_axis_only_where_the_values_allow_it(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path))

    def scale(metric: str, table: pl.DataFrame = generations) -> object:
        return layers(collapse_curves(table, chains, metric, cells_of(generations)), "line")[0][0]["encoding"]["y"][
            "scale"
        ].get("type")

    assert scale("perplexity") == "log"
    assert scale("kept_fraction") is None
    assert scale("perplexity", generations.with_columns(pl.col("perplexity") - 400)) is None


def test_thin_lines_give_way_where_they_would_only_blacken(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path))
    copies = -(-MOST_POINTS // len(generations))
    renamed = [generations.with_columns(pl.col("chain_id") + f"-{copy}") for copy in range(copies + 1)]
    assert len(layers(collapse_curves(generations, chains, "perplexity", cells_of(generations)), "line")) == 2
    assert len(layers(collapse_curves(pl.concat(renamed), chains, "perplexity", cells_of(generations)), "line")) == 1


def test_an_unknown_metric_is_an_error(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path))
    with pytest.raises(KeyError, match="nonsense"):
        collapse_curves(generations, chains, "nonsense", cells_of(generations))


def test_the_curves_save_as_a_picture(tmp_path: Path) -> None:
    """The README and the notebooks use the chart on its own."""
    generations, chains, _ = tables(write_study(tmp_path))
    collapse_curves(generations, chains, "perplexity", cells_of(generations)).save(str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_onsets_are_filled_where_collapsed_and_open_where_censored(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path, slowness={0.3: 0.1}))
    cells = cells_of(generations)
    chart = onset_chart(chains, CRITERION, cells, medians={"cross entropy": 2.5, "TCE γ=0.3": None})
    drawn = {layer["mark"]["filled"]: data for layer, data in layers(chart, "point")}
    assert {row["cell"] for row in drawn[True]} == {"cross entropy", "TCE γ=0.9"}
    assert [(row["cell"], row["at"]) for row in drawn[False]] == [("TCE γ=0.3", 5)] * 3
    assert [row["cell"] for _, data in layers(chart, "tick") for row in data] == ["cross entropy"]


def test_no_verdict_no_onset_chart(tmp_path: Path) -> None:
    generations, chains, _ = tables(write_study(tmp_path))
    failed = chains.with_columns(status=pl.lit("failed"))
    assert onset_chart(failed, CRITERION, cells_of(generations)) is None


def test_ratios_are_drawn_with_interval_and_bound(tmp_path: Path) -> None:
    generations, _, fidelity = tables(write_study(tmp_path, seeds=7, slowness={0.3: 0.1}))
    cells = cells_of(generations)
    chart = ratio_chart(fidelity, CRITERION, cells, "generations")
    assert isinstance(chart, alt.LayerChart)
    large = [row for layer, data in layers(chart, "point") if layer["mark"]["size"] > 100 for row in data]
    assert {row["cell"]: row["bound"] for row in large} == {"TCE γ=0.3": "lower", "TCE γ=0.9": "exact"}
    spans = [row for layer, data in layers(chart, "rule") if "x2" in layer["encoding"] for row in data]
    [span] = [row for row in spans if row["cell"] == "TCE γ=0.9"]
    row = fidelity.filter(pl.col("loss.gamma") == 0.9, unit="generations").row(0, named=True)
    assert (span["at"], span["high"]) == (row["fi_ratio_low"], row["fi_ratio_high"])


def test_no_ratio_no_chart(tmp_path: Path) -> None:
    study = write_study(tmp_path, slowness={None: 0.1, 0.3: 0.1, 0.9: 0.1})
    generations, _, fidelity = tables(study)
    assert ratio_chart(fidelity, CRITERION, cells_of(generations), "generations") is None


@pytest.mark.parametrize(
    ("values", "least", "log", "ends"),
    [
        ([1.0, 1.0], 1.25, True, (0.894, 1.118)),
        ([1.0, 0.9999, None], 1.25, True, (0.894, 1.118)),
        ([1.0, 1.25], 1.25, True, None),
        ([2.5, 2.6, float("inf")], 1.0, False, (2.05, 3.05)),
        ([0.0, 0.1], 1.0, False, (0.0, 1.0)),
        ([-3.0, -3.0], 1.0, False, (-3.5, -2.5)),
        ([0.0, 5.0], 1.0, False, None),
        ([], 1.0, False, None),
    ],
)
def test_an_axis_spans_what_can_be_read(
    values: list[float | None], least: float, log: bool, ends: tuple[float, float] | None
) -> None:
    """Ratios that are all 1 had an axis from 0.9999 to 1, and onsets within a generation had no tick."""
    found = [layer.data.values for layer in broad(values, least, log=log, x=alt.X("at:Q"))]
    assert found == ([] if ends is None else [[{"at": pytest.approx(end, abs=1e-3)} for end in ends]])


def test_onsets_of_many_chains_are_kaplan_meier_quantiles(tmp_path: Path) -> None:
    """Nothing is censored before the horizon here, so that they are the onsets' own quantiles."""
    generations, chains, _ = tables(write_samples_study(tmp_path, sizes=(4, 100), chains=60))
    cells = Cells.of(generations, ["samples_per_generation"], {"loss.kind": "cross_entropy"})
    chart = onset_chart(chains, TRACE, cells)
    assert not [data for layer, data in layers(chart, "point") if len(data) > 2], "no mark per chain"
    quantiles = {row["cell"]: row for _, data in layers(chart, "rule") for row in data}
    own = chains.filter(samples_per_generation=4, metric=TRACE.metric).sort("fi_generations")
    assert own["status"].eq("collapsed").all(), "the fixture's small cell must collapse throughout"
    ordered = own["fi_generations"].to_list()
    row = quantiles["samples per generation=4"]
    assert [row[name] for name in ("q05", "q25", "q75", "q95")] == [ordered[i - 1] for i in (3, 15, 45, 57)]
    censored = quantiles["samples per generation=100"]
    assert censored["open"]
    assert "≥19" in censored["most"]
    assert [row["cell"] for _, data in layers(chart, "point") for row in data] == ["samples per generation=100"]


def test_many_seeds_ratios_are_not_drawn_one_by_one(tmp_path: Path) -> None:
    generations, _, fidelity = tables(write_study(tmp_path, seeds=13))
    chart = ratio_chart(fidelity, CRITERION, cells_of(generations), "generations")
    assert {layer["mark"]["size"] for layer, _ in layers(chart, "point")} == {120}


def test_colours_are_a_cells_own_in_every_chart(tmp_path: Path) -> None:
    """Kept fraction is not measured under cross entropy: its legend leaves that cell out, and no colour moves."""
    generations, chains, _ = tables(write_study(tmp_path))
    scales = []
    for metric, names in (("perplexity", 3), ("kept_fraction", 2)):
        colour = layers(collapse_curves(generations, chains, metric, cells_of(generations)), "line")[0][0]["encoding"][
            "color"
        ]
        assert len(colour["legend"]["values"]) == names
        scales.append(colour["scale"])
    assert scales[0] == scales[1]


@pytest.mark.parametrize("count", [8, 40, 100])
def test_many_cells_have_distinct_colours_between_dark_and_light(count: int) -> None:
    """Neither end may vanish: every colour stands out from white and from the dark ground by 1.5 : 1 at least."""
    cells = Cells((), {str(index): f"cell {index}" for index in range(count)}, frozenset())
    assert len(set(colours(cells))) == count
    for colour in colours(cells):
        assert 1.05 / (luminance(colour) + 0.05) > 1.5
        assert (luminance(colour) + 0.05) / (luminance("#15181c") + 0.05) > 1.5


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_both_limits_of_a_range_are_drawn_and_those_of_every_criterion_on_its_own_metric(tmp_path: Path) -> None:
    two = {"metric": "perplexity", "threshold": [0.5, 3.0], "direction": "outside", "relative_to": "own_generation_0"}
    other = {"metric": "kept_fraction", "threshold": 0.2, "direction": "below", "relative_to": "absolute"}
    either = AnyOf.model_validate({"any_of": [two, other]})
    generations, chains, _ = tables(write_study(tmp_path, criteria=[either]))
    starts = generations.filter(pl.col("loss.kind") == "cross_entropy", generation=0)["perplexity"]

    def limits(metric: str) -> list[float]:
        rules = layers(collapse_curves(generations, chains, metric, cells_of(generations)), "rule")
        return [rows[0]["value"] for _, rows in rules]

    assert limits("perplexity") == pytest.approx([0.5 * starts.median(), 3 * starts.median()])
    assert limits("kept_fraction") == [0.2]
    onsets = onset_chart(chains, either, cells_of(generations))
    assert onsets is not None


@pytest.mark.parametrize(
    ("thresholds", "sides"),
    [
        ([2.0], ["left"]),
        ([1.02], ["right"]),
        ([1.0, 2.0, 10.0], ["right", "left", "left"]),
        ([2.0, 2.05], ["left", "right"]),
        ([1.0, 1.03, 2.0], ["right", "left", "left"]),
    ],
)
def test_a_limits_label_is_where_no_curve_begins_and_no_other_label_is(
    tmp_path: Path, thresholds: list[float], sides: list[str]
) -> None:
    """Three cells begin at about the same value, and a limit near it would be labelled in their symbols."""
    criteria = [
        CollapseCriterion(metric="perplexity", threshold=limit * 332, direction="above", relative_to="absolute")
        for limit in thresholds
    ]
    generations, chains, _ = tables(write_study(tmp_path, criteria=criteria))
    texts = layers(collapse_curves(generations, chains, "perplexity", cells_of(generations)), "text")
    assert [layer["mark"]["align"] for layer, _ in texts] == sides
    assert [layer["encoding"]["x"]["value"] for layer, _ in texts] == [
        {"left": 0, "right": "width"}[side] for side in sides
    ]


def test_a_limit_without_a_place_on_a_log_axis_is_left_out(tmp_path: Path) -> None:
    zero = TRACE.model_copy(update={"metric": "kl_divergence", "threshold": 0.0})
    generations, chains, _ = tables(write_samples_study(tmp_path, criteria=[zero]))
    cells = Cells.of(generations, ["samples_per_generation"], BASELINE)
    assert not layers(collapse_curves(generations, chains, "kl_divergence", cells, log_scale=True), "rule")
    assert layers(collapse_curves(generations, chains, "kl_divergence", cells, log_scale=False), "rule")
