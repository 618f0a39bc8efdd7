"""CPU seconds that the KR-test adds to a generation, on the quickstart's model.

    python -m benchmarks.kr [--threads 1] [--data ../shared/data]

A Llama of 1M parameters with random weights and a vocabulary of 2,048 answers 200 questions made from the text that a
generation of the quickstart is trained on (Python's documentation), with all that a stage includes: reading the text,
making the questions, loading the model. If the published questions are available, 1,000 of them are scored too. CPU
seconds rather than wall-clock, so that other load on the machine does not count. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.kr_questions import load_exam
from fortifai_ray.evaluation.benchmarks.kr_scoring import score_exam
from fortifai_ray.evaluation.benchmarks.run import context_length, load_checkpoint, run_benchmarks
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import prepare_corpus
from fortifai_ray.families.language.kr import held_in_texts
from fortifai_ray.families.language.models import create_model
from fortifai_ray.seeds import generator
from fortifai_ray.storage.store import StageStore

BLOCK = 128
BLOCKS = 65_536 // BLOCK
ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    model = ModelConfig(preset="llama-tiny", vocab_size=2048)
    result: dict[str, Any] = {"threads": options.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        corpus = prepare_corpus(CorpusConfig(source="pydoc"), model, StageStore(folder / "store"))
        create_model(model, corpus, 0, folder / "model")
        blocks = generator(0, "human").permutation(len(corpus.train) // BLOCK)[:BLOCKS]

        def texts() -> list[str]:
            return held_in_texts(corpus.train, corpus.train_ends, blocks, BLOCK, corpus.decode)

        config = BenchmarksConfig.model_validate({"benchmarks": [{"task": "kr_test", "pairs": 200}]})
        spent = []
        for _ in range(ROUNDS):
            started = time.process_time()
            report = run_benchmarks(
                folder / "model", config, tokenizer=corpus.tokenizer_path, threads=options.threads, texts=texts
            )
            spent.append(time.process_time() - started)
        result |= {"questions": report.metrics()["kr_scored"], "stage_cpu_seconds": [round(s, 2) for s in spent]}
        published = options.data / "kr_test" / "wikitext2_kr_questions.json"
        if published.is_file():
            network, tokenizer = load_checkpoint(folder / "model", corpus.tokenizer_path, "auto", options.threads)
            exam = load_exam(published, 1000)
            started = time.process_time()
            score_exam(network, tokenizer, exam, context_length(network))
            result["published_1000_cpu_seconds"] = round(time.process_time() - started, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
