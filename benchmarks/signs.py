"""Seconds and memory that the signs of a corpus of ten million tokens take.

    python -m benchmarks.signs [--tokens 10000000] [--documents-of 112] [--vocabulary 2048 128000]

Two corpora for each vocabulary: one of Zipf-distributed ids, and one that has collapsed to a single loop, the worst
case for repeated spans. Each is measured in its own process; its peak memory includes the two corpora (40 MB each) and
the imports. The last line is one JSON object: the target is under 30 s and under 2 GB on two cores.
"""

import argparse
import json
import multiprocessing
import resource
import time
from typing import Any

import numpy as np

from fortifai_ray.evaluation.signs import SignsConfig
from fortifai_ray.evaluation.signs.corpus import corpus_signs

TARGET_SECONDS, TARGET_BYTES = 30.0, 2e9


def zipf(documents: int, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """(documents, length) int32 ids, of which id i has a probability proportional to 1 / (i + 1)."""
    weights = np.cumsum(1 / np.arange(1, vocabulary + 1))
    uniform = np.random.default_rng(seed).random((documents, length), dtype=np.float32)
    return np.searchsorted(weights, uniform * weights[-1]).clip(0, vocabulary - 1).astype(np.int32)


def loop(documents: int, length: int) -> np.ndarray:
    """(documents, length) int32: the same 56 ids, repeated."""
    return np.tile(np.arange(length, dtype=np.int32) % 56, (documents, 1))


def measure(kind: str, documents: int, length: int, vocabulary: int) -> dict[str, Any]:
    """Wall and CPU seconds of one corpus's signs, and the process's peak memory."""
    human = zipf(documents, length, vocabulary, 0)
    synthetic = zipf(documents, length, vocabulary, 1) if kind == "zipf" else loop(documents, length)
    started, processor = time.perf_counter(), time.process_time()
    signs = corpus_signs(synthetic, human, SignsConfig(tokens=documents * length))
    return {
        "corpus": kind,
        "vocabulary": vocabulary,
        "tokens": signs.counts["corpus_tokens"],
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - processor, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "missing": signs.reasons,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--documents-of", type=int, default=112, help="tokens per document")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[2048, 128_000])
    options = parser.parse_args()
    runs = []
    for vocabulary in options.vocabulary:
        for kind in ("zipf", "loop"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                documents = options.tokens // options.documents_of
                runs.append(pool.apply(measure, (kind, documents, options.documents_of, vocabulary)))
            print(runs[-1], flush=True)
    worst, peak = max(run["seconds"] for run in runs), max(run["peak_bytes"] for run in runs)
    met = worst < TARGET_SECONDS and peak < TARGET_BYTES
    print(json.dumps({"seconds": worst, "peak_bytes": peak, "target_met": met, "runs": runs}))


if __name__ == "__main__":
    main()
