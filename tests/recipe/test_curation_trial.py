"""A user's mistake in a step or a reward is one line with its class, its message, the line of the user's file and whose
items it met, and is told before anything starts where a few human items show it; what is right is not refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.curation.trial import try_code
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study

STUDY: dict[str, Any] = {
    "name": "curated",
    "family": {"kind": "gaussian"},
    "samples_per_generation": 30,
    "generations": 3,
    "collapse": {"metric": "kl_divergence", "threshold": 0.5, "direction": "above", "relative_to": "absolute"},
}
LINE = r"my_curation\.py:\d+"
TRIED = r" \(tried on (8|30) human items\)$"


@pytest.fixture(autouse=True)
def _beside_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def reward(name: str) -> dict[str, Any]:
    return {"kind": "choice", "of": 2, "reward": f"my_curation:{name}"}


def step(name: str) -> dict[str, Any]:
    return {"kind": f"my_curation:{name}"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (reward("raises"), r"curation\.reward: my_curation:raises failed: ValueError: no reward today, at LINE"),
        (reward("through_a_helper"), r"failed: IndexError: .*, at LINE"),
        (reward("one_short"), r"my_curation:one_short must return 30 numbers, one an item: not the shape \(29,\)"),
        (reward("in_a_column"), r"must return 30 numbers, one an item: not the shape \(30, 1\)"),
        (reward("in_words"), r"must return 30 numbers, one an item: not a list"),
        (reward("one_word"), r"must return 30 numbers, one an item: not a str"),
        (reward("some_nan"), r"returned NaN for 1 of 30 items, e\.g\. 3"),
        (reward("coin"), r"my_curation:coin gave the same items another answer .* which are the items"),
        (reward("says_much"), r"failed: RuntimeError: first line second line and so on .*…, at LINE"),
        (step("Fails"), r"curation\.kind: my_curation:Fails\.keep failed: RuntimeError: no luck, at LINE"),
        (step("Leaves"), r"my_curation:Leaves\.keep failed: SystemExit: that will do, at LINE"),
        (step("ByNobody"), r"no judge 'generation_1'; did you mean generation_0\?, at LINE"),
        (step("OutOfRange"), r"must return different indices from 0 to 29, or 30 truth values"),
        (step("Twice"), r"must return different indices"),
        (step("Words"), r"must return indices of items, or 30 truth values: not a list of str"),
        (step("ShortMask"), r"must return indices of items, or 30 truth values: not bool of the shape \(2,\)"),
        (step("TheItems"), r"must return indices of items, or 30 truth values: not a list of ndarray"),
        (step("Silent"), r"must return indices of items, or 30 truth values: not None"),
        (step("Shares"), r"must return indices of items, or 30 truth values: not float64 of the shape \(30,\)"),
        (step("Yields"), r"must return indices of items, or 30 truth values: not a generator"),
        (step("Ragged"), r"must return indices of items, or 30 truth values: not a list of list"),
        (reward("a_dict"), r"must return 30 numbers, one an item: TypeError: .*dict"),
        (step("Remembers"), r"my_curation:Remembers\.keep gave the same items another answer .* draw from rng"),
        (step("TossesItsOwnCoin"), r"gave the same items another answer"),
        ([{"kind": "verifier"}, step("Fails")], r"curation\.1\.kind: my_curation:Fails\.keep failed"),
        ([step("Positive"), reward("one_short")], r"curation\.1\.reward: my_curation:one_short must return"),
    ],
)  # fmt: skip
def test_found_before_anything_starts(content: Any, said: str, tmp_path: Path) -> None:
    study, said = make_study({**STUDY, "curation": content}, "curated.yaml"), said.replace("LINE", LINE)
    with pytest.raises(UserError, match=rf"^curated\.yaml: .*{said}.*{TRIED}") as error:
        check_study(study, StageStore(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (reward("nothing"), r"curation\.reward: my_curation:nothing\(\) must take the items as its first argument"),
        (reward("Scorer"), r"my_curation:Scorer\(\) must take the items as its first argument"),
        (reward("by_name_alone"), r"my_curation:by_name_alone\(\*, items\) must take the items as its first argument"),
        (step("NoShare"), r"my_curation:NoShare\.share failed: ZeroDivisionError: .*, at my_curation\.py:\d+"),
        (step("Quits"), r"my_curation:Quits does not take these settings: SystemExit: not here, at my_curation"),
        (step("Demanding"), r"curation\.kind: .*keep\(items, scores, rng, model\) must take items, scores and rng"),
        ({"kind": "./my_curation.py:Short"}, r"'./my_curation.py' is no module's name: .* as my_curation"),
        ({"kind": "choice", "reward": "filters/mine.py:f"}, r"'filters/mine.py' is no .* as filters.mine"),
        ({"kind": "choice", "reward": "builtins:len"}, r"builtins:len is Python's own"),
    ],
)  # fmt: skip
def test_found_as_the_file_is_read(content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make_study({**STUDY, "curation": content}, "curated.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        reward("first_number"),
        reward("scorer"),
        reward("sorts"),
        {**reward("first_number"), "temperature": 1.0},
        step("Positive"),
        step("Random"),
        step("Static"),
        step("Nothing"),  # of human items, perhaps; of what is written, the run tells
        step("Large"),
        step("LikelyHalf"),
        step("NoTruth"),
        [step("EveryOther"), reward("first_number"), step("Random")],
    ],
)
def test_what_is_right_is_not_refused(content: Any, tmp_path: Path) -> None:
    """Among them a step that needs more items than the first few, and one that draws from its generator."""
    check_study(make_study({**STUDY, "curation": content}, "curated.yaml"), StageStore(tmp_path))


def test_what_the_code_writes_on_its_items_changes_none() -> None:
    """``x -= x.mean()`` in a reward, or a sort in place, would change what is trained on."""
    items = np.arange(40.0).reshape(20, 2)[::-1].copy()
    before = items.copy()
    for content in (step("Scribbles"), reward("sorts")):
        steps = make_study({**STUDY, "curation": content}, "curated.yaml").chains[0].recipe.curation.steps
        try_code(steps, lambda n: items[:n], truth=True)
    assert (items == before).all()
