"""The order in which a corpus is used up: which stretch of the text each generation sees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.evaluation.benchmarks.config import KrTest
from fortifai_ray.evaluation.benchmarks.kr_fractions import divided_exam, place
from fortifai_ray.evaluation.benchmarks.kr_questions import Question, save_questions
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.family import LanguageFamily
from fortifai_ray.families.language.kr import held_in_texts
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore

MODEL = {"preset": "llama-tiny", "vocab_size": 512}
SIZE = 64  # tokens of a block
REGIMES: list[dict[str, Any]] = [
    {"kind": "incremental"},
    {"kind": "incremental", "synthetic_ratio": 0.5},
    {"kind": "incremental", "fractions": 3},
    {"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"},
]


def family(corpus: Corpus, store: StageStore, order: str | None, **keys: Any) -> LanguageFamily:
    recipe = LanguageRecipe(
        family={"kind": "language", "model": MODEL},
        corpus={"source": "pydoc", **({} if order is None else {"order": order})},
        training={"block_size": SIZE},
        generations=4,
        **keys,
    )
    return LanguageFamily(recipe, corpus, Steps(store), InProcess())


@pytest.fixture
def store(corpus: Corpus) -> StageStore:
    return StageStore(corpus.stage.path.parents[1])


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: "-".join(map(str, regime.values())))
@pytest.mark.parametrize("seed", [0, 7])
def test_fractions_of_a_sequential_corpus_follow_the_text(
    corpus: Corpus, store: StageStore, regime: dict[str, Any], seed: int
) -> None:
    """Fraction after fraction is the training text from its beginning, without a gap, for every seed."""
    made = family(corpus, store, "sequential", regime=regime, seed=seed)
    rule, human = made._recipe.regime, made.human()
    fractions = [rule.fresh(human, generation).items for generation in range(4)]
    used = np.concatenate(fractions)
    assert used.tolist() == list(range(len(used)))
    assert min(map(len, fractions)) > 0
    assert len(used) == pytest.approx(len(corpus.train) // SIZE, abs=4), "the corpus is used up"
    tokens = corpus.blocks(corpus.train, SIZE)[used].reshape(-1)
    assert np.array_equal(tokens, corpus.train[: len(tokens)])


def test_the_order_is_a_permutation_by_the_seed_unless_asked(corpus: Corpus, store: StageStore) -> None:
    """The default is that of older recipes, whose identity it does not enter."""
    orders = [family(corpus, store, None, seed=seed).human().order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(len(orders[0])))
    plain, said, sequential = (
        family(corpus, store, order)._recipe.chain_id for order in (None, "permuted", "sequential")
    )
    assert plain == said != sequential


@pytest.mark.parametrize("order", ["sequential", "permuted"])
@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: "-".join(map(str, regime.values())))
def test_a_fraction_of_the_kr_test_is_what_its_generation_saw(
    corpus: Corpus, store: StageStore, tmp_path: Path, regime: dict[str, Any], order: str
) -> None:
    """Questions made from the text of generation k are on it; written to a file and read again, each that can be placed
    is placed there."""
    entry = KrTest(pairs=80, fractions=4)
    made = family(corpus, store, order, regime=regime, evaluation={"benchmarks": [entry.model_dump()]})
    given = made.measures._fractions()
    assert given is not None
    assert given.replaced, "no later generation is trained on generation 0's text"
    exam = divided_exam(entry, given, 0)
    rule = made._recipe.regime
    for number, positions in enumerate(exam.parts(4)):
        assert len(positions) > 3
        blocks = rule.fresh(made.human(), number).items
        runs = held_in_texts(corpus.train, corpus.train_ends, blocks, SIZE, corpus.decode)
        assert all(any(exam.questions[at].sentence_true in run for run in runs) for at in positions)
    save_questions(exam.questions.values(), tmp_path / "questions.json")
    read = divided_exam(KrTest(path=str(tmp_path / "questions.json"), fractions=4), given, 0)
    assert read.fraction is not None
    assert exam.fraction is not None
    both = read.fraction.keys() & exam.fraction.keys()
    assert len(both) >= (0.9 if order == "sequential" else 0.5) * len(exam.fraction)
    assert np.mean([exam.fraction[at] == read.fraction[at] for at in both]) >= 0.95


def test_text_that_stays_is_no_synthetic_fraction(corpus: Corpus, store: StageStore) -> None:
    """A regime that gives human text once has no fractions; questions on another text are refused."""
    entry = KrTest(pairs=20, fractions=2)
    for regime in ({"kind": "replace"}, {"kind": "accumulate"}, {"kind": "mixed", "synthetic_ratio": 0.5}):
        made = family(corpus, store, None, regime=regime, evaluation={"benchmarks": [entry.model_dump()]})
        assert made.measures._fractions() is None
    elsewhere = {0: Question("Zwei Wanderer kamen", "abends an einen Bach.", "abends an einen Berg.")}
    assert place(elsewhere, [["two hikers came to a brook in the evening"], ["and to a mountain"]]) == {}
