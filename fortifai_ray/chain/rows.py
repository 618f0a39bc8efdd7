"""Build the rows of ``generations.parquet``, for a chain and for a cohort."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from fortifai_ray.chain.recursion import Generation
from fortifai_ray.results.schema import LINEAGE, RECIPE_COLUMNS, SECONDS, generations_schema
from fortifai_ray.storage.store import Stage
from fortifai_ray.study.study import Chain

# A value as a column holds it: a table for each row would take milliseconds.
_PYTHON: dict[Any, Callable[[Any], Any]] = {pl.Float64: float, pl.Int64: int, pl.Boolean: bool, pl.String: str}


def generation_rows(chains: Sequence[Chain], measured: pl.DataFrame) -> pl.DataFrame:
    """The rows of chains that differ only in their seed, in the columns of :mod:`fortifai_ray.results.schema`.

    Args:
        measured: a row per seed and generation with ``seed, generation``, the sizes, the metrics and how the generation
            ran; the columns it lacks become null.
    """
    recipe, varied = chains[0].recipe, chains[0].varied
    flat, schema = recipe.flat(), generations_schema(varied, chains[0].metrics)
    fixed = {**varied, **{key: flat.get(key) for key in RECIPE_COLUMNS}, "unit": recipe.unit}
    ids = {chain.recipe.seed: chain.chain_id for chain in chains}
    own: dict[str, Any] = {"chain_id": [ids[seed] for seed in measured["seed"].to_list()]}
    fixed[LINEAGE] = chains[0].lineage
    size = measured["human_size"] + measured["synthetic_size"]
    own["synthetic_ratio_realised"] = (measured["synthetic_size"] / size).set(size == 0, None)

    def column(name: str) -> pl.Series:
        if name in measured.columns:
            return measured[name]
        return pl.Series(name, own.get(name) if name in own else [fixed.get(name)] * measured.height)

    # Column by column: a query takes milliseconds, however few the rows.
    columns = {name: column(name).alias(name) for name in schema}
    return pl.DataFrame(
        [values if schema[name] is None else values.cast(schema[name]) for name, values in columns.items()]
    )


def chain_row(chain: Chain, generation: Generation[Stage], consumed: int, ended: str | None) -> dict[str, Any]:
    """The row of one generation of a chain.

    Args:
        consumed: synthetic tokens or samples that the chain has trained on so far, this generation included.
        ended: why the chain ends with this generation; None where it does not.
    """
    recipe, stages = chain.recipe, list(stages_of(generation))
    outputs: dict[str, Any] = {name: value for stage in stages for name, value in stage.outputs.items()}
    if by_epoch := outputs.get("gamma_by_epoch"):
        outputs["gamma_last_epoch"] = by_epoch[-1]
    measured = {
        "seed": recipe.seed,
        "generation": generation.number,
        "human_size": generation.data.human_size,
        "synthetic_size": generation.data.synthetic_size,
        "synthetic_size_cum": consumed,
        **{name: outputs.get(name) for name in chain.metrics},
        **_seconds(stages),
        "reused": all(stage.reused for stage in stages),
        "computed_seconds": sum(_seconds([stage for stage in stages if not stage.reused]).values()),
        "world_size": outputs.get("world_size"),
        "ended": ended,
        "collapse_reason": generation.collapse_reason,
        "stage": generation.model.hash if generation.model is not None else None,
        "synthetic_stage": generation.curated.stage.hash if generation.curated is not None else None,
    }
    size = generation.data.human_size + generation.data.synthetic_size
    flat = recipe.flat()
    known = {
        **chain.varied,
        **{key: flat.get(key) for key in RECIPE_COLUMNS},
        "chain_id": chain.chain_id,
        LINEAGE: chain.lineage,
        "unit": recipe.unit,
        "synthetic_ratio_realised": generation.data.synthetic_size / size if size > 0 else None,
        **measured,
    }
    schema = generations_schema(chain.varied, chain.metrics)
    values = {name: known.get(name) for name in schema}
    return {n: v if v is None or schema[n] is None else _PYTHON[schema[n]](v) for n, v in values.items()}


def stages_of(generation: Generation[Stage]) -> Iterator[Stage]:
    """Every stage of a generation, each once."""
    written, curated = generation.synthetic, generation.curated
    before = (generation.judged, generation.model, generation.scores, generation.compared)
    yield from (stage for stage in before if stage is not None)
    if written is not None:
        yield from (written.stage, *written.measures)
    if curated is not None and curated is not written:
        yield from (curated.stage, *curated.measures)


def _seconds(stages: Sequence[Stage]) -> dict[str, float]:
    """The useful seconds of some stages, whenever they were computed."""
    return {name: sum(float(stage.outputs.get(name) or 0.0) for stage in stages) for name in SECONDS}
