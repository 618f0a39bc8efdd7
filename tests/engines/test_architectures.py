"""Architectures in vLLM: weights are swapped and proven in whatever layout it holds them; what it does not serve is
known before it starts."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from engines.architectures import ARCHITECTURES, make_architecture
from engines.helpers import needs_vllm
from fortifai_ray.engines.served import CPU_HEAD_SIZES, outcomes, why_not_vllm

PROJECT = Path(__file__).resolve().parents[2]
# Each way of holding weights: transposed, interleaved, with a bias at the head, fused in the file, padded, experts. The
# others' rows are made by scripts/architectures.py, after an upgrade of vLLM.
TRIED = [
    "gpt2",
    "gpt_neox",
    "phi",
    "phi3",
    "llama-odd-tied",
    "mixtral",
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows of the table, made here in a process of their own: vLLM and pytest share none."""
    table = tmp_path_factory.mktemp("tried") / "table.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "scripts" / "architectures.py"), "--table", str(table), *TRIED]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(table.read_text())


@needs_vllm
@pytest.mark.parametrize("name", TRIED)
def test_weights_are_swapped_and_proven(tried: dict[str, dict[str, Any]], name: str) -> None:
    """Protects every answer: started with random weights and swapped from one checkpoint to another, vLLM answers as
    Transformers does; a checkpoint that lacks any kind of its tensors is refused, and one of which a row is altered on
    the way (``engines.swapping``). And protects the table, which other engines are chosen by, against going stale.

    Float32 sums of some hundred terms in another order agree to 1e-5; BLOOM's activation is an approximation.
    """
    made, table = tried[name], outcomes()[name]
    assert made["why_not"] is None
    assert made["difference"] < (1e-5 if name != "bloom" else 1e-3)
    assert made | {"difference": 0} == table | {"difference": 0}


def test_the_table_covers_every_architecture() -> None:
    """Protects against one that is added and not tried, and a variant that its configuration cannot tell."""
    assert list(outcomes()) == list(ARCHITECTURES)
    served = defaultdict(set)
    for name, row in outcomes().items():
        assert (row["model_type"], row["when"]) == (ARCHITECTURES[name].model_type, ARCHITECTURES[name].when)
        if not row["when"]:
            served[row["model_type"]].add(row["why_not"] is None)
    assert [kind for kind, ways in served.items() if len(ways) > 1] == []
    assert sum(row["why_not"] is None for row in outcomes().values()) > 60


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neo", "mamba", "falcon", "falcon-alibi", "llama-dynamic", "gemma3", "qwen3_5"]
)
def test_what_is_not_served_is_known_from_the_configuration(name: str, tmp_path: Path) -> None:
    """Protects the fallback to the Hugging Face engine, which nobody sees vLLM fail for."""
    make_architecture(tmp_path, name)
    (tmp_path / "model.safetensors").unlink()
    why_not = outcomes()[name]["why_not"]
    assert (why_not_vllm(tmp_path) or "").startswith(why_not or "")
    assert (why_not_vllm(tmp_path) is None) == (why_not is None)
    if why_not and "on a CPU" in why_not:
        assert why_not_vllm(tmp_path, gpu=True) is None


def test_an_architecture_that_was_not_tried_is_not_taken(tmp_path: Path) -> None:
    """Protects against trust without proof."""
    (tmp_path / "config.json").write_text('{"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]}')
    assert "xlnet is not among the architectures that were tried" in str(why_not_vllm(tmp_path))


def test_heads_without_a_kernel_are_known(tmp_path: Path) -> None:
    """Protects the list of head sizes, a copy of vLLM's: it is wanted where importing vLLM would take too long."""
    make_architecture(tmp_path, "gpt2", num_attention_heads=4)
    assert "no attention for heads of size 16" in str(why_not_vllm(tmp_path))
    assert why_not_vllm(tmp_path, gpu=True) is None
    attention = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    assert list(CPU_HEAD_SIZES) == attention.CPUAttentionBackend.get_supported_head_sizes()
