"""The human text: its source, the held-out part, and its tokens.

The corpus is a stage like any other, made from texts and tokenizer settings; it holds the tokenizer, training tokens
and held-out tokens. It is prepared before anything starts, so this imports neither torch nor Ray.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.engines.pretrained import in_short, load_tokenizer
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.written import read_written
from fortifai_ray.seeds import generator
from fortifai_ray.storage.store import Stage, StageKey, StageStore, file_sha256

VERSION = 1  # bump when the same text gives other tokens
END_OF_TEXT = "<|endoftext|>"
SUSPICIOUS = 0.01  # share of special tokens in a text; WikiText's <unk>, where a tokenizer has it, is 2 to 3%
_PIECE = 1 << 22  # tokens counted at a time
_ARTICLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # a WikiText article's title


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus in the store."""

    stage: Stage

    @property
    def hash(self) -> str:
        return self.stage.hash

    @property
    def tokenizer_path(self) -> Path:
        return self.stage.path / "tokenizer"

    @property
    def end_of_text(self) -> int:
        """The token that ends a document."""
        return int(self.stage.outputs["end_of_text"])

    @cached_property
    def train(self) -> np.ndarray:
        """Training documents, concatenated, each ended by :attr:`end_of_text`: int32 of shape (tokens,)."""
        return np.load(self.stage.path / "train.npy", mmap_mode="r")

    @cached_property
    def train_ends(self) -> np.ndarray:
        """Where each training document ends in :attr:`train` (exclusive): int64 of shape (documents,)."""
        return np.load(self.stage.path / "train_ends.npy")

    @cached_property
    def held_out(self) -> np.ndarray:
        """Held-out documents, as :attr:`train`."""
        return np.load(self.stage.path / "held_out.npy", mmap_mode="r")

    @cached_property
    def held_out_ends(self) -> np.ndarray:
        """As :attr:`train_ends`, of :attr:`held_out`."""
        return np.load(self.stage.path / "held_out_ends.npy")

    def count_special(self) -> dict[str, int]:
        """How often each special token stands inside documents, the tokens that end them not counted."""
        added = self._tokenizer.get_added_tokens_decoder()
        names = {token: entry.content for token, entry in added.items() if entry.special}
        ids = sorted({*names, self.end_of_text})
        counts = np.zeros(len(ids), dtype=np.int64)
        for tokens in (self.train, self.held_out):
            for start in range(0, len(tokens), _PIECE):
                counts += np.bincount(tokens[start : start + _PIECE], minlength=ids[-1] + 1)[ids]
        counts[ids.index(self.end_of_text)] -= len(self.train_ends) + len(self.held_out_ends)
        return {names.get(token, f"token {token}"): int(n) for token, n in zip(ids, counts, strict=True) if n}

    def blocks(self, tokens: np.ndarray, block_size: int) -> np.ndarray:
        """Whole blocks of ``tokens``: a view of shape (blocks, block_size); a shorter remainder is left out."""
        count = len(tokens) // block_size
        return tokens[: count * block_size].reshape(count, block_size)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token rows."""
        return self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=False)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_path / "tokenizer.json"))


def prepare_corpus(config: CorpusConfig, model: ModelConfig, store: StageStore) -> Corpus:
    """The corpus stage for ``config``, computed if the store lacks it.

    Raises :class:`UserError` for a text that cannot be read or split, or a tokenizer that cannot be loaded.
    """
    documents = read_documents(config)
    text_hash = hashlib.sha256("\x00".join(documents).encode()).hexdigest()
    tokenizer = (
        {"train": "byte-level BPE", "vocab_size": model.vocab_size} if model.preset else _pretrained_identity(model)
    )
    key = StageKey("corpus", VERSION, {"text": text_hash, "held_out": config.held_out, "tokenizer": tokenizer})
    return Corpus(store.step(key, lambda folder: _tokenise(documents, config, model, folder)))


def open_corpus(stage_hash: str, store: StageStore) -> Corpus:
    """A corpus that another process prepared; the text that it came from need not be accessible here."""
    stage = store.open(stage_hash)
    if stage is None:
        raise RuntimeError(f"the corpus {stage_hash} was removed from the store after the sweep began: run it again")
    return Corpus(stage)


@lru_cache(maxsize=8)  # most of a study's recipes share one corpus
def describe_corpus(config: CorpusConfig, stage_hash: str, store: StageStore) -> tuple[str, ...]:
    """What a dry run says of a corpus: its size, its longest document, special tokens in its text."""
    corpus = open_corpus(stage_hash, store)
    where = config.path or config.dataset or config.source or "written text"
    ends = (corpus.train_ends, corpus.held_out_ends)
    documents, longest = sum(map(len, ends)), max(int(np.diff(each, prepend=0).max()) - 1 for each in ends)
    line = (
        f"corpus: {where}: {len(corpus.train):,} training and {len(corpus.held_out):,} held-out tokens "
        f"of {documents:,} documents, the longest of {longest:,} tokens"
    )
    counts = corpus.count_special()
    return (line, *_special_line(counts, len(corpus.train) + len(corpus.held_out) - documents))


def _special_line(counts: Mapping[str, int], tokens: int) -> tuple[str, ...]:
    """Special tokens inside documents, which are rarely meant to be there: padding, a separator, unknown words."""
    total = sum(counts.values())
    if not total:
        return ()
    most = max(counts, key=lambda token: counts[token])
    line = f"{total / tokens:.1%} of its text is special tokens ({counts[most]:,} times {most!r})"
    if total < SUSPICIOUS * tokens:
        return (f"corpus: {line}",)
    return (f"warning: corpus: {line}; they are trained on like words: check the text and its tokenizer",)


def read_documents(config: CorpusConfig) -> list[str]:
    """The corpus as whole documents, in a fixed order."""
    if config.source == "pydoc":
        from pydoc_data.topics import topics

        documents = [topics[name] for name in sorted(topics)]
    elif config.path is not None:
        documents = _read_path(Path(config.path), config.text_column)
    elif config.written_by is not None:
        documents = read_written(config.written_by)
    else:
        documents = _read_hub(config)
    documents = [document for document in documents if document.strip()]
    if len(documents) < 2:
        where = config.path or config.dataset or config.source or "the text written"
        raise UserError(
            f"corpus: {where} holds {len(documents)} document(s); at least 2 are needed, so that one can be held out"
        )
    return documents


def _read_path(path: Path, column: str) -> list[str]:
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    files = sorted(file for file in path.rglob("*") if file.suffix in readers) if path.is_dir() else [path]
    if not files or files[0].suffix not in readers:
        raise UserError(f"corpus.path: {path}: .txt, .jsonl or .parquet text is needed (or a folder of it)")
    try:
        return [document for file in files for document in readers[file.suffix](file, column)]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"corpus.path: {path} cannot be read: {error}") from error


def _read_text(file: Path, _: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    starts = [match.start() for match in _ARTICLE.finditer(text)]
    if len(starts) > 1:  # WikiText: a document per article
        bounds = [0, *starts[1:], len(text)]
        return [text[start:end] for start, end in pairwise(bounds)]
    return re.split(r"\n\s*\n", text)  # anything else: a document per paragraph


def _read_jsonl(file: Path, column: str) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [str(json.loads(line)[column]) for line in lines if line.strip()]


def _read_parquet(file: Path, column: str) -> list[str]:
    import pyarrow.parquet as pq

    return [str(text) for text in pq.read_table(file, columns=[column])[column].to_pylist()]


def _read_hub(config: CorpusConfig) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("corpus.dataset: the package `datasets` is needed (pip install datasets)") from error
    try:
        rows = datasets.load_dataset(config.dataset, config.name, split=config.split)
        texts = [str(text) for text in rows[config.text_column]]
    except Exception as error:  # the hub's client raises dozens of kinds; each means that the data set is not available
        reason = str(error).splitlines()[0]
        raise UserError(f"corpus.dataset: {config.dataset} ({config.name}) cannot be loaded: {reason}") from error
    return _join_articles(texts)


def _join_articles(lines: list[str]) -> list[str]:
    """Join WikiText, a row per line on the hub, into articles; other data sets are unchanged."""
    if not any(_ARTICLE.fullmatch(line.rstrip("\n")) for line in lines):
        return lines
    documents: list[list[str]] = [[]]
    for line in lines:
        if _ARTICLE.fullmatch(line.rstrip("\n")):
            documents.append([])
        documents[-1].append(line)
    return ["".join(lines) for lines in documents]


def split_documents(documents: list[str], held_out: float) -> tuple[list[str], list[str]]:
    """(training, held-out) documents: at least one of each, the held-out ones ``held_out`` of the characters.

    The split is a function of the corpus alone: documents are taken in a fixed random order, skipping those longer than
    the remaining budget. Identical documents go to the same side, so that nothing leaks.
    """
    unique = list(dict.fromkeys(documents))
    wanted = held_out * sum(len(text) for text in unique)
    chosen: set[str] = set()
    for index in generator(0, "held_out").permutation(len(unique)):
        if len(unique[index]) <= wanted:
            chosen.add(unique[index])
            wanted -= len(unique[index])
    if not chosen:  # every document is longer than the share: take the shortest
        chosen.add(min(unique, key=len))
    return [text for text in documents if text not in chosen], [text for text in unique if text in chosen]


def _tokenise(documents: list[str], config: CorpusConfig, model: ModelConfig, folder: Path) -> dict[str, Any]:
    train, held_out = split_documents(documents, config.held_out)
    if model.preset:
        end_of_text = _train_tokenizer(train, model.vocab_size, folder / "tokenizer")
    else:
        end_of_text = _save_pretrained_tokenizer(model, folder / "tokenizer")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.no_truncation()
    outputs: dict[str, Any] = {"end_of_text": end_of_text, "documents": len(documents)}
    for name, texts in (("train", train), ("held_out", held_out)):
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        rows = [np.array([*row.ids, end_of_text], dtype=np.int32) for row in encoded]
        np.save(folder / f"{name}.npy", np.concatenate(rows))
        np.save(folder / f"{name}_ends.npy", np.cumsum([len(row) for row in rows]))
        outputs[f"{name}_tokens"] = int(sum(len(row) for row in rows))
    return outputs


def _train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=1)
    )
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None
    return end_of_text


def _save_pretrained_tokenizer(model: ModelConfig, folder: Path) -> int:
    try:
        tokenizer = load_tokenizer(model.checkpoint, model.revision)
    except Exception as error:  # transformers raises many kinds here; each means that there is no tokenizer
        reason = in_short(error)
        raise UserError(f"family.model: no tokenizer could be loaded from {model.checkpoint}: {reason}") from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UserError(f"family.model: {model.checkpoint} needs a fast tokenizer with an end-of-text token")
    tokenizer.save_pretrained(folder)
    return int(tokenizer.eos_token_id)


def _pretrained_identity(model: ModelConfig) -> dict[str, Any]:
    """The identity of a pretrained tokenizer: its files' content, or its hub name and revision."""
    if model.path is None:
        return {"hub": model.hub, "revision": model.revision}
    files = sorted(p for p in Path(model.path).iterdir() if p.is_file() and not p.name.endswith(".safetensors"))
    return {file.name: file_sha256(file) for file in files if "token" in file.name or "vocab" in file.name}
