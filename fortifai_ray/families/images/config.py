"""What a study file configures of VAEs and diffusion models: data, networks, training and evaluation."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fortifai_ray.families.fitting import FitConfig
from fortifai_ray.validation import Section

SHAPES = ("blobs", "circles", "moons", "swiss_roll")
_UNLABELLED = ("swiss_roll",)


class DataConfig(Section):
    """The human samples, and the share of them that is held out.

    Distinct samples are held out by a fixed rule without a seed: every chain of a study is scored on the same ones.
    Point clouds are standardised; the swiss roll is its spiral cross-section.
    """

    source: Literal["digits", "blobs", "circles", "moons", "swiss_roll"] | None = Field(
        None, description="scikit-learn's 1,797 grey 8×8 digits, always available, or one of its plane point clouds"
    )
    path: str | None = Field(
        None,
        description="a folder of IDX files, gzipped or not, such as MNIST's (images and labels), or one file of images "
        "with its labels beside it",
    )
    held_out: float = Field(0.2, gt=0.0, lt=1.0, description="share of the distinct samples")
    samples: int | None = Field(None, ge=100, description="points of a point cloud; null: 20,000")
    binarise: bool = Field(False, description="pixels are 0 or 1, cut at one half; a VAE then writes drawn pixels")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("source", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of source and path (given: {', '.join(given) or 'none'})")
        if self.path is not None and not os.path.exists(self.path):
            raise ValueError(f"there is no {self.path or 'empty path'} (looked for from {Path.cwd().name}/)")
        if self.samples is not None and not self.is_shape:
            raise ValueError(f"samples is the number of points of a shape ({', '.join(SHAPES)})")
        if self.binarise and self.is_shape:
            raise ValueError("binarise is for images: points have no pixels")
        return self

    @property
    def is_shape(self) -> bool:
        """Whether samples are points in the plane, not images."""
        return self.source in SHAPES

    @property
    def labelled(self) -> bool:
        """Whether each human sample has a class."""
        return self.source not in _UNLABELLED


class VaeConfig(Section):
    """A convolutional variational autoencoder with Bernoulli pixels (Kingma and Welling 2014).

    Two strided convolutions of ``channels`` and twice as many, a diagonal Gaussian of ``latent`` dimensions, and the
    mirror image as decoder: Shumailov et al. 2024's setting, scaled to two cores. The digits are binarised by default:
    grey digits of 8×8 pixels carry so little information for a Bernoulli model that under ``replace`` the latent
    variable is unused, and all classes but one are lost, by generation 2. MNIST's pixels are nearly binary as they are.
    """

    kind: Literal["vae"] = "vae"
    data: DataConfig = DataConfig(source="digits", binarise=True)
    channels: int = Field(16, ge=1, le=512, description="of the first convolution; the second has twice as many")
    latent: int = Field(16, ge=1, le=1024, description="dimensions of the latent variable")

    @model_validator(mode="after")
    def _has_pixels(self) -> Self:
        if self.data.is_shape:
            raise ValueError(f"a VAE has Bernoulli pixels: data.source: digits or data.path, not {self.data.source}")
        return self


class DiffusionConfig(Section):
    """A denoising diffusion model that predicts the noise (DDPM, Ho et al. 2020): an MLP denoises points, a small U-Net
    images."""

    kind: Literal["diffusion"] = "diffusion"
    data: DataConfig = DataConfig(source="digits")
    width: int | None = Field(
        None, ge=4, le=2048, multiple_of=4, description="channels (null: 16), or units of the MLP (null: 128)"
    )
    timesteps: int = Field(100, ge=2, le=4000, description="steps in which noise is added")
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="of the noise: Ho et al.'s, scaled to the timesteps, or Nichol and Dhariwal 2021's"
    )
    sampler: Literal["ancestral", "ddim"] = Field(
        "ancestral", description="DDPM's, or the deterministic one of Song et al. 2021; both may skip timesteps"
    )
    sampling_steps: int | None = Field(None, ge=1, description="timesteps visited when sampling; null: all")

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.sampling_steps is not None and self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps: {self.sampling_steps} is more than the {self.timesteps} timesteps")
        return self


FamilyConfig = Annotated[VaeConfig | DiffusionConfig, Field(discriminator="kind")]


# What suits a family and its data on two cores.
_EPOCHS = {"vae": {"digits": 60, "path": 12}, "diffusion": {"digits": 60, "path": 12, "shape": 100}}
SIZES = {"digits": 1000, "path": 5000, "shape": 2000}


class TrainingConfig(FitConfig):
    """How one generation is trained."""

    init: Literal["scratch", "previous"] = Field(
        "scratch", description="a new model each generation, or the last one trained further"
    )
    epochs: int = Field(
        10,
        ge=1,
        description="passes over the training set; if left out, {digits} for digits, {path} for a path and {shape} for "
        "point clouds".format(**_EPOCHS["diffusion"]),
        json_schema_extra={"default": "by the data"},
    )
    batch_size: int = Field(64, ge=1, description="samples a step, over all workers")
    learning_rate: float = Field(2e-3, gt=0.0, description="peak of the schedule")


class EvaluationConfig(Section):
    """How each generation's model is measured."""

    samples: int = Field(500, ge=50, description="samples drawn from the model, compared with as many held-out ones")


def fill_defaults(content: Any) -> Any:
    """A recipe's content, completed by the number of epochs and samples that suits its family and data.

    Malformed content passes unchanged: validation reports it.
    """
    if not isinstance(content, dict) or not isinstance(content.get("family"), dict | VaeConfig | DiffusionConfig):
        return content
    family = content["family"] if isinstance(content["family"], dict) else content["family"].model_dump()
    data = family.get("data", {"source": "digits"})
    data = data.model_dump() if isinstance(data, DataConfig) else data if isinstance(data, dict) else {}
    kind = "path" if data.get("path") is not None else "shape" if data.get("source") in SHAPES else "digits"
    filled = {"samples_per_generation": SIZES[kind], **content}
    training, epochs = content.get("training", {}), _EPOCHS.get(str(family.get("kind")), {}).get(kind)
    if isinstance(training, dict) and epochs is not None:
        filled["training"] = {"epochs": epochs, **training}
    return filled
