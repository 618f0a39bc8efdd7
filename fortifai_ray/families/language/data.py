"""From a regime's draws to the token blocks that a model is trained on, and the corpora and prompts of a generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.recipe.regimes import TrainingSet
from fortifai_ray.seeds import derive_seed, generator


@dataclass(frozen=True)
class Blocks:
    """Token blocks: ``tokens`` int32 of shape (blocks, block_size); the first ``lengths[i]`` of row i are text."""

    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def fetch_blocks(training_set: TrainingSet, corpus: Corpus, synthetic: Mapping[str, Path], block_size: int) -> Blocks:
    """The blocks of a training set.

    Human draws are already blocks. Generated rows are documents, packed like the human ones: concatenated, with the
    end-of-text token between them. Sizes do not count that token, only generated ones. ``synthetic`` maps a pool's
    stage to the folder of its corpus.
    """
    parts = []
    human = corpus.blocks(corpus.train, block_size)
    for draw in training_set.draws:
        if draw.pool.synthetic:
            parts.append(_pack(read_generated(synthetic[draw.pool.stage]), draw.items, corpus.end_of_text, block_size))
        else:
            parts.append(Blocks(human[draw.items], np.full(len(draw.items), block_size)))
    return Blocks(np.concatenate([p.tokens for p in parts]), np.concatenate([p.lengths for p in parts]))


def _pack(rows: pa.ListArray, items: np.ndarray, end_of_text: int, block_size: int) -> Blocks:
    chosen = rows.take(pa.array(items))
    ends = np.cumsum(chosen.value_lengths().to_numpy())
    stream = np.insert(chosen.flatten().to_numpy().astype(np.int32), ends, end_of_text)
    count = -(-len(stream) // block_size)
    tokens = np.full(count * block_size, end_of_text, dtype=np.int32)
    tokens[: len(stream)] = stream
    lengths = np.full(count, block_size)
    if count:
        lengths[-1] = len(stream) - (count - 1) * block_size
    return Blocks(tokens.reshape(count, block_size), lengths)


def read_corpus(folder: Path) -> pa.Table:
    """Read a synthetic corpus, by ascending row."""
    return pq.read_table(folder).sort_by("row")


def write_corpus(table: pa.Table, folder: Path) -> None:
    """Write rows of a synthetic corpus as a corpus of their own."""
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet")


def read_generated(folder: Path) -> pa.ListArray:
    """Generated token ids of a synthetic corpus, by row."""
    table = pq.read_table(folder, columns=["row", "generated_ids"]).sort_by("row")
    return table["generated_ids"].combine_chunks()


def draw_prompts(
    corpus: Corpus, human: np.ndarray, rows: int, *, seed: int, generation: int, block_size: int, context_tokens: int
) -> pa.Table:
    """The prompts of one generation: ``row`` int64, ``seed`` int64, ``prompt_ids`` list<int32>.

    Row i continues ``context_tokens`` of human training text: block ``human[i % len(human)]``, at an offset by (seed,
    row). The contexts are the same in each generation, as in Shumailov et al. 2024, so that a prompt can be
    followed through the generations; the sampling seed of a row is by (seed, generation, row).
    """
    blocks = corpus.blocks(corpus.train, block_size)[human[np.arange(rows) % len(human)]]
    # Drawn row by row, in order: a longer request begins like a shorter one.
    starts = generator(seed, "prompt_offset").integers(0, block_size - context_tokens + 1, size=rows)
    prompts = blocks[np.arange(rows)[:, None], starts[:, None] + np.arange(context_tokens)]
    offsets = pa.array(np.arange(0, rows * context_tokens + 1, context_tokens), type=pa.int32())
    return pa.table(
        {
            "row": pa.array(np.arange(rows), type=pa.int64()),
            "seed": pa.array([derive_seed(seed, "sampling", generation, row) for row in range(rows)], type=pa.int64()),
            "prompt_ids": pa.ListArray.from_arrays(offsets, pa.array(prompts.ravel(), type=pa.int32())),
        }
    )


def prompt_overlap(corpus: Corpus, human: np.ndarray, generated: pa.ListArray, block_size: int, n: int = 4) -> float:
    """Share of the generated n-grams of tokens that occur in the document that their prompt was taken from.

    ``human`` are the blocks of the prompts, as in :func:`draw_prompts`. NaN where no row has n tokens.
    """
    block_document = np.searchsorted(
        corpus.train_ends, np.arange(len(corpus.train) // block_size) * block_size, "right"
    )
    tokens = generated.values.to_numpy()
    ends = generated.offsets.to_numpy()[1:]
    row = np.searchsorted(ends, np.arange(len(tokens)), "right")
    inside = row[n - 1 :] == row[: len(tokens) - n + 1]
    document = block_document[human[row % len(human)]]
    wanted = _hash_ngrams(tokens, n, document[: len(tokens) - n + 1])[inside]
    source = np.asarray(corpus.train)
    source_document = np.searchsorted(corpus.train_ends, np.arange(len(source) - n + 1), "right")
    return float(np.isin(wanted, _hash_ngrams(source, n, source_document)).mean()) if len(wanted) else float("nan")


def _hash_ngrams(tokens: np.ndarray, n: int, document: np.ndarray) -> np.ndarray:
    """A 64-bit hash of (document, n-gram) at each position (polynomial, modulo 2**64)."""
    value = document.astype(np.uint64)
    for shift in range(n):
        piece = tokens[shift : len(tokens) - n + 1 + shift].astype(np.uint64)
        value = value * np.uint64(0x9E3779B97F4A7C15) + piece + np.uint64(1)
        value ^= value >> np.uint64(29)
    return value
