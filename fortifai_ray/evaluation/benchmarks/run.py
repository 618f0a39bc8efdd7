"""Run the benchmarks of a configuration on one checkpoint."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks import kr_questions, kr_scoring
from fortifai_ray.evaluation.benchmarks.config import Benchmark, BenchmarksConfig, KrTest
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam, load_exam, make_exam
from fortifai_ray.evaluation.benchmarks.report import (
    BenchmarkReport,
    EntryReport,
    Measure,
    Proportion,
    accuracy,
    mean_proportion,
    proportion,
)
from fortifai_ray.evaluation.benchmarks.tasks import TaskFile, check_files, harness_version, task_files
from fortifai_ray.storage.store import canonical_hash, file_sha256

VERSION = 1  # bump when the same checkpoint and files give other measures
DEFAULT_CONTEXT = 2048

# The figures that are usually reported of each task: lm-evaluation-harness's metric and filter, and our suffix.
_ACCURACIES = {
    "blimp": (("acc", "none", "accuracy"),),
    "hellaswag": (("acc_norm", "none", "accuracy"), ("acc", "none", "accuracy_unnormalised")),
    "gsm8k": (("exact_match", "strict-match", "accuracy"), ("exact_match", "flexible-extract", "accuracy_flexible")),
}


def identity(
    config: BenchmarksConfig, made_from: Mapping[str, Any] | None = None, generation: int | None = None
) -> dict[str, Any]:
    """Everything but the checkpoint that determines the results, for a stage's key: settings, content, versions.

    Paths are not part of it, and neither is the batch size, which changes results only by rounding.

    Args:
        config: the benchmarks.
        made_from: the identity of the text and seed from which ``kr_test`` without a path makes its questions.
        generation: as given to :func:`run_benchmarks`; only a KR-test in fractions depends on it.
    """
    entries = []
    for entry in config.benchmarks:
        known: dict[str, Any] = {
            "settings": entry.model_dump(mode="json", exclude={"path"}),
            "files": {name: file_sha256(file) for name, file in entry.files.items()},
        }
        if isinstance(entry, KrTest):
            known |= {"scoring": kr_scoring.VERSION, "generation": generation if entry.fractions > 1 else None}
            if entry.path is None:
                known |= {"generator": kr_questions.VERSION, "made_from": dict(made_from or {})}
        else:
            known |= {"lm_eval": harness_version(), "tasks": {file.name: file.sha256 for file in task_files(entry)}}
        entries.append(known)
    return {"version": VERSION, "dtype": config.dtype, "benchmarks": entries}


def run_benchmarks(
    checkpoint: Path,
    config: BenchmarksConfig,
    *,
    tokenizer: Path | None = None,
    threads: int = 1,
    texts: Callable[[], Sequence[str]] | None = None,
    seed: int = 0,
    generation: int | None = None,
) -> BenchmarkReport:
    """Run every benchmark on a checkpoint, which is loaded once.

    Args:
        checkpoint: a Hugging Face folder.
        config: the benchmarks.
        tokenizer: the folder of its tokenizer, if that is another one.
        threads: of torch, on a CPU.
        texts: the training text of generation 0, for ``kr_test`` without a path.
        seed: the recipe's, for the same.
        generation: the chain's; with ``fractions`` > 1 the KR-test then also reports the accuracy up to it.

    Raises:
        UserError: a file that a benchmark needs is missing or malformed, or the model's context is too short for it.
    """
    if not config.benchmarks:
        return BenchmarkReport()
    check_files(config.benchmarks)
    exams = {entry.prefix: _exam(entry, texts, seed) for entry in config.benchmarks if isinstance(entry, KrTest)}
    network, words = load_checkpoint(checkpoint, tokenizer or checkpoint, config.dtype, threads)
    started = time.perf_counter()
    entries = [
        _run_kr(network, words, entry, exams[entry.prefix], generation)
        if isinstance(entry, KrTest)
        else _run_harness(network, words, entry, config.batch_size)
        for entry in config.benchmarks
    ]
    return BenchmarkReport(entries, time.perf_counter() - started)


def load_checkpoint(checkpoint: Path, tokenizer: Path, dtype: str, threads: int) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the GPU if there is one) and tokenizer of a folder.

    Raises:
        UserError: either cannot be loaded.
    """
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        network = load_causal_lm(checkpoint, dtype)
        words: Any = transformers.AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # transformers raises many kinds here; each means that the checkpoint cannot be used
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{checkpoint}: model and tokenizer cannot be loaded: {reason}") from error
    return network.to(device), words


def context_length(network: Any) -> int:
    """Tokens that the model takes in one text; lm-evaluation-harness's default if its configuration does not say."""
    return int(getattr(network.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT)


def _exam(entry: KrTest, texts: Callable[[], Sequence[str]] | None, seed: int) -> Exam:
    if entry.path is not None:
        return load_exam(Path(entry.path), entry.limit)
    if texts is None:
        raise UserError("kr_test: path: give a JSON file of questions; there is no corpus here to make them from")
    return make_exam(kr_questions.make_questions(texts(), entry.pairs, seed), entry.limit)


def _run_kr(network: Any, tokenizer: Any, entry: KrTest, exam: Exam, generation: int | None) -> EntryReport:
    scores = kr_scoring.score_exam(network, tokenizer, exam, context_length(network))
    suffixes = {"per_token": "accuracy", "fortifai": "accuracy_fortifai", "per_byte": "accuracy_per_byte"}
    names = {scoring: entry.metric(suffix) for scoring, suffix in suffixes.items()}
    answers = {scoring: kr_scoring.answers(scores, scoring) for scoring in suffixes}
    measures = [accuracy(names[scoring], answers[scoring].total) for scoring in suffixes]
    for scoring in ("per_token", "fortifai") if entry.fractions > 1 else ():
        if generation is not None:
            seen = answers[scoring].up_to(generation, entry.fractions)
            measures.append(accuracy(f"{names[scoring]}_seen", seen))
        parts = enumerate(answers[scoring].fractions(entry.fractions))
        measures += [accuracy(f"{names[scoring]}_fraction_{number}", part, detail=True) for number, part in parts]
    provenance = {
        "task": entry.task,
        "settings": entry.model_dump(mode="json"),
        "questions_hash": canonical_hash({str(at): asdict(question) for at, question in exam.questions.items()}),
        "not_finite": int((~np.isfinite(scores.total).all(1)).sum()),
        "skipped_reasons": [asdict(skipped) for skipped in scores.skipped],
    }
    return EntryReport(
        entry.prefix,
        measures,
        {names[scoring]: answers[scoring].by_position() for scoring in suffixes},
        len(scores.position),
        int(scores.truncated.sum()),
        len(scores.skipped),
        provenance,
    )


def _run_harness(network: Any, tokenizer: Any, entry: Benchmark, batch_size: int) -> EntryReport:
    from fortifai_ray.evaluation.benchmarks.harness import run_tasks

    files = task_files(entry)
    result = run_tasks(network, tokenizer, files, limit=entry.limit, batch_size=batch_size)
    if entry.task == "wikitext":
        measures = _perplexities(entry, result.results[files[0].name], len(result.samples[files[0].name]))
        given: dict[str, dict[Any, bool]] = {}
    else:
        measures, given = _accuracies(entry, files, result.samples)
    provenance = {
        "task": entry.task,
        "settings": entry.model_dump(mode="json"),
        "lm_eval": harness_version(),
        "task_versions": result.versions,
        "task_sha256": {file.name: file.sha256 for file in files},
        "file_sha256": {name: file_sha256(file) for name, file in entry.files.items()},
        "windowed": result.windowed,
        "not_finite": sum(not is_finite(sample) for file in files for sample in result.samples[file.name]),
    }
    documents = sum(len({sample["doc_id"] for sample in result.samples[file.name]}) for file in files)
    return EntryReport(entry.prefix or entry.task, measures, given, documents, result.truncated, 0, provenance)


def _perplexities(entry: Benchmark, results: Mapping[str, Any], documents: int) -> list[Measure]:
    values = {metric.name: float(results[f"{metric.name},none"]) for metric in entry.metrics}
    return [
        Measure(entry.metric(name), value if math.isfinite(value) else None, scored=documents)
        for name, value in values.items()
    ]


def _accuracies(
    entry: Benchmark, files: Sequence[TaskFile], samples: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[Measure], dict[str, dict[Any, bool]]]:
    """The accuracies of the entry, of its parts, and the answers behind them."""
    measures: list[Measure] = []
    given: dict[str, dict[Any, bool]] = {}
    for metric, chosen, suffix in _ACCURACIES[entry.task]:
        right = {
            file.part: {
                sample["doc_id"]: bool(sample[metric]) and is_finite(sample)
                for sample in samples[file.name]
                if sample["filter"] == chosen
            }
            for file in files
        }
        parts = {part: proportion(sum(items.values()), len(items)) for part, items in right.items()}
        name = entry.metric(suffix)
        measures.append(_mean_over_parts(name, parts))
        if entry.task == "blimp":
            measures += [accuracy(f"{name}_{part}", share, detail=True) for part, share in parts.items()]
        given[name] = {f"{part}/{item}": value for part, items in right.items() for item, value in items.items()}
    return measures, given


def is_finite(sample: Mapping[str, Any]) -> bool:
    """Whether a document's log-likelihoods are all finite. Those of a diverged model are NaN, and argmax over NaN takes
    the first choice, which is the correct one in BLiMP: a broken model would score 100%."""
    firsts = [answer[0] if isinstance(answer, tuple | list) else answer for answer in sample["filtered_resps"]]
    values = [value for value in firsts if isinstance(value, float)]  # generated text is no log-likelihood
    return all(math.isfinite(value) for value in values)


def _mean_over_parts(name: str, parts: Mapping[str, Proportion]) -> Measure:
    """The unweighted mean over parts; its variance is the mean of theirs divided by their number."""
    if len(parts) == 1:
        return accuracy(name, *parts.values())
    mean = mean_proportion(list(parts.values()))
    errors = [accuracy(name, part).stderr for part in parts.values()]
    known = [error for error in errors if error is not None]
    stderr = math.sqrt(sum(error**2 for error in known)) / len(parts) if len(known) == len(parts) else None
    return Measure(name, mean.value, mean.low, mean.high, stderr, mean.scored)
