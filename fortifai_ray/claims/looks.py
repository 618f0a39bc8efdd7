"""How often a claim has been looked at: a verdict asked again with other chains needs an interval that allows for it.

Chains added until a claim decides, with an interval of 90 % at each of five looks, turn a one-sided error of 0.05 into
0.16; seeds taken out or exchanged until it decides do the same. So either the chains are fixed beforehand
(``looks: 1``: the first set of them that is looked at has verdicts, another one has none), or the claim says how many
sets it allows (``looks: K``), and each interval is at 1 − (1 − level)/K: the chance that any of them misses the truth
is then at most 1 − level (Bonferroni), however they depend on one another.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fortifai_ray.claims.result import ClaimResult
from fortifai_ray.storage.stage import canonical_hash
from fortifai_ray.study.claim_checks import seeds_named
from fortifai_ray.study.claim_statistics import CriticalPoint, PerChain
from fortifai_ray.study.claims import Claim

# What of a study file the number that a claim is about does not depend on.
_NOT_MEASURED = ("claims", "resources", "search", "seed", "vary")


@dataclass(frozen=True)
class Look:
    """One look at a claim: see :class:`~fortifai_ray.claims.result.ClaimResult`. ``problem``: why it has no verdict."""

    about: str
    number: int = 0
    looked_at: tuple[int, ...] = ()
    looked_at_seeds: tuple[str, ...] = ()
    problem: str = ""

    def without_one(self, earlier: ClaimResult | None) -> "Look":
        """What is known where there was no interval to look at: the earlier looks."""
        before = earlier if earlier is not None and earlier.about == self.about else None
        counts, seeds = (before.looked_at, before.looked_at_seeds) if before else ((), ())
        return replace(self, number=0, looked_at=counts, looked_at_seeds=seeds)


def look(
    claim: Claim, study: Mapping[str, Any], n_chains: int, seeds: Collection[int], earlier: ClaimResult | None
) -> Look:
    """The look at a claim with ``n_chains`` independent chains.

    Args:
        study: the study file as resolved.
        seeds: of these chains; of a search, which chooses its own, the one from which they follow.
        earlier: the claim as it was checked before.
    """
    before = Look(_about(claim, study)).without_one(earlier)
    if n_chains < claim.min_chains:
        return replace(before, problem=f"{n_chains} chains, and the claim asks for at least {claim.min_chains}")
    searched, planned = isinstance(claim.statistic, CriticalPoint), _planned(claim, study)
    if isinstance(claim.statistic, PerChain) and n_chains < planned:
        waiting = f"{n_chains} of {planned} chains have been measured: no verdict before all have"
        return replace(before, problem=waiting)
    # A search adds chains by itself, and says when its interval has settled.
    which = str(canonical_hash([None if searched else n_chains, sorted(seeds)]))[:16]
    counts, known = list(before.looked_at), list(before.looked_at_seeds)
    same = (at for at, one in enumerate(known) if one == which or (not one and counts[at] == n_chains))
    at = next(same, len(known))
    counts[at : at + 1], known[at : at + 1] = [n_chains], [which]
    seen = replace(before, number=at + 1, looked_at=tuple(counts), looked_at_seeds=tuple(known))
    return seen if seen.number <= claim.looks else replace(seen, problem=_one_too_many(claim, seen))


def _one_too_many(claim: Claim, seen: Look) -> str:
    before = ", ".join(f"{count:,}" for count in seen.looked_at[: seen.number - 1])
    other = "other " if seen.looked_at[seen.number - 1] in seen.looked_at[: seen.number - 1] else ""
    allowed = "fixes them beforehand" if claim.looks == 1 else f"allows {claim.looks} looks"
    return (
        f"it was looked at with {before} {other}chains before, and it {allowed}: write `looks: {seen.number}` or more, "
        "which widens the interval, or run other seeds under another name"
    )


def _about(claim: Claim, study: Mapping[str, Any]) -> str:
    recipe = {key: value for key, value in study.items() if key not in _NOT_MEASURED}
    where = {key: value for key, value in claim.where.items() if key != "seed"}
    return str(canonical_hash([recipe, claim.statistic.model_dump(mode="json"), where]))[:16]


def _planned(claim: Claim, study: Mapping[str, Any]) -> int:
    """The seeds that the study file asks for and ``where`` names; 0 where a search chooses them."""
    seeds = (study.get("vary") or {}).get("seed")
    if study.get("search") or seeds is None:
        return 0
    if isinstance(seeds, Mapping):
        start = int(seeds.get("start", 0))
        seeds = range(start, start + int(seeds["count"]))
    return len(seeds_named(seeds, claim.where))
