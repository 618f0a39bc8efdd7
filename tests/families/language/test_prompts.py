"""The prompts of a generation: which text they are, that none comes twice before all came once, and that no
deterministic decoding is asked for copies."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.family import LanguageFamily
from fortifai_ray.families.language.prompts import (
    Prompts,
    Text,
    distinct,
    from_human,
    from_training_set,
    prompt_overlap,
)
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.recipe.ecosystem import Writing
from fortifai_ray.recipe.regimes import Draw, Pool, TrainingSet
from fortifai_ray.seeds import generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore

BLOCK = 128


def human(items: list[int], block: int = BLOCK) -> TrainingSet:
    """A training set of so many blocks of human text."""
    return TrainingSet((Draw(Pool("h", np.full(max(items) + 1, block), synthetic=False), np.array(items)),))


def writing(family: LanguageFamily) -> Writing:
    """For nobody else."""
    regime, first, last = family._recipe.regime, family.human().first.size, family._recipe.generations - 1
    needs = [*(regime.synthetic_size(first, g) for g in range(last)), 0.0]
    return Writing(needs, needs)


def decoding(**keys: Any) -> DecodingConfig:
    return DecodingConfig(**{"context_tokens": 16, **keys})


def table(corpus: Corpus, rows: int, seed: int = 0, generation: int = 0) -> pa.Table:
    drawn = from_human(human([4, 2, 9]), rows, seed, decoding(), BLOCK)
    return Text.of(drawn.source, corpus, {}, BLOCK, "documents").table(drawn, seed, generation, 16)


def test_prompts_are_human_text_with_a_seed_of_their_own(corpus: Corpus) -> None:
    """Row i stands in block human[i mod n]; contexts repeat over generations, and no sampling seed does."""
    first, blocks = table(corpus, 9), corpus.blocks(corpus.train, BLOCK)
    for row, ids in enumerate(first["prompt_ids"].to_pylist()):
        windows = np.lib.stride_tricks.sliding_window_view(blocks[[4, 2, 9][row % 3]], 16)
        assert (windows == ids).all(axis=1).any()
    later = table(corpus, 9, generation=1)
    assert later["prompt_ids"].equals(first["prompt_ids"])
    assert len({*first["seed"].to_pylist(), *later["seed"].to_pylist()}) == 18


def test_more_prompts_begin_with_the_same_ones(corpus: Corpus) -> None:
    """A chain that needs more rows (a higher ratio) shares the first of them with one that needs fewer."""
    assert table(corpus, 40).slice(0, 7).equals(table(corpus, 7))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 20])
def test_the_draw_is_that_of_older_recipes_but_for_repeats(rows: int, seed: int) -> None:
    """One offset per row from one stream; a stage keeps its key where no place came twice, and nowhere else."""
    items, context = [3, 0, 5, 1, 2], 16
    drawn = from_human(human(items), rows, seed, decoding(context_tokens=context), BLOCK)
    offsets = generator(seed, "prompt_offset").integers(0, BLOCK - context + 1, size=rows)
    blocks = np.array(items)[np.arange(rows) % len(items)]
    wanted = np.searchsorted(sorted(items), blocks) * BLOCK + offsets
    repeats = len(set(wanted.tolist())) < rows
    assert bool(drawn.identity) == repeats
    same = drawn.starts == wanted
    assert same.all() or (repeats and same.sum() >= len(set(wanted.tolist())))


CASES = [
    # blocks in the order of use, block size, context
    ([0, 1, 2], 8, 3),
    ([2, 0, 1], 8, 8),
    ([2, 0, 1, 3], 8, 7),
    ([5, 3, 8, 9], 4, 6),
    ([1, 0], 4, 8),
    ([0, 1, 2, 3, 4], 4, 17),
    ([0], 16, 1),
]


@pytest.mark.parametrize("pack", ["documents", "running"])
@pytest.mark.parametrize(("items", "block", "context"), CASES)
def test_no_prompt_comes_twice_before_all_came_once(items: list[int], block: int, context: int, pack: Any) -> None:
    """Over one and a half rounds, also where contexts reach over several blocks and the last blocks have fewer."""
    length = len(items) * block
    whole = length - context + 1 if context > block else len(items) * (block - context + 1)
    for seed in range(3):
        for rows in (1, whole // 2, whole, whole + 1, whole + whole // 2):
            if not rows:
                continue
            drawn = from_human(human(items, block), rows, seed, decoding(context_tokens=context), block, pack)
            counts = np.unique(drawn.starts, return_counts=True)[1]
            assert len(drawn) == rows
            assert len(counts) == min(rows, whole)
            assert counts.max() <= -(-rows // whole)
            assert drawn.starts.max() + context <= length
            assert pack == "documents" or (np.diff(drawn.starts) >= 0).all(), "running text is in the source's order"


@pytest.mark.parametrize(
    ("length", "context", "step"), [(9792, 512, 32), (100, 8, 8), (37, 5, 4), (20, 16, 8), (16, 16, 4)]
)
def test_a_training_set_is_rewritten_from_its_first_context_on(length: int, context: int, step: int) -> None:
    """ForTIFAI's rows: one every ``step`` tokens, ``(length − context) // step`` of them, whatever is asked for."""
    data = TrainingSet((Draw(Pool("h", np.full(length, 1), synthetic=False), np.arange(length)),))
    settings = decoding(context_tokens=context, max_new_tokens=step)
    count = max(1, (length - context) // step)
    for asked in (count, count + 1, 3 * count):
        drawn = from_training_set(data, asked, 0, 0, settings, "running")
        assert drawn.starts.tolist() == [row * step for row in range(count)]
    fewer = from_training_set(data, count // 2, 0, 0, settings, "running").starts
    assert len(fewer) == count // 2
    assert set(fewer.tolist()) <= {row * step for row in range(count)}
    assert (np.diff(fewer) > 0).all()
    more = from_training_set(data, length - context + 1, 0, 0, settings, "documents").starts
    assert more[:count].tolist() == [row * step for row in range(count)]
    assert sorted(more.tolist()) == list(range(length - context + 1)), "documents begin anywhere else, each place once"


def test_a_training_set_s_text_is_what_was_synthetic_and_then_the_human_text(corpus: Corpus, tmp_path: Any) -> None:
    """Prompts in each part and across the two; the block of a human one is known, for prompt_overlap."""
    import pyarrow.parquet as pq

    rows = [[1, 2, 3], [4], [5, 6]]
    (tmp_path / "s").mkdir()
    written = pa.table({"row": range(3), "generated_ids": pa.array(rows, type=pa.list_(pa.int32()))})
    pq.write_table(written, tmp_path / "s" / "part-00000.parquet")
    synthetic = Pool("s", np.array([3, 1, 2]), synthetic=True)
    data = TrainingSet((human([7, 3], 8).draws[0], Draw(synthetic, np.arange(3))))
    blocks, end = corpus.blocks(corpus.train, 8), corpus.end_of_text
    for pack, stream in (("running", [1, 2, 3, 4, 5, 6]), ("documents", [1, 2, 3, end, 4, end, 5, 6, end])):
        text = Text.of(data, corpus, {"s": tmp_path / "s"}, 8, pack)  # type: ignore[arg-type]
        assert text.tokens.tolist() == [*stream, *blocks[3].tolist(), *blocks[7].tolist()]
        at = len(stream)
        drawn = Prompts(data, np.array([0, at - 1, at, at + 8]), {})
        assert text.blocks_of(drawn.starts).tolist() == [-1, -1, 3, 7]
        assert text.table(drawn, 0, 0, 4)["prompt_ids"].to_pylist()[1] == [stream[-1], *blocks[3][:3].tolist()]


def test_distinct_rows_are_counted_by_their_tokens() -> None:
    """Rows of any length, empty ones too, also of a slice."""
    rows = pa.array([[1, 2], [], [1], [2], [1, 2], [], [12]], type=pa.list_(pa.int32()))
    assert distinct(rows) == 5
    assert distinct(rows.slice(3)) == 4
    assert distinct(rows.slice(0, 0)) == 0


def recipe(**keys: Any) -> LanguageRecipe:
    given: dict[str, Any] = {
        "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
        "corpus": {"source": "pydoc", "train_tokens": 9344, "order": "sequential"},
        "regime": {"kind": "incremental"},
        "training": {"batch_size": 8},
        "generations": 6,
    }
    for key, value in keys.items():
        given[key] = {**given[key], **value} if isinstance(given.get(key), dict) and "kind" not in value else value
    return LanguageRecipe(**given)


BEAMS = {"num_beams": 5, "max_new_tokens": 32}
REWRITTEN = {"prompts": "training_set", "context_tokens": 512, **BEAMS}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"decoding": {**BEAMS, "context_tokens": 128}},
            r"generation 0 is asked for 292 rows.* 73 different contexts of",
        ),
        ({"decoding": {**BEAMS, "context_tokens": 120}}, r"generation 2 is asked for 876 rows.* 657 different"),
        ({"decoding": {**BEAMS, "context_tokens": 64}}, None),
        ({"decoding": {"context_tokens": 128, "max_new_tokens": 32}}, None),  # sampled rows differ
        ({"decoding": {"context_tokens": 128, "max_new_tokens": 32, "temperature": 0.0}}, r"\(temperature: 0\)"),
        ({"decoding": {"context_tokens": 128, "max_new_tokens": 32, "top_k": 1}}, r"\(top_k: 1\)"),
        ({"decoding": {"context_tokens": 128, "max_new_tokens": 32, "temperature": 1e-6}}, r"\(temperature: 1e-06\)"),
        ({"decoding": {"context_tokens": 128, "max_new_tokens": 32, "top_p": 1e-4}}, r"\(top_p: 0\.0001\)"),
        ({"decoding": {"context_tokens": 1, "max_new_tokens": 32, "temperature": 0.0}}, r"has \d{3} different"),
        ({"decoding": {**BEAMS, "context_tokens": 128}, "regime": {"kind": "mixed", "synthetic_ratio": 0.2}}, None),
        (
            {"decoding": {**BEAMS, "context_tokens": 128}, "regime": {"kind": "mixed", "synthetic_ratio": 0.5}},
            "146 rows",
        ),
        (
            {"decoding": {**BEAMS, "context_tokens": 9345}},
            r"context_tokens: 9345 is more than the 9,344 tokens of gener",
        ),
        ({"decoding": {**BEAMS, "context_tokens": 9344}}, "1 different contexts"),
        ({"decoding": {**BEAMS, "context_tokens": 512}}, None),
        ({"decoding": REWRITTEN}, None),
        ({"decoding": REWRITTEN, "training": {"pack": "running"}}, None),
        (
            {
                "decoding": REWRITTEN,
                "training": {"pack": "running"},
                "curation": {"kind": "verifier", "keep": 0.5},
            },
            "rewrites its training set of 9,344 tokens once .*, as 276 rows, and 584 are asked for",
        ),
        ({"decoding": REWRITTEN, "curation": {"kind": "verifier", "keep": 0.5}}, None),
        (  # a place for each of 9,344 tokens, and not as many different tokens
            {"decoding": {"prompts": "training_set", "temperature": 0.0, "context_tokens": 1, "max_new_tokens": 16}},
            r"generation 0 is asked for 584 rows, and generation 0's training set has \d{3} different contexts of 1",
        ),
        (
            {
                "decoding": {**REWRITTEN, "context_tokens": 4000},
                "training": {"pack": "running"},
                "regime": {"kind": "replace"},
            },
            "context_tokens: 4000 is more than the .* tokens of generation 2's training set",
        ),
    ],
)
def test_prompts_that_do_not_suffice_are_refused_at_once(
    corpus: Corpus, keys: dict[str, Any], said: str | None
) -> None:
    """With the number of different prompts and of the rows, before anything is trained."""
    made = LanguageFamily(recipe(**keys), corpus, Steps(StageStore(corpus.stage.path.parents[1])), InProcess())
    alone = writing(made)
    if said is None:
        made.check_prompts(alone)
        return
    with pytest.raises(UserError, match=said):
        made.check_prompts(alone)


@pytest.mark.parametrize("pack", ["documents", "running"])
@pytest.mark.parametrize("source", ["human", "training_set"])
def test_rows_that_will_be_copies_are_told_by_their_tokens(corpus: Corpus, source: Any, pack: Any) -> None:
    """Contexts at different places that are of the same tokens: as many copies as rows less different contexts, where
    a decoding draws nothing; nothing is said where it draws, or where all contexts differ."""
    store = StageStore(corpus.stage.path.parents[1])

    def made(**keys: Any) -> LanguageFamily:
        given = {"prompts": source, "context_tokens": 2, "max_new_tokens": 32, **keys}
        return LanguageFamily(recipe(decoding=given, training={"pack": pack}), corpus, Steps(store), InProcess())

    family = made(temperature=0.0)
    first = TrainingSet((family.human().first,))
    drawn = family._prompts(first, 292, 0)
    tokens = np.array(corpus.train[: 73 * BLOCK])
    different = len({tuple(tokens[start : start + 2]) for start in drawn.starts})
    assert different < len(drawn)
    alone = writing(family)
    said = family.copied_prompts(alone)
    assert said is not None
    assert f"{len(drawn) - different} of generation 0's {len(drawn)} rows" in said
    assert f": {different} of their contexts of 2 tokens differ" in said
    assert made().copied_prompts(alone) is None
    assert made(temperature=0.0, context_tokens=64).copied_prompts(alone) is None


def test_the_last_generation_writes_a_row_even_where_no_samples_are_kept(corpus: Corpus) -> None:
    """Nothing is trained on it, and an engine has nothing to say of no prompts."""
    store = StageStore(corpus.stage.path.parents[1])
    made = LanguageFamily(recipe(evaluation={"sample_texts": 0}), corpus, Steps(store), InProcess())
    assert made._rows(0.0) == 1
    assert made._rows(500.0) == -(-500 // made._recipe.decoding.max_new_tokens)


def test_keys_at_their_defaults_are_those_of_older_recipes() -> None:
    """`prompts`, `pack` enter a recipe's hash where they are given."""
    plain = recipe()
    assert recipe(decoding={"prompts": "human"}, training={"pack": "documents"}).chain_id == plain.chain_id
    others = {recipe(decoding={"prompts": "training_set"}).chain_id, recipe(training={"pack": "running"}).chain_id}
    assert len({plain.chain_id, *others}) == 3


def test_prompt_overlap_counts_what_was_copied(corpus: Corpus) -> None:
    """Text copied from the prompt's own document overlaps wholly, text of tokens that never follow each other not."""
    blocks = corpus.blocks(corpus.train, BLOCK)
    of_rows = np.array([0, 1])
    copied = pa.array([blocks[0][:50].tolist(), blocks[1][7:60].tolist()], type=pa.list_(pa.int32()))
    assert prompt_overlap(corpus, of_rows, copied, BLOCK) == 1.0
    train = corpus.train
    never = next(t for t in range(512) if not ((train[:-1] == t) & (train[1:] == t)).any())
    half = pa.array([blocks[0][:7].tolist(), [never] * 7], type=pa.list_(pa.int32()))
    assert prompt_overlap(corpus, of_rows, half, BLOCK) == 0.5
    assert prompt_overlap(corpus, np.array([0, -1]), half, BLOCK) == 1.0, "synthetic prompts are of no document"


def test_prompt_overlap_looks_into_the_prompts_document_only(corpus: Corpus) -> None:
    """What stands in another document alone is not a copy."""
    other = int(np.searchsorted(corpus.train_ends, 0, "right")) + 1
    start, end = corpus.train_ends[other - 1], corpus.train_ends[other]
    first = {tuple(w) for w in np.lib.stride_tricks.sliding_window_view(corpus.train[: corpus.train_ends[0]], 4)}
    windows = np.lib.stride_tricks.sliding_window_view(corpus.train[start:end], 4)
    foreign = next(w.tolist() for w in windows if tuple(w) not in first)
    assert prompt_overlap(corpus, np.array([0]), pa.array([foreign], type=pa.list_(pa.int32())), BLOCK) == 0.0


def test_rows_too_short_for_an_ngram_say_nothing(corpus: Corpus) -> None:
    """No n-gram, no share: NaN and not zero."""
    assert np.isnan(prompt_overlap(corpus, np.array([0]), pa.array([[1, 2]], type=pa.list_(pa.int32())), BLOCK))
