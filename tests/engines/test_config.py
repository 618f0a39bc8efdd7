"""Decoding and engine settings out of range are refused with what would be right."""

from typing import Any

import pytest
from pydantic import ValidationError

from fortifai_ray.engines import engine as engine_module
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig, resolve_kind


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", -0.1, "temperature is 0"),
        ("temperature", float("nan"), "finite number"),
        ("top_p", 0.0, r"top_p lies in \(0, 1\]"),
        ("top_p", 1.01, r"top_p lies in \(0, 1\]"),
        ("top_k", -1, "top_k is 0"),
        ("max_new_tokens", 0, "at least 1"),
        ("context_tokens", 0, "at least 1"),
        ("repetition_penalty", 0.0, "above 0"),
    ],
)
def test_decoding_out_of_range_says_what_is_right(key: str, value: float, message: str) -> None:
    """Protects a user from a study that starts with settings no engine can honour."""
    with pytest.raises(ValidationError, match=message):
        DecodingConfig(**{key: value})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_new_tokens": 33}, "33 is more than max_new_tokens, 32"),
        ({"min_new_tokens": -1}, "0 .none. or a number"),
        ({"min_new_tokens": 8}, "every row has 32 tokens: 32 .* or 0 is right, or ignore_eos: false"),
        ({"min_new_tokens": 32}, None),
        ({"min_new_tokens": 8, "ignore_eos": False}, None),
        ({"min_new_tokens": 32, "ignore_eos": False, "num_beams": 5}, None),
    ],
)
def test_the_least_of_a_row_has_an_effect(keys: dict[str, Any], message: str | None) -> None:
    """Where every row has as many tokens, its end-of-text token is drawn or it is not; the key's default is no key."""
    if message is None:
        assert DecodingConfig(max_new_tokens=32, **keys).model_dump()["min_new_tokens"] == keys["min_new_tokens"]
    else:
        with pytest.raises(ValidationError, match=message):
            DecodingConfig(max_new_tokens=32, **keys)
    assert "min_new_tokens" not in DecodingConfig(min_new_tokens=0).model_dump()


@pytest.mark.parametrize(
    ("settings", "by"),
    [
        ({}, None),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1e-45}, "temperature"),
        ({"temperature": 1e-6}, "temperature"),
        ({"temperature": 1e-3}, "temperature"),
        ({"temperature": 0.01}, "temperature"),
        ({"temperature": 0.05}, None),
        ({"temperature": 0.2}, None),
        ({"top_k": 1}, "top_k"),
        ({"top_k": 1, "temperature": 100.0}, "top_k"),
        ({"top_k": 2}, None),
        ({"top_k": 2, "temperature": 1e-4}, "temperature"),
        ({"top_p": 1e-9}, "top_p"),
        ({"top_p": 0.01}, "top_p"),
        ({"top_p": 0.1}, None),
        ({"top_p": 0.1, "temperature": 0.3}, "top_p"),
        ({"top_p": 0.01, "temperature": 2.0}, None),  # a flatter law keeps more than one token
        ({"top_p": 1e-5, "temperature": 2.0}, "top_p"),
        ({"top_p": 0.9, "temperature": 0.05}, None),
        ({"num_beams": 2}, "num_beams"),
    ],
)
def test_a_decoding_that_is_greedy_in_effect_is_deterministic(settings: dict[str, Any], by: str | None) -> None:
    """By which setting: what is asked of it for each prompt again would be a copy."""
    said = DecodingConfig(**settings).deterministic
    assert said == (by and f"{by}: {settings[by]:g}")


@pytest.mark.parametrize("config", [DecodingConfig, EngineConfig])
def test_an_unknown_key_is_refused(config: type) -> None:
    """Protects a user from a misspelt key that changes nothing."""
    with pytest.raises(ValidationError, match="temprature"):
        config(temprature=1.0)


def test_auto_is_vllm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects machines without vLLM; what was asked for by name is never replaced."""
    for spec, kind in ((object(), "vllm"), (None, "huggingface")):
        monkeypatch.setattr(engine_module, "find_spec", lambda name, spec=spec: spec)
        assert resolve_kind("auto") == kind
        assert resolve_kind("vllm") == "vllm"
        assert resolve_kind("huggingface") == "huggingface"
