"""Numbers, bounds and texts as people read them: the one wording for tables, charts, claims and notebooks."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# The mark in front of a number, by the table's `bound`.
MARKS = {"exact": "", "lower": "≥", "upper": "≤"}

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_SEEDS = 6  # the table and the chart have the rest


_FI_UNITS = {
    "generations": "generations",
    "synthetic": "synthetic {counted} consumed",
    "synthetic_now": "synthetic {counted} in the training set at the onset",
}


def fi_unit(unit: str, counted: str = "units") -> str:
    """A unit of fidelity intervals in words; ``counted`` is what a synthetic size counts: tokens or samples."""
    return _FI_UNITS[unit].format(counted=counted)


def number(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits; ``–`` for null, ``NaN`` and ``∞`` as they are."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float | None) -> str:
    """A large count: ``310k``, ``1.25M``, ``3B``."""
    if value is None or not math.isfinite(value):
        return number(value)
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:  # 999,500 and above reads 1M, not 1,000k
            return f"{number(value / size)}{suffix}"
    return number(value)


def counted(size: int, noun: str) -> str:
    """``1 chain``, ``1,000 chains``."""
    return f"{size:,} {noun}{'' if size == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """``8.2 s``, ``5 min 12 s``, ``2 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def ratio(row: Mapping[str, Any], is_baseline: bool) -> str:
    """A row of the fidelity table as its ratio in words: ``1.35 [1.12, 1.61]``, ``≥1.35 (per seed 1.29, ≥1.41)``.

    The interval where the table has one (one-sided for a bound), else the ratios of single seeds. Beside an estimate
    from censored chains stands what its pairs say without a model: ``1.35 [1.12, 1.61] (pairs: ≥1.2)``.
    """
    if is_baseline:
        return "baseline"
    value, bound = row["fi_ratio"], ratio_bound(row)
    if bound not in MARKS or value is None:
        return f"undetermined {_per_seed(row)}".strip()
    low, high = row.get("fi_ratio_low"), row.get("fi_ratio_high")
    if low is None and high is None:
        return f"{MARKS[bound]}{number(value)} {_per_seed(row)}".strip()
    ends = f"{'(0' if low is None else f'[{number(low)}'}, {'∞)' if high is None else f'{number(high)}]'}"
    beside = row.get("bound_ratio") if row["bound"] != bound else None
    model_free = "" if beside is None else f" (pairs: {MARKS[row['bound']]}{number(beside)})"
    return f"{MARKS[bound]}{number(value)} {ends}{model_free}"


def ratio_bound(row: Mapping[str, Any]) -> str:
    """What the ratio of a row is: ``exact``, an estimate, or a bound; that of its pairs where it has no estimate."""
    return str(row.get("fi_ratio_bound") or row["bound"])


def seed_ratios(row: Mapping[str, Any]) -> list[tuple[float, str]]:
    """The single seeds' ratios that are numbers, each with its bound (the cell's where the table has none per seed)."""
    values = row["seed_ratios"] or []
    bounds = row.get("seed_bounds") or [row["bound"]] * len(values)
    return [(value, bound) for value, bound in zip(values, bounds, strict=True) if finite([value])]


def finite(values: Sequence[float | None] | None) -> list[float]:
    """The values that are numbers."""
    return [float(value) for value in values if value is not None and math.isfinite(value)] if values else []


def _per_seed(row: Mapping[str, Any]) -> str:
    known = seed_ratios(row)
    seeds = len(row["seed_ratios"] or [])
    if not known:
        return ""
    if seeds == 1:
        return "(one seed)"
    texts = [f"{MARKS.get(bound, '')}{number(value)}" for value, bound in known[:_MOST_SEEDS]]
    unknown = f"; {seeds - len(known)} undetermined" if seeds > len(known) else ""
    return f"(per seed {', '.join(texts)}{', …' if len(known) > _MOST_SEEDS else ''}{unknown})"


def printable(text: object) -> str:
    """``text`` without the characters that steer a terminal or a browser: control characters but line breaks and tabs,
    overrides of the writing direction, and lone surrogates, which no UTF-8 file can hold."""
    return "".join(_REPLACEMENT if _steers(char) else char for char in str(text))


def _steers(char: str) -> bool:
    if char in "\n\t":
        return False
    return unicodedata.category(char) in {"Cc", "Cs"} or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"
