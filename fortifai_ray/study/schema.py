"""The JSON schema of a study file, for editors that complete keys and mark mistakes: made of the models that check it.

It refuses unknown keys and values of a wrong type. What depends on several keys at once is for
``fortifai sweep FILE --dry-run`` to say.
"""

from typing import Any

from pydantic.json_schema import models_json_schema

from fortifai_ray.losses import UserLoss
from fortifai_ray.recipe.curation import UserStep
from fortifai_ray.recipe.recipe import Recipe, recipe_types
from fortifai_ray.study.study import StudySettings

_OWN = {"type": "string", "pattern": ":", "description": "of your own: `module:name`"}


def study_schema() -> dict[str, Any]:
    """The schema, of draft 2020-12. One form for each class of recipe, whose ``family.kind`` tells them apart."""
    recipes = list(dict.fromkeys(recipe_types().values()))
    settings = StudySettings.model_json_schema()
    _, content = models_json_schema([(recipe, "validation") for recipe in recipes])
    parts = {name: _completed_elsewhere(part) for name, part in content["$defs"].items()}
    for own in (UserLoss, UserStep):
        parts[own.__name__] |= {"properties": {"kind": _OWN}, "required": ["kind"]}
    forms = [_form(recipe, parts.pop(recipe.__name__)["properties"], settings) for recipe in recipes]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study file of fortifai-ray",
        "type": "object",
        "anyOf": forms,
        "$defs": dict(sorted({**parts, **settings["$defs"]}.items())),
    }


def _form(recipe: type[Recipe], keys: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The study files of a class of recipe."""
    if recipe.batched and "anyOf" in keys["family"]:  # a family of the user's own has any keys
        own = {"type": "object", "properties": {"kind": _OWN}, "required": ["kind"]}
        keys["family"] = {"anyOf": [*keys["family"]["anyOf"], own]}
    return {
        "title": f"A study of {', '.join(recipe.kinds)}",
        "properties": {**settings["properties"], **keys},
        "patternProperties": {"^x-": {}},
        "required": settings["required"],
        "additionalProperties": False,
    }


def _completed_elsewhere(part: Any) -> Any:
    """A part of a recipe's schema with every key optional: ``vary``, ``search`` or ``--set`` may give those that it
    needs; without them it may have several forms at once."""
    if isinstance(part, list):
        return [_completed_elsewhere(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    left = {}
    for key, value in part.items():
        if key == "properties":
            left[key] = {name: _completed_elsewhere(inner) for name, inner in value.items()}
        elif key not in ("discriminator", "required", "title"):
            left["anyOf" if key == "oneOf" else key] = _completed_elsewhere(value)
    return left
