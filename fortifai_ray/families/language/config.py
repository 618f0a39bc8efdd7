"""A study file's settings of a language family: the model, its corpus, training and evaluation."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fortifai_ray.engines.gguf_files import opened
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.weight_files import check_folder
from fortifai_ray.evaluation.benchmarks.config import Benchmark, BenchmarksConfig
from fortifai_ray.evaluation.signs import SignsConfig
from fortifai_ray.families.fitting import FitConfig
from fortifai_ray.metrics import Metric
from fortifai_ray.validation import Section, shown

Pack = Literal["documents", "running"]
_PRESETS = Path(__file__).parent / "presets"  # a folder for each that is pretrained


class ModelConfig(Section):
    """Which causal LM: a preset, a Hugging Face folder or a GGUF file (``path``), or a hub name (``hub``)."""

    preset: Literal["llama-tiny", "llama-docs"] | None = Field(
        None,
        description="llama-tiny: an architecture, trained from random weights; llama-docs: the same with the sizes "
        "below, pretrained on the docstrings of Python packages (it comes with this one)",
    )
    vocab_size: int = Field(2048, ge=258, le=65536, description="of the preset's byte-level BPE tokenizer")
    hidden_size: int = Field(128, ge=32, le=4096, multiple_of=32, description="of the preset; its heads are 32 wide")
    layers: int = Field(4, ge=1, le=64, description="of the preset")
    path: str | None = Field(
        None, description="a checkpoint folder: config.json, *.safetensors and a tokenizer; or a GGUF file"
    )
    hub: str | None = Field(None, description="a name on the Hugging Face hub")
    revision: str | None = Field(None, description="of the hub's model: branch, tag or commit; null: its main branch")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("preset", "path", "hub") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of preset, path and hub (given: {', '.join(given) or 'none'})")
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision: it is of a hub's model, and {given[0]} has none: leave it out, or give hub")
        if self.path is not None:
            if not self.path.strip():
                raise ValueError("path: there is none here: give a checkpoint's folder, or a GGUF file")
            try:
                check_folder(opened(Path(self.path)))
            except WeightsError as error:
                hub = re.fullmatch(r"[\w.-]+/[\w.-]+", self.path) and not os.path.exists(self.path)
                hint = "; a model of the Hugging Face hub is named under hub" if hub else ""
                raise ValueError(f"{error}{hint}") from None
        return self

    @model_validator(mode="after")
    def _pretrained_as_it_is(self) -> Self:
        if self.preset is None or self.random:
            return self
        for name in ("vocab_size", "hidden_size", "layers"):
            size = type(self).model_fields[name].default
            if getattr(self, name) != size:
                raise ValueError(
                    f"{name}: {self.preset} is pretrained with {size}: leave it out, or take preset: llama-tiny"
                )
        return self

    @property
    def random(self) -> bool:
        """Whether it starts from random weights and trains a tokenizer of its own."""
        return self.preset == "llama-tiny"

    @property
    def folder(self) -> Path | None:
        """The folder of a model given by its path, which a GGUF file was made into, or of a pretrained preset."""
        if self.preset is not None:
            return None if self.random else _PRESETS / self.preset
        return None if self.path is None else opened(Path(self.path))

    @property
    def checkpoint(self) -> str:
        """The folder or hub name of a pretrained model: what it is loaded from."""
        place = self.folder or self.hub
        assert place is not None, "random weights have no checkpoint"
        return str(place)

    @property
    def name(self) -> str:
        """The model as the study names it."""
        return self.preset or self.path or str(self.hub)


class WrittenBy(Section):
    """A chain of a finished study, whose generated text of one generation is the corpus."""

    study: str = Field(description="its folder, STORAGE/NAME")
    generation: int = Field(0, ge=0, description="the one whose text is read")
    where: dict[str, Any] = Field({}, description="keys that select one chain, e.g. `{seed: 0}`")

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class ValidationConfig(Section):
    """Text that is held out instead of a share of the corpus."""

    path: str | None = Field(None, description="a file of text, or a folder of them, as `corpus.path`")
    split: str | None = Field(None, description="another split of the corpus's data set, e.g. validation")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.split is None):
            raise ValueError("give exactly one of path and split")
        if self.path is not None and not os.path.exists(self.path):
            raise ValueError(_missing(self.path))
        return self


class CorpusConfig(Section):
    """The human text, and the share of it that is held out.

    Whole documents are held out, by a fixed rule without a seed: every chain of a study is scored on the same blocks of
    text.
    """

    source: Literal["pydoc"] | None = Field(None, description="the documentation that comes with Python, in English")
    path: str | None = Field(None, description="a file of .txt, .jsonl, .json, .parquet or .arrow, or a folder of them")
    dataset: str | None = Field(None, description="a dataset of the Hugging Face hub")
    written_by: WrittenBy | None = Field(None, description="text that a chain of another study generated")
    name: str | None = Field(None, description="configuration of the dataset")
    split: str = Field("train", description="split of the dataset, also of one that was saved to a folder")
    text_column: str = Field("text", description="column of the text in JSON, tables and datasets; nested: `data.text`")
    held_out: float = Field(0.1, gt=0.0, lt=1.0, description="share of the text, where validation names no other")
    validation: ValidationConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # some recipes are older than the key
        description="the held-out text, where it is one of its own: `{path: FILE}` or `{split: validation}`; the whole "
        "corpus is then trained on",
    )
    train_tokens: int | None = Field(
        None, gt=0, description="generation 0's tokens, drawn by the recipe's seed; null: all that the regime leaves it"
    )
    order: Literal["permuted", "sequential"] = Field(
        "permuted",
        exclude_if=lambda value: value == "permuted",  # some recipes are older than the key
        description="in which the training text is used up. permuted: blocks in random order, by the recipe's seed; "
        "sequential: as it stands, so that the fraction of generation k is the k-th part of the text, for every seed "
        "(seeds then differ in initial weights, order of batches and sampling)",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = ("source", "path", "dataset", "written_by")
        given = [name for name in origins if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(origins)} (given: {', '.join(given) or 'none'})")
        if self.path is not None and not os.path.exists(self.path):  # False, too, where that cannot be known
            raise ValueError(_missing(self.path))
        if self.validation is not None and self.validation.split is not None and self.dataset is self.path is None:
            raise ValueError(f"validation.split: {given[0]} has no splits: give validation.path")
        return self

    @field_validator("path")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        if value is None or not value.startswith("~") or os.path.exists(value):
            return value
        try:
            return str(Path(value).expanduser())
        except RuntimeError:
            raise ValueError(f"there is no such home as in {value}; give the whole path") from None


def _missing(path: str) -> str:
    """What to say of a corpus's path to nothing: what it was taken for, and what would be right."""
    if not path.strip():
        return "there is no path here: give a text file, or a folder of them"
    hub = "a data set of the Hugging Face hub is named under corpus.dataset"
    if "://" in path:
        return f"there is no reading from an address ({path}): download it and give the file or its folder; {hub}"
    said = f"there is no {path} (looked for from {Path.cwd().name}/)"
    if any(sign in path for sign in "*?["):
        return f"{said}; patterns are not expanded: give the folder, of which all files are read"
    return f"{said}; {hub}" if re.fullmatch(r"[\w-]+(/[\w-]+)?", path) else said


class LoraConfig(Section):
    """Low-rank adapters over a frozen model (Hu et al., 2022), by PEFT: a layer of weight W is trained to compute
    W + (alpha / rank) BA."""

    rank: int = Field(16, ge=1, le=512, description="of the trained product BA")
    alpha: int = Field(32, ge=1, description="scale of that product")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="of an adapter's inputs, in training")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        ("q_proj", "v_proj"), description="names of the linear layers that are adapted; all-linear: all but the head"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _a_list_of_names(cls, value: Any) -> Any:
        if value == "all-linear":
            return value
        if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
            raise ValueError(f"all-linear, or a list of layers' names such as [q_proj, v_proj], not {shown(value)}")
        if "lm_head" in value:
            raise ValueError("lm_head: the output head stays as it is, for the fused loss and for vLLM: leave it out")
        return tuple(sorted(set(value)))  # their order changes nothing, not even a recipe's hash


class TrainingConfig(FitConfig):
    """How one generation is trained."""

    init: Literal["scratch", "base", "previous"] = Field(
        "previous",
        description="what a generation's training starts from. scratch: new random weights each generation, also of a "
        "pretrained model's architecture, whose own weights are not used then; base: the given model each time, a "
        "pretrained one's weights or llama-tiny's first random ones; previous: generation 0 as base, then the last "
        "generation's model trained further",
    )
    batch_size: int = Field(16, ge=1, description="blocks a step, over all workers")
    block_size: int = Field(128, ge=2, description="tokens a block")
    # At their defaults, the keys below do not enter a recipe's hash: some stages are older than they are.
    document_mask: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="the documents of a block do not see each other: attention and positions restart with each",
    )
    pack: Pack = Field(
        "documents",
        exclude_if=lambda value: value == "documents",
        description="how generated rows become blocks. documents: each row is ended by the end-of-text token; running: "
        "rows are joined as running text, in the order of what they continue, and what fills no block is left out",
    )
    retokenise: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="with pack: running, generated rows are read as text: decoded, joined and tokenised again, so that "
        "a corpus holds the tokens that a file of its text would give, each with the row in which it begins (ForTIFAI)",
    )
    gradient_accumulation: int = Field(
        1,
        ge=1,
        exclude_if=lambda value: value == 1,
        description="micro-batches into which a step's blocks are divided, to save memory: the same step",
    )
    short_steps: Literal["mean", "share"] = Field(
        "mean",
        exclude_if=lambda value: value == "mean",
        description="the last step of an epoch, which may have fewer blocks than batch_size. mean: the gradient of its "
        "mean loss, as in any other; share: that times its blocks over batch_size, as trainers have it that divide by "
        "the micro-batches of a whole step (PyTorch Lightning, so ForTIFAI)",
    )
    gradient_checkpointing: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="each layer's activations are recomputed in the backward pass instead of kept, to save memory",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        exclude_if=lambda value: value == "ddp",
        description="several workers (resources.train.workers) each hold the whole model (ddp) or a shard of it (fsdp)",
    )
    lora: LoraConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="train adapters over a frozen model; init: previous trains the last generation's adapter further",
    )

    keep: Literal["last", "best"] = Field(
        "last",
        exclude_if=lambda value: value == "last",
        description="which epoch's model is the generation's: the last one, or the best one by `keep_by`, the earlier "
        "of equals",
    )
    keep_by: str = Field(
        "perplexity",
        exclude_if=lambda value: value == "perplexity",
        description="the measure that chooses: held-out perplexity, or that of a benchmark, e.g. `kr_accuracy`; what "
        "chooses a model makes it look good, so judge collapse by another one",
    )

    @model_validator(mode="after")
    def _only_the_best_is_chosen(self) -> Self:
        if self.keep == "last" and self.keep_by != "perplexity":
            raise ValueError(
                f"keep_by: {self.keep_by} chooses the epoch with keep: best: give that, or leave it out "
                "(--set training.keep_by=perplexity where a file has it)"
            )
        return self

    @model_validator(mode="after")
    def _text_runs_on(self) -> Self:
        if self.retokenise and self.pack != "running":
            raise ValueError("retokenise: rows are joined as text with pack: running: give that, or leave it out")
        return self

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Self:
        if self.optimizer == "adafactor" and self.parallel == "fsdp":
            raise ValueError(
                "parallel: adafactor needs each weight's rows and columns, of which a shard has a part: take ddp, or "
                "optimizer: adamw"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_have_blocks(self) -> Self:
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation: {self.batch_size} blocks a step are too few for {self.gradient_accumulation} "
                "micro-batches; batch_size counts all of a step's blocks"
            )
        return self


class EvaluationConfig(Section):
    """How each generation's model is measured."""

    batch_size: int = Field(32, ge=1, description="texts that are scored or generated together")
    sample_texts: int = Field(4, ge=0, le=64, description="prompts whose continuations are kept as samples to read")
    signs: SignsConfig | None = Field(None, description="signs of collapse; `{}` for the usual ones, null for none")
    benchmarks: tuple[Benchmark, ...] = Field((), description="tasks that each generation's model is tested on")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _ = self.benchmark_settings  # raises where two entries have the same name
        return self

    @property
    def benchmark_settings(self) -> BenchmarksConfig:
        """The benchmarks as their runner takes them."""
        return BenchmarksConfig(benchmarks=self.benchmarks, batch_size=self.batch_size)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the chosen signs and benchmarks."""
        return (*self._sign_names(), *(name for entry in self.benchmarks for name in entry.columns))

    @property
    def declared(self) -> tuple[Metric, ...]:
        """The metrics of benchmarks that report under a name of their own."""
        return tuple(metric for entry in self.benchmarks for metric in entry.declared)

    def _sign_names(self) -> Iterator[str]:
        if self.signs is None:
            return
        from fortifai_ray.evaluation.signs import corpus, model

        for wanted, part in ((self.signs.corpus, corpus), (self.signs.model, model)):
            yield from (metric.name for metric in part.METRICS * wanted)
