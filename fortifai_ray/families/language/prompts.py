"""The prompts of a generation's rows: which stretches of text they continue, none twice before all were taken once.

The text is generation 0's human training text, or the training set of the generation that writes, as running text: its
synthetic part and then its human part, each in the order of its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import Pack
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.data import human_blocks, read_generated, running_tokens
from fortifai_ray.families.language.ngrams import hash_ngrams
from fortifai_ray.recipe.pools import Draw, TrainingSet
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.store import canonical_hash


@dataclass(frozen=True)
class Prompts:
    """Where each row's prompt begins in the text of ``source``.

    Attributes:
        source: the data whose text it is.
        starts: int64 of shape (rows,).
        identity: what a stage's key needs to know; empty where the draw is that of older recipes.
    """

    source: TrainingSet
    starts: np.ndarray
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.starts)

    def repeated(self, times: int) -> "Prompts":
        """Each prompt so many times, one after the other: rows of which a curation chooses one."""
        if times == 1:
            return self
        return Prompts(self.source, np.repeat(self.starts, times), {**self.identity, "rows_of_each_prompt": times})


def check(length: int, rows: int, different: int, generation: int, decoding: DecodingConfig, pack: Pack) -> None:
    """Check that a generation can get ``rows`` prompts from its text of ``length`` tokens with ``different`` contexts.

    Raises:
        UserError: the text is shorter than a context; rows of a deterministic decoding would be copies; or a text is
            rewritten that is shorter than what is asked for.
    """
    own, context, step = decoding.prompts == "training_set", decoding.context_tokens, decoding.max_new_tokens
    text = f"generation {generation}'s training set" if own else "generation 0's human text"
    if length < context:
        raise UserError(f"decoding.context_tokens: {context} is more than the {length:,} tokens of {text}")
    if own and pack == "running":
        whole = len(_rewriting(length, context, step))
        lost = (generation + 1) * (context // step + 1)  # each text rewritten lacks the context with which it begins
        if rows > whole + lost:
            raise UserError(
                f"decoding.prompts: generation {generation} rewrites its training set of {length:,} tokens once "
                f"(training_set, with training.pack: running), as {whole:,} rows, and {rows:,} are asked for: a regime "
                "that asks for no more, without curation, is right, or training.pack: documents"
            )
    elif decoding.deterministic and rows > different:
        raise UserError(
            f"decoding: generation {generation} is asked for {rows:,} rows, and {text} has {different:,} different "
            f"contexts of {context} tokens: a deterministic decoding ({decoding.deterministic}) would write the same "
            "rows again and again; other context_tokens, prompts: training_set, a longer text, or a decoding that "
            "draws is right"
        )


def copies(text: "Text", prompts: Prompts, decoding: DecodingConfig) -> str | None:
    """What a dry run says of generation 0's rows that will be copies, since their contexts, though they stand at
    different places of its ``text``, are of the same tokens; None where a decoding draws, or none are."""
    if not decoding.deterministic:
        return None
    rows, different = len(prompts), distinct(text.contexts(prompts, decoding.context_tokens))
    if different == rows:
        return None
    return (
        f"warning: decoding: {rows - different:,} of generation 0's {rows:,} rows will be copies: {different:,} of "
        f"their contexts of {decoding.context_tokens} tokens differ, and a deterministic decoding "
        f"({decoding.deterministic}) writes the same row from the same context; longer context_tokens, or a "
        "decoding that draws, is right"
    )


def different_in_human(corpus: Corpus, first: Draw, context: int, block_size: int) -> int:
    """How many different prompts generation 0's human text has: places at which a context may begin, but for those
    whose tokens are the same."""
    order, rooms = np.argsort(np.argsort(first.items)), _rooms(first, context, block_size)
    starts = np.repeat(order * block_size, rooms) + np.arange(rooms.sum()) - np.repeat(np.cumsum(rooms) - rooms, rooms)
    tokens = corpus.blocks(corpus.train, block_size)[np.sort(first.items)].reshape(-1)
    return len(np.unique(hash_ngrams(tokens, context)[starts]))


def different_in_training_set(corpus: Corpus, data: TrainingSet, context: int, block_size: int, pack: Pack) -> int:
    """How many different prompts the text of a training set has, at most: places at which a context may begin, but for
    those in its human part whose tokens are the same. What is still to be written counts by its places."""
    places = text_length(data, pack) - context + 1
    human = corpus.blocks(corpus.train, block_size)[human_blocks(data)].reshape(-1)
    if len(human) < context:
        return places
    return places - (len(human) - context + 1) + len(np.unique(hash_ngrams(human, context)))


def _rooms(first: Draw, context: int, block_size: int) -> np.ndarray:
    """How many contexts begin in each block of generation 0's text, in the order in which blocks are used."""
    if context <= block_size:
        return np.full(len(first.items), block_size - context + 1)
    order = np.argsort(np.argsort(first.items))
    return np.clip(len(order) * block_size - context + 1 - order * block_size, 0, block_size)


def from_human(
    first: TrainingSet, rows: int, seed: int, decoding: DecodingConfig, block_size: int, pack: Pack = "documents"
) -> Prompts:
    """Prompts in generation 0's training set ``first``, the same in each generation.

    Row i begins in the i-th block, in the order in which blocks are used and over again, at an offset by (seed, row):
    within the block where ``context_tokens`` fit into one, so that a longer request begins like a shorter one. Where
    an offset was taken, the next free one is. With running text, the rows are numbered in the order of their places.
    """
    (draw,) = first.draws
    order = np.argsort(np.argsort(draw.items))  # of the block that is used i-th, its place in the text
    rooms = _rooms(draw, decoding.context_tokens, block_size)
    blocks, visits = _cycle(rooms, rows)
    # Drawn row by row, in order, by one call: one draw for each row, which asked for more begins alike.
    high = rooms[0] if (rooms == rooms[0]).all() else rooms[blocks]
    drawn = generator(seed, "prompt_offset").integers(0, high, rows)
    offsets = _without_repeats(drawn, blocks, visits, rooms)
    starts = order[blocks] * block_size + offsets
    if pack == "running":
        starts = np.sort(starts)
    as_before = decoding.context_tokens <= block_size and pack == "documents" and np.array_equal(offsets, drawn)
    identity = {} if as_before else {"prompts": canonical_hash(starts.tolist())}
    return Prompts(first, starts, identity)


def _cycle(rooms: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's block and how often that was visited before: a block's turn comes until its ``rooms`` are taken."""
    blocks, visits, count, visit = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0, 0
    while count < rows:
        turn = np.flatnonzero(rooms > visit % rooms.max())[: rows - count]
        blocks.append(turn)
        visits.append(np.full(len(turn), visit))
        count, visit = count + len(turn), visit + 1
    return np.concatenate(blocks), np.concatenate(visits)


def _without_repeats(drawn: np.ndarray, blocks: np.ndarray, visits: np.ndarray, rooms: np.ndarray) -> np.ndarray:
    """The offsets ``drawn``, each one that its block has had replaced by the next that it has not."""
    offsets = drawn.copy()
    if not len(visits) or not visits[-1]:
        return offsets
    taken = np.zeros((len(rooms), rooms.max()), dtype=bool)
    for visit in range(visits[-1] + 1):
        if visit % rooms.max() == 0:  # all were taken: over again
            taken[:] = False
        low, high = np.searchsorted(visits, [visit, visit + 1])
        at, chosen = blocks[low:high], offsets[low:high]
        while (clash := taken[at, chosen]).any():
            chosen[clash] = (chosen[clash] + 1) % rooms[at[clash]]
        taken[at, chosen] = True
    return offsets


def from_training_set(
    data: TrainingSet, rows: int, seed: int, generation: int, decoding: DecodingConfig, pack: Pack = "documents"
) -> Prompts:
    """Prompts in the generation's own training set ``data``: one for each ``max_new_tokens`` of its text after the
    first ``context_tokens``, so that the rows rewrite it. Where fewer are asked for, a random part of them.

    Where more are asked for, the rows of running text are no more (a text rewritten once is all of it); documents
    begin at other places, in random order, and over again once all were taken.
    """
    context, step, length = decoding.context_tokens, decoding.max_new_tokens, text_length(data, pack)
    whole, random = _rewriting(length, context, step), generator(seed, "prompts", generation)
    if rows < len(whole):
        starts = np.sort(random.permutation(whole)[:rows])
    elif pack == "running" or rows == len(whole):
        starts = whole
    else:
        others = np.setdiff1d(np.arange(length - context + 1), whole, assume_unique=True)
        starts = np.resize(np.concatenate([whole, random.permutation(others)]), rows)
    return Prompts(data, starts, {"prompts": {"of": data.describe(), "pack": pack}})


def _rewriting(length: int, context: int, step: int) -> np.ndarray:
    """Where contexts begin whose continuations of ``step`` tokens, joined, rewrite a text of ``length`` tokens from the
    end of its first context on, without what is left over; the first context of a text too short for that."""
    return np.arange(0, max(1, length - context - step + 1), step)


def text_length(data: TrainingSet, pack: Pack) -> int:
    """Tokens of a training set's text; as documents, each generated row has a token that ends it."""
    ends = sum(len(draw.items) for draw in data.draws if draw.pool.synthetic) if pack == "documents" else 0
    return data.human_size + data.synthetic_size + ends


@dataclass(frozen=True)
class Text:
    """A training set as running text: ``tokens`` int32 of shape (length,), the last ones those of ``blocks``."""

    tokens: np.ndarray
    blocks: np.ndarray  # of the corpus's training text
    block_size: int

    @classmethod
    def of(
        cls, data: TrainingSet, corpus: Corpus, synthetic: Mapping[str, Path], block_size: int, pack: Pack
    ) -> "Text":
        """``synthetic`` maps a pool's stage to the folder of its corpus."""
        end = corpus.end_of_text if pack == "documents" else None
        written = [
            running_tokens(read_generated(synthetic[draw.pool.stage]), draw.items, end)
            for draw in data.draws
            if draw.pool.synthetic
        ]
        blocks = human_blocks(data)
        human = corpus.blocks(corpus.train, block_size)[blocks].reshape(-1)
        return cls(np.concatenate([*written, human]), blocks, block_size)

    def table(self, prompts: Prompts, seed: int, generation: int, context_tokens: int) -> pa.Table:
        """A generation's prompts: ``row`` int64, ``seed`` int64, ``prompt_ids`` list<int32>.

        The sampling seed of a row is by (seed, generation, row).
        """
        rows = len(prompts)
        seeds = [derive_seed(seed, "sampling", generation, row) for row in range(rows)]
        return pa.table(
            {
                "row": pa.array(np.arange(rows), type=pa.int64()),
                "seed": pa.array(seeds, type=pa.int64()),
                "prompt_ids": self.contexts(prompts, context_tokens),
            }
        )

    def contexts(self, prompts: Prompts, context_tokens: int) -> pa.ListArray:
        """The tokens of each prompt: list<int32>."""
        ids = self.tokens[prompts.starts[:, None] + np.arange(context_tokens)]
        offsets = pa.array(np.arange(0, len(prompts) * context_tokens + 1, context_tokens), type=pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(ids.ravel(), type=pa.int32()))

    def blocks_of(self, starts: np.ndarray) -> np.ndarray:
        """The block of the corpus in which each prompt begins; −1 for synthetic text."""
        places = starts - (len(self.tokens) - len(self.blocks) * self.block_size)
        found = np.full(len(starts), -1)
        found[places >= 0] = self.blocks[places[places >= 0] // self.block_size]
        return found


def distinct(rows: pa.ListArray) -> int:
    """How many of the rows (lists of tokens) differ."""
    tokens, ends = rows.flatten().to_numpy(), np.cumsum(rows.value_lengths().to_numpy())
    return len({part.tobytes() for part in np.split(tokens, ends[:-1])}) if len(rows) else 0


def prompt_overlap(corpus: Corpus, blocks: np.ndarray, generated: pa.ListArray, block_size: int, n: int = 4) -> float:
    """Share of the generated n-grams of tokens that occur in the document that their prompt was taken from.

    ``blocks`` (rows,) are those in which the prompts begin; −1 for synthetic text, which is of no document. NaN where
    no other row has n tokens.
    """
    block_document = np.searchsorted(
        corpus.train_ends, np.arange(len(corpus.train) // block_size) * block_size, "right"
    )
    tokens = generated.values.to_numpy()
    ends = generated.offsets.to_numpy()[1:]
    row = np.searchsorted(ends, np.arange(len(tokens)), "right")
    inside = (row[n - 1 :] == row[: len(tokens) - n + 1]) & (blocks[row[: len(tokens) - n + 1]] >= 0)
    document = block_document[blocks[row]]
    wanted = hash_ngrams(tokens, n, document)[inside]
    source = np.asarray(corpus.train)
    source_document = np.searchsorted(corpus.train_ends, np.arange(len(source) - n + 1), "right")
    return float(np.isin(wanted, hash_ngrams(source, n, source_document)).mean()) if len(wanted) else float("nan")
