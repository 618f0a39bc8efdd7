"""What can and cannot be concluded: an answer for each way in which a study may fall short, naming its criterion."""

import math
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above", confirm=0)
N = 10
Study = Callable[..., pl.DataFrame]


def growth(onset: float | None, length: int = N) -> list[float]:
    """A perplexity that doubles at ``onset`` (0: at the start, against 100), or never."""
    if onset == 0:
        return [300.0] * length
    return [100.0 * 2 ** ((g + 1e-9) / onset) if onset else 100.0 for g in range(length)]


def sentences_of(
    study: Study,
    intervals: Mapping[str, Sequence[float | None]],
    criteria: Sequence[CollapseCriterion] = (DOUBLED,),
    lengths: Mapping[tuple[str, int], int] | None = None,
) -> list[str]:
    curves = {
        (name, seed): growth(onset, (lengths or {}).get((name, seed), N))
        for name, row in intervals.items()
        for seed, onset in enumerate(row)
    }
    chains = chain_table(study(curves), criteria, CROSS_ENTROPY, VARIED, N)
    return said_of(chains)


def said_of(chains: pl.DataFrame) -> list[str]:
    """The sentences, each behind its criterion."""
    found = conclusions(fidelity_table(chains, VARIED, CROSS_ENTROPY), chains)
    return [f"Under {criterion}: {sentence}" for criterion, sentences in found for sentence in sentences]


def only(sentences: list[str], *parts: str) -> str:
    """The one sentence that has all ``parts``."""
    result = [sentence for sentence in sentences if all(part in sentence for part in parts)]
    assert len(result) == 1, sentences
    return result[0]


SEVEN = [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]
ABSOLUTE = CollapseCriterion(metric="perplexity", threshold=200.0, direction="above", relative_to="absolute", confirm=0)


def test_every_sentence_stands_under_its_criterion(study: Study) -> None:
    criteria = [DOUBLED, DOUBLED.model_copy(update={"threshold": 3.0})]
    sentences = sentences_of(study, {"ce": SEVEN, "tce": [value * 1.5 for value in SEVEN]}, criteria)
    for criterion in criteria:
        assert any(sentence.startswith(f"Under {criterion.words}: ") for sentence in sentences)
    assert all(sentence.startswith(tuple(f"Under {c.words}: " for c in criteria)) for sentence in sentences)


def test_a_clear_gain_is_told_with_its_interval_pairs_and_test(study: Study) -> None:
    spread = [1.3, 1.6, 1.5, 1.4, 1.5, 1.6, 1.5]
    sentences = sentences_of(study, {"ce": SEVEN, "tce": [a * b for a, b in zip(SEVEN, spread, strict=True)]})
    mean = math.exp(sum(math.log(value) for value in spread) / len(spread))
    sentence = only(sentences, "loss.kind=tce loss.gamma=0.3", "in generations")
    assert f"{mean:.3g} times as long" in sentence
    assert "7 pairs; 90 % interval" in sentence
    assert "log-rank p =" in sentence
    assert sentence.endswith("it lasts longer.")
    assert not any("adjusted" in one for one in sentences)  # one cell alone


def test_no_difference_is_told_as_none(study: Study) -> None:
    spread = [1.3, 0.7, 1.2, 0.8, 1.1, 0.9, 1.0]
    sentences = sentences_of(study, {"ce": SEVEN, "tce": [a * b for a, b in zip(SEVEN, spread, strict=True)]})
    assert only(sentences, "in generations").endswith("indistinguishable from the baseline.")


def test_many_cells_are_told_to_be_many(study: Study) -> None:
    sentences = sentences_of(study, {"ce": SEVEN, "tce": [x * 1.5 for x in SEVEN], "tce9": [x * 1.1 for x in SEVEN]})
    assert "2 cells were tested" in only(sentences, "Holm")
    assert "adjusted for 2 cells" in only(sentences, "loss.gamma=0.9", "in generations")


def test_no_baseline_cell(study: Study) -> None:
    sentences = sentences_of(study, {"tce": SEVEN}, [ABSOLUTE])
    assert "no ratios and no tests" in only(sentences, "no baseline cell")
    assert not any("times as long" in sentence for sentence in sentences)


def test_no_baseline_to_be_relative_to(study: Study) -> None:
    sentences = sentences_of(study, {"tce": SEVEN})
    assert len(sentences) == 2
    assert "7 of 7 chains have no verdict" in sentences[0]
    assert "nothing can be concluded" in sentences[1]


def test_the_baseline_alone(study: Study) -> None:
    assert "nothing to compare it with" in only(sentences_of(study, {"ce": SEVEN}), "only cell")


def test_chains_of_different_lengths(study: Study) -> None:
    lengths = {("tce", 0): 6, ("tce", 1): 8}
    sentences = sentences_of(study, {"ce": SEVEN, "tce": [None] * 7}, lengths=lengths)
    assert "(5 to 9 generations)" in only(sentences, "different lengths")
    assert "at least" in only(sentences, "times as long as the baseline in generations")
    even = sentences_of(study, {"ce": SEVEN, "tce": [None] * 7})
    assert not any("different lengths" in sentence for sentence in even)


def test_one_seed_only(study: Study) -> None:
    sentences = sentences_of(study, {"ce": [2.0], "tce": [4.0]})
    assert "indistinguishable from one between seeds" in only(sentences, "only one seed")
    assert "no interval" in only(sentences, "2 times as long", "in generations")


def test_nothing_collapsed(study: Study) -> None:
    (sentence,) = sentences_of(study, {"ce": [None] * 3, "tce": [None] * 3})
    assert "none of 6 chains collapsed within the 9 generations" in sentence
    assert "Which cell lasts longer is unknown" in sentence


def test_an_unconfirmed_crossing_is_told(study: Study) -> None:
    """The chain is known to be faithful up to that crossing, not up to its last generation."""
    confirmed = DOUBLED.model_copy(update={"confirm": 1})
    (sentence,) = sentences_of(study, {"ce": [8.5], "tce": [None]}, [confirmed])
    assert "within the 8.5 to 9 generations" in sentence
    assert "1 of them ended in a crossing that nothing confirmed" in sentence


def test_everything_collapsed_at_generation_0(study: Study) -> None:
    (sentence,) = sentences_of(study, {"ce": [0] * 3, "tce": [0] * 3}, [ABSOLUTE])
    assert "all 6 chains meet it at generation 0" in sentence


def test_censored_pairs_are_in_the_estimate_and_the_sentence_says_how(study: Study) -> None:
    tce = [x * y for x, y in zip(SEVEN[:5], [1.3, 1.6, 1.5, 1.4, 1.5], strict=True)]
    sentences = sentences_of(study, {"ce": [*SEVEN[:6], None], "tce": [*tce, None, None]})
    sentence = only(sentences, "times as long as the baseline in generations")
    assert "2 of them censored, by a log-normal model of all" in sentence
    assert "without it" not in sentence  # a pair in which neither collapsed: its bound could be anything
    assert sentence.endswith("it lasts longer.")
    bounded = only(sentences_of(study, {"ce": SEVEN[:6], "tce": [*tce, None]}), "times as long", "in generations")
    assert "1 of them censored, by a log-normal model of all; at least 1.5" in bounded


def test_where_no_chain_of_a_cell_collapsed_the_sentence_is_of_a_bound_and_of_means(study: Study) -> None:
    sentence = only(sentences_of(study, {"ce": SEVEN, "tce": [None] * 7}), "at least", "in generations")
    assert "above" in sentence
    assert "it lasts longer; up to 9, where the first chain is censored, its mean fidelity interval is" in sentence


def test_two_pairs_in_which_neither_collapsed_leave_the_test_and_no_ratio(study: Study) -> None:
    sentence = only(sentences_of(study, {"ce": [2.0, None], "tce": [3.0, None]}), "has no ratio", "in generations")
    assert "the ratio is known in 1 of 2 pairs, too few" in sentence
    assert "Log-rank p =" in sentence


def test_equal_ratios_are_said_to_be_equal(study: Study) -> None:
    """Of five pairs or more that says where the median pair is; three might all lie beside it."""
    sentence = only(sentences_of(study, {"ce": [2.0] * 5, "tce": [4.0] * 5}), "times as long", "in generations")
    assert "the same in all pairs, 2;" in sentence
    assert sentence.endswith("it lasts longer.")
    few = only(sentences_of(study, {"ce": [2.0] * 3, "tce": [4.0] * 3}), "times as long", "in generations")
    assert "no interval: 3 pairs with one ratio" in few


def test_two_collapses_in_five_hundred_chains_make_no_ratio(study: Study) -> None:
    """What lies beyond the horizon is not told: the means up to it, and the test, are."""
    ce, tce = ([*early, *[None] * 58] for early in ([3.0, 4.0], [5.0, 6.0]))
    sentences = sentences_of(study, {"ce": ce, "tce": tce})
    sentence = only(sentences, "has no ratio", "in generations")
    assert "the ratio is known in 2 of 60 pairs, too few to tell the typical one" in sentence
    assert "Log-rank p =" in sentence
    assert not any("times as long as the baseline in" in one for one in sentences)


def test_the_median_pair_is_said_to_be_the_estimate(study: Study) -> None:
    ce = [2.0 + 0.05 * seed for seed in range(30)]
    sentences = sentences_of(study, {"ce": ce, "tce": [*(1.5 * one for one in ce[:25]), *[None] * 5]})
    sentence = only(sentences, "1.5 times as long as the baseline in generations")
    assert "5 of them censored, by the median pair" in sentence
    assert sentence.endswith("it lasts longer.")


def test_a_collapse_at_generation_0_is_not_told_as_a_ratio_of_nothing(study: Study) -> None:
    """One of seven chains that starts beyond the limit leaves the median pair; of four, nothing is told."""
    spread = [0.0, *(1.5 * one for one in SEVEN[1:])]
    sentence = only(sentences_of(study, {"ce": SEVEN, "tce": spread}, [ABSOLUTE]), "times as long", "in generations")
    assert "1.5 times as long" in sentence
    few = only(sentences_of(study, {"ce": SEVEN[:4], "tce": spread[:4]}, [ABSOLUTE]), "no ratio", "in generations")
    assert "a chain collapsed at generation 0, which has no logarithm, and 4 pairs are few for a median" in few


def test_failed_chains_are_owned_up_to(study: Study) -> None:
    chains = chain_table(
        study({(n, s): growth(2.0, 2 if (n, s) == ("tce", 1) else N) for n in ("ce", "tce") for s in range(2)}),
        [DOUBLED],
        CROSS_ENTROPY,
        VARIED,
        N,
        failed=["tce-1"],
    )
    sentences = said_of(chains)
    assert "1 of 4 chains have no verdict" in sentences[0]


def test_an_empty_table_concludes_nothing(study: Study) -> None:
    chains = chain_table(study({("ce", 0): growth(2.0)}), [DOUBLED], CROSS_ENTROPY, VARIED, N).clear()
    (sentence,) = said_of(chains)
    assert "nothing can be concluded" in sentence
