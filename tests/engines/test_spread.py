"""An engine over several processes: the answers of one, its weights verified in each, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from engines.helpers import GREEDY, make_adapter, make_checkpoint, make_prompts, needs_vllm
from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fortifai_ray.engines.engine import EngineConfig
from fortifai_ray.engines.in_process import make_engine
from fortifai_ray.engines.vllm_engine import VllmEngine, check_spread

PROJECT = Path(__file__).resolve().parents[2]
V_PROJ = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


@needs_vllm
def test_two_workers_answer_as_one(tmp_path: Path) -> None:
    """Greedy tokens of three checkpoints and two adapters, swapped in one engine of two processes over gloo, against
    those of one process. Two kinds of wrong file are refused by the workers, and kill -9 of their parent ends them."""
    folders = [make_checkpoint(tmp_path / f"tied{seed}", seed, tied=True) for seed in (0, 1)]
    folders.append(make_adapter(tmp_path / "few", folders[0], 1, ["q_proj", "v_proj"]))
    folders.append(make_adapter(tmp_path / "all", folders[0], 3, "all-linear"))
    job = {
        "engine": EngineConfig(max_num_seqs=16, max_model_len=256, lora_rank=4).model_dump(),
        "checkpoints": [str(folder) for folder in (folders[0], folders[2], folders[3], folders[1], folders[2])],
        "prompts": make_prompts(4, 40),
        "seeds": list(range(4)),
        "decoding": GREEDY.model_dump(),
        "wrong": [
            str(_lacking(tmp_path / "lacking", folders[1], "config.json", "model.safetensors", "model.norm.weight")),
            str(_lacking(tmp_path / "lacking_adapter", folders[2], ADAPTER_CONFIG, ADAPTER_WEIGHTS, V_PROJ)),
        ],
    }
    result = _run(job, tmp_path / "answers.json")
    assert result["1"] == result["2"]
    assert len({str(answer) for answer in result["1"]}) == 4
    assert "does not hold the adapter" in result["other_scale"]
    assert "lacks tensors for model.norm.weight" in result["wrong"][0]
    assert result["wrong"][1]
    assert len(result["workers"]) >= 2
    end = time.monotonic() + 60
    while any(map(_alive, result["workers"])):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.1)


def _run(job: dict[str, Any], out: Path) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(Path(__file__).with_name("spread_engine.py")), str(out)]
    log = out.with_suffix(".log")  # not a pipe, which the workers would hold open
    with log.open("w") as stream:
        done = subprocess.run(
            command, input=json.dumps(job), env=environment, text=True, stdout=stream, stderr=stream, check=False
        )
    assert done.returncode == -signal.SIGKILL, log.read_text()[-4000:]
    return json.loads(out.read_text())


def _lacking(folder: Path, whole: Path, config: str, weights: str, tensor: str) -> Path:
    """``whole`` again, without one of its tensors."""
    folder.mkdir()
    (folder / config).write_text((whole / config).read_text())
    tensors = load_file(whole / weights)
    del tensors[tensor]
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    return folder


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("heads", "kv_heads", "spread", "fits"),
    [(32, 8, 8, True), (32, 2, 4, True), (12, 12, 8, False), (32, 3, 2, False), (5, 5, 1, True)],
)
def test_heads_are_shared_out_whole(heads: int, kv_heads: int, spread: int, fits: bool) -> None:
    """Query heads divide among workers; those of keys and values divide, or are held by several workers each."""
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    if fits:
        check_spread(config, spread)
        check_spread({"text_config": config}, spread)
    else:
        with pytest.raises(ValueError, match=rf"{heads} attention heads \({kv_heads} of keys .* among {spread} GPUs"):
            check_spread(config, spread)


def test_whole_gpus_become_workers() -> None:
    """The pool's GPUs for an engine reach vLLM: a share is memory, several are workers with all of theirs."""
    pytest.importorskip("vllm")
    share, one, four = (make_engine(EngineConfig(kind="vllm"), gpus) for gpus in (0.45, 1.0, 4.0))
    for engine, fraction, spread in ((share, 0.45, 1), (one, 1.0, 1), (four, 1.0, 4)):
        assert isinstance(engine, VllmEngine)
        assert (engine.gpu, engine.gpu_fraction, engine.spread) == (True, fraction, spread)
    with pytest.raises(ValueError, match="Hugging Face engine runs on one GPU"):
        make_engine(EngineConfig(kind="huggingface"), 2.0)
