"""The language family's steps: fit, perplexity on held-out text, corpora by engines, and curation."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from fortifai_ray.engines.checkpoints import AdapterFiles
from fortifai_ray.engines.corpus import Request
from fortifai_ray.families.curating import Planned, curate_steps
from fortifai_ray.families.fitting import check_finished, fit_step, synthetic_folders
from fortifai_ray.families.language import data, detecting, judges, lineages, models, prompts, scoring, training
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import Pack
from fortifai_ray.families.language.corpus import Corpus, open_corpus
from fortifai_ray.families.language.measures import Measures, together
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.losses import Loss
from fortifai_ray.recipe.curation import By, Detector, Judge, blocks, of_pool, of_written
from fortifai_ray.recipe.ecosystem import Writing
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.family import Collapsed, Others, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.steps import WAITING, Steps
from fortifai_ray.storage.store import Stage, StageFiles, StageKey, canonical_hash

_TYPICAL_BLOCKS = 128  # human blocks whose median score defines what is typical
GENERATION_VERSION = 1  # bump when the same model and prompts give other text


class LanguageFamily:
    """One chain's causal LM, its corpus and its engines."""

    def __init__(self, recipe: LanguageRecipe, corpus: Corpus, steps: Steps, executor: Executor) -> None:
        self._recipe, self.corpus, self._steps, self._executor = recipe, corpus, steps, executor
        self._block_size = recipe.training.block_size
        self._first: Stage | None = None  # generation 0's model, the reference for later corpora
        self._base: Stage | None = None  # the starting model, to which adapters belong
        self._data = TrainingSet(())  # of the generation that was fitted last
        self._written: Stage | None = None  # by generation 0

    @classmethod
    def of(cls, recipe: LanguageRecipe, prepared: str, steps: Steps, executor: Executor) -> Self:
        """The family of a chain whose corpus is the stage ``prepared``."""
        return cls(recipe, open_corpus(prepared, steps.store), steps, executor)

    @cached_property
    def _human(self) -> Human:
        size = self._block_size
        blocks = len(self.corpus.train) // size
        pool = Pool(f"{self.corpus.hash}/{size}", np.full(blocks, size), synthetic=False)
        order = np.arange(blocks)  # held-out documents are not in it, so that a fraction is one stretch of the text
        if self._recipe.corpus.order == "permuted":
            order = generator(self._recipe.seed, "human").permutation(blocks)
        return Human(pool, order, self._budget(blocks) * size)

    def _budget(self, blocks: int) -> int:
        """Number of blocks of generation 0: the configured one, or all but the regime's later needs."""
        budget = self._recipe.corpus.train_tokens
        if budget is not None:
            return min(blocks, max(1, budget // self._block_size))
        return int(blocks * self._recipe.regime.first_share(self._recipe.generations))

    def human(self) -> Human:
        """Blocks of the human training text, in the order of ``corpus.order``."""
        return self._human

    def init(self, previous: Stage | None, generation: int) -> Stage:
        """The starting model: the previous generation's, or a stage of random weights or of the checkpoint's."""
        init = self._recipe.training.init
        if previous is not None and init == "previous":
            return previous
        model = self._recipe.family.model
        scratch = init == "scratch"
        identity = models.model_identity(model, scratch=scratch)
        inputs: dict[str, Any] = {"model": identity, "corpus": self.corpus.hash}
        seed = 0
        if model.random or scratch:
            seed = derive_seed(self._recipe.seed, "init", generation if scratch else 0)
            inputs["seed"] = seed
        key = StageKey("model", models.VERSION, inputs)

        def compute(folder: Path) -> dict[str, Any]:
            models.create_model(model, self.corpus, seed, folder, scratch=scratch)
            return {}

        self._base = self._steps.run(key, "create the starting model", compute)
        return self._base

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Stage, generation: int) -> Stage:
        """Train; the stage is a Hugging Face folder, and its outputs are a :class:`training.TrainingReport`.

        With ``training.lora`` the folder holds an adapter and names its model's stage, which is beside it.
        """
        settings, end_of_text = self._recipe.training, self.corpus.end_of_text
        self._data = self._check_length(data)
        order_seed = derive_seed(self._recipe.seed, "order", generation)
        best = settings.keep == "best"
        chosen = {"chosen": self.measures.chooses(generation)} if best else {}

        def train(folder: Path) -> training.TrainingReport:
            files, blocks = self._files(start_from), self._blocks(data)
            return training.train(
                self._executor,
                files,
                folder,
                blocks,
                loss,
                settings,
                order_seed,
                end_of_text=end_of_text,
                measure=self.measures.measure(generation) if best else None,
            )

        stage = fit_step(
            self._steps,
            training.version(loss),
            data,
            loss,
            settings,
            start_from=start_from,
            generation=generation,
            inputs={"corpus": self.corpus.hash, "order_seed": order_seed, **chosen},
            train=train,
        )
        if settings.lora is not None:
            stage = self._beside_base(stage)
        if generation == 0:
            self._first = stage
        return check_finished(stage)

    def resample(self, data: TrainingSet, *, generation: int) -> tuple[TrainingSet, Stage]:
        """What the curation's detector makes of a training set, a pool whose origins nobody knows."""
        return self._detecting.resample(data, self._folders(data), generation)

    @cached_property
    def _detecting(self) -> detecting.Detecting:
        step, longest = of_pool(self._recipe.curation.steps), self._recipe.decoding.max_new_tokens
        assert isinstance(step, Detector)
        assert self._written is not None, "generation 0 has written before there is a pool"
        return detecting.Detecting(
            step, self.corpus, self._human, self._block_size, longest, self._written, self._steps, self._recipe.seed
        )

    def _check_length(self, training_set: TrainingSet) -> TrainingSet:
        """``training_set``; raises :class:`Collapsed` where its rows fill no block, or are too short for a prompt."""
        pack, size, context = self._pack, self._block_size, self._recipe.decoding.context_tokens
        if training_set.draws and pack == "running" and all(draw.size < size for draw in training_set.draws):
            raise Collapsed(f"the running text of the training set is shorter than a block of {size} tokens")
        own = self._recipe.decoding.prompts == "training_set"
        if training_set.draws and own and prompts.text_length(training_set, pack) < context:
            raise Collapsed(f"the training set is shorter than a context of {context} tokens")
        return training_set

    @property
    def _pack(self) -> Pack:
        return self._recipe.training.pack

    def _beside_base(self, adapter: Stage) -> Stage:
        """The stage of an adapter, whose files are fetched together with those of its model."""
        return replace(adapter, where=lambda: self._files(adapter).path)

    def _files(self, model: Stage) -> StageFiles:
        """The files of a model, for a worker or an engine that may run on another node."""
        files = self._steps.files(model)
        if self._recipe.training.lora is None:
            return files
        assert self._base is not None, "a chain begins with its starting model"
        base = self._steps.files(self._base)
        return files if model.hash == self._base.hash else AdapterFiles(model, files.storage, base)

    def _blocks(self, training_set: TrainingSet) -> Blocks:
        return data.fetch_blocks(training_set, self.corpus, self._folders(training_set), self._block_size, self._pack)

    def _folders(self, training_set: TrainingSet) -> dict[str, Path]:
        return {stage: path / "corpus" for stage, path in synthetic_folders(training_set, self._steps).items()}

    def evaluate(self, model: Stage, *, generation: int) -> Stage:
        """Perplexity on held-out human text, and the benchmarks: a stage each, combined into one."""
        perplexity = self._perplexity(model)
        if not self._recipe.evaluation.benchmarks:
            return perplexity
        return together(perplexity, self.measures.benchmarks(model, generation))

    @cached_property
    def measures(self) -> Measures:
        """The measures of its generations beside perplexity."""
        human = self._human.first.items
        return Measures(self._recipe, self.corpus, human, self._human, self._steps, self._executor, self._files)

    def _perplexity(self, model: Stage) -> Stage:
        """Perplexity per token of the held-out human text, in the same blocks for every chain of a study."""
        blocks = self.corpus.blocks(self.corpus.held_out, self._block_size)
        key = StageKey(
            "evaluate",
            scoring.PERPLEXITY_VERSION,
            {"model": model.hash, "corpus": self.corpus.hash, "block_size": self._block_size},
        )

        def compute(_: Path) -> dict[str, Any]:
            sizes = {"batch_size": self._recipe.evaluation.batch_size, "threads": self._executor.threads}
            report = asdict(self._executor.score(scoring.perplexity, self._files(model), blocks, **sizes))
            if not math.isfinite(report["perplexity"]):  # JSON has no infinity
                report |= {"perplexity": None, "not_finite": str(report["perplexity"])}
            return report

        stage = self._steps.run(key, "evaluate", compute)
        if stage.outputs["perplexity"] is None:
            raise Collapsed(f"the held-out perplexity is {stage.outputs['not_finite']}")
        return stage

    def generate(self, model: Stage, size: float, *, generation: int) -> Synthetic[Stage]:
        """Continuations of contexts by the warm engines; at least ``evaluation.sample_texts`` of them."""
        recipe, decoding, engine = self._recipe, self._recipe.decoding, self._recipe.writer
        drawn = self._prompts(self._data, self._rows(size), generation)
        rows = len(drawn)
        key = StageKey(
            "generate",
            GENERATION_VERSION,
            {
                "model": model.hash,
                "corpus": self.corpus.hash,
                "human": canonical_hash(self._human.first.items.tolist()),
                "block_size": self._block_size,
                "decoding": decoding.model_dump(mode="json"),
                "engine": engine.model_dump(mode="json"),
                "seed": self._recipe.seed,
                "generation": generation,
                "rows": rows,
                **drawn.identity,
                **({"retokenise": True} if recipe.training.retokenise else {}),
            },
        )
        stage = self._steps.run(
            key, f"generate {rows} rows", lambda folder: self._write(folder, model, generation, drawn)
        )
        self._written = self._written or stage
        assert self._first is not None, "generation 0 is fitted before anything is generated"
        signs = self.measures.signs(stage, model, self._first)
        return Synthetic(stage, self._pool(stage), () if signs is None else (signs,))

    @property
    def compared(self) -> float:
        return float(lineages.ROWS * self._recipe.decoding.max_new_tokens)

    def compare(self, model: Stage, written: Synthetic[Stage], others: Others[Stage]) -> Stage:
        """The model and its text against the other lineages' text."""
        return self.measures.compare(model, written.stage, {name: one.stage for name, (_, one) in others.items()})

    def _rows(self, size: float) -> int:
        rows = max(
            math.ceil(size / self._recipe.decoding.max_new_tokens),
            self._recipe.evaluation.sample_texts,
            self._sign_rows(),
            1,  # in a chain's last generation, of which nothing else is asked: no corpus is without rows
        )
        return math.ceil(rows / self._of_each_prompt) * self._of_each_prompt

    @property
    def _of_each_prompt(self) -> int:
        """Rows that continue one prompt, of which curation chooses."""
        return max(blocks(self._recipe.curation.steps), default=1)

    def _prompts(self, training_set: TrainingSet, rows: int, generation: int) -> prompts.Prompts:
        """The prompts of ``rows`` rows of a generation that was trained on ``training_set``."""
        recipe, each = self._recipe, self._of_each_prompt
        rows //= each
        if recipe.decoding.prompts == "training_set":
            drawn = prompts.from_training_set(training_set, rows, recipe.seed, generation, recipe.decoding, self._pack)
        else:
            first = TrainingSet((self._human.first,))
            drawn = prompts.from_human(first, rows, recipe.seed, recipe.decoding, self._block_size, self._pack)
        return drawn.repeated(each)

    def _asked_rows(self, writing: Writing, generation: int) -> int:
        """The rows of a generation, as the recursion asks for them."""
        size = self._recipe.curation.to_generate(writing.asked[generation])
        return self._rows(max(size, self.compared if writing.beside else 0.0))

    def check_prompts(self, writing: Writing) -> None:
        """Raise :class:`UserError` where the prompts of a generation do not suffice (:func:`prompts.check`). Where they
        are those of its training set, that is what it will be, each row whole."""
        recipe, human, decoding = self._recipe, self._human, self._recipe.decoding
        pools, length, different, step = list[Pool](), human.first.size, 0, decoding.max_new_tokens
        if decoding.prompts == "human" and decoding.deterministic and length >= decoding.context_tokens:
            different = prompts.different_in_human(self.corpus, human.first, decoding.context_tokens, self._block_size)
        for generation, needed in enumerate(writing.needs):
            rows = self._asked_rows(writing, generation)
            if generation == 0 and of_pool(recipe.curation.steps):
                detecting.check_examples(len(human.first.items), rows)
            if decoding.prompts == "training_set":
                at = 0 if writing.frozen else generation
                own = recipe.regime.training_set(human, pools, at, (recipe.seed,))
                length = prompts.text_length(own, self._pack)
                if decoding.deterministic and self._pack == "documents":
                    context, size = decoding.context_tokens, self._block_size
                    different = prompts.different_in_training_set(self.corpus, own, context, size, self._pack)
                written = math.inf if writing.beside else len(self._prompts(own, rows, generation))
                kept = np.full(int(min(written, math.ceil(needed / step))), step)
                pools.append(Pool(f"generation {generation}", kept, synthetic=True))
            prompts.check(length, rows // self._of_each_prompt, different, generation, decoding, self._pack)

    def copied_prompts(self, writing: Writing) -> str | None:
        """What is to be said of generation 0's rows that will be copies (:func:`prompts.copies`)."""
        recipe, first = self._recipe, TrainingSet((self._human.first,))
        drawn = self._prompts(first, self._asked_rows(writing, 0), 0)
        text = prompts.Text.of(first, self.corpus, {}, self._block_size, self._pack)
        return prompts.copies(text, drawn, recipe.decoding)

    def _sign_rows(self) -> int:
        """Rows that the signs of collapse need, in the last generation too, after which nothing is trained."""
        signs = self._recipe.evaluation.signs
        tokens = 0 if signs is None else min(signs.tokens, self._human.first.size)
        return math.ceil(tokens / self._recipe.decoding.max_new_tokens)

    def curate(
        self, written: Synthetic[Stage], size: float, *, model: Stage, verifier: Stage, generation: int
    ) -> Synthetic[Stage]:
        """The rows that each step lets pass, by log-likelihood per generated token, as corpora of their own."""
        return curate_steps(
            self._steps,
            scoring.CURATION_VERSION,
            of_written(self._recipe.curation.steps),
            written,
            size,
            model=model,
            verifier=verifier,
            generation=generation,
            inputs=lambda step, needed: {
                "human": canonical_hash(self._human.first.items.tolist()),
                "block_size": self._block_size,
                **judges.identity(step, self.corpus, self._steps),
            },
            choose=self._choose,
            pool=self._pool,
        )

    def _choose(self, planned: Planned, folder: Path) -> dict[str, Any]:
        started, table = time.perf_counter(), data.read_corpus(planned.corpus.path / "corpus")
        human = self.corpus.blocks(self.corpus.train, self._block_size)[self._human.first.items[:_TYPICAL_BLOCKS]]
        known, mark, score = planned.models, self._recipe.decoding.watermark, self._executor.score
        items = detecting.Rows(
            places=table["row"].to_numpy()[None],
            content=lambda: self.corpus.decode(table["generated_ids"].to_pylist()),
            score=lambda by: self._score(by, table, known),
            score_human=lambda by: self._score(by, human, known),
            seed=self._recipe.seed,
            generation=planned.generation,
            number=planned.number,
            find=lambda repeats: score(detecting.z_scores, self._files(known["own"]), table, mark, repeats),
            is_marked=lambda: [mark is not None and mark.marks(seed) for seed in table["seed"].to_pylist()],
        )
        kept, outputs = planned.choose(items, math.ceil(planned.step.share * len(table)), folder)
        data.write_corpus(table.take(kept), folder / "corpus")
        return {"curated_rows": len(kept), **outputs, "generate_seconds": time.perf_counter() - started}

    def _score(self, by: By, text: Any, models: Mapping[Any, Stage]) -> np.ndarray:
        """Log-likelihood per token of rows (a table) or of human blocks (an array) under a model."""
        size, executor = self._recipe.evaluation.batch_size, self._executor
        if isinstance(by, Judge):
            return judges.score(by, text, self.corpus, self._steps, executor, size)
        function = scoring.block_scores if isinstance(text, np.ndarray) else scoring.row_scores
        return executor.score(function, self._files(models[by]), text, batch_size=size, threads=executor.threads)

    def _pool(self, stage: Stage) -> Pool:
        return Pool(stage.hash, np.asarray(data.read_generated(stage.path / "corpus").value_lengths()), synthetic=True)

    def _write(self, folder: Path, model: Stage, generation: int, drawn: prompts.Prompts) -> dict[str, Any]:
        recipe, size = self._recipe, self._block_size
        text = prompts.Text.of(drawn.source, self.corpus, self._folders(drawn.source), size, self._pack)
        table = text.table(drawn, recipe.seed, generation, recipe.decoding.context_tokens)
        report = self._executor.write(
            Request(self._files(model), model.hash, recipe.decoding, recipe.writer),
            table,
            folder / "corpus",
            on_wait=lambda stall: self._steps.announce(f"{WAITING} for an engine ({stall})"),
        )
        generated = data.read_generated(folder / "corpus")
        if recipe.training.retokenise:
            data.retokenise(folder / "corpus", self.corpus)
        few = len(drawn) <= recipe.evaluation.sample_texts  # too few rows to measure anything
        overlap = prompts.prompt_overlap(self.corpus, text.blocks_of(drawn.starts), generated, size)
        return {
            "rows": report.rows,
            "generated_tokens": report.generated_tokens,
            "generate_seconds": report.seconds,
            "prompt_overlap": None if few or math.isnan(overlap) else overlap,
            "distinct_prompts": prompts.distinct(table["prompt_ids"].combine_chunks()),
            "duplicate_rows": report.rows - prompts.distinct(generated),
        }

    def samples(self, synthetic: Synthetic[Stage]) -> list[dict[str, Any]]:
        """The first rows of a synthetic corpus as text: row, prompt_text, generated_text."""
        return data.as_text(synthetic.stage.path / "corpus", self.corpus, self._recipe.evaluation.sample_texts)
