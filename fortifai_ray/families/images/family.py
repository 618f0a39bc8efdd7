"""The steps of a VAE's or a diffusion model's chain: fit, scores, samples with their pictures, and curation."""

import io
import math
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from fortifai_ray.families import LINEAGE_DISTANCE
from fortifai_ray.families.analytic.base import sliced_distance
from fortifai_ray.families.curating import Planned, Written, curate_steps
from fortifai_ray.families.fitting import FitReport, check_finished, fit_step, synthetic_folders
from fortifai_ray.families.images import evaluation, models, training
from fortifai_ray.families.images.data import SAMPLES_FILE, HumanData, fetch_samples, open_data, read_written
from fortifai_ray.families.images.evaluation import prepare_classifier
from fortifai_ray.families.images.recipe import ImageRecipe
from fortifai_ray.losses import Loss
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.family import Collapsed, Others, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey, canonical_hash

GENERATION_VERSION = 1  # bump when the same model gives other samples
COMPARISON_VERSION = 1  # bump when the same samples are as far apart as another number says
CURATION_VERSION = 1  # bump when other samples are kept of the same ones

_LOOK_AT = {2: 64, 1: 512}  # samples of the last generation: a grid of images, a plot of points
_COMPARED = 256  # samples of each lineage
_TYPICAL = 512  # human samples whose median score defines what is typical


_ACROSS = 8
_IMAGE_SIZE = 40  # pixels of an image in the grid, about
_PLOT_SIZE, _PLOT_LIMIT = 320, 3.0  # human points are standardised: nearly all lie within 3 of the centre
_PLOT_POINTS = 2000


class ImageFamily:
    """One chain's model and its human samples."""

    def __init__(self, recipe: ImageRecipe, data: HumanData, steps: Steps, executor: Executor) -> None:
        self._recipe, self._data, self._steps, self._executor = recipe, data, steps, executor
        self._identity = models.model_identity(recipe.family, data.shape)

    @classmethod
    def of(cls, recipe: ImageRecipe, prepared: str, steps: Steps, executor: Executor) -> Self:
        """The family of a chain whose samples are the stage ``prepared``."""
        return cls(recipe, open_data(prepared, steps.store), steps, executor)

    @cached_property
    def _human(self) -> Human:
        count = len(self._data.train)
        pool = Pool(self._data.hash, np.ones(count, dtype=np.int64), synthetic=False)
        order = generator(self._recipe.seed, "human").permutation(count)
        return Human(pool, order, float(self._recipe.samples_per_generation))

    def human(self) -> Human:
        """The human samples that are not held out, ordered by the recipe's seed."""
        return self._human

    def init(self, previous: Stage | None, generation: int) -> Stage:
        """The previous generation's model, or a stage of random weights by the seed (and the generation)."""
        init = self._recipe.training.init
        if previous is not None and init == "previous":
            return previous
        seed = derive_seed(self._recipe.seed, "init", generation if init == "scratch" else 0)
        key = StageKey("model", models.VERSION, {**self._identity, "seed": seed})

        def compute(folder: Path) -> dict[str, Any]:
            models.create_model(self._recipe.family, self._data.shape, seed, folder)
            return {}

        return self._steps.run(key, "create the starting model", compute)

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Stage, generation: int) -> Stage:
        """Train; the stage is a model's folder, and its outputs are a :class:`FitReport`."""
        settings, seed = self._recipe.training, derive_seed(self._recipe.seed, "training", generation)

        def train(folder: Path) -> FitReport:
            samples = fetch_samples(data, self._data, synthetic_folders(data, self._steps))
            return training.train(self._executor, self._steps.files(start_from), folder, samples, loss, settings, seed)

        return check_finished(
            fit_step(
                self._steps,
                training.VERSION,
                data,
                loss,
                settings,
                start_from=start_from,
                generation=generation,
                inputs={"seed": seed},
                train=train,
            )
        )

    def evaluate(self, model: Stage, *, generation: int) -> Stage:
        """The metrics of :func:`evaluation.evaluate`, on held-out samples that are the same for every chain.

        The noise is the same in each generation, so ``generation`` changes nothing.
        """
        classifier = prepare_classifier(self._data, self._steps)
        count, seed = self._recipe.evaluation.samples, derive_seed(self._recipe.seed, "evaluate")
        key = StageKey(
            "evaluate",
            evaluation.VERSION,
            {
                "model": model.hash,
                "data": self._data.hash,
                "classifier": None if classifier is None else classifier.hash,
                "samples": count,
                "seed": seed,
            },
        )

        def compute(_: Path) -> dict[str, Any]:
            threads = self._executor.threads
            scores = evaluation.evaluate(model.path, self._data, classifier, count, seed, threads=threads)
            broken = [f"{name} is {value}" for name, value in scores.items() if not math.isfinite(value)]
            # JSON has no infinity and no NaN.
            return {name: value if math.isfinite(value) else None for name, value in scores.items()} | {
                "not_finite": ", ".join(broken) or None
            }

        stage = self._steps.run(key, "evaluate", compute)
        if stage.outputs["not_finite"]:
            raise Collapsed(f"on held-out samples {stage.outputs['not_finite']}")
        return stage

    def generate(self, model: Stage, size: float, *, generation: int) -> Synthetic[Stage]:
        """``size`` samples of the model; for 0, as many as a picture shows. The first are the same for any size."""
        count = math.ceil(size) or _LOOK_AT[len(self._data.shape)]
        seed = derive_seed(self._recipe.seed, "generate", generation)
        key = StageKey("generate", GENERATION_VERSION, {"model": model.hash, "seed": seed, "samples": count})

        def compute(folder: Path) -> dict[str, Any]:
            import torch

            from fortifai_ray.families.images.objective import draw_samples, here

            torch.set_num_threads(self._executor.threads)
            network = models.load_model(model.path, here())
            started = time.perf_counter()
            samples = draw_samples(network, count, seed)
            seconds = time.perf_counter() - started
            write_samples(samples, folder)
            return {"samples": count, "generate_seconds": seconds}

        return self._corpus(self._steps.run(key, f"generate {count} samples", compute))

    def _corpus(self, stage: Stage) -> Synthetic[Stage]:
        sizes = np.ones(len(read_written(stage.path)), dtype=np.int64)
        return Synthetic(stage, Pool(stage.hash, sizes, synthetic=True))

    compared = float(_COMPARED)

    def compare(self, model: Stage, written: Synthetic[Stage], others: Others[Stage]) -> Stage:
        """The mean sliced 2-Wasserstein distance of its samples from the other lineages', as many of each."""
        stages = {name: one.stage for name, (_, one) in others.items()}
        key = {"written": written.stage.hash, "others": {name: one.hash for name, one in stages.items()}}

        def compute(_: Path) -> dict[str, Any]:
            started = time.perf_counter()
            own, *theirs = (_points(one) for one in (written.stage, *stages.values()))
            apart = [float(sliced_distance(own, points)[0]) for points in theirs]
            return {LINEAGE_DISTANCE.name: sum(apart) / len(apart), "evaluate_seconds": time.perf_counter() - started}

        return self._steps.run(StageKey("compare", COMPARISON_VERSION, key), "compare the lineages", compute)

    def curate(
        self, written: Synthetic[Stage], size: float, *, model: Stage, verifier: Stage, generation: int
    ) -> Synthetic[Stage]:
        """The samples that each step lets pass, by :meth:`score`, as corpora of their own."""
        return curate_steps(
            self._steps,
            CURATION_VERSION,
            self._recipe.curation.steps,
            written,
            size,
            model=model,
            verifier=verifier,
            generation=generation,
            inputs=lambda step, needed: {
                "size": math.ceil(needed),
                "seed": self._recipe.seed,
                "data": self._data.hash,
                "human": canonical_hash(self._human.first.items[:_TYPICAL].tolist()),
            },
            choose=self._choose,
            pool=lambda stage: self._corpus(stage).pool,
        )

    def _choose(self, planned: Planned, folder: Path) -> dict[str, Any]:
        started, samples = time.perf_counter(), np.asarray(read_written(planned.corpus.path))
        items = Written(
            places=planned.places(len(samples)),
            content=lambda: samples,
            score=lambda by: self.score(planned.models[by], samples),
            score_human=lambda by: self.score(planned.models[by], self._data.train[self._human.first.items[:_TYPICAL]]),
            seed=self._recipe.seed,
            generation=planned.generation,
            number=planned.number,
        )
        kept, outputs = planned.choose(items, math.ceil(planned.needed), folder)
        write_samples(samples[kept], folder)
        return {"samples": len(kept), **outputs, "generate_seconds": time.perf_counter() - started}

    def score(self, model: Stage, samples: np.ndarray) -> np.ndarray:
        """log p of each sample under a model, or what takes its place: float64 of shape (n,), in nats.

        The ELBO for a VAE, minus the denoising loss (½‖ε − ε̂‖², the mean over timesteps) for a diffusion model,
        with the same noise by row for every model.
        """
        import torch

        from fortifai_ray.families.images.objective import here, score_samples

        torch.set_num_threads(self._executor.threads)
        return score_samples(models.load_model(model.path, here()), samples, self._recipe.seed, "score")

    def picture(self, synthetic: Synthetic[Stage]) -> bytes | None:
        """A PNG of the first samples: a grid of 8 by 8 images, or a scatter plot."""
        return picture(read_written(synthetic.stage.path))


def _points(stage: Stage) -> np.ndarray:
    """The first samples of a corpus as points (1, n, width), pixels from 0 to 1."""
    samples = np.asarray(read_written(stage.path))[:_COMPARED]
    scale = 255.0 if samples.dtype == np.uint8 else 1.0
    return samples.reshape(1, len(samples), -1).astype(np.float64) / scale


def write_samples(samples: np.ndarray, folder: Path) -> None:
    """A synthetic corpus: the samples, and a picture of the first of them."""
    np.save(folder / SAMPLES_FILE, samples)
    png = picture(samples)
    if png is not None:
        (folder / "samples.png").write_bytes(png)


def picture(samples: np.ndarray) -> bytes | None:
    """The first samples, as stored, as a PNG file; None where there are none.

    A plot's limits are fixed, so that plots of generations can be compared; points outside are left out.
    """
    from PIL import Image

    if not len(samples):
        return None
    pixels = _grid(samples) if samples.dtype == np.uint8 else _scatter(samples)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _grid(images: np.ndarray) -> np.ndarray:
    images = images[: _ACROSS**2]
    scale = max(1, _IMAGE_SIZE // images.shape[1])
    cell = images.shape[1] * scale + 1
    canvas = np.full((cell * _ACROSS + 1, cell * _ACROSS + 1), 96, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = 1 + place // _ACROSS * cell, 1 + place % _ACROSS * cell
        canvas[top : top + cell - 1, left : left + cell - 1] = np.kron(image, np.ones((scale, scale), np.uint8))
    return canvas


def _scatter(points: np.ndarray) -> np.ndarray:
    canvas = np.full((_PLOT_SIZE, _PLOT_SIZE), 255, dtype=np.uint8)
    places = (points[:_PLOT_POINTS] / _PLOT_LIMIT + 1) / 2 * (_PLOT_SIZE - 2)
    inside = ((places >= 0) & (places < _PLOT_SIZE - 2)).all(axis=1)
    columns, rows = places[inside].astype(int).T
    for down in (0, 1):
        for right in (0, 1):  # a point is two by two pixels; the second coordinate points upwards
            canvas[_PLOT_SIZE - 2 - rows + down, columns + right] = 40
    return canvas
