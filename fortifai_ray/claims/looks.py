"""How often a claim has been looked at: a verdict asked again with more chains needs an interval that allows for it.

Chains added until a claim decides, with an interval of 90 % at each of five looks, turn a one-sided error of 0.05 into
0.16. So either the number of chains is fixed beforehand (``looks: 1``: one number of chains has verdicts, another one
has none), or the claim says how many numbers it allows (``looks: K``), and each interval is at 1 − (1 − level)/K: the
chance that any of them misses the truth is then at most 1 − level (Bonferroni), however they depend on one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fortifai_ray.claims.result import ClaimResult
from fortifai_ray.storage.stage import canonical_hash
from fortifai_ray.study.claim_statistics import CriticalPoint, PerChain
from fortifai_ray.study.claims import Claim

_NOT_MEASURED = ("claims", "resources", "search", "vary")  # what of a study file a claim's number does not depend on


@dataclass(frozen=True)
class Look:
    """One look at a claim: see :class:`~fortifai_ray.claims.result.ClaimResult`. ``problem``: why it has no verdict."""

    about: str
    number: int = 0
    looked_at: tuple[int, ...] = ()
    problem: str = ""


def look(claim: Claim, study: Mapping[str, Any], n_chains: int, earlier: ClaimResult | None) -> Look:
    """The look at a claim with ``n_chains`` chains.

    Args:
        study: the study file as resolved.
        earlier: the claim as it was checked before.
    """
    about = _about(claim, study)
    before = earlier.looked_at if earlier is not None and earlier.about == about else ()
    if n_chains < claim.min_chains:
        return Look(about, 0, before, f"{n_chains} chains, and the claim asks for at least {claim.min_chains}")
    if isinstance(claim.statistic, CriticalPoint):
        return Look(about, 1)  # the search places its chains itself, and says when its interval has settled
    planned = _planned(claim, study)
    if isinstance(claim.statistic, PerChain) and n_chains < planned:
        return Look(about, 0, before, f"{n_chains} of {planned} chains have been measured: no verdict before all have")
    looked_at = tuple(sorted({*before, n_chains}))
    number = looked_at.index(n_chains) + 1
    if number <= claim.looks:
        return Look(about, number, looked_at)
    seen = ", ".join(f"{count:,}" for count in looked_at[: number - 1])
    allowed = "fixes their number beforehand" if claim.looks == 1 else f"allows {claim.looks} looks"
    return Look(
        about,
        number,
        looked_at,
        f"it was looked at with {seen} chains before, and it {allowed}: write `looks: {number}` or more, which widens "
        "the interval, or run other seeds under another name",
    )


def _about(claim: Claim, study: Mapping[str, Any]) -> str:
    recipe = {key: value for key, value in study.items() if key not in _NOT_MEASURED}
    return str(canonical_hash([recipe, claim.statistic.model_dump(mode="json"), claim.where]))[:16]


def _planned(claim: Claim, study: Mapping[str, Any]) -> int:
    """The seeds that the study file asks for and ``where`` names; 0 where a search chooses them."""
    seeds = (study.get("vary") or {}).get("seed")
    if study.get("search") or seeds is None:
        return 0
    if isinstance(seeds, Mapping):
        start = int(seeds.get("start", 0))
        seeds = range(start, start + int(seeds["count"]))
    wanted = claim.where.get("seed")
    named = set(wanted if isinstance(wanted, list) else [wanted])
    return len(set(seeds) if wanted is None else named.intersection(seeds))
