"""A study file: one recipe, what varies, and the criterion of collapse.

Every mistake in it is reported before anything starts, in one line: the file, the key, the value given and what would
be right.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import register
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.results.schema import LINEAGE, baseline_columns, flatten, searched_keys, varied_keys
from fortifai_ray.seeds import LARGEST_SEED
from fortifai_ray.statistics.criterion import Collapse, first_repeated, one_metric, unconfirmable
from fortifai_ray.storage.location import reserved
from fortifai_ray.study.claim_checks import StudyFacts, checked_claims, undecided_claims
from fortifai_ray.study.claims import Claim
from fortifai_ray.study.grid import (
    Chain,
    asked_types,
    check_for_all,
    check_overrides,
    common,
    grid,
    in_full,
    resolve,
    whole_sections,
)
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.study.search import Search, refuse_search
from fortifai_ray.study.shipped import find
from fortifai_ray.validation import (
    Section,
    a_name,
    all_keys,
    dump_yaml,
    hint,
    parse_yaml,
    put,
    read_yaml,
    unknown_key,
    validated,
)

ITSELF = "family.kind"  # as a baseline's key: what all cells and lineages have in common, so that each is its own
_CELLS_KNOWN = 1000  # whose baselines are kept: a search makes cells as it goes


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _different(criteria: list[Collapse]) -> list[Collapse]:
    if repeated := first_repeated(criteria):
        first, second = repeated
        raise ValueError(f"entries {first} and {second} (counted from 0) are the same criterion: give it once")
    return criteria


class Range(Section):
    """``count`` whole numbers from ``start`` on, e.g. a thousand seeds."""

    start: int = Field(0, ge=0, le=LARGEST_SEED - 1_000_000, description="the first of them")
    count: int = Field(ge=1, le=1_000_000, description="how many there are")

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(range(self.start, self.start + self.count))


def _range_or_list(value: Any) -> str:
    return "range" if isinstance(value, dict | Range) else "list"


def _is_a_list_or_range(value: Any) -> Any:
    if isinstance(value, list | Range) or (isinstance(value, dict) and value.keys() & Range.model_fields.keys()):
        if value == []:
            raise ValueError("this list is empty: give at least one value, or leave the key out")
        return value
    listed = dump_yaml([value], flow=True).strip()
    shown = f", e.g. {listed}" if value is not None and len(listed) <= 80 and "\n" not in listed else ""
    raise ValueError(f"a list is needed, with an entry for each value{shown}; or a range, {{start: 0, count: 10}}")


def _is_a_grid(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("dotted keys of the recipe are needed, each with a list of its values, e.g. seed: [0, 1, 2]")
    for key, values in value.items():
        if str(key).partition(".")[0] in StudySettings.model_fields:
            raise ValueError(f"{key} is no key of the recipe: only those vary")
        inside = values.items() if isinstance(values, dict) and not values.keys() & Range.model_fields.keys() else ()
        for name in (name for name, inner in inside if isinstance(inner, list)):
            raise ValueError(f"{key}: a key inside a section varies under its dotted path, {key}.{name}: […]")
    return value


_Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Tag("list")],
    Discriminator(_range_or_list),
    BeforeValidator(_is_a_list_or_range),
]


def _free(name: str) -> str:
    if reserved(name):
        raise ValueError(f"a storage keeps something else under {name}, or its disk would; another name is needed")
    return name


class _Name(Section):
    name: Annotated[str, a_name("._-"), AfterValidator(_free)] = Field(
        max_length=100, description="folder of its results"
    )


def check_name(name: str, source: str) -> str:
    """A name that a storage can have a folder of; raises :class:`UserError`, beginning with ``source``, for others."""
    return validated(_Name, {"name": name}, source).name


class StudySettings(_Name):
    """The keys of a study file that are not the recipe's."""

    vary: Annotated[dict[str, _Values], BeforeValidator(_is_a_grid)] = Field(
        {}, description="values of each varied key: a list (of whole sections too) or a range of whole numbers"
    )
    collapse: Annotated[
        list[Collapse],
        BeforeValidator(_as_list, json_schema_input_type=Collapse | list[Collapse]),
        Field(min_length=1),
        AfterValidator(_different),
    ] = Field(
        description="the collapse criterion, or a list of them, each judged by itself; any_of makes one of several"
    )
    baseline: dict[str, Any] = Field(
        {"loss.kind": "cross_entropy"}, description="the keys in which a chain's baseline differs from the chain"
    )
    claims: list[Claim] = Field([], description="what the study is expected to show, tested once it has run")
    search: Search | None = Field(None, description="places the chains by a search; null: runs the grid")
    early_stopping: bool = Field(True, description="end a chain once every criterion has confirmed its collapse")
    resources: ResourcesConfig = ResourcesConfig()


@dataclass(frozen=True)
class Study:
    """A checked study: its settings and its chains.

    Where it searches, ``chains`` has one of each cell, at the recipe's values of the searched keys. None of these runs:
    :meth:`probe` makes the chains that do.
    """

    source: str
    settings: StudySettings
    chains: tuple[Chain, ...]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def varied(self) -> list[str]:
        """The dotted keys that vary, as columns of the tables (the seed among them only if it varies)."""
        return list(self.chains[0].varied)

    @cached_property
    def cells(self) -> tuple[Chain, ...]:
        """One chain, the first, of each combination of the varied keys but the seed."""
        first: dict[str, Chain] = {}
        for chain in self.chains:
            first.setdefault(chain.cell_id, chain)
        return tuple(first.values())

    @property
    def baseline(self) -> dict[str, Any]:
        """The baseline as the tables have it."""
        return baseline_columns(self.settings.baseline, self.varied)

    @property
    def members(self) -> Iterator[Chain]:
        """The chains that the tables are about, made as they are asked for: those of the grid, or of each lineage in
        it."""
        return (member for chain in self.chains for member in chain.members)

    @cached_property
    def member_cells(self) -> tuple[Chain, ...]:
        """The first of them in each cell."""
        return tuple(member for chain in self.cells for member in chain.members)

    @cached_property
    def generations_asked(self) -> int:
        """The longest chain's generations: the study's horizon is one less."""
        return max(chain.recipe.generations for chain in self.chains)

    def resolved(self) -> dict[str, Any]:
        """The study with its defaults filled in: the content of ``STORAGE/NAME/study.yaml``."""
        settings = self.settings.model_dump(mode="json")
        recipes = [cell.recipe.model_dump(mode="json") for cell in self.cells]
        return {"name": settings.pop("name"), **common(recipes, self.settings.vary), **settings}

    def probe(self, cell: Chain, values: Mapping[str, Any], seed: int) -> Chain:
        """The chain of a cell at ``values`` of the searched keys.

        Raises:
            UserError: the recipe refuses a value.
        """
        whole = {key for key, value in cell.recipe.flat().items() if isinstance(value, int)}
        changes = {key: int(value) if key in whole else value for key, value in values.items()}
        recipe = resolve(f"{self.source}: search", put(cell.recipe.model_dump(mode="json"), changes))
        return self.chain(recipe.model_copy(update={"seed": seed}))

    def chain(self, recipe: Recipe) -> Chain:
        """The chain of a recipe, with its values of the study's varied keys."""
        flat = recipe.flat()
        return Chain(recipe, {key: flat.get(key) for key in self.varied})

    def baseline_of(self, chain: Chain) -> Recipe:
        """The recipe whose generation 0 a chain is compared with: its own, with the baseline's keys put in.

        It is checked once for a cell, however many thousand seeds that has.
        """
        keys = whole_sections({k: v for k, v in self.settings.baseline.items() if k != ITSELF})
        if chain.cell_id not in self._baselines:
            if len(self._baselines) >= _CELLS_KNOWN:
                self._baselines.clear()
            content = put(chain.recipe.model_dump(mode="json"), keys)
            self._baselines[chain.cell_id] = resolve(f"{self.source}: baseline", content)
            check_for_all(self._baselines[chain.cell_id], keys, f"{self.source}: baseline")
        baseline = self._baselines[chain.cell_id]
        return baseline if "seed" in keys else baseline.model_copy(update={"seed": chain.recipe.seed})

    @cached_property
    def _baselines(self) -> dict[str, Recipe]:
        """The baselines of the cells asked for so far, of one seed each."""
        return {}


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file, given by its path or by its name (:func:`~fortifai_ray.study.shipped.find`);
    ``overrides`` are ``key=value`` with a dotted key and a YAML value.

    Raises :class:`UserError` with the file, the key and what would be right.
    """
    path = find(path)
    content = read_yaml(path, "a study file")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a study file is a mapping of keys (name, family, corpus, …)")
    return make_study({**content}, str(path), overrides)


def make_study(content: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Study:
    """The checked study of a study file's content; see :func:`load_study`."""
    for override in overrides:
        content = _overridden(content, override)
    names = StudySettings.model_fields
    _check_top_level(content, source)
    settings = validated(StudySettings, {k: v for k, v in content.items() if k in names}, source)
    check_overrides(overrides, settings.vary)
    base = {key: value for key, value in content.items() if key not in names}
    if settings.search is not None:
        base = _with_searched(base, settings.search, source)
    columns = varied_keys({**base, **settings.model_dump(include={"vary", "search", "baseline"})})
    if LINEAGE in columns:
        settings = _of_ecosystems(settings, content, source)
    study = Study(source, settings, grid(base, settings.vary, columns, source))
    study = _with_baseline(
        study, in_full(settings.baseline, lambda one: _with_baseline(study, one).baseline_of(study.cells[0]))
    )
    for chain in study.cells:
        register(*(metric for recipe in chain.recipe.lineages().values() for metric in recipe.declared))
        study.baseline_of(chain)  # raises where the baseline's keys do not fit the recipe
    if settings.search is not None:
        _refuse_search(study)
    facts = _facts(study)
    claims = checked_claims(settings.claims, facts, source)
    warnings = (*unconfirmable(study.settings.collapse, study.generations_asked), *undecided_claims(claims, facts))
    return replace(study, settings=study.settings.model_copy(update={"claims": claims}), warnings=warnings)


def _of_ecosystems(settings: StudySettings, content: Mapping[str, Any], source: str) -> StudySettings:
    """The settings of a study of ecosystems: where its file names no baseline, each lineage is its own."""
    if settings.search is not None:
        raise UserError(f"{source}: search: the chains of an ecosystem are not searched: vary its keys instead")
    for key in [*settings.vary, *settings.baseline]:
        _check_lineage(key, content, source)
    if LINEAGE in settings.baseline:
        raise UserError(
            f"{source}: baseline: lineage: a lineage is compared with that of its name in the baseline's ecosystem, or "
            "with the baseline's one model: name the ecosystem, e.g. {ecosystem.mixing.own: 1.0}"
        )
    family = content.get("family")
    if "baseline" in content:
        return settings
    kind = family.get("kind") if isinstance(family, dict) else None
    return settings.model_copy(update={"baseline": {ITSELF: kind}})


def _with_baseline(study: Study, baseline: Mapping[str, Any]) -> Study:
    return replace(study, settings=study.settings.model_copy(update={"baseline": dict(baseline)}))


def _check_lineage(key: str, content: Mapping[str, Any], source: str) -> None:
    """Raise :class:`UserError` where a dotted key leads into a lineage that the study's ``content`` has not."""
    section, _, rest = key.partition("ecosystem.lineages.")
    ecosystem = content.get("ecosystem")
    known = ecosystem.get("lineages") if isinstance(ecosystem, dict) else None
    name = rest.partition(".")[0]
    if not section and name and name not in (known := known if isinstance(known, dict) else {}):
        raise UserError(f"{source}: {key}: there is no lineage {name!r}{hint(name, known)}")


def _overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """The content with the value of ``key=value`` put in: one key under ``vary`` and ``baseline``, whose keys have
    dots."""
    key, separator, value = override.partition("=")
    sections = key.strip().split(".")
    if not separator or not all(sections):
        raise UserError(f"--set {override}: key=value is needed, e.g. --set training.epochs=1")
    new = parse_yaml(value, f"--set {override}")
    if sections[0] in ("vary", "baseline") and len(sections) > 1:
        inner = content.get(sections[0])
        new = {**(inner if isinstance(inner, dict) else {}), ".".join(sections[1:]): new}
        sections = sections[:1]
    _check_lineage(".".join(sections), content, "--set")
    return put(content, {".".join(sections): new})


def _facts(study: Study) -> StudyFacts:
    settings = study.settings
    return StudyFacts(
        recipes=[cell.facts for cell in study.member_cells]
        + [{**cell.recipe.flat(), LINEAGE: whole.lineage} for cell in study.cells for whole in cell.wholes],
        metrics={metric for cell in study.member_cells for metric in cell.metrics},
        criteria=[one_metric(criterion) for criterion in settings.collapse],
        generations=study.generations_asked,
        searched=searched_keys(settings.model_dump(include={"search"})),
        search=settings.search,
        seeds={chain.recipe.seed for chain in study.chains},
        growing=[cell.recipe.grows for cell in study.member_cells]
        + [cell.recipe.grows for cell in study.cells for _ in cell.wholes],
    )


def _with_searched(base: Mapping[str, Any], search: Search, source: str) -> dict[str, Any]:
    """The recipe with the lowest searched value of each searched key that it leaves out."""
    known = {key for kind in asked_types(base, source) for key in all_keys(kind)}
    given = flatten(dict(base))
    missing = {key: value for key, value in search.corners[0].items() if key not in given}
    return put(base, {key: value for key, value in missing.items() if key.rpartition(".")[2] in known})


def _refuse_search(study: Study) -> None:
    """Raise :class:`UserError` where a search does not fit its study, or a recipe refuses an end of its range."""
    settings, search = study.settings, study.settings.search
    assert search is not None
    refuse_search(
        search,
        [cell.recipe.flat() for cell in study.cells],
        list(settings.vary),
        settings.collapse,
        is_baseline=any(study.baseline_of(cell) == cell.recipe for cell in study.cells),
        source=study.source,
    )
    for cell in study.cells:
        for values in search.corners:
            study.probe(cell, values, cell.recipe.seed)


def _check_top_level(content: Mapping[str, Any], source: str) -> None:
    recipes: list[type[BaseModel]] = [Recipe, *asked_types(content, source)]
    known = {*StudySettings.model_fields, *(key for kind in recipes for key in kind.model_fields)}
    for key in content:
        if key not in known:
            raise UserError(f"{source}: {key}: {_unknown_at_the_top(str(key), recipes, content)}")


def _unknown_at_the_top(key: str, recipes: Sequence[type[BaseModel]], content: Mapping[str, Any]) -> str:
    section, _, rest = key.partition(".")
    anchors = "a key that is there for its anchors begins with x-"
    if key.startswith(("_", ".")):
        return f"unknown key; {anchors}"
    if rest:
        return f"a dotted key stands under vary and --set alone: write {section}: {{{rest}: …}}"
    said, known, listed = unknown_key(key, "", [*recipes, StudySettings], content).partition(" (known:")
    anchored = isinstance(content[key], dict | list) and not said.endswith("?")
    return f"{said}; {anchors}{known}{listed}" if anchored else said + known + listed
