"""``fortifai new``: a study file to begin with, whose comments are the descriptions of the models that check it."""

import os
import re
import shlex
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import ModelConfig
from fortifai_ray.families.language.models import context_length
from fortifai_ray.families.language.recipe import LanguageConfig
from fortifai_ray.metrics import METRICS, Metric
from fortifai_ray.recipe.recipe import Recipe, recipe_type, recipe_types
from fortifai_ray.study.grid import resolve
from fortifai_ray.study.shipped import SCHEMA, folder
from fortifai_ray.study.study import StudySettings, make_study
from fortifai_ray.validation import dump_yaml, hint, validated

_WIDTH = 120
_ROW = 128  # tokens, of a row's prompt and text, and of a block of training text
_LANGUAGE: dict[str, Any] = {
    "corpus": {"source": "pydoc", "train_tokens": 40960},
    "decoding": {"temperature": 0.8},
    "training": {"epochs": 2, "learning_rate": 2.0e-3},
}
_PRETRAINED = {"epochs": 1, "batch_size": 4, "learning_rate": 2.0e-4}


def write_study(file: Path, family: str, model: str | None = None) -> Path:
    """Write a commented study file of a family (``family.kind``), its name that of the file; returns its path.

    Args:
        file: the file, or the study's name.
        family: a kind of family, or a user's own (``module:Class``).
        model: of language models: a checkpoint's folder, a GGUF file, a preset or a name on the hub.

    Raises:
        UserError: the file is there already, or what it would ask for is not valid.
    """
    path = file if file.suffix in (".yaml", ".yml") else Path(f"{file}.yaml")
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already, and is not overwritten; give another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    text = study_text(path.stem, family, model, path)
    try:
        with path.open("x", encoding="utf-8") as target:
            target.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def study_text(name: str, family: str, model: str | None, path: Path) -> str:
    """The content of a commented study file, which has been checked as a study."""
    source = str(path)
    content = _content(name, family, model, source)
    study = make_study(content, source)
    base = {key: value for key, value in content.items() if key not in StudySettings.model_fields}
    parts = [
        _head(path),
        f"name: {name}",
        *_section(resolve(source, base), base, ""),
        "",
        *_section(study.settings, {key: value for key, value in content.items() if key != "name"}, "", {"name"}),
    ]
    return "\n".join(parts) + "\n"


def _head(path: Path) -> str:
    run = f"fortifai sweep {shlex.quote(path.name)}"
    schema = os.path.relpath(folder() / SCHEMA, path.parent) if _beside(path) else str(folder() / SCHEMA)
    return (
        f"# yaml-language-server: $schema={schema}\n"
        f"# What this study asks. Check it: {run} --dry-run. Run it: {run}\n"
        "# A key behind a # shows its default. Taking a # away puts it in."
    )


def _beside(path: Path) -> bool:
    return folder().parent in path.absolute().parents


def _content(name: str, family: str, model: str | None, source: str) -> dict[str, Any]:
    recipe = recipe_type(family)
    if recipe is None:
        own = "; a family of your own is named module:Class"
        raise UserError(f"--family: there is no family {family!r}{hint(family, recipe_types(), own)}")
    asked: dict[str, Any] = {"family": {"kind": family}}
    if "decoding" in recipe.model_fields:
        asked = _language(model, source)
    elif model is not None:
        raise UserError(f"--model: {family} starts from no model: leave it out, or give --family language")
    elif ":" not in family:
        asked["family"] |= _needed(recipe, family)
    asked |= {"regime": {"kind": "replace"}, "loss": {"kind": "cross_entropy"}}
    asked |= {"generations": 20 if recipe.batched else 5, "seed": 0}
    base = resolve(source, asked)
    return {"name": name, **asked, **_compared(asked, base, source), "collapse": _criterion(base)}


def _compared(asked: Mapping[str, Any], base: Recipe, source: str) -> dict[str, Any]:
    """What varies, and what it is compared with: losses; of a family of the user's own whose samples no loss can weigh,
    regimes. Seeds cost nothing where all chains of a cell are computed at once."""
    unit, seeds = base.unit, {"start": 0, "count": 20} if base.batched else [0, 1, 2]
    losses = [asked["loss"], {"kind": "tce", "gamma": 0.3 if unit == "tokens" else 0.9}]
    regimes = [asked["regime"], {"kind": "accumulate"}]
    try:
        resolve(source, {**asked, "loss": losses[1]})
    except UserError:
        return {"vary": {"regime": regimes, "seed": seeds}, "baseline": {"regime.kind": "replace"}}
    return {"vary": {"loss": losses, "seed": seeds}, "baseline": {"loss.kind": "cross_entropy"}}


def _language(model: str | None, source: str) -> dict[str, Any]:
    """The recipe's keys of language models, for a model given by its path, its name on the hub, or as a preset."""
    presets = [name for part in get_args(ModelConfig.model_fields["preset"].annotation) for name in get_args(part)]
    if model is None or (model in presets and not os.path.exists(model)):
        return {"family": {"kind": "language", "model": {"preset": model or presets[-1]}}, **_LANGUAGE}
    asked = _LANGUAGE | {"training": _PRETRAINED}
    if not os.path.exists(model) and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return {"family": {"kind": "language", "model": {"hub": model}}, **asked}
    family = validated(LanguageConfig, {"model": {"path": model}}, source)
    longest = context_length(family.model) or _ROW
    if longest < _ROW:
        asked["decoding"] = {
            "temperature": 0.8,
            "max_new_tokens": longest - longest // 8,
            "context_tokens": longest // 8,
        }
        asked["training"] = {**_PRETRAINED, "block_size": longest}
    return {"family": {"kind": "language", "model": {"path": model}}, **asked}


def _needed(recipe: type[Recipe], kind: str) -> dict[str, Any]:
    """Values of the keys without which a family of the kind is refused."""
    schema = recipe.model_json_schema()
    forms = [form["properties"] | {"": form} for form in schema["$defs"].values() if "kind" in form["properties"]]
    form = next(form for form in forms if kind in (form["kind"].get("const"), form["kind"].get("default")))
    return {key: _value(form[key]) for key in form[""].get("required", ()) if key != "kind"}


def _value(key: Mapping[str, Any]) -> Any:
    if "enum" in key:
        return key["enum"][0]
    return 5 if key.get("type") == "integer" else 0.5


def _criterion(recipe: Recipe) -> dict[str, Any]:
    """Half or twice a metric that collapse moves: of the variety of what is generated, else of the fit, else any.

    A loss may widen what collapse narrows: variety is judged on both sides.
    """
    own = {metric.name: metric for metric in recipe.declared}
    measured = [own.get(name) or METRICS.built_in.get(name) or Metric(name) for name in recipe.metrics]
    order = {"variety": 0, "fit": 1}
    first = min(measured, key=lambda metric: (metric.direction is None, order.get(metric.role or "", 2)))
    compared = {"relative_to": "baseline_generation_0", "confirm": 1}
    if first.direction is None or first.role == "variety":
        return {"metric": first.name, "threshold": [0.5, 2.0], "direction": "outside", **compared}
    threshold = 2.0 if first.direction == "above" else 0.5
    return {"metric": first.name, "threshold": threshold, "direction": first.direction, **compared}


# How keys are written: those that are given, and behind a # those that have their default.


def _section(model: BaseModel, given: Mapping[str, Any], indent: str, without: Collection[str] = ()) -> Iterator[str]:
    """The lines of a section's keys, each with its description; ``indent`` has a ``#`` inside one left out."""
    for name, field in type(model).model_fields.items():
        if name in without:
            continue
        value, asked = getattr(model, name), given.get(name)
        start = indent if name in given or "#" in indent else f"{indent}# "
        meaning = _meaning(field, value)
        if isinstance(value, BaseModel) and (name == "family" or not _one_of_several(value)):
            yield from _line(f"{name}:", meaning, start)
            yield from _section(value, asked or {}, f"{start}  ")
        elif isinstance(asked, Mapping) and not isinstance(value, BaseModel):
            yield from _line(f"{name}:", meaning, start)
            yield from (f"{start}  {key}: {_flow(inner)}" for key, inner in asked.items())
        else:
            default = value.model_dump(include={"kind"}) if isinstance(value, BaseModel) else value
            yield from _line(f"{name}: {_flow(default if asked is None else asked)}", meaning, start)


def _one_of_several(value: BaseModel) -> bool:
    """Whether a section's ``kind`` tells it from others that may stand in its place."""
    kind = type(value).model_fields.get("kind")
    return kind is not None and len(get_args(kind.annotation)) == 1


def _line(key: str, meaning: str, indent: str) -> Iterator[str]:
    """A key with its meaning behind it, or above it where both do not fit in a line."""
    line = f"{indent}{key}"
    if meaning and len(line) + len(meaning) + 4 <= _WIDTH:
        yield f"{line}  # {meaning}"
        return
    if meaning:
        yield from textwrap.wrap(meaning, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    yield line


def _meaning(field: FieldInfo, value: Any) -> str:
    """A key's description; of a section without one, the first sentence about it."""
    if field.description:
        return " ".join(field.description.split())
    about = type(value).__doc__ if isinstance(value, BaseModel) else None
    first = re.split(r"(?<! al)\.(?: |$)", " ".join((about or "").split("\n\n")[0].split()))[0]
    return (first[:1].lower() + first[1:]).replace("``", "`")


def _flow(value: Any) -> str:
    return dump_yaml(value, flow=True).strip().removesuffix("...").strip()
