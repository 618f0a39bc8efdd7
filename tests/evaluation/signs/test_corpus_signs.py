"""A corpus's signs together: the cut to one size, known texts, what is recorded of bad input."""

import numpy as np
import pyarrow as pa
import pytest

from fortifai_ray.evaluation.signs import Signs, SignsConfig
from fortifai_ray.evaluation.signs.corpus import corpus_signs
from fortifai_ray.metrics import METRICS
from fortifai_ray.seeds import generator

SETTINGS = SignsConfig()


def lists(rows: list[list[int]]) -> pa.Array:
    return pa.array(rows, type=pa.list_(pa.int32()))


def uniform(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, size=(rows, 32), dtype=np.int32)


def test_a_corpus_against_itself_has_lost_nothing() -> None:
    signs = corpus_signs(uniform(50), uniform(50), SETTINGS)
    assert signs.values["unigram_kl"] == signs.values["bigram_kl"] == 0.0
    assert signs.values["tail_coverage"] == signs.values["tail_coverage_decile_1"] == 1.0
    assert signs.values["duplicate_share"] == 0.0
    assert not signs.reasons


def test_every_sign_of_a_collapsed_corpus_moves_as_the_registry_says() -> None:
    """A corpus of one sentence over and over against a varied one: each sign is worse, in its own direction."""
    varied = corpus_signs(uniform(50, seed=1), uniform(50), SETTINGS).values
    collapsed = corpus_signs(np.tile(np.arange(8, dtype=np.int32), (50, 4)), uniform(50), SETTINGS).values
    for name, value in varied.items():
        after = collapsed[name]
        assert value is not None
        assert after is not None
        if METRICS[name].direction == "above":
            assert after > value, name
        elif name.startswith("tail_coverage_decile"):
            assert after <= value, name
        else:
            assert after < value, name
    assert collapsed["longest_repeated_span"] == collapsed["mean_repeated_span"] == 24.0
    assert collapsed["duplicate_share"] == pytest.approx(0.98)
    assert collapsed["self_bleu"] == pytest.approx(1.0)


def test_both_corpora_are_cut_to_the_smaller_ones_size() -> None:
    """Signs depend on size: twice the human text, or a longer corpus than was asked for, changes nothing but ForTIFAI's
    divergence, which takes whatever there is."""

    def cut(signs: Signs) -> dict[str, float | None]:
        return {name: value for name, value in signs.values.items() if name != "unigram_kl_fortifai"}

    settings = SignsConfig(tokens=320)
    expected = corpus_signs(uniform(10), uniform(10, seed=1), settings)
    longer = corpus_signs(uniform(20), uniform(30, seed=1), settings)
    # NumPy fills row by row from one stream, so that a larger draw begins as a smaller one does.
    assert cut(longer) == cut(expected)
    assert longer.values != expected.values
    assert longer.counts["corpus_tokens"] == 320
    assert longer.counts["corpus_rows_beyond"] == 10
    assert longer.counts["corpus_tokens_beyond"] == 320
    assert cut(corpus_signs(uniform(20), uniform(10, seed=1), SETTINGS)) == cut(expected)


def test_the_order_of_rows_changes_nothing_but_what_a_compressor_sees() -> None:
    """The same documents in another order: the same signs (self-BLEU's mean up to the order of its sum)."""
    rows = np.concatenate([uniform(40), uniform(7)])
    shuffled = np.random.default_rng(2).permutation(rows)
    of_rows, of_shuffled = (corpus_signs(texts, uniform(47, seed=1), SETTINGS).values for texts in (rows, shuffled))
    for values in (of_rows, of_shuffled):
        assert values.pop("compression_ratio") is not None
    assert of_shuffled.pop("self_bleu") == pytest.approx(of_rows.pop("self_bleu"), rel=1e-12)
    assert of_shuffled == of_rows
    assert of_rows["duplicate_share"] == pytest.approx(7 / 47)


def test_self_bleu_documents_are_drawn_by_the_seed() -> None:
    settings = SignsConfig(self_bleu_documents=20)
    of_seed = [corpus_signs(uniform(60), uniform(60), settings, seed=seed).values["self_bleu"] for seed in (0, 0, 1)]
    assert of_seed[0] == of_seed[1] != of_seed[2]
    drawn = np.sort(generator(0, "self_bleu").choice(60, 20, replace=False))
    assert corpus_signs(uniform(60)[drawn], uniform(60), settings).values["self_bleu"] == of_seed[0]


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_an_empty_corpus_is_a_reason_for_each_sign(rows: list[list[int]]) -> None:
    signs = corpus_signs(lists(rows), uniform(5), SETTINGS)
    assert set(signs.values.values()) == {None}
    assert set(signs.reasons) == set(signs.values)
    assert signs.reasons["self_bleu"] == f"the synthetic corpus is empty ({len(rows)} rows without a token)"
    assert signs.counts["corpus_rows_empty"] == len(rows)


def test_an_empty_reference_and_too_few_tokens_are_reasons() -> None:
    assert corpus_signs(uniform(2), lists([]), SETTINGS).reasons["unigram_kl"] == "the human reference is empty"
    signs = corpus_signs(lists([[1], [2, 3]]), uniform(2), SETTINGS)
    assert signs.values["distinct_2"] == 1.0
    assert signs.values["distinct_3"] is None
    assert signs.reasons["distinct_3"] == "too little text: 2 document(s), the longest of 2 token(s)"


def test_rows_of_length_0_are_counted_and_no_documents() -> None:
    """Two empty rows are no duplicates of each other, and no row is lost from the count."""
    signs = corpus_signs(lists([[], [1, 2], [], [3, 4]]), uniform(5), SETTINGS)
    assert signs.values["duplicate_share"] == 0.0
    counts = signs.counts
    assert (counts["corpus_rows"], counts["corpus_rows_empty"], counts["corpus_documents"]) == (4, 2, 2)
    assert counts["corpus_rows"] == counts["corpus_rows_empty"] + counts["corpus_rows_beyond"] + 2


def test_signs_are_joined_by_name() -> None:
    both = Signs({"a": 1.0}, {"rows": 1}) | Signs({"b": None}, {}, {"b": "why"})
    assert both == Signs({"a": 1.0, "b": None}, {"rows": 1}, {"b": "why"})
