"""The boundary search as a Ray Tune ``Searcher``, and Optuna's for ``kind: optimise``.

A trial's configuration is ``{"cell": name, "value": number, "seed": whole number, "place": whole number}``; the last
result that it reports says whether its chain ``collapsed`` and how many ``generations`` it took. A trial that fails
for good takes no part. Tune may hold as many trials at once as it likes: more are only suggested where a cell has some.
"""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from fortifai_ray.errors import UserError
from fortifai_ray.files import write_text
from fortifai_ray.search.boundary import CellSearches
from fortifai_ray.search.points import Probe
from fortifai_ray.study.search import OptimiseSearch

COLLAPSED, GENERATIONS = "collapsed", "generations"


class BoundarySearcher(Searcher):
    """Suggests the chains that the searches ask for; with ``num_samples`` −1 it is the search that ends the tuner."""

    def __init__(self, searches: CellSearches) -> None:
        super().__init__()
        self.searches = searches
        self._running: dict[str, tuple[str, Probe]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Whatever the tuner minimises is nothing to this search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next chain; None while all rounds wait for their last, ``FINISHED`` when every cell is done."""
        if self.searches.done:
            return Searcher.FINISHED
        asked = self.searches.ask(1)
        if not asked:
            return None
        ((cell, probe),) = asked
        self._running[trial_id] = (cell, probe)
        return probe.config(cell)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search; a trial without a verdict counts as failed."""
        cell, probe = self._running.pop(trial_id)
        verdict = None if error or not result else result.get(COLLAPSED)
        generations = int(result.get(GENERATIONS) or 0) if result else 0
        self.searches.tell(cell, probe, None if verdict is None else bool(verdict), generations)

    def save(self, checkpoint_path: str) -> None:
        """Write everything, trials that run included, as JSON: aside first, so that no half of it is ever read."""
        running = {trial: [cell, *_as_list(probe)] for trial, (cell, probe) in self._running.items()}
        write_text(Path(checkpoint_path), json.dumps({"searches": self.searches.state(), "running": running}))

    def restore(self, checkpoint_path: str) -> None:
        """As it was: trials that ran go on, and are told under the same ids."""
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.searches = CellSearches.from_state(state["searches"])
        self._running = {trial: (cell, Probe(*probe)) for trial, (cell, *probe) in state["running"].items()}


def _as_list(probe: Probe) -> list[float]:
    return [probe.place, probe.value, probe.seed]


def optuna_search(
    search: OptimiseSearch,
    seed: int,
    whole: Collection[str] = (),
    tried: Sequence[tuple[dict[str, float], float | None]] = (),
) -> Searcher:
    """Tune's own Optuna searcher over the keys of ``search.over``; trials report ``fi_ratio``.

    Keys among ``whole`` take whole numbers alone. ``tried`` are points of an earlier run and their ratios (None: there
    was none), from which it goes on; its draws then differ from those that it made before.

    Raises:
        UserError: Optuna is not installed.
    """
    from ray.tune.search.optuna import OptunaSearch

    class FinalOnly(OptunaSearch):
        """A point's ratio is known once all of its chains have run: what is reported before is no measurement."""

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
        searcher.add_evaluated_point(values, ratio, pruned=ratio is None)  # type: ignore[arg-type]  # None it is then
    return searcher


def _domain(ends: Sequence[float], *, is_log: bool, whole: bool) -> Any:
    low, high = ends
    if whole:  # Ray's upper end is exclusive
        return (tune.lograndint if is_log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if is_log else tune.uniform)(low, high)
