"""Run as a script: what engines over one and over two processes answer, and whether they notice a wrong tensor.

Reads a job as JSON from standard input, writes its answers as JSON to the file named on the command line.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from fortifai_ray.engines import vllm_layers
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.vllm_engine import VllmEngine


def answers(engine: VllmEngine, job: dict[str, Any]) -> list[list[list[int]]]:
    answered = []
    for checkpoint in job["checkpoints"]:
        engine.load(Path(checkpoint))
        answered.append(engine.generate(job["prompts"], job["seeds"], DecodingConfig(**job["decoding"])))
    return answered


def refused(engine: VllmEngine, checkpoint: Path) -> str:
    try:
        engine.load(checkpoint)
    except Exception as error:  # vLLM's own, which holds what the worker raised
        return str(error)
    return ""


def other_scale(engine: VllmEngine, adapter: Path) -> str:
    """What loading says where a layer holds another B than the file's: here, than twice the file's."""
    genuine = vllm_layers.read_scale
    vllm_layers.read_scale = lambda folder: 2 * genuine(folder)
    try:
        return refused(engine, adapter)
    finally:
        vllm_layers.read_scale = genuine


def main() -> None:
    job, out = json.load(sys.stdin), Path(sys.argv[1])
    config, result = EngineConfig(**job["engine"]), dict[str, Any]()
    for spread in (1, 2):
        engine = VllmEngine(config, spread=spread)
        engine.start(Path(job["checkpoints"][0]))
        result[str(spread)] = answers(engine, job)
        if spread == 1:
            result["other_scale"] = other_scale(engine, Path(job["checkpoints"][-1]))
            engine.stop()
    result["wrong"] = [refused(engine, Path(folder)) for folder in job["wrong"]]
    result["workers"] = [child.pid for child in psutil.Process().children(recursive=True)]
    out.write_text(json.dumps(result))
    os.kill(os.getpid(), signal.SIGKILL)  # as an actor ends that is killed: its workers must end too


if __name__ == "__main__":
    main()
