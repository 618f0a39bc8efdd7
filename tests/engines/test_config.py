"""Decoding and engine settings out of range are refused with what would be right."""

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
