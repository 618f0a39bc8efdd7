"""The searches of many cells side by side."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.points import Probe


@dataclass
class CellSearches:
    """The searches of a study's cells, by name. With several criteria, a cell has a search for each of them.

    Cells take turns, so that all of them narrow down together and a sweep that is stopped early knows something of
    each. A round of one cell waits for its slowest chain; meanwhile the others' chains fill the cluster.
    """

    finders: dict[str, BoundaryFinder]
    _turn: int = field(default=0, init=False)

    @property
    def done(self) -> bool:
        return all(finder.done for finder in self.finders.values())

    def ask(self, limit: int) -> list[tuple[str, Probe]]:
        """Up to ``limit`` chains to run now; none while every cell waits for its round's others."""
        names, chains = list(self.finders), list[tuple[str, Probe]]()
        idle = 0
        while len(chains) < limit and idle < len(names):
            name = names[self._turn % len(names)]
            self._turn += 1
            probes = self.finders[name].ask(1)
            chains += [(name, probe) for probe in probes]
            idle = 0 if probes else idle + 1
        return chains

    def ask_one(self, names: Collection[str], limit: int) -> tuple[str, list[Probe]] | None:
        """At most ``limit`` chains of the next cell among ``names`` that has any to run now; None where none has."""
        every = list(self.finders)
        for _ in every:
            name = every[self._turn % len(every)]
            self._turn += 1
            if name in names and (probes := self.finders[name].ask(limit)):
                return name, probes
        return None

    def tell(self, name: str, probe: Probe, collapsed: bool | None, generations: int = 0) -> None:
        """Take in a chain's outcome; see :meth:`BoundaryFinder.tell`."""
        self.finders[name].tell(probe, collapsed, generations)

    def release(self) -> None:
        """Ask again for every chain without an answer; see :meth:`BoundaryFinder.release`."""
        for finder in self.finders.values():
            finder.release()

    def state(self) -> dict[str, Any]:
        """The searches as JSON."""
        return {"turn": self._turn, "finders": {name: finder.state() for name, finder in self.finders.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CellSearches":
        """The searches at the time of :meth:`state`; see :meth:`BoundaryFinder.from_state`."""
        searches = cls({name: BoundaryFinder.from_state(one) for name, one in state["finders"].items()})
        searches._turn = state["turn"]
        return searches
