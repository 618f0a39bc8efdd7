"""Part 4: the Hugging Face engine, 256 rows at a time: draws, and the paper's five beams."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.llamas import SHAPES, make
from benchmarks.gpu.record import Record, device, peak_memory, synchronise
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine

ROWS = {"real": 256, "toy": 4}
MODELS = {"real": ("25M", "1B"), "toy": ("toy",)}
BEAMS = 5


def decodings(scale: str) -> dict[str, DecodingConfig]:
    """The quickstart's rows, and those of ForTIFAI's scripts (Shabgahi et al. 2025)."""
    if scale == "toy":
        return {
            "draws": DecodingConfig(temperature=0.8, context_tokens=4, max_new_tokens=6),
            "beams": DecodingConfig(num_beams=BEAMS, repetition_penalty=3.0, context_tokens=4, max_new_tokens=4),
        }
    return {
        "draws": DecodingConfig(temperature=0.8, context_tokens=16, max_new_tokens=112),
        "beams": DecodingConfig(num_beams=BEAMS, repetition_penalty=3.0, context_tokens=128, max_new_tokens=32),
    }


def measure(record: Record, scale: str) -> None:
    """A row for each model and decoding."""
    record.note(rows_together=ROWS[scale])
    for size in MODELS[scale]:
        with tempfile.TemporaryDirectory() as folder:
            network = make(size).to(torch.bfloat16 if device() == "cuda" else torch.float32)
            network.save_pretrained(folder)
            del network
            # A search of several beams keeps as many rows as a draw keeps prompts.
            config = EngineConfig(kind="huggingface", max_num_seqs=ROWS[scale] * BEAMS)
            engine = HuggingFaceEngine(config, gpu=device() == "cuda")
            engine.start(Path(folder))
            started = time.perf_counter()
            engine.load(Path(folder))
            record.add(model=size, load_seconds=time.perf_counter() - started)
        for name, decoding in decodings(scale).items():
            what = {"model": size, "decoding": name}
            record.attempt(partial(_generate, record, engine, size, decoding, ROWS[scale], what), **what)
        engine.stop()


def _generate(
    record: Record, engine: HuggingFaceEngine, size: str, decoding: DecodingConfig, rows: int, what: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    prompts = random.integers(0, SHAPES[size]["vocab_size"], (rows, decoding.context_tokens)).tolist()
    engine.generate(prompts, list(range(rows)), decoding.model_copy(update={"max_new_tokens": 2}))  # warms up
    peak_memory(reset=True)
    synchronise()
    started = time.perf_counter()
    written = engine.generate(prompts, list(range(rows)), decoding)
    synchronise()
    seconds, tokens = time.perf_counter() - started, sum(map(len, written))
    record.add(**what, tokens=tokens, seconds=seconds, tokens_per_second=tokens / seconds, peak_bytes=peak_memory())
