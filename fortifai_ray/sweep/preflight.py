"""Before a sweep: the checks that need the data and models, and what a dry run says of the store and the plan."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fortifai_ray.chain.chain import GenerationResult, Inputs
from fortifai_ray.errors import UserError
from fortifai_ray.process.temporary import check_temporary
from fortifai_ray.recipe.ecosystem import writing
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.storage.store import MANIFEST, StageStore, Storage
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.forecast import Cluster, Left, check_forecast, forecast_lines
from fortifai_ray.sweep.plan import Plan, cores_here, make_plan
from fortifai_ray.sweep.work import Grid, Replay


def check_study(study: Study, store: StageStore) -> Inputs:
    """Check what a study's file alone does not show: data that are long enough, metrics that exist.

    Returns the data, prepared. Raises :class:`UserError` for what is not as it should be.
    """
    check_temporary()
    _check_metrics(study)
    inputs = _prepare(study, store)
    # What a check looks at does not depend on the loss or the seed: chains that differ in no more are checked once.
    chains = [*study.member_cells, *_corners(study)]
    distinct = {chain.recipe.model_dump_json(exclude={"loss", "seed"}): chain.recipe for chain in chains}
    for recipe in distinct.values():
        recipe.check(inputs.of(recipe), store, study.source)
        recipe.check_resources(study.settings.resources.engine_gpus, study.source)
    for cell in study.cells:
        _check_common_data(cell, inputs, study.source)
    _check_writing(study, [chain.recipe for chain in (*study.cells, *_corners(study))], inputs, store)
    return inputs


def _check_writing(study: Study, wholes: Sequence[Recipe], inputs: Inputs, store: StageStore) -> list[str]:
    """Check what each model is to write, for itself and for its readers; returns what a dry run says of it."""
    said = list[str]()
    for whole in {one.model_dump_json(exclude={"loss", "seed"}): one for one in wholes}.values():
        recipes = whole.lineages()
        needs = {name: one.needs(inputs.of(one), store) for name, one in recipes.items()}
        for name, own in writing(whole.ecosystem, needs).items():
            source = study.source if name is None else f"{study.source}: ecosystem.lineages.{name}"
            said += recipes[name].check_writing(own, inputs.of(recipes[name]), store, source)
    return said


def _check_common_data(cell: Chain, inputs: Inputs, source: str) -> None:
    """Raise :class:`UserError` where a lineage cannot read what another writes."""
    prepared = {name: inputs.of(recipe) for name, recipe in cell.recipe.lineages().items()}
    first, *others = prepared
    for name in others:
        if prepared[name] != prepared[first]:
            raise UserError(
                f"{source}: ecosystem.lineages.{name}.family: its data are not those of {first} (of text, the "
                "vocabulary), and neither could read what the other writes: models of one vocabulary are right; text "
                "goes from one vocabulary into another by corpus.written_by"
            )


def _corners(study: Study) -> list[Chain]:
    """Chains at the ends of what a study searches: they need the most data, or the least, of all that it may run."""
    search = study.settings.search
    if search is None:
        return []
    corners = []
    for cell in study.cells:
        for values in search.corners:
            chain = study.probe(cell, values, cell.recipe.seed)
            if chain.recipe.shared_input != cell.recipe.shared_input:
                raise UserError(
                    f"{study.source}: search.over: {', '.join(values)} changes the data themselves, which are read "
                    "before a search begins; vary it instead"
                )
            corners.append(chain)
    return corners


def _check_metrics(study: Study) -> None:
    for criterion in (member for one in study.settings.collapse for member in one.members):
        for chain in study.member_cells:
            if criterion.metric not in chain.metrics:
                raise UserError(
                    f"{study.source}: collapse.metric: {criterion.metric} is not measured for the family "
                    f"{chain.recipe.family.kind} ({', '.join(chain.metrics)})"
                )


def _prepare(study: Study, store: StageStore) -> Inputs:
    """The data of a study's recipes and of their baselines, each read once."""
    wanted = {(type(recipe), recipe.shared_input): recipe for recipe in _recipes(study)}
    return Inputs({key: recipe.prepare(store, study.source) for key, recipe in wanted.items()})


def _recipes(study: Study) -> list[Recipe]:
    """The recipe of every model that a study's cells and their baselines train."""
    cells = [chain.recipe for chain in study.cells] + [study.baseline_of(chain) for chain in study.cells]
    return [recipe for cell in cells for recipe in cell.lineages().values()]


@dataclass(frozen=True)
class DryRun:
    """What a sweep would do. It prints, and shows itself in a notebook, as ``fortifai sweep --dry-run`` says it.

    Attributes:
        lines: what the data and models are, which chains the store holds, what the rest would run on and what it may
            take.
        notices: what is not as one might expect, what flatters a model, which criteria and claims nothing can meet.
        chains: how many chains it has, or a search may run at most; ``stored``, how many of them the store holds whole.
        generations: how many generations are left to compute at most; of batched chains, which take no time, none.
    """

    lines: list[str]
    notices: list[str]
    chains: int
    stored: int
    generations: int

    def __str__(self) -> str:
        return "\n".join([*self.lines, *self.notices])

    __repr__ = __str__


def dry_run(study: Study, storage: Storage | Path, cluster: Cluster | None = None) -> DryRun:
    """Check everything, and tell what a sweep would do, here and on a ``cluster``.

    Raises :class:`UserError` for what the user can put right.
    """
    store = StageStore(storage)
    inputs = check_study(study, store)
    if cluster is not None:
        check_forecast(study)
    what = _descriptions(study, store, inputs)
    run = _search_plan(study) if study.settings.search else _grid_plan(study, store, inputs, cluster)
    return replace(run, lines=[*what, *run.lines], notices=notices(study))


def _descriptions(study: Study, store: StageStore, inputs: Inputs) -> list[str]:
    """What the recipes say of their data and models; recipes that differ in their seed alone say the same."""
    distinct = {recipe.model_dump_json(exclude={"seed"}): recipe for recipe in _recipes(study)}
    lines = [line for recipe in distinct.values() for line in recipe.describe(inputs.of(recipe), store)]
    lines += _check_writing(study, [cell.recipe for cell in study.cells], inputs, store)
    return list(dict.fromkeys(lines))


def notices(study: Study) -> list[str]:
    """What a sweep says when it starts, and a dry run: what of its recipes is not as one might expect, what
    flatters a model, and which criteria and claims nothing can meet or decide."""
    own = (line for chain in study.member_cells for line in chain.recipe.notices)
    return list(dict.fromkeys([*own, *_flattering(study), *study.warnings]))


def _flattering(study: Study) -> list[str]:
    """A line for each metric of the collapse criteria by which models are chosen."""
    metrics = dict.fromkeys(member.metric for one in study.settings.collapse for member in one.members)
    found = ((metric, chain.recipe.flattery(metric)) for metric in metrics for chain in study.member_cells)
    lines = [
        f"warning: collapse.metric: {metric} flatters the models, and its fidelity intervals with them: {why}; another "
        "metric beside it shows how far, or training.keep: last"
        for metric, why in found
        if why is not None
    ]
    return list(dict.fromkeys(lines))


@dataclass
class _Stored:
    """What the store holds of a study's grid; sizes are those of single chains' generations."""

    whole: int = 0
    stages: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def size(self) -> float | None:
        """Bytes of a generation, on average; None where none was measured."""
        return sum(self.sizes) / len(self.sizes) if self.sizes else None

    def add(self, held: Replay, store: StageStore) -> str:
        """Count a job; returns what the store holds of it, in words."""
        self.whole += 0 if held.missing else len(held.job.chains)
        if held.job.chains[0].recipe.batched:
            return "to be computed" if held.missing else "whole in the store"
        for result in held.results:
            assert isinstance(result, GenerationResult)
            if not store.storage.remote:  # a manifest elsewhere would have to be fetched with its stage
                self.sizes.append(sum(_size(store, result.row[name]) for name in ("stage", "synthetic_stage")))
        self.stages += held.stages
        if held.missing is None:
            return f"whole in the store ({len(held.results)} generations)"
        return f"{held.stages} steps in the store; next: {held.missing}"


def _grid_plan(study: Study, store: StageStore, inputs: Inputs, cluster: Cluster | None) -> DryRun:
    stored, left, lines = _Stored(), Left(), list[str]()
    store.recall(study.name)
    for held in Grid(study, inputs).stored(store):
        lines.append(f"{held.job.label}: {stored.add(held, store)}")
        left.add(held)
    plan, here = _plan(study, len(study.chains) - stored.whole)
    lines.append(
        f"{len(study.chains)} chains of {study.generations_asked} generations, {stored.whole} of them in the store"
        + (f", {stored.stages} steps in all" if stored.stages else "")
        + f". {here[0]}"
    )
    if left.generations:
        lines.append(_estimate(left, stored.size, plan.chains_at_once if plan else 1))
    lines += [*here[1:], *(forecast_lines(study, left, stored.size, cluster) if cluster else [])]
    return DryRun(lines, [], len(study.chains), stored.whole, left.generations)


def _estimate(rest: Left, size: float | None, at_once: int) -> str:
    """Time and space with ``at_once`` chains side by side, from this study's generations in the store; a chain that
    collapses early takes less."""
    left = f"{rest.generations} generations to compute at most"
    measured = [one.train + one.evaluate + one.generate for one in rest.measured.get(None, ())]
    if not measured:
        return f"{left}; the time they take can be estimated once one of them is in the store"
    hours = rest.generations * sum(measured) / len(measured) / at_once / 3600
    time = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
    space = "" if size is None else f", {rest.generations * size / 1e6:,.0f} MB"
    return f"{left}: about {time}{space}, by the {len(measured)} in the store; start-up comes on top"


def _size(store: StageStore, stage_hash: str | None) -> int:
    """Bytes of a stage's files."""
    stage = store.open(stage_hash) if stage_hash else None
    if stage is None:
        return 0
    manifest: dict[str, Any] = json.loads((stage.path / MANIFEST).read_text(encoding="utf-8"))
    return sum(file["size"] for file in manifest["files"].values())


def _search_plan(study: Study) -> DryRun:
    """What a search may run at most; what of that the store holds depends on what it will ask."""
    search = study.settings.search
    assert search is not None
    if isinstance(search, BoundarySearch):
        cells = len(study.cells) * len(study.settings.collapse)
        chains, at_once = search.budget * cells, search.at_once * cells
        what = f"the boundary of collapse along {search.over} in {cells} cell(s)"
    else:
        chains, at_once = search.budget * len(study.chains), search.at_once
        what = f"the largest {search.maximise} over {', '.join(search.over)}, and the baseline's chains beside"
    _, here = _plan(study, at_once)
    first = f"searches for {what}: at most {chains} chains of {study.generations_asked} generations"
    return DryRun([first, *here], [], chains, 0, chains * study.generations_asked)


def _plan(study: Study, chains: int) -> tuple[Plan | None, list[str]]:
    """The plan for this machine's CPUs, and the same in words; None where it needs GPUs: a cluster may have them."""
    engines = any(chain.recipe.uses_engines for chain in study.cells)
    cpus = float(study.settings.resources.num_cpus or cores_here())
    try:
        plan = make_plan(study.settings.resources, max(1, chains), cpus, cores_here(), engines=engines)
    except UserError as error:
        message = f"Not on this machine, where GPUs are not counted: {error}"
        return None, [f"{message}. A cluster's plan is made when the sweep starts"]
    return plan, [f"Here: {plan.describe()}", *plan.shrunk]
