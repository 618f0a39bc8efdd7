"""One reader of a study's folder: what it refuses, what it notes, and what it derives from the study file."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from fortifai_ray.claims.check import check_claims
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import WrittenBy
from fortifai_ray.families.language.written import read_written
from fortifai_ray.report import write_report
from fortifai_ray.results import reader
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import write_table
from support.opening import open_folder

STUDY: dict[str, Any] = {
    "name": "small",
    "family": {"kind": "gaussian", "dim": 2},
    "generations": 2,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}], "seed": [0, 1]},
    "collapse": [{"metric": "kl_divergence", "threshold": 0.5, "direction": "above", "relative_to": "absolute"}],
    "baseline": {"loss.kind": "cross_entropy"},
    "claims": [
        {
            "id": "grows",
            "source": "Doe 2024",
            "kind": "theory",
            "statistic": {"kind": "metric", "metric": "kl_divergence"},
            "relation": "greater",
            "value": 0,
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with two losses, two seeds and two generations; no table but its generations."""
    rows = [
        {
            "chain_id": f"{kind}-{seed}",
            "generation": generation,
            "seed": seed,
            "family.kind": "gaussian",
            "loss.kind": kind,
            "loss.gamma": gamma,
            "kl_divergence": 0.1 + generation,
            "synthetic_size_cum": 100 * generation,
        }
        for kind, gamma in (("cross_entropy", None), ("tce", 0.9))
        for seed in (0, 1)
        for generation in (0, 1)
    ]
    write_table(tmp_path / "small", "generations", pl.DataFrame(rows, infer_schema_length=None))
    (tmp_path / "small" / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path / "small"


READERS: dict[str, Callable[[Path], object]] = {
    "report": write_report,
    "claims": check_claims,
    "notebooks": open_folder,
    "written_by": lambda folder: read_written(WrittenBy(study=str(folder))),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_table_of_an_older_version_is_refused_in_one_line(folder: Path, reader: str) -> None:
    path = folder / "results" / "generations.parquet"
    pl.DataFrame({"chain_id": ["a"], "generation": [0], "seed": [0], "loss": ["tce"]}).write_parquet(path)
    with pytest.raises(UserError) as error:
        READERS[reader](folder)
    assert str(error.value) == (
        f"{path} was written by an older version (its columns have other names): sweep the study again; "
        "nothing is recomputed"
    )


@pytest.mark.parametrize("reader", ["report", "claims", "notebooks"])
def test_a_key_given_twice_is_refused_by_every_reader(folder: Path, reader: str) -> None:
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(f"{text}seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match=r"study\.yaml: line \d+, column 1: is not valid YAML: .*'seed'.* twice"):
        READERS[reader](folder)


@pytest.mark.parametrize(
    ("where", "n_chains"),
    [
        ({"loss.kind": "tce"}, 2),
        ({"loss.gamma": 0.9}, 2),
        ({"loss.gamma": None}, 2),
        ({"loss.kind": ["tce", "cross_entropy"], "seed": 1}, 1),  # chains of one seed are averaged
        ({"family.kind": "gaussian"}, 2),
        ({"family.dim": 2}, 2),  # no column: the recipe's
        ({"family.dim": 3}, "no chain matches"),
        ({"loss": "tce"}, "neither the table nor the recipe has a key loss"),
        ({"gamma": 0.9}, "neither the table nor the recipe has a key gamma"),
    ],
)
def test_where_names_the_recipes_dotted_keys(folder: Path, where: dict[str, Any], n_chains: int | str) -> None:
    claim = {**STUDY["claims"][0], "where": where, "min_chains": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, "claims": [claim]}))
    [result] = check_claims(folder)
    assert (result.n_chains if isinstance(n_chains, int) else result.why) == n_chains


def test_what_follows_from_the_study_file(folder: Path) -> None:
    results = open_study(folder)
    assert (results.name, results.generations_asked, results.varied) == ("small", 2, ["loss.kind", "loss.gamma"])
    assert results.cells.order == ["cross entropy", "TCE γ=0.9"]
    assert [criterion.metric for criterion in results.criteria] == ["kl_divergence"]
    for vary, generations in (([3, 5], 5), ({"start": 2, "count": 3}, 4)):
        study = {key: value for key, value in STUDY.items() if key != "generations"} | {"vary": {"generations": vary}}
        assert results.replace(study=study).generations_asked == generations
    with pytest.raises(UserError, match=r"study\.yaml: generations: missing"):
        _ = results.replace(study={"name": "x"}).generations_asked


def test_missing_tables_are_noted_or_computed(folder: Path) -> None:
    results = open_study(folder)
    assert (results.chains, results.fidelity, results.failed) == (None, None, [])
    lost = ["onsets are not shown", "fidelity intervals and ratios are not shown", "claims have not been checked"]
    assert [any(text in note for note in results.notes) for text in lost] == [True] * 3
    judged = open_study(folder, judge=True)
    assert judged.chains is not None
    assert judged.fidelity is not None
    assert judged.chains["status"].unique().to_list() == ["unconfirmed"]
    assert not any("onsets" in note for note in judged.notes)
    spaced = folder.rename(folder.with_name("my study's"))
    command = f"`fortifai claims {shlex.quote(str(spaced))}`"
    assert any(command in note for note in open_study(spaced).notes), "a command that can be pasted into a shell"


@pytest.mark.parametrize("chains", [1, 3, 1000])
def test_a_table_in_batches_is_the_table(folder: Path, chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once, those of a chain together, and of chains that have none nothing."""
    monkeypatch.setattr(reader, "_BATCH", chains)
    names = ["tce-1", "cross_entropy-0", "tce-0"]
    rows = [{"chain_id": name, "generation": g, "details": f"{name} {g}"} for name in names for g in (0, 1)]
    write_table(folder, "details", pl.DataFrame(rows))
    results = open_study(folder)
    batches = list(results.batches("details"))
    assert len(batches) == -(-4 // chains)
    assert_frame_equal(pl.concat(batches), pl.DataFrame(rows), check_row_order=False)
    assert results.details is not None
    assert results.details.columns == ["chain_id", "generation"]
    assert list(results.batches("pictures")) == []
