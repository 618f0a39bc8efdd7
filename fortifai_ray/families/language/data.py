"""Which blocks a training worker works through in each step, and in which micro-batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.recipe.regimes import TrainingSet
from fortifai_ray.seeds import derive_seed, generator

if TYPE_CHECKING:
    from torch import Tensor


# From draws to token blocks: the only place that turns a regime's choice into what a model is trained on.


@dataclass(frozen=True)
class Blocks:
    """Token blocks: ``tokens`` int32 of shape (blocks, block_size); of row i, the first ``lengths[i]`` are text."""

    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def fetch_blocks(training_set: TrainingSet, corpus: Corpus, synthetic: Mapping[str, Path], block_size: int) -> Blocks:
    """The blocks of a training set.

    Human draws are blocks already. Generated rows are documents: packed as the human ones were, one after the other
    with the end-of-text token between them. That token is no part of any size: sizes count generated tokens.
    ``synthetic`` maps a pool's stage to the folder of its corpus.
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
    """A synthetic corpus, by ascending row."""
    return pq.read_table(folder).sort_by("row")


def write_corpus(table: pa.Table, folder: Path) -> None:
    """Rows of a synthetic corpus as a corpus of their own."""
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet")


def read_generated(folder: Path) -> pa.ListArray:
    """Generated token ids of a synthetic corpus, by row."""
    table = pq.read_table(folder, columns=["row", "generated_ids"]).sort_by("row")
    return table["generated_ids"].combine_chunks()


def draw_prompts(
    corpus: Corpus, human: np.ndarray, rows: int, *, seed: int, generation: int, block_size: int, context_tokens: int
) -> pa.Table:
    """Prompts of one generation: ``row`` int64, ``seed`` int64, ``prompt_ids`` list<int32>.

    Row i continues ``context_tokens`` of human training text: block ``human[i % len(human)]``, from an offset drawn by
    (seed, row). The contexts are the same in each generation, as in Shumailov et al. 2024, so that a prompt can be
    followed through the generations; the sampling seed of a row is drawn by (seed, generation, row).
    """
    blocks = corpus.blocks(corpus.train, block_size)[human[np.arange(rows) % len(human)]]
    # Drawn for every row up to the number asked for, in order: a longer request begins as a shorter one does.
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
    """Share of the generated n-grams (tokens) that stand somewhere in the document their prompt was taken from.

    ``human`` are the blocks that rows were prompted from, as in :func:`draw_prompts`. NaN where no row has n tokens.
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


class Batch(NamedTuple):
    """One rank's share of a step's blocks: ``parts`` are its micro-batches, tokens (rows, block_size) and lengths
    (rows,), as many on every rank; ``targets`` counts those of all ranks."""

    parts: "list[tuple[Tensor, Tensor]]"
    targets: int


def batches(blocks: Blocks, order: np.ndarray, training: TrainingConfig, rank: int, world: int) -> Iterator[Batch]:
    """The share of each step's blocks of one ``rank`` of ``world``, in the order of ``order`` (indices of blocks)."""
    for start in range(0, len(order), training.batch_size):
        batch = order[start : start + training.batch_size]
        targets = int((blocks.lengths[batch] - 1).clip(0).sum())
        parts = min(training.gradient_accumulation, -(-len(batch) // world))
        shares = np.array_split(batch[rank::world], parts)
        yield Batch([_rows(blocks, share, batch[:1]) for share in shares], max(targets, 1))


def _rows(blocks: Blocks, share: np.ndarray, any_row: np.ndarray) -> "tuple[Tensor, Tensor]":
    """The rows of a micro-batch; where it has none, a row without targets keeps this rank in step with the others."""
    import torch

    lengths = blocks.lengths[share]
    if len(share) == 0:
        share, lengths = any_row, np.zeros(1, dtype=np.int64)
    return torch.from_numpy(blocks.tokens[share]).long(), torch.from_numpy(lengths)


# Documents that are packed into one block, kept apart: attention within a document, positions from its start.
#
# An end-of-text token ends one document and begins the next: it is predicted from what stands before it, and what comes
# after it is predicted from it and nothing before. So every target of a block has a context of its own document alone,
# and none need be left out.


def keep_documents_apart(model: Any, end_of_text: int) -> None:
    """From now on the body of ``model``, a Hugging Face causal LM, sees each document of a row by itself.

    transformers finds packed documents by positions that start again, where nothing is cached. Not every architecture
    looks: it is tried on a row, and one that attends across documents all the same is refused with :class:`UserError`.
    """

    def add_positions(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        place = positions(keywords["input_ids"], end_of_text)
        return arguments, {**keywords, "position_ids": place, "use_cache": False}

    model.base_model.register_forward_pre_hook(add_positions, with_kwargs=True)
    if not _apart(model, end_of_text):
        raise UserError(
            f"training.document_mask: {type(model).__name__} attends across the documents of a block whatever their "
            "positions; leave it out"
        )


def positions(tokens: "Tensor", end_of_text: int) -> "Tensor":
    """Each token's place in its document: int64 of the shape of ``tokens`` (rows, length)."""
    import torch

    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return place - torch.where(tokens == end_of_text, place, 0).cummax(1).values


def _apart(model: Any, end_of_text: int) -> bool:
    """Whether what follows an end-of-text token gets the hidden states that it gets at the beginning of a row."""
    import torch

    others = [token for token in range(9) if token != end_of_text][:8]
    second = torch.tensor([[end_of_text, *others[:4]]], device=model.device)
    first = torch.tensor([others[4:]], device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = model.base_model(input_ids=second, use_cache=False).last_hidden_state
        packed = model.base_model(input_ids=torch.cat([first, second], 1), use_cache=False).last_hidden_state
    model.train(training)
    difference = (packed[:, first.shape[1] :] - alone).abs().max()
    return bool(difference <= 1000 * torch.finfo(alone.dtype).eps * alone.abs().max())
