"""The search for the boundary of collapse by ask and tell.

A search proceeds in rounds of a few chains that run side by side. A round depends only on the answers to the rounds
before it, not on the order in which they arrive: a search that is run again finds all of its chains in the stage store.
Rounds are

1. a scan: the ends of the range and its quarters (does anything collapse, does everything, in which direction);
2. the pair of places, at most two tolerances apart, at which the fewest more chains would prove that the boundary lies
   between them (:mod:`~fortifai_ray.search.evidence`, :mod:`~fortifai_ray.search.curve`), until they do;
3. meanwhile, with every fourth chain, an audit of the whole range: the middle of the widest stretch without a probe,
   until none is wider than a 32nd of the range, or the tolerance. The widest that is left is reported: a wider zone of
   collapse, or of survival, would have been seen.

Last, it probes again those places far from the boundary whose own answers contradict the side that they are believed to
be on, until they no longer do or it is proven that collapse is not monotone in the key
(:mod:`~fortifai_ray.search.monotone`): then the cell is refused, with those answers as evidence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_ray.search.audit import Doubts, doubts, unprobed
from fortifai_ray.search.belief import Belief, Pair, View, beliefs
from fortifai_ray.search.evidence import BACKING, Floats, threshold, votes
from fortifai_ray.search.monotone import PROVEN, Judged, collapsed_by_part, contradiction
from fortifai_ray.search.points import Answer, CollapsePoint, Ending, Lattice, Probe
from fortifai_ray.study.search import BoundarySearch

_SCAN = np.linspace(0, 1, 5)
_STRETCHES = 32  # of the range: none that is wider, and than the tolerance, stays without a probe
_AUDITS = 4  # one chain in so many is the audit's, while the boundary is sought
_TURN = (5**0.5 - 1) / 2  # turns that spread evenly over 0 to 1, however many there are
_DEAR = 40  # chains: within the tolerance of the range's end, what side of it the boundary is on is worth no more
_LAST, _LAST_SHARE = 40, 0.15  # chains: the last ones of a budget too small to settle find what interval they can
_ROUNDING = 1e-9
_MORE = np.linspace(BACKING[-1][1], 0, 25).tolist()  # nats of evidence beyond the threshold, as much as was asked for
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
    _due: bool = field(default=False, init=False)  # a round is complete, and the next was not planned yet
    _audited: int = field(default=0, init=False)
    _sorted: list[Judged] | None = field(default=None, init=False)
    rounds: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._round = self._probes(self._spread(_SCAN))

    @property
    def done(self) -> bool:
        self.plan()
        return self._ended is not None

    def ask(self, limit: int | None = None) -> list[Probe]:
        """The chains of this round that were not asked for yet, at most ``limit`` of them.

        Empty while the round waits for chains that run, and once the search is done.
        """
        self.plan()
        waiting = [probe for probe in self._round if probe not in self._asked][:limit]
        self._asked |= set(waiting)
        return waiting

    def tell(self, probe: Probe, collapsed: bool | None, generations: int = 0) -> None:
        """Take in whether a probe's chain collapsed within its horizon; None where it failed for another reason.

        Raises:
            ValueError: the probe was not asked for, or has its answer already.
        """
        if not self.waits_for(probe):
            raise ValueError(f"no chain at {probe.value:g}, seed {probe.seed} waits for an answer")
        self.answers[probe], self._sorted = Answer(collapsed, generations), None
        if all(asked in self.answers for asked in self._round):
            self.rounds += 1
            self._due = True

    def waits_for(self, probe: Probe) -> bool:
        """Whether a probe was asked for, and has no answer."""
        return probe in self._asked and probe not in self.answers

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
    def _farthest(self) -> NDArray[np.int64]:
        """(places,) For each place, the last that lies within an interval of the tolerance."""
        places = self.lattice.places
        return np.searchsorted(places, places + 2 * self.lattice.half_width + _ROUNDING, side="right") - 1

    @property
    def signs(self) -> tuple[int, ...]:
        """1: collapse may rise with the key; −1: it may fall."""
        return {"rises": (1,), "falls": (-1,), "detect": (1, -1)}[self.search.known_direction]

    @property
    def _judged(self) -> list[Judged]:
        if self._sorted is None:
            known = ((probe.place, probe.seed, answer.collapsed) for probe, answer in self.answers.items())
            self._sorted = sorted((place, seed, fell) for place, seed, fell in known if fell is not None)
        return self._sorted

    def votes(self) -> tuple[Floats, Floats]:
        """(places,), twice: collapses and survivals at each place; a seed's count as one."""
        return votes(self._judged, self.lattice.places)

    @property
    def step(self) -> float:
        """Between neighbouring places, in tolerances."""
        return 1 / self.lattice.half_width

    def belief(self) -> Belief:
        """What the answers so far say; their order does not matter."""
        collapses, survivals = self.votes()
        return beliefs(collapses[None], survivals[None], self.signs, self.step)[0]

    def result(self) -> CollapsePoint:
        """The boundary according to the answers so far; final once the search is done."""
        self.plan()
        belief, settled = self.belief(), self._ended == "settled"
        span = self._settled_span(belief) if settled else belief.span(threshold(self.search.level, settled=False))
        if span is None or self._ended in ("refused", "failed"):
            span = (-1, self.lattice.places.size)
        low, high = self._ends(span)
        known = (low is not None, high is not None)
        bound = {(True, False): "lower", (False, True): "upper", (False, False): "undetermined"}.get(known, "exact")
        critical = low if bound == "lower" else high
        if bound == "exact":
            bound = "exact" if settled else "undetermined"
            critical = self._median(belief.views[0], span) if settled else None
        return CollapsePoint(
            critical,
            low,
            high,
            level=self.search.level,
            bound=bound,  # type: ignore[arg-type]
            chains_run=len(self.answers),
            generations_run=sum(answer.generations for answer in self.answers.values()),
            seeds_used=len({probe.seed for probe in self.answers}),
            audit_width=self._audit_width(belief),
            ended=self._ended,
            evidence=self._evidence() if self._ended == "refused" else None,
        )

    def _settled_span(self, belief: Belief) -> tuple[int, int] | None:
        """The widest span within the tolerance: all the evidence that the search has is put to use."""
        least = threshold(self.search.level)
        spans = [belief.span(least + more) for more in _MORE]
        return next((span for span in spans if span and self._narrow(span, 0.0)), belief.span(least))

    def _ends(self, span: tuple[int, int]) -> tuple[float | None, float | None]:
        """The values around a span; None where it goes beyond the range."""
        low, high = span
        places = self.lattice.places
        return (
            self.lattice.value(int(places[low])) if low >= 0 else None,
            self.lattice.value(int(places[high])) if high < places.size else None,
        )

    def _median(self, view: View, span: tuple[int, int]) -> float:
        """The likely curve's crossing of one half, within a span."""
        inside = slice(span[0], span[1] + 1)
        return self.lattice.between(float(np.interp(0.5, view.crossed[inside], self.lattice.places[inside])))

    def _audit_width(self, belief: Belief) -> float:
        """The widest stretch of the range without a judged chain, in units of the tolerance's. A search that did not
        settle has not seen the places whose own answers leave room for doubt."""
        found = self._doubts(belief)
        seen = found.places if self._ended == "settled" else found.undoubted
        ends = self.lattice.places[[0, -1]]
        return float(np.diff(np.union1d(seen, ends)).max() * self.lattice.step)

    def plan(self, belief: Belief | None = None) -> None:
        """Plan the next round, or end, if a round is complete; ``belief`` is :meth:`belief`, where it is known."""
        if not self._due:
            return
        self._due = False
        failed = sum(answer.collapsed is None for answer in self.answers.values())
        left = self.search.budget - len(self.answers)
        if failed > _FAILURES and failed * 2 >= len(self.answers):
            self._ended = "failed"
        elif self._log_e > PROVEN:
            self._ended = "refused"
        elif left <= 0:
            self._ended = "budget"
        if self._ended:
            return
        places = self._wanted(belief or self.belief(), min(left, self.search.at_once))
        if not places:
            self._ended = "settled"
            return
        self._round = self._probes(places[:left])
        if not self._round:
            self._ended = "budget"  # every place was probed with every seed

    @property
    def due(self) -> bool:
        """Whether a round is complete, so that the next needs a belief."""
        return self._due

    def _wanted(self, belief: Belief, count: int) -> list[int]:
        """The places of the next round; none where nothing is left to ask."""
        pair = self._unsettled(belief)
        if pair is None:
            return self._audit(count) or self._doubts(belief).again(count)
        left = self.search.budget - len(self.answers)
        if pair.chains > left <= max(_LAST, _LAST_SHARE * self.search.budget):
            pair = belief.views[0].narrowest(threshold(self.search.level, settled=False), left) or pair
        audit = self._audit(1) if len(self.answers) >= _AUDITS * self._audited + len(_SCAN) else []
        self._audited += len(audit)
        turns = [(len(self.answers) + i) * _TURN % 1 for i in range(count - len(audit))]
        return audit + [int(self.lattice.places[at]) for at in pair.places(turns)]

    def _unsettled(self, belief: Belief) -> Pair | None:
        """Where to ask as long as the boundary is neither known to within the tolerance nor to be out of range."""
        least = threshold(self.search.level)
        spans = [view.evidence.span(least) for view in belief.views]
        for view, span in zip(belief.views, spans, strict=True):
            pair = view.cheapest(least, self._farthest)
            if span is None:
                if not any(spans):  # the answers contradict every boundary: ask where they do
                    low = int(np.flatnonzero(view.evidence.above >= least)[-1])
                    return Pair(low, int(np.flatnonzero(view.evidence.below >= least)[0]), 1.0, 1.0)
            elif not self._narrow(span, pair.chains):
                return pair
        for view, span in zip(belief.views, spans, strict=True):
            for distance, more in BACKING if span else ():
                assert span
                if backing := view.backing(span, least + more, round(distance * self.lattice.half_width)):
                    return backing
        return None

    def _narrow(self, span: tuple[int, int], chains: float) -> bool:
        """Whether a span that so many more ``chains`` would narrow is narrow enough."""
        low, high = span
        beyond = self.lattice.places.size
        if low < 0 or high == beyond:
            close = high <= self._farthest[0] if low < 0 else low >= 0 and self._farthest[low] == beyond - 1
            return high == 0 or low == beyond - 1 or (bool(close) and chains > _DEAR)
        return high <= max(self._farthest[low], low + 1)

    def _spread(self, shares: np.ndarray) -> list[int]:
        """Places at the given shares of the range."""
        first, last = self.lattice.places[[0, -1]]
        return list(dict.fromkeys(self._nearest(first + share * (last - first)) for share in shares))

    def _nearest(self, place: float) -> int:
        places = self.lattice.places
        return int(places[np.argmin(np.abs(places - place))])

    @property
    def _widest(self) -> float:
        """The widest stretch, in places, that the audit leaves without a probe."""
        first, last = self.lattice.places[[0, -1]]
        return max(float(last - first) / _STRETCHES, self.lattice.half_width)

    def _audit(self, count: int) -> list[int]:
        """At most ``count`` places in the widest stretches without a probe."""
        return unprobed((probe.place for probe in self.answers), self._widest, self._nearest, count)

    def _doubts(self, belief: Belief) -> Doubts:
        """The places whose answers contradict the side of the boundary that they are believed to be on."""
        level, view, whole = self.search.level, belief.views[0], (-1, self.lattice.places.size)
        span = belief.span(threshold(level)) or belief.span(threshold(level, settled=False)) or whole
        if span == whole:  # beyond either end, while the direction is unknown
            span = view.evidence.span(threshold(level)) or span
        return doubts(self._judged, self.lattice.places, view, span, self._widest)

    def _probes(self, places: list[int]) -> list[Probe]:
        """A round at ``places``, each with the next seed in turn; a place that had every seed gives way to the nearest
        that did not. Shorter than ``places`` where nothing is left to probe."""
        taken = {(probe.place, probe.seed) for probe in self.answers}
        chosen: list[Probe] = []
        for wanted in places:
            start = len(self.answers) + len(chosen)
            for place in self._from(wanted):
                seed = self._free_seed(place, start, taken)
                if seed is not None:
                    taken.add((place, seed))
                    chosen.append(Probe(place, self.lattice.value(place), seed))
                    break
        return chosen

    def _from(self, wanted: int) -> Iterator[int]:
        """Every place, the nearest to ``wanted`` first."""
        yield wanted
        yield from sorted(self.lattice.places.tolist(), key=lambda place: (abs(place - wanted), place))

    def _free_seed(self, place: int, start: int, taken: set[tuple[int, int]]) -> int | None:
        """The first seed, from the ``start``-th in turn, that was not used at ``place``."""
        seeds = self.search.seeds or start + 1
        turn = (self.first_seed + (start + step) % seeds for step in range(seeds))
        return next((seed for seed in turn if (place, seed) not in taken), None)

    @property
    def _log_e(self) -> float:
        """How strongly the answers so far contradict that collapse is monotone in the key."""
        places = self.lattice.places
        return contradiction(self._judged, int(places[0]), int(places[-1]), self.signs)

    def _evidence(self) -> str:
        """The answers that contradict a monotone collapse, in words."""
        value, places = self.lattice.value, self.lattice.places
        parts = [
            f"{value(low):g}" + (f" to {value(high):g}" if high > low else "") + f": {collapsed} of {chains}"
            for low, high, chains, collapsed in collapsed_by_part(self._judged, int(places[0]), int(places[-1]))
        ]
        where = f"collapsed at {self.search.over} = {', '.join(parts)}"
        return f"{where}; odds against a monotone collapse e^{self._log_e:.1f}"
