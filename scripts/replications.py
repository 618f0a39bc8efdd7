"""What the shipped studies measured of their papers' claims, and the page made of it.

``python scripts/replications.py STORAGE`` takes the claims, FI ratios and collapse points of every shipped study that
has run in a storage into ``docs/data/replications.json``; ``scripts/docs.py`` makes ``docs/replications.md`` of that.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
MEASURED = PROJECT / "docs" / "data" / "replications.json"
PAPERS = PROJECT / "docs" / "data" / "papers.yaml"
_CLAIM = (
    "id",
    "source",
    "kind",
    "statistic",
    "asked",
    "wrong",
    "measured",
    "low",
    "high",
    "level",
    "n_chains",
    "verdict",
    "why",
)
_POINT = ("over", "critical", "low", "high", "level", "bound", "chains_run", "ended")
_CRITERION = ("metric", "threshold", "threshold_high", "any_of")
_RATIO = (*_CRITERION, "fi_ratio", "fi_ratio_low", "fi_ratio_high", "level", "bound", "n_pairs")
_OTHER_NAMES = ("fi_ratio", "probability_histogram_human", "evaluation.signs", "incremental")  # in the papers' table
_MOST_ROWS = 12  # of FI ratios and collapse points: a wider grid's are in its report

_HEAD = """# What the papers claim, and what came out

Generated from the studies' results (`python scripts/replications.py STORAGE`, then `make docs`). The `claims:` of a
study state what a paper says it will show: a statistic, a relation and a value, which may be a closed form. The verdict
comes from the whole interval, at the level that the claim names: *holds*, *does not hold*, *undecided*. A theory claim
that does not hold is a defect, and it names the nearest wrong theories, which its interval must leave out; a
replication that fails at this scale is a finding. Settings were committed before a study's first run; where a claim
changed after it, the study runs on seeds not used before (`start: 1000000`). Each file says where it uses a smaller
model or fewer chains than its paper.

To check one yourself: `fortifai sweep sweeps/NAME.yaml`, then `fortifai claims runs/NAME`.
"""
_REPEATS = """\
The language studies here ran while Python's documentation was read with its repeats: of the held-out runs of
eight words 45% stood in the training text, so every perplexity is too low; how much the ratios move is not known.
"""


def collect(storage: Path) -> list[str]:
    """Take what the shipped studies measured in ``storage``; returns the names of those that have run there."""
    known = {entry["study"]: entry for entry in _measured()}
    files = [f for f in sorted((PROJECT / "sweeps").glob("*.yaml")) if (storage / f.stem / "results").is_dir()]
    known |= {file.stem: _entry(file, storage / file.stem) for file in files}
    MEASURED.parent.mkdir(exist_ok=True)
    entries = [known[name] for name in sorted(known)]
    MEASURED.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [file.stem for file in files]


def _measured() -> list[dict[str, Any]]:
    """What was measured of the claims that their studies still make."""
    entries = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else []
    for entry in entries:
        file = PROJECT / "sweeps" / f"{entry['study']}.yaml"
        made = {claim["id"] for claim in yaml.safe_load(file.read_text(encoding="utf-8")).get("claims", ())}
        if "claims" in entry:
            entry["claims"] = [claim for claim in entry["claims"] if claim["id"] in made]
    return entries


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    """What one study measured."""
    import polars as pl

    from fortifai_ray.results.reader import open_study
    from fortifai_ray.results.words import ratio_bound

    results = open_study(folder)
    ratios, points = pl.DataFrame(), results.points if results.points is not None else pl.DataFrame()
    if results.fidelity is not None:
        ratios = results.cells.name(results.fidelity).filter(pl.col("unit") == "generations", ~pl.col("is_baseline"))
    if not points.is_empty():
        points = results.cells.name(points)
    return {
        "study": file.stem,
        "chains": results.generations["chain_id"].n_unique(),
        "generations": results.generations_asked,
        "claims": [] if results.claims is None else results.claims.select(_CLAIM).to_dicts(),
        "ratios": [
            {name: row[name] for name in ("cell", *_RATIO)} | {"bound": ratio_bound(row)} for row in ratios.to_dicts()
        ],
        "points": [{name: row[name] for name in ("cell", *_POINT)} for row in points.to_dicts()],
    }


def page() -> str:
    """``docs/replications.md``."""
    from docs import table
    from fortifai_ray.study.shipped import about

    entries, files = _measured(), sorted((PROJECT / "sweeps").glob("*.yaml"))
    measured = {entry["study"] for entry in entries}
    counted = [entry for entry in entries if "note" not in entry]
    parts = [_HEAD, table(("study", "chains × generations", "claims"), [_line(entry) for entry in counted])]
    left = ", ".join(f"`{file.stem}`" for file in files if file.stem not in measured)
    parts.append(f"\nShipped, and not measured yet: {left}. Most need a GPU, a model hub or a benchmark's files.\n")
    for entry in counted:
        file = PROJECT / "sweeps" / f"{entry['study']}.yaml"
        parts.append(f"\n## {entry['study']}\n\n[{file.name}](../sweeps/{file.name}): {about(file)}\n")
        if entry["claims"]:
            headings = ("claim", "kind", "asked", "wrong theories", "measured", "chains", "verdict")
            parts.append(table(headings, [_claim(claim) for claim in entry["claims"]]) + "\n")
        if entry["points"]:
            rows = [
                (row["cell"], f"`{row['over']}`", _interval(row, "critical", "low", "high"), str(row["chains_run"]))
                for row in entry["points"]
            ]
            parts.append(table(("cell", "key searched", "critical value", "chains"), rows[:_MOST_ROWS]) + "\n")
        elif entry["ratios"]:
            rows = [
                (
                    row["cell"],
                    _criterion(row),
                    _interval(row, "fi_ratio", "fi_ratio_low", "fi_ratio_high"),
                    str(row["n_pairs"]),
                )
                for row in entry["ratios"]
            ]
            parts.append(table(("cell", "criterion", "FI ratio to the baseline", "pairs"), rows[:_MOST_ROWS]) + "\n")
    parts.append(_papers())
    parts.append("\n## Measured before the tables had their present form\n")
    parts.append(_REPEATS)
    parts.append(table(("study", "what came out"), [(f"`{e['study']}`", e["note"]) for e in entries if "note" in e]))
    return "\n".join(parts).rstrip() + "\n"


def _papers() -> str:
    """Which key computes which of the papers' numbers.

    Raises ValueError where a name in backticks looks like a study's, a claim's or a metric's and is none.
    """
    from docs import table
    from fortifai_ray.metrics import METRICS

    studies = {file.stem: file.read_text(encoding="utf-8") for file in (PROJECT / "sweeps").glob("*.yaml")}
    claims = {claim for text in studies.values() for claim in re.findall(r"- id: (\S+)", text)}
    rows = []
    for entry in yaml.safe_load(PAPERS.read_text(encoding="utf-8")):
        for row in entry["numbers"]:
            names = re.findall(r"`([a-z0-9_.-]+)`", row["by"])
            unknown = [name for name in names if name not in {*studies, *claims, *METRICS, *_OTHER_NAMES}]
            if unknown:
                raise ValueError(f"{PAPERS.name}: {unknown[0]} is no study, no claim and no metric ({row['number']})")
            rows.append((entry["paper"], row["number"], row["by"], row["differs"]))
    head = "\n## Which key computes which of a paper's numbers, and where ours differs\n"
    return f"{head}\n{table(('paper', 'its number', 'computed by', 'where ours differs'), rows)}\n"


def _criterion(row: Mapping[str, Any]) -> str:
    """A criterion by its metric and threshold; any of several by those of each."""
    if row.get("any_of"):
        return " or ".join(_criterion(one) for one in json.loads(row["any_of"]))
    ends = row["threshold"] if isinstance(row["threshold"], list) else [row["threshold"], row.get("threshold_high")]
    return f"{row['metric']}, {' to '.join(f'{end:g}' for end in ends if end is not None)}"


def _line(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """A study in the summary."""
    size = f"{entry['chains']:,} × {entry['generations']}"
    return f"[{entry['study']}](#{entry['study']})", size, _verdicts(entry["claims"]) or "none"


def _verdicts(claims: Iterable[Mapping[str, Any]]) -> str:
    counts = Counter((claim["kind"], claim["verdict"]) for claim in claims)
    plural = {"holds": "hold", "does not hold": "do not hold"}
    return "; ".join(
        f"{kind}: {count} {verdict if count == 1 else plural.get(verdict, verdict)}"
        for (kind, verdict), count in sorted(counts.items())
    )


def _claim(claim: Mapping[str, Any]) -> tuple[str, ...]:
    level = f" at {100 * claim['level']:.4g}%"
    measured = "not measured" if claim["low"] is None else _interval(claim, "measured", "low", "high") + level
    why = f" ({claim['why']})" if claim["why"] else ""
    statistic = f"{claim['statistic']} — {claim['source']}"
    verdict = f"**{claim['verdict']}**{why}"
    return statistic, claim["kind"], claim["asked"], claim.get("wrong", ""), measured, f"{claim['n_chains']:,}", verdict


def _interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    """``1.35 [1.12, 1.61]``; a bound has its sign, and a number without an interval stands alone."""
    from fortifai_ray.results.words import number

    if row[value] is None:
        known = row[low] is not None and row[high] is not None
        return f"undetermined [{number(row[low], 4)}, {number(row[high], 4)}]" if known else "undetermined"
    sign = {"lower": "≥ ", "upper": "≤ "}.get(row.get("bound", ""), "")
    if row[low] is None and row[high] is None:
        return f"{sign}{number(row[value], 4)}"
    return f"{sign}{number(row[value], 4)} [{number(row[low], 4)}, {number(row[high], 4)}]"


if __name__ == "__main__":
    print("\n".join(collect(Path(sys.argv[1]))))
