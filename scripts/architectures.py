"""Try each architecture with vLLM, and write the table that engines and documentation read.

``python scripts/architectures.py [--table FILE] [NAME …]``: small random checkpoints of the architectures in
``tests/engines/architectures.py`` are swapped in one engine, compared with Transformers and broken
(``tests/engines/swapping.py``). Some 6 s each on one core; without a name, all of them. The outcomes go into
``fortifai_ray/engines/architectures.json``; ``make docs`` makes the page from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from engines.architectures import ARCHITECTURES, Architecture, make_architecture  # noqa: E402
from engines.swapping import Outcome, try_swaps  # noqa: E402

from fortifai_ray.engines.engine import EngineConfig  # noqa: E402
from fortifai_ray.engines.pretrained import load_network  # noqa: E402
from fortifai_ray.engines.served import TABLE  # noqa: E402
from fortifai_ray.engines.vllm_engine import VllmEngine  # noqa: E402
from fortifai_ray.families.language.adapters import adapted_layers  # noqa: E402
from fortifai_ray.families.language.config import LoraConfig  # noqa: E402
from fortifai_ray.losses.causal_lm import UnknownHead, find_head  # noqa: E402

# The engines differ by 1e-6 in float32, and by 5e-4 where vLLM approximates an activation (BLOOM's).
LARGEST_DIFFERENCE = 2e-3
CONFIG = EngineConfig(kind="vllm", max_num_seqs=16, max_model_len=128)
LORA = LoraConfig(rank=4, alpha=8, targets="all-linear")
# What vLLM says where it fails, and what that means.
REASONS = {
    "are not supported for now": "vLLM does not know it",
    "was supported in vLLM until": "vLLM no longer knows it",
    "failed to be inspected": "vLLM's class of it needs torchvision",
    "selective_scan_fwd": "vLLM on a CPU has no kernels for its state space",
    "GDN attention requires BF16": "vLLM on a CPU has its linear attention in bfloat16 only",
    "does not dispatch through the Transformers attention": "vLLM does not know its layers",
    "is supported only for CUDA": "vLLM on a CPU has no kernels for its experts",
    "'triton' has no attribute": "vLLM on a CPU has no kernels for its linear attention",
    "is not supported by MLA": "vLLM on a CPU has its attention for latents of one size only",
    "does not answer as the file's model": "vLLM's answers differ from Transformers'",
    "lacks tensors for": "vLLM does not swap all of its tensors",
    "does not hold the file's values": "vLLM does not swap all of its tensors",
    "cannot load": "vLLM cannot load what Transformers saves of it",
}


def main() -> None:
    """Run the command."""
    from transformers import logging

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="which architectures; all of them if none is named")
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to write")
    parser.add_argument("--training", action="store_true", help="only what training makes of each")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    engine = VllmEngine(CONFIG, untried=True)
    for name in given.name or ARCHITECTURES:
        rows = json.loads(given.table.read_text(encoding="utf-8")) if given.table.is_file() else {}
        with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
            row = rows[name] if given.training else outcome(engine, name, Path(folder, "swaps"))
            row |= training(name, Path(folder, "training"))
        print(name, row, flush=True)
        rows = {key: (rows | {name: row})[key] for key in ARCHITECTURES if key in rows or key == name}
        given.table.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def outcome(engine: VllmEngine, name: str, root: Path) -> dict[str, Any]:
    """A row of the table."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    row: Architecture = ARCHITECTURES[name]
    known = {"model_type": row.model_type, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[row.model_type]}
    try:
        shown: Outcome = try_swaps(engine, name, root)
    except Exception as error:
        traceback.print_exc()
        engine.stop()
        return known | {"when": row.when, "why_not": reason(error)}
    if shown.difference > LARGEST_DIFFERENCE or shown.regret > LARGEST_DIFFERENCE:
        why_not = f"vLLM's log-probabilities differ from Transformers' by {shown.difference:.1g}"
    else:
        why_not = f"vLLM would take a broken checkpoint: {shown.accepted[0]}" if shown.accepted else None
    difference = float(f"{shown.difference:.1e}")
    return known | {"when": row.when, "why_not": why_not, "difference": difference, "by_answers": shown.by_answers}


def training(name: str, root: Path) -> dict[str, Any]:
    """What training makes of an architecture: its output head, and the layers that ``all-linear`` adapts."""
    import torch

    network = load_network(make_architecture(root, name), torch.float32)
    try:
        find_head(network)
        head = "fused"
    except UnknownHead as unknown:
        head = f"plain: {unknown}"
    layers = sorted({layer.rpartition(".")[2] for layer in adapted_layers(network, LORA)})
    return {"head": head, "layers": layers}


def reason(error: Exception) -> str:
    """Why vLLM does not serve an architecture, in half a line."""
    text = str(error)
    short = " ".join(text.split())[:120]
    return next((meaning for said, meaning in REASONS.items() if said in text), f"vLLM fails: {short}")


if __name__ == "__main__":
    main()
