"""Check a study's claims against its result tables."""

import math
from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import BaseModel

from fortifai_ray.claims.chains import Sample, Undecided, sample
from fortifai_ray.claims.looks import look
from fortifai_ray.claims.measures import Measured, critical_point, fidelity_ratio, onset_order, onset_share
from fortifai_ray.claims.power import needed_after
from fortifai_ray.claims.result import MARKS, ClaimResult, Region, Verdict, stored_claims
from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.results.words import number
from fortifai_ray.statistics import intervals
from fortifai_ray.statistics.intervals import Interval, NoInterval
from fortifai_ray.study.claim_checks import completed
from fortifai_ray.study.claim_statistics import CriticalPoint, FidelityRatio, OnsetOrder, OnsetShare, PerChain, Summary
from fortifai_ray.study.claims import Claim
from fortifai_ray.validation import hint, validated

_OF_CELLS: dict[type, Callable[..., Measured]] = {
    OnsetShare: onset_share,
    OnsetOrder: onset_order,
    FidelityRatio: fidelity_ratio,
    CriticalPoint: critical_point,
}


class _Claims(BaseModel):
    claims: list[Claim]


def check_claims(study_dir: Path, ids: Collection[str] = ()) -> list[ClaimResult]:
    """Check the claims in ``study.yaml``, in its order: all of them, or those named in ``ids``.

    Args:
        study_dir: ``STORAGE/NAME`` as a sweep leaves it.

    Raises:
        UserError: there is no study or no ``generations.parquet``, a table cannot be read, a claim is not valid, or no
            claim has one of the ids. What a single claim lacks makes that claim undecided, and its ``why`` says so.
    """
    results = open_study(study_dir)
    claims = _claims(results)
    _ = results.columns if claims else None  # without this table no claim can be checked
    for wanted in ids:
        if wanted not in (known := [claim.id for claim in claims]):
            raise UserError(f"{results.folder}: no claim has the id {wanted!r}{hint(wanted, known)}")
    earlier = {result.id: result for result in stored_claims(results.claims if claims else None)}
    return [check_claim(results, claim, earlier.get(claim.id)) for claim in claims if not ids or claim.id in ids]


def check_claim(results: StudyResults, claim: Claim, earlier: ClaimResult | None = None) -> ClaimResult:
    """Check one claim against a study's tables.

    Args:
        earlier: the claim as it was checked before: with other chains, this is another look at it.
    """
    numbers = claim.numbers()
    region = Region.of(claim, numbers)
    interval, n_chains, seeds, why = _measure(results, claim)
    verdict: Verdict = "undecided"
    seen = look(claim, results.study, n_chains, seeds, earlier)
    if interval is None:
        seen = seen.without_one(earlier)
    elif seen.problem:
        why = seen.problem
    else:
        verdict, doubt = _verdict(region, interval)
        why = "; ".join(part for part in (why, doubt) if part)
    needed = _needed(claim, numbers, interval, n_chains)
    if needed is not None and needed > max(claim.min_chains, n_chains) and not seen.problem:
        why = "; ".join(part for part in (why, f"about {needed:,} chains would decide it 19 times in 20") if part)
    wrong = claim.wrong_numbers()
    return ClaimResult(
        id=claim.id,
        source=claim.source,
        kind=claim.kind,
        statistic=claim.words,
        measured=interval.measured if interval and not math.isnan(interval.measured) else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        level=claim.level,
        method=interval.method if interval else "",
        n_chains=n_chains,
        min_chains=claim.min_chains,
        relation=claim.relation,
        value=numbers[0] if len(numbers) == 1 else None,
        accepted_low=region.low,
        accepted_high=region.high,
        asked=_asked(claim, numbers),
        verdict=verdict,
        why=why,
        looks=claim.looks,
        look=seen.number,
        looked_at=seen.looked_at,
        looked_at_seeds=seen.looked_at_seeds,
        about=seen.about,
        wrong=_rejected(claim, interval),
        wrong_value=min(wrong, key=lambda value: abs(value - numbers[0])) if wrong else None,
        chains_needed=needed,
    )


def _verdict(region: Region, interval: Interval) -> tuple[Verdict, str]:
    """The verdict, and why it is undecided: an approximate interval decides only where one twice as wide agrees."""
    verdict = region.verdict(interval.low, interval.high)
    if verdict == "undecided" or not interval.approximate:
        return verdict, ""
    wide = interval.doubled
    if region.verdict(wide.low, wide.high) == verdict:
        return verdict, ""
    ends = f"[{number(wide.low, 4)}, {number(wide.high, 4)}]"
    return "undecided", f"one twice as wide, {ends}, does not agree"


def _rejected(claim: Claim, interval: Interval | None) -> str:
    """``rejects nothing happens (1), does not reject kept for fresh (0.95)``: what the interval leaves out."""
    if interval is None:
        return ""
    words = []
    for wrong, value in zip(claim.must_reject, claim.wrong_numbers(), strict=True):
        verb = "does not reject" if interval.low <= value <= interval.high else "rejects"
        words.append(f"{verb} {wrong.name} ({number(value)})")
    return ", ".join(words)


def _needed(claim: Claim, numbers: tuple[float, ...], interval: Interval | None, n_chains: int) -> int | None:
    """The chains that decide an equality; None for another claim, or where no number of chains would."""
    if claim.tolerance is None or interval is None:
        return None
    needed = needed_after(interval, n_chains, claim.tolerance.around(numbers[0]), claim.interval_level)
    return math.ceil(needed) if math.isfinite(needed) else None


def _measure(results: StudyResults, claim: Claim) -> tuple[Interval | None, int, list[int], str]:
    """The statistic's interval, the number of independent chains behind it, their seeds, and a note: where there is no
    interval, why not."""
    statistic, n_chains = claim.statistic, 0
    try:
        if not isinstance(statistic, PerChain):
            measure = _OF_CELLS[type(statistic)]
            interval, n_chains, seeds = measure(results, statistic, claim.where, claim.interval_level)
            return interval, n_chains, seeds, interval.note
        chains = sample(results, statistic, claim.where)
        n_chains = len(chains.values)
        interval = _summarise(chains, statistic.summary, claim.interval_level)
    except (Undecided, NoInterval) as error:
        return None, n_chains, [], str(error)
    return interval, n_chains, chains.seeds, "; ".join(part for part in (interval.note, chains.note) if part)


def _summarise(chains: Sample, summary: Summary, level: float) -> Interval:
    values, name = chains.values, summary.name
    if name == "ratio_of_means":
        return intervals.ratio_of_means(chains.tops, chains.bottoms, level)
    if summary.number is None:
        simple = {"mean": intervals.mean, "geometric_mean": intervals.geometric_mean, "variance": intervals.variance}
        return simple[name](values, level) if name in simple else intervals.quantile(values, 0.5, level)
    if name == "quantile":
        return intervals.quantile(values, summary.number, level)
    yes = values > summary.number if name == "share_above" else values < summary.number
    no = values <= summary.number if name == "share_above" else values >= summary.number
    return intervals.share(int(yes.sum()), int(no.sum()), int((~(yes | no)).sum()), level)


def _asked(claim: Claim, numbers: tuple[float, ...]) -> str:
    if claim.relation == "between":
        return f"between {number(numbers[0])} and {number(numbers[1])}"
    if claim.relation == "equals":
        assert claim.tolerance is not None
        return f"= {number(numbers[0])} ± {claim.tolerance.words}"
    return f"{MARKS[claim.relation]} {number(numbers[0])}"


def _claims(results: StudyResults) -> list[Claim]:
    """The claims of ``study.yaml``."""
    source = str(results.folder / "study.yaml")
    claims = validated(_Claims, {"claims": results.study.get("claims") or []}, source).claims
    return [completed(claim, [], [], f"{source}: claims.{index}") for index, claim in enumerate(claims)]
