"""The search for the boundary of collapse by ask and tell: of one cell, and of many side by side.

A search proceeds in rounds of a few chains that run side by side. A round depends only on the answers to the rounds
before it, not on the order in which they arrive: a search that is run again finds all of its chains in the stage store.
Rounds are

1. a scan: the ends of the range and its quarters (does anything collapse, does everything, in which direction);
2. places spread over the posterior of the boundary, until its interval is within the tolerance;
3. an audit of places between those of the scan, which no round has probed.

Last, it probes again those places far from the boundary whose own answers contradict the side that they are believed to
be on, until they no longer do or it is proven that collapse is not monotone in the key
(:mod:`~fortifai_ray.search.monotone`): then the cell is refused, with those answers as evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import betainc

from fortifai_ray.search.monotone import PROVEN, collapsed_by_part, contradiction
from fortifai_ray.search.points import Answer, CollapsePoint, Ending, Lattice, Probe
from fortifai_ray.search.posterior import Belief, Posterior
from fortifai_ray.study.search import BoundarySearch

_SCAN = np.linspace(0, 1, 5)
_AUDIT = np.linspace(1 / 8, 7 / 8, 4)
_ASIDE = 0.4  # of a width; 0.25 takes a third more chains of wide curves, with 0.5 a lopsided one is covered 83 in 100
_FARTHEST = 1.5  # tolerances aside: without it curves ten tolerances wide take two to four times the chains
_FEW = 0.3  # of a place's chains collapse, or survive: it lies clearly on one side of the boundary
_DOUBT = 0.15  # the most that its own answers may leave of that
_FAILURES = 3  # chains that may fail before a cell in which half of them do is given up


@dataclass
class BoundaryFinder:
    """The search of one cell.

    ::

        while not finder.done:
            for probe in finder.ask():
                finder.tell(probe, *run(probe))
        point = finder.result()

    Attributes:
        search: the study's settings.
        whole: whether the key takes whole numbers only.
        first_seed: the recipe's; others follow it.
        answers: the answers so far.
        rounds: rounds completed so far.
    """

    search: BoundarySearch
    whole: bool = False
    first_seed: int = 0
    answers: dict[Probe, Answer] = field(default_factory=dict, init=False)
    _round: list[Probe] = field(default_factory=list, init=False)
    _asked: set[Probe] = field(default_factory=set, init=False)
    _ended: Ending | None = field(default=None, init=False)
    _audited: bool = field(default=False, init=False)
    rounds: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._round = self._probes(self._spread(_SCAN))

    @property
    def done(self) -> bool:
        return self._ended is not None

    def ask(self, limit: int | None = None) -> list[Probe]:
        """The chains of this round that were not asked for yet, at most ``limit`` of them.

        Empty while the round waits for chains that run, and once the search is done.
        """
        waiting = [probe for probe in self._round if probe not in self._asked][:limit]
        self._asked |= set(waiting)
        return waiting

    def tell(self, probe: Probe, collapsed: bool | None, generations: int = 0) -> None:
        """Take in whether a probe's chain collapsed within its horizon; None where it failed for another reason.

        Raises:
            ValueError: the probe was not asked for, or has its answer already.
        """
        if probe not in self._asked or probe in self.answers:
            raise ValueError(f"no chain at {probe.value:g}, seed {probe.seed} waits for an answer")
        self.answers[probe] = Answer(collapsed, generations)
        if all(asked in self.answers for asked in self._round):
            self.rounds += 1
            self._plan()

    def release(self) -> None:
        """Ask again for every chain without an answer: the process that ran it is gone."""
        self._asked = set(self.answers)

    def state(self) -> dict[str, Any]:
        """The search as JSON."""
        return {
            "search": self.search.model_dump(mode="json"),
            "whole": self.whole,
            "first_seed": self.first_seed,
            "answers": [[p.place, p.seed, a.collapsed, a.generations] for p, a in sorted(self.answers.items())],
            "asked": [[p.place, p.seed] for p in sorted(self._asked - self.answers.keys())],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "BoundaryFinder":
        """The search at the time of :meth:`state`, by asking and answering everything again.

        Raises:
            ValueError: this search does not ask for the stored answers; another version of it may have.
        """
        finder = cls(BoundarySearch.model_validate(state["search"]), state["whole"], state["first_seed"])
        known = {(place, seed): (collapsed, count) for place, seed, collapsed, count in state["answers"]}
        while not finder.done:
            answered = [probe for probe in finder._round if (probe.place, probe.seed) in known]
            unfinished = len(answered) < len(finder._round)
            finder._asked |= set(answered)
            for probe in answered:
                finder.tell(probe, *known.pop((probe.place, probe.seed)))
            if unfinished:
                break
        if known:
            raise ValueError(f"{len(known)} of the stored answers are not those that this search asks for")
        pending = {(place, seed) for place, seed in state["asked"]}
        finder._asked |= {probe for probe in finder._round if (probe.place, probe.seed) in pending}
        return finder

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.search, self.whole)

    @cached_property
    def _posterior(self) -> Posterior:
        return Posterior(int(self.lattice.places[0]), int(self.lattice.places[-1]), self._signs)

    @property
    def _signs(self) -> tuple[int, ...]:
        return {"rises": (1,), "falls": (-1,), "detect": (1, -1)}[self.search.known_direction]

    @property
    def _judged(self) -> list[tuple[int, int, bool]]:
        answers = sorted(self.answers.items())
        return [
            (probe.place, probe.seed, answer.collapsed) for probe, answer in answers if answer.collapsed is not None
        ]

    def belief(self) -> Belief:
        """The posterior of the boundary after the answers so far."""
        return self._posterior.belief(self._judged)

    def result(self) -> CollapsePoint:
        """The boundary according to the answers so far; final once the search is done."""
        belief = self.belief()
        low, critical, high = self._interval(belief)
        bottom, top = self._ends
        bound = "exact"
        if self._ended in ("refused", "failed") or (low < bottom and high > top):
            bound = "undetermined"
        elif high > top:
            bound = "lower"
        elif low < bottom:
            bound = "upper"
        between = self.lattice.between
        ends = {
            "exact": (between(critical), between(low), between(high)),
            "lower": (between(min(low, top)), between(min(low, top)), None),
            "upper": (between(max(high, bottom)), None, between(max(high, bottom))),
            "undetermined": (None, None, None),
        }
        return CollapsePoint(
            *ends[bound],
            level=self.search.level,
            bound=bound,  # type: ignore[arg-type]
            chains_run=len(self.answers),
            generations_run=sum(answer.generations for answer in self.answers.values()),
            seeds_used=len({probe.seed for probe in self.answers}),
            ended=self._ended,
            evidence=self._evidence() if self._ended == "refused" else None,
        )

    @property
    def _ends(self) -> tuple[float, float]:
        """The range's ends as places."""
        return self.lattice.place(self.search.low), self.lattice.place(self.search.high)

    def _interval(self, belief: Belief) -> tuple[float, float, float]:
        """Lower end, median and upper end, in places."""
        tail = (1 - self.search.level) / 2
        low, middle, high = belief.quantile(np.array([tail, 0.5, 1 - tail]))
        return float(low), float(middle), float(high)

    def _plan(self) -> None:
        """The next round, or the end."""
        failed = sum(answer.collapsed is None for answer in self.answers.values())
        left = self.search.budget - len(self.answers)
        if failed > _FAILURES and failed * 2 >= len(self.answers):
            self._ended = "failed"
        elif self._log_e > PROVEN:
            self._ended = "refused"
        elif left <= 0:
            self._ended = "budget"
        if self.done:
            return
        belief = self.belief()
        if not self._settled(belief):
            places = self._likely(belief, self.search.at_once)
        elif not self._audited:
            self._audited = True
            places = self._spread(_AUDIT)
        elif doubtful := self._doubtful_places(belief):
            places = [place for place in doubtful for _ in range(2)][: max(2, self.search.at_once)]
        else:
            self._ended = "settled"
            return
        self._round = self._probes(places[:left])
        if not self._round:
            self._ended = "budget"  # every place was probed with every seed

    def _settled(self, belief: Belief) -> bool:
        """Whether the interval is within the tolerance, or lies wholly outside the range (beyond either end, while the
        direction of collapse is unknown)."""
        low, _, high = self._interval(belief)
        bottom, top = self._ends
        outside = low >= top or high <= bottom or belief.within(bottom, top) < 1 - self.search.level
        return outside or high - low <= 2 * self.lattice.half_width

    def _likely(self, belief: Belief, count: int) -> list[int]:
        """Places spread evenly over the posterior of the boundary, within the range.

        Each is moved aside by a share of the curve's width, alternately down and up. Answers at the boundary itself say
        nothing of the widths, without which the number of answers needed is unknown; answers far from it say little of
        its place, and mislead where the curve is not of the assumed form (``_ASIDE``). Between two places on either
        side, the boundary lies where the curve's asymmetry puts it, which no number of answers at those places reveals:
        they must not lie much farther apart than the interval to be reached (``_FARTHEST``).
        """
        if count <= 0:
            return []
        middles = belief.quantile((np.arange(count) + 0.5) / count)
        below, above = np.minimum(_ASIDE * np.array(belief.mean_widths), _FARTHEST * self.lattice.half_width)
        aside = np.where((len(self.answers) + np.arange(count)) % 2, above, -below)
        return [self._nearest(place) for place in middles + aside]

    def _spread(self, shares: np.ndarray) -> list[int]:
        """Places at the given shares of the range."""
        first, last = self.lattice.places[[0, -1]]
        return list(dict.fromkeys(self._nearest(first + share * (last - first)) for share in shares))

    def _nearest(self, place: float) -> int:
        places = self.lattice.places
        return int(places[np.argmin(np.abs(places - place))])

    def _doubtful_places(self, belief: Belief) -> list[int]:
        """Places that are believed to be on one side, and whose own answers leave room for doubt.

        The doubt is the probability that more than half of a place's chains collapse (or fewer), from its answers alone
        and Jeffreys' prior. It takes a few chains that survive to outweigh one that collapsed where few should.
        """
        places, where = np.unique([place for place, _, _ in self._judged], return_inverse=True)
        hits = np.bincount(where, weights=[collapsed for _, _, collapsed in self._judged])
        below_half = betainc(hits + 0.5, np.bincount(where) - hits + 0.5, 0.5)
        chances = belief.chances(places)
        doubt = np.where(chances < _FEW, 1 - below_half, np.where(chances > 1 - _FEW, below_half, 0.0))
        order = np.argsort(-doubt, kind="stable")
        return [int(place) for place in places[order][doubt[order] > _DOUBT]]

    def _probes(self, places: list[int]) -> list[Probe]:
        """A round at ``places``, each with the next seed in turn; a place that had every seed gives way to the nearest
        that did not. Shorter than ``places`` where nothing is left to probe."""
        taken = {(probe.place, probe.seed) for probe in self.answers}
        chosen: list[Probe] = []
        for wanted in places:
            start = len(self.answers) + len(chosen)
            for place in sorted(self.lattice.places.tolist(), key=lambda place: (abs(place - wanted), place)):
                seed = self._free_seed(place, start, taken)
                if seed is not None:
                    taken.add((place, seed))
                    chosen.append(Probe(place, self.lattice.value(place), seed))
                    break
        return chosen

    def _free_seed(self, place: int, start: int, taken: set[tuple[int, int]]) -> int | None:
        """The first seed, from the ``start``-th in turn, that was not used at ``place``."""
        seeds = self.search.seeds or start + 1
        turn = (self.first_seed + (start + step) % seeds for step in range(seeds))
        return next((seed for seed in turn if (place, seed) not in taken), None)

    @property
    def _log_e(self) -> float:
        """How strongly the answers so far contradict that collapse is monotone in the key."""
        places = self.lattice.places
        return contradiction(self._judged, int(places[0]), int(places[-1]), self._signs)

    def _evidence(self) -> str:
        """The answers that contradict a monotone collapse, in words."""
        value, places = self.lattice.value, self.lattice.places
        parts = [
            f"{value(low):g}" + (f" to {value(high):g}" if high > low else "") + f": {collapsed} of {chains}"
            for low, high, chains, collapsed in collapsed_by_part(self._judged, int(places[0]), int(places[-1]))
        ]
        where = f"collapsed at {self.search.over} = {', '.join(parts)}"
        return f"{where}; odds against a monotone collapse e^{self._log_e:.1f}"


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
