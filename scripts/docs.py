"""Generate the pages of ``docs/`` that describe the code: ``python scripts/docs.py [--check] [PAGE …]``.

Each page is made from what it describes (the models of a study file, the registry of metrics, the claims as they were
last measured), so that it cannot drift. ``--check`` writes nothing and exits with 1 where a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / "docs"
Schema = Mapping[str, Any]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "page", nargs="*", choices=[*PAGES, []], metavar="PAGE", help="which pages; all of them if none is named"
    )
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    given = parser.parse_args()
    stale = [page for page in given.page or PAGES if not up_to_date(page)]
    for page in stale:
        if given.check:
            print(f"docs/{page}.md is stale: run `make docs`", file=sys.stderr)
        else:
            (DOCS / f"{page}.md").write_text(PAGES[page](), encoding="utf-8")
            print(f"docs/{page}.md")
    return int(bool(stale) and given.check)


def up_to_date(page: str) -> bool:
    """Whether a generated page is what its source gives today."""
    path = DOCS / f"{page}.md"
    return path.is_file() and path.read_text(encoding="utf-8") == PAGES[page]()


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# docs/studies.md: every key of a study file.

_STUDIES = """# Study files: every key

Generated from the models that check a study file (`python scripts/docs.py studies`). A study file is one YAML mapping:
the recipe of a chain, what varies, and the criterion of collapse. `sweeps/` has one for each paper to start from. A
mistake ends `fortifai sweep` before anything starts: one line names the file, the key and what would be right.

Any key of the recipe may stand under `vary` as a dotted path (`loss.gamma`, `regime.synthetic_ratio`, `seed`), with a
list of values; the grid is their product. The same path sets a key from the command line (`--set training.epochs=1`),
restricts a claim to some chains (`where`) and names a column of the result tables.
"""


def studies() -> str:
    """``docs/studies.md``, from the pydantic models of a study file."""
    from fortifai_ray.families.analytic import ANALYTIC
    from fortifai_ray.families.images.recipe import ImageRecipe
    from fortifai_ray.families.language.recipe import LanguageRecipe
    from fortifai_ray.recipe.recipe import Recipe
    from fortifai_ray.study.study import StudySettings

    page = _Keys()
    page.say(_STUDIES)
    page.heading("Keys of the study", 2)
    page.model(StudySettings.model_json_schema())
    page.heading("Keys of every recipe", 2)
    shared = set(Recipe.model_fields) - {"family"}
    page.model(Recipe.model_json_schema(), only=shared)
    page.heading("Language models (`family.kind: language`)", 2)
    page.model(LanguageRecipe.model_json_schema(), without=shared)
    page.heading("Images and points (`family.kind: vae` or `diffusion`)", 2)
    page.model(ImageRecipe.model_json_schema(), without=shared)
    page.heading("Analytic families", 2)
    page.say(
        "Fitted in closed form, or by a few iterations, to `samples_per_generation` samples; chains that differ in"
    )
    page.say(
        "their seed alone are computed together. A family of your own is named `module:Class` "
        "([extending](extending.md))."
    )
    for kind, family in ANALYTIC.items():
        schema = family.model_json_schema()
        page.heading(f"`family.kind: {kind}`", 3)
        page.docstring(schema)
        page.rows("family", schema, schema.get("$defs", {}))
    return page.text()


class _Keys:
    """Tables of keys, a section for each part of a study file; a part that several recipes share is shown once."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._shown: set[str] = set()

    def text(self) -> str:
        return "\n".join(self._parts).rstrip() + "\n"

    def say(self, text: str) -> None:
        self._parts.append(text)

    def heading(self, text: str, level: int) -> None:
        self._parts.append(f"\n{'#' * level} {text}\n")

    def docstring(self, schema: Schema) -> None:
        """The first paragraph of a model's docstring."""
        if text := schema.get("description", ""):
            first = text.split("\n\n")[0].replace("``", "`").replace(":class:", "").replace("~", "")
            self._parts.append(" ".join(first.split()) + "\n")

    def model(self, schema: Schema, only: set[str] | None = None, without: set[str] | None = None) -> None:
        """A table of a model's own keys, then a section for each of its parts."""
        names = [n for n in schema["properties"] if (only is None or n in only) and n not in (without or ())]
        part = {**schema, "properties": {name: schema["properties"][name] for name in names}}
        self.rows("", part, schema.get("$defs", {}))
        for name in names:
            self._section(name, schema["properties"][name], schema.get("$defs", {}))

    def rows(self, place: str, schema: Schema, known: Schema) -> None:
        """One table: key, values, default, meaning."""
        needed = set(schema.get("required", ()))
        rows = [
            (f"`{name}`", _values(key, known), _default(key, name in needed), _meaning(key))
            for name, key in schema.get("properties", {}).items()
        ]
        if rows:
            self._parts.append(table(("key", "values", "default", "meaning"), rows) + "\n")

    def _section(self, place: str, key: Schema, known: Schema) -> None:
        forms = list(_forms(key, known))
        for name, form in forms:
            identity = f"{place}/{name}"
            if identity in self._shown:
                continue
            self._shown.add(identity)
            kind = next(
                (_constant(form["properties"][tag]) for tag in ("kind", "task") if tag in form.get("properties", {})),
                None,
            )
            tag = "task" if "task" in form.get("properties", {}) else "kind"
            self.heading(f"`{place}`" + (f" with `{tag}: {kind}`" if kind and len(forms) > 1 else ""), 3)
            self.docstring(form)
            self.rows(place, form, known)
            for inner, value in form.get("properties", {}).items():
                self._section(f"{place}.{inner}", value, known)


def _constant(key: Schema) -> str | None:
    return str(key["const"]) if "const" in key else " or ".join(key["enum"]) if "enum" in key else None


def _forms(key: Schema, known: Schema) -> Iterator[tuple[str, Schema]]:
    """The models that may stand at a key: its own, one of several, or those of a list's items."""
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        if "properties" in known[name]:
            yield name, known[name]
    for part in (*key.get("anyOf", ()), *key.get("oneOf", ()), *key.get("allOf", ())):
        yield from _forms(part, known)
    for inner in ("items", "additionalProperties"):
        if isinstance(key.get(inner), Mapping):
            yield from _forms(key[inner], known)


def _values(key: Schema, known: Schema) -> str:
    """Which values a key takes, in words."""
    if "$ref" in key:
        return "see below"
    if "const" in key or "enum" in key:
        return ", ".join(f"`{_yaml(value)}`" for value in key.get("enum", [key.get("const")]))
    for several in ("anyOf", "oneOf", "allOf"):
        if several in key:
            return " or ".join(dict.fromkeys(_values(part, known) for part in key[several]))
    kind = key.get("type", "any value")
    if kind == "array":
        return f"a list: {_values(key['items'], known)}" if key.get("items") else "a list"
    if kind == "object":
        return "a mapping"
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    return names.get(str(kind), str(kind)) + _limits(key)


def _limits(key: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    parts = [f"{sign} {key[name]:g}" for name, sign in signs.items() if name in key]
    return f" {' and '.join(parts)}" if parts else ""


def _default(key: Schema, needed: bool) -> str:
    if needed or "default" not in key:
        return "needed"
    value = key["default"]
    return "as below" if isinstance(value, dict) and value else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    import json

    return "null" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _meaning(key: Schema) -> str:
    return " ".join(str(key.get("description", "")).split())


# docs/metrics.md: what is measured.

_METRICS = """# Metrics

Generated from the registry (`fortifai_ray/metrics.py`: `python scripts/docs.py metrics`). Each metric is declared
beside the code that computes it, under the name that it has everywhere: a column of `generations.parquet`, a key in
MLflow, the `metric` of a collapse criterion or of a claim. Which of them a study measures depends on its family and on
what its `evaluation` requests ([studies](studies.md)).

*Collapse* is the side to which collapse moves a metric (– if unknown), *scale* the one on which its onset is
interpolated, *chance* what guessing scores, which a criterion may take into account (`chance`). Some metrics have
breakdowns, whose names begin with theirs (`kr_accuracy_fraction_1`, `blimp_accuracy_PARADIGM`); accuracies have 95%
Wilson intervals in the columns `NAME_low` and `NAME_high`.

A family of your own declares what it measures in its attribute `metrics`: plain names, or `Metric` objects such as
`Metric("success_ratio", "share of trials", "trials that succeed", direction="below", scale="log")`. A plain name gets a
linear scale and no direction, whatever it sounds like ([extending](extending.md)).
"""


def metrics() -> str:
    """``docs/metrics.md``, a table for each group of the registry."""
    from fortifai_ray.metrics import GROUPS, METRICS

    page = _Keys()
    page.say(_METRICS)
    headings = ("name", "title", "unit", "collapse", "scale", "chance", "definition", "source")
    for group in GROUPS:
        rows = [
            (
                f"`{each.name}`",
                each.title,
                each.unit,
                {"above": "↑", "below": "↓", None: "–"}[each.direction],
                each.scale,
                "–" if each.chance is None else f"{each.chance:g}",
                each.definition,
                f"`{each.source}`" if each.source.startswith("fortifai_ray.") else each.source,
            )
            for each in METRICS.built_in.values()
            if each.group == group
        ]
        if rows:
            page.heading(group, 2)
            page.say(table(headings, rows))
    return page.text()


def replications() -> str:
    """``docs/replications.md``, from what the shipped studies measured."""
    from replications import page

    return page()


PAGES: Mapping[str, Callable[[], str]] = {"studies": studies, "metrics": metrics, "replications": replications}

if __name__ == "__main__":
    sys.exit(main())
