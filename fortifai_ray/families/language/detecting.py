"""How synthetic text is found: by its watermark, and by a classifier that generation 0's text trains, from the counts
of tokens and pairs of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.checkpoints import whole_model
from fortifai_ray.engines.pretrained import causal_config
from fortifai_ray.engines.watermark import GreenLists, WatermarkConfig
from fortifai_ray.errors import UserError
from fortifai_ray.families.curating import Written
from fortifai_ray.families.detector import VERSION, counts, decisions, draw_weights, fit, measures, probabilities
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.data import read_corpus
from fortifai_ray.recipe.curation import Detector, resampled
from fortifai_ray.recipe.pools import Human, TrainingSet
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey, canonical_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

_FEATURES = 1 << 16
_EXAMPLES = 20_000  # of each kind, at most
_FILE = "classifier.npz"


def z_scores(model: Path, rows: "pa.Table", watermark: WatermarkConfig, repeats: bool) -> np.ndarray:
    """(rows,) The z-scores of a corpus's rows; ``model`` is a folder of the model that wrote them."""
    lists = GreenLists(watermark, causal_config(whole_model(model)).get_text_config().vocab_size)
    return lists.z_scores(rows["prompt_ids"].to_pylist(), rows["generated_ids"].to_pylist(), repeats=repeats)


@dataclass(frozen=True, kw_only=True)
class Rows(Written):
    """The rows of a corpus, some of which may be marked.

    Attributes:
        find: the rows' z-scores, (n,), counting repeated phrases or not.
        is_marked: (n,) whether each row was written under the watermark.
    """

    find: "Callable[[bool], np.ndarray]"
    is_marked: "Callable[[], list[bool]]"

    def z_scores(self, repeats: bool) -> np.ndarray:
        return self.find(repeats)[None]

    def marked(self) -> np.ndarray:
        return np.array(self.is_marked(), dtype=bool)[None]


@dataclass(frozen=True)
class Detecting:
    """A chain's detector, and what it makes of a training set.

    Attributes:
        longest: tokens of a written row; human blocks are judged by as many.
        written: the corpus that generation 0 wrote.
    """

    step: Detector
    corpus: Corpus
    human: Human
    block_size: int
    longest: int
    written: Stage
    steps: Steps
    seed: int
    _read: dict[str, Any] = field(default_factory=dict)

    def resample(self, data: TrainingSet, folders: Mapping[str, Path], generation: int) -> tuple[TrainingSet, Stage]:
        """The training set that is drawn from ``data`` as a pool, and the stage that judged it.

        ``folders`` maps a pool's stage to the folder of its corpus.
        """
        key = {
            "classifier": self._classifier.hash,
            "pool": data.describe(),
            "curation": self.step.identity(),
            "seed": self.seed,
            "generation": generation,
        }
        judged = self.steps.run(
            StageKey("detect", VERSION, key), "judge the pool", lambda folder: self._judge(data, folders, folder)
        )
        weights = draw_weights(np.load(judged.path / "human.npy"), self.step.bias)
        return resampled(data, weights, generator(self.seed, "resample", generation)), judged

    @cached_property
    def _classifier(self) -> Stage:
        key = {
            "corpus": self.corpus.hash,
            "block_size": self.block_size,
            "human": canonical_hash(self.human.first.items.tolist()),
            "written": self.written.hash,
            "longest": self.longest,
        }
        return self.steps.run(StageKey("detector", VERSION, key), "train the detector", self._train)

    def _train(self, folder: Path) -> dict[str, Any]:
        items, rows = self.human.first.items[:_EXAMPLES], read_corpus(self.written.path / "corpus")[:_EXAMPLES]
        human, synthetic = self._blocks(items), _tokens(rows)
        found = fit(features([*human, *synthetic]), np.arange(len(human) + len(synthetic)) < len(human))
        arrays: dict[str, Any] = {**found, "items": items, "seeds": rows["seed"].to_numpy()}
        np.savez(folder / _FILE, **arrays)
        return {"examples": len(found["folds"])}

    def _blocks(self, items: np.ndarray) -> list[np.ndarray]:
        return list(self.corpus.blocks(self.corpus.train, self.block_size)[items][:, : self.longest])

    def _judge(self, data: TrainingSet, folders: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Write the probability of each item of the pool to be human, in the order of its draws."""
        with np.load(self._classifier.path / _FILE) as file:
            known = dict(file)
        count = len(known["items"])
        fold_of_item = dict(zip(known["items"].tolist(), known["folds"][:count].tolist(), strict=True))
        fold_of_seed = dict(zip(known["seeds"].tolist(), known["folds"][count:].tolist(), strict=True))
        parts = [np.zeros(0)]
        for draw in data.draws:
            if not draw.pool.synthetic:
                folds = [fold_of_item.get(item, -1) for item in draw.items.tolist()]
                parts.append(decisions(known, features(self._blocks(draw.items)), folds))
                continue
            rows = read_corpus(folders[draw.pool.stage]).take(draw.items)
            seeds = rows["seed"].to_pylist()
            found = decisions(known, features(_tokens(rows)), [fold_of_seed.get(seed, -1) for seed in seeds])
            parts.append(self._escaped(found, seeds, known["decisions"][:count]))
        truth = np.concatenate([np.full(len(draw.items), not draw.pool.synthetic) for draw in data.draws])
        human = probabilities(known, np.concatenate(parts))
        np.save(folder / "human.npy", human)
        return measures(human, truth)

    def _escaped(self, found: np.ndarray, seeds: Sequence[int], human: np.ndarray) -> np.ndarray:
        """The decisions on rows, those that escape replaced by decisions on human text: by each row's own seed."""
        return np.array(
            [
                human[derive_seed(seed, "rewritten") % len(human)]
                if derive_seed(seed, "escape") < self.step.escape * 2.0**63
                else own
                for own, seed in zip(found, seeds, strict=True)
            ]
        )


def check_examples(blocks: int, rows: int) -> None:
    """Raise :class:`UserError` for fewer than two human blocks and two rows: each fit leaves some out."""
    if min(blocks, rows) < 2:
        raise UserError(
            "curation.kind: a detector learns from two blocks of human text and two rows of generation 0 at least; it "
            f"has {blocks} and {rows}: a larger corpus.train_tokens, synthetic ratio or sample_texts is right"
        )


def _tokens(rows: "pa.Table") -> list[np.ndarray]:
    column = rows["generated_ids"].combine_chunks()
    return np.split(column.flatten().to_numpy(), np.cumsum(column.value_lengths().to_numpy())[:-1])


def features(texts: Sequence[np.ndarray]) -> Any:
    """What a classifier sees of texts, each given as its tokens (:func:`fortifai_ray.families.detector.counts`)."""
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    return counts(np.concatenate([np.zeros(0, np.int32), *texts]), owner, len(texts), _FEATURES)
