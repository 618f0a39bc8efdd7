"""Cells that differ in any key are told apart: by a column, by their names, and by what the baseline is."""

from typing import Any

import pytest

from fortifai_ray.results.cells import ChainNames
from fortifai_ray.study.study import make_study

STUDY: dict[str, Any] = {
    "name": "apart",
    "family": {"kind": "discrete", "outcomes": 5},
    "generations": 3,
    "collapse": {"metric": "heterozygosity", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
}
CHOICE = {"kind": "choice", "of": 3}
MEAN = {"function": "statistics:mean"}
QUANTILES = {"function": "statistics:quantiles", "n": 4}
TWO, THREE = {"a": {}, "b": {}}, {"a": {}, "b": {}, "c": {}}
WEIGHTED = {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rewards by name": (
        {"curation": [{**CHOICE, "reward": one} for one in ("own", "statistics:mean", "statistics:median")]},
        ["choice of=3 reward=own", "choice of=3 reward=statistics:mean", "choice of=3 reward=statistics:median"],
    ),
    "rewards in sections": (
        {"curation": [{**CHOICE, "reward": one} for one in (MEAN, QUANTILES, "statistics:mean")]},
        [
            "choice of=3 · reward function=statistics:mean",
            "choice of=3 · reward function=statistics:quantiles n=4",
            "choice of=3 reward=statistics:mean",
        ],
    ),
    "lists of steps": (
        {
            "curation": [
                [{**CHOICE, "reward": "own"}, {"kind": "surplexity"}],
                [{**CHOICE, "reward": QUANTILES}, {"kind": "surplexity", "keep": 0.25}],
            ]
        },
        [
            "choice of=3 reward.function=statistics:quantiles reward.n=4 temperature=0 then surplexity keep=0.25",
            "choice of=3 reward=own temperature=0 then surplexity keep=0.5",
        ],
    ),
    "the number of lineages": (
        {"ecosystem.lineages": [TWO, THREE]},
        ["lineages=a, b, c", "lineages=a, b"],
    ),
    "whole ecosystems": (
        {"ecosystem": [None, {"lineages": TWO}, {"lineages": THREE}]},
        ["no ecosystem", "lineages=a, b, c", "lineages=a, b"],
    ),
    "a lineage's loss": (
        {"ecosystem.lineages.b.loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.5}]},
        ["b: TCE γ=0.5", "b: cross entropy"],
    ),
}


@pytest.mark.parametrize(("vary", "names"), CASES.values(), ids=CASES)
def test_a_cell_has_values_and_a_name_of_its_own(vary: dict[str, Any], names: list[str]) -> None:
    """Cells of equal values would be one cell of the tables, and their chains would be averaged."""
    lineages = {"ecosystem": {"lineages": TWO}} if any(key.startswith("ecosystem.") for key in vary) else {}
    study = make_study({**STUDY, **lineages, "vary": {**vary, "seed": [0, 1]}}, "apart.yaml")
    assert len({repr({**one.varied, "seed": None}) for one in study.chains}) == len(study.cells) == len(names)
    cells = ChainNames(study).cells
    found = {name.partition(" · lineage=")[0] for name in cells.order if name not in cells.wholes}
    assert found == set(names)


@pytest.mark.parametrize("whole", [True, False], ids=["a section varies", "the section around it varies"])
def test_the_baseline_without_a_section(whole: bool) -> None:
    """``regime.weights: null`` is the chain without weights, and not every chain."""
    weights = [None, {"human": 0.3}, {"human": 0.6}]
    regimes = [{**WEIGHTED, **({} if one is None else {"weights": one})} for one in weights]
    vary = {"regime.weights": weights} if whole else {"regime": regimes}
    content = {**STUDY, "regime": WEIGHTED, "vary": vary, "baseline": {"regime.weights": None}}
    cells = ChainNames(make_study(content, "apart.yaml")).cells
    assert len(cells.order) == 3
    assert cells.baselines == {cells.order[0]}
