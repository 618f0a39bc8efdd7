"""What the statistics need to know of any collection of chains, be it a study's or a history that was made elsewhere,
and the two tables that follow from that."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from fortifai_ray.results.schema import LINEAGE
from fortifai_ray.statistics.chains import Reference, chain_table
from fortifai_ray.statistics.criterion import Collapse
from fortifai_ray.statistics.ecosystems import of_human_data, with_wholes
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.ratios import Baseline


@dataclass(frozen=True)
class Terms:
    """On which terms chains are judged.

    Attributes:
        criteria: what collapse is.
        baseline: the keys and values that make a chain the baseline
            (:class:`~fortifai_ray.statistics.ratios.PlainBaseline` where keys that share a prefix are no section).
        varied: the columns that tell the chains apart, the seed among them.
        generations_asked: the horizon is one less.
    """

    criteria: Sequence[Collapse]
    baseline: Baseline
    varied: Sequence[str]
    generations_asked: int

    def chains(
        self,
        generations: pl.DataFrame | pl.LazyFrame,
        *,
        failed: Collection[str] = (),
        roster: pl.DataFrame | None = None,
        references: Collection[Reference] = (),
    ) -> pl.DataFrame:
        """``chains.parquet``: arguments and errors as :func:`~fortifai_ray.statistics.chains.chain_table` has them;
        with the rows of :func:`~fortifai_ray.statistics.ecosystems.with_wholes`."""
        asked = (self.criteria, self.baseline, self.varied, self.generations_asked)
        judged = chain_table(generations, *asked, failed=failed, roster=roster, references=references)
        return with_wholes(judged, self.varied, of_human_data(generations)) if LINEAGE in self.varied else judged

    def fidelity(self, chains: pl.DataFrame) -> pl.DataFrame:
        """``fidelity.parquet`` of :meth:`chains`."""
        return fidelity_table(chains, self.varied, self.baseline)
