"""Another language model as the judge of a chain's texts: its stage, and the texts in its own tokens."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.pretrained import WeightsError, load_tokenizer
from fortifai_ray.engines.soundness import check_checkpoint
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.judge_config import judge_config
from fortifai_ray.families.language.models import create_model, model_identity
from fortifai_ray.families.language.scoring import row_scores
from fortifai_ray.recipe.curation import Judge, Step
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey

_VERSION = 1  # bump when the same checkpoint gives other scores


def check_curation(curation: Sequence[Step], decoding: DecodingConfig) -> None:
    """Check a curation's judges, as far as their checkpoints are here, and that a choice has something to choose from.

    Raises UserError, beginning with the key.
    """
    for step in curation:
        if step.candidates > 1 and decoding.deterministic:
            raise UserError(
                f"curation.of: a deterministic decoding ({decoding.deterministic}) writes the same row from the same "
                "prompt, and leaves no choice; a decoding that draws is right"
            )
        for by in step.judges:
            folder = judge_config(by).folder if isinstance(by, Judge) else None
            try:
                if folder is not None:
                    check_checkpoint(folder)
                    load_tokenizer(folder)
            except WeightsError as error:
                raise UserError(f"curation.{step.judged_by}.model: {error}") from None


def judge_stage(by: Judge, corpus: Corpus, steps: Steps) -> Stage:
    """A judge's weights and its tokenizer, in the store, from where any node can have them."""
    model = judge_config(by)

    def compute(folder: Path) -> dict[str, Any]:
        create_model(model, corpus, 0, folder)
        load_tokenizer(model.checkpoint, model.revision).save_pretrained(folder)
        return {}

    return steps.run(StageKey("judge", _VERSION, model_identity(model)), "fetch the judge", compute)


def identity(step: Step, corpus: Corpus, steps: Steps) -> dict[str, str]:
    """What a step's key needs to know of its judges; empty where it has none."""
    found = [judge_stage(by, corpus, steps).hash for by in step.judges if isinstance(by, Judge)]
    return {"judges": ", ".join(found)} if found else {}


def in_its_tokens(judge: Path, rows: pa.Table, corpus: Corpus) -> pa.Table:
    """Rows (``prompt_ids``, ``generated_ids``) in a judge's own tokens: as they are where it has the chain's tokenizer,
    else their texts, encoded. What exceeds the judge's context is cut off at the end."""
    tokenizer, longest = _tokenizer(judge)
    if json.loads(tokenizer.backend_tokenizer.to_str()) == _own(corpus.tokenizer_path / "tokenizer.json"):
        return rows
    columns = {}
    for name in ("prompt_ids", "generated_ids"):
        texts = corpus.decode(rows[name].to_pylist())
        columns[name] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    generated = [
        ids[: max(0, longest - len(prompt))]
        for prompt, ids in zip(columns["prompt_ids"], columns["generated_ids"], strict=True)
    ]
    kind = pa.list_(pa.int32())
    return pa.table({"prompt_ids": pa.array(columns["prompt_ids"], kind), "generated_ids": pa.array(generated, kind)})


def score(by: Judge, text: Any, corpus: Corpus, steps: Steps, executor: Executor, batch_size: int) -> np.ndarray:
    """Log-likelihood per token of rows (a table) or of human blocks (an array) under a judge."""
    judge = judge_stage(by, corpus, steps)
    rows = in_its_tokens(judge.path, _as_rows(text) if isinstance(text, np.ndarray) else text, corpus)
    sizes = {"batch_size": batch_size, "threads": executor.threads}
    return executor.score(row_scores, steps.files(judge), rows, **sizes)


def _as_rows(blocks: np.ndarray) -> pa.Table:
    """Blocks of text (blocks, block_size) as rows without a prompt: a text's first token is context alone."""
    return pa.table(
        {
            "prompt_ids": pa.array([[]] * len(blocks), pa.list_(pa.int32())),
            "generated_ids": pa.array(blocks.tolist(), pa.list_(pa.int32())),
        }
    )


@lru_cache(maxsize=4)
def _tokenizer(judge: Path) -> tuple[Any, int]:
    config = json.loads((judge / "config.json").read_text(encoding="utf-8"))
    longest = config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30
    return load_tokenizer(judge), int(longest)


@lru_cache(maxsize=4)
def _own(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
