"""The texts that a study keeps samples of: the same prompt through the generations, cells side by side."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.report.samples import SampleTable, sample_tables
from fortifai_ray.results.reader import Results

_MOST_PROMPTS = 200
_MOST_CHARACTERS = 90  # of a prompt in the list to pick from


def prompts(results: Results) -> dict[str, pl.Expr]:
    """What can be followed through the generations, by its name in a list: prompts, or rows where prompts change.

    Raises:
        UserError: the study keeps no sample texts.
    """
    samples = results.samples
    if samples is None or samples.is_empty():
        raise UserError("this study keeps no sample texts: only language models write them (results/samples.parquet)")
    seen = samples.group_by("prompt_text", maintain_order=True).agg(
        pl.col("generation").n_unique().alias("generations")
    )
    recurring = seen.filter(pl.col("generations") > 1)["prompt_text"].to_list()
    if samples["generation"].n_unique() > 1 and not recurring:
        rows = samples["row"].unique().sort().to_list()[:_MOST_PROMPTS]
        return {f"row {row} (each generation has a prompt of its own)": pl.col("row") == row for row in rows}
    texts = recurring or seen["prompt_text"].to_list()
    found: dict[str, pl.Expr] = {}
    for place, text in enumerate(texts[:_MOST_PROMPTS]):
        words = " ".join((text or "(no prompt)").split())
        found[f"{place + 1}. {words[:_MOST_CHARACTERS]}"] = pl.col("prompt_text").eq_missing(pl.lit(text))
    return found


def seeds(results: Results, table: pl.DataFrame) -> list[int]:
    """The seeds of the chains that a table (samples or pictures) has rows of."""
    known = results.generations.select("chain_id", "seed").unique()
    return known.join(table.select("chain_id").unique(), on="chain_id")["seed"].unique().sort().to_list()


def passage(results: Results, prompt: pl.Expr, seed: int) -> SampleTable:
    """One prompt's continuations by generation and cell, in the chains of one seed.

    Raises:
        UserError: that seed has no sample of it.
    """
    assert results.samples is not None
    chains = results.generations.filter(pl.col("seed") == seed)["chain_id"].unique().to_list()
    picked = results.samples.filter(prompt, pl.col("chain_id").is_in(chains))
    tables, _ = sample_tables(replace(results, samples=picked))
    if not tables:
        raise UserError(f"seed {seed} has no sample of this prompt")
    return tables[0]
