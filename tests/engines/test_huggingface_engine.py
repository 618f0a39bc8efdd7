"""The engine for machines without vLLM: each row's noise is its own, and its draws follow the model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engines.helpers import ENGINE, GREEDY, SAMPLED, VOCABULARY, chi_square_p_value, make_prompts, next_probabilities
from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine, choose, keep_likeliest
from fortifai_ray.engines.pretrained import WeightsError


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path]) -> HuggingFaceEngine:
    made = HuggingFaceEngine(ENGINE)
    made.start(checkpoints["tied0"])
    made.load(checkpoints["tied0"])
    return made


def test_noise_depends_on_the_rows_seed_alone(engine: HuggingFaceEngine) -> None:
    """Protects the pairing of chains: same seed, same tokens, whatever stands beside the row; else others."""
    prompts = make_prompts(6, 16)
    together = engine.generate(prompts, [5, 6, 7, 8, 9, 10], SAMPLED)
    backwards = engine.generate(prompts[::-1], [10, 9, 8, 7, 6, 5], SAMPLED)
    assert together == backwards[::-1]
    assert engine.generate([prompts[0]] * 3, [1, 2, 1], SAMPLED)[0] == engine.generate([prompts[0]], [1], SAMPLED)[0]
    same, other, again = engine.generate([prompts[0]] * 3, [1, 2, 1], SAMPLED)
    assert same == again
    assert same != other


def test_a_row_does_not_depend_on_the_length_of_others(engine: HuggingFaceEngine) -> None:
    """Protects rows of unequal length in one call."""
    long, short = make_prompts(1, 40)[0], make_prompts(1, 9, seed=1)[0]
    alone = [engine.generate([prompt], [0], GREEDY)[0] for prompt in (long, short)]
    assert engine.generate([long, short], [0, 0], GREEDY) == alone


def test_draws_follow_the_models_distribution(engine: HuggingFaceEngine, checkpoints: dict[str, Path]) -> None:
    """Protects exact sampling: the counts of the next token pass a chi-square test against the softmax."""
    prompt = make_prompts(1, 16)[0]
    decoding = DecodingConfig(temperature=0.8, max_new_tokens=1)
    drawn = np.ravel(engine.generate([prompt] * 4000, list(range(4000)), decoding))
    assert chi_square_p_value(drawn, next_probabilities(checkpoints["tied0"], prompt, 0.8)) > 1e-3


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    """Protects the filters, against sets worked out by hand."""
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert keep_likeliest(probabilities, 2, 1.0).nonzero()[:, 1].tolist() == [1, 3]
    assert keep_likeliest(probabilities, 0, 0.6).nonzero()[:, 1].tolist() == [1, 3]
    assert keep_likeliest(probabilities, 0, 0.39).nonzero()[:, 1].tolist() == [1]
    assert keep_likeliest(probabilities, 3, 0.8).nonzero()[:, 1].tolist() == [1, 2, 3]  # 0.4 + 0.3 of 0.9 is under 0.8
    assert keep_likeliest(probabilities, 0, 1.0).equal(probabilities)


def test_a_draw_at_either_end_of_the_noise_is_a_possible_token() -> None:
    """Protects the edges: noise 0 and noise just under 1 must not fall on a token of probability 0."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).repeat(2, 1)
    ids = torch.zeros(2, 1, dtype=torch.long)
    noise = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert choose(logits, ids, noise, DecodingConfig()).tolist() == [1, 2]


def test_a_row_ends_at_its_end_of_text_token(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects ``ignore_eos: false``: rows end with the token, not after it; by default they go on."""
    folder = tmp_path / "ending"
    shutil.copytree(checkpoints["tied0"], folder)
    prompts = make_prompts(6, 16)
    engine = HuggingFaceEngine(ENGINE)
    engine.start(folder)
    engine.load(folder)
    whole = engine.generate(prompts, [0] * 6, GREEDY)
    end = whole[0][4]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {end}}}')
    engine.load(folder)
    assert engine.generate(prompts, [0] * 6, GREEDY) == whole
    ended = engine.generate(prompts, [0] * 6, GREEDY.model_copy(update={"ignore_eos": False}))
    assert ended == [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert len(ended[0]) <= 5


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize(("least", "ignore"), [(12, True), (12, False), (6, False)])
def test_the_end_of_text_token_is_not_written_before_its_time(
    checkpoints: dict[str, Path], tmp_path: Path, beams: int, least: int, ignore: bool
) -> None:
    """``min_new_tokens`` as transformers' own ``generate`` has it, for beams and greedy rows; a sampled row of a token
    that a plain draw would give has another one."""
    folder = tmp_path / "ending"
    shutil.copytree(checkpoints["tied0"], folder)
    prompts = make_prompts(4, 16)
    engine = HuggingFaceEngine(ENGINE)
    engine.start(folder)
    engine.load(folder)
    plain = GREEDY if beams == 1 else DecodingConfig(num_beams=beams, max_new_tokens=12)
    end = engine.generate(prompts, [0] * 4, plain)[0][3]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {end}}}')
    engine.load(folder)
    decoding = plain.model_copy(update={"min_new_tokens": least, "ignore_eos": ignore})
    written = engine.generate(prompts, [0] * 4, decoding)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, row in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=beams,
            min_new_tokens=least,
            max_new_tokens=12,
            eos_token_id=end,
            pad_token_id=0,
        )
        assert row == expected[0, 16:].tolist()
        assert end not in row[:least]
    drawn = DecodingConfig(max_new_tokens=12, min_new_tokens=12)
    assert all(end not in row for row in engine.generate(prompts, [1] * 4, drawn))


def test_a_missing_or_misshapen_tensor_fails_loudly(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects against transformers' random stand-ins for what a checkpoint lacks."""
    for name, change in {"missing": None, "misshapen": torch.zeros(3)}.items():
        folder = tmp_path / name
        shutil.copytree(checkpoints["tied0"], folder)
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.norm.weight")
        if change is not None:
            tensors["model.norm.weight"] = change
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        engine = HuggingFaceEngine(ENGINE)
        engine.start(folder)
        with pytest.raises(WeightsError):
            engine.load(folder)


def test_every_token_is_in_the_vocabulary(engine: HuggingFaceEngine) -> None:
    """Protects the shape of an answer: as many rows as prompts, ``max_new_tokens`` each."""
    rows = engine.generate(make_prompts(70, 5), list(range(70)), SAMPLED)  # more than max_num_seqs
    assert [len(row) for row in rows] == [SAMPLED.max_new_tokens] * 70
    assert 0 <= min(map(min, rows)) <= max(map(max, rows)) < VOCABULARY


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_beams_are_transformers_own(engine: HuggingFaceEngine, checkpoints: dict[str, Path], penalty: float) -> None:
    """Five beams, with and without Shumailov et al.'s penalty: what `generate` gives each prompt by itself."""
    from transformers import AutoModelForCausalLM

    decoding = DecodingConfig(num_beams=5, repetition_penalty=penalty, max_new_tokens=8)
    prompts = [make_prompts(1, 12)[0], make_prompts(1, 7, seed=1)[0]]
    model = AutoModelForCausalLM.from_pretrained(checkpoints["tied0"], dtype=torch.float32)
    alone = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=5,
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=8,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    written = engine.generate(prompts, [0, 0], decoding)
    assert [len(row) for row in written] == [8, 8]
    assert written == alone


def test_beams_and_sampling_exclude_each_other() -> None:
    """A beam search draws nothing: a temperature beside it would be silently ignored."""
    with pytest.raises(ValueError, match="beam search draws nothing"):
        DecodingConfig(num_beams=5, temperature=0.8)
