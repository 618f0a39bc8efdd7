"""Which benchmarks are run on a generation's model, as a study file or ``fortifai evaluate`` says it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_CLOSED = ConfigDict(frozen=True, extra="forbid")


def _existing(path: str) -> str:
    if not Path(path).exists():
        raise ValueError(f"there is no {path} (looked for from {Path.cwd().name}/)")
    return path


LocalPath = Annotated[str, AfterValidator(_existing)]


class _Benchmark(BaseModel):
    """One entry of ``benchmarks``.

    Attributes:
        name: what its metrics begin with, e.g. ``mine`` for ``mine_accuracy``; needed where a task is asked for twice.
            Null: the task's own metric names.
        limit: the first so many documents (of each paradigm for BLiMP); null for all.
    """

    model_config = _CLOSED
    stem: ClassVar[str]  # what the task's metrics begin with
    task: str
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")
    limit: int | None = Field(None, ge=1)

    @property
    def prefix(self) -> str:
        """What this entry's metrics begin with."""
        return self.name or self.stem

    def metric(self, suffix: str) -> str:
        """A metric's full name, e.g. ``blimp_accuracy``."""
        return f"{self.prefix}_{suffix}" if self.prefix else suffix


class Blimp(_Benchmark):
    """BLiMP (Warstadt et al. 2020): of two sentences that differ minimally, is the grammatical one likelier?

    Attributes:
        path: a folder with a ``PARADIGM.jsonl`` each, as its authors publish it.
        paradigms: which of them; null for all that are there (67 in the full set).
    """

    stem = "blimp"
    task: Literal["blimp"] = "blimp"
    path: LocalPath
    paradigms: tuple[str, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _paradigms_are_there(self) -> Self:
        there = sorted(file.stem for file in Path(self.path).glob("*.jsonl"))
        if not there:
            raise ValueError(f"{self.path} holds no *.jsonl: a folder with BLiMP's paradigms is needed")
        for name in self.paradigms or ():
            if name not in there:
                raise ValueError(f"{self.path} has no paradigm {name} (there are {', '.join(there)})")
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Paradigms and their files, in the order of their names."""
        files = {file.stem: file for file in sorted(Path(self.path).glob("*.jsonl"))}
        return {name: files[name] for name in sorted(set(self.paradigms or files))}


class Gsm8k(_Benchmark):
    """GSM8K (Cobbe et al. 2021): grade-school mathematics, greedily generated after worked examples.

    Attributes:
        path: a folder with ``test.jsonl``, and with ``train.jsonl`` for the examples.
        num_fewshot: examples before each question, drawn from the training questions; 5 is the field's custom.
        max_new_tokens: tokens generated at most; 256 is lm-evaluation-harness's own.
    """

    stem = "gsm8k"
    task: Literal["gsm8k"] = "gsm8k"
    path: LocalPath
    num_fewshot: int = Field(5, ge=0)
    max_new_tokens: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _files_are_there(self) -> Self:
        for name in self.files:
            if not (Path(self.path) / f"{name}.jsonl").is_file():
                raise ValueError(f"{self.path} has no {name}.jsonl: a folder with GSM8K's questions is needed")
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Splits and their files."""
        names = ["test", *["train"] * (self.num_fewshot > 0)]
        return {name: Path(self.path) / f"{name}.jsonl" for name in names}


class HellaSwag(_Benchmark):
    """HellaSwag (Zellers et al. 2019): which of four endings follows?

    Attributes:
        path: a ``.jsonl`` file in the official format (``activity_label, ctx_a, ctx_b, endings, label``), labelled.
    """

    stem = "hellaswag"
    task: Literal["hellaswag"] = "hellaswag"
    path: LocalPath

    @property
    def files(self) -> dict[str, Path]:
        """The split and its file."""
        return {"validation": Path(self.path)}


class Wikitext(_Benchmark):
    """Perplexity per word and per byte of text (WikiText-2: Merity et al. 2017), whatever the tokenizer.

    Attributes:
        path: a text file; one with WikiText's ``= Title =`` lines is scored article by article.
    """

    stem = ""
    task: Literal["wikitext"] = "wikitext"
    path: LocalPath

    @property
    def files(self) -> dict[str, Path]:
        """The split and its file."""
        return {"test": Path(self.path)}


class KrTest(_Benchmark):
    """The knowledge-retention test (ForTIFAI): given a context, is the true continuation likelier than the false one?

    Attributes:
        path: a JSON file of questions. Null: they are made from the corpus, from what generation 0 was trained on.
        pairs: questions made where there is no ``path``.
        fractions: parts of the source, in the order of the questions, that each get an accuracy of their own.
    """

    stem = "kr"
    task: Literal["kr_test"] = "kr_test"
    path: LocalPath | None = None
    pairs: int = Field(200, ge=2, le=100_000)
    fractions: int = Field(1, ge=1)

    @property
    def files(self) -> dict[str, Path]:
        """The questions' file, if they come from one."""
        return {} if self.path is None else {"questions": Path(self.path)}


Benchmark = Annotated[Blimp | Gsm8k | HellaSwag | Wikitext | KrTest, Field(discriminator="task")]


class BenchmarksConfig(BaseModel):
    """Benchmarks and how they are run.

    Attributes:
        benchmarks: what is run, in this order.
        batch_size: texts scored or generated together by lm-evaluation-harness; the KR-test sizes its own batches.
        dtype: ``auto`` is the precision the checkpoint is stored in, as on lm-evaluation-harness's command line.
    """

    model_config = _CLOSED
    benchmarks: tuple[Benchmark, ...] = ()
    batch_size: int = Field(32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.prefix for entry in self.benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two benchmarks would both report {name or 'word_perplexity'}: give one a name")
        return self


# What a benchmark's results are called, known before anything runs: columns of a study's tables.

_COUNTS = ("scored", "truncated", "skipped")


def metric_names(entries: Sequence[Benchmark]) -> tuple[str, ...]:
    """The keys of :meth:`.report.BenchmarkReport.metrics`, for benchmarks run on a chain's generations."""
    return tuple(name for entry in entries for name in (*_measures(entry), *_counts(entry)))


def _measures(entry: Benchmark) -> Iterator[str]:
    if isinstance(entry, KrTest):
        yield from _with_interval(entry, "accuracy", "accuracy_fortifai", "accuracy_per_byte")
        for suffix in ("accuracy", "accuracy_fortifai") if entry.fractions > 1 else ():
            yield from _with_interval(entry, f"{suffix}_seen")
            yield from (entry.metric(f"{suffix}_fraction_{number}") for number in range(entry.fractions))
    elif isinstance(entry, Blimp):
        yield from _with_interval(entry, "accuracy")
        yield from (entry.metric(f"accuracy_{part}") for part in entry.files)
    elif isinstance(entry, HellaSwag):
        yield from _with_interval(entry, "accuracy", "accuracy_unnormalised")
    elif isinstance(entry, Gsm8k):
        yield from _with_interval(entry, "accuracy", "accuracy_flexible")
    else:
        yield from (entry.metric(suffix) for suffix in ("word_perplexity", "byte_perplexity", "bits_per_byte"))


def _with_interval(entry: Benchmark, *suffixes: str) -> Iterator[str]:
    for suffix in suffixes:
        yield from (entry.metric(f"{suffix}{end}") for end in ("", "_low", "_high"))


def _counts(entry: Benchmark) -> Iterator[str]:
    yield from (f"{entry.prefix or entry.task}_{count}" for count in _COUNTS)
