"""A table of millions of rows is queried where it lies: what is shown and claimed is the same as of one read whole."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from report.studies import CELLS, write_study

from fortifai_ray.claims.check import check_claims
from fortifai_ray.report import page
from fortifai_ray.results import reader
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.results.schema import read_table, table_path, write_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.tracking.content import seed_quantiles

CLAIMS: list[dict[str, Any]] = [
    {"id": "metric", "statistic": {"kind": "metric", "metric": "perplexity", "at": 2}},
    {
        "id": "ratio",
        "statistic": {"kind": "metric", "metric": "perplexity", "at": "last", "over_generation_0": "ratio"},
    },
    {"id": "slope", "statistic": {"kind": "slope", "metric": "perplexity", "start": 1}},
    {"id": "fidelity", "statistic": {"kind": "fi_ratio"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells with few chains and with many, a value that is not finite, a failed chain, claims."""
    made = write_study(
        tmp_path_factory.mktemp("large"),
        seeds=14,
        perplexity={(0.3, 3, 2): float("inf"), (0.9, 1, 1): float("nan")},
        failed=["tce-0.3-0"],
    )
    table = read_table(made, "generations")
    assert table is not None
    few = (pl.col("loss.kind") == "cross_entropy") & (pl.col("seed") > 3)
    write_table(made, "generations", table.filter(~few).sample(fraction=1.0, shuffle=True, seed=5))
    about = {"source": "nobody", "kind": "replication", "relation": "greater", "value": 1.0}
    where = {"loss.kind": "tce", "loss.gamma": 0.3}
    file = made / "study.yaml"
    study = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**study, "claims": [{**about, **claim, "where": where} for claim in CLAIMS]}))
    return made


@pytest.fixture
def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StudyResults, StudyResults]:
    """Read whole, and queried."""
    whole = open_study(folder)
    assert not whole.generations.is_empty()
    assert table_path(folder, "generations").stat().st_size < reader._LARGE
    monkeypatch.setattr(reader, "_LARGE", 0)
    return whole, open_study(folder)


def test_the_report(both: tuple[StudyResults, StudyResults]) -> None:
    whole, queried = both
    assert page.curves(whole) == page.curves(queried)
    assert page.other_curves(whole) == page.other_curves(queried)
    assert page._counts(whole) == page._counts(queried)
    assert (whole.cells, whole.units, whole.varied, whole.notes) == (
        *(queried.cells, queried.units, queried.varied, queried.notes),
    )
    assert len(queried.cells.order) == len(CELLS)
    assert "generations" not in vars(queried)


def test_verdicts(both: tuple[StudyResults, StudyResults]) -> None:
    whole, queried = both
    one, other = (results.terms.chains(results.scanned, failed=["tce-0.3-0"]) for results in both)
    assert one.equals(other)
    by_hand = whole.terms.chains(whole.generations, failed=["tce-0.3-0"])
    assert by_hand.equals(other)
    assert isinstance(whole.criteria[0], CollapseCriterion)
    assert "generations" not in vars(queried)


def test_claims(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check_claims(folder)
    monkeypatch.setattr(reader, "_LARGE", 0)
    monkeypatch.setattr(StudyResults, "generations", property(lambda self: pytest.fail("the whole table was read")))
    assert check_claims(folder) == whole
    assert {"ratio", "fidelity"} <= {claim.id for claim in whole if claim.measured is not None}


def test_quantiles_over_seeds(folder: Path) -> None:
    table = read_table(folder, "generations")
    assert table is not None
    cell_of = dict(table.select("chain_id", pl.col("loss.kind")).unique().iter_rows())
    path = table_path(folder, "generations")
    scanned, read = (dict(seed_quantiles(one, cell_of, ["perplexity"])) for one in (pl.scan_parquet(path), table))
    assert repr(sorted(scanned.items())) == repr(sorted(read.items()))  # NaN is no equal of itself
