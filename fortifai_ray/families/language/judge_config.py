"""Another language model as a judge, as a study file names it: ``{model: {path: folder}}``. Nothing is loaded here."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fortifai_ray.families.language.config import ModelConfig
from fortifai_ray.recipe.curation import Judge, Step, judges
from fortifai_ray.validation import first_mistake, mistake


def judge_config(by: Judge, where: str = "curation.by") -> ModelConfig:
    """Which model a judge is. Raises ValidationError, at its key below ``where``, for one that is none."""
    wrong, key = "", f"{where}.model"
    try:
        model = ModelConfig.model_validate(by.model)
    except ValidationError as error:
        place, wrong = first_mistake(error, ModelConfig, by.model or {})
        key = f"{key}.{place}" if place else key
    else:
        if not model.random:
            return model
        wrong = "llama-tiny starts from random weights, which judge nothing: give path or hub"
    raise mistake("recipe", key, wrong, by.model)


def check_judges(curation: Sequence[Step]) -> None:
    """Check every judge of a curation as :func:`judge_config` does."""
    for where, by in judges(curation):
        if isinstance(by, Judge):
            judge_config(by, where)


def located(by: Judge) -> Judge:
    """A judge with an absolute path."""
    path = (by.model or {}).get("path")
    return by if path is None else Judge(model={**(by.model or {}), "path": str(Path(path).absolute())})
