"""The recipe of a chain of n-gram models: its text, read once into the store, and its documents."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.base import AnalyticFamily
from fortifai_ray.families.analytic.ngram import Ngram, Text
from fortifai_ray.families.analytic.recipe import AnalyticRecipe
from fortifai_ray.families.language.config import CorpusConfig
from fortifai_ray.storage.store import StageKey, StageStore

VERSION = 1  # bump when the same text gives other tokens
_WORD = re.compile(r"\w+|[^\w\s]")
_NOT_HERE = {"train_tokens": "samples_per_generation and family.length", "order": "chance, by each chain's seed,"}


class NgramRecipe(AnalyticRecipe):
    """A chain of n-gram models of a text."""

    kinds: ClassVar[tuple[str, ...]] = ("ngram",)
    read_apart: ClassVar[frozenset[str]] = frozenset({"corpus"})

    family: Ngram
    corpus: CorpusConfig = Field(CorpusConfig(source="pydoc"), description="the human text, of whole documents")

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        for key, instead in _NOT_HERE.items():
            if key in self.corpus.model_fields_set and getattr(self.corpus, key) not in (None, "permuted"):
                raise ValueError(f"corpus.{key}: for n-gram models {instead} decides: leave it out")
        if self.ecosystem is not None and len({one.family.length for one in self.lineages().values()}) > 1:
            raise ValueError("ecosystem.lineages: all read documents of one family.length: leave it to the family")
        return self

    @property
    def shared_input(self) -> Any:
        return (self.corpus, self.family.tokens, self.family.vocabulary)

    def prepare(self, store: StageStore, source: str) -> str:
        """Tokenise the text; returns its stage's hash."""
        from fortifai_ray.families.language.corpus import split_documents
        from fortifai_ray.families.language.texts import read_documents, read_validation

        try:
            documents = read_documents(self.corpus)
            validation = read_validation(self.corpus, documents)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        apart = {"held_out": self.corpus.held_out} if validation is None else {"validation": validation.hash}
        tokens, most = self.family.tokens, self.family.vocabulary
        inputs = {"text": documents.hash, **apart, "tokens": tokens, "vocabulary": most}

        def compute(folder: Path) -> dict[str, Any]:
            train, held_out = split_documents(documents.texts, self.corpus.held_out)
            parts = (train, held_out) if validation is None else (documents.texts, validation.texts)
            ours, theirs, names = tokenised("\n".join(parts[0]), "\n".join(parts[1]), tokens, most)
            np.savez(folder / "tokens.npz", train=ours, held_out=theirs)
            return {"vocabulary": names, "tokens": len(ours), "held_out": len(theirs)}

        return store.step(StageKey("ngram_text", VERSION, inputs), compute).hash

    def check(self, prepared: str | None, store: StageStore, source: str) -> None:
        text, length = self._read(prepared, store), self.family.length
        there, budgets = len(text.documents(length)), self.sizes if len(set(self.sizes)) > 1 else ()
        needed = self.regime.human_needed(self.sizes[0], self.generations, budgets)
        if needed > there:
            raise UserError(
                f"{source}: samples_per_generation: {self.regime.kind} uses {needed:,.0f} human documents of {length} "
                f"tokens in {self.generations} generations, and the corpus has {there:,} to train on; fewer, a smaller "
                "family.length, fewer generations or a longer text is right"
            )
        if len(text.held_out) < length:
            raise UserError(
                f"{source}: family.length: {len(text.held_out):,} held-out tokens are less than one document of "
                f"{length}; a smaller family.length or a larger corpus.held_out is right"
            )
        super().check(prepared, store, source)

    def describe(self, prepared: str | None, store: StageStore) -> tuple[str, ...]:
        text, kind = self._read(prepared, store), self.family.tokens
        others = (text.train == text.size - 1).mean()
        return (
            f"corpus: {len(text.train):,} {kind}s to train on, {len(text.held_out):,} held out, in documents of "
            f"{self.family.length}; {text.size:,} different ones, one of them for the {others:.1%} that are rarer",
        )

    def bound(self, prepared: str | None, store: StageStore) -> AnalyticFamily:
        return self.family.on(self._read(prepared, store))

    def _read(self, prepared: str | None, store: StageStore) -> Text:
        assert prepared is not None, "an n-gram chain needs its text"
        stage = store.open(prepared)
        assert stage is not None, "the text is prepared before anything else"
        if prepared not in _TEXTS:
            with np.load(stage.path / "tokens.npz") as arrays:
                _TEXTS[prepared] = Text(arrays["train"], arrays["held_out"], len(stage.outputs["vocabulary"]))
        return _TEXTS[prepared]


_TEXTS: dict[str, Text] = {}
"""The texts that this process has read, by their stage."""


def tokenised(train: str, held_out: str, tokens: str, most: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two texts as token numbers, and the tokens' names: the ``most`` − 1 most frequent ones of the first text, ties in
    the order of their names, then one for all others, ``<other>``."""
    pieces = [_pieces(text, tokens) for text in (train, held_out)]
    frequent = sorted(Counter(pieces[0]).items(), key=lambda each: (-each[1], each[0]))
    names = [name for name, _ in frequent[: most - 1]]
    numbers = {name: place for place, name in enumerate(names)}
    ours, theirs = (np.array([numbers.get(piece, len(names)) for piece in part], dtype=np.int32) for part in pieces)
    return ours, theirs, [*names, "<other>"]


def _pieces(text: str, tokens: str) -> list[str]:
    if tokens == "word":
        return _WORD.findall(text)
    return list(text) if tokens == "character" else [f"{byte:02x}" for byte in text.encode()]
