"""Checkpoints, one pool of one engine, and the answers of engines that never swapped."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.helpers import ENGINE, GREEDY, LONG, SAMPLED, Reference, make_checkpoint, make_prompts
from fortifai_ray.engines.pool import EnginePool

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``untied0`` and ``untied1``, ``tied0`` and ``tied1``."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        f"{kind}{seed}": make_checkpoint(root / f"{kind}{seed}", seed, tied=kind == "tied")
        for kind in ("untied", "tied")
        for seed in range(2)
    }


@pytest.fixture(scope="session")
def reference(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One fresh process; in it, a fresh engine for every checkpoint."""
    prompts = make_prompts(6, LONG)
    decodings = [GREEDY.model_dump(), SAMPLED.model_dump()]

    job = {
        "engine": ENGINE.model_dump(),
        "checkpoints": [str(folder) for folder in checkpoints.values()],
        "call": {"prompts": prompts, "seeds": list(range(6)), "decodings": decodings},
        "tied": [str(checkpoints["tied0"]), str(checkpoints["tied1"])],
        "altered": [
            "model.embed_tokens.weight",
            "model.layers.1.self_attn.k_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.norm.weight",
        ],
    }
    out = tmp_path_factory.mktemp("reference") / "answers.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(Path(__file__).with_name("fresh_engine.py")), str(out)]
    done = subprocess.run(command, input=json.dumps(job), env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(out.read_text())
    return Reference(
        greedy={name: answers[0] for name, answers in zip(checkpoints, result["answers"], strict=True)},
        sampled={name: answers[1] for name, answers in zip(checkpoints, result["answers"], strict=True)},
        stale_head=result["stale_head"],
        altered=result["altered"],
        unaltered=result["unaltered"],
        prompts=prompts,
    )


@pytest.fixture(scope="package")  # not longer: it holds a share of the suite's two CPUs
def pool(ray_instance: str, checkpoints: dict[str, Path]) -> Iterator[EnginePool]:
    """One engine that takes half of one of the two CPUs, started with random weights of the tied architecture."""
    created = EnginePool.create(1, name="tests", namespace="tests-engines", num_cpus=0.5)
    created.prestart(checkpoints["tied0"], ENGINE)
    yield created
    created.shutdown()
