"""What a dry run says about GPUs that this machine may not have, and about those that no plan could use."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.kr_questions import Question, save_questions
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.study.study import load_study, make_study
from fortifai_ray.sweep.preflight import dry_run

STUDY: dict[str, Any] = {
    "name": "spread",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "training": {"block_size": 64},
    "generations": 2,
    "collapse": {"metric": "perplexity", "relative_to": "absolute", "threshold": 9.0, "direction": "above"},
}


def test_a_study_for_a_cluster_is_planned_without_one(tmp_path: Path) -> None:
    """One line says which GPUs the study needs and this machine lacks, and what for; nothing fails."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "resources": {"engines": {"gpus": 2}}}))
    printed = " ".join(str(dry_run(load_study(file), tmp_path / "runs")).split())
    assert "1 chains of 2 generations, 0 of them in the store" in printed
    assert "Not on this machine, where GPUs are not counted: resources: a chain's training needs" in printed
    assert "an engine 2" in printed


@pytest.mark.parametrize(
    ("engines", "engine", "message"),
    [
        ({"gpus": 3}, "vllm", r"study: resources.engines.gpus: 4 attention heads .* cannot be divided among 3 GPUs"),
        ({"gpus": 2}, "huggingface", r"resources.engines.gpus: 2 GPUs are for vLLM.* at most 1 is right"),
        ({"gpus": 4}, "vllm", None),
        ({"gpus": 0.5}, "huggingface", None),
        ({}, "huggingface", None),
    ],
)
def test_gpus_that_a_model_cannot_be_spread_over(engines: dict[str, Any], engine: str, message: str | None) -> None:
    """One line before anything starts, where the model's configuration is at hand."""
    content = {key: value for key, value in STUDY.items() if key not in ("name", "collapse")}
    recipe = LanguageRecipe(**content, engine={"kind": engine})
    resources = ResourcesConfig.model_validate({"engines": engines})
    if message is None:
        recipe.check_resources(resources.engine_gpus, "study")
    else:
        with pytest.raises(UserError, match=message):
            recipe.check_resources(resources.engine_gpus, "study")


def test_the_data_are_described_once(tmp_path: Path) -> None:
    """Cells that share a corpus print its line once: tokens, documents, the longest of them."""
    file = tmp_path / "study.yaml"
    losses = [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.5}]
    file.write_text(yaml.safe_dump({**STUDY, "vary": {"loss": losses, "seed": [0, 1]}}))
    said = dry_run(load_study(file), tmp_path / "runs")
    assert (said.chains, said.stored, said.generations) == (4, 0, 8)
    lines = [line for line in said.lines if line.startswith("corpus:")]
    assert len(lines) == 1
    assert "training and" in lines[0]
    assert "the longest of" in lines[0]


@pytest.mark.parametrize(
    ("keys", "metrics", "said"),
    [
        ({"keep": "best"}, ["perplexity"], ["perplexity flatters the models, .*: it chooses each generation's epoch"]),
        ({"keep": "best"}, ["kr_accuracy", "calibration_error_synthetic"], []),
        (
            {"keep": "best"},
            ["held_out_bits_per_byte", "calibration_error_human"],
            [
                "held_out_bits_per_byte flatters .*: perplexity chooses .* by the same held-out text",
                "calibration_error",
            ],
        ),
        ({}, ["perplexity"], []),
        (
            {"keep": "best", "keep_by": "kr_accuracy_fortifai_left"},
            ["perplexity", "kr_accuracy"],
            ["kr_accuracy flatters .*: kr_accuracy_fortifai_left chooses each .* by the same questions"],
        ),
        (
            {"keep": "best", "keep_by": "kr_accuracy"},
            ["kr_accuracy", "kr_ties", "perplexity"],
            ["kr_accuracy flatters .*: it chooses", "kr_ties flatters .*: kr_accuracy chooses"],
        ),
    ],
)
def test_a_criterion_by_which_models_are_chosen_is_told(
    tmp_path: Path, keys: dict[str, Any], metrics: list[str], said: list[str]
) -> None:
    """A line for each such metric, in the dry run and when the sweep starts: alone, one of a list, or within any_of."""
    sides = {"kr_accuracy": "below"}
    criteria = [
        {"metric": name, "relative_to": "absolute", "threshold": 0.5, "direction": sides.get(name, "above")}
        for name in metrics
    ]
    save_questions([Question("It was late.", "They slept.", "They sleeps.")] * 2, tmp_path / "kr.json")
    exam = {"task": "kr_test", "path": str(tmp_path / "kr.json")}
    given = {**STUDY["training"], **keys}
    for collapse in (criteria, [{"any_of": criteria}] if len(criteria) > 1 else criteria[0]):
        content = {
            **STUDY,
            "training": given,
            "evaluation": {"benchmarks": [exam], "signs": {}},
            "collapse": collapse,
        }
        study = make_study(content, "study")
        said_of_it = dry_run(study, tmp_path / "runs")
        for lines in (str(said_of_it).splitlines(), said_of_it.notices):
            found = [line for line in lines if "flatter" in line]
            assert len(found) == len(said)
            assert all(re.search(wanted, line) for wanted, line in zip(said, found, strict=True))
