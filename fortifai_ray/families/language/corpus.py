"""The human text: its source, the held-out part, and its tokens.

The corpus is a stage like any other, made from texts and tokenizer settings; it holds the tokenizer, training tokens
and held-out tokens. It is prepared before anything starts, so this imports neither torch nor Ray.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.engines.gguf_files import is_gguf
from fortifai_ray.engines.pretrained import WeightsError, load_tokenizer
from fortifai_ray.errors import UserError, in_short
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.ngrams import MANY, RUN, shared_runs
from fortifai_ray.families.language.texts import Documents, read_documents, read_validation
from fortifai_ray.seeds import generator
from fortifai_ray.storage.store import Stage, StageKey, StageStore, file_sha256

VERSION = 1  # bump when the same text gives other tokens
END_OF_TEXT = "<|endoftext|>"
SUSPICIOUS = 0.01  # share of special tokens in a text; WikiText's <unk>, where a tokenizer has it, is 2 to 3%
_SUSPICIOUS = (
    "warning: corpus: {} of the text's tokens are special tokens, most of them {}: they are trained on like words; "
    "check the text, and whether the tokenizer is the model's own"
)
_TOO_FEW = (
    "warning: corpus.train_tokens: {:,} are asked for, and the text has {:,}: generation 0 is trained on these; a "
    "longer text or a smaller number is needed, or null for all that the regime leaves it"
)
_KNOWN = "the model knows it, and its perplexity is too low"
_PASSAGES = (
    "warning: corpus: {:.0%} of the held-out text stands in the training text, too, in passages of {} words and more: "
    + _KNOWN
    + "; make one document of those that share passages, or leave the copies out"
)
_BATCH = 1024  # documents tokenised at a time: tokenizers needs a hundred bytes a token
_PIECE = 1 << 22  # tokens counted at a time
_OF_CALLS = {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"}
_SIDES = {"padding_side", "truncation_side"}


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
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown is not None and (place := self._tokenizer.token_to_id(unknown)) is not None:
            names[place] = unknown
        ids = sorted({*names, self.end_of_text})
        counts = np.zeros(len(ids), dtype=np.int64)
        for tokens in (self.train, self.held_out):
            for start in range(0, len(tokens), _PIECE):
                counts += np.bincount(tokens[start : start + _PIECE], minlength=ids[-1] + 1)[ids]
        counts[ids.index(self.end_of_text)] -= len(self.train_ends) + len(self.held_out_ends)
        return {names.get(token, f"token {token}"): int(n) for token, n in zip(ids, counts, strict=True) if n}

    def added_tokens(self, size: int) -> list[str]:
        """The tokens added to the tokenizer that are beyond a model's ``size``."""
        return [token.content for place, token in self._tokenizer.get_added_tokens_decoder().items() if place >= size]

    def blocks(self, tokens: np.ndarray, block_size: int) -> np.ndarray:
        """Whole blocks of ``tokens``: a view of shape (blocks, block_size); a shorter remainder is left out."""
        count = len(tokens) // block_size
        return tokens[: count * block_size].reshape(count, block_size)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token rows."""
        return self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=False)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a text, none added to its ends, and the character at which each begins: int32 and int64 of
        shape (tokens,), the latter ascending."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        starts = np.array([start for start, _ in found.offsets], dtype=np.int64)
        return np.array(found.ids, dtype=np.int32), np.maximum.accumulate(starts)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_path / "tokenizer.json"))


def prepare_corpus(config: CorpusConfig, model: ModelConfig, store: StageStore) -> Corpus:
    """The corpus stage for ``config``, computed if the store lacks it.

    Raises :class:`UserError` for a text that cannot be read or split, or a tokenizer that cannot be loaded.
    """
    documents = read_documents(config)
    validation = read_validation(config, documents)
    held_out = {"held_out": config.held_out} if validation is None else {"validation": validation.hash}
    key = StageKey("corpus", VERSION, {"text": documents.hash, **held_out, "tokenizer": _tokenizer_identity(model)})

    def compute(folder: Path) -> dict[str, Any]:
        parts = split_documents(documents.texts, config.held_out)
        if validation is not None:
            parts = documents.texts, list(dict.fromkeys(validation.texts))
        return {"documents": len(documents.texts), **_tokenise(*parts, model, folder)}

    return Corpus(store.step(key, compute))


def open_corpus(stage_hash: str, store: StageStore) -> Corpus:
    """A corpus that another process prepared; the text that it came from need not be accessible here."""
    stage = store.open(stage_hash)
    if stage is None:
        raise RuntimeError(f"the corpus {stage_hash} was removed from the store after the sweep began: run it again")
    return Corpus(stage)


@lru_cache(maxsize=8)  # most of a study's recipes share one corpus
def describe_corpus(config: CorpusConfig, stage_hash: str, store: StageStore) -> tuple[str, ...]:
    """What a dry run says of a corpus: its size, its longest document, special tokens in its text."""
    corpus, documents = open_corpus(stage_hash, store), read_documents(config)
    validation = read_validation(config, documents)
    where = config.path or config.dataset or config.source or "written text"
    ends = (corpus.train_ends, corpus.held_out_ends)
    count, longest = sum(map(len, ends)), max(int(np.diff(each, prepend=0).max()) - 1 for each in ends)
    # Equal documents of one text are on one side, and the held-out ones differ.
    held_out, read = (len(corpus.held_out_ends), documents) if validation is None else (0, validation.after(documents))
    copies = len(corpus.train_ends) - (len(set(documents.texts)) - held_out)
    special = corpus.count_special()
    share = sum(special.values()) / max(1, len(corpus.train) + len(corpus.held_out) - count)
    most = max(special, key=lambda token: special[token], default="")
    often = f" ({special[most]:,} times {most!r})" if special else ""
    line = (
        f"corpus: {where}: {len(corpus.train):,} training and {len(corpus.held_out):,} held-out tokens of "
        f"{len(read.texts):,} documents"
        + (f" in {read.files:,} files" if read.files > 1 else "")
        + f", the longest of {longest:,} tokens; {share:.1%} special tokens in the text{often}; documents left out: "
        + (read.left_out(len(read.texts) - count) or "none")
        + (f"; {copies:,} training documents are copies of others, and stay" if copies else "")
        + (f"; files left out: {read.files_left_out}" if read.files_left_out else "")
    )
    left_out = corpus.stage.outputs.get("left_out", ())
    return (
        line,
        *(f"tokenizer: the {name} that its tokenizer.json carries from a call is left out" for name in left_out),
        *_leaks(corpus, documents, validation),
        *([_TOO_FEW.format(config.train_tokens, len(corpus.train))] if _asks_too_much(config, corpus) else ()),
        *([_SUSPICIOUS.format(f"{share:.1%}", repr(most))] if share >= SUSPICIOUS else ()),
    )


def _leaks(corpus: Corpus, documents: Documents, validation: Documents | None) -> list[str]:
    """What to say of held-out text that is trained on: whole documents of a validation text, and passages."""
    both = set(documents.texts).intersection(() if validation is None else validation.texts)
    if both:
        return [f"warning: corpus.validation: {len(both):,} of its documents are in the training text, too: {_KNOWN}"]
    share = corpus.stage.outputs.get("shared_runs", 0.0)  # which stages of an older make lack
    return [_PASSAGES.format(share, RUN)] * (share >= MANY)


def _asks_too_much(config: CorpusConfig, corpus: Corpus) -> bool:
    return config.train_tokens is not None and config.train_tokens > len(corpus.train)


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


def _tokenise(train: list[str], held_out: list[str], model: ModelConfig, folder: Path) -> dict[str, Any]:
    if model.random:
        end_of_text = _train_tokenizer(train, model.vocab_size, folder / "tokenizer")
    elif model.preset is not None:
        end_of_text = _save_preset_tokenizer(Path(model.checkpoint), folder / "tokenizer")
    else:
        end_of_text = _save_pretrained_tokenizer(model, folder / "tokenizer")
        _forget_calls(folder / "tokenizer", _origin(model, "tokenizer_config.json"))
    left_out = [] if model.random else _call_state(_origin(model, "tokenizer.json"))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    outputs: dict[str, Any] = {"end_of_text": end_of_text, "left_out": left_out}
    for name, texts in (("train", train), ("held_out", held_out)):
        rows = [
            np.array([*row.ids, end_of_text], dtype=np.int32)
            for start in range(0, len(texts), _BATCH)
            for row in tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        ]
        np.save(folder / f"{name}.npy", np.concatenate(rows))
        np.save(folder / f"{name}_ends.npy", np.cumsum([len(row) for row in rows]))
        outputs[f"{name}_tokens"] = int(sum(len(row) for row in rows))
    return outputs | {"shared_runs": shared_runs(train, held_out)}


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


def _call_state(file: Path) -> list[str]:
    """What calls have left in a ``tokenizer.json`` and would change the tokens of a text: padding fills every document
    up to the longest, dropout merges at random. (Truncation is left out of every file that is saved here.)"""
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {"padding": content.get("padding"), "dropout": content["model"].get("dropout")}
    except (ValueError, KeyError, AttributeError):  # what is no tokenizer is refused where it is loaded
        return []
    return [name for name, value in found.items() if value]


def _forget_calls(folder: Path, settings_before: Path) -> None:
    """Take out of a saved tokenizer what calls have left in it.

    transformers copies such a state into the settings, where only a side that was set before stays.
    """
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if not _call_state(file) and not content.get("truncation"):
        return
    content |= {"padding": None, "truncation": None}
    if "dropout" in content["model"]:  # of BPE alone
        content["model"]["dropout"] = None
    _write_json(file, content)
    if settings.is_file():
        before = json.loads(settings_before.read_text(encoding="utf-8")) if settings_before.is_file() else {}
        unwanted = _OF_CALLS | (_SIDES - before.keys())
        now = json.loads(settings.read_text(encoding="utf-8"))
        _write_json(settings, {key: value for key, value in now.items() if key not in unwanted})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _save_preset_tokenizer(preset: Path, folder: Path) -> int:
    """As :func:`_save_pretrained_tokenizer` saves it, without transformers, whose import takes the driver 3.5 s."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(preset / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])  # adds nothing
    settings = json.loads((preset / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"backend": "tokenizers", "is_local": True, "local_files_only": False}
    settings |= {"model_max_length": int(1e30), "tokenizer_class": "TokenizersBackend"}
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    end_of_text = tokenizer.token_to_id(settings["eos_token"])
    assert end_of_text is not None, "a preset's documents end"
    return int(end_of_text)


def _save_pretrained_tokenizer(model: ModelConfig, folder: Path) -> int:
    where = f"family.model: {model.name}"
    if model.path and is_gguf(Path(model.path)) and not (Path(model.checkpoint) / "tokenizer.json").is_file():
        raise UserError(
            f"{where} holds no tokenizer, and a corpus is read by one: give a GGUF that has its own, or the model's "
            "folder, with its tokenizer.json"
        )
    try:
        tokenizer = load_tokenizer(model.checkpoint, model.revision)
        if tokenizer.is_fast:
            tokenizer.save_pretrained(folder)
    except WeightsError as error:
        raise UserError(f"family.model: {str(error).replace(model.checkpoint, model.name)}") from error
    except Exception as error:  # transformers raises many kinds here; each means that it is not whole
        raise UserError(f"{where}: its tokenizer cannot be saved: {in_short(error)}") from error
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{where}: its {type(tokenizer).__name__} has no fast form, which reads a corpus; a folder with a "
            "tokenizer.json is needed"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{where}: its tokenizer has no end-of-text token, which parts the documents; set eos_token in its "
            "tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _tokenizer_identity(model: ModelConfig) -> dict[str, Any]:
    """What determines the tokens: how a tokenizer is trained, a pretrained one's files, or its hub name and revision.

    A state of calls that is left out is part of it: older stages were made with it.
    """
    if model.random:
        return {"train": "byte-level BPE", "vocab_size": model.vocab_size}
    folder = model.folder
    if folder is None:
        identity: dict[str, Any] = {"hub": model.hub, "revision": model.revision}
    else:
        names = [file.name for file in sorted(folder.iterdir()) if file.is_file() and _is_of_tokenizer(file, folder)]
        identity = {name: file_sha256(folder / name) for name in names}
    left_out = _call_state(_origin(model, "tokenizer.json"))
    return identity | ({"left_out": left_out} if left_out else {})


def _is_of_tokenizer(file: Path, folder: Path) -> bool:
    """Whether a file determines the tokens; merges and SentencePiece models do where there is no ``tokenizer.json``."""
    if file.suffix == ".safetensors":
        return False
    slow = file.name == "merges.txt" or file.suffix == ".model"
    return "token" in file.name or "vocab" in file.name or (slow and not (folder / "tokenizer.json").is_file())


def _origin(model: ModelConfig, name: str) -> Path:
    """A file of a pretrained model's folder, or the copy here of the hub's; a path to nothing where there is none."""
    if folder := model.folder:
        return folder / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(model.hub), name, revision=model.revision))
    except Exception:  # a tokenizer that cannot be had is reported where it is loaded
        return Path(str(model.hub)) / name
