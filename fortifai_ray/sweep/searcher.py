"""The boundary search as a Ray Tune ``Searcher``, and Optuna's for ``kind: optimise``.

A trial's configuration is ``{"cell": name, "value": number, "seed": whole number, "place": whole number}``; its last
result says whether its chain ``collapsed`` and how many ``generations`` it took. A trial that fails for good does not
count. Tune may run any number of trials at once: the searcher suggests none while every cell waits for its round.
"""

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from fortifai_ray.errors import UserError
from fortifai_ray.files import write_text
from fortifai_ray.search.cells import CellSearches
from fortifai_ray.search.points import Probe
from fortifai_ray.study.search import OptimiseSearch


class BoundarySearcher(Searcher):
    """Suggests the chains that the searches ask for; with ``num_samples`` −1 the search ends the tuner."""

    def __init__(self, searches: CellSearches) -> None:
        super().__init__()
        self.searches = searches
        self._running: dict[str, tuple[str, Probe]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """This search ignores the tuner's metric."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next chain; None while all rounds wait for their last, ``FINISHED`` when every cell is done."""
        if self.searches.done:
            return Searcher.FINISHED
        if not (probes := self.searches.ask(1)):
            return None
        ((cell, probe),) = probes
        self._running[trial_id] = (cell, probe)
        return probe.config(cell)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the verdict to the search; a trial without one counts as failed."""
        cell, probe = self._running.pop(trial_id)
        verdict = None if error or not result else result.get("collapsed")
        generations = int(result.get("generations") or 0) if result else 0
        self.searches.tell(cell, probe, None if verdict is None else bool(verdict), generations)

    def save(self, checkpoint_path: str) -> None:
        """Write the whole state, running trials included, as JSON, in one atomic step."""
        running = {trial: [cell, *astuple(probe)] for trial, (cell, probe) in self._running.items()}
        write_text(Path(checkpoint_path), json.dumps({"searches": self.searches.state(), "running": running}))

    def restore(self, checkpoint_path: str) -> None:
        """Restore the state; trials that were running report under the same ids."""
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.searches = CellSearches.from_state(state["searches"])
        self._running = {trial: (cell, Probe(*probe)) for trial, (cell, *probe) in state["running"].items()}


def optuna_search(
    search: OptimiseSearch,
    seed: int,
    whole: Collection[str] = (),
    tried: Sequence[tuple[dict[str, float], float | None]] = (),
) -> Searcher:
    """Tune's own Optuna searcher over the keys of ``search.over``; trials report ``fi_ratio``.

    Keys among ``whole`` take whole numbers only. ``tried`` are points of an earlier run and their ratios (None: no
    ratio), from which it continues; its draws then differ from those of that run.

    Raises:
        UserError: Optuna is not installed.
    """
    from ray.tune.search.optuna import OptunaSearch

    class FinalOnly(OptunaSearch):
        """A point's ratio is known once all of its chains have run; earlier results are ignored."""

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None: ...

    logging.getLogger("optuna").setLevel(logging.WARNING)  # a line for every trial, on top of the sweep's own
    space = {key: _domain(ends, is_log=key in search.log, whole=key in whole) for key, ends in search.over.items()}
    try:
        searcher = FinalOnly(
            OptunaSearch.convert_search_space(space), metric=search.maximise, mode="max", seed=seed + len(tried)
        )
    except (AssertionError, ImportError) as error:
        raise UserError("search.kind: optimise needs Optuna, which is missing: pip install optuna") from error
    for values, ratio in tried:
        searcher.add_evaluated_point(values, ratio, pruned=ratio is None)  # type: ignore[arg-type]  # None is allowed then
    return searcher


def _domain(ends: Sequence[float], *, is_log: bool, whole: bool) -> Any:
    low, high = ends
    if whole:  # Ray's upper end is exclusive
        return (tune.lograndint if is_log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if is_log else tune.uniform)(low, high)
