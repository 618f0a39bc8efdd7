"""What collapses first: signs of collapse on one scale, and the order in which chains lose them.

The scale is the *fidelity left*: 1 is the chain's own generation 0, and 0 is everything lost. For a metric that
collapse moves down, it is the value over generation 0's, both beyond chance where the metric has one
(:func:`fortifai_ray.metrics.fidelity`); for one that collapse moves up, it is generation 0's over the value: when
perplexity has doubled, half is left. A sign is *lost* once less than a given share is left, which is a
:class:`~fortifai_ray.statistics.criterion.CollapseCriterion` like any other, so curves and onsets agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.metrics import METRICS, is_bookkeeping, metric, signs_by_role
from fortifai_ray.report.charts.curves import generation_axis
from fortifai_ray.report.charts.encodings import GREY, PALETTE, SHAPES, Tooltips, by_name, chart_of
from fortifai_ray.report.points import complete
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import number
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.order import crossing_order, first_crossings
from fortifai_ray.statistics.survival import kaplan_meier, median

CONFIRM = 1


@dataclass(frozen=True)
class Sign:
    """A metric as a sign of collapse."""

    metric: str

    @property
    def role(self) -> str:
        """The aspect of collapse that it shows; empty where the registry names none."""
        return metric(self.metric).role or ""

    @property
    def name(self) -> str:
        """``tails: tail coverage``."""
        title, _, _ = metric(self.metric).title.partition(" (")
        return f"{self.role}: {title}" if self.role else title

    @property
    def rises(self) -> bool:
        """Whether collapse moves the metric up."""
        return metric(self.metric).direction == "above"

    @property
    def chance(self) -> float | None:
        """What guessing scores; None where that has no meaning."""
        known = METRICS.get(self.metric)
        return None if known is None or self.rises else known.chance

    def criterion(self, left: float) -> CollapseCriterion:
        """The criterion that less than ``left`` of the fidelity is left."""
        return CollapseCriterion(
            metric=self.metric,
            threshold=1 / left if self.rises else left,
            direction="above" if self.rises else "below",
            relative_to="own_generation_0",
            confirm=CONFIRM,
            chance=self.chance,
        )


def signs(results: StudyResults) -> tuple[list[Sign], dict[str, str]]:
    """The metrics that can be put on the scale, those with a role first, and why the others cannot.

    A metric needs a known direction of collapse and, in generation 0 of at least half of its chains, something to
    lose (:func:`has_something_to_lose`).
    """
    table = results.generations
    ranked = [name for names in signs_by_role().values() for name in names]
    names = [name for name in table.columns if table[name].dtype.is_numeric() and metric(name).direction]
    names = [name for name in names if not is_bookkeeping(name) and table[name].count() and name != "kept_fraction"]
    usable, refused = [], {}
    for sign in map(Sign, sorted(names, key=lambda name: ranked.index(name) if name in ranked else len(ranked))):
        starts = table.filter(pl.col("generation") == 0, pl.col(sign.metric).is_not_null())
        able = starts.filter(has_something_to_lose(sign, table.columns)).height
        if able and 2 * able >= starts.height:
            usable.append(sign)
        else:
            refused[sign.metric] = _refusal(sign, starts[sign.metric], able)
    return usable, refused


def has_something_to_lose(sign: Sign, columns: Sequence[str]) -> pl.Expr:
    """An expression on rows of generation 0: whether the value lies above 0, or its interval above chance.

    An accuracy whose interval includes chance may be guessing, and any fall from there is noise. Where the table has no
    interval (``…_low``), the value itself decides.
    """
    if sign.chance is None:
        return pl.col(sign.metric) > 0
    low = f"{sign.metric}_low"
    return pl.col(low if low in columns else sign.metric) > sign.chance


def _refusal(sign: Sign, starts: pl.Series, able: int) -> str:
    span = f"{number(float(str(starts.min())))} to {number(float(str(starts.max())))}"
    if sign.chance is None:
        return f"{sign.name} is left out: in generation 0 it is not above 0 ({span}), so there is nothing to lose."
    return (
        f"{sign.name} is left out: in generation 0 ({span}) {able} of {starts.len()} chains can be distinguished "
        f"from guessing ({sign.chance:g}). Score more questions, or start from a better model."
    )


def first_choice(usable: Sequence[Sign]) -> list[Sign]:
    """The best sign of each role; the first four signs where there is only one role."""
    best: dict[str, Sign] = {}
    for sign in usable:
        if sign.role:
            best.setdefault(sign.role, sign)
    return list(best.values()) if len(best) > 1 else list(usable[:4])


def fidelity_left(results: StudyResults, chosen: Sequence[Sign]) -> pl.DataFrame:
    """The fidelity left of each sign: ``chain_id, cell, seed, generation, sign, left`` (null: not measured).

    A sign leaves out the chains whose generation 0 has nothing to lose (:func:`has_something_to_lose`).
    """
    named = results.cells.name(results.generations).filter(pl.col("cell").is_not_null())
    parts = []
    for sign in chosen:
        chance = sign.chance or 0.0
        value = pl.col(sign.metric).cast(pl.Float64)
        start = value.filter(pl.col("generation") == 0).first().over("chain_id")
        share = (value - chance) / (start - chance)
        left = 1 / share if sign.rises else share
        rows = named.filter(pl.col("chain_id").is_in(_able(results, sign)))
        parts.append(rows.select("chain_id", "cell", "seed", "generation", sign=pl.lit(sign.name), left=left))
    if not parts:
        return pl.DataFrame(schema={"chain_id": pl.String, "cell": pl.String, "sign": pl.String, "left": pl.Float64})
    return pl.concat(parts)


def losses(results: StudyResults, chosen: Sequence[Sign], left: Sequence[float]) -> pl.DataFrame:
    """When each chain loses each sign, for several shares left.

    Returns:
        The rows of :func:`~fortifai_ray.statistics.chains.chain_table` with ``sign``, ``left`` and ``cell``. A chain
        whose generation 0 has nothing to lose is ``failed``.

    Raises:
        ValueError, UserError: as :func:`~fortifai_ray.statistics.chains.chain_table`.
    """
    signs_of = {sign.criterion(share): (sign.name, share) for share in left for sign in chosen}
    keys, asked = [*results.varied, "seed"], results.generations_asked
    table = chain_table(results.generations, list(signs_of), results.baseline, keys, asked, failed=results.failed)
    names = pl.DataFrame(
        [(c.metric, c.threshold, name, share) for c, (name, share) in signs_of.items()],
        schema={"metric": pl.String, "threshold": pl.Float64, "sign": pl.String, "left": pl.Float64},
        orient="row",
    )
    table = table.join(names, on=["metric", "threshold"], how="left", maintain_order="left")
    judged = pl.any_horizontal(
        (pl.col("sign") == sign.name) & pl.col("chain_id").is_in(_able(results, sign)) for sign in chosen
    )
    verdicts = ("onset", "censored", "fi_generations", "fi_synthetic")
    table = table.with_columns(
        pl.when(judged).then("status").otherwise(pl.lit("failed")).alias("status"),
        *(pl.when(judged).then(name).alias(name) for name in verdicts),
    )
    return results.cells.name(table)


def _able(results: StudyResults, sign: Sign) -> list[str]:
    """The chains whose generation 0 has something to lose."""
    starts = results.generations.filter(pl.col("generation") == 0)
    return starts.filter(has_something_to_lose(sign, starts.columns))["chain_id"].to_list()


MOST_CELLS = 8  # cells with a chart of their own
_WIDTH = 560
_ROOF = 1.5  # a sign that improves beyond this is cut off


def left_charts(
    table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str], left: float
) -> alt.VConcatChart | str:
    """Fidelity left of each sign by generation, a chart per cell (up to eight); or why there is none."""
    known = set(table["cell"])
    charts = [_left_chart(table, chosen, cell, left) for cell in cells[:MOST_CELLS] if cell in known]
    return alt.VConcatChart(vconcat=charts) if charts else "No chain has anything to lose in generation 0."


def when_charts(table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str]) -> alt.VConcatChart | str:
    """Median onsets by the share that counts as lost, a chart per cell (up to eight); or why there is none."""
    charts = [chart for cell in cells[:MOST_CELLS] if (chart := _when_chart(table, chosen, cell))]
    if not charts:
        return "At no share do half of a cell's chains lose a sign: nothing comes first within this horizon."
    return alt.VConcatChart(vconcat=charts)


def _left_chart(table: pl.DataFrame, chosen: Sequence[Sign], cell: str, left: float) -> alt.LayerChart:
    """Fidelity left of each sign in one cell: median over seeds, range as a band; dashed: below this it is lost.

    Medians extend as far as every chain of the cell has a value.
    """
    colour, shape = _colour_and_shape(chosen)
    scale = alt.Scale(domain=[0, _ROOF], clamp=True, nice=False)
    y = alt.Y("value:Q", title="fidelity left (1: its own generation 0)", scale=scale, axis=alt.Axis(format="~g"))
    tooltip: Tooltips = ["sign:N", "generation:Q", alt.Tooltip("value:Q", title="median", format=".3~g")]
    tooltip += [alt.Tooltip("low:Q", format=".3~g"), alt.Tooltip("high:Q", format=".3~g"), "chains:Q"]
    base = chart_of(_spread(table.filter(pl.col("cell") == cell))).encode(x=generation_axis(), color=colour)
    layers = [
        base.mark_area(opacity=0.13, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2.5, clip=True).encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1, clip=True).encode(y=y, shape=shape, tooltip=tooltip),
        chart_of([{"value": left}]).mark_rule(color=GREY, strokeDash=[6, 4]).encode(y=y),
    ]
    return alt.LayerChart(layer=layers, width=_WIDTH, height=280, title=cell)


def order_chart(table: pl.DataFrame, chosen: Sequence[Sign]) -> alt.LayerChart | str:
    """How often a row's sign is lost before a column's, over the chains of all cells whose order is known."""
    counts = crossing_order(table, ["seed"])
    if counts.is_empty():
        return "Fewer than two signs have a verdict: there is no order to show."
    names = dict(table.select("metric", "sign").unique().iter_rows())
    rows = []
    for row in counts.iter_rows(named=True):
        share, known = row["share"], row["n_chains"] - row["n_open"]
        rows.append(
            {
                "first": names[row["metric"]],
                "second": names[row["other_metric"]],
                "share": share,
                "text": "?" if share is None else f"{row['n_before']} of {known}",
                "interval": f"{100 * row['share_low']:.0f} to {100 * row['share_high']:.0f} %",
                "open": row["n_open"],
                "tied": row["n_tied"],
                "dark": share is not None and share > 0.55,
            }
        )
    tooltip: Tooltips = ["first:N", "second:N", alt.Tooltip("share:Q", format=".0%")]
    tooltip += [
        alt.Tooltip("interval:N", title="90 % interval"),
        "tied:Q",
        alt.Tooltip("open:Q", title="order unknown"),
    ]
    scale = alt.Scale(domain=[sign.name for sign in chosen])
    x = alt.X("second:N", title="before this one", scale=scale, axis=alt.Axis(labelLimit=220, labelAngle=-25))
    y = alt.Y("first:N", title="is lost", scale=scale, axis=alt.Axis(labelLimit=220))
    base = chart_of(rows).encode(x=x, y=y)
    shades = alt.Scale(domain=[0, 1], range=["#ffffff", PALETTE[1]], interpolate="rgb")
    fill = alt.Color("share:Q", title="share of chains", scale=shades, legend=alt.Legend(format=".0%"))
    tiles = base.mark_rect(stroke="#d9d9d9").encode(color=fill, tooltip=tooltip)
    ink = alt.condition("datum.dark", alt.value("white"), alt.value("black"))
    texts = base.mark_text(fontSize=12).encode(text="text:N", color=ink)
    return alt.LayerChart(layer=[tiles, texts], width=_WIDTH, height=max(120, 44 * len(chosen)))


def _when_chart(table: pl.DataFrame, chosen: Sequence[Sign], cell: str) -> alt.LayerChart | None:
    """The Kaplan–Meier median onset of each sign by the share that counts as lost, in one cell; a line ends where fewer
    than half of the chains lose that much."""
    rows = _medians(table.filter(pl.col("cell") == cell), "sign", "left")
    rows = rows.filter(pl.col("at").is_not_null()).sort("sign", "left")
    if rows.is_empty():
        return None
    x = alt.X(
        "left:Q",
        title="lost means: less than this share of the fidelity is left",
        scale=alt.Scale(domain=[1, 0], nice=False),
        axis=alt.Axis(format="~g"),
    )
    y = alt.Y("at:Q", title="median onset (generations)", scale=alt.Scale(zero=True))
    tooltip: Tooltips = ["sign:N", alt.Tooltip("left:Q", format=".2~g")]
    tooltip += [alt.Tooltip("at:Q", title="median onset", format=".3~g"), "chains:Q", "censored:Q"]
    colour, shape = _colour_and_shape(chosen)
    base = chart_of(rows).encode(x=x, y=y, color=colour)
    points = base.mark_point(filled=True, size=45, opacity=1).encode(shape=shape, tooltip=tooltip)
    return alt.LayerChart(layer=[base.mark_line(strokeWidth=2), points], width=_WIDTH, height=240, title=cell)


def _medians(table: pl.DataFrame, *groups: str) -> pl.DataFrame:
    """The Kaplan–Meier median onset ``at`` of each group, and its ``chains`` and how many are ``censored``."""
    judged = table.filter(pl.col("status") != "failed").with_columns(fi=pl.col("fi_generations").cast(pl.Float64))
    curves = kaplan_meier(judged, groups).group_by(groups)
    return curves.agg(at=median(), chains=pl.len(), censored=pl.col("censored").sum())


def firsts(
    table: pl.DataFrame, chosen: Sequence[Sign], keys: Sequence[str], cells: Sequence[str]
) -> list[dict[str, str]]:
    """Per cell: how many chains lose each sign first."""
    cell_of = table.select("chain_id", "cell").unique("chain_id")
    firsts = first_crossings(table, keys).join(cell_of, on="chain_id", how="left")
    others = {"tie": "several at once", "open": "order unknown", "none": "nothing lost"}
    rows = []
    for cell in cells:
        group = firsts.filter(pl.col("cell") == cell)
        if not group.is_empty():
            lost = Counter(group.filter(pl.col("order") == "first")["metric"])
            ends = Counter(group["order"])
            row = {"cell": cell, "chains": f"{group.height:,}"}
            row |= {f"{sign.name} first": str(lost[sign.metric]) for sign in chosen}
            rows.append(row | {text: str(ends[kind]) for kind, text in others.items()})
    return rows


def onsets(table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str]) -> list[dict[str, str]]:
    """Per cell and sign: the chains that lost it, the median onset, and the chains without a verdict."""
    medians = {(cell, sign): at for cell, sign, at, *_ in _medians(table, "cell", "sign").iter_rows()}
    rows: list[dict[str, str]] = []
    for cell, sign in product(cells, chosen):
        statuses = table.filter(pl.col("cell") == cell, pl.col("sign") == sign.name)["status"]
        if statuses.is_empty():
            continue
        lost, known = (statuses == "collapsed").sum(), (statuses != "failed").sum()
        at = medians.get((cell, sign.name))
        reached = number(at) if at is not None else ("not reached" if known else "–")
        rows.append(
            {
                "cell": cell,
                "sign": sign.name,
                "lost by": f"{lost} of {known}",
                "median onset (generations)": reached,
                "no verdict": str(len(statuses) - known),
            }
        )
    return rows


def _spread(table: pl.DataFrame) -> pl.DataFrame:
    """Median, lowest and highest by sign and generation, where every chain has a value."""
    value = pl.col("left").filter(pl.col("left").is_finite())
    ends = {"value": value.median(), "low": value.min(), "high": value.max()}
    spread = complete(table.rename({"chain_id": "chain"}), "sign", **ends, chains=value.count())
    return spread.sort("sign", "generation")


def _colour_and_shape(chosen: Sequence[Sign]) -> tuple[alt.Color, alt.Shape]:
    names = [sign.name for sign in chosen]
    legend: dict[str, Any] = {"orient": "top", "columns": 3, "labelLimit": 320, "symbolLimit": 0}
    colour = by_name(alt.Color, "sign", names, PALETTE, alt.Legend(**legend, symbolOpacity=1))
    return colour, by_name(alt.Shape, "sign", names, SHAPES, alt.Legend(**legend))
