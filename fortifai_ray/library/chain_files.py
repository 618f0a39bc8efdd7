"""One chain of a study: its rows, its checkpoints and its corpora, fetched from an object store when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG
from fortifai_ray.errors import UserError
from fortifai_ray.export.source import Stages
from fortifai_ray.files import write_text
from fortifai_ray.library.given import whole
from fortifai_ray.results.chain import ChainResults
from fortifai_ray.storage.links import link, links_folder
from fortifai_ray.storage.store import MANIFEST

if TYPE_CHECKING:
    from datasets import Dataset


class ByGeneration(Mapping[int, Path]):
    """Paths by generation; each is fetched when it is asked for. ``[-1]`` is the last one's."""

    def __init__(self, chain: ChainResults, column: str, path: Callable[[dict[str, Any]], Path]) -> None:
        self._chain, self._column, self._path = chain, column, path
        self._known: list[int] = [row["generation"] for row in chain.having(column)]

    def __getitem__(self, generation: int) -> Path:
        generation = whole(generation, "generation")
        if -len(self._known) <= generation < 0:
            generation = self._known[generation]
        return self._path(self._chain.at(generation, self._column))

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, generation: object) -> bool:
        return generation in self._known

    def __repr__(self) -> str:
        return f"<of generations {', '.join(map(str, self._known)) or 'none'}>"


class ChainFiles:
    """One chain: what it was, and what it left in the store.

    Attributes:
        chain_id: as the tables have it.
        seed: its seed.
        cell: the name of its cell, as the report has it: ``TCE γ=0.3``.
        generations: a Polars frame, its rows of the study's ``generations``, in their order.
        checkpoints: a mapping from a generation to the folder of its trained model. A language model's is a Hugging
            Face folder with its tokenizer, for ``from_pretrained``; an adapter's names its model by a path of this
            machine. Empty where the family stores none, as the analytic ones do.
        corpora: a mapping from a generation to the folder of Parquet files that its model wrote, for
            ``polars.read_parquet``: ``row, seed, prompt_ids, generated_ids, weights_version``; of images and samples,
            the folder in which they are.

    A path from an object store is a local copy, fetched and checked when it is asked for.

    Raises:
        UserError: on access to a path: there is none of that generation, or it is gone or damaged.
    """

    def __init__(self, chain: ChainResults, stages: Stages) -> None:
        self._chain, self._stages = chain, stages
        self.generations, self.cell, self.chain_id, self.seed = chain.rows, chain.cell, chain.chain_id, chain.seed

    @cached_property
    def checkpoints(self) -> ByGeneration:
        return ByGeneration(self._chain, "stage", self._checkpoint)

    @cached_property
    def corpora(self) -> ByGeneration:
        return ByGeneration(self._chain, "synthetic_stage", self._corpus)

    def dataset(self, generation: int | None = None) -> Dataset:
        """A corpus as a ``datasets.Dataset``: the columns of its Parquet files by ascending ``row``, and ``text``, what
        the model wrote, without special tokens.

        Args:
            generation: after which it was written; the last that a later generation was trained on by default.

        Raises:
            UserError: there is none, or it is no text.
        """
        from datasets import Dataset

        asked = None if generation is None else whole(generation, "generation")
        row = self._chain.at(asked, "synthetic_stage")
        folder, tokenizer = self._corpus(row), self._tokenizer(row)
        parts = sorted(folder.glob("*.parquet"))
        if not parts or tokenizer is None:
            raise UserError(f"{self._chain.name}: its corpora are no text: their files are in {folder}")
        from tokenizers import Tokenizer

        rows = pl.read_parquet(parts).sort("row")
        decode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).decode_batch
        texts = decode(rows["generated_ids"].to_list(), skip_special_tokens=True)
        return Dataset.from_polars(rows.with_columns(pl.Series("text", texts, dtype=pl.String)))

    def __repr__(self) -> str:
        return f"<chain {self._chain.name}: {self.generations.height} generations>"

    def _folder(self, row: Mapping[str, Any], column: str) -> Path:
        what = "the checkpoint" if column == "stage" else "the corpus"
        name = f"{what} of {self._chain.name}, generation {row['generation']}"
        return self._stages.folder(row[column], name).absolute()

    def _corpus(self, row: Mapping[str, Any]) -> Path:
        folder = self._folder(row, "synthetic_stage")
        return folder / "corpus" if (folder / "corpus").is_dir() else folder

    def _checkpoint(self, row: Mapping[str, Any]) -> Path:
        """The stage's folder; of a language model, one with links to its files and to its tokenizer's."""
        stage, tokenizer = self._folder(row, "stage"), self._tokenizer(row)
        if tokenizer is None:
            return stage
        folder = links_folder(stage)
        for file in (*stage.iterdir(), *tokenizer.iterdir()):
            if file.name not in (MANIFEST, ADAPTER_CONFIG):
                link(file, folder / file.name)
        if (stage / ADAPTER_CONFIG).is_file():
            config = json.loads((stage / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = str(stage.parent / config["base_model_name_or_path"])
            write_text(folder / ADAPTER_CONFIG, json.dumps(config, indent=1))
        return folder

    def _tokenizer(self, row: Mapping[str, Any]) -> Path | None:
        """The folder of the tokenizer of a language model, which its human text's stage has; None for another family.

        Its checkpoint names that stage: a curated corpus does not.
        """
        corpus = self._stages.manifest(self._folder(row, "stage")).get("inputs", {}).get("corpus")
        if not isinstance(corpus, str):
            return None
        folder = self._stages.folder(corpus, f"the tokenizer of {self._chain.name}").absolute() / "tokenizer"
        return folder if folder.is_dir() else None
