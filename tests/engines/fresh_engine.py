"""Run as a script: what engines that were never anything else answer, and whether a wrong swap is noticed.

Reads a job as JSON from standard input, writes its answers as JSON to the file named on the command line. For each
checkpoint a new engine is started, in a process that Ray and pytest know nothing of.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fortifai_ray.engines import vllm_worker
from fortifai_ray.engines.checkpoints import Checkpoint
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.vllm_engine import VllmEngine


def refused(engine: VllmEngine, checkpoint: Path) -> str:
    """The error that loading raises; empty where it raises none."""
    try:
        engine.load(checkpoint)
    except WeightsError as error:
        return str(error)
    return ""


def answers(engine: VllmEngine, checkpoint: Path, call: dict[str, Any]) -> list[list[list[int]]]:
    """What it generates by each decoding."""
    engine.start(checkpoint)
    engine.load(checkpoint)
    decodings = [DecodingConfig(**decoding) for decoding in call["decodings"]]
    return [engine.generate(call["prompts"], call["seeds"], decoding) for decoding in decodings]


def stale_head(engine: VllmEngine, first: Path, second: Path) -> str:
    """What a swap says that forgets, as vLLM's own does, to pack the tied output head again."""
    engine.load(first)
    genuine = vllm_worker.refresh_packed_embeddings
    vllm_worker.refresh_packed_embeddings = lambda model: None
    try:
        return refused(engine, second)
    finally:
        vllm_worker.refresh_packed_embeddings = genuine


def altered_tensor(engine: VllmEngine, checkpoint: Path, tensor: str) -> str:
    """What a swap says whose loader is handed one tensor with one row changed."""
    genuine = Checkpoint.tensors

    def altered(self: Checkpoint) -> Any:
        for name, values in genuine(self):
            if name == tensor:
                values = values.clone()
                values[-1] += 0.01
            yield name, values

    Checkpoint.tensors = altered  # type: ignore[method-assign]
    try:
        return refused(engine, checkpoint)
    finally:
        Checkpoint.tensors = genuine  # type: ignore[method-assign]


def main() -> None:
    job = json.load(sys.stdin)
    engine = VllmEngine(EngineConfig(**job["engine"]))
    result: dict[str, Any] = {"answers": [answers(engine, Path(folder), job["call"]) for folder in job["checkpoints"]]}
    tied = [Path(folder) for folder in job["tied"]]
    result["stale_head"] = stale_head(engine, tied[0], tied[1])
    result["altered"] = {tensor: altered_tensor(engine, tied[1], tensor) for tensor in job["altered"]}
    result["unaltered"] = refused(engine, tied[1])
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
