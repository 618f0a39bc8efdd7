"""The recipe of a chain of causal language models: corpus, decoding, training, evaluation and engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, model_validator

from fortifai_ray import families
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.errors import UserError
from fortifai_ray.families import KEPT_FRACTION, MEAN_TARGET_PROBABILITY, TRAIN_LOSS
from fortifai_ray.families.language import lineages
from fortifai_ray.families.language.config import CorpusConfig, EvaluationConfig, ModelConfig, TrainingConfig
from fortifai_ray.families.language.judge_config import check_judges, located
from fortifai_ray.metrics import CORPUS, TRAINING, Metric, metric
from fortifai_ray.recipe.curation import Content, Detector, Watermark, measured, with_judges
from fortifai_ray.recipe.ecosystem import Writing
from fortifai_ray.recipe.recipe import Recipe, Unit
from fortifai_ray.storage.store import StageStore
from fortifai_ray.validation import Section, hint, mistake

PERPLEXITY = families.PERPLEXITY.name
KEPT_EPOCH = Metric(
    "kept_epoch",
    "epochs",
    "the epoch, from 0, whose model is the generation's, with training.keep: best",
    "fortifai_ray.families.language.keeping",
    group=TRAINING,
)
METRICS = (
    families.PERPLEXITY,
    TRAIN_LOSS,
    KEPT_FRACTION,
    MEAN_TARGET_PROBABILITY,
    Metric(
        "target_probability_median",
        "probability",
        "median probability of the training targets",
        "Shabgahi et al. 2025, ForTIFAI",
        direction="above",
        group=TRAINING,
    ),
    Metric(
        "prompt_overlap",
        "share of 4-grams",
        "share of the generated 4-grams that occur in the document of their prompt",
        "fortifai_ray.families.language.prompts",
        direction="above",
        group=CORPUS,
    ),
    Metric(
        "distinct_prompts",
        "prompts",
        "number of different prompts, by their tokens, from which the generation's rows were written",
        "fortifai_ray.families.language.prompts",
        group=CORPUS,
    ),
    Metric(
        "duplicate_rows",
        "rows",
        "number of generated rows that are copies of an earlier row of the generation",
        "fortifai_ray.families.language.prompts",
        direction="above",
        group=CORPUS,
    ),
    KEPT_EPOCH,
)


class LanguageConfig(Section):
    """The family of causal language models."""

    kind: Literal["language"] = "language"
    model: ModelConfig


_Located = TypeVar("_Located", bound=BaseModel)


def _absolute(part: _Located) -> _Located:
    """A part of a recipe with an absolute ``path``, if it has one."""
    path = getattr(part, "path", None)
    return part if path is None else part.model_copy(update={"path": str(Path(path).absolute())})


class LanguageRecipe(Recipe):
    """A chain of causal language models."""

    kinds: ClassVar[tuple[str, ...]] = ("language",)
    family_class: ClassVar[str] = "fortifai_ray.families.language.family:LanguageFamily"
    items: ClassVar[Content] = "texts"
    unit: ClassVar[Unit] = "tokens"
    uses_engines: ClassVar[bool] = True

    family: LanguageConfig
    corpus: CorpusConfig
    decoding: DecodingConfig = DecodingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _beams_need_their_engine(self) -> Self:
        if self.decoding.num_beams > 1 and self.engine.kind == "vllm":
            raise ValueError("decoding.num_beams: beam search runs on the Hugging Face engine: leave engine.kind out")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_detect(self) -> Self:
        check_judges(self.curation.steps)
        for step in self.curation.steps:
            if isinstance(step, Watermark) and self.decoding.watermark is None:
                wrong = "watermark looks for a mark that is not made: give decoding.watermark, e.g. {strength: 2.0}"
                raise mistake("recipe", "curation.kind", wrong, step.kind)
            if isinstance(step, Detector) and self.training.pack == "running":
                wrong = "a detector draws rows at random, and running text has an order: leave training.pack out"
                raise mistake("recipe", "curation.kind", wrong, step.kind)
        return self

    @model_validator(mode="after")
    def _a_measure_chooses(self) -> Self:
        chooses = self.training.keep_by
        known = [PERPLEXITY, *(name for entry in self.evaluation.benchmarks for name in entry.columns)]
        known = [name for name in known if self.direction_of(name) is not None]
        if self.training.keep == "best" and chooses not in known:
            raise ValueError(
                f"training.keep_by: {chooses} is not measured of a model"
                + hint(chooses, known, "; a benchmark's measure needs the benchmark in evaluation.benchmarks")
            )
        return self

    @model_validator(mode="after")
    def _adapters_need_their_model(self) -> Self:
        if self.engine.lora_rank is not None:
            raise ValueError("engine.lora_rank: it is that of training.lora: leave it out")
        if self.training.lora is not None and self.training.init == "scratch":
            raise ValueError(
                "training.init: scratch with training.lora would adapt new random weights each generation, which "
                "learns next to nothing: base or previous is right, or leave lora out"
            )
        return self

    def direction_of(self, name: str) -> str | None:
        """The side to which collapse moves a measure of this recipe's."""
        return next((each.direction for each in self.declared if each.name == name), metric(name).direction)

    @property
    def writer(self) -> EngineConfig:
        """The engine that generates: its kind resolved, and ready for adapters where the recipe trains them."""
        kind, _ = self._engine
        lora = self.training.lora if kind == "vllm" else None
        return self.engine.model_copy(update={"kind": kind, "lora_rank": None if lora is None else lora.rank})

    @property
    def _engine(self) -> tuple[str, str]:
        """The kind of engine that generates, and why."""
        if self.decoding.num_beams > 1:
            return "huggingface", "decoding.num_beams"
        if self.engine.kind != "auto":
            return self.engine.kind, "engine.kind"
        from fortifai_ray.families.language.network import engine_for

        return engine_for(self.family.model, adapters=self.training.lora is not None)

    @property
    def notices(self) -> tuple[str, ...]:
        from fortifai_ray.families.language.network import engine_refusal

        kind, why = self._engine
        refused = engine_refusal(self.family.model, adapters=self.training.lora is not None)
        said = list[str]()
        if kind == "huggingface" and why == refused:
            said.append(f"{self.family.model.name} generates on the Hugging Face engine: {why}")
        if self.training.init == "scratch" and not self.family.model.random:
            said.append(
                f"training.init: scratch begins each generation with new random weights of the architecture of "
                f"{self.family.model.name}, whose own are not used; base begins with those"
            )
        across = self.decoding.context_tokens > self.training.block_size or self.decoding.prompts == "training_set"
        if across and self.corpus.order == "permuted":
            said.append(
                "decoding: contexts reach over blocks that are no neighbours in the text, since corpus.order is "
                "permuted; sequential keeps them so"
            )
        if self.training.keep == "best":
            said.append(
                f"training.keep: each generation keeps the epoch with the best {self.training.keep_by}, which is then "
                "too good as a measure of the generation"
            )
        return tuple(said)

    def flattery(self, metric: str) -> str | None:
        chooses = self.training.keep_by
        if self.training.keep == "last":
            return None
        if metric == chooses:
            return "it chooses each generation's epoch (training.keep_by)"
        asked = (entry.columns for entry in self.evaluation.benchmarks)
        if any({metric, chooses} <= set(columns) for columns in asked):
            return f"{chooses} chooses each generation's epoch (training.keep_by) by the same questions"
        from fortifai_ray.evaluation.signs.model import ON_HUMAN

        if chooses == PERPLEXITY and metric in ON_HUMAN:
            return f"{chooses} chooses each generation's epoch (training.keep_by) by the same held-out text"
        return None

    @property
    def metrics(self) -> tuple[str, ...]:
        own = [each for each in METRICS if each is not KEPT_EPOCH or self.training.keep == "best"]
        curation = measured(self.curation.steps, truth=False)
        return (*(each.name for each in (*own, *self.loss.metrics)), *self.evaluation.metrics, *curation)

    @property
    def compared(self) -> tuple[str, ...]:
        return tuple(each.name for each in lineages.METRICS)

    @property
    def declared(self) -> tuple[Metric, ...]:
        return self.evaluation.declared

    def located(self) -> Self:
        family = self.family.model_copy(update={"model": _absolute(self.family.model)})
        benchmarks = tuple(_absolute(entry) for entry in self.evaluation.benchmarks)
        evaluation = self.evaluation.model_copy(update={"benchmarks": benchmarks})
        curation = with_judges(self.curation, located)
        return self.model_copy(update={"family": family, "evaluation": evaluation, "curation": curation})

    @property
    def shared_input(self) -> Any:
        return (self.corpus, self.family.model)

    def prepare(self, store: StageStore, source: str) -> str:
        """Tokenise the corpus; returns its stage's hash."""
        from fortifai_ray.families.language.corpus import prepare_corpus

        try:
            return prepare_corpus(self.corpus, self.family.model, store).hash
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def engine_start(self, prepared: str | None, store: StageStore, folder: Path) -> EngineConfig | None:
        """vLLM's or transformers' engine; the model's ``config.json`` is what it starts from."""
        from fortifai_ray.families.language.corpus import open_corpus
        from fortifai_ray.families.language.models import write_config

        assert prepared is not None, "a language chain needs its corpus"
        write_config(self.family.model, open_corpus(prepared, store), folder)
        return self.writer

    def check(self, prepared: str | None, store: StageStore, source: str) -> None:
        from fortifai_ray.evaluation.benchmarks.tasks import check_files
        from fortifai_ray.families.language.judges import check_curation
        from fortifai_ray.families.language.models import context_length

        family = self._unrun(prepared, store)
        size, batch, human = self.training.block_size, self.training.batch_size, family.human()
        blocks, held_out = len(human.first.items), len(family.corpus.held_out)
        if blocks < batch:
            raise UserError(
                f"{source}: corpus: {blocks * size} training tokens are too few for one batch of "
                f"{batch} blocks of {size}; a longer text or a smaller training.batch_size is needed"
            )
        if held_out < size:
            own = self.corpus.validation
            key = "held_out" if own is None else "validation.path" if own.path else "validation.split"
            raise UserError(
                f"{source}: corpus.{key}: {held_out} held-out tokens are less than one block "
                f"of {size}; hold out more text or make training.block_size smaller"
            )
        needed = self.regime.human_needed(human.budget, self.generations)
        if needed > len(human.order) * size:
            raise UserError(
                f"{source}: regime: {self.regime.kind} uses {needed:.0f} tokens of human text in {self.generations} "
                f"generations, and the corpus has {len(human.order) * size}; a smaller corpus.train_tokens, fewer "
                "generations or a longer text is needed"
            )
        self._check_model(family.corpus, source)
        try:
            check_files(self.evaluation.benchmarks, context_length(self.family.model))
            family.measures.check()
        except UserError as error:
            raise UserError(f"{source}: evaluation.benchmarks: {error}") from None
        try:
            check_curation(self.curation.steps, self.decoding)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        self.try_code(lambda n: self._human_texts(family, n), source)
        self._check_lengths(source)
        self._check_training(source)

    def _human_texts(self, family: Any, count: int) -> list[str]:
        """The beginnings of so many blocks of human text, as long as a row."""
        blocks = family.corpus.blocks(family.corpus.train, self.training.block_size)[family.human().first.items[:count]]
        return list(family.corpus.decode(blocks[:, : self.decoding.max_new_tokens].tolist()))

    def describe(self, prepared: str | None, store: StageStore) -> tuple[str, ...]:
        from fortifai_ray.families.language.corpus import describe_corpus, open_corpus
        from fortifai_ray.families.language.models import describe_ends, describe_files
        from fortifai_ray.families.language.network import describe_model

        assert prepared is not None, "a language chain needs its corpus"
        corpus = open_corpus(prepared, store)
        ends = (*describe_ends(self.family.model, corpus), *describe_files(self.family.model, corpus))
        model = describe_model(self.family.model, self.training, self._engine)
        return (*describe_corpus(self.corpus, prepared, store), *ends, *model)

    def needs(self, prepared: str | None, store: StageStore) -> Sequence[float]:
        human, last = self._unrun(prepared, store).human(), self.generations - 1
        return [*(self.regime.synthetic_size(human.at(g + 1), g) for g in range(last)), 0.0]

    def check_writing(self, writing: Writing, prepared: str | None, store: StageStore, source: str) -> tuple[str, ...]:
        family = self._unrun(prepared, store)
        try:
            family.check_prompts(writing)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        copied = family.copied_prompts(writing) if self.decoding.deterministic else None
        return (copied,) if copied else ()

    def _unrun(self, prepared: str | None, store: StageStore) -> Any:
        """Its family, for what is known of it before anything is computed."""
        from fortifai_ray.engines.in_process import InProcess
        from fortifai_ray.storage.steps import Steps

        return self.build(prepared, Steps(store), InProcess())

    def check_resources(self, engine_gpus: float, source: str) -> None:
        """Raise :class:`UserError` where the model cannot be spread over ``engine_gpus`` GPUs of an engine."""
        from fortifai_ray.engines.vllm_engine import check_spread
        from fortifai_ray.families.language.models import known_config

        self._check_engine(engine_gpus, source)
        if engine_gpus <= 1:
            return
        if self.writer.kind == "huggingface":
            raise UserError(
                f"{source}: resources.engines.gpus: {engine_gpus:g} GPUs are for vLLM, and this study's engines are "
                "transformers', which run on one; at most 1 is right"
            )
        try:
            check_spread(known_config(self.family.model) or {}, int(engine_gpus))
        except ValueError as error:
            raise UserError(f"{source}: resources.engines.gpus: {error}") from None

    def _check_model(self, corpus: Any, source: str) -> None:
        from fortifai_ray.families.language.models import check_model

        try:
            check_model(self.family.model, corpus)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def _check_engine(self, engine_gpus: float, source: str) -> None:
        from fortifai_ray.families.language.network import engine_refusal

        if self._engine != ("vllm", "engine.kind"):
            return
        refused = engine_refusal(self.family.model, adapters=self.training.lora is not None, gpu=engine_gpus > 0)
        if refused:
            raise UserError(
                f"{source}: engine.kind: vllm does not serve {self.family.model.name}: {refused}; huggingface is "
                "right, or leave it out"
            )

    def _check_training(self, source: str) -> None:
        from fortifai_ray.families.language.network import check_training

        try:
            check_training(self.family.model, self.training)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def _check_lengths(self, source: str) -> None:
        from fortifai_ray.engines.vllm_engine import LONGEST_BY_DEFAULT
        from fortifai_ray.families.language.models import context_length

        size = self.training.block_size
        longest = context_length(self.family.model)
        row = self.decoding.context_tokens + self.decoding.max_new_tokens
        if longest is not None and max(row, size) > longest:
            key = "decoding.max_new_tokens" if row > longest else "training.block_size"
            key = "decoding.context_tokens" if self.decoding.context_tokens > longest else key
            raise UserError(
                f"{source}: {key}: rows of {max(row, size)} tokens do not fit the model's context of {longest}; "
                "context_tokens + max_new_tokens, and block_size, may be as much"
            )
        sized = self.writer.max_model_len or (longest if self.writer.kind == "huggingface" else LONGEST_BY_DEFAULT)
        if sized is not None and row > sized:
            raise UserError(
                f"{source}: engine.max_model_len: rows of {row} tokens (context_tokens + max_new_tokens) do not fit an "
                f"engine sized for {sized}; {row} is right, if the model takes as many"
            )
