"""One chain of a study: its rows, its checkpoints and its corpora, fetched from an object store when asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.files import write_text
from fortifai_ray.storage.store import StageStore

if TYPE_CHECKING:
    from datasets import Dataset

_MANIFEST, _ADAPTER, _TOKENIZER = "manifest.json", "adapter_config.json", "tokenizer"


class ByGeneration(Mapping[int, Path]):
    """Paths by generation; each is fetched when it is asked for. ``[-1]`` is the last one's."""

    def __init__(self, stages: Mapping[int, str], path: Callable[[str], Path], what: str) -> None:
        self._stages, self._path, self._what = dict(stages), path, what

    def __getitem__(self, generation: int) -> Path:
        known = list(self._stages)
        if generation < 0 and known:
            generation = known[generation] if -generation <= len(known) else generation
        if generation not in self._stages:
            there = ", ".join(map(str, known)) or "none"
            raise UserError(f"there is no {self._what} of generation {generation}: there are those of {there}")
        return self._path(self._stages[generation])

    def __iter__(self) -> Iterator[int]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __contains__(self, generation: object) -> bool:
        return generation in self._stages

    def __repr__(self) -> str:
        return f"<{self._what} of generations {', '.join(map(str, self._stages)) or 'none'}>"


class ChainFiles:
    """One chain: what it was, and what it left in the store.

    Attributes:
        chain_id: as the tables have it.
        seed: its seed.
        cell: the name of its cell, as the report has it: ``TCE γ=0.3``.
        generations: a Polars frame, its rows of the study's ``generations``, in their order.
        checkpoints: a mapping from a generation to the folder of its trained model. A language model's is a Hugging
            Face folder with its tokenizer, for ``from_pretrained``; an adapter's names its model by a path of this
            machine.
        corpora: a mapping from a generation to the folder of Parquet files that its model wrote, for
            ``polars.read_parquet``: ``row, seed, prompt_ids, generated_ids, weights_version``; of images and samples,
            the folder in which they are.

    A path from an object store is a local copy, fetched and checked when it is asked for.

    Raises:
        UserError: on access to a path: there is none of that generation, or ``fortifai gc`` has removed it.
    """

    def __init__(self, rows: pl.DataFrame, cell: str, store: StageStore, folder: Path) -> None:
        self.generations, self.cell = rows.sort("generation"), cell
        self.chain_id, self.seed = str(rows["chain_id"][0]), int(rows["seed"][0])
        self._store, self._folder = store, folder

    @cached_property
    def checkpoints(self) -> ByGeneration:
        return ByGeneration(self._stages("stage"), self._checkpoint, "checkpoint")

    @cached_property
    def corpora(self) -> ByGeneration:
        return ByGeneration(self._stages("synthetic_stage"), self._corpus, "corpus")

    def dataset(self, generation: int = -1) -> Dataset:
        """A generation's corpus as a ``datasets.Dataset``: the columns of its Parquet files, and ``text``, what the
        model wrote, without special tokens. The last generation's by default.

        Raises:
            UserError: no text was generated after that generation, or it is no longer stored.
        """
        from datasets import Dataset

        folder = self.corpora[generation]
        parts = sorted(map(str, folder.glob("*.parquet")))
        if not parts:
            raise UserError(f"{folder}: holds no Parquet files: this family's corpora are no text; read the folder")
        known = list(self.corpora)
        stage = self._stages("synthetic_stage")[known[generation] if generation < 0 else generation]
        tokenizer = self._tokenizer(stage)
        rows = pl.read_parquet(parts).sort("row")
        if tokenizer is not None:
            from tokenizers import Tokenizer

            decode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).decode_batch
            texts = decode(rows["generated_ids"].to_list(), skip_special_tokens=True)
            rows = rows.with_columns(pl.Series("text", texts, dtype=pl.String))
        return Dataset.from_polars(rows)

    def __repr__(self) -> str:
        return f"<chain {self.cell}, seed {self.seed}: {self.generations.height} generations>"

    def _stages(self, column: str) -> dict[int, str]:
        if column not in self.generations.columns:
            return {}
        rows = self.generations.filter(pl.col(column).is_not_null())
        return dict(rows.select("generation", column).iter_rows())

    def _stage(self, stage_hash: str) -> Path:
        stage = self._store.open(stage_hash)
        if stage is None:
            raise UserError(
                f"{self._store.storage}: stage {stage_hash} of {self.cell}, seed {self.seed} is not stored any more: "
                "sweep the study again"
            )
        return stage.path.absolute()

    def _corpus(self, stage_hash: str) -> Path:
        folder = self._stage(stage_hash)
        return folder / "corpus" if (folder / "corpus").is_dir() else folder

    def _checkpoint(self, stage_hash: str) -> Path:
        """The stage's folder; of a language model, one with links to its files and to its tokenizer's."""
        stage, tokenizer = self._stage(stage_hash), self._tokenizer(stage_hash)
        if tokenizer is None:
            return stage
        folder = self._folder.absolute() / ".checkpoints" / stage_hash
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*stage.iterdir(), *tokenizer.iterdir()):
            if file.name not in (_MANIFEST, _ADAPTER):
                _link(file, folder / file.name)
        if (stage / _ADAPTER).is_file():
            config = json.loads((stage / _ADAPTER).read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = str(self._stage(config["base_model_name_or_path"]))
            write_text(folder / _ADAPTER, json.dumps(config, indent=1))
        return folder

    def _tokenizer(self, stage_hash: str) -> Path | None:
        """The folder of the tokenizer that a stage's text is made of; None where it is not text."""
        inputs: Mapping[str, Any] = _inputs(self._stage(stage_hash))
        if "corpus" not in inputs and "written" in inputs:  # of a curated corpus, the whole one names its tokenizer
            inputs = _inputs(self._stage(inputs["written"]))
        corpus = inputs.get("corpus")
        folder = self._stage(corpus) / _TOKENIZER if isinstance(corpus, str) else None
        return folder if folder is not None and folder.is_dir() else None


def _inputs(stage: Path) -> dict[str, Any]:
    return dict(json.loads((stage / _MANIFEST).read_text(encoding="utf-8"))["inputs"])


def _link(file: Path, to: Path) -> None:
    """A link to a file; a copy on a disk without links."""
    if to.is_symlink() and to.resolve() == file.resolve():
        return
    to.unlink(missing_ok=True)
    try:
        to.symlink_to(file)
    except OSError:
        shutil.copyfile(file, to)
