"""Tokens per second through the platform and through bare vLLM engines, in one run.

    python -m benchmarks.generation [--rows 2048] [--rounds 3]

Both sides use two engines of one core each, the same checkpoint (a Llama of 1M parameters with random weights), prompts
and sampling parameters, and one seed per request. The platform reads a table of prompts and writes Parquet; the bare
engines receive lists and only count their tokens. All engines are up before the first round, and the order alternates
between rounds, so that other load on the machine affects both. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # this Ray listens on loopback only
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PROJECT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import ray  # noqa: E402

ENGINES = 2
CPUS_PER_ENGINE = 0.4
VOCABULARY = 2048
CONTEXT = 16
NEW_TOKENS = 112
TEMPERATURE = 0.8
MAX_NUM_SEQS = 256
KV_CACHE_BYTES = 256 << 20


@ray.remote(num_cpus=CPUS_PER_ENGINE, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
class BareEngine:
    """``vllm.LLM`` and nothing else."""

    def __init__(self, checkpoint: str) -> None:
        from fortifai_ray.engines.vllm_engine import ENVIRONMENT

        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        self._llm = LLM(
            checkpoint,
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            max_model_len=CONTEXT + NEW_TOKENS,
            max_num_seqs=MAX_NUM_SEQS,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
        )

    def generate(self, prompts: list[list[int]], seeds: list[int]) -> int:
        """Tokens generated."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=TEMPERATURE,
                max_tokens=NEW_TOKENS,
                ignore_eos=True,
                detokenize=False,
                seed=seed & 0xFFFFFFFF,
            )
            for seed in seeds
        ]
        requests: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)


def make_checkpoint(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_prompts(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "row": pa.array(range(rows), pa.int64()),
            "seed": pa.array(rng.integers(0, 2**63, rows), pa.int64()),
            "prompt_ids": pa.array(rng.integers(3, VOCABULARY, (rows, CONTEXT)).tolist(), pa.list_(pa.int32())),
        }
    )


class Platform:
    """Prompts in, Parquet out, through a pool of warm engines."""

    def __init__(self, checkpoint: Path, root: Path) -> None:
        from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
        from fortifai_ray.engines.pool import EnginePool

        self.checkpoint, self.root, self.runs = checkpoint, root, 0
        self.decoding = DecodingConfig(temperature=TEMPERATURE, max_new_tokens=NEW_TOKENS, context_tokens=CONTEXT)
        self.engine = EngineConfig(
            kind="vllm",
            dtype="float32",
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=CONTEXT + NEW_TOKENS,
            kv_cache_bytes=KV_CACHE_BYTES,
        )
        self.pool = EnginePool.create(ENGINES, name="bench", namespace="bench", num_cpus=CPUS_PER_ENGINE)
        self.pool.prestart(checkpoint, self.engine)
        self.pool.wait_until_ready()

    def generate(self, prompts: pa.Table) -> tuple[int, float]:
        """Tokens and wall-clock seconds."""
        from fortifai_ray.engines.corpus import Request
        from fortifai_ray.sweep.ray_executor import RayExecutor

        self.runs += 1
        out = self.root / f"corpus-{self.runs}"
        begun = time.perf_counter()
        executor = RayExecutor(engines_at_once=ENGINES, pool=self.pool)
        request = Request(self.checkpoint, "bench", self.decoding, self.engine)
        report = executor.write(request, prompts, out)
        return report.generated_tokens, time.perf_counter() - begun


def generate_bare(engines: list[Any], prompts: pa.Table) -> tuple[int, float]:
    """Tokens and wall-clock seconds, from prompts as lists to the last engine's last token."""
    ids, seeds = prompts["prompt_ids"].to_pylist(), prompts["seed"].to_pylist()
    begun = time.perf_counter()
    counts = [
        engine.generate.remote(ids[index::ENGINES], seeds[index::ENGINES]) for index, engine in enumerate(engines)
    ]
    return sum(ray.get(counts)), time.perf_counter() - begun


def measure(rows: int, rounds: int, root: Path) -> dict[str, Any]:
    checkpoint, prompts = make_checkpoint(root / "checkpoint"), make_prompts(rows)
    platform = Platform(checkpoint, root)
    bare = [BareEngine.remote(str(checkpoint)) for _ in range(ENGINES)]
    sides = {"platform": platform.generate, "bare": lambda table: generate_bare(bare, table)}
    for generate in sides.values():  # neither side's first imports and allocations are measured
        generate(prompts.slice(0, 64))
    totals = {side: [0, 0.0] for side in sides}
    for turn in range(rounds):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            tokens, seconds = sides[side](prompts)
            totals[side][0] += tokens
            totals[side][1] += seconds
            print(
                f"round {turn}, {side}: {tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s", flush=True
            )
    speed = {side: tokens / seconds for side, (tokens, seconds) in totals.items()}
    return {
        "tokens": totals["platform"][0],
        "tokens_per_second": round(speed["platform"]),
        "bare_tokens_per_second": round(speed["bare"]),
        "ratio": round(speed["platform"] / speed["bare"], 3),
        "engine_start_seconds": [round(seconds, 2) for seconds in platform.pool.state().start_seconds],
        "engine_starts": platform.pool.state().starts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help=f"prompts per round, {NEW_TOKENS} new tokens each")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
    with tempfile.TemporaryDirectory() as root:
        result = measure(arguments.rows, arguments.rounds, Path(root))
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
