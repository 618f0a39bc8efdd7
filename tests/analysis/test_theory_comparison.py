"""Theory against measurement: each recipe has its closed form, which agrees where it holds, and only there."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fortifai_ray.study.study import load_study
from fortifai_ray.theory.registry import CLOSED_FORMS, closed_forms_of
from support.opening import open_folder
from support.theory import agreement, comparison, recipes

from .studies import PROJECT, compute_study

SWEEPS = PROJECT / "sweeps"
KL = {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 1e-9, "direction": "below"}
MATERIAL: dict[str, dict[str, Any]] = {
    "gaussian": {"family": {"kind": "gaussian"}},
    "kde": {"family": {"kind": "kde", "shape": "blobs", "bandwidth": 0.3}},
    "regression": {"family": {"kind": "linear_regression", "dim": 5}},
    "exponential": {"family": {"kind": "exponential_family", "member": "poisson", "mean": 2.0}},
    "discrete": {"family": {"kind": "discrete", "outcomes": 6, "probabilities": "zipf"}},
}
BOUNDS = {"discrete_fixed_human_distance_bound", "discrete_published_deviation_bound", "kde_mixed_bias_bound"}
METRIC = {"regression": "excess_risk", "exponential": "parameter_error", "discrete": "heterozygosity"}


def _study(folder: Path, family: str, regimes: list[dict[str, Any]], seeds: int, **settings: Any) -> Path:
    vary = {"regime": regimes, "seed": {"count": seeds}}
    criterion = KL | {"metric": METRIC.get(family, "trace_ratio")}
    recipe = {"samples_per_generation": 40, "generations": 6, **MATERIAL[family], **settings}
    return compute_study(folder, **recipe, vary=vary, collapse=criterion, baseline={"regime.kind": "replace"})


@pytest.mark.parametrize("family", MATERIAL)
def test_measured_means_meet_their_closed_forms(family: str, tmp_path: Path) -> None:
    """400 chains of each family: the last generation's mean is within five standard errors."""
    regimes = [{"kind": "replace"}, {"kind": "accumulate"}]
    if family == "gaussian":
        regimes += [{"kind": "accumulate_subsample"}, {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}]
        regimes += [{"kind": "fixed_human", "human": 10, "synthetic": 40}, {"kind": "incremental"}]
    if family == "discrete":
        regimes += [{"kind": "fixed_human", "human": 20, "synthetic": 60}]
    if family == "kde":
        regimes += [{"kind": "mixed", "synthetic_ratio": 0.5, "human": "kept"}]
    table, _ = comparison(open_folder(_study(tmp_path, family, regimes, 400)))
    assert table.height > 0
    away = (table["measured"] - table["theory"]).abs() / table["error"]
    assert away.max() < 5  # type: ignore[operator]


def test_a_wrong_closed_form_is_seen(tmp_path: Path) -> None:
    """Another sample size than the one that was run: no generation's interval holds the formula's value."""
    results = open_folder(_study(tmp_path, "gaussian", [{"kind": "replace"}], 400))
    right, _ = comparison(results)
    wrong, _ = comparison(results.replace(study=results.study | {"samples_per_generation": 10}))
    [of_right], [of_wrong] = (
        agreement(table.filter(pl.col("title") == "mean of trace_ratio")) for table in (right, wrong)
    )
    assert of_right["inside the 90 % interval"] in {f"{n} of 6 generations" for n in (3, 4, 5, 6)}
    assert of_wrong["inside the 90 % interval"] == "0 of 6 generations"


def test_generations_that_not_all_chains_reached_are_left_out(tmp_path: Path) -> None:
    """A mean over the survivors would flatter: they are dropped, and said to be."""
    results = open_folder(_study(tmp_path, "gaussian", [{"kind": "replace"}], 8))
    first = results.generations["chain_id"][0]
    cut = results.generations.filter((pl.col("chain_id") != first) | (pl.col("generation") < 3))
    table, said = comparison(results.replace(generations=cut))
    assert table["generation"].max() == 2
    assert any("3 of 6 generations are left out" in sentence for sentence in said)


def test_nothing_is_claimed_of_a_curated_or_truncated_recipe() -> None:
    """A closed form whose assumptions do not hold is not offered; where a limit holds, it is named."""
    gaussian = {"family.kind": "gaussian", "regime.kind": "replace", "samples_per_generation": 50}
    assert len(closed_forms_of(gaussian)) == 4
    assert closed_forms_of(gaussian | {"curation.kind": "verifier"}) == []
    assert closed_forms_of(gaussian | {"loss.kind": "focal", "loss.gamma": 2.0}) == []
    [limit] = closed_forms_of(gaussian | {"loss.kind": "tce", "loss.gamma": 0.9})
    assert limit.limit == "in the limit of many samples"
    assert closed_forms_of({"family.kind": "language"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "dey2024_exponential_families",
        "kazdan2025_kde",
        "dohmatob2024_ridge",
        "seddik2024_discrete",
        "fu2024_kde",
        "fu2024_kde_threshold",
    ],
)
def test_the_shipped_studies_have_their_closed_forms(name: str, tmp_path: Path) -> None:
    """What a study's theory claims name is what the notebook overlays for the same cells."""
    study = load_study(SWEEPS / f"{name}.yaml")
    named = {claim.value.theory for claim in study.settings.claims if hasattr(claim.value, "theory")}
    offered = {form.name for chain in study.cells for form in closed_forms_of(chain.recipe.flat())}
    assert named - BOUNDS <= offered
    for chain in study.cells:
        for form in closed_forms_of(chain.recipe.flat()):
            assert math.isfinite(form.at(chain.recipe.generations - 1))


def test_every_recipe_is_read_from_the_resolved_study(tmp_path: Path) -> None:
    """A regime that varies as a whole takes nothing of the base recipe's with it."""
    regimes = [{"kind": "replace"}, {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}]
    found = recipes(open_folder(_study(tmp_path, "gaussian", regimes, 2)))
    by_kind = {recipe["regime.kind"]: recipe for recipe in found.values()}
    assert "regime.synthetic_ratio" not in by_kind["replace"]
    assert by_kind["mixed"]["regime.human"] == "fresh"


def test_a_key_that_varies_over_numbers_and_words_keeps_its_closed_forms(tmp_path: Path) -> None:
    """``family.bandwidth: [silverman, 0.4]`` is a column of text; the recipe's number is a number again."""
    recipe = {"samples_per_generation": 40, "generations": 2, **MATERIAL["kde"]}
    vary = {"family.bandwidth": ["silverman", 0.4], "seed": {"count": 2}}
    baseline = {"family.bandwidth": 0.4}
    study = open_folder(compute_study(tmp_path, **recipe, vary=vary, collapse=KL, baseline=baseline))
    forms = {name: [form.name for form in closed_forms_of(recipe)] for name, recipe in recipes(study).items()}
    assert list(forms.values()) == [["kde_replace_mean_trace_ratio"], ["kde_mixed_mean_trace_ratio"]]


def test_the_overlays_cover_the_registry() -> None:
    """A closed form that is added to the theory is overlaid, or left out here on purpose."""
    elsewhere = {
        "workflow_excess",  # for weights as a matrix
        "regression_replace_excess",  # regression_excess has its scale
        "discrete_fixed_human_heterozygosity_change",  # the heterozygosity itself is overlaid
        *("discrete_fixed_human_error", "kde_mixed_integrated_squared_error", "kde_mixed_squared_bias"),  # no metrics
        *("bernoulli_forgotten", "poisson_forgotten", "golden_weight", "weights_limit_error"),  # no metrics
        *("discrete_largest_synthetic", "discrete_published_largest_synthetic", "kde_critical_synthetic_ratio"),
        *BOUNDS,
    }
    assert {name for name, form in CLOSED_FORMS.items() if not form.metric} == elsewhere
