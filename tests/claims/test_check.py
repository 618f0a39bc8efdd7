"""Checking a study's directory: what is written and printed, the exit code, and bad input."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from fortifai_ray.claims.check import check_claims
from fortifai_ray.claims.result import claims_table, exit_code, print_claims, write_claims
from fortifai_ray.errors import UserError

MEAN = {"kind": "metric", "metric": "trace_ratio", "at": 1}


def _study(make_study: Any, seeds: int = 40, mean: float = 0.9) -> Any:
    values = np.random.default_rng(1).normal(mean, 0.05, seeds)
    return make_study(
        {("cross_entropy", None, seed): {"trace_ratio": [1.0, float(v)]} for seed, v in enumerate(values)},
        generations=2,
    )


def _printed(results: Any) -> list[str]:
    text = io.StringIO()
    print_claims(results, Console(file=text, width=60))
    return text.getvalue().splitlines()


def test_verdicts_exit_code_table_and_lines(make_study: Any) -> None:
    study = _study(make_study)
    claims = [
        {"id": "shrinks", "statistic": MEAN, "relation": "less", "value": 0.95},
        {"id": "grows", "statistic": MEAN, "relation": "greater", "value": 1.0, "kind": "replication"},
        {"id": "sharp", "statistic": MEAN, "relation": "at_most", "value": 0.9, "kind": "replication"},
    ]
    results = study.check(*claims)
    assert [result.verdict for result in results] == ["holds", "does not hold", "undecided"]
    assert exit_code(results) == 0  # a replication that fails is a finding
    assert exit_code([*results[:1], *study.check({**claims[1], "kind": "theory"})]) == 1
    assert exit_code(study.check({**claims[2], "kind": "theory"})) == 1
    table = pl.read_parquet(write_claims(study.folder, results))
    assert table.equals(claims_table(results))
    assert table["id"].to_list() == ["shrinks", "grows", "sharp"]
    assert table.row(0, named=True)["accepted_high"] == table.row(0, named=True)["value"] == 0.95
    assert [result.asked for result in results] == ["< 0.95", "> 1", "≤ 0.9"]
    lines = _printed(results)
    assert lines[0].startswith("holds         theory      shrinks: 0.9")
    assert "at 99 %; asked < 0.95; 40 chains, number fixed beforehand; mean of trace_ratio at generation 1" in lines[0]
    assert lines[3] == "theory: 1 holds · replication: 1 does not hold, 1 undecided"
    assert "any of the 2 decided verdicts is wrong is at most 0.02" in lines[4]


def test_too_few_chains_have_no_verdict_whatever_they_say(make_study: Any) -> None:
    asked = {"statistic": MEAN, "relation": "less", "value": 0.95}
    result = _study(make_study).check({**asked, "min_chains": 41})[0]
    assert result.verdict == "undecided"
    assert result.why == "40 chains, and the claim asks for at least 41"
    one = _study_of_one(make_study).check({**asked, "min_chains": 1})[0]
    assert (one.verdict, one.measured, one.n_chains) == ("undecided", None, 1)
    assert "at least two seeds" in one.why


def _study_of_one(make_study: Any) -> Any:
    return make_study({("cross_entropy", None, 0): {"trace_ratio": [1.0, 0.5]}}, generations=2, name="one")


def test_chains_that_all_agree_are_decided_and_say_so(make_study: Any) -> None:
    study = make_study({("cross_entropy", None, s): {"support": [9.0, 4.0]} for s in range(2)}, generations=2)
    result = study.one({"kind": "metric", "metric": "support"}, relation="equals", value=4, tolerance={"absolute": 0})
    assert (result.verdict, result.method) == ("holds", "the same in all chains")


def test_ids_choose_claims_and_an_unknown_one_is_refused(make_study: Any) -> None:
    study = _study(make_study)
    claims = [{"id": name, "statistic": MEAN} for name in ("first", "second")]
    assert [result.id for result in study.check(*claims, ids=["second"])] == ["second"]
    with pytest.raises(UserError, match="no claim has the id 'secnd'; did you mean second"):
        study.check(*claims, ids=["secnd"])


def test_a_study_without_claims_says_so(make_study: Any) -> None:
    results = _study(make_study).check()
    assert (results, exit_code(results)) == ([], 0)
    assert _printed(results) == ["this study makes no claims"]


def test_what_is_missing_or_broken_is_one_line(make_study: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study\.yaml not found: give the directory of a study"):
        check_claims(tmp_path / "nowhere")
    study = _study(make_study)
    with pytest.raises(UserError, match=r"claims\.0\.level: a number less than 1 is needed, not 2"):
        study.check({"statistic": MEAN, "level": 2})
    (study.folder / "results" / "chains.parquet").write_bytes(b"no table")
    study.study["collapse"] = [{"metric": "trace_ratio"}]
    with pytest.raises(UserError, match=r"chains\.parquet cannot be read as Parquet"):
        study.check({"statistic": {"kind": "onset_share"}})
    (study.folder / "results" / "chains.parquet").unlink()
    assert study.one({"kind": "onset_share"}).why == "results/chains.parquet is missing"
    (study.folder / "results" / "generations.parquet").unlink()
    with pytest.raises(UserError, match=r"generations\.parquet not found: run or resume the sweep"):
        check_claims(study.folder)


def test_checking_twice_gives_the_same(make_study: Any) -> None:
    """A skewed sample's interval does not depend on when it is computed."""
    values = np.random.default_rng(2).lognormal(0, 1.5, 30)
    study = make_study(
        {("cross_entropy", None, s): {"trace_ratio": [1.0, float(v)]} for s, v in enumerate(values)}, generations=2
    )
    statistic = {**MEAN, "over_generation_0": "ratio", "summary": "ratio_of_means"}
    first, second = study.one(statistic), study.one(statistic)
    assert "Johnson" in first.method
    assert first == second


def test_a_varied_key_of_words_and_numbers_matches(make_study: Any) -> None:
    """Such a key is kept as text, and a claim names it as its study file does."""
    study = _study(make_study, seeds=6)
    table = study.generations.with_columns(
        pl.when(pl.col("seed") < 3).then(pl.lit("0.1")).otherwise(pl.lit("scott")).alias("family.bandwidth")
    )
    study.write("generations", table)
    assert study.one(MEAN, where={"family.bandwidth": 0.1}).n_chains == 3
    assert study.one(MEAN, where={"family.bandwidth": [0.1, "scott"]}).n_chains == 6
    assert yaml.safe_load((study.folder / "study.yaml").read_text())["claims"]
