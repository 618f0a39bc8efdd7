"""From draws to blocks: counts, packing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai_ray.families.language.config import Pack, TrainingConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.data import fetch_blocks, read_corpus, retokenise, retokenised
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


@pytest.mark.parametrize("pack", ["documents", "running"])
def test_weights_are_blocks_weights(corpus: Corpus, tmp_path: Path, pack: Pack) -> None:
    """The human blocks' targets have their share of all weights, however many there are; 1 in the mean over targets."""
    human = Pool("h", np.full(50, 128), synthetic=False)
    pool = synthetic_corpus(tmp_path / "s", [[1] * 100, [2] * 100, [3] * 100])
    draws = (Draw(human, np.array([7])), Draw(pool, np.arange(3)))
    weighed = fetch_blocks(TrainingSet(draws, human_weight=0.7), corpus, {"s": tmp_path / "s"}, 128, pack)
    assert weighed.weights is not None
    targets = weighed.lengths - 1
    assert (weighed.weights * targets)[0] / (weighed.weights @ targets) == pytest.approx(0.7)
    assert weighed.weights @ targets == pytest.approx(targets.sum())
    assert len(set(weighed.weights[1:].tolist())) == 1
    for alone in (TrainingSet(draws), TrainingSet(draws[:1], human_weight=0.7)):
        assert fetch_blocks(alone, corpus, {"s": tmp_path / "s"}, 128, pack).weights is None


@pytest.mark.parametrize("block_size", [4, 5, 6, 20])
def test_running_text_has_no_ends_and_no_leftover(corpus: Corpus, tmp_path: Path, block_size: int) -> None:
    """Rows joined in the order in which they were written, whatever the order of the draw; only whole blocks."""
    rows = [[5, 6, 7], [8, 9], [], [10, 11, 12, 13], [14, 15]]
    pool = synthetic_corpus(tmp_path / "s", rows)
    data = TrainingSet((Draw(pool, np.array([4, 3, 0, 2])),))
    blocks = fetch_blocks(data, corpus, {"s": tmp_path / "s"}, block_size, "running")
    stream = [5, 6, 7, 10, 11, 12, 13, 14, 15]
    count = len(stream) // block_size
    assert blocks.tokens.tolist() == [stream[i * block_size : (i + 1) * block_size] for i in range(count)]
    assert blocks.lengths.tolist() == [block_size] * count


def lists(rows: list[list[int]]) -> pa.ListArray:
    return pa.array(rows, type=pa.list_(pa.int32()))


def test_human_text_cut_into_rows_is_tokenised_as_it_was(corpus: Corpus) -> None:
    """The tokens of a text are its own, wherever rows begin; end-of-text tokens stay tokens."""
    stream = np.array(corpus.train[:2000]).tolist()
    assert corpus.end_of_text in stream
    rows = [stream[at : at + 32] for at in range(0, len(stream), 32)]
    assert retokenised(lists(rows), corpus).to_pylist() == rows


def test_generated_tokens_become_those_of_their_text(corpus: Corpus) -> None:
    """Random tokens, bytes that are no characters among them, and rows without any: the text stays, its tokens are the
    tokenizer's own and so fewer, each in the row in whose text it begins; a second time changes nothing."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, 512, size).tolist() for size in (32, 0, 32, 1, 32, 32)]
    texts = corpus.decode(rows)
    found = retokenised(lists(rows), corpus)
    assert len(found) == len(rows)
    tokens = found.flatten().to_pylist()
    assert tokens == corpus.encode("".join(texts))[0].tolist()
    assert corpus.decode([tokens]) == ["".join(texts)]
    begun = np.cumsum([0, *map(len, texts)])
    for row, part in enumerate(found.to_pylist()):
        before = sum(map(len, found.to_pylist()[:row]))
        starts = corpus.encode("".join(texts))[1][before : before + len(part)]
        assert ((starts >= begun[row]) & (starts < begun[row + 1])).all()
    readable = [row for row, text in zip(rows, texts, strict=True) if "\ufffd" not in text]
    assert len(retokenised(lists(readable), corpus).flatten()) <= sum(map(len, readable))
    again = retokenised(found, corpus)
    assert again.flatten().to_pylist() == corpus.encode("".join(corpus.decode(found.to_pylist())))[0].tolist()
    assert retokenised(lists([]), corpus).to_pylist() == []


def test_a_corpus_that_is_tokenised_again_keeps_its_other_columns(corpus: Corpus, tmp_path: Path) -> None:
    """Rows, prompts and the version of the weights stay, whatever the parts; the key needs running text."""
    split = corpus.encode("ever")[0].tolist()
    letters = [corpus.encode(sign)[0].tolist()[0] for sign in "ever"]
    assert len(split) < len(letters)
    synthetic_corpus(tmp_path / "s", [letters[:2], letters[2:], letters])
    before = read_corpus(tmp_path / "s")
    retokenise(tmp_path / "s", corpus)
    after = read_corpus(tmp_path / "s")
    assert after.drop(["generated_ids"]).equals(before.drop(["generated_ids"]))
    assert after.schema.equals(before.schema)
    assert corpus.decode([after["generated_ids"].combine_chunks().flatten().to_pylist()]) == ["everever"]
    with pytest.raises(ValueError, match="pack: running"):
        TrainingConfig(retokenise=True)
    assert "retokenise" not in TrainingConfig(pack="running").model_dump()
