"""Further stages that measure a generation: benchmarks of its model, signs of collapse in its corpus."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig, KrTest
from fortifai_ray.evaluation.signs import Signs, SignsConfig
from fortifai_ray.evaluation.signs import corpus as corpus_side
from fortifai_ray.evaluation.signs import model as model_side
from fortifai_ray.families.language import data, lineages, scoring
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.keeping import Measure
from fortifai_ray.families.language.recipe import PERPLEXITY, LanguageRecipe
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.pools import Human
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageFiles, StageKey, canonical_hash

if TYPE_CHECKING:
    from fortifai_ray.evaluation.benchmarks.kr_fractions import Fractions
    from fortifai_ray.evaluation.benchmarks.report import BenchmarkReport

DETAILS = "details"  # outputs without a column: counts, reasons, histograms, provenance


@dataclass(frozen=True)
class Measures:
    """The measures of one chain. ``human`` are the blocks of generation 0's training text, in order, ``supply`` those
    of all generations; ``files(model)`` gives a model's files."""

    recipe: LanguageRecipe
    corpus: Corpus
    human: np.ndarray
    supply: Human
    steps: Steps
    executor: Executor
    files: Callable[[Stage], StageFiles]

    def benchmarks(self, model: Stage, generation: int) -> Stage:
        """The benchmarks of the recipe's evaluation."""
        from fortifai_ray.evaluation.benchmarks.run import identity

        settings = self.recipe.evaluation.benchmark_settings
        known = identity(settings, {**self._text(), "seed": self.recipe.seed}, generation)
        key = StageKey("benchmarks", 1, {"model": model.hash, "corpus": self.corpus.hash, "benchmarks": known})
        return self.steps.run(key, "run the benchmarks", lambda _: self._run_benchmarks(model, generation))

    def _run_benchmarks(self, model: Stage, generation: int) -> dict[str, Any]:
        settings, corpus = self.recipe.evaluation.benchmark_settings, self.steps.files(self.corpus.stage)
        known = self._asked(generation)
        report = self.executor.score(_benchmarks_of, self.files(model), settings, corpus, **known)
        seconds = {"evaluate_seconds": report.evaluate_seconds}
        return {**report.metrics(), **seconds, DETAILS: {"benchmarks": report.details()}}

    def _asked(self, generation: int) -> dict[str, Any]:
        return {
            "threads": self.executor.threads,
            "held_in": self._held_in(self.human) if self._made_exams else [],
            "fractions": self._fractions(),
            "seed": self.recipe.seed,
            "generation": generation,
        }

    def chooses(self, generation: int) -> dict[str, Any]:
        """What determines which epoch is kept (``training.keep_by``), but the model and the held-out text."""
        from fortifai_ray.evaluation.benchmarks.run import identity

        if self.recipe.training.keep_by == PERPLEXITY:
            return {"perplexity": scoring.PERPLEXITY_VERSION}
        return identity(self._choosing, {**self._text(), "seed": self.recipe.seed}, generation)

    def measure(self, generation: int) -> Measure:
        """The measure that chooses it."""
        name, recipe = self.recipe.training.keep_by, self.recipe
        highest = recipe.direction_of(name) == "below"  # collapse moves it down
        if name == PERPLEXITY:
            blocks = self.corpus.blocks(self.corpus.held_out, recipe.training.block_size)
            sizes = {"batch_size": recipe.evaluation.batch_size, "threads": self.executor.threads}
            return Measure(highest, scoring.perplexity_value, (np.array(blocks),), sizes)
        arguments = (name, self._choosing, self.steps.files(self.corpus.stage))
        return Measure(highest, _benchmark_value, arguments, self._asked(generation))

    @property
    def _choosing(self) -> BenchmarksConfig:
        """The benchmark that has the measure."""
        name, evaluation = self.recipe.training.keep_by, self.recipe.evaluation
        entry = next(entry for entry in evaluation.benchmarks if name in entry.columns)
        return BenchmarksConfig(benchmarks=(entry,), batch_size=evaluation.batch_size)

    def signs(self, written: Stage, model: Stage, first: Stage) -> Stage | None:
        """The signs of collapse, with generation 0's model ``first`` as reference; None where the recipe has none."""
        settings = self.recipe.evaluation.signs
        if settings is None:
            return None
        key = StageKey(
            "signs",
            10 * corpus_side.VERSION + model_side.VERSION,
            {
                "written": written.hash,
                "model": model.hash,
                "first": first.hash,
                "corpus": self.corpus.hash,
                **self._text(),
                "settings": settings.model_dump(mode="json"),
                "seed": self.recipe.seed,
            },
        )
        return self.steps.run(key, "look for signs of collapse", lambda _: self._signs(written, model, first, settings))

    def _signs(self, written: Stage, model: Stage, first: Stage, settings: SignsConfig) -> dict[str, Any]:
        started, seed = time.perf_counter(), self.recipe.seed
        table = data.read_corpus(written.path / "corpus")
        signs = Signs()
        if settings.corpus:
            blocks = self.corpus.blocks(self.corpus.train, self.recipe.training.block_size)[self.human]
            signs |= corpus_side.corpus_signs(
                table["generated_ids"], blocks, settings, seed=seed, all_human=self.corpus.train
            )
        if settings.model:
            signs |= self._model_signs(model, first, table, settings)
        values = {name: value for name, value in signs.values.items() if name != "perplexity"}  # evaluated before
        details = {"counts": signs.counts, "reasons": signs.reasons, "histograms": signs.histograms}
        return {**values, "evaluate_seconds": time.perf_counter() - started, DETAILS: {"signs": details}}

    def _model_signs(self, model: Stage, first: Stage, table: Any, settings: SignsConfig) -> Signs:
        held_out = self.corpus.blocks(self.corpus.held_out, self.recipe.training.block_size)
        return self.executor.score(
            model_side.model_signs,
            self.files(model),
            held_out,
            table,
            self.files(first),
            settings,
            human_bytes=model_side.count_target_bytes(held_out, self.corpus.decode, self.corpus.end_of_text),
            seed=self.recipe.seed,
            threads=self.executor.threads,
        )

    def compare(self, model: Stage, written: Stage, others: Mapping[str, Stage]) -> Stage:
        """A lineage's model and text against the text of the others, by their names."""
        key = {"model": model.hash, "written": written.hash, "others": {name: one.hash for name, one in others.items()}}
        sizes = {"batch_size": self.recipe.evaluation.batch_size, "threads": self.executor.threads}

        def compute(_: Path) -> dict[str, Any]:
            own, *theirs = (data.read_corpus(stage.path / "corpus") for stage in (written, *others.values()))
            return lineages.compared(
                own,
                dict(zip(others, theirs, strict=True)),
                lambda rows: self.executor.score(scoring.row_scores, self.files(model), rows, **sizes),
            )

        return self.steps.run(StageKey("compare", lineages.VERSION, key), "compare the lineages", compute)

    def check(self) -> None:
        """Raise :class:`UserError` where the KR-test's questions cannot be made from the corpus."""
        from fortifai_ray.evaluation.benchmarks.kr_fractions import divided_exam
        from fortifai_ray.evaluation.benchmarks.kr_questions import make_questions

        fractions = self._fractions()
        if fractions is not None:
            for exam in self._divided_exams:
                divided_exam(exam, fractions, self.recipe.seed)
        if self._made_exams:
            make_questions(self._held_in(self.human), self._made_exams[0].pairs, self.recipe.seed)

    @property
    def _made_exams(self) -> list[KrTest]:
        """The KR-tests whose questions are made from the corpus."""
        return [e for e in self.recipe.evaluation.benchmarks if isinstance(e, KrTest) and e.path is None]

    @property
    def _divided_exams(self) -> list[KrTest]:
        """The KR-tests that report on fractions."""
        return [e for e in self.recipe.evaluation.benchmarks if isinstance(e, KrTest) and e.fractions > 1]

    def _parts(self) -> list[np.ndarray]:
        """The blocks that each generation is the first to see, as many as the KR-tests ask for; none where all human
        text is generation 0's."""
        count = max((exam.fractions for exam in self._divided_exams), default=0)
        parts = [self.recipe.regime.fresh(self.supply, generation).items for generation in range(count)]
        return parts if count and len(parts[1]) else []

    def _fractions(self) -> "Fractions | None":
        from fortifai_ray.evaluation.benchmarks.kr_fractions import Fractions

        parts = self._parts()
        if not parts:
            return None
        replaced = not self.recipe.regime.kept(self.supply.budget)
        return Fractions([self._held_in(part) for part in parts], replaced)

    def _text(self) -> dict[str, Any]:
        """The identity of generation 0's training text, and of the fractions if they are asked for."""
        known = {"human": canonical_hash(self.human.tolist()), "block_size": self.recipe.training.block_size}
        parts = self._parts()
        return {**known, "fractions": canonical_hash([part.tolist() for part in parts])} if parts else known

    def _held_in(self, blocks: np.ndarray) -> Sequence[str]:
        from fortifai_ray.families.language.kr import held_in_texts

        corpus, size = self.corpus, self.recipe.training.block_size
        return held_in_texts(corpus.train, corpus.train_ends, blocks, size, corpus.decode)


def _benchmark_value(model: Path, name: str, settings: BenchmarksConfig, corpus: Path, **asked: Any) -> float:
    """One measure of the benchmarks; NaN where it could not be taken."""
    value = _benchmarks_of(model, settings, corpus, **asked).metrics().get(name)
    return math.nan if value is None else float(value)


def _benchmarks_of(
    model: Path,
    settings: BenchmarksConfig,
    corpus: Path,
    *,
    threads: int,
    held_in: Sequence[str],
    fractions: "Fractions | None",
    **place: int,
) -> "BenchmarkReport":
    """The benchmarks of a model that was trained on ``corpus``, in a process that may be on another node."""
    from fortifai_ray.evaluation.benchmarks.run import run_benchmarks

    tokenizer = corpus / "tokenizer"
    return run_benchmarks(
        model, settings, tokenizer=tokenizer, threads=threads, texts=lambda: held_in, fractions=fractions, **place
    )


def together(first: Stage, second: Stage) -> Stage:
    """Combine two stages that measured the same model: the first one's place, both outputs, seconds summed."""
    outputs = {**first.outputs, **second.outputs}
    outputs["evaluate_seconds"] = sum(float(stage.outputs.get("evaluate_seconds") or 0.0) for stage in (first, second))
    return replace(first, outputs=outputs, reused=first.reused and second.reused)
