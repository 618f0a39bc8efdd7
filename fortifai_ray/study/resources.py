"""``resources:`` of a study file: what a sweep may use of the machine or cluster. Nothing here changes a result."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fortifai_ray.validation import Section

_Count = Annotated[int, Field(ge=1)] | Literal["auto"]
_Gpus = Annotated[float, Field(ge=0, le=64)] | Literal["auto"]


def _share_or_whole(value: float | str) -> float | str:
    """Ray gives a share of one GPU, or whole ones."""
    if isinstance(value, float | int) and value > 1 and value != int(value):
        raise ValueError(f"a share of one GPU or a whole number of them, not {value:g}")
    return value


class TrainResources(Section):
    """Resources of one generation's training."""

    workers: int = Field(1, ge=1, description="data-parallel training processes of one chain")
    gpus_per_worker: _Gpus = Field("auto", description="GPUs of each; auto: 1 where there are enough, else a share")

    _whole = field_validator("gpus_per_worker")(_share_or_whole)


class EngineResources(Section):
    """Resources of the generation engines."""

    count: _Count = Field("auto", description="warm engines, shared by all chains")
    gpus: _Gpus = Field(
        "auto",
        description="GPUs of each engine; several: its model is spread over them; auto: 1 where there are enough",
    )

    _whole = field_validator("gpus")(_share_or_whole)


class ResourcesConfig(Section):
    """What a sweep may use of the machine or cluster; what is left at ``auto`` fills it."""

    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a Ray instance started here; null: all")
    chains_at_once: _Count = Field("auto", description="chains that run side by side; auto: as many as fit")
    train: TrainResources = TrainResources()
    engines: EngineResources = EngineResources()

    @property
    def engine_gpus(self) -> float:
        """The most GPUs that one engine may take."""
        return 1.0 if self.engines.gpus == "auto" else self.engines.gpus
