"""Files that nobody thought of: whatever is changed in a study file, it is a valid study or refused in one line."""

import random
from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.study.study import load_study

PROJECT = Path(__file__).resolve().parents[2]
# With claims, a search, curation and families of each kind; none of them needs data.
_FILES = ("quickstart", "search_gaussian", "feng2024_verifier_regression", "gerstgrasser2024_diffusion")
_VALUES = """| ~ | [] | {} | [~] | {~: 1} | {1: 2} | [[1]] | .inf | .nan | 1e-3 | 1e400 | 010 | -1 | 0 | 1.5 | 1e30 | on
| yes | 1:30 | 2024-01-01 | "\\ud800" | !!int x | !Ref x | !!float nan | *a | &a x | << | {kind: ~} | {kind: {}}
| {kind: [a]} | {kind: tce} | kind | 'a:b' | 'os:path' | {count: 1e9} | {start: -1, count: 2} | {theory: x}
| 99999999999999999999999
"""
_LINES = ("---", "...", "%YAML 1.2", "<<: *a", "<<: {seed: 3}", "? [a]", "x-a: &a {seed: 1}", "- x", "on: 1", "lr: 1")
_CHARACTERS = "[]{}:,&*!|>'\"%@`#-?\0\u2028\ufeff\x85 \t0e.~<γ"


def mutated(text: str, rng: random.Random) -> str:
    """The text with one or two of its lines changed, doubled, removed or cut."""
    lines, values = text.split("\n"), [value.strip() for value in _VALUES.split("|")]
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(lines))
        line = lines[at]
        cut = rng.randrange(len(line) + 1)
        lines[at : at + 1] = rng.choice(
            [
                [f"{line} {rng.choice(values)}"],
                [f"{line.partition(':')[0]}: {rng.choice(values)}"],
                [],
                [line, line],
                [f"\t{line}"],
                [line[:cut] + rng.choice(_CHARACTERS) + line[cut:]],
                [rng.choice(_LINES), line],
                [line[:cut]],
            ]
        )
    return "\n".join(lines)


def outcome(file: Path) -> str | None:
    """What a study file is refused with; None where it is valid."""
    try:
        load_study(file)
    except UserError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{file.read_text(encoding='utf-8')}") from error
    return None


@pytest.mark.parametrize("name", _FILES)
def test_a_changed_study_is_valid_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    """No traceback, whatever is changed: 60 changes of each file, always the same ones."""
    original = PROJECT / "sweeps" / f"{name}.yaml"
    assert outcome(original) is None
    rng, text, file = random.Random(name), original.read_text(encoding="utf-8"), tmp_path / "s.yaml"
    said = []
    for _ in range(60):
        file.write_text(mutated(text, rng), encoding="utf-8")
        said.append(outcome(file))
    refused = [message for message in said if message is not None]
    assert len(refused) > 10, "the changes must be mistakes"
    assert not [message for message in refused if "\n" in message]
