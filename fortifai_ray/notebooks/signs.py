"""What collapses first: signs of collapse on one scale, and the order in which chains lose them.

The scale is the *fidelity left*: 1 is the chain's own generation 0, and 0 is everything lost. For a metric that
collapse moves down it is the value over generation 0's, both over chance where the metric has one
(:func:`fortifai_ray.evaluation.metrics.fidelity`); for one that it moves up, generation 0's over the value: perplexity
that doubled has half left. A sign is *lost* where less than a given share is left, which is a
:class:`~fortifai_ray.statistics.CollapseCriterion` like any other; so curves and onsets tell the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from fortifai_ray.evaluation.metrics import METRICS
from fortifai_ray.notebooks.opening import failed, generations_asked, varied
from fortifai_ray.report.metrics import describe, is_bookkeeping
from fortifai_ray.results.reader import Results
from fortifai_ray.results.words import number
from fortifai_ray.statistics import CollapseCriterion, chain_table

# What is asked about first, and the metrics that show it, the best one first.
ROLES: Mapping[str, Sequence[str]] = {
    "tails": ("tail_coverage", "coverage", "modes", "support_ratio", "support"),
    "facts": ("kr_accuracy", "kr_accuracy_per_byte", "gsm8k_accuracy"),
    "grammar": ("blimp_accuracy",),
    "repetition": ("distinct_3", "distinct_2", "self_bleu", "compression_ratio", "mean_repeated_span"),
    "fit": ("perplexity", "held_out_nll", "kl_divergence", "wasserstein", "reconstruction_nll"),
    "variety": ("class_entropy", "classes_present", "heterozygosity", "entropy", "trace_ratio"),
}
CONFIRM = 1


@dataclass(frozen=True)
class Sign:
    """A metric as a sign of collapse; ``role`` is what it is shown for (empty: it was picked by hand)."""

    metric: str
    role: str = ""

    @property
    def name(self) -> str:
        """``tails: tail coverage``."""
        title, _, _ = describe(self.metric).title.partition(" (")
        return f"{self.role}: {title}" if self.role else title

    @property
    def chance(self) -> float | None:
        """What guessing scores."""
        known = METRICS.get(self.metric)
        return known.chance if known else None

    def criterion(self, left: float) -> CollapseCriterion:
        """The criterion that less than ``left`` of the fidelity is left."""
        up = describe(self.metric).direction == "above"
        return CollapseCriterion(
            metric=self.metric,
            threshold=1 / left if up else left,
            direction="above" if up else "below",
            relative_to="own_generation_0",
            confirm=CONFIRM,
            chance=None if up else self.chance,
        )


def signs(results: Results) -> tuple[list[Sign], dict[str, str]]:
    """The metrics that can be put on the scale, those with a role first, and why others cannot.

    A metric needs a known direction of collapse and, in generation 0 of at least half of its chains, something to
    lose (:func:`has_something_to_lose`).
    """
    table, roles = results.generations, {metric: role for role, metrics in ROLES.items() for metric in metrics}
    ranked = [metric for metrics in ROLES.values() for metric in metrics]
    names = [name for name in table.columns if table[name].dtype.is_numeric() and describe(name).direction]
    found, refused = [], {}
    for metric in sorted(names, key=lambda name: ranked.index(name) if name in ranked else len(ranked)):
        if is_bookkeeping(metric) or table[metric].count() == 0 or metric == "kept_fraction":
            continue
        sign = Sign(metric, roles.get(metric, ""))
        starts = table.filter(pl.col("generation") == 0, pl.col(metric).is_not_null())
        able = starts.filter(has_something_to_lose(sign, table.columns)).height
        if able and 2 * able >= starts.height:
            found.append(sign)
        else:
            refused[metric] = _refusal(sign, starts[metric], able)
    return found, refused


def has_something_to_lose(sign: Sign, columns: Sequence[str]) -> pl.Expr:
    """An expression on rows of generation 0: whether the value lies above 0, or its interval above chance.

    An accuracy whose interval holds chance may be guessing, and what falls from there is noise. Where the table has no
    interval (``…_low``) the value itself is taken.
    """
    if describe(sign.metric).direction == "above" or sign.chance is None:
        return pl.col(sign.metric) > 0
    low = f"{sign.metric}_low"
    return pl.col(low if low in columns else sign.metric) > sign.chance


def _refusal(sign: Sign, starts: pl.Series, able: int) -> str:
    span = f"{number(float(str(starts.min())))} to {number(float(str(starts.max())))}"
    if sign.chance is None:
        return f"{sign.name} is left out: not above 0 in generation 0 ({span}), so that there is nothing to lose."
    told = f"{sign.name} is left out: in generation 0 ({span}) it can be told from guessing ({sign.chance:g})"
    advice = "What is not there cannot be seen to go: score more questions, or start from a better model."
    return f"{told} in {able} of {starts.len()} chains. {advice}"


def first_choice(found: Sequence[Sign]) -> list[Sign]:
    """The best sign of each role; the first few where there is but one role."""
    best: dict[str, Sign] = {}
    for sign in found:
        if sign.role:
            best.setdefault(sign.role, sign)
    return list(best.values()) if len(best) > 1 else list(found[:4])


def fidelity_left(results: Results, chosen: Sequence[Sign]) -> pl.DataFrame:
    """The fidelity left of each sign: ``chain_id, cell, seed, generation, sign, left`` (null: not measured).

    Chains whose generation 0 has nothing to lose (:func:`has_something_to_lose`) are left out of that sign.
    """
    named = results.cells.name(results.generations).filter(pl.col("cell").is_not_null())
    parts = []
    for sign in chosen:
        chance = 0.0 if describe(sign.metric).direction == "above" else sign.chance or 0.0
        value = pl.col(sign.metric).cast(pl.Float64)
        start = value.filter(pl.col("generation") == 0).first().over("chain_id")
        share = (value - chance) / (start - chance)
        left = 1 / share if describe(sign.metric).direction == "above" else share
        rows = named.filter(pl.col("chain_id").is_in(_able(results, sign)))
        parts.append(rows.select("chain_id", "cell", "seed", "generation", sign=pl.lit(sign.name), left=left))
    if not parts:
        return pl.DataFrame(schema={"chain_id": pl.String, "cell": pl.String, "sign": pl.String, "left": pl.Float64})
    return pl.concat(parts)


def losses(results: Results, chosen: Sequence[Sign], left: Sequence[float]) -> pl.DataFrame:
    """When each chain lost each sign, at each of some shares left: :func:`~fortifai_ray.statistics.chain_table`'s rows
    with ``sign`` and ``left``. A chain whose generation 0 has nothing to lose has no verdict: it is ``failed``.

    Raises:
        ValueError, UserError: as the table.
    """
    asked, keys, lost = generations_asked(results), varied(results), failed(results)
    told = {sign.criterion(share): (sign.name, share) for share in left for sign in chosen}
    table = chain_table(results.generations, list(told), results.baseline, keys, asked, failed=lost)
    names = pl.DataFrame(
        [(c.metric, c.threshold, name, share) for c, (name, share) in told.items()],
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


def _able(results: Results, sign: Sign) -> list[str]:
    """The chains whose generation 0 has something to lose."""
    starts = results.generations.filter(pl.col("generation") == 0)
    return starts.filter(has_something_to_lose(sign, starts.columns))["chain_id"].to_list()
