"""The recipe of a chain of VAEs or diffusion models: data, network, training and evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.families.images.config import EvaluationConfig, FamilyConfig, TrainingConfig, fill_defaults
from fortifai_ray.losses import Loss, LovaszSoftmax
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.storage.store import StageStore

if TYPE_CHECKING:
    from fortifai_ray.families.images.family import ImageFamily
    from fortifai_ray.recipe.devices import Devices
    from fortifai_ray.storage.steps import Steps

_TRAINING = ("train_loss", "kept_fraction", "mean_target_probability")
_LATENT = ("latent_mean_norm", "latent_variance", "active_units")
_HELD_OUT = {"vae": ("elbo", "reconstruction_nll", "kl_divergence", *_LATENT), "diffusion": ("denoising_loss",)}
_SAMPLES = ("trace_ratio", "wasserstein", "coverage")
_CLASSES = ("class_entropy", "classes_present")


class ImageRecipe(Recipe):
    """A chain of VAEs or diffusion models; ``samples_per_generation`` is generation 0's training set and the budget."""

    family: FamilyConfig
    samples_per_generation: int = Field(ge=1)
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        return fill_defaults(content)

    @field_validator("loss")
    @classmethod
    def _is_pointwise(cls, loss: Loss) -> Loss:
        if isinstance(loss, LovaszSoftmax):
            raise ValueError("lovasz needs the probabilities of whole classes: give a loss of the target's log p")
        return loss

    @property
    def metrics(self) -> tuple[str, ...]:
        classes = _CLASSES if self.family.data.labelled else ()
        return (*_HELD_OUT[self.family.kind], *_SAMPLES, *classes, *_TRAINING)

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
        there, asked = len(open_data(prepared, store).train), self.samples_per_generation
        needed = self.regime.human_needed(asked, self.generations)
        if needed > there:
            raise UserError(
                f"{source}: samples_per_generation: {self.regime.kind} uses {needed:.0f} human samples in "
                f"{self.generations} generation(s) of {asked}, and there are {there} beside the held-out ones; ask for "
                "fewer samples or generations"
            )

    def build(self, prepared: str | None, steps: "Steps", devices: "Devices") -> "ImageFamily":
        from fortifai_ray.families.images.data import open_data
        from fortifai_ray.families.images.family import ImageFamily

        assert prepared is not None, "the samples are prepared first"
        return ImageFamily(self, open_data(prepared, steps.store), steps, devices)
