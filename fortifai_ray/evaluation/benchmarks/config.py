"""Benchmarks of a generation's model as a study file or ``fortifai evaluate`` names them, and what each measures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fortifai_ray.evaluation.benchmarks.entry import Entry, LocalPath
from fortifai_ray.evaluation.benchmarks.harness_entry import LmEval
from fortifai_ray.metrics import BENCHMARKS, Metric
from fortifai_ray.validation import Section

OF_THE_HARNESS = "accuracy_lm_eval"  # its own number: of choices that tie, it takes the first

_accuracy = partial(Metric, unit="share of questions", direction="below", group=BENCHMARKS)
_FORTIFAI = "Shabgahi et al. 2025, ForTIFAI: evaluate_utils.py"
_AS_PUBLISHED = "as ForTIFAI's code scores: a tie is wrong"
_LEFT = "padded on the left, as in its curves of training"
_kr = partial(_accuracy, source="KR-test, Shabgahi et al. 2025, ForTIFAI", chance=0.5)
_ties = partial(Metric, unit="share of questions", direction="above", group=BENCHMARKS)
_HALF = "a tie counts as one half"
SYNTHETIC = "synthetic"  # the fraction that has become wholly synthetic
_TTF = "on the fraction that has become wholly synthetic (generation 0's text, never trained on again)"
_LIKELIER = "pairs whose true continuation is likelier than the false one"
_likelihood = partial(Metric, direction="above", source="lm-evaluation-harness", group=BENCHMARKS)
_WIKITEXT = "of WikiText-2, whole documents"


class Blimp(Entry):
    """BLiMP (Warstadt et al. 2020): of two sentences that differ minimally, is the grammatical one likelier?"""

    stem = "blimp"
    metrics = (
        _accuracy(
            "blimp_accuracy",
            definition=f"minimal pairs whose grammatical sentence is likelier; {_HALF}",
            source="Warstadt et al. 2020, BLiMP",
            chance=0.5,
            role="grammar",
            rank=1,
        ),
        _accuracy(
            "blimp_accuracy_lm_eval",
            title="BLiMP accuracy (as lm-eval)",
            definition="as lm-evaluation-harness counts: a tie is right, since the grammatical sentence comes first",
            source="lm-evaluation-harness",
        ),
        _accuracy(
            "blimp_accuracy_fortifai",
            definition=f"by the mean over the shorter sentence's length, {_AS_PUBLISHED}, padded on the right",
            source=_FORTIFAI,
            chance=0.5,
        ),
        _accuracy(
            "blimp_accuracy_fortifai_left",
            title="BLiMP accuracy (as ForTIFAI, padded left)",
            definition=f"by the mean over the shorter sentence's length, {_AS_PUBLISHED}, {_LEFT}",
            source=_FORTIFAI,
            chance=0.5,
        ),
        _ties("blimp_ties", definition="minimal pairs of equally likely sentences", source="lm-evaluation-harness"),
    )
    accuracies: ClassVar[dict[str, str]] = {"accuracy": "acc,none", OF_THE_HARNESS: "acc,none"}
    published: ClassVar[dict[str, str]] = {"accuracy_fortifai": "right", "accuracy_fortifai_left": "left"}
    has_ties = True
    task: Literal["blimp"] = "blimp"
    path: LocalPath = Field(description="a folder with one file PARADIGM.jsonl per paradigm, as its authors publish it")
    paradigms: tuple[str, ...] | None = Field(
        None, min_length=1, description="which paradigms; null for all in the folder (67 in the full set)"
    )

    @model_validator(mode="after")
    def _paradigms_are_there(self) -> Self:
        there = sorted(self._there)
        if not there:
            raise ValueError(f"{self.path} has no *.jsonl: give a folder with BLiMP's paradigms")
        for name in self.paradigms or ():
            if name not in there:
                raise ValueError(f"{self.path} has no paradigm {name} (there are {', '.join(there)})")
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Paradigms and their files, ordered by name."""
        files = self._there
        return {name: files[name] for name in sorted(set(self.paradigms or files))}

    @property
    def _there(self) -> dict[str, Path]:
        found = Path(self.path).glob("*.jsonl")  # hidden ones too, such as macOS's shadows
        return {file.stem: file for file in found if not file.name.startswith(".")}

    def _measures(self) -> Iterator[str]:
        yield from super()._measures()
        yield from self._with_interval(*self.published)
        yield from (self.metric(f"accuracy_{part}") for part in self.files)


class Gsm8k(Entry):
    """GSM8K (Cobbe et al. 2021): grade-school mathematics, greedily generated after worked examples."""

    stem = "gsm8k"
    metrics = (
        _accuracy(
            "gsm8k_accuracy",
            definition="answers that match exactly",
            source="Cobbe et al. 2021, GSM8K",
            role="facts",
            rank=3,
        ),
    )
    accuracies: ClassVar[dict[str, str]] = {
        "accuracy": "exact_match,strict-match",
        "accuracy_flexible": "exact_match,flexible-extract",
    }
    task: Literal["gsm8k"] = "gsm8k"
    path: LocalPath = Field(description="a folder with test.jsonl, and with train.jsonl for the examples")
    num_fewshot: int = Field(
        5, ge=0, description="examples before each question, drawn from the training questions; 5 is customary"
    )
    max_new_tokens: int = Field(
        256, ge=1, description="tokens generated at most; 256 is lm-evaluation-harness's default"
    )

    @model_validator(mode="after")
    def _files_are_there(self) -> Self:
        for name in self.files:
            if not (Path(self.path) / f"{name}.jsonl").is_file():
                raise ValueError(f"{self.path} has no {name}.jsonl: give a folder with GSM8K's questions")
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Splits and their files."""
        names = ["test", *["train"] * (self.num_fewshot > 0)]
        return {name: Path(self.path) / f"{name}.jsonl" for name in names}


class HellaSwag(Entry):
    """HellaSwag (Zellers et al. 2019): which of four endings follows?"""

    stem = "hellaswag"
    metrics = (
        _accuracy(
            "hellaswag_accuracy",
            definition="questions whose right ending of four is the likeliest per character; 1/k where k tie",
            source="Zellers et al. 2019, HellaSwag",
            chance=0.25,
        ),
        _accuracy(
            "hellaswag_accuracy_lm_eval",
            title="HellaSwag accuracy (as lm-eval)",
            definition="as lm-evaluation-harness counts: of endings that tie, the first is taken",
            source="lm-evaluation-harness",
        ),
        _ties(
            "hellaswag_ties",
            definition="questions whose likeliest ending is not one alone",
            source="Zellers et al. 2019",
        ),
    )
    accuracies: ClassVar[dict[str, str]] = {
        "accuracy": "acc_norm,none",
        "accuracy_unnormalised": "acc,none",
        OF_THE_HARNESS: "acc_norm,none",
    }
    has_ties = True
    task: Literal["hellaswag"] = "hellaswag"
    path: LocalPath = Field(
        description="a .jsonl file in the official format (activity_label, ctx_a, ctx_b, endings, label), labelled"
    )

    @property
    def files(self) -> dict[str, Path]:
        """The split and its file."""
        return {"validation": Path(self.path)}


class MathQa(Entry):
    """MathQA (Amini et al. 2019): which of five answers follows a mathematical word problem?"""

    stem = "mathqa"
    metrics = (
        _accuracy(
            "mathqa_accuracy",
            definition="problems whose right answer of five is the likeliest; 1/k where k tie",
            source="Amini et al. 2019, MathQA",
            chance=0.2,
        ),
        _accuracy(
            "mathqa_accuracy_lm_eval",
            title="MathQA accuracy (as lm-eval)",
            definition="as lm-evaluation-harness counts: of answers that tie, the first is taken",
            source="lm-evaluation-harness",
        ),
        _ties("mathqa_ties", definition="problems whose likeliest answer is not one alone", source="Amini et al. 2019"),
    )
    accuracies: ClassVar[dict[str, str]] = {
        "accuracy": "acc,none",
        "accuracy_normalised": "acc_norm,none",
        OF_THE_HARNESS: "acc,none",
    }
    has_ties = True
    task: Literal["mathqa"] = "mathqa"
    path: LocalPath = Field(description="a .json file in the official format (Problem, options, correct)")

    @property
    def files(self) -> dict[str, Path]:
        """The split and its file."""
        return {"test": Path(self.path)}


class Wikitext(Entry):
    """Perplexity per word and per byte of text (WikiText-2: Merity et al. 2017), independent of the tokenizer."""

    stem = ""
    metrics = (
        _likelihood("word_perplexity", "per word", f"exp of the mean −ln p per word {_WIKITEXT}", scale="log"),
        _likelihood("byte_perplexity", "per byte", f"exp of the mean −ln p per byte {_WIKITEXT}", scale="log"),
        _likelihood("bits_per_byte", "bits per byte", f"−log2 p per byte {_WIKITEXT}"),
    )
    task: Literal["wikitext"] = "wikitext"
    path: LocalPath = Field(
        description="a text file; one with WikiText's `= Title =` lines is scored article by article"
    )

    @property
    def files(self) -> dict[str, Path]:
        """The split and its file."""
        return {"test": Path(self.path)}

    def _measures(self) -> Iterator[str]:
        yield from (self.metric(metric.name) for metric in self.metrics)


class KrTest(Entry):
    """The knowledge-retention test (ForTIFAI): is the true continuation of a context likelier than the false one?"""

    stem = "kr"
    metrics = (
        _kr("kr_accuracy", definition=f"{_LIKELIER}, per token of each; {_HALF}", role="facts", rank=1),
        _kr("kr_accuracy_per_byte", definition=f"{_LIKELIER}, per byte of each; {_HALF}", role="facts", rank=2),
        _kr("kr_accuracy_fortifai", definition=f"{_LIKELIER}, {_AS_PUBLISHED}"),
        _kr(
            "kr_accuracy_fortifai_left",
            title="KR accuracy (as ForTIFAI, padded left)",
            definition=f"as kr_accuracy_fortifai, {_LEFT}",
        ),
        _kr("kr_accuracy_synthetic", definition=f"as kr_accuracy, {_TTF}"),
        _kr("kr_accuracy_fortifai_synthetic", definition=f"as kr_accuracy_fortifai, {_TTF}: below 0.75 is failure"),
        _kr(
            "kr_accuracy_fortifai_left_synthetic",
            title="KR accuracy (as ForTIFAI, padded left) synthetic",
            definition=f"as kr_accuracy_fortifai_left, {_TTF}",
        ),
        _ties("kr_ties", definition="pairs of equally likely continuations, per token of each", source="KR-test"),
    )
    has_ties = True
    accuracies: ClassVar[dict[str, str]] = {
        "accuracy": "per_token",
        "accuracy_fortifai": "fortifai",
        "accuracy_fortifai_left": "fortifai_left",
        "accuracy_per_byte": "per_byte",
    }
    divided: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_fortifai", "accuracy_fortifai_left")  # by fraction too
    task: Literal["kr_test"] = "kr_test"
    path: LocalPath | None = Field(
        None, description="a JSON file of questions; if null, they are made from the training text of generation 0"
    )
    pairs: int = Field(200, ge=2, le=100_000, description="how many questions are made if there is no path")
    fractions: int = Field(
        1,
        ge=1,
        description="parts that get an accuracy of their own. Where the regime gives later generations human text that "
        "no earlier one saw, part k is the questions on what generation k was the first to see (a file's are placed by "
        "their words); else equal parts in the order of the questions",
    )

    @property
    def files(self) -> dict[str, Path]:
        """The questions' file, if ``path`` gives one."""
        return {} if self.path is None else {"questions": Path(self.path)}

    def _measures(self) -> Iterator[str]:
        yield from super()._measures()
        for suffix in self.divided if self.fractions > 1 else ():
            yield from self._with_interval(f"{suffix}_seen", f"{suffix}_{SYNTHETIC}")
            yield from (self.metric(f"{suffix}_fraction_{number}") for number in range(self.fractions))


_KINDS = (Blimp, Gsm8k, HellaSwag, MathQa, Wikitext, KrTest, LmEval)
TASKS: tuple[str, ...] = tuple(kind.model_fields["task"].default for kind in _KINDS)
METRICS = tuple(metric for kind in _KINDS for metric in kind.metrics)
"""Those of entries without a name; an entry with one declares its own (:attr:`Entry.declared`)."""

Benchmark = Annotated[Blimp | Gsm8k | HellaSwag | MathQa | Wikitext | KrTest | LmEval, Field(discriminator="task")]


class BenchmarksConfig(Section):
    """Benchmarks and how they are run."""

    benchmarks: tuple[Benchmark, ...] = Field((), description="the entries, in the order in which they run")
    batch_size: int = Field(
        32,
        ge=1,
        description="texts scored or generated together by lm-evaluation-harness; the KR-test sizes its own batches",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is the precision in which the checkpoint is stored, as on the harness's command line"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.prefix for entry in self.benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two benchmarks would both report {name or 'word_perplexity'}: give one a name")
        columns = [name for entry in self.benchmarks if isinstance(entry, LmEval) for name in entry.columns]
        for name in columns if len({*columns}) < len(columns) else ():
            if columns.count(name) > 1:
                raise ValueError(
                    f"two benchmarks of lm_eval would both report {name}: give one a label, or leave one out"
                )
        return self
