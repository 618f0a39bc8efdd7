"""A study of thousands of chains that has ended whole is recognised by one chain of each cell.

Its replay would open every stage, a few hundred thousand files or requests, and make every sample text and picture
anew. What determines a stage (the recipe, the code's versions, data and models) is the same for all seeds of a cell: if
the first chain's stages are those that the last run's table names, so are the others', and it remains to see that
none has gone. Damage to a stage that nobody opens is found when somebody does.
"""

import polars as pl

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.work import Grid, Work, replay

MANY = 1000  # chains: of fewer, each is replayed
_OF_THE_RUN = ("reused", "computed_seconds")


def recognised(study: Study, work: Work, store: StageStore, recorder: Recorder) -> bool:
    """Whether the last run of a study has ended whole and everything is still as it was; then nothing is left to run,
    and the tables stay as they are."""
    if not isinstance(work, Grid) or len(study.chains) < MANY or any(cell.recipe.batched for cell in study.cells):
        return False
    table = recorder.whole_before()
    if table is None or {*table["chain_id"]} != {chain.chain_id for chain in study.members}:
        return False
    if not all(_as_before(work, cell, store, table) for cell in study.cells):
        return False
    hashes = pl.concat([table["stage"], table["synthetic_stage"]]).drop_nulls().unique()
    if not store.has_all(hashes.to_list()):
        return False
    recorder.keep(table.with_columns(reused=pl.lit(True), computed_seconds=pl.lit(0.0)))
    work.finish()
    return True


def _as_before(work: Work, chain: Chain, store: StageStore, table: pl.DataFrame) -> bool:
    """Whether a chain's replay gives the rows that the table has."""
    held = replay(work.job(chain.chain_id), store)
    rows = [result.row for result in held.results if isinstance(result, GenerationResult)]
    replayed = pl.DataFrame(rows, schema=table.schema, strict=False).drop(_OF_THE_RUN)
    replayed = replayed.sort("chain_id", "generation")
    ids = [member.chain_id for member in chain.members]
    before = table.filter(pl.col("chain_id").is_in(ids)).sort("chain_id", "generation").drop(_OF_THE_RUN)
    return held.missing is None and replayed.equals(before)
