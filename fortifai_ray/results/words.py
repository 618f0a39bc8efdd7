"""Numbers, bounds, settings and texts as people read them: the one wording for tables, charts, claims and notebooks."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from fortifai_ray.results.schema import LINEAGE, WHOLES, flatten

# The mark in front of a number, by the table's `bound`.
MARKS = {"exact": "", "lower": "≥", "upper": "≤"}

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_SEEDS = 6  # the table and the chart have the rest
_LINEAGES = "ecosystem.lineages."
_NAMES = {"tce": "TCE", "vae": "VAE", "kde": "KDE", "gmm": "Gaussian mixture", "gamma": "γ"}

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


def in_words(values: Mapping[str, Any]) -> str:
    """Values of dotted keys for people: ``γ=0.3 · synthetic ratio=0.5``; whole keys where the last parts are the
    same."""
    return labels([values])[0]


def labels(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for the values of each cell; full dotted keys where short names would clash."""
    lasts = [key.rpartition(".")[2] for key in cells[0]] if cells else []
    unique = {last for last in lasts if lasts.count(last) == 1 or last == "kind"}
    short = [_label(cell, unique) or _nothing(cell) for cell in cells]
    if len(set(short)) == len(short):
        return short
    return [", ".join(f"{key}={value_words(value)}" for key, value in cell.items()) for cell in cells]


def key_words(key: str) -> str:
    """A dotted key for people, by its last part: ``synthetic ratio``, ``watermark share``."""
    section, _, last = key.rpartition(".")
    name = _NAMES.get(last, last.replace("_", " "))
    return f"{key_words(section)} {name}" if "." in section and not section.startswith(_LINEAGES) else name


def value_words(value: Any, key: str = "") -> str:
    """A value for people, that of a dotted key: ``0.3``, ``TCE``, ``true``, ``a, b``, and a matrix as ``0.7, 0.3 / 0.3,
    0.7``."""
    value = listed(value)
    if key.rpartition(".")[2] == "kind" and ":" not in str(value):
        return _NAMES.get(str(value), str(value).replace("_", " "))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith("["):  # a list in a column of text
        try:
            value = json.loads(value)
        except ValueError:
            return printable(value)
    if isinstance(value, Mapping):
        return " ".join(_setting(*item) for item in flatten(value).items() if item[1] is not None)
    if isinstance(value, list | tuple):
        rows = any(isinstance(one, list | tuple) for one in value)
        return (" / " if rows else ", ").join(map(value_words, value))
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else printable(value)


def listed(value: Any) -> Any:
    """A value of a table's column; a list for a series."""
    return value.to_list() if hasattr(value, "to_list") else value


def _label(cell: Mapping[str, Any], short: set[str]) -> str:
    """``TCE γ=0.3 · accumulate``: one part per section of the recipe, null values left out."""
    sections: dict[str, list[str]] = {}
    for key, value in cell.items():
        if value is None:
            continue
        section, _, last = key.rpartition(".")
        parts = sections.setdefault(section, [])
        if section.startswith(_LINEAGES) and not parts and last in short:  # not to be read as the row's own lineage
            parts.append(f"{section.removeprefix(_LINEAGES).partition('.')[0]}:")
        elif "." in section and not parts and last in short and last != "kind":
            parts.append(section.rpartition(".")[2].replace("_", " "))
        if last == "kind" and value == "none":
            parts.append(f"no {key_words(section)}")
            continue
        name = "lineages" if key == "ecosystem.order" else last if last in short else key
        parts.append(_setting(name, value))
    return " · ".join(" ".join(parts) for parts in sections.values())


def _nothing(cell: Mapping[str, Any]) -> str:
    """A cell in which no varied key has a value: ``no curation``."""
    names: dict[str, None] = {}
    for key in cell:
        section, _, last = key.rpartition(".")
        optional = f"{section}.kind" in cell or "." in section  # the section itself is what the recipe goes without
        of_lineages = key == LINEAGE or section.partition(".")[0] == "ecosystem"
        names["ecosystem" if of_lineages else key_words(section if optional else last)] = None
    return ", ".join(f"no {name}" for name in names) or "all chains"


def _setting(key: str, value: Any) -> str:
    """``γ=0.3``, ``TCE``, ``no curation``: a value of a key, or of a key's last part."""
    name, text = _NAMES.get(key, key.replace("_", " ")), value_words(value, key)
    if value is None:
        return f"no {name}"
    if key == "curation" and text != value and str(value).startswith("[{"):  # a list of steps
        return " then ".join(map(value_words, json.loads(value)))
    return text if key == "kind" or text in WHOLES else f"{name}={text}"


def printable(text: object) -> str:
    """``text`` without the characters that steer a terminal or a browser: control characters but line breaks and tabs,
    overrides of the writing direction, and lone surrogates, which no UTF-8 file can hold."""
    return "".join(_REPLACEMENT if _steers(char) else char for char in str(text))


def _steers(char: str) -> bool:
    if char in "\n\t":
        return False
    return unicodedata.category(char) in {"Cc", "Cs"} or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"
