"""What can only be seen by looking: corpora, models and addresses, looked at before anything is started."""

import socket

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.errors import UserError
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Chain, Study


def check_study(study: Study, store: StageStore) -> Inputs:
    """Everything about a study that its file alone does not tell: data that are long enough, metrics that exist.

    Returns the data, prepared. Raises :class:`UserError` for what is not as it should be.
    """
    _check_metrics(study)
    inputs = _prepare(study, store)
    # What a check looks at does not depend on the loss or the seed: chains that differ in no more are checked once.
    chains = [*study.cells, *_corners(study)]
    distinct = {chain.recipe.model_dump_json(exclude={"loss", "seed"}): chain.recipe for chain in chains}
    for recipe in distinct.values():
        recipe.check(inputs.of(recipe), store, study.source)
        recipe.check_resources(study.settings.resources.engine_gpus, study.source)
    return inputs


def _corners(study: Study) -> list[Chain]:
    """Chains at the ends of what a study searches: they need the most data, or the least, of all that it may run."""
    search = study.settings.search
    if search is None:
        return []
    found = []
    for cell in study.cells:
        for values in search.corners:
            chain = study.probe(cell, values, cell.recipe.seed)
            if chain.recipe.shared_input != cell.recipe.shared_input:
                raise UserError(
                    f"{study.source}: search.over: {', '.join(values)} changes the data themselves, which are read "
                    "before a search begins; vary it instead"
                )
            found.append(chain)
    return found


def _check_metrics(study: Study) -> None:
    for criterion in study.settings.collapse:
        for chain in study.cells:
            if criterion.metric not in chain.recipe.metrics:
                raise UserError(
                    f"{study.source}: collapse.metric: {criterion.metric} is not measured for the family "
                    f"{chain.recipe.family.kind} ({', '.join(chain.recipe.metrics)})"
                )


def _prepare(study: Study, store: StageStore) -> Inputs:
    """The data of a study's recipes and of their baselines, each read once."""
    recipes = [chain.recipe for chain in study.cells] + [study.baseline_of(chain) for chain in study.cells]
    wanted = {(type(recipe), recipe.shared_input): recipe for recipe in recipes}
    return Inputs({key: recipe.prepare(store, study.source) for key, recipe in wanted.items()})


def check_address(address: str | None) -> None:
    """Whether anything listens there: Ray itself would try for minutes before it says that nothing does."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "/" in host:  # started here, or a form that Ray resolves ("auto", ray://)
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); give a Ray cluster's HOST:PORT"
        ) from error
