"""What collapses first: the report, a claim and the notebook apply one rule."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from fortifai_ray.claims.check import check_claims
from fortifai_ray.report.tables import order_tables
from fortifai_ray.statistics import intervals
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.order import crossing_order
from support.opening import open_folder
from support.signs import Sign, firsts, losses

from .large import write_tables

GENERATIONS = 10
TAILS = {"metric": "tail_coverage", "threshold": 0.5, "direction": "below"}
TEXT = {"metric": "perplexity", "threshold": 2.0, "direction": "above"}
NEVER = GENERATIONS
# For each chain: the generations from which its tails and its text are lost, and the last one with perplexity measured.
CHAINS = [
    (2, 5, 9),
    (5, 2, 9),
    (3, NEVER, 9),
    (NEVER, 4, 9),
    (NEVER, NEVER, 9),
    (9, 3, 9),
    (6, 7, 7),  # tails at 5.7; the text's crossing at 7 is unconfirmed and begins after that
    (6, 6, 7),  # the text's crossings at 6 and 7 confirm each other, unless a third is required
    (5, 7, 7),
]


def _study(folder: Path, confirm: int) -> Path:
    rows = [
        {
            "chain_id": f"chain-{seed}",
            "generation": generation,
            "seed": seed,
            "loss.kind": "cross_entropy",
            "synthetic_size_cum": 100 * generation,
            "tail_coverage": 0.2 if generation >= tails else 0.8,
            "perplexity": None if generation > last else 900.0 if generation >= text else 300.0,
        }
        for seed, (tails, text, last) in enumerate(CHAINS)
        for generation in range(GENERATIONS)
    ]
    shared = {"relative_to": "own_generation_0", "confirm": confirm}
    criteria = [CollapseCriterion.model_validate(part | shared) for part in (TAILS, TEXT)]
    study = write_tables(folder / "first", pl.DataFrame(rows), criteria, ["seed"], GENERATIONS, {"seed": [0]})
    content = yaml.safe_load((study / "study.yaml").read_text())
    claim = {"id": "tails-first", "source": "a test", "kind": "replication", "relation": "greater", "value": 0.5}
    claim |= {"statistic": {"kind": "onset_order", "first": "tail_coverage", "second": "perplexity"}}
    content |= {"generations": GENERATIONS, "claims": [claim | {"level": 0.9, "min_chains": 3}]}
    (study / "study.yaml").write_text(yaml.safe_dump(content))
    return study


@pytest.mark.parametrize(
    ("confirm", "expected"),
    [
        (1, {"first": 4, "second": 4, "tie": 0, "open": 1}),
        (2, {"first": 4, "second": 3, "tie": 0, "open": 2}),
    ],
)
def test_report_claim_and_notebook_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confirm: int, expected: dict[str, int]
) -> None:
    """Chains that end in unconfirmed crossings count alike in all three."""
    monkeypatch.setattr("support.signs.CONFIRM", confirm)
    study = _study(tmp_path, confirm)
    results = open_folder(study)
    assert results.chains is not None
    assert "unconfirmed" in results.chains["status"].to_list()

    [table] = order_tables(results)
    [report] = table.rows
    assert {kind: getattr(report, kind) for kind in expected} == expected

    [claim] = check_claims(study)
    share = intervals.share(report.first, report.second + report.tie, report.open, 0.9)
    assert (claim.measured, claim.low, claim.high) == (share.measured, share.low, share.high)

    chosen = [Sign("tail_coverage"), Sign("perplexity")]
    lost = losses(results, chosen, [0.5])
    pair = crossing_order(lost, ["seed"]).row(by_predicate=pl.col("metric") == "tail_coverage", named=True)
    notebook = {"first": pair["n_before"], "second": pair["n_after"], "tie": pair["n_tied"], "open": pair["n_open"]}
    assert notebook == expected
    [row] = firsts(lost, chosen, ["seed"], results.cells.order)
    assert [row[f"{sign.name} first"] for sign in chosen] == [str(expected["first"]), str(expected["second"])]
