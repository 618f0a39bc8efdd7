"""From a regime's draws to the token blocks that a model is trained on, and the corpora of a generation."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import Pack
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.recipe.pools import TrainingSet, part_weights


def fetch_blocks(
    training_set: TrainingSet, corpus: Corpus, synthetic: Mapping[str, Path], block_size: int, pack: Pack = "documents"
) -> Blocks:
    """The blocks of a training set.

    Human draws are already blocks. Generated rows are packed as documents, like the human ones (concatenated, each
    ended by the end-of-text token), or as running text: joined in the order of their rows, in whole blocks, the rest
    left out. Sizes count generated tokens only. ``synthetic`` maps a pool's stage to the folder of its corpus.
    No block holds human and generated text, so that the regime's weights are blocks' weights.
    """
    parts = []
    human = corpus.blocks(corpus.train, block_size)
    for draw in training_set.draws:
        if not draw.pool.synthetic:
            parts.append(Blocks(human[draw.items], np.full(len(draw.items), block_size)))
            continue
        rows = read_generated(synthetic[draw.pool.stage])
        if pack == "running":
            whole = corpus.blocks(running_tokens(rows, draw.items), block_size)
            parts.append(Blocks(whole, np.full(len(whole), block_size)))
        else:
            parts.append(_pack(rows, draw.items, corpus.end_of_text, block_size))
    lengths = np.concatenate([p.lengths for p in parts])
    return Blocks(np.concatenate([p.tokens for p in parts]), lengths, _weights(training_set, parts))


def _weights(training_set: TrainingSet, parts: list[Blocks]) -> np.ndarray | None:
    """(blocks,) The weight of each block's targets; ``parts`` are those of the draws."""
    synthetic = np.repeat([draw.pool.synthetic for draw in training_set.draws], [len(part) for part in parts])
    targets = (np.concatenate([part.lengths for part in parts]) - 1).clip(0)
    of_human, of_synthetic = int(targets[~synthetic].sum()), int(targets[synthetic].sum())
    if training_set.human_weight is None or not of_human or not of_synthetic:
        return None
    return np.array(part_weights(training_set.human_weight, of_human, of_synthetic))[synthetic.astype(int)]


def _pack(rows: pa.ListArray, items: np.ndarray, end_of_text: int, block_size: int) -> Blocks:
    stream = _joined(rows, items, end_of_text)
    count = -(-len(stream) // block_size)
    tokens = np.full(count * block_size, end_of_text, dtype=np.int32)
    tokens[: len(stream)] = stream
    lengths = np.full(count, block_size)
    if count:
        lengths[-1] = len(stream) - (count - 1) * block_size
    return Blocks(tokens.reshape(count, block_size), lengths)


def _joined(rows: pa.ListArray, items: np.ndarray, end_of_text: int | None) -> np.ndarray:
    """The tokens of the chosen rows, each followed by ``end_of_text`` unless it is None: int32 of shape (tokens,)."""
    chosen = rows.take(pa.array(items))
    stream: np.ndarray = chosen.flatten().to_numpy().astype(np.int32)
    if end_of_text is None:
        return stream
    return np.insert(stream, np.cumsum(chosen.value_lengths().to_numpy()), end_of_text)


def running_tokens(rows: pa.ListArray, items: np.ndarray, end_of_text: int | None = None) -> np.ndarray:
    """The tokens of the chosen rows in the order in which they were written, whatever the order of ``items``."""
    return _joined(rows, np.sort(items), end_of_text)


def retokenised(rows: pa.ListArray, corpus: Corpus) -> pa.ListArray:
    """The tokens that the text of all rows, joined, is tokenised to: as many rows, each with the tokens that begin in
    its text (a row may have none)."""
    texts = corpus.decode(rows.to_pylist())
    tokens, starts = corpus.encode("".join(texts))
    row_ends = np.cumsum([len(text) for text in texts])
    offsets = np.concatenate([[0], np.searchsorted(starts, row_ends)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens, pa.int32()))


def human_blocks(training_set: TrainingSet) -> np.ndarray:
    """The blocks of a training set's human part, in the order of the text."""
    items = [draw.items for draw in training_set.draws if not draw.pool.synthetic]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *items]))


def read_corpus(folder: Path) -> pa.Table:
    """Read a synthetic corpus, by ascending row."""
    return pq.read_table(folder).sort_by("row")


def retokenise(folder: Path, corpus: Corpus) -> None:
    """Replace the generated tokens of the synthetic corpus in ``folder`` by those of its text (:func:`retokenised`)."""
    table = read_corpus(folder)
    place = table.schema.get_field_index("generated_ids")
    column = retokenised(table["generated_ids"].combine_chunks(), corpus)
    shutil.rmtree(folder)
    write_corpus(table.set_column(place, table.schema.field(place), column), folder)


def write_corpus(table: pa.Table, folder: Path) -> None:
    """Write rows of a synthetic corpus as a corpus of their own."""
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet")


def read_generated(folder: Path) -> pa.ListArray:
    """Generated token ids of a synthetic corpus, by row."""
    table = pq.read_table(folder, columns=["row", "generated_ids"]).sort_by("row")
    return table["generated_ids"].combine_chunks()


def as_text(folder: Path, corpus: Corpus, count: int) -> list[dict[str, Any]]:
    """The first ``count`` rows of a synthetic corpus as text: row, prompt_text, generated_text."""
    table = pq.read_table(folder, columns=["row", "prompt_ids", "generated_ids"])
    rows = table.sort_by("row").slice(0, count).to_pylist()
    prompts = corpus.decode([row["prompt_ids"] for row in rows])
    texts = corpus.decode([row["generated_ids"] for row in rows])
    return [
        {"row": row["row"], "prompt_text": prompt, "generated_text": text}
        for row, prompt, text in zip(rows, prompts, texts, strict=True)
    ]
