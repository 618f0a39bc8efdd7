"""Run the benchmarks of a configuration on one checkpoint."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.causal_cache import row_limit
from fortifai_ray.engines.checkpoints import load_for_scoring
from fortifai_ray.engines.pretrained import WeightsError, load_tokenizer
from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks import kr_fractions, kr_questions, kr_scoring, pair_scoring
from fortifai_ray.evaluation.benchmarks.any_task import content_hash, load_task
from fortifai_ray.evaluation.benchmarks.config import OF_THE_HARNESS, Benchmark, BenchmarksConfig, Blimp, KrTest
from fortifai_ray.evaluation.benchmarks.entry import TIES
from fortifai_ray.evaluation.benchmarks.harness_entry import LmEval
from fortifai_ray.evaluation.benchmarks.kr_fractions import Fractions
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam, load_exam, make_exam
from fortifai_ray.evaluation.benchmarks.local_data import read_blimp
from fortifai_ray.evaluation.benchmarks.report import (
    BenchmarkReport,
    EntryReport,
    Measure,
    accuracy,
    credits,
    mean_accuracy,
    tied_for_best,
)
from fortifai_ray.evaluation.benchmarks.tasks import TaskFile, check_files, skipped_rows, task_files
from fortifai_ray.storage.store import canonical_hash, file_sha256

if TYPE_CHECKING:
    from fortifai_ray.evaluation.benchmarks.harness_figures import Figure

VERSION = 2  # bump when the same checkpoint and files give other measures
DEFAULT_CONTEXT = 2048


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
            if entry.fractions > 1 and generation is not None:
                known |= {"fractions": kr_fractions.VERSION, "made_from": dict(made_from or {})}
            if entry.path is None:
                known |= {"generator": kr_questions.VERSION, "made_from": dict(made_from or {})}
        elif isinstance(entry, LmEval):
            known |= {"lm_eval": version("lm_eval"), "content": content_hash(entry.model_dump_json())}
        else:
            known |= {"lm_eval": version("lm_eval"), "tasks": {file.name: file.sha256 for file in task_files(entry)}}
            known |= {"published": pair_scoring.BLIMP_VERSION} if isinstance(entry, Blimp) else {}
            known |= {"skipped": [*skipped]} if (skipped := skipped_rows(entry)) else {}
        entries.append(known)
    return {"version": VERSION, "dtype": config.dtype, "benchmarks": entries}


def run_benchmarks(
    checkpoint: Path,
    config: BenchmarksConfig,
    *,
    tokenizer: Path | None = None,
    threads: int = 1,
    texts: Callable[[], Sequence[str]] | None = None,
    fractions: Fractions | None = None,
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
        fractions: the human text of each generation, for ``kr_test`` with ``fractions`` > 1; None: equal parts.
        seed: the recipe's, for the same.
        generation: the chain's; with ``fractions`` > 1 the KR-test then also reports the accuracy up to it.

    Raises:
        UserError: a file that a benchmark needs is missing or malformed, or the model's context is too short for it.
    """
    if not config.benchmarks:
        return BenchmarkReport()
    check_files([entry for entry in config.benchmarks if not isinstance(entry, LmEval)])  # loaded where they are run
    exams = {
        entry.prefix: _exam(entry, texts, fractions, seed) for entry in config.benchmarks if isinstance(entry, KrTest)
    }
    network, words = load_checkpoint(checkpoint, tokenizer or checkpoint, config.dtype, threads)
    started = time.perf_counter()
    entries = [
        _run_kr(network, words, entry, exams[entry.prefix], generation, fractions)
        if isinstance(entry, KrTest)
        else _run_any(network, words, entry, config.batch_size)
        if isinstance(entry, LmEval)
        else _run_harness(network, words, entry, config.batch_size)
        for entry in config.benchmarks
    ]
    return BenchmarkReport(entries, time.perf_counter() - started)


def load_checkpoint(checkpoint: Path, tokenizer: Path, dtype: str, threads: int) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the GPU if there is one) and tokenizer of a folder.

    Raises :class:`UserError` if either cannot be loaded.
    """
    try:
        return load_for_scoring(checkpoint, dtype, threads), load_tokenizer(tokenizer)
    except WeightsError as error:
        raise UserError(str(error)) from error


def context_length(network: Any) -> int:
    """Tokens that the model takes in one text; lm-evaluation-harness's default where nothing bounds them."""
    return row_limit(network.config) or DEFAULT_CONTEXT


def _exam(entry: KrTest, texts: Callable[[], Sequence[str]] | None, fractions: Fractions | None, seed: int) -> Exam:
    if fractions is not None and entry.fractions > 1:
        return kr_fractions.divided_exam(entry, fractions, seed)
    if entry.path is not None:
        return load_exam(Path(entry.path), entry.limit)
    if texts is None:
        raise UserError("kr_test: path: give a JSON file of questions; there is no corpus here to make them from")
    return make_exam(kr_questions.make_questions(texts(), entry.pairs, seed), entry.limit)


def _run_kr(
    network: Any, tokenizer: Any, entry: KrTest, exam: Exam, generation: int | None, fractions: Fractions | None
) -> EntryReport:
    scores = kr_scoring.score_exam(network, tokenizer, exam, context_length(network))
    answers = {entry.metric(suffix): scores.answers(scoring) for suffix, scoring in entry.accuracies.items()}
    measures = [accuracy(name, given.values()) for name, given in answers.items()]
    measures.append(_ties(entry, scores.ties.tolist()))
    for name in map(entry.metric, entry.divided if entry.fractions > 1 else ()):
        divided = (name, answers[name], exam.parts(entry.fractions))
        if generation is not None:
            measures.append(kr_scoring.up_to(generation, *divided))
        if fractions is not None and fractions.replaced:
            measures.append(kr_scoring.of_synthetic(*divided))
        measures += kr_scoring.fractions(*divided)
    provenance = {
        "questions_hash": canonical_hash({str(at): asdict(question) for at, question in exam.questions.items()}),
        "unplaced": 0 if exam.fraction is None else exam.size - len(exam.fraction),  # on none of the fractions
        "not_finite": int((~np.isfinite(scores.total).all(1)).sum()),
        "skipped_reasons": [{"position": at, "reason": reason} for at, reason in scores.skipped.items()],
    }
    return EntryReport(
        entry,
        measures,
        answers,
        len(scores.position),
        int(scores.truncated.sum()),
        len(scores.skipped),
        provenance,
    )


def _run_harness(network: Any, tokenizer: Any, entry: Benchmark, batch_size: int) -> EntryReport:
    from fortifai_ray.evaluation.benchmarks.harness import run_tasks

    files = task_files(entry)
    result = run_tasks(network, tokenizer, files, limit=entry.limit, batch_size=batch_size)
    documents = sum(len({sample["doc_id"] for sample in result.samples[file.name]}) for file in files)
    if entry.task == "wikitext":
        values = result.results[files[0].name]
        measures = [_perplexity(entry, metric.name, values, documents) for metric in entry.metrics]
        given: dict[str, dict[Any, float]] = {}
    else:
        measures, given = _accuracies(entry, files, result.samples)
    if isinstance(entry, Blimp):
        measures += _as_published(network, tokenizer, entry)
    provenance = {
        "lm_eval": version("lm_eval"),
        "task_versions": result.versions,
        "task_sha256": {file.name: file.sha256 for file in files},
        "file_sha256": {name: file_sha256(file) for name, file in entry.files.items()},
        "windowed": result.windowed,
        "not_finite": sum(not is_finite(sample) for file in files for sample in result.samples[file.name]),
    }
    skipped = skipped_rows(entry)
    if skipped:
        provenance["skipped_reasons"] = [{"position": at, "reason": reason} for at, reason in skipped.items()]
    return EntryReport(entry, measures, given, documents, result.truncated, len(skipped), provenance)


def _run_any(network: Any, tokenizer: Any, entry: LmEval, batch_size: int) -> EntryReport:
    from fortifai_ray.evaluation.benchmarks.harness import evaluate_loaded

    loaded = load_task(entry)
    result = evaluate_loaded(network, tokenizer, loaded, limit=entry.limit, batch_size=batch_size)
    documents = {task: len({each["doc_id"] for each in samples}) for task, samples in result.samples.items()}
    measures, answers = [], {}
    for figure in entry.figures:
        name, values = entry.column(figure), result.results.get(figure.task, {})
        value, error = values.get(figure.key), values.get(f"{figure.metric}_stderr,{figure.filter}")
        group = loaded["groups"].get(figure.task)
        tasks = [figure.task] if group is None else [task.task_name for task in group.get_all_tasks()]
        measures.append(
            Measure(
                name,
                _finite(value),
                stderr=_finite(error),
                scored=sum(documents.get(task, 0) for task in tasks),
                detail=not figure.own,
            )
        )
        if given := _credits(figure, {task: result.samples.get(task, []) for task in tasks}):
            answers[name] = given
    provenance = {
        "lm_eval": version("lm_eval"),
        "task_versions": result.versions,
        "windowed": result.windowed,
        "not_finite": sum(not is_finite(sample) for samples in result.samples.values() for sample in samples),
    }
    return EntryReport(entry, measures, answers, sum(documents.values()), result.truncated, 0, provenance)


def _finite(value: Any) -> float | None:
    """A number of the harness's results; None for what is none ("N/A"), and for one that is not finite."""
    known = isinstance(value, int | float | np.number) and math.isfinite(value)
    return float(value) if known else None


def _credits(figure: "Figure", samples: Mapping[str, list[dict[str, Any]]]) -> dict[Any, float]:
    """What each document earned, for tests between models; empty where the metric is no share of right answers."""
    found = {
        f"{task}/{each['doc_id']}": each[figure.metric]
        for task, logged in samples.items()
        for each in logged
        if each["filter"] == figure.filter and figure.metric in each
    }
    right = all(isinstance(value, int | float) and 0 <= value <= 1 for value in found.values())
    return {item: float(value) for item, value in found.items()} if right and figure.own else {}


def _perplexity(entry: Benchmark, name: str, results: Mapping[str, Any], documents: int) -> Measure:
    value = float(results[f"{name},none"])
    return Measure(entry.metric(name), value if math.isfinite(value) else None, scored=documents)


def _accuracies(
    entry: Benchmark, files: Sequence[TaskFile], samples: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[Measure], dict[str, dict[Any, float]]]:
    """The accuracies of the entry, of its parts, its share of ties, and the answers behind our own accuracies."""
    measures: list[Measure] = []
    given: dict[str, dict[Any, float]] = {}
    for suffix, figure in entry.accuracies.items():
        name, parts = entry.metric(suffix), []
        metric, chosen = figure.split(",")
        theirs = suffix == OF_THE_HARNESS or not entry.has_ties
        for file in files:
            logged = [sample for sample in samples[file.name] if sample["filter"] == chosen]
            credit = {
                sample["doc_id"]: float(sample[metric]) * is_finite(sample) if theirs else _credit(sample, metric)
                for sample in logged
            }
            parts.append(accuracy(f"{name}_{file.part}", credit.values(), detail=True))
            if suffix != OF_THE_HARNESS:
                given.setdefault(name, {}).update({f"{file.part}/{item}": each for item, each in credit.items()})
        detailed = entry.task == "blimp" and suffix != OF_THE_HARNESS
        measures += [mean_accuracy(name, parts), *(parts if detailed else ())]
    if entry.has_ties:
        metric = entry.accuracies["accuracy"].split(",")[0]
        logged = [sample for file in files for sample in samples[file.name]]
        measures.append(_ties(entry, [bool(tied_for_best(_scores(each, metric)).sum() > 1) for each in logged]))
    return measures, given


def _as_published(network: Any, tokenizer: Any, entry: Blimp) -> list[Measure]:
    """BLiMP's accuracies as ForTIFAI's code scores pairs: means over the paradigms."""
    answers: dict[str, list[Measure]] = {suffix: [] for suffix in entry.published}
    for file in entry.files.values():
        pairs = [(row["sentence_good"], row["sentence_bad"]) for row in read_blimp(file)[: entry.limit]]
        scores = pair_scoring.score_sentences(network, tokenizer, pairs, context_length(network))
        for suffix, padding in entry.published.items():
            good, bad = getattr(scores, padding).T
            answers[suffix].append(accuracy(entry.metric(suffix), (good > bad).astype(float).tolist()))
    return [mean_accuracy(entry.metric(suffix), parts) for suffix, parts in answers.items()]


def _scores(sample: Mapping[str, Any], metric: str) -> np.ndarray:
    """(1, choices) A document's log-likelihoods; ``acc_norm``: per character of each choice."""
    values = np.array([[answer[0] for answer in sample["filtered_resps"]]], dtype=np.float64)
    if metric != "acc_norm":
        return values
    # lm-evaluation-harness puts one space before a choice, and counts a choice's characters without it.
    return values / np.array([len(text) - 1 for _, text in sample["arguments"]])


def _credit(sample: Mapping[str, Any], metric: str) -> float:
    return float(credits(_scores(sample, metric), int(sample["target"]))[0])


def _ties(entry: Benchmark, tied: Sequence[bool]) -> Measure:
    return Measure(entry.metric(TIES), sum(tied) / len(tied) if tied else None, scored=len(tied))


def is_finite(sample: Mapping[str, Any]) -> bool:
    """Whether a document's log-likelihoods are all finite. Those of a diverged model are NaN, and argmax over NaN takes
    the first choice, which is the correct one in BLiMP: a broken model would score 100%."""
    firsts = [answer[0] if isinstance(answer, tuple | list) else answer for answer in sample["filtered_resps"]]
    values = [value for value in firsts if isinstance(value, float)]  # generated text is no log-likelihood
    return all(math.isfinite(value) for value in values)
