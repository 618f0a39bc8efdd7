"""A recipe: everything that determines a chain's numbers, and nothing else."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fortifai_ray.engines.config import DecodingConfig, EngineConfig
from fortifai_ray.families.language.config import CorpusConfig, EvaluationConfig, ModelConfig, TrainingConfig
from fortifai_ray.losses import CrossEntropy, Loss
from fortifai_ray.regimes import Regime, Replace
from fortifai_ray.store import canonical_hash


class LanguageConfig(BaseModel):
    """The family of causal language models."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Annotated[str, Field(pattern="^language$")] = "language"
    model: ModelConfig


class Recipe(BaseModel):
    """Family, corpus, loss, regime, decoding and training settings of one chain, and its seed.

    Where it is stored, what it runs on and what varies beside it have no place here: they must not change a result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    family: LanguageConfig
    corpus: CorpusConfig
    regime: Regime = Replace()
    loss: Loss = CrossEntropy()
    decoding: DecodingConfig = DecodingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    generations: int = Field(ge=1, description="generations 0 to generations − 1 are computed")
    seed: int = Field(0, ge=0)

    @property
    def chain_id(self) -> str:
        """Hash of the resolved recipe, seed included."""
        return canonical_hash(self.model_dump(mode="json"))[:16]

    def flat(self) -> dict[str, Any]:
        """The resolved recipe with dotted keys, e.g. ``{"loss.kind": "tce", "loss.gamma": 0.3, …}``."""
        return flatten(self.model_dump(mode="json"))


def located(recipe: Recipe) -> Recipe:
    """The same recipe with its model's path made absolute, for processes that run in other folders.

    No stage depends on a path, only on what lies there; a chain's id is that of the recipe as it was written.
    """
    model = recipe.family.model
    if model.path is not None:
        model = model.model_copy(update={"path": str(Path(model.path).absolute())})
    return recipe.model_copy(update={"family": recipe.family.model_copy(update={"model": model})})


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
