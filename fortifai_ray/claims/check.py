"""Checks a study's claims against its result tables."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fortifai_ray.claims.chains import Sample, Undecided, sample
from fortifai_ray.claims.measures import critical_point, fidelity_ratio, onset_order, onset_share
from fortifai_ray.claims.result import MARKS, ClaimResult, Region, Verdict
from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.results.words import number
from fortifai_ray.statistics import intervals
from fortifai_ray.statistics.intervals import Interval, NoInterval
from fortifai_ray.study.claim_checks import completed
from fortifai_ray.study.claim_statistics import CriticalPoint, FidelityRatio, OnsetOrder, OnsetShare, Summary
from fortifai_ray.study.claims import Claim
from fortifai_ray.validation import hint

_claim: TypeAdapter[Claim] = TypeAdapter(Claim)


def check_claims(study_dir: Path, ids: Collection[str] = ()) -> list[ClaimResult]:
    """Check the claims in ``study.yaml``, in its order; only those named in ``ids`` if there are any.

    Args:
        study_dir: ``STORAGE/NAME`` as a sweep leaves it.

    Raises:
        UserError: no study there, no ``generations.parquet``, a table that cannot be read, a claim that is not valid,
            or an id that no claim has. What one claim alone lacks makes that claim undecided, and its ``why`` says so.
    """
    results = open_study(study_dir)
    claims = _claims(results)
    _ = results.generations if claims else None  # without it there is nothing to check any claim against
    for wanted in ids:
        if wanted not in (known := [claim.id for claim in claims]):
            raise UserError(f"{results.folder}: no claim has the id {wanted!r}{hint(wanted, known)}")
    return [check_claim(results, claim) for claim in claims if not ids or claim.id in ids]


def check_claim(results: StudyResults, claim: Claim) -> ClaimResult:
    """One claim against a study's tables."""
    numbers = claim.numbers()
    region = Region.of(claim, numbers)
    found, n_chains, why = None, 0, ""
    verdict: Verdict = "undecided"
    try:
        found, n_chains = _measure(results, claim)
    except _Failed as failure:
        n_chains, why = failure.n_chains, failure.why
    except (Undecided, NoInterval) as error:
        why = str(error)
    if found is not None:
        why = found.note
        if n_chains < claim.min_chains:
            why = f"{n_chains} chains, and the claim asks for at least {claim.min_chains}"
        else:
            verdict = region.verdict(found.low, found.high)
    return ClaimResult(
        id=claim.id,
        source=claim.source,
        kind=claim.kind,
        statistic=claim.words,
        measured=found.measured if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        level=claim.level,
        method=found.method if found else "",
        n_chains=n_chains,
        min_chains=claim.min_chains,
        relation=claim.relation,
        value=numbers[0] if len(numbers) == 1 else None,
        accepted_low=region.low,
        accepted_high=region.high,
        asked=_asked(claim, numbers),
        verdict=verdict,
        why=why,
    )


class _Failed(Exception):
    """There are chains, but no interval of their numbers."""

    def __init__(self, n_chains: int, why: str) -> None:
        super().__init__(why)
        self.n_chains, self.why = n_chains, why


def _measure(results: StudyResults, claim: Claim) -> tuple[Interval, int]:
    """The statistic with its interval, and how many independent chains it rests on."""
    statistic = claim.statistic
    if isinstance(statistic, OnsetShare):
        return onset_share(results, statistic, claim.where, claim.level)
    if isinstance(statistic, OnsetOrder):
        return onset_order(results, statistic, claim.where, claim.level)
    if isinstance(statistic, FidelityRatio):
        return fidelity_ratio(results, statistic, claim.where, claim.level)
    if isinstance(statistic, CriticalPoint):
        return critical_point(results, statistic, claim.where, claim.level)
    found = sample(results, statistic, claim.where)
    n_chains = len(found.values)
    try:
        interval = _summarise(found, statistic.summary, claim.level)
    except NoInterval as error:
        raise _Failed(n_chains, str(error)) from None
    note = "; ".join(part for part in (interval.note, found.note) if part)
    return Interval(interval.measured, interval.low, interval.high, interval.method, note), n_chains


def _summarise(found: Sample, summary: Summary, level: float) -> Interval:
    values, name = found.values, summary.name
    if name == "ratio_of_means":
        return intervals.ratio_of_means(found.tops, found.bottoms, level)
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


def _claims(results: StudyResults) -> Sequence[Claim]:
    """The claims of ``study.yaml``, which a study file's reader has already refused if they were wrong."""
    asked = results.study.get("claims") or []
    if not isinstance(asked, list):
        raise UserError(f"{results.folder / 'study.yaml'}: claims: a list of claims is expected")
    return [_checked(results, index, item) for index, item in enumerate(asked)]


def _checked(results: StudyResults, index: int, item: Any) -> Claim:
    try:
        return completed(_claim.validate_python(item), [], [], f"{results.folder / 'study.yaml'}: claims.{index}")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("claims", index, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{results.folder / 'study.yaml'}: {place}: {message}") from None
