"""The registry of metrics: one declaration for everything that is measured, a user's metrics among them."""

import json
import math
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.signs import SignsConfig
from fortifai_ray.evaluation.signs.corpus import corpus_signs
from fortifai_ray.families.analytic import ANALYTIC
from fortifai_ray.metrics import (
    _DECLARED_IN,
    CORPUS,
    GROUPS,
    METRICS,
    Metric,
    declared,
    fidelity,
    from_json,
    is_bookkeeping,
    metric,
    register,
    signs_by_role,
    to_json,
)
from fortifai_ray.results.schema import read_table, write_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.crossing import onset
from fortifai_ray.study.study import make_study

SURVIVAL = ("survival_middle", "survival_frequent")
LOG_SCALE = {
    *("perplexity", "perplexity_synthetic", "perplexity_synthetic_generation_0"),
    *("perplexity_synthetic_generation_0_q95", "surplexity", "cross_perplexity", "word_perplexity", "byte_perplexity"),
    *("type_token_ratio", "compression_ratio", "trace_ratio", "support_ratio", "mean_ratio"),
    *("survival_frequent", "survival_middle", "survival_rare", "mass_rare"),
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(METRICS, "users", {})


def test_names_are_keys_and_every_declaration_is_filled_in() -> None:
    for name, each in METRICS.items():
        assert each.name == name
        assert each.definition
        assert each.source
        assert each.unit
        assert each.title
        assert each.unit in each.axis
        assert each.group in GROUPS
        assert not each.source.startswith("fortifai_ray") or find_spec(each.source), "a module that is there"


@pytest.mark.parametrize("module", _DECLARED_IN)
def test_one_name_has_one_meaning(module: str) -> None:
    """However many families measure it."""
    assert all(METRICS[each.name] is each for each in import_module(module).METRICS)


def test_every_metric_of_every_analytic_family_is_declared() -> None:
    for family in ANALYTIC.values():
        assert all(METRICS[each.name] is each for each in family.metrics)


OF_PROMPTS = {"prompt_overlap", "distinct_prompts", "duplicate_rows"}
OF_LINEAGES = {"lineage_divergence", "shared_ngrams"}


def test_corpus_signs_are_computed_as_declared() -> None:
    values = corpus_signs(np.zeros((2, 4), dtype=np.int32), pa.array([[1, 2]]), SignsConfig()).values
    assert values.keys() == {name for name, each in METRICS.items() if each.group == CORPUS} - OF_PROMPTS - OF_LINEAGES


def test_what_multiplies_is_on_a_log_scale_and_nothing_else() -> None:
    assert {name for name, each in METRICS.items() if each.scale == "log"} == LOG_SCALE


def test_fidelity_is_chance_normalised() -> None:
    pairs, many = METRICS["kr_accuracy"], METRICS["hellaswag_accuracy"]
    assert fidelity(pairs, 0.9, 0.9) == 1.0
    assert fidelity(pairs, 0.5, 0.9) == 0.0
    assert fidelity(many, 0.5, 0.75) == pytest.approx(0.5)
    assert fidelity(METRICS["tail_coverage"], 0.2, 0.8) == pytest.approx(0.25)
    assert math.isnan(fidelity(pairs, 0.6, 0.5))


def test_configuration_and_registry_are_light() -> None:
    """The command line reads study files without paying for torch, Ray, NumPy or Arrow."""
    code = (
        "import sys, fortifai_ray.metrics, fortifai_ray.evaluation.signs;"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow', 'polars', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_a_metric_up_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from fortifai_ray.metrics import metric; assert metric('kr_accuracy').chance == 0.5;"
        "print(sorted({'torch', 'ray', 'transformers', 'sklearn', 'scipy', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_breakdown_is_declared_as_what_it_breaks_down() -> None:
    part = metric("kr_accuracy_fraction_3")
    assert (part.name, part.title, part.direction) == ("kr_accuracy_fraction_3", "KR accuracy fraction 3", "below")
    assert part.group == metric("kr_accuracy").group
    assert metric("kr_accuracy_fortifai_seen").definition == METRICS["kr_accuracy_fortifai"].definition
    assert metric("perplexity_wikitext2").log


def test_an_unknown_metric_keeps_its_name_and_claims_no_direction() -> None:
    unknown = metric("my_own_score")
    assert (unknown.axis, unknown.sense, unknown.log) == ("my own score", "", False)


@pytest.mark.parametrize(
    ("column", "is_it"),
    [
        ("blimp_accuracy_low", True),
        ("kr_accuracy_fortifai_high", True),
        ("blimp_scored", True),
        ("tide_low", False),
        ("perplexity", False),
    ],
)
def test_ends_of_intervals_and_counts_are_no_metrics(column: str, is_it: bool) -> None:
    assert is_bookkeeping(column) is is_it


def test_the_best_sign_of_each_role_comes_first() -> None:
    assert signs_by_role() == {
        "tails": ("tail_coverage", "coverage", "modes", "support_ratio", "support", "survival_rare", *SURVIVAL),
        "facts": ("kr_accuracy", "kr_accuracy_per_byte", "gsm8k_accuracy"),
        "grammar": ("blimp_accuracy",),
        "repetition": ("distinct_3", "distinct_2", "self_bleu", "compression_ratio", "mean_repeated_span"),
        "fit": ("perplexity", "held_out_nll", "kl_divergence", "wasserstein", "reconstruction_nll"),
        "variety": ("class_entropy", "classes_present", "heterozygosity", "entropy", "trace_ratio"),
    }


def onset_of(name: str) -> float | None:
    """Of a curve 1, 4, 16 against an absolute threshold of 2."""
    criterion = CollapseCriterion(metric=name, threshold=2.0, direction="above", relative_to="absolute", confirm=0)
    return onset([1.0, 4.0, 16.0], 2.0, criterion).onset


@pytest.mark.usefixtures("own")
def test_a_users_ratio_is_linear_unless_it_is_declared_otherwise() -> None:
    register(*declared(["success_ratio", "survival_perplexity"]))
    assert onset_of("success_ratio") == pytest.approx(1 / 3)
    assert onset_of("survival_perplexity") == pytest.approx(1 / 3)
    register(Metric("success_ratio", scale="log"))
    assert onset_of("success_ratio") == pytest.approx(1 / 2)
    assert onset_of("nobodys_ratio") == pytest.approx(1 / 3)


@pytest.mark.usefixtures("own")
def test_a_users_plain_name_is_no_breakdown_of_a_built_in_metric() -> None:
    register(*declared(["entropy", "entropy_of_mine"]))
    assert metric("entropy") is METRICS["entropy"]
    assert metric("entropy_of_mine") == Metric("entropy_of_mine")


@pytest.mark.usefixtures("own")
def test_a_built_in_metric_keeps_its_meaning() -> None:
    with pytest.raises(ValueError, match="entropy is a built-in metric: give yours another name"):
        register(Metric("entropy", scale="log"))
    assert not metric("entropy").log


@pytest.mark.parametrize("wrong", [{"scale": "logarithmic"}, {"direction": "up"}, {"role": "looks"}])
def test_a_declaration_that_makes_no_sense_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"metric score: {next(iter(wrong))} is one of .*, not"):
        Metric("score", **wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own")
def test_declarations_travel_with_the_results() -> None:
    mine = Metric("success_ratio", "share", "trials that succeed", "me 2026", "below", "log", chance=0.5)
    register(mine)
    text = to_json(["success_ratio", "perplexity", "unknown", "kr_accuracy_fraction_1"])
    METRICS.users.clear()
    assert not metric("success_ratio").log
    from_json(text, "table")
    assert metric("success_ratio") == mine
    register(Metric("success_ratio", "points"))
    from_json(text, "table")
    assert metric("success_ratio").unit == "points", "what the process knows has the last word"
    with pytest.raises(UserError, match="table: the declarations of its metrics cannot be read"):
        from_json('{"name": 1}', "table")


OWN = """
from fortifai_ray.metrics import Metric


class Trials:
    metrics = ("success_ratio", Metric("survival", unit="share", direction="below", scale="log"))

    def human(self, n, rng):
        return rng.random((n, 1))

    def fit(self, data):
        return data.mean()

    def evaluate(self, model):
        return {"success_ratio": model, "survival": model}

    def generate(self, model, n, rng):
        return model * rng.random((n, 1))
"""


@pytest.mark.usefixtures("own")
def test_a_study_declares_what_its_users_family_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every process that reads it, and in each that runs a chain of it."""
    (tmp_path / "trials_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    criterion = {"threshold": 0.5, "direction": "below", "confirm": 0}
    study = make_study(
        {
            "name": "own",
            "family": {"kind": "trials_of_mine:Trials"},
            "generations": 3,
            "collapse": [{"metric": name, **criterion} for name in ("success_ratio", "survival")],
            "baseline": {"loss.kind": "cross_entropy"},
        },
        "own.yaml",
    )
    assert [each.log_scale for each in study.settings.collapse] == [False, True]
    assert [each.name for each in study.cells[0].recipe.declared] == ["success_ratio", "survival"]
    assert study.cells[0].recipe.metrics == ("success_ratio", "survival", "kept_fraction")


@pytest.mark.usefixtures("own")
def test_a_study_declares_the_metrics_of_a_benchmark_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Some words to score.")
    content = yaml.safe_load((Path(__file__).parents[1] / "sweeps" / "quickstart.yaml").read_text())
    content["evaluation"] = {"benchmarks": [{"task": "wikitext", "name": "mine", "path": str(tmp_path / "words.txt")}]}
    content["collapse"] = {"metric": "mine_word_perplexity", "threshold": 2.0, "direction": "above"}
    study = make_study(content, "quickstart.yaml")
    assert study.settings.collapse[0].log_scale
    assert "mine_word_perplexity" in study.cells[0].recipe.metrics


@pytest.mark.usefixtures("own")
def test_a_table_of_results_brings_the_declarations_of_its_metrics(tmp_path: Path) -> None:
    register(Metric("success_ratio", scale="log"))
    table = pl.DataFrame({"chain_id": ["a"], "generation": [0], "success_ratio": [0.5]})
    write_table(tmp_path, "generations", table)
    METRICS.users.clear()
    assert not metric("success_ratio").log
    assert read_table(tmp_path, "generations") is not None
    assert metric("success_ratio").log


@pytest.mark.usefixtures("own")
def test_declarations_of_a_later_version_may_say_more() -> None:
    from_json(json.dumps([{"name": "later", "unit": "points", "colour": "red"}]), "table")
    assert metric("later").unit == "points"
