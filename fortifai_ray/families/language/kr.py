"""The KR-test and a language model's corpus: the text that a model was trained on, and questions made from any text.

``python -m fortifai_ray.families.language.kr (pydoc | PATH) [--pairs 200] [--seed 0] --output FILE.json`` writes
questions for ``fortifai evaluate --tasks kr_test=FILE.json``.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.kr_questions import make_questions, save_questions
from fortifai_ray.families.language.config import CorpusConfig
from fortifai_ray.families.language.texts import read_documents
from fortifai_ray.validation import validated


def held_in_texts(
    tokens: np.ndarray,
    ends: np.ndarray,
    blocks: np.ndarray,
    block_size: int,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
) -> list[str]:
    """Decode the chosen blocks: a string for each unbroken run of them within a document, in the corpus's order.

    Args:
        tokens: (n,) the training documents, concatenated, each followed by an end token.
        ends: (documents,) where each document ends in ``tokens`` (exclusive; its end token is included).
        blocks: numbers of the chosen blocks; block *b* is ``tokens[b * block_size : (b + 1) * block_size]``.
        block_size: tokens per block.
        decode: turns rows of tokens into texts.
    """
    chosen = np.unique(np.asarray(blocks, dtype=np.int64))
    breaks = np.flatnonzero(np.diff(chosen) > 1) + 1
    runs = [(int(run[0]) * block_size, (int(run[-1]) + 1) * block_size) for run in np.split(chosen, breaks) if len(run)]
    starts = np.concatenate([[0], ends[:-1]])
    rows = []
    for start, end in runs:
        for document in range(int(np.searchsorted(ends, start, "right")), len(ends)):
            if starts[document] >= end:
                break
            rows.append(tokens[max(start, int(starts[document])) : min(end, int(ends[document]) - 1)].tolist())
    return [text for text in decode([row for row in rows if row]) if text]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the corpus, write the questions to a file and print how many there are."""
    parser = argparse.ArgumentParser(description="Make knowledge-retention questions from a corpus.")
    parser.add_argument("corpus", help="pydoc, or a file or folder of texts, as `corpus.path` of a study")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args(arguments)
    origin = {"source": "pydoc"} if given.corpus == "pydoc" else {"path": given.corpus}
    config = validated(CorpusConfig, origin, "corpus")
    questions = make_questions(read_documents(config).texts, given.pairs, given.seed)
    save_questions(questions, given.output)
    print(f"{len(questions)} questions in {given.output}")


if __name__ == "__main__":
    try:
        main()
    except UserError as mistake:
        print(f"fortifai: {mistake}", file=sys.stderr)
        sys.exit(2)
