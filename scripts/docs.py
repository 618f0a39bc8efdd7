"""Generate the pages of ``docs/`` that describe the code: ``python scripts/docs.py [--check] [PAGE …]``.

Each page is made from what it describes (the models of a study file, the registry of metrics, the claims as they were
last measured), so that it cannot drift; so is the schema beside the study files. ``--check`` writes nothing and exits
with 1 where a page is stale.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
            print(f"{_shown(page)} is stale: run `make docs`", file=sys.stderr)
        else:
            _path(page).write_text(PAGES[page](), encoding="utf-8")
            print(_shown(page))
    return int(bool(stale) and given.check)


def up_to_date(page: str) -> bool:
    """Whether a generated page is what its source gives today."""
    path = _path(page)
    return path.is_file() and path.read_text(encoding="utf-8") == PAGES[page]()


def _path(page: str) -> Path:
    from fortifai_ray.study.shipped import SCHEMA

    return PROJECT / "sweeps" / SCHEMA if page == "schema" else DOCS / f"{page}.md"


def _shown(page: str) -> str:
    return _path(page).relative_to(PROJECT).as_posix()


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; every row has a cell for each heading."""
    assert all(len(row) == len(headings) for row in rows), headings
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# docs/studies.md: every key of a study file.

_STUDIES = """# Study files: every key

Generated from the models that check a study file (`python scripts/docs.py studies`). A study file is one YAML mapping:
the recipe of a chain, what varies, and the criterion of collapse. `sweeps/` has one for each paper to start from. A
mistake ends `fortifai sweep` before anything starts: one line names the file, the key and what would be right.

Any key of the recipe may stand under `vary` as a dotted path (`loss.gamma`, `regime.synthetic_ratio`, `seed`); the grid
is the product of the values. The same path sets a key from the command line (`--set training.epochs=1`), restricts a
claim to some chains (`where`) and names a column of the result tables.

Anchors, aliases and merge keys work (`{<<: *base, gamma: 0.5}`); a key at the top that begins with `x-` is there for
its anchors alone and is left out. A key given twice is refused, and so are numbers that are not finite. `1e-3` is a
number, `2024-01-01` is text, and `010` is refused, since YAML 1.1 and 1.2 read it differently.

```yaml
name: example
family: {kind: gaussian, dim: 2}
generations: 20
vary:
  loss: [{kind: cross_entropy}, {kind: tce, gamma: 0.9}]  # whole sections
  regime: [{kind: replace}, {kind: mixed, synthetic_ratio: 0.5}]
  samples_per_generation: [50, 100]  # values of one key
  seed: {count: 100}  # 0, 1, …, 99
collapse:  # a list, or one criterion by itself
  - {metric: trace_ratio, threshold: 0.5, direction: below}  # half of the baseline's generation 0
  - {metric: wasserstein, threshold: 0.5, direction: above, relative_to: absolute, confirm: 2}
  - {metric: trace_ratio, threshold: [0.5, 2.0], direction: outside}  # less than half of it, or more than twice
  - any_of:  # whichever of these comes first, as one criterion
      - {metric: trace_ratio, threshold: 0.1, direction: below}
      - {metric: mean_error, threshold: 1.0, direction: above, relative_to: absolute}
claims:  # mixed over replace, paired by seed and size: above 1
  - id: human-data-preserves-the-variance
    source: Kazdan et al. 2025
    kind: replication
    statistic: {kind: metric, metric: trace_ratio, summary: geometric_mean, against: {regime.kind: replace}}
    where: {regime.kind: mixed, loss.kind: cross_entropy, samples_per_generation: [50, 100]}
    relation: greater
    value: 1.0
```
"""
_ANALYTIC = """Fitted in closed form, or by a few iterations, to samples held as arrays; chains that differ only in
their seed are computed together. A family of your own is named `module:Class` ([extending](extending.md)).
"""


def studies() -> str:
    """``docs/studies.md``, from the pydantic models of a study file."""
    from fortifai_ray.families.analytic import ANALYTIC
    from fortifai_ray.families.analytic.ngram_recipe import NgramRecipe
    from fortifai_ray.families.analytic.recipe import AnalyticRecipe
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
    page.heading("Language models", 2)
    page.model(LanguageRecipe.model_json_schema(), without=shared, of=" (language models)")
    page.heading("Images and points", 2)
    page.model(ImageRecipe.model_json_schema(), without=shared, of=" (images and points)")
    page.heading("Analytic families", 2)
    page.say(_ANALYTIC)
    page.model(AnalyticRecipe.model_json_schema(), without={*shared, "family"})
    page.sections({"family": [family.model_json_schema() for family in ANALYTIC.values()]})
    page.heading("n-gram models", 2)
    page.model(NgramRecipe.model_json_schema(), without=AnalyticRecipe.model_fields, of=" (n-gram models)")
    return page.text()


_TAGS = ("kind", "task")  # the keys that tell the models of one place apart
_UNTAGGED = {  # models that no such key tells apart, by their title
    "CollapseCriterion": "",
    "AnyOf": " with `any_of`",
    "Judge": " by another model",
}


class _Keys:
    """Tables of keys, with a section for each part of a study file."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._headings: dict[tuple[str, str], str] = {}  # of the section of a place and model
        self._said: dict[tuple[str, str], str] = {}  # where a meaning was given, by place and meaning
        self._known: Schema = {}
        self._of = ""

    def text(self) -> str:
        return "\n".join(self._parts).rstrip() + "\n"

    def say(self, text: str) -> None:
        self._parts.append(text)

    def heading(self, text: str, level: int) -> None:
        self._parts.append(f"\n{'#' * level} {text}\n")

    def model(
        self, schema: Schema, only: Collection[str] | None = None, without: Collection[str] = (), of: str = ""
    ) -> None:
        """A table of a model's own keys, then a section for each of its parts; ``of`` makes their headings unique."""
        self._known, self._of, self._headings = schema.get("$defs", {}), of, {}
        keys = {n: k for n, k in schema["properties"].items() if (only is None or n in only) and n not in without}
        self.sections(self._table("", {**schema, "properties": keys}))

    def sections(self, parts: Mapping[str, Sequence[Schema]]) -> None:
        """A section for each model that may stand at each place, then those of the parts of these models."""
        for place, forms in parts.items():
            deeper: dict[str, list[Schema]] = {}
            for form in forms:
                heading = self._heading(place, form, len(forms) > 1)
                self.heading(heading, 3)
                self.say(_paragraph(form) + "\n")
                for inner, models in self._table(f"{place}.", form, heading).items():
                    deeper.setdefault(inner, []).extend(models)
            self.sections(deeper)

    def _table(self, prefix: str, schema: Schema, heading: str = "") -> dict[str, list[Schema]]:
        """Write a table of keys, values, defaults and meanings; returns the models that need a section, by place."""
        needed, rows = set(schema.get("required", ())), []
        new: dict[str, list[Schema]] = {}
        for name, key in schema.get("properties", {}).items():
            if name in _TAGS and f"`{name}: " in heading:
                continue
            place, forms = prefix + name, dict(_forms(key, self._known))
            if isinstance(key.get("additionalProperties"), Mapping):
                place += ".KEY"
            for model, form in forms.items():
                around = (h for (outer, m), h in self._headings.items() if m == model and place.startswith(f"{outer}."))
                if (place, model) not in self._headings and (same := next(around, None)):
                    self._headings[place, model] = same  # a model inside another form of its own place
                elif (place, model) not in self._headings:
                    self._headings[place, model] = self._heading(place, form, len(forms) > 1)
                    new.setdefault(place, []).append(form)
            links = [_link("see below", self._headings[place, model]) for model in forms]
            values = _values(key, self._known).replace("see below", links[0] if links else "")
            meaning = _meaning(key, forms)
            above = self._said.setdefault((place, meaning), heading)
            if above != heading and len(meaning) > 60:
                meaning = _link("as above", above)
            rows.append((f"`{name}`", values, _default(key, name in needed, forms), meaning))
        if rows:
            self.say(table(("key", "values", "default", "meaning"), rows) + "\n")
        return new

    def _heading(self, place: str, form: Schema, several: bool) -> str:
        for tag in _TAGS:
            key = form.get("properties", {}).get(tag, {})
            values = [key["const"]] if "const" in key else key.get("enum", []) if several else []
            if values:
                return f"`{place}` with `{tag}: {' or '.join(values)}`"
        untagged = _UNTAGGED.get(form.get("title", ""))
        if several and untagged is not None:
            return f"`{place}`{untagged}"
        return f"`{place}`{' of your own' if several else self._of}"


def _link(text: str, heading: str) -> str:
    """A link to a heading of this page, as GitHub names it."""
    anchor = "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")
    return f"[{text}](#{anchor})"


def _paragraph(form: Schema) -> str:
    """The first paragraph of a model's docstring."""
    first = str(form.get("description", "")).split("\n\n")[0]
    return " ".join(first.replace("``", "`").replace(":class:", "").replace("~", "").split())


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
        inner = key.get("additionalProperties")
        return f"a mapping to {_values(inner, known)}" if any(_forms(key, known)) else "a mapping"
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
    parts = [f"{sign} {key[name]:,.10g}" for name, sign in signs.items() if name in key]
    return f" {' and '.join(parts)}" if parts else ""


def _default(key: Schema, needed: bool, forms: Mapping[str, Schema]) -> str:
    if "default" not in key:
        return "needed" if needed else ""
    value = key["default"]
    if isinstance(value, dict) and value and forms:
        return f"`kind: {value['kind']}`" if "kind" in value else "as below"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    import json

    return "null" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _meaning(key: Schema, forms: Mapping[str, Schema]) -> str:
    """A key's description; of a key without one, the first sentence about the only model that it holds."""
    if "description" in key or len(forms) != 1:
        return " ".join(str(key.get("description", "")).split())
    first = re.split(r"(?<! al)\.(?: |$)", _paragraph(*forms.values()))[0]
    return first[0].lower() + first[1:]


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
    sys.path.append(str(Path(__file__).parent))  # it is not there under PYTHONSAFEPATH
    from replications import page

    return page()


_ENGINES = """# Engines: which models they serve

Generated from `fortifai_ray/engines/architectures.json` (`python scripts/docs.py engines`), which
`scripts/architectures.py` writes: it makes a small random checkpoint of each architecture, serves it with vLLM on a
CPU, swaps it for another, compares log-probabilities and greedy tokens with Transformers', and breaks it in many ways
(each kind of tensor left out, one row of each altered), which must be refused.

`engine.kind: auto` takes vLLM where it is installed and this table says that it serves the model, else the Hugging Face
engine, which serves every architecture that Transformers loads as a causal LM; `--dry-run` says which, and why. A
reason that names a CPU does not hold on a GPU. vLLM's attention on a CPU has kernels for heads of some sizes only,
which the dry run checks, too.

After each swap, every parameter is compared with the file, in whatever layout vLLM holds it: those that are the file's
tensors, stacked or transposed, value by value; those that are in another order by checksums of all their values. Where
there are some of the latter (*values and answers*), log-probabilities are compared with Transformers' as well, after
each swap.

*Head* is what training and scoring use: the fused one never has the logits whole in memory. *Adapted* are the layers
that `training.lora.targets: all-linear` adapts.

"""


def engines() -> str:
    """``docs/engines.md``, from what came of trying each architecture."""
    from fortifai_ray.engines.served import ADAPTED, outcomes

    headings = (
        "architecture",
        "class",
        "vLLM",
        "difference",
        "proof of a swap",
        "vLLM with adapters",
        "head",
        "adapted",
    )
    rows = []
    for name, row in outcomes().items():
        served = row["why_not"] is None
        rows.append(
            (
                name,
                row["class"],
                "yes" if served else f"no: {row['why_not']}",
                f"{row['difference']:.0e}" if served else "",
                ("values and answers" if row["by_answers"] else "values") if served else "",
                "yes" if served and row["model_type"] in ADAPTED else "",
                row["head"],
                ", ".join(row["layers"]),
            )
        )
    return _ENGINES + table(headings, rows) + "\n"


def commands() -> str:
    """``docs/commands.md``, from the command line's own help."""
    import typer
    from typer.cli import get_docs_for_click

    from fortifai_ray.cli import app

    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="fortifai")
    return "\n".join(line.rstrip() for line in page.replace("# `fortifai`", "# Commands", 1).splitlines()) + "\n"


def schema() -> str:
    """``sweeps/study.schema.json``, for editors, from the pydantic models of a study file."""
    import json

    from fortifai_ray.study.schema import study_schema

    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "studies": studies,
    "metrics": metrics,
    "replications": replications,
    "engines": engines,
    "commands": commands,
    "schema": schema,
}

if __name__ == "__main__":
    sys.exit(main())
