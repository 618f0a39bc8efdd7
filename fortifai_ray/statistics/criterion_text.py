"""A collapse criterion as a sentence: ``above 2x own generation 0``, ``loss above 3 or KR accuracy below 0.75``.

:func:`criterion_of` reads what :attr:`~fortifai_ray.statistics.criterion.CollapseCriterion.words` writes, and the
shorter forms that people type.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import metric as declared
from fortifai_ray.statistics.criterion import AnyOf, Collapse, CollapseCriterion
from fortifai_ray.validation import validated

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_LIMIT = re.compile(
    rf"(?:(?P<metric>.+?)\s+)?(?P<direction>above|below|outside)\s+"
    rf"(?P<low>{_NUMBER})\s*(?P<times>[x×])?(?:\s+(?:to|and)\s+(?P<high>{_NUMBER})\s*[x×]?)?"
    rf"(?P<reference>\s+(?:(?:the|its)\s+)?(?:(?P<whose>own|baseline)(?:['’]s)?\s+)?generation\s+0)?"
    rf"(?:\s+beyond\s+chance\s+\(?(?P<chance>{_NUMBER})\)?)?",
    re.IGNORECASE,
)
_CONFIRM = re.compile(r",?\s*(?:confirmed\s+by\s+(\d+)\s+further\s+generations?|at\s+the\s+(first)\s+crossing)$", re.I)
_DIRECTION = re.compile(r"\b(above|below|outside)\b", re.IGNORECASE)
_EXAMPLES = "write one such as 'above 2x own generation 0', 'above 2x baseline generation 0' or 'below 0.75'"


def criterion_of(
    text: str, metric: str, confirm: int | None = None, *, titled: Iterable[str] = (), source: str = "criterion"
) -> Collapse:
    """The criterion that a sentence states.

    Args:
        text: ``[METRIC] above|below THRESHOLD[x] [own|baseline] generation 0``, or without a reference an absolute
            limit, ``below 0.75``; ``outside LOW[x] to HIGH[x] …``; each may end in ``beyond chance (C)`` and ``,
            confirmed by N further generations`` or ``, at the first crossing``. Several are joined by ``or``.
        metric: what it is about where it names none, as a column is called.
        confirm: further generations that confirm a crossing where the sentence says none; 1 where this is None, too.
        titled: metrics that it may name in words, beside ``metric``; any other name is a column's.
        source: begins the message of a mistake.

    Raises:
        UserError: it is no such sentence, or says two things that contradict each other.
    """
    at = f"{source} {text!r}"
    parts = re.split(r"\s*;?\s+or\s+", " ".join(text.split()))
    last = _CONFIRM.search(parts[-1])  # what the last part says holds for all of them, unless a part says its own
    said = confirm if last is None else _number_of(last)
    if last is not None and confirm is not None and confirm != said:
        raise UserError(f"{at}: says confirmed by {said}, and --confirm {confirm} says otherwise: give it once")
    titles = {declared(name).title.casefold(): name for name in (*titled, metric)}
    contents = [_content(part, at, metric, titles, 1 if said is None else said) for part in parts]
    if len(contents) == 1:
        return validated(CollapseCriterion, contents[0], at)
    return validated(AnyOf, {"any_of": contents}, at)


def _number_of(confirmed: re.Match[str]) -> int:
    return 0 if confirmed[2] else int(confirmed[1])


def _content(part: str, at: str, metric: str, titles: Mapping[str, str], confirm: int) -> dict[str, Any]:
    if own := _CONFIRM.search(part):
        part, confirm = part[: own.start()], _number_of(own)
    found = _LIMIT.fullmatch(part.strip())
    if found is None:
        raise UserError(f"{at}: {_what_is_wrong(part)}; {_EXAMPLES}")
    if found["times"] and not found["reference"]:
        raise UserError(f"{at}: {found['low']}x of what? add 'own generation 0' or 'baseline generation 0'")
    low, high = float(found["low"]), found["high"]
    whose = (found["whose"] or "baseline").lower()
    return {
        "metric": titles.get((found["metric"] or metric).casefold(), found["metric"] or metric),
        "direction": found["direction"].lower(),
        "threshold": low if high is None else [low, float(high)],
        "relative_to": f"{whose}_generation_0" if found["reference"] else "absolute",
        "confirm": confirm,
        **({"chance": float(found["chance"])} if found["chance"] else {}),
    }


def _what_is_wrong(part: str) -> str:
    if not part.strip():
        return "says nothing"
    direction = _DIRECTION.search(part)
    if direction is None:
        return f"one of above, below and outside is needed in {part.strip()!r}"
    rest = part[direction.end() :].strip()
    number = re.match(_NUMBER, rest)
    if number is None:
        return f"a number is needed after {direction[0]}, not {rest!r}"
    return f"{rest[number.end() :].strip()!r} is not understood after {direction[0]} {number[0]}"
