"""The green-list watermark: transformers' lists and detector, the same tokens from both engines, rows that are left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from engines.helpers import (
    ENGINE,
    GREEDY,
    VOCABULARY,
    ask,
    chi_square_p_value,
    make_prompts,
    needs_vllm,
    next_probabilities,
)
from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.engines.watermark import KEY, GreenLists, WatermarkConfig

MARKS = [
    WatermarkConfig(),
    WatermarkConfig(green=0.5, strength=4.0, key=7),
    WatermarkConfig(green=0.5, strength=6.0, key=3, context=3, share=0.5),
]


def marked(watermark: WatermarkConfig, decoding: DecodingConfig = GREEDY) -> DecodingConfig:
    return decoding.model_copy(update={"watermark": watermark})


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path]) -> HuggingFaceEngine:
    engine = HuggingFaceEngine(ENGINE)
    engine.start(checkpoints["tied0"])
    engine.load(checkpoints["tied0"])
    return engine


def transformers_config(watermark: WatermarkConfig) -> Any:
    from transformers import WatermarkingConfig

    return WatermarkingConfig(greenlist_ratio=watermark.green, bias=watermark.strength, hashing_key=KEY + watermark.key)


@pytest.mark.parametrize(("green", "key"), [(0.25, 0), (0.5, 1), (0.1, 12345), (0.9, 2**32 - 1)])
def test_lists_are_transformers_own(green: float, key: int) -> None:
    """Protects against a watermark that nobody else's detector knows."""
    from transformers import WatermarkLogitsProcessor

    theirs = WatermarkLogitsProcessor(1000, "cpu", green, 2.0, KEY + key)
    ours = GreenLists(WatermarkConfig(green=green, key=key), 1000)
    contexts = [0, 1, 17, 999, 17]
    lists = ours.after(contexts)
    for context, found in zip(contexts, lists, strict=True):
        assert set(found.nonzero()[:, 0].tolist()) == set(
            theirs._get_greenlist_ids(torch.tensor([5, context])).tolist()
        )


@pytest.mark.parametrize("watermark", MARKS[:2])
def test_greedy_text_is_transformers_own(
    engine: HuggingFaceEngine, checkpoints: dict[str, Path], watermark: WatermarkConfig
) -> None:
    """Protects the mark's place among the logits: what ``generate(watermarking_config=…)`` writes, token for token."""
    from transformers import AutoModelForCausalLM

    prompts = make_prompts(6, 16)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoints["tied0"])
    ids = torch.tensor(prompts)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        watermarking_config=transformers_config(watermark),
    )
    assert engine.generate(prompts, [0] * 6, marked(watermark)) == written[:, 16:].tolist()


@pytest.mark.parametrize("watermark", MARKS[:2])
@pytest.mark.parametrize("repeats", [True, False])
def test_scores_are_those_of_transformers_detector(
    engine: HuggingFaceEngine, checkpoints: dict[str, Path], watermark: WatermarkConfig, repeats: bool
) -> None:
    """Protects detection, of text with repeated phrases too: the z-score of ``WatermarkDetector``, row by row."""
    from transformers import AutoConfig, WatermarkDetector

    prompts, decoding = make_prompts(8, 16), DecodingConfig(max_new_tokens=40)
    rows = engine.generate(prompts[:4], [1, 2, 3, 4], marked(watermark, decoding))
    rows += engine.generate(prompts[4:], [5, 6, 7, 8], decoding)
    rows[0] = rows[0][:4] * 10
    theirs = WatermarkDetector(
        AutoConfig.from_pretrained(checkpoints["tied0"]),
        "cpu",
        transformers_config(watermark),
        ignore_repeated_ngrams=not repeats,
    )
    text = torch.tensor([[prompt[-1], *row] for prompt, row in zip(prompts, rows, strict=True)])
    ours = GreenLists(watermark, VOCABULARY).z_scores(prompts, rows, repeats=repeats)
    np.testing.assert_allclose(ours, theirs(text, return_dict=True).z_score, atol=1e-12)
    assert ours[1:4].min() > ours[4:].max()


@pytest.mark.parametrize("context", [1, 2, 4])
def test_text_without_the_mark_scores_as_chance_has_it(context: int) -> None:
    """Protects the threshold's meaning: mean 0 and variance 1 of 2,000 rows of chance, within four standard errors;
    an empty row scores 0."""
    lists = GreenLists(WatermarkConfig(context=context, green=0.3), 1000)
    random = np.random.default_rng(0)
    rows = random.integers(0, 1000, (2000, 60)).tolist()
    scores = lists.z_scores(random.integers(0, 1000, (2000, 4)).tolist(), rows)
    assert abs(scores.mean()) < 4 / 2000**0.5
    assert abs(scores.var() - 1) < 4 * (2 / 2000) ** 0.5
    assert lists.z_scores([[1, 2, 3, 4], [5, 6, 7, 8]], [[], []]).tolist() == [0.0, 0.0]


def test_a_share_of_the_rows_is_marked_and_the_others_are_as_ever(engine: HuggingFaceEngine) -> None:
    """Protects the truth against which detection is judged: which rows are marked follows from their seeds."""
    prompts, seeds = make_prompts(200, 8), list(range(1, 201))
    watermark = WatermarkConfig(share=0.3, strength=8.0, green=0.5)
    decoding = DecodingConfig(max_new_tokens=24)
    plain, written = (
        engine.generate(prompts, seeds, decoding),
        engine.generate(prompts, seeds, marked(watermark, decoding)),
    )
    truth = np.array([watermark.marks(seed) for seed in seeds])
    assert abs(truth.mean() - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5
    assert [row == other for row, other in zip(plain, written, strict=True)] == (~truth).tolist()
    scores = GreenLists(watermark, VOCABULARY).z_scores(prompts, written)
    assert ((scores > 4) == truth).mean() > 0.95


def expected_law(checkpoint: Path, prompt: list[int], watermark: WatermarkConfig, temperature: float) -> np.ndarray:
    """The marked law of the next token, by the paper's formula."""
    from transformers import WatermarkLogitsProcessor

    theirs = WatermarkLogitsProcessor(VOCABULARY, "cpu", watermark.green, 1.0, KEY + watermark.key)
    green = np.zeros(VOCABULARY)
    green[theirs._get_greenlist_ids(torch.tensor(prompt)).numpy()] = 1
    law = next_probabilities(checkpoint, prompt, temperature) * np.exp(watermark.strength / temperature * green)
    return law / law.sum()


def test_draws_follow_the_marked_law(engine: HuggingFaceEngine, checkpoints: dict[str, Path]) -> None:
    """Protects the strength: a chi-square test of 4,000 next tokens against p·exp(δ/T) on green ones."""
    prompt, decoding = make_prompts(1, 16)[0], DecodingConfig(temperature=0.8, max_new_tokens=1)
    drawn = np.ravel(engine.generate([prompt] * 4000, list(range(4000)), marked(MARKS[1], decoding)))
    assert chi_square_p_value(drawn, expected_law(checkpoints["tied0"], prompt, MARKS[1], 0.8)) > 1e-3


@pytest.mark.ray
@needs_vllm
def test_vllm_writes_the_same_tokens_and_draws_from_the_same_law(
    pool: EnginePool, engine: HuggingFaceEngine, checkpoints: dict[str, Path]
) -> None:
    """Protects the study from its engine: greedy rows of two lengths, more than run at once, not one token apart for
    each mark; sampled ones by a chi-square test; and no mark stays behind for the next request."""
    checkpoint = checkpoints["tied0"]
    prompts = [*make_prompts(90, 16), *make_prompts(4, 150, seed=1)]
    seeds = list(range(len(prompts)))
    for watermark in MARKS:
        rows = ask(pool, checkpoint, prompts, marked(watermark), seeds).generated_ids.to_pylist()
        assert rows == engine.generate(prompts, seeds, marked(watermark))
    prompt, decoding = make_prompts(1, 16)[0], DecodingConfig(temperature=0.8, max_new_tokens=1)
    drawn = ask(pool, checkpoint, [prompt] * 4000, marked(MARKS[1], decoding)).generated_ids.flatten().to_numpy()
    assert chi_square_p_value(drawn, expected_law(checkpoint, prompt, MARKS[1], 0.8)) > 1e-3
    plain = ask(pool, checkpoint, prompts, GREEDY, seeds).generated_ids.to_pylist()
    assert plain == engine.generate(prompts, seeds, GREEDY)


@needs_vllm
@pytest.mark.parametrize("watermark", MARKS)
def test_both_of_vllms_model_runners_mark_alike(watermark: WatermarkConfig) -> None:
    """The second runner needs a GPU: its processor is given that runner's state, as it describes it, on the CPU."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

    from fortifai_ray.engines.vllm_watermark import ARGUMENT, FirstRunners, SecondRunners

    config: Any = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY))
    asks = SamplingParams(extra_args={ARGUMENT: watermark.model_dump()})
    prompts, written = make_prompts(5, 6), make_prompts(5, 2, seed=1)
    requests = [asks, SamplingParams(), asks, SamplingParams(), asks]
    logits = torch.randn(5, VOCABULARY)

    first = FirstRunners(config, torch.device("cpu"), False)
    added = [(row, requests[row], prompts[row], written[row]) for row in range(5)]
    first.update_state(BatchUpdate(batch_size=5, removed=[], added=added, moved=[]))

    slots = [7, 3, 0, 5, 2]
    tokens = torch.zeros(8, 20, dtype=torch.int32)
    for row, slot in enumerate(slots):
        tokens[slot, :8] = torch.tensor(prompts[row] + written[row])
    buffer: Any = SimpleNamespace(gpu=tokens)
    state = LogitsProcRequestState(torch.device("cpu"), 8, VOCABULARY, buffer, buffer, buffer, buffer)
    second = SecondRunners(config, state)
    takes = [second.add_request(slot, request) for slot, request in zip(slots, requests, strict=True)]
    order = [4, 1, 0, 3, 2]  # rows of a step are in any order
    mapping = torch.tensor([slots[row] for row in order])
    context = LogitsContext(
        mapping, mapping, mapping.numpy(), torch.zeros(5), tokens[mapping, 7], torch.full((5,), 7), np.full(5, 8)
    )
    marked_rows = second.apply(logits[order].clone(), context)
    assert takes == [True, False, True, False, True]
    expected = first.apply(logits.clone())
    assert torch.equal(marked_rows, expected[order])
    assert torch.equal(expected[[1, 3]], logits[[1, 3]])
    assert not torch.equal(expected[0], logits[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"green": 0.0}, r"lies in \(0, 1\)"),
        ({"green": 1.0}, r"lies in \(0, 1\)"),
        ({"green": -0.5}, r"lies in \(0, 1\)"),
        ({"green": float("nan")}, "finite number"),
        ({"green": True}, "a number is needed"),
        ({"strength": -1.0}, "greater than or equal to 0"),
        ({"strength": float("inf")}, "finite number"),
        ({"key": -1}, "greater than or equal to 0"),
        ({"key": 0.5}, "valid integer"),
        ({"context": 0}, "greater than or equal to 1"),
        ({"share": 1.1}, "less than or equal to 1"),
        ({"gamma": 0.25}, "Extra inputs"),
    ],
)
def test_marks_out_of_range_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WatermarkConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_beams": 5}, "num_beams: 5"),
        ({"repetition_penalty": 1.2}, "repetition_penalty: 1.2"),
        ({"context_tokens": 2, "watermark": WatermarkConfig(context=3)}, "at most 2 is right"),
    ],
)
def test_marks_that_cannot_be_made_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DecodingConfig(**{"watermark": WatermarkConfig(), **keys})


def test_a_vocabulary_without_a_green_token_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one"):
        GreenLists(WatermarkConfig(green=0.1), 9)


def test_a_recipe_without_the_key_is_as_ever() -> None:
    """No stage's hash may move where no mark is asked for."""
    assert "watermark" not in DecodingConfig().model_dump(mode="json")
