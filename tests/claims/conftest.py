"""Small studies made by hand, and claims on them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from fortifai_ray.claims.check import check_claims
from fortifai_ray.claims.result import ClaimResult
from fortifai_ray.results.schema import write_table
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table

BASELINE = {"loss.kind": "cross_entropy"}
CRITERIA = [
    CollapseCriterion(metric="perplexity", threshold=2.0, direction="above", confirm=0),
    CollapseCriterion(metric="tail", threshold=0.5, direction="below", confirm=1, relative_to="own_generation_0"),
]
Chains = Mapping[tuple[Any, ...], Mapping[str, Sequence[float | None]]]


class MadeStudy:
    """A study's folder made of chains given by hand: ``(loss, gamma, seed) -> {metric: values by generation}``."""

    def __init__(self, folder: Path, chains: Chains, generations: int, failed: Sequence[str] = ()) -> None:
        self.folder = folder
        (folder / "results").mkdir(parents=True)
        rows = [row for key, metrics in chains.items() for row in _rows(key, metrics)]
        self.generations = pl.DataFrame(rows, infer_schema_length=None)
        self.write("generations", self.generations)
        varied = ["loss.kind", "loss.gamma", "seed"]
        criteria = [criterion for criterion in CRITERIA if criterion.metric in self.generations.columns]
        if criteria:
            table = chain_table(self.generations, criteria, BASELINE, varied, generations, failed=failed)
            self.write("chains", table)
            self.write("fidelity", fidelity_table(table, varied, BASELINE))
        self.study = {
            "name": folder.name,
            "family": {"kind": "gaussian", "dim": 3},
            "vary": {"loss.kind": [None], "loss.gamma": [None], "seed": [None]},
            "generations": generations,
            "collapse": [criterion.model_dump() for criterion in criteria],
            "baseline": BASELINE,
        }

    def write(self, name: str, table: pl.DataFrame) -> None:
        write_table(self.folder, name, table)

    def check(self, *claims: Mapping[str, Any], ids: Sequence[str] = ()) -> list[ClaimResult]:
        """Write the claims into study.yaml, defaults filled in, and check them."""
        full = [
            {"id": f"claim-{i}", "source": "Doe 2024", "kind": "theory", "relation": "at_least", "value": 0.0, **claim}
            for i, claim in enumerate(claims)
        ]
        (self.folder / "study.yaml").write_text(yaml.safe_dump({**self.study, "claims": full}))
        return check_claims(self.folder, ids)

    def one(self, statistic: Mapping[str, Any], **rest: Any) -> ClaimResult:
        return self.check({"statistic": statistic, **rest})[0]


def _rows(key: tuple[Any, ...], metrics: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    loss, gamma, seed = key
    count = max(len(values) for values in metrics.values())
    return [
        {
            "chain_id": f"{loss}-{gamma}-{seed}",
            "generation": generation,
            "seed": seed,
            "family.kind": "gaussian",
            "loss.kind": loss,
            "loss.gamma": gamma,
            "regime.kind": "replace",
            "synthetic_size_cum": 100 * generation,
            **{name: values[generation] for name, values in metrics.items()},
        }
        for generation in range(count)
    ]


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., MadeStudy]:
    """Makes a study of chains given by hand."""

    def make(chains: Chains, generations: int = 6, failed: Sequence[str] = (), name: str = "made") -> MadeStudy:
        return MadeStudy(tmp_path / name, chains, generations, failed)

    return make
