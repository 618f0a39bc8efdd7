"""Generation by every architecture: what the Hugging Face engine writes is what the whole row's own logits say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.architectures import TRIED, make_architecture
from engines.helpers import make_prompts
from fortifai_ray.engines.causal_cache import CachedModel, row_limit
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.engines.pretrained import load_network

WITHOUT_CACHE = {"openai-gpt", "recurrent_gemma", "rwkv"}  # the first two have none, the last a wrong one
UNBOUNDED = {"bloom", "mamba", "mamba2", "falcon_mamba"}
STEPS = 5


def greedy(model: Any, prompt: list[int], steps: int = STEPS) -> list[int]:
    """The likeliest tokens, each by a forward pass over this row alone and whole."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", TRIED)
def test_every_architecture_writes_what_the_whole_row_says(name: str, tmp_path: Path) -> None:
    """Rows of several lengths in one call, longer than the table's windows (16), against one row at a time without a
    cache: protects masks, positions, states and windows, whatever the architecture has of them."""
    folder = make_architecture(tmp_path / name, name)
    engine = HuggingFaceEngine(EngineConfig(max_num_seqs=2))
    engine.start(folder)
    engine.load(folder)
    rows = [make_prompts(1, length, seed)[0] for seed, length in enumerate((20, 7, 20, 20))]
    prompts = [[token % 250 for token in row] for row in rows]  # one vocabulary has 251 tokens
    written = engine.generate(prompts, [0] * 4, DecodingConfig(temperature=0.0, max_new_tokens=STEPS))
    model = load_network(folder, "auto")
    assert written == [greedy(model, prompt) for prompt in prompts]
    assert engine._model.cached == (name not in WITHOUT_CACHE)
    assert (row_limit(model.config) is None) == (name in UNBOUNDED)


@pytest.mark.parametrize("name", ["llama", "mamba", "gpt2", "bloom", "granitemoe", "recurrent_gemma", "rwkv"])
@pytest.mark.parametrize("piece", [1, 3])
def test_a_row_read_in_pieces_has_the_logits_of_the_whole(name: str, piece: int, tmp_path: Path) -> None:
    """Both from a cache and, where a model has no right one, by reading the whole row at each piece."""
    folder = make_architecture(tmp_path / name, name)
    model = load_network(folder, "auto")
    reader, cache = CachedModel(model, piece), {}
    ids = torch.tensor(make_prompts(2, 20))
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits
        pieces = []
        for stop in range(20 % piece or piece, 21, piece):
            new = piece if pieces else stop
            logits, cache = reader.read(ids[:, :stop], cache, new=new, keep=new)
            pieces.append(logits)
    assert torch.cat(pieces, 1).shape == whole.shape
    # The tolerance by which a cache is judged, with room for 20 steps instead of 2.
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-3 * whole.abs().max()


def test_a_wrong_cache_is_not_used(tmp_path: Path) -> None:
    """A model whose cache forgets is found on the model itself, by no list of names."""
    folder = make_architecture(tmp_path / "llama", "llama")
    model = load_network(folder, "auto")
    assert CachedModel(model).cached

    def forget(_: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        return arguments, {key: value for key, value in keywords.items() if key != "past_key_values"}

    model.register_forward_pre_hook(forget, with_kwargs=True)
    assert not CachedModel(model).cached


def test_a_model_that_is_not_finite_keeps_its_cache(tmp_path: Path) -> None:
    """A diverged model is no reason to read every row whole at every token."""
    folder = make_architecture(tmp_path / "llama", "llama")
    model = load_network(folder, "auto")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    assert CachedModel(model).cached


def test_a_model_without_a_limit_takes_the_engines(tmp_path: Path) -> None:
    """Protects BLOOM and Mamba, whose configuration names no longest row."""
    folder = make_architecture(tmp_path / "bloom", "bloom")
    for asked, longest in ((None, 2048), (4096, 4096), (64, 64)):
        engine = HuggingFaceEngine(EngineConfig(max_model_len=asked))
        engine.start(folder)
        assert engine._longest == longest
