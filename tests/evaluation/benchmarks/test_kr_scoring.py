"""Scores of continuations against plain references, one text at a time."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.evaluation.benchmarks import pair_scoring as scoring
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam, Question, load_exam, make_exam
from fortifai_ray.evaluation.benchmarks.kr_scoring import score_exam
from fortifai_ray.evaluation.benchmarks.pair_scoring import score_sentences

CONTEXT = 512
# Sums of up to 100 log-probabilities of size 10 in float32: 100 × 10 × 2⁻²³ ≈ 1e-4 at worst, where all err alike.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def exam(data_dir: Path) -> Exam:
    """The first 40 published questions."""
    return load_exam(data_dir / "kr_test" / "wikitext2_kr_questions.json", limit=40)


def _log_probabilities(network: Any, ids: list[int]) -> np.ndarray:
    """Of each token but the first, by the whole text in one pass, normalised in float64."""
    import torch

    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()


def _as_published(network: Any, tokenizer: Any, texts: tuple[str, str], start: int, side: str) -> list[float]:
    """ForTIFAI's question_answerer, retold: both texts padded to one length with the end-of-text token, no mask."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    end = min(len(tokenizer.tokenize(text)) for text in texts)
    scores = []
    for row in rows:
        padding = [tokenizer.eos_token_id] * (width - len(row))
        padded = row + padding if side == "right" else padding + row
        values = _log_probabilities(network, padded)
        kept = [
            value for token, value in zip(padded[1:], values, strict=True) if token not in tokenizer.all_special_ids
        ]
        scores.append(sum(kept[start:end]) / (end - start))
    return scores


def _published_exam(network: Any, tokenizer: Any, exam: Exam, side: str) -> list[list[float]]:
    found = []
    for question in exam.questions.values():
        true, false = (f"{question.context} {answer}" for answer in question.sentences)
        start = len(tokenizer.tokenize(question.context))
        found.append(_as_published(network, tokenizer, (true, false), start, side))
    return found


@pytest.mark.parametrize("which", ["tokenizer", "tokenizer_with_start"])
def test_fortifai_score_is_the_published_codes(
    network: Any, exam: Exam, which: str, request: pytest.FixtureRequest
) -> None:
    """Parity with the published scoring, padded on either side, whether or not the tokenizer starts each text with a
    token."""
    tokenizer = request.getfixturevalue(which)
    scores = score_exam(network, tokenizer, exam, CONTEXT)
    for side, found in (("right", scores.fortifai), ("left", scores.fortifai_left)):
        expected = _published_exam(network, tokenizer, exam, side)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    alike = np.isclose(scores.fortifai, scores.fortifai_left, rtol=0, atol=TOLERANCE)
    assert alike.any(axis=1).all(), "the longer text is never padded"
    assert not alike.all()
    assert len(scores.position) == 40
    assert not scores.truncated.any()


@pytest.mark.parametrize("which", ["tokenizer", "tokenizer_with_start"])
def test_blimp_is_scored_as_published(network: Any, which: str, request: pytest.FixtureRequest) -> None:
    """The mean over the shorter sentence's length, padded on either side; also a single token."""
    tokenizer = request.getfixturevalue(which)
    pairs = [
        ("Who ate the fish?", "Who the fish ate?"),
        ("The cats sleep on the mat.", "The cats sleeps on the mat, all of them."),
        ("Many girls insulted themselves there and then.", "Many girls insulted herself."),
        ("a", "The cats"),
    ]
    scores = score_sentences(network, tokenizer, pairs, CONTEXT)
    for side in ("right", "left"):
        expected = [_as_published(network, tokenizer, pair, 0, side) for pair in pairs]
        np.testing.assert_allclose(getattr(scores, side), expected, rtol=0, atol=TOLERANCE)


def test_without_a_token_to_pad_with_the_padded_score_is_left_out(network: Any, tokenizer: Any) -> None:
    """No answer is given for it; where both texts are as long, nothing needs padding."""
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    exam = make_exam([Question("A b.", "C d.", "C d, e and f."), Question("A b.", "c", "d")])
    scores = score_exam(network, bare, exam, CONTEXT)
    assert list(scores.answers("fortifai")) == [0, 1]
    assert list(scores.answers("fortifai_left")) == [1]


@pytest.mark.parametrize("which", ["tokenizer", "tokenizer_with_start"])
def test_total_is_the_continuations_log_probability(
    network: Any, exam: Exam, which: str, request: pytest.FixtureRequest
) -> None:
    """The whole continuation counts, and nothing of the context."""
    tokenizer = request.getfixturevalue(which)
    scores = score_exam(network, tokenizer, exam, CONTEXT)
    for row, question in enumerate(exam.questions.values()):
        for column, answer in enumerate((question.sentence_true, question.sentence_false)):
            ids = tokenizer(f"{question.context} {answer}")["input_ids"]
            size = len(ids) - len(tokenizer(question.context)["input_ids"])
            assert scores.tokens[row, column] == size
            assert scores.bytes[row, column] == len(answer.encode())
            expected = _log_probabilities(network, ids)[-size:].sum()
            assert scores.total[row, column] == pytest.approx(expected, abs=TOLERANCE)


def test_a_text_beyond_the_context_is_cut_from_the_left_and_counted(network: Any, tokenizer: Any) -> None:
    """What is left of it is scored as if it were the whole text, and the result says so."""
    context, answer = "The game was praised for its engaging storyline. " * 8, "It sold well in Japan."
    exam = make_exam([Question(context.strip(), answer, "It sold badly in Japan."), Question("A", "b c", "d e")])
    scores = score_exam(network, tokenizer, exam, max_length=32)
    assert scores.truncated.tolist() == [True, False]
    ids = tokenizer(f"{context.strip()} {answer}")["input_ids"]
    expected = _log_probabilities(network, ids[-33:])[-int(scores.tokens[0, 0]) :].sum()
    assert scores.total[0, 0] == pytest.approx(expected, abs=TOLERANCE)


def test_a_continuation_beyond_the_context_keeps_its_end(network: Any, tokenizer: Any) -> None:
    """Of a continuation longer than the context, what the model can predict is scored, over its own count."""
    answer = "The game was praised for its engaging storyline and sold well in Japan."
    scores = score_exam(network, tokenizer, make_exam([Question("A", answer, answer + " Not.")]), max_length=8)
    assert scores.tokens.tolist() == [[8, 8]]
    assert scores.truncated.all()
    ids = tokenizer(f"A {answer}")["input_ids"]
    assert scores.per_token[0, 0] == pytest.approx(_log_probabilities(network, ids[-9:]).mean(), abs=TOLERANCE)


def test_batching_changes_nothing(network: Any, tokenizer: Any, exam: Exam, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text at a time and many together agree: padding is not seen."""
    together = score_exam(network, tokenizer, exam, CONTEXT)
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 1)
    alone = score_exam(network, tokenizer, exam, CONTEXT)
    np.testing.assert_allclose(together.total, alone.total, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(together.position, alone.position)


_SHAPE = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"intermediate_size": 64},
    "Qwen2Config": {"intermediate_size": 64, "num_key_value_heads": 1},
    "OPTConfig": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Gemma3TextConfig": {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8},
    "GPT2Config": {},
}


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
def test_architectures_of_the_studies(architecture: str) -> None:
    """Right padding and logits of the last places hold for each: rows of unlike lengths score as they do alone."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, architecture)(**_SHAPE, **_ARCHITECTURES[architecture])
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    random = np.random.default_rng(0)
    rows = [random.integers(5, 512, size).tolist() for size in (30, 7, 19, 2)]
    first = [12, 3, 1, 1]
    scored = scoring.log_probabilities(network, rows, first, max_length=64)
    for row, start, values in zip(rows, first, scored, strict=True):
        np.testing.assert_allclose(values, _log_probabilities(network, row)[start - 1 :], rtol=0, atol=TOLERANCE)


def test_what_cannot_be_asked_is_told(network: Any, tokenizer: Any) -> None:
    """A question without a false continuation keeps its position and its reason; none is dropped."""
    asked = [Question("A b.", "C d.", ""), Question("A b.", "C d.", "E f."), Question("A b.", "C d.", "C d.")]
    scores = score_exam(network, tokenizer, make_exam(asked), CONTEXT)
    assert scores.position.tolist() == [1]
    assert scores.skipped == {0: "it has no sentence_false", 2: "sentence_true and sentence_false are the same"}
    assert scores.size == 3
