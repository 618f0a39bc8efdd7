"""Mistakes in claims are reported when the study file is read, in one line each."""

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.study.claim_checks import StudyFacts, checked_claims, undecided_claims
from fortifai_ray.study.claims import Claim
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.theory.registry import CLOSED_FORMS, ClosedForm

VALID: dict[str, Any] = {
    "id": "variance-shrinks",
    "source": "Shumailov et al. 2024, section 3",
    "kind": "theory",
    "statistic": {"kind": "metric", "metric": "trace_ratio", "at": 9},
    "where": {"regime.kind": "replace"},
    "relation": "at_most",
    "value": 0.9,
    "must_reject": {"name": "it grows", "value": 100.0},
}
METRIC = {"kind": "metric", "metric": "trace_ratio"}
FORMS = {
    "shrinks": ClosedForm(lambda n, generation: (1 - 1 / n) ** (generation + 1)),
    "bound": ClosedForm(lambda: math.pi**2 / 6),
}


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, form in FORMS.items():
        monkeypatch.setitem(CLOSED_FORMS, name, form)


def _message(change: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        Claim.model_validate({**VALID, **change})
    errors = caught.value.errors()
    assert len(errors) == 1, errors
    return f"{'.'.join(map(str, errors[0]['loc']))}: {errors[0]['msg']}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind: Input should be 'theory' or 'replication'"),
        ({"relation": "about"}, "relation: Input should be 'equals', "),
        ({"level": 1.0}, "level: Input should be less than 1"),
        ({"level": 0.0}, "level: Input should be greater than 0"),
        ({"min_chains": 0}, "min_chains: Input should be greater than or equal to 1"),
        ({"value": "small"}, "value is a number, or {theory: NAME, …}"),
        ({"value": math.nan}, "value is a number"),
        ({"value": [1, 2, 3], "relation": "between"}, "a pair [low, high]"),
        ({"value": [1, 2]}, "between needs a pair"),
        ({"relation": "between"}, "between needs a pair"),
        ({"value": [2, 1], "relation": "between"}, "the lower end 2 is above the upper end 1"),
        ({"relation": "equals"}, "equals needs tolerance"),
        ({"tolerance": {"relative": 0.1}}, "tolerance belongs to relation equals"),
        ({"relation": "equals", "tolerance": {}}, "either {relative: 0.05} or {absolute: 0.1}"),
        ({"relation": "equals", "tolerance": {"relative": -1}}, "tolerance.relative: Input should be greater"),
        ({"statistic": {"kind": "men"}}, "does not match any of the expected tags"),
        ({"statistic": {**METRIC, "at": -1}}, "a generation is 0, 1, 2, … or `last`"),
        ({"statistic": {**METRIC, "at": "end"}}, "a generation is 0, 1, 2, … or `last`"),
        ({"statistic": {**METRIC, "summary": "mode"}}, "there is no summary 'mode'"),
        ({"statistic": {**METRIC, "summary": {"quantile": 1.5}}}, "a quantile lies between 0 and 1"),
        ({"statistic": {**METRIC, "summary": "ratio_of_means"}}, "ratio_of_means needs exactly one ratio"),
        ({"statistic": {**METRIC, "compare": "difference"}}, "compare needs against"),
        ({"statistic": {**METRIC, "att": 3}}, "Extra inputs are not permitted"),
        ({"statistic": {"kind": "slope", "metric": "m", "start": 4, "end": 4}}, "end must be later than start"),
        ({"statistic": {"kind": "onset_order", "first": "m", "second": "m"}}, "two different criteria"),
        ({"statistic": {"kind": "onset_share", "criterion": -1}}, "a criterion is given by its metric"),
        ({"where": {"loss.kind": {"a": 1}}}, "loss.kind: a value, or a list of values, is needed"),
        ({"where": {"loss.kind": []}}, "loss.kind: a value, or a list of values, is needed"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str) -> None:
    assert message in _message(change)


def test_a_claim_survives_the_resolved_study_file() -> None:
    statistics = [
        {**METRIC, "summary": {"quantile": 0.9}, "against": {"loss.kind": ["tce", None]}, "compare": "difference"},
        {**METRIC, "over_generation_0": "ratio", "summary": "ratio_of_means"},
        {"kind": "onset_order", "first": 0, "second": "perplexity"},
        {"kind": "minimum", "metric": "support", "start": 2, "end": 5},
    ]
    for statistic in statistics:
        claim = Claim.model_validate({**VALID, "statistic": statistic})
        assert Claim.model_validate(claim.model_dump(mode="json")) == claim


@pytest.mark.usefixtures("forms")
def test_a_closed_form_takes_its_generation_from_the_statistic() -> None:
    claim = Claim.model_validate({**VALID, "value": {"theory": "shrinks", "n": 10}})
    assert claim.numbers() == (0.9**10,)
    given = Claim.model_validate(
        {**VALID, "statistic": METRIC, "value": {"theory": "shrinks", "n": 10, "generation": 0}}
    )
    assert given.numbers() == (0.9,)
    pair = Claim.model_validate({**VALID, "relation": "between", "value": [1, {"theory": "bound"}]})
    assert pair.numbers() == (1.0, math.pi**2 / 6)
    assert Claim.model_validate(claim.model_dump(mode="json")) == claim


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize(
    ("statistic", "value", "message"),
    [
        (None, {"theory": "shrink", "n": 10}, "there is no closed form 'shrink'; did you mean shrinks?"),
        (None, {"theory": "bound", "n": 3}, "bound: there is no argument n"),
        (None, {"theory": "shrinks", "n": 0}, "shrinks: division by zero"),
        (METRIC, {"theory": "shrinks", "n": 10}, "the statistic names none"),
    ],
)
def test_a_wrong_closed_form_is_one_line(statistic: Any, value: dict[str, Any], message: str) -> None:
    assert message in _message({"value": value, "statistic": statistic or VALID["statistic"]})


def test_the_registry_that_claims_name_is_theorys_own() -> None:
    """Gaussian chains under replace: E σ̂²/σ² = (1 − 1/n)^(g + 1), by the registry's own function."""
    pytest.importorskip("fortifai_ray.theory")
    value = {"theory": "gaussian_replace_mean_variance", "n": 50}
    assert Claim.model_validate({**VALID, "value": value}).numbers()[0] == pytest.approx(0.98**10, rel=1e-12)


def _facts(*recipes: dict[str, Any], searched: Sequence[str] = ()) -> StudyFacts:
    names = ["trace_ratio", "perplexity"]
    return StudyFacts(recipes=recipes, metrics=names, criteria=names, generations=10, searched=searched)


GAUSSIAN = {"family.kind": "gaussian", "regime.kind": "replace", "samples_per_generation": 50, "loss.kind": "tce"}
GAUSSIAN |= {"family.covariance_estimator": "maximum_likelihood", "loss.gamma": 0.9}


def _completed(value: Any, facts: StudyFacts, **change: Any) -> Claim:
    [claim] = checked_claims([Claim.model_validate({**VALID, "value": value, **change})], facts, "study.yaml")
    return claim


def test_a_claim_takes_the_arguments_of_its_closed_form_from_the_cells_that_where_names() -> None:
    """The study as resolved has them written out, so that a check needs no recipe; written ones win."""
    name = "gaussian_replace_mean_variance"
    facts = _facts(GAUSSIAN, {**GAUSSIAN, "samples_per_generation": 20, "regime.kind": "accumulate"})
    claim = _completed({"theory": name}, facts)
    assert claim.numbers() == (0.98**10,)
    assert claim.model_dump()["value"] == {"theory": name, "n": 50, "estimator": "maximum_likelihood"}
    assert _completed({"theory": name, "n": 10}, facts).numbers() == (0.9**10,)
    either = {"samples_per_generation": [20, 30], "regime.kind": ["replace", "accumulate"]}
    assert _completed({"theory": name}, facts, where=either).numbers() == (0.95**10,)
    pair = _completed([0, {"theory": name}], facts, relation="between")
    assert pair.numbers() == (0.0, 0.98**10)
    assert _completed({"theory": "gaussian_tce_variance_factor"}, facts).model_dump()["value"]["gamma"] == 0.9


@pytest.mark.parametrize(
    ("value", "where", "searched", "message"),
    [
        ({"theory": "gaussian_replace_mean_variance"}, {}, [], "n is 50, 20 in the cells that where names: name cells"),
        ({"theory": "gaussian_replace_mean_variance"}, {"seed": 3}, [], "or write n: …"),
        ({"theory": "regression_excess", "n": 9}, {}, [], "needs dim, and the recipe does not determine it: write dim"),
        ({"theory": "ridge_excess"}, {"loss.kind": "focal"}, [], "needs n, and no cell of the study matches where"),
        ({"theory": "regression_replace_excess"}, {}, [], None),
        (
            {"theory": "gaussian_replace_mean_variance"},
            {"samples_per_generation": 50},
            ["samples_per_generation"],
            "needs n, and the recipe does not determine it: write n: …",
        ),
        ({"theory": "gaussian_tce_variance_factor", "gamma": 2.0}, {}, [], "γ lies in (0, 1]"),
    ],
)
def test_an_argument_that_is_not_determined_is_named(
    value: dict[str, Any], where: dict[str, Any], searched: list[str], message: str | None
) -> None:
    facts = _facts(GAUSSIAN, {**GAUSSIAN, "samples_per_generation": 20}, searched=searched)
    if message is None:
        assert _completed(value, facts, where=where).numbers() == (10.0,)
        return
    with pytest.raises((UserError, ValidationError)) as caught:
        _completed(value, facts, where=where)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValidationError) or str(caught.value).startswith("study.yaml: claims.0.value: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"statistic": {**METRIC, "metric": "trace_ration"}},
            "does not measure 'trace_ration'; did you mean trace_ratio?",
        ),
        ({"where": {"regime.kin": "replace"}}, "claims.1.where.regime.kin: unknown key; did you mean regime.kind?"),
        ({"statistic": {**METRIC, "against": {"los": 1}}}, "claims.1.statistic.against.los: unknown key"),
        ({"statistic": {"kind": "onset_share", "criterion": 2}}, "there is no collapse criterion 2; there are 2"),
        ({"statistic": {"kind": "onset_share", "criterion": "kl"}}, "no collapse criterion has the metric 'kl'"),
        ({"id": "first"}, "claims.1.id: the id 'first' is used twice"),
        ({"statistic": {**METRIC, "at": 10}}, "claims.1.statistic: generation 10 is not computed: the last one is 9"),
        ({"where": {"gamma": 0.9}}, "claims.1.where.gamma: unknown key; did you mean loss.gamma?"),
        ({"where": {"loss": "tce"}}, "claims.1.where.loss: unknown key; did you mean loss.kind?"),
        ({"where": {"regime": "replace"}}, "claims.1.where.regime: unknown key; did you mean regime.kind?"),
    ],
)
def test_a_claim_on_what_the_study_does_not_have_is_refused(change: dict[str, Any], message: str) -> None:
    claims = [Claim.model_validate({**VALID, "id": "first"}), Claim.model_validate({**VALID, **change})]
    with pytest.raises(UserError) as caught:
        checked_claims(claims, _facts({"regime.kind": "replace", "loss.kind": "cross_entropy"}), "study.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


GROWING = [{"regime.kind": kind, "loss.kind": loss} for kind in ("replace", "accumulate") for loss in ("tce", "ce")]
BOUNDARY = BoundarySearch(over="regime.synthetic_ratio", low=0.0, high=1.0, tolerance=0.02, level=0.9, budget=40)
OF_CE: dict[str, Any] = {"where": {"regime.kind": "replace", "loss.kind": "ce"}}
FI = {"kind": "fi_ratio"}
NOW = {"kind": "fi_ratio", "unit": "synthetic_now"}
POINT = {"kind": "critical_point"}


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        ({}, {}, None),
        ({"where": {"loss.kind": "focal"}}, {}, "where: no cell of the study matches loss.kind=focal"),
        ({"where": {"regime.kind": "replace", "loss.gamma": 0.3}}, {}, "where: no cell of the study matches"),
        ({"statistic": {**METRIC, "summary": "median"}}, {}, "where: it matches 2 cells, and this statistic is of one"),
        ({"statistic": {**METRIC, "summary": "median"}, **OF_CE}, {}, None),
        ({"statistic": {"kind": "onset_share"}}, {}, "where: it matches 2 cells"),
        ({"statistic": FI}, {}, "where: it matches 2 cells"),
        ({"statistic": {"kind": "onset_share", "by": 9}, **OF_CE}, {}, None),
        (
            {"statistic": {"kind": "onset_share", "by": 9.5}, **OF_CE},
            {},
            "statistic.by: generation 9.5 is not computed",
        ),
        ({"statistic": FI, "where": {**OF_CE["where"], "seed": 1}}, {}, "where.seed: a ratio of fidelity intervals is"),
        # what it is compared with
        ({"statistic": {**METRIC, "against": {"loss.kind": "ce"}}, "where": {"loss.kind": "tce"}}, {}, None),
        ({"statistic": {**METRIC, "against": {"regime.kind": "accumulate"}}}, {}, None),
        (
            {"statistic": {**METRIC, "against": {"loss.kind": "focal"}}},
            {},
            "against: no cell of the study matches regime",
        ),
        ({"statistic": {**METRIC, "against": {"loss.kind": "ce"}}}, {}, "against: it names cells that where names too"),
        ({"statistic": {**METRIC, "against": {"seed": 0}}, "where": {"seed": 1}}, {"seeds": range(9)}, "min_chains"),
        # chains
        ({"min_chains": 5}, {}, None),
        (
            {"min_chains": 6},
            {},
            "min_chains: it takes 6 independent chains (seeds) at least, and the study has 5: more",
        ),
        ({}, {"seeds": {3}}, "min_chains: it takes 2 independent chains (seeds) at least, and the study has 1:"),
        ({"min_chains": 1}, {"seeds": {3}}, "statistic: it takes 2 independent chains"),
        ({"statistic": FI, **OF_CE}, {"seeds": {1, 2}}, "statistic: it takes 3 independent chains"),
        ({"statistic": {**METRIC, "summary": "variance"}, **OF_CE}, {}, "statistic: it takes 10 independent chains"),
        ({"where": {"seed": [0, 1], "regime.kind": "replace"}, "min_chains": 3}, {}, "the study has 2 of those that"),
        ({"where": {"seed": [0, 9], "regime.kind": "replace"}}, {}, "the study has 1 of those that where names"),
        ({"where": {"seed": 9, "regime.kind": "replace"}}, {}, "the study has 0 of those that where names"),
        ({"min_chains": 80}, {"search": BOUNDARY, "seeds": {0}}, None),  # 40 in each of two cells
        ({"min_chains": 81}, {"search": BOUNDARY, "seeds": {0}}, "and the search takes at most 80"),
        ({"statistic": POINT, "level": 0.9, "min_chains": 41}, {"search": BOUNDARY}, "takes at most 40"),
        # training sets that grow
        ({"statistic": NOW, **OF_CE}, {}, "statistic.unit: synthetic_now tells no generations apart"),
        ({"statistic": NOW, "where": {"regime.kind": "accumulate", "loss.kind": "ce"}}, {}, None),
        (
            {"statistic": NOW, "where": {"regime.kind": "accumulate", "loss.kind": "ce"}},
            {"generations": 2},
            "statistic.unit: synthetic_now takes three generations at least, and the study has 2",
        ),
        # searches
        ({"statistic": POINT, **OF_CE}, {}, "statistic: a critical point is found by a search"),
        ({"statistic": POINT, "level": 0.9, **OF_CE}, {"search": BOUNDARY}, None),
        ({"statistic": POINT, "level": 0.9}, {"search": BOUNDARY, "searched": ["regime.synthetic_ratio"]}, None),
        ({"statistic": POINT, "level": 0.95}, {"search": BOUNDARY}, "level: the search's interval is at 0.9"),
        ({"statistic": POINT, "level": 0.9, "looks": 2}, {"search": BOUNDARY}, "level: the search's interval is at"),
        ({"statistic": {**POINT, "over": "seed"}, "level": 0.9}, {"search": BOUNDARY}, "statistic.over: seed is not"),
    ],
)
def test_a_claim_that_nothing_could_decide_is_said(
    change: dict[str, Any], facts: dict[str, Any], message: str | None
) -> None:
    """Before anything runs, in one line with what would be right. It is no mistake where --set narrows a study."""
    study = StudyFacts(
        **{
            **{"recipes": GROWING, "growing": [False, False, True, True], "seeds": set(range(5)), "generations": 10},
            **{"metrics": ["trace_ratio"], "criteria": ["trace_ratio"], **facts},
        }
    )
    [claim] = checked_claims([Claim.model_validate({**VALID, **change})], study, "study.yaml")
    said = undecided_claims([claim], study)
    assert len(said) == (message is not None)
    for line in said:
        assert message in line
        assert line.startswith("warning: claims.0.")
        assert "\n" not in line


def test_reading_a_claim_imports_nothing_heavy() -> None:
    heavy = "print([m for m in ('scipy', 'torch', 'ray', 'sklearn') if m in sys.modules])"
    code = f"import sys, fortifai_ray.claims.check; {heavy}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
