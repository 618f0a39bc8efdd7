"""What vLLM draws: per-row seeds, the model's distribution, and the same greedy text as transformers."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engines.helpers import (
    ENGINE,
    GREEDY,
    SAMPLED,
    ask,
    chi_square_p_value,
    make_prompts,
    needs_vllm,
    next_probabilities,
)
from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.engines.pool import EnginePool

pytestmark = [pytest.mark.ray, needs_vllm]


def test_rows_of_one_seed_agree_and_others_do_not(pool: EnginePool, checkpoints: dict[str, Path]) -> None:
    """Protects the pairing of chains, and against one seed for a whole batch."""
    prompt = make_prompts(1, 16)[0]
    seeds = [1, 2, 1, 2**62 + 1]
    rows = ask(pool, checkpoints["tied0"], [prompt] * 4, SAMPLED, seeds).generated_ids.to_pylist()
    assert rows[0] == rows[2]
    assert len({tuple(row) for row in rows}) == 3


def test_draws_follow_the_models_distribution(pool: EnginePool, checkpoints: dict[str, Path]) -> None:
    """Protects exact sampling under per-row seeds: a chi-square test of the next token against the softmax."""
    prompt = make_prompts(1, 16)[0]
    decoding = DecodingConfig(temperature=0.8, max_new_tokens=1)
    answer = ask(pool, checkpoints["tied0"], [prompt] * 4000, decoding)
    drawn = answer.generated_ids.flatten().to_numpy()
    assert chi_square_p_value(drawn, next_probabilities(checkpoints["tied0"], prompt, 0.8)) > 1e-3


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", ["untied0", "tied0"])  # one after the other: each change starts vLLM anew
def test_greedy_text_equals_transformers(
    pool: EnginePool, checkpoints: dict[str, Path], name: str, penalty: float
) -> None:
    """Protects the two engines' agreement: same weights, prompts of several lengths, float32, not one token apart."""
    decoding = GREEDY.model_copy(update={"repetition_penalty": penalty})
    prompts = [*make_prompts(8, 16), *make_prompts(4, 150, seed=1)]
    other = HuggingFaceEngine(ENGINE)
    other.start(checkpoints[name])
    other.load(checkpoints[name])
    expected = other.generate(prompts, [0] * len(prompts), decoding)
    assert ask(pool, checkpoints[name], prompts, decoding).generated_ids.to_pylist() == expected


def test_nucleus_and_top_k_draws_stay_inside(pool: EnginePool, checkpoints: dict[str, Path]) -> None:
    """Protects the filters on their way to the engine: only the likeliest tokens are drawn."""
    prompt = make_prompts(1, 16)[0]
    likeliest = np.argsort(-next_probabilities(checkpoints["tied0"], prompt, 1.0))
    decoding = DecodingConfig(top_k=3, max_new_tokens=1)
    drawn = ask(pool, checkpoints["tied0"], [prompt] * 200, decoding).generated_ids.flatten().to_pylist()
    assert set(drawn) == set(likeliest[:3].tolist())
    decoding = DecodingConfig(top_p=1e-6, max_new_tokens=1)
    drawn = ask(pool, checkpoints["tied0"], [prompt] * 50, decoding).generated_ids.flatten().to_pylist()
    assert set(drawn) == {int(likeliest[0])}


def test_rows_end_where_transformers_ends_them(pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects ``ignore_eos: false`` and ``min_new_tokens``, and the pool when it is asked for the other engine."""
    folder = tmp_path / "ending"
    shutil.copytree(checkpoints["tied0"], folder)
    prompts = make_prompts(6, 16)
    whole = ask(pool, folder, prompts, GREEDY).generated_ids.to_pylist()
    end = whole[0][4]
    ending = shutil.copytree(folder, tmp_path / "ending-early")
    (ending / "generation_config.json").write_text(f'{{"eos_token_id": {end}}}')
    decoding = GREEDY.model_copy(update={"ignore_eos": False})
    expected = [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert ask(pool, ending, prompts, decoding).generated_ids.to_pylist() == expected
    later = [
        GREEDY.model_copy(update={"min_new_tokens": n, "ignore_eos": ignore}) for n, ignore in ((12, True), (6, False))
    ]
    written = [ask(pool, ending, prompts, each).generated_ids.to_pylist() for each in later]
    for each, rows in zip(later, written, strict=True):
        assert all(end not in row[: each.min_new_tokens] for row in rows)
    other = ENGINE.model_copy(update={"kind": "huggingface"})  # asked last: each change of the kind starts an engine
    for each, rows in zip((decoding, *later), (expected, *written), strict=True):
        assert ask(pool, ending, prompts, each, engine=other).generated_ids.to_pylist() == rows
