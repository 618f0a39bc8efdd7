"""The JSON schema of a study file: what editors accept is what the models accept, and what they mark is a mistake."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fortifai_ray.recipe.recipe import recipe_types
from fortifai_ray.study.schema import study_schema
from fortifai_ray.study.shipped import SCHEMA, shipped
from fortifai_ray.study.template import study_text
from fortifai_ray.validation import parse_yaml, read_yaml

CRITERION = {"metric": "perplexity", "threshold": 2.0, "direction": "above"}
LANGUAGE: dict[str, Any] = {
    "name": "tiny",
    "family": {"kind": "language", "model": {"preset": "llama-docs"}},
    "corpus": {"source": "pydoc"},
    "generations": 2,
    "collapse": CRITERION,
}
GAUSSIAN: dict[str, Any] = {"name": "tiny", "family": {"kind": "gaussian"}, "generations": 2, "collapse": [CRITERION]}
VAE: dict[str, Any] = {"name": "tiny", "family": {"kind": "vae"}, "generations": 2, "collapse": [CRITERION]}


@cache
def schema() -> Any:
    return jsonschema.Draft202012Validator(study_schema())


def test_it_is_a_schema_and_stands_in_every_shipped_file() -> None:
    """That the file is current is held with the other generated pages (tests/docs)."""
    jsonschema.Draft202012Validator.check_schema(study_schema())
    for study in shipped():
        first = study.path.read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# yaml-language-server: $schema={SCHEMA}"
        assert (study.path.parent / SCHEMA).is_file()


@pytest.mark.parametrize("study", list(shipped()), ids=lambda study: study.name)
def test_every_shipped_study_is_valid(study: Any) -> None:
    schema().validate(read_yaml(study.path, "a study file"))


@pytest.mark.parametrize("family", recipe_types())
def test_what_new_writes_is_valid(family: str) -> None:
    schema().validate(parse_yaml(study_text("tiny", family, None, Path("tiny.yaml")), "tiny.yaml"))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (LANGUAGE, {"vary": {"loss.gamma": [0.1, 0.2], "seed": {"count": 100}}, "loss": {"kind": "tce"}}),
        (LANGUAGE, {"collapse": [CRITERION, {"any_of": [CRITERION, {**CRITERION, "threshold": 3}]}]}),
        (LANGUAGE, {"loss": {"kind": "my_losses:squared", "scale": 0.5}}),
        (LANGUAGE, {"training": {"learning_rate": 1, "lora": {"rank": 4}}, "evaluation": {"signs": {}}}),
        (LANGUAGE, {"x-anchors": {"anything": [1, "two"]}}),
        (LANGUAGE, {"family": {"kind": "language"}, "vary": {"family.model.path": ["a", "b"]}}),
        (GAUSSIAN, {"family": {"kind": "my_families:Mine", "width": 3}}),
        (GAUSSIAN, {"regime": {"kind": "mixed", "synthetic_ratio": 1.0}, "samples_per_generation": 10}),
        (VAE, {"family": {"kind": "diffusion", "data": {"source": "moons"}}}),
    ],
)
def test_what_a_study_may_say(base: dict[str, Any], change: dict[str, Any]) -> None:
    """Keys that vary gives, one criterion or several, code of one's own, keys that are there for their anchors."""
    schema().validate({**base, **change})


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (LANGUAGE, {"trainig": {}}),
        (LANGUAGE, {"training": {"epoch": 2}}),
        (LANGUAGE, {"training": {"epochs": "two"}}),
        (LANGUAGE, {"training": {"epochs": 0}}),
        (LANGUAGE, {"family": {"kind": "langauge"}}),
        (LANGUAGE, {"family": {"kind": "language", "model": {"presets": "llama-docs"}}}),
        (LANGUAGE, {"samples_per_generation": 10}),
        (LANGUAGE, {"loss": {"kind": "tce", "gama": 0.3}}),
        (LANGUAGE, {"loss": {"kind": "tcee", "gamma": 0.3}}),
        (LANGUAGE, {"loss": {"gama": 0.3}}),
        (LANGUAGE, {"regime": {"kind": "replace", "synthetic_ratio": 0.5}}),
        (LANGUAGE, {"regime": {"kind": "mixed", "synthetic_ratio": "half"}}),
        (LANGUAGE, {"collapse": {**CRITERION, "treshold": 3}}),
        (LANGUAGE, {"collapse": {"metric": "perplexity"}}),
        (LANGUAGE, {"vary": {"seed": 3}}),
        (LANGUAGE, {"claims": [{"id": "one"}]}),
        (LANGUAGE, {"search": {"kind": "bondary"}}),
        (LANGUAGE, {"resources": {"gpus": 1}}),
        (LANGUAGE, {"evaluation": {"benchmarks": [{"task": "blimpp"}]}}),
        (GAUSSIAN, {"corpus": {"source": "pydoc"}}),
        (GAUSSIAN, {"family": {"kind": "gaussian", "dims": 2}}),
        (GAUSSIAN, {"family": {"kind": "gaussian", "model": {"preset": "llama-docs"}}}),
        (GAUSSIAN, {"samples_per_generation": 1}),
        (VAE, {"decoding": {"temperature": 0.8}}),
        (VAE, {"family": {"kind": "vae", "data": {"source": "mnist"}}}),
    ],
)
def test_what_it_marks(base: dict[str, Any], change: dict[str, Any]) -> None:
    """Unknown keys at every level, keys of another family, values of a wrong type or out of range."""
    assert not schema().is_valid({**base, **change})


@pytest.mark.parametrize("key", ["name", "collapse"])
def test_what_nothing_else_can_give_is_needed(key: str) -> None:
    assert not schema().is_valid({name: value for name, value in LANGUAGE.items() if name != key})


def test_keys_say_what_they_mean() -> None:
    """An editor shows the description of a key beside it."""
    training = json.dumps(study_schema()["$defs"])
    assert "passes over the training set" in training
