"""A model's signs against whole logits, row by row, in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from fortifai_ray.evaluation.signs import SignsConfig
from fortifai_ray.evaluation.signs.model import HISTOGRAM_EDGES, count_target_bytes, histogram, model_signs
from fortifai_ray.evaluation.signs.scoring import Scorer, Scores, Text
from fortifai_ray.families.language.scoring import perplexity
from fortifai_ray.metrics import METRICS

VOCABULARY, CONTEXT, GAMMA, BINS = 300, 24, 0.3, 15
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,  # sure of something: probabilities from 0 to nearly 1
}
SETTINGS = SignsConfig(gamma=GAMMA, calibration_bins=BINS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of a known head, and ``granite``, which divides its logits: its head is not served by itself."""
    configs = {
        "first": transformers.LlamaConfig(**SHAPE),
        "second": transformers.LlamaConfig(**SHAPE),
        "granite": transformers.GraniteConfig(**SHAPE, logits_scaling=2.0, attention_multiplier=0.25),
    }
    folders = {}
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        folders[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, size=shape, dtype=np.int32)


def texts() -> list[Text]:
    """Of all lengths and contexts, one token long, without a target, and as long as the model takes."""
    lengths = [(24, 1), (5, 2), (17, 9), (1, 1), (2, 1), (8, 8), (24, 20), (11, 1), (3, 0)]
    return [Text(ids(length, seed=i), given) for i, (length, given) in enumerate(lengths)]


def rows(prompts: list[list[int]], generated: list[list[int]]) -> pa.Table:
    kind = pa.list_(pa.int32())
    return pa.table({"prompt_ids": pa.array(prompts, kind), "generated_ids": pa.array(generated, kind)})


def plain(checkpoint: Path, scored: list[Text], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Text by text, whole logits, in one dtype: log p, entropy, largest probability and whether it was right."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("log_p", "entropy", "confidence", "correct")}
    for tokens, given in scored:
        start = max(1, given)
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(tokens).long()[None]).logits[0, start - 1 : -1]
        target = torch.from_numpy(tokens).long()[start:]
        probabilities = logits.softmax(-1)
        found["log_p"].append(logits.log_softmax(-1)[torch.arange(len(target)), target].numpy())
        found["entropy"].append(-(probabilities * probabilities.log()).sum(-1).numpy())
        found["confidence"].append(probabilities.max(-1).values.numpy())
        found["correct"].append((logits.argmax(-1) == target).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()} | {
        "nll": np.array([-part.astype(np.float64).sum() for part in found["log_p"]])
    }


@pytest.mark.parametrize("name", ["first", "granite"])
@pytest.mark.parametrize("logits_at_once", [1, 10 * VOCABULARY, 2**22])
def test_scores_are_those_of_whole_logits(checkpoints: dict[str, Path], name: str, logits_at_once: int) -> None:
    """In any number of chunks, and by a head that is known or not. Sums may err from float64 by what four times plain
    float32 does, text by text, plus four roundings of each sum."""
    exact = plain(checkpoints[name], texts(), torch.float64)
    coarse = plain(checkpoints[name], texts(), torch.float32)
    scorer = Scorer(checkpoints[name], logits_at_once=logits_at_once)
    assert (scorer._head is None) == (name == "granite")
    scores = scorer.score(texts(), gamma=GAMMA, bins=BINS)

    def allowed(key: str, transform: Any = lambda x: x) -> float:
        errors = np.abs(transform(coarse[key].astype(np.float64)) - transform(exact[key]))
        return 4 * (errors.sum() + np.finfo(np.float32).eps * np.abs(transform(exact[key])).sum())

    assert np.abs(scores.nll - exact["nll"]).max() <= allowed("nll")
    assert abs(scores.probability - np.exp(exact["log_p"]).sum()) <= allowed("log_p", np.exp)
    assert abs(scores.entropy - exact["entropy"].sum()) <= allowed("entropy")
    assert scores.targets.tolist() == [23, 3, 8, 0, 1, 0, 4, 10, 2]
    margin = np.abs(exact["log_p"] - math.log(GAMMA)).min()
    assert margin > np.abs(coarse["log_p"] - exact["log_p"]).max(), "a target too near to γ to say"
    assert scores.kept == (exact["log_p"] <= math.log(GAMMA)).sum()
    assert (
        np.abs(scores.calibration_error - slow_calibration_error(exact)) <= allowed("confidence") / scores.all_targets
    )
    alone = scorer.score(texts(), alone=True)  # without the sums: each text's own numbers are these bit for bit
    for of_texts in ("nll", "probabilities", "targets"):
        assert np.array_equal(getattr(alone, of_texts), getattr(scores, of_texts))


def slow_calibration_error(exact: dict[str, np.ndarray]) -> float:
    """Guo et al. 2017, equation 3, as it is written."""
    error, n = 0.0, len(exact["confidence"])
    for low in np.arange(BINS) / BINS:
        inside = (exact["confidence"] >= low) & (exact["confidence"] < low + 1 / BINS)
        if inside.any():
            gap = abs(exact["correct"][inside].mean() - exact["confidence"][inside].mean())
            error += inside.sum() / n * gap
    return float(error)


def test_perplexity_is_the_evaluations(checkpoints: dict[str, Path]) -> None:
    """Both sum float32 log-probabilities in float64: apart by a few roundings of a mean log-probability at most."""
    blocks = ids(40, CONTEXT)
    signs = model_signs(checkpoints["first"], blocks, rows([[1]], [[2]]), None, SETTINGS, human_bytes=2500)
    expected = perplexity(checkpoints["first"], blocks, batch_size=7)
    value = signs.values["perplexity"]
    assert value is not None
    assert abs(math.log(value) - math.log(expected.perplexity)) <= 16 * np.finfo(np.float32).eps * math.log(value)
    assert signs.counts["human_targets"] == expected.targets
    bits = math.log2(value) * expected.targets / 2500
    assert signs.values["held_out_bits_per_byte"] == pytest.approx(bits, rel=1e-12)


def test_synthetic_text_is_scored_given_its_prompt(checkpoints: dict[str, Path]) -> None:
    """Under its own model and under generation 0's; the histograms count each document once."""
    prompts, generated = ids(10, 4).tolist(), ids(10, 9, seed=1).tolist()
    signs = model_signs(checkpoints["second"], ids(3, 8), rows(prompts, generated), checkpoints["first"], SETTINGS)
    scored = [Text(np.array(p + g), 4) for p, g in zip(prompts, generated, strict=True)]
    of_model = {name: plain(checkpoints[name], scored, torch.float64)["nll"] / 9 for name in ("first", "second")}
    values = signs.values
    # float32: logits here reach 100, of which a rounding is 8e-6; a sum of 9 keeps a mean of such errors
    assert values["perplexity_synthetic"] == pytest.approx(math.exp(of_model["second"].mean()), rel=1e-4)
    assert values["perplexity_synthetic_generation_0"] == pytest.approx(math.exp(of_model["first"].mean()), rel=1e-4)
    tail = np.quantile(np.exp(of_model["first"]), 0.95)
    assert values["perplexity_synthetic_generation_0_q95"] == pytest.approx(tail, rel=1e-4)
    assert values["surplexity"] == pytest.approx(np.exp(of_model["second"]).mean(), rel=1e-4)
    for name, kept in (("second", "synthetic"), ("first", "synthetic_generation_0")):
        log_p = plain(checkpoints[name], scored, torch.float64)["log_p"].reshape(10, 9)  # a row per document
        means = np.exp(log_p).mean(axis=1)
        assert np.abs(means * 100 - np.rint(means * 100)).min() > 1e-3, "a mean too near to a bin's edge to say"
        expected = np.bincount((means * 100).astype(int), minlength=100).tolist()
        assert signs.histograms[f"probability_histogram_{kept}"] == expected
    assert sum(signs.histograms["probability_histogram_human"]) == 3
    assert signs.histograms["perplexity_histogram"] == histogram(np.exp(of_model["second"]))
    assert signs.histograms["perplexity_histogram_generation_0"] == histogram(np.exp(of_model["first"]))
    assert signs.reasons == {"held_out_bits_per_byte": "the bytes of the human text were not given"}


def test_generation_0_is_its_own_reference(checkpoints: dict[str, Path]) -> None:
    table = rows(ids(5, 4).tolist(), ids(5, 6).tolist())
    signs = model_signs(checkpoints["first"], ids(2, 8), table, checkpoints["first"], SETTINGS)
    assert signs.values["perplexity_synthetic"] == signs.values["perplexity_synthetic_generation_0"]
    assert signs.histograms["perplexity_histogram"] == signs.histograms["perplexity_histogram_generation_0"]


def test_a_uniform_model_is_unsure_of_everything(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """All-zero weights: perplexity V, entropy ln V, target probability 1/V, everything kept."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["first"])
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(tmp_path)
    values = model_signs(tmp_path, ids(2, 8), rows([[1, 2]], [[3, 4, 5]]), None, SETTINGS).values
    for name in ("perplexity", "perplexity_synthetic", "surplexity"):
        assert values[name] == pytest.approx(VOCABULARY, rel=1e-6)
    assert values["predictive_entropy_human"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert values["mean_target_probability_synthetic"] == pytest.approx(1 / VOCABULARY, rel=1e-6)
    assert values["kept_fraction_human"] == values["kept_fraction_synthetic"] == 1.0


def test_no_row_is_dropped_in_silence(checkpoints: dict[str, Path]) -> None:
    """Rows without a generated token, without a context, and longer than the model's context, each counted."""
    long_prompt, long_text = ids(20).tolist(), ids(CONTEXT + 6, seed=2).tolist()
    table = rows([[1], [], [], long_prompt, [4]], [[], [7], [5, 6, 7], [8] * 10, long_text])
    signs = model_signs(checkpoints["first"], ids(2, CONTEXT + 1), table, None, SETTINGS)
    counts = signs.counts
    assert counts["synthetic_rows"] == 5
    assert (counts["synthetic_rows_empty"], counts["synthetic_rows_without_target"]) == (1, 1)
    assert counts["synthetic_rows_scored"] == 3
    # The last row has 30 targets after its prompt, and 23 in what the context of 24 leaves.
    assert (counts["synthetic_rows_cut"], counts["synthetic_targets_cut"]) == (2, 7)
    assert counts["synthetic_targets"] == 2 + 10 + 23
    assert (counts["human_rows_cut"], counts["human_targets_cut"], counts["human_targets"]) == (2, 2, 46)
    kept = plain(checkpoints["first"], [Text(np.array(long_text[-CONTEXT:], dtype=np.int32), 1)], torch.float64)
    only = model_signs(checkpoints["first"], ids(2, 8), rows([[4]], [long_text]), None, SETTINGS)
    assert only.values["surplexity"] == pytest.approx(math.exp(kept["nll"][0] / 23), rel=1e-4)


def test_without_text_there_is_a_reason(checkpoints: dict[str, Path]) -> None:
    signs = model_signs(checkpoints["first"], ids(0, 8), rows([], []), checkpoints["second"], SETTINGS, human_bytes=1)
    assert set(signs.values.values()) == {None}
    assert set(signs.reasons.values()) == {"there is no text to score"}
    assert set(signs.values) <= set(METRICS)


def test_documents_are_drawn_by_the_seed(checkpoints: dict[str, Path]) -> None:
    table = rows(ids(20, 3).tolist(), ids(20, 5, seed=1).tolist())
    settings = SignsConfig(documents=6)
    of_seed = [model_signs(checkpoints["first"], ids(1, 8), table, None, settings, seed=seed) for seed in (0, 0, 1)]
    assert of_seed[0] == of_seed[1]
    assert of_seed[0].values["surplexity"] != of_seed[2].values["surplexity"]
    assert of_seed[0].counts["synthetic_rows_not_drawn"] == 14
    assert sum(of_seed[0].histograms["perplexity_histogram"]) == 6


def test_a_broken_model_is_seen(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """NaN weights: no value that looks like one, and every document in the histogram's last bin."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["first"])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    signs = model_signs(tmp_path, ids(2, 8), rows([[1, 2]], [[3, 4, 5]]), None, SETTINGS)
    assert signs.values["perplexity"] is None
    assert signs.reasons["perplexity"] == signs.reasons["predictive_entropy_human"] == "not finite: nan"
    assert signs.values["kept_fraction_human"] == 1.0
    assert signs.histograms["perplexity_histogram"] == [0] * 59 + [1]


def test_histogram_leaves_nothing_out() -> None:
    counted = histogram(np.array([1.0, 0.9999999, 1.3, 999999.0, 1e9, math.inf, math.nan]))
    assert counted == [2, 1] + [0] * 57 + [4]
    assert len(counted) == len(HISTOGRAM_EDGES) - 1


def test_probabilities_of_zero_have_no_entropy() -> None:
    """A model that rules tokens out (logits of −∞) has a finite entropy."""
    from fortifai_ray.evaluation.signs.scoring import _measure

    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    assert _measure(logits, torch.tensor([0]), 0.0, 1).sums[1].item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_text_of_no_targets_has_no_perplexity() -> None:
    none = Scores(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64), 0.0, 0.0, 0, *np.zeros((3, 1)))
    assert math.isnan(none.perplexity)
    assert math.isnan(none.calibration_error)
    assert len(none.document_perplexities) == 0


def test_target_bytes_are_those_of_the_text() -> None:
    """The first token of a block and the end of text have none; é has two."""
    words = ["<end>", "a", "é", "bc"]
    blocks = np.array([[1, 2, 3], [3, 0, 1]])

    def decode(ids: Any) -> list[str]:
        return ["".join(words[i] for i in row) for row in ids]

    assert count_target_bytes(blocks, decode, end_of_text=0) == (2 + 2) + 1
