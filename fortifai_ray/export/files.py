"""The files of an export: a checkpoint as transformers reads it, a corpus as Parquet that datasets reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.engines.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_adapter,
    load_causal_lm,
    whole_model,
)
from fortifai_ray.engines.pretrained import WeightsError, read_json
from fortifai_ray.errors import UserError
from fortifai_ray.families.images.data import SAMPLES_FILE, read_written

_GENERATION = "generation_config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", _GENERATION, "network.json")
BASE = "base_model"  # the folder of an adapter's model, inside its own
_ROWS = 4096  # of a corpus, decoded and written at a time
DATA = "data/train-00000-of-00001.parquet"  # as the hub names a split's files


@dataclass(frozen=True)
class Written:
    """What a corpus's files hold: their columns, rows, generated tokens (None for samples) and bytes."""

    schema: pa.Schema
    rows: int
    tokens: int | None
    size: int
    shape: tuple[int, ...] = ()


def write_checkpoint(model: Path, tokenizer: Path | None, decoding: Mapping[str, Any], folder: Path) -> None:
    """Write a model's files into ``folder``: safetensors, configuration, tokenizer, and settings of generation that are
    the chain's own ``decoding``. An adapter is merged into its model.

    Raises:
        UserError: the adapter does not fit its model, or the folder holds no safetensors: a family of somebody's own.
    """
    if not any(model.glob("*.safetensors")):
        files = ", ".join(sorted(file.name for file in model.iterdir())[:5])
        raise UserError(f"export: {model} holds no safetensors, which others could load: it has {files or 'no file'}")
    if is_adapter(model):
        try:
            load_causal_lm(model, "auto").save_pretrained(folder)
        except WeightsError as error:
            raise UserError(f"export: {error}") from error
    else:
        for file in (file for pattern in _WEIGHTS for file in sorted(model.glob(pattern))):
            shutil.copyfile(file, folder / file.name)
    for file in () if tokenizer is None else sorted(tokenizer.iterdir()):
        shutil.copyfile(file, folder / file.name)
    if decoding:
        path = folder / _GENERATION
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings.pop("_from_model_config", None)
        path.write_text(json.dumps(settings | generation_settings(decoding), indent=2, sort_keys=True) + "\n")


def write_adapter(adapter: Path, model: str | None, revision: str | None, tokenizer: Path | None, folder: Path) -> None:
    """Write an adapter's files into ``folder`` as PEFT reads them, and its tokenizer.

    Args:
        adapter: the folder of its stage.
        model: the name of its model on the hub, and ``revision`` its version; None: the model's files go to
            ``folder/base_model``.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    config |= {"base_model_name_or_path": model or BASE, "revision": revision, "task_type": "CAUSAL_LM"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    for file in () if tokenizer is None else sorted(tokenizer.iterdir()):
        shutil.copyfile(file, folder / file.name)
    if model is None:
        (folder / BASE).mkdir()
        write_checkpoint(whole_model(adapter), None, {}, folder / BASE)


def generation_settings(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """A chain's decoding in transformers' words; settings that draw nothing are left out where nothing is drawn."""
    beams, temperature = int(decoding.get("num_beams", 1)), float(decoding.get("temperature", 1.0))
    draws = beams == 1 and temperature > 0
    known: dict[str, Any] = {"do_sample": draws, "max_new_tokens": decoding.get("max_new_tokens")}
    if draws:
        known |= {"temperature": temperature, "top_p": decoding.get("top_p", 1.0), "top_k": decoding.get("top_k", 0)}
    if beams > 1:
        known["num_beams"] = beams
    if (penalty := decoding.get("repetition_penalty", 1.0)) != 1.0:
        known["repetition_penalty"] = penalty
    known["min_new_tokens"] = decoding.get("min_new_tokens")  # `ignore_eos` has no equal: a text ends where it ends
    return {key: value for key, value in known.items() if value is not None}


def write_texts(corpus: Path, tokenizer: Path, folder: Path) -> Written:
    """Write a synthetic corpus of texts as Parquet: the texts beside the tokens that they were written as.

    Args:
        corpus: the folder of its parts: ``row, seed, prompt_ids, generated_ids, weights_version``.
        tokenizer: the folder of its tokenizer.
        folder: where :data:`DATA` is written: ``row, prompt, text`` and the same columns.
    """
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    table = pq.read_table(corpus).sort_by("row")

    def batches() -> Iterator[pa.Table]:
        for start in range(0, max(1, table.num_rows), _ROWS):
            part = table.slice(start, _ROWS)
            prompts, texts = (
                pa.array(words.decode_batch(part[name].to_pylist(), skip_special_tokens=False), pa.string())
                for name in ("prompt_ids", "generated_ids")
            )
            yield part.add_column(1, "prompt", prompts).add_column(2, "text", texts)

    tokens = int(sum(len(chunk.flatten()) for chunk in table["generated_ids"].chunks))
    return _write(batches(), folder, tokens)


def write_samples(stage: Path, folder: Path) -> Written:
    """Write samples (images, points) as Parquet: ``row``, and ``sample``, its values in row-major order."""
    samples = np.asarray(read_written(stage))
    flat = np.ascontiguousarray(samples.reshape(len(samples), -1))
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    table = pa.table({"row": pa.array(range(len(flat)), pa.int64()), "sample": values})
    return _write(iter([table]), folder, None, samples.shape[1:])


def has_samples(stage: Path) -> bool:
    """Whether a corpus's stage holds samples rather than texts."""
    return (stage / SAMPLES_FILE).is_file()


def _write(tables: Iterator[pa.Table], folder: Path, tokens: int | None, shape: tuple[int, ...] = ()) -> Written:
    path, rows = folder / DATA, 0
    path.parent.mkdir(parents=True)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in (first, *tables):
            writer.write_table(table.cast(first.schema))
            rows += table.num_rows
    return Written(first.schema, rows, tokens, path.stat().st_size, shape)
