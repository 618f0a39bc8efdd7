"""Part 5: the recursion itself: five generations of a Llama of 25M parameters, cross entropy against TCE.

The model is trained on all of the human text first, once. Then, as in ForTIFAI's scripts (Shabgahi et al. 2025), each
generation is trained on what the last one wrote and on a fresh fraction of the human text; it rewrites its own training
set, 32 tokens after each stretch of 128, by five beams with a repetition penalty of 3.0. All chains advance together, a
generation at a time, so that they can be compared wherever the time ends.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.llamas import make
from benchmarks.gpu.record import Record, device
from fortifai_ray.chain.recursion import Generation, recursion
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.families.fitting import read_report
from fortifai_ray.families.language import scoring
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig, TrainingConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.training import train_loop
from fortifai_ray.losses import CrossEntropy, Loss, TruncatedCrossEntropy
from fortifai_ray.recipe.executor import Workers
from fortifai_ray.recipe.family import Collapsed, Synthetic
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.recipe.regimes import Human, Incremental, Pool, TrainingSet
from fortifai_ray.seeds import derive_seed
from fortifai_ray.storage.store import StageStore

TEXT = Path(".gpu/text")  # a folder of .txt files, which scripts/gpu_check.sh fills; without it, Python's documentation
LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "tce 0.9": TruncatedCrossEntropy(gamma=0.9),
    "tce 0.5": TruncatedCrossEntropy(gamma=0.5),
}
SIZES: dict[str, dict[str, Any]] = {
    "real": {"model": "25M", "vocabulary": 12_288, "block": 128, "context": 128, "new": 32, "batch": 64,
             "epochs": 5, "first_epochs": 20, "beams": 5, "together": 1024, "generations": 5},
    "toy": {"model": "toy", "vocabulary": 512, "block": 16, "context": 8, "new": 8, "batch": 64,
            "epochs": 1, "first_epochs": 1, "beams": 2, "together": 64, "generations": 2},
}  # fmt: skip
COLLAPSED = 2.0  # times generation 0's perplexity under cross entropy


@dataclass(frozen=True)
class Done:
    """A step: see :class:`fortifai_ray.recipe.family.Step`; ``path`` holds a model."""

    hash: str
    path: Path
    outputs: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False


class Rewriting:
    """A :class:`fortifai_ray.recipe.family.Family` whose corpora stay in memory."""

    def __init__(self, recipe: Recipe, sizes: dict[str, Any], corpus: Corpus, base: Path, folder: Path) -> None:
        self._recipe, self._sizes, self._corpus, self._folder = recipe, sizes, corpus, folder
        self._base = Done("base", base)
        self._blocks = corpus.blocks(corpus.train, sizes["block"])
        self._written: dict[str, list[list[int]]] = {}
        self._text = np.zeros(0, dtype=np.int32)  # the training set of the generation at hand, in order

    def human(self) -> Human:
        size, count = self._sizes["block"], len(self._blocks)
        budget = int(count * self._recipe.regime.first_share(self._recipe.generations)) * size
        return Human(Pool("human", np.full(count, size), synthetic=False), np.arange(count), budget)

    def init(self, previous: Done | None, generation: int) -> Done:
        return previous or self._base

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Done, generation: int) -> Done:
        draws = sorted(data.draws, key=lambda draw: not draw.pool.synthetic)  # in the order of the source
        tokens = np.concatenate([self._tokens(draw.pool, draw.items) for draw in draws])
        self._text = tokens.ravel()
        output = self._folder / f"generation-{generation}"
        report = train(start_from.path, output, tokens, loss, self._sizes, self._sizes["epochs"], generation)
        if report["diverged"]:
            raise Collapsed(report["diverged"])
        return Done(str(output), output, report)

    def _tokens(self, pool: Pool, items: np.ndarray) -> np.ndarray:
        if not pool.synthetic:
            return np.asarray(self._blocks[items])
        rows = self._written[pool.stage]
        return self._corpus.blocks(np.array([t for i in items for t in rows[i]], np.int32), self._sizes["block"])

    def evaluate(self, model: Done, *, generation: int) -> Done:
        held_out = self._corpus.blocks(self._corpus.held_out, self._sizes["block"])
        return Done("scores", model.path, vars(scoring.perplexity(model.path, held_out, batch_size=64)))

    def generate(self, model: Done, size: float, *, generation: int) -> Synthetic[Done]:
        context, new = self._sizes["context"], self._sizes["new"]
        rows = min(int(size) // new, (len(self._text) - context) // new) or 1  # the last generation shows one
        prompts = [self._text[at : at + context].tolist() for at in range(0, rows * new, new)]
        engine = HuggingFaceEngine(
            EngineConfig(kind="huggingface", max_num_seqs=self._sizes["together"] * self._sizes["beams"]),
            gpu=device() == "cuda",
        )
        decoding = DecodingConfig(
            num_beams=self._sizes["beams"], repetition_penalty=3.0, max_new_tokens=new, context_tokens=context
        )
        engine.start(model.path)
        engine.load(model.path)
        started = time.perf_counter()
        written = engine.generate(prompts, list(range(rows)), decoding)
        seconds, stage = time.perf_counter() - started, f"{model.hash}/written"
        self._written[stage] = written
        texts = self._corpus.decode([prompts[0], written[0]])
        outputs = {"rows": rows, "generate_seconds": seconds, "prompt": texts[0], "written": texts[1]}
        return Synthetic(Done(stage, model.path, outputs), Pool(stage, np.array([*map(len, written)]), synthetic=True))

    def curate(
        self, written: Synthetic[Done], size: float, *, model: Done, verifier: Done, generation: int
    ) -> Synthetic[Done]:
        return written


def train(
    model: Path, output: Path, tokens: np.ndarray, loss: Loss, sizes: dict[str, Any], epochs: int, number: int
) -> dict[str, Any]:
    """Train ``model`` into ``output``, with this project's loop and without Ray; its report."""
    where = torch.device(device())
    output.mkdir(parents=True)
    first = number < 0
    settings = TrainingConfig(
        epochs=epochs,
        batch_size=sizes["batch"],
        block_size=sizes["block"],
        learning_rate=1e-3 if first else 2e-4,
        schedule="cosine" if first else "constant",
        warmup_ratio=0.05 if first else 0.0,
    )
    train_loop(
        Workers(0, 1, where, lambda network: network.to(where)),
        model=model,
        output=output,
        tokens=tokens,
        lengths=np.full(len(tokens), sizes["block"]),
        loss=loss,
        training=settings,
        order_seed=derive_seed(0, "order", number),
        end_of_text=None,
    )
    return read_report(output)


def measure(record: Record, scale: str) -> None:
    """A row per loss and generation."""
    sizes = SIZES[scale]
    record.note(sizes=sizes, collapsed_at=f"{COLLAPSED} times generation 0's perplexity under cross entropy")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        corpus = _corpus(folder, sizes, scale)
        record.note(text={"train_tokens": len(corpus.train), "held_out_tokens": len(corpus.held_out)})
        random, base = folder / "random", folder / "base"
        make(sizes["model"], longest=512).save_pretrained(random)
        tokens = np.asarray(corpus.blocks(corpus.train, sizes["block"]))
        report = train(random, base, tokens, CrossEntropy(), sizes, sizes["first_epochs"], -1)
        record.note(pretraining={name: report[name] for name in ("train_loss", "steps", "targets", "train_seconds")})
        chains = {}
        for name, loss in LOSSES.items():
            recipe = Recipe(family=None, regime=Incremental(), loss=loss, generations=sizes["generations"])
            family = Rewriting(recipe, sizes, corpus, base, folder / name)
            chains[name] = recursion(recipe, family, lambda _: False)
        for _ in range(sizes["generations"]):
            for name, chain in chains.items():
                generation = next(chain, None)
                if generation is not None:
                    record.add(loss=name, **_row(generation))
            record.goals(goals(record, sizes["generations"]))


def _corpus(folder: Path, sizes: dict[str, Any], scale: str) -> Corpus:
    """The real text where it is; else Python's documentation, of which the toy takes a little."""
    model, source = ModelConfig(preset="llama-tiny", vocab_size=sizes["vocabulary"]), {"path": str(TEXT)}
    if scale == "toy":
        from pydoc_data.topics import topics

        few = [topics[name] for name in sorted(topics)[:24]]
        (folder / "few.json").write_text(json.dumps([{"text": text[:600]} for text in few]))
        source = {"path": str(folder / "few.json")}
    elif not TEXT.is_dir():
        source = {"source": "pydoc"}
    return prepare_corpus(CorpusConfig(**source, order="sequential"), model, StageStore(str(folder / "store")))


def _row(generation: Generation[Done]) -> dict[str, Any]:
    model, scores, written = generation.model, generation.scores, generation.synthetic
    fitted = {} if model is None else model.outputs
    row = {"generation": generation.number, "collapsed": generation.collapse_reason}
    row |= {"synthetic_ratio": generation.data.synthetic_ratio}
    row |= {name: fitted.get(name) for name in ("train_loss", "kept_fraction", "targets", "train_seconds")}
    return (
        row
        | ({} if scores is None else dict(scores.outputs))
        | ({} if written is None else dict(written.stage.outputs))
    )


def goals(record: Record, generations: int) -> dict[str, bool | None]:
    """Every chain ran to its end; and TCE 0.9 ends below cross entropy's perplexity: None until both have ended."""
    last = {row["loss"]: row for row in record.rows if row["generation"] == generations - 1 or row["collapsed"]}
    ended = len(last) == len(LOSSES)
    both = {name: last[name].get("perplexity") for name in ("cross_entropy", "tce 0.9") if name in last}
    better = None if len(both) < 2 or None in both.values() else both["tce 0.9"] < both["cross_entropy"]
    return {
        f"{generations} generations under every loss": ended or None,
        "perplexity under TCE 0.9 ends below cross entropy's": better,
    }
