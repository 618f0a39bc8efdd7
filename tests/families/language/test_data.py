"""From draws to blocks: counts, packing, prompts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.data import draw_prompts, fetch_blocks, prompt_overlap
from fortifai_ray.recipe.regimes import Draw, Pool, TrainingSet


def synthetic_corpus(folder: Path, rows: list[list[int]]) -> Pool:
    """A corpus as engines write it, in two parts."""
    folder.mkdir()
    table = pa.table({"row": range(len(rows)), "generated_ids": pa.array(rows, type=pa.list_(pa.int32()))})
    pq.write_table(table.slice(2), folder / "part-00001.parquet")
    pq.write_table(table.slice(0, 2), folder / "part-00000.parquet")
    return Pool("s", np.array([len(row) for row in rows]), synthetic=True)


def test_generated_rows_are_packed_as_documents(corpus: Corpus, tmp_path: Path) -> None:
    """Drawn rows one after the other, each ended by the end-of-text token; the last block knows how much is text."""
    rows = [[5, 6, 7], [8, 9], [], [10, 11, 12, 13]]
    pool = synthetic_corpus(tmp_path / "s", rows)
    data = TrainingSet((Draw(pool, np.array([3, 0, 2])),))
    blocks = fetch_blocks(data, corpus, {"s": tmp_path / "s"}, 4)
    end = corpus.end_of_text
    assert blocks.tokens.tolist() == [[10, 11, 12, 13], [end, 5, 6, 7], [end, end, end, end]]
    assert blocks.lengths.tolist() == [4, 4, 2]
    assert data.synthetic_size == 7


def test_human_draws_are_the_blocks_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    """Human and synthetic parts stand one after the other, in the order of the draws."""
    human = Pool("h", np.full(50, 128), synthetic=False)
    pool = synthetic_corpus(tmp_path / "s", [[1] * 100, [2] * 100, [3] * 100])
    data = TrainingSet((Draw(human, np.array([7, 3])), Draw(pool, np.arange(3))))
    blocks = fetch_blocks(data, corpus, {"s": tmp_path / "s"}, 128)
    assert np.array_equal(blocks.tokens[:2], corpus.blocks(corpus.train, 128)[[7, 3]])
    assert len(blocks) == 2 + 3
    assert blocks.lengths.tolist() == [128, 128, 128, 128, 303 - 256]


def prompts(corpus: Corpus, rows: int, seed: int = 0, generation: int = 0) -> pa.Table:
    return draw_prompts(
        corpus, np.array([4, 2, 9]), rows, seed=seed, generation=generation, block_size=128, context_tokens=16
    )


def test_prompts_are_human_text_with_a_seed_of_their_own(corpus: Corpus) -> None:
    """Row i stands in block human[i mod n]; contexts repeat over generations, and no sampling seed does."""
    table = prompts(corpus, 9)
    blocks = corpus.blocks(corpus.train, 128)
    for row, ids in enumerate(table["prompt_ids"].to_pylist()):
        windows = np.lib.stride_tricks.sliding_window_view(blocks[[4, 2, 9][row % 3]], 16)
        assert (windows == ids).all(axis=1).any()
    later = prompts(corpus, 9, generation=1)
    assert later["prompt_ids"].equals(table["prompt_ids"])
    seeds = set(table["seed"].to_pylist()) | set(later["seed"].to_pylist())
    assert len(seeds) == 18


def test_more_prompts_begin_with_the_same_ones(corpus: Corpus) -> None:
    """A chain that needs more rows (a higher ratio) shares the first of them with one that needs fewer."""
    assert prompts(corpus, 40).slice(0, 7).equals(prompts(corpus, 7))


def test_prompt_overlap_counts_what_was_copied(corpus: Corpus) -> None:
    """Text copied from the prompt's own document overlaps wholly, text of tokens that never follow each other not."""
    blocks = corpus.blocks(corpus.train, 128)
    human = np.array([0, 1])
    copied = pa.array([blocks[0][:50].tolist(), blocks[1][7:60].tolist()], type=pa.list_(pa.int32()))
    assert prompt_overlap(corpus, human, copied, 128) == 1.0
    train = corpus.train
    never = next(t for t in range(512) if not ((train[:-1] == t) & (train[1:] == t)).any())
    half = pa.array([blocks[0][:7].tolist(), [never] * 7], type=pa.list_(pa.int32()))
    assert prompt_overlap(corpus, human, half, 128) == 0.5


def test_prompt_overlap_looks_into_the_prompts_document_only(corpus: Corpus) -> None:
    """What stands in another document alone is not a copy."""
    other = int(np.searchsorted(corpus.train_ends, 0, "right")) + 1
    start, end = corpus.train_ends[other - 1], corpus.train_ends[other]
    first = {tuple(w) for w in np.lib.stride_tricks.sliding_window_view(corpus.train[: corpus.train_ends[0]], 4)}
    windows = np.lib.stride_tricks.sliding_window_view(corpus.train[start:end], 4)
    foreign = next(w.tolist() for w in windows if tuple(w) not in first)
    assert prompt_overlap(corpus, np.array([0]), pa.array([foreign], type=pa.list_(pa.int32())), 128) == 0.0


def test_rows_too_short_for_an_ngram_say_nothing(corpus: Corpus) -> None:
    """No n-gram, no share: NaN and not zero."""
    assert np.isnan(prompt_overlap(corpus, np.array([0]), pa.array([[1, 2]], type=pa.list_(pa.int32())), 128))
