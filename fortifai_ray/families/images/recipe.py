"""The recipe of a chain of VAEs or diffusion models, and its metrics."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.families import (
    KEPT_FRACTION,
    KL_DIVERGENCE,
    LINEAGE_DISTANCE,
    MEAN_TARGET_PROBABILITY,
    TRACE_RATIO,
    TRAIN_LOSS,
    WASSERSTEIN,
)
from fortifai_ray.families.images.config import SIZES, EvaluationConfig, FamilyConfig, TrainingConfig, fill_defaults
from fortifai_ray.losses import Loss, SequenceLoss
from fortifai_ray.metrics import MODEL, SAMPLES, Metric
from fortifai_ray.recipe.curation import Content, measured
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.storage.store import StageStore

_VAE = (
    Metric(
        "elbo",
        "nats",
        "evidence lower bound per held-out image",
        "Kingma and Welling 2014, equation 3",
        title="held-out ELBO",
        direction="below",
        group=MODEL,
    ),
    Metric(
        "reconstruction_nll",
        "nats",
        "−ln p of a held-out image given a latent drawn from its posterior, the first half of the ELBO",
        "Kingma and Welling 2014, equation 3",
        title="held-out reconstruction error",
        direction="above",
        group=MODEL,
        role="fit",
        rank=5,
    ),
    KL_DIVERGENCE,
    Metric(
        "latent_mean_norm",
        "norm",
        "mean norm of the posterior means of the held-out images",
        "fortifai_ray.families.images.vae",
        group=MODEL,
    ),
    Metric(
        "latent_variance",
        "variance",
        "mean variance of the posteriors of the held-out images",
        "fortifai_ray.families.images.vae",
        group=MODEL,
    ),
    Metric(
        "active_units",
        "units",
        "latent dimensions whose posterior mean varies by more than 0.01 over the held-out images",
        "Burda et al. 2016, section 5.2",
        group=MODEL,
    ),
)
_DIFFUSION = (
    Metric(
        "denoising_loss",
        "per coordinate",
        "squared error of the predicted noise, ‖ε − ε̂‖², on held-out samples: 1 for a model that predicts 0",
        "Ho et al. 2020, equation 14",
        title="held-out denoising loss",
        direction="above",
        group=MODEL,
    ),
)
_SAMPLES = (
    TRACE_RATIO,
    WASSERSTEIN,
    Metric(
        "coverage",
        "share of samples",
        "share of the held-out samples that have a sample nearer than their fifth-nearest held-out one",
        "Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models",
        title="coverage of human samples",
        direction="below",
        group=SAMPLES,
        role="tails",
        rank=2,
    ),
)
_CLASSES = (
    Metric(
        "class_entropy",
        "nats",
        "entropy of the classes that a classifier of the human samples sees in the model's samples",
        "Shannon 1948",
        title="entropy of the classes",
        direction="below",
        group=SAMPLES,
        role="variety",
        rank=1,
    ),
    Metric(
        "classes_present",
        "classes",
        "classes with at least a tenth of an even share of the model's samples",
        "fortifai_ray.families.images.evaluation",
        direction="below",
        group=SAMPLES,
        role="variety",
        rank=2,
    ),
)
_TRAINING = (TRAIN_LOSS, KEPT_FRACTION, MEAN_TARGET_PROBABILITY)
METRICS = (*_VAE, *_DIFFUSION, *_SAMPLES, *_CLASSES, *_TRAINING)


class ImageRecipe(Recipe):
    """A chain of VAEs or diffusion models."""

    kinds: ClassVar[tuple[str, ...]] = ("vae", "diffusion")
    family_class: ClassVar[str] = "fortifai_ray.families.images.family:ImageFamily"
    items: ClassVar[Content] = "images"

    family: FamilyConfig = Field(description="the model and its data")
    samples_per_generation: int = Field(
        ge=1,
        description="size of generation 0's training set, the budget; if left out, {digits} of the digits, {path} of a "
        "path and {shape} of a point cloud".format(**SIZES),
        json_schema_extra={"default": "by the data"},
    )
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        return fill_defaults(content)

    @model_validator(mode="after")
    def _weighs_nothing(self) -> Self:
        if self.regime.weights is not None:
            raise ValueError("regime.weights: they are of language models and analytic families; leave them out here")
        return self

    @field_validator("loss")
    @classmethod
    def _is_pointwise(cls, loss: Loss) -> Loss:
        if isinstance(loss, SequenceLoss):
            raise ValueError("lovasz needs the probabilities of whole classes: give a loss of the target's log p")
        return loss

    @property
    def metrics(self) -> tuple[str, ...]:
        held_out = _VAE if self.family.kind == "vae" else _DIFFUSION
        classes = _CLASSES if self.family.data.labelled else ()
        own = (*held_out, *_SAMPLES, *classes, *_TRAINING, *self.loss.metrics)
        return (*(metric.name for metric in own), *measured(self.curation.steps, truth=False))

    @property
    def compared(self) -> tuple[str, ...]:
        return (LINEAGE_DISTANCE.name,)

    def located(self) -> Self:
        data = self.family.data
        if data.path is None:
            return self
        data = data.model_copy(update={"path": str(Path(data.path).absolute())})
        return self.model_copy(update={"family": self.family.model_copy(update={"data": data})})

    @property
    def shared_input(self) -> Any:
        return self.family.data

    def prepare(self, store: StageStore, source: str) -> str:
        """Read and split the samples; returns their stage's hash."""
        from fortifai_ray.families.images.data import prepare_data

        try:
            return prepare_data(self.family.data, store).hash
        except UserError as error:
            raise UserError(f"{source}: family.data: {error}") from error

    def check(self, prepared: str | None, store: StageStore, source: str) -> None:
        from fortifai_ray.families.images.data import open_data

        assert prepared is not None
        human, size = open_data(prepared, store).train, self.samples_per_generation
        available = len(human)
        needed = self.regime.human_needed(size, self.generations)
        if needed > available:
            raise UserError(
                f"{source}: samples_per_generation: {self.regime.kind} uses {needed:.0f} human samples in "
                f"{self.generations} generation(s) of {size}, and {available} are not held out; fewer samples or "
                "generations are needed"
            )
        self.try_code(lambda n: np.asarray(human[:n]), source)
