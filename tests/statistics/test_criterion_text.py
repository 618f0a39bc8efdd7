"""A criterion is read back from the sentence that the report prints, and a text that is none is told in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import METRICS
from fortifai_ray.statistics.criterion import AnyOf, Collapse, CollapseCriterion
from fortifai_ray.statistics.criterion_text import criterion_of

NAMES = ("perplexity", "kr_accuracy", "trace_ratio", "my_metric")
OWN, BASELINE = "own_generation_0", "baseline_generation_0"


@st.composite
def criteria(draw: st.DrawFn) -> CollapseCriterion:
    """Criteria of every form, with thresholds of the six digits that a sentence shows."""
    direction = draw(st.sampled_from(["above", "below", "outside"]))
    relative = draw(st.sampled_from([OWN, BASELINE, "absolute"]))
    digits = st.integers(1, 99_999)
    low, high = draw(digits) / 100_000, (10_000 + draw(digits)) / 10_000
    return CollapseCriterion(
        metric=draw(st.sampled_from(NAMES)),
        threshold=(low, high) if direction == "outside" else draw(st.sampled_from([low, high, 1e-7, 3e8])),
        direction=direction,
        relative_to=relative,
        confirm=draw(st.integers(0, 3)),
        chance=None if relative == "absolute" else draw(st.sampled_from([None, 0.25])),
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(criteria(), min_size=1, max_size=3, unique=True))
def test_what_the_report_prints_is_read_back(members: list[CollapseCriterion]) -> None:
    """Any criterion, and any of several, is what its own sentence says."""
    criterion: Collapse = members[0] if len(members) == 1 else AnyOf(any_of=tuple(members))
    assert criterion_of(criterion.words, "my_metric", titled=METRICS) == criterion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("above 2x own generation 0", {"threshold": 2.0, "direction": "above", "relative_to": OWN}),
        ("above 2× baseline generation 0", {"threshold": 2.0, "direction": "above", "relative_to": BASELINE}),
        ("ABOVE 2 X the baseline's generation 0", {"threshold": 2.0, "direction": "above", "relative_to": BASELINE}),
        ("above 2x generation 0", {"threshold": 2.0, "direction": "above", "relative_to": BASELINE}),
        ("above 2 own generation 0", {"threshold": 2.0, "direction": "above", "relative_to": OWN}),
        ("below 0.75", {"threshold": 0.75, "direction": "below", "relative_to": "absolute"}),
        ("ppl below .5", {"threshold": 0.5, "direction": "below", "relative_to": "absolute"}),
        ("below -3e-2", {"threshold": -0.03, "direction": "below", "relative_to": "absolute"}),
        ("outside 0.5x to 2x own generation 0", {"threshold": (0.5, 2), "direction": "outside", "relative_to": OWN}),
        ("above 300, at the first crossing", {"threshold": 300.0, "direction": "above", "confirm": 0}),
        ("above 300, confirmed by 2 further generations", {"threshold": 300.0, "direction": "above", "confirm": 2}),
    ],
)
def test_shorter_forms(text: str, expected: dict[str, object]) -> None:
    """What people type, with the study file's defaults."""
    given_ = {"metric": "ppl", "relative_to": "absolute", "confirm": 1, **expected}
    assert criterion_of(text, "ppl") == CollapseCriterion.model_validate(given_)


def test_any_of_several_and_other_columns() -> None:
    """Parts share the confirmations that end the sentence; a part may be about another column."""
    read = criterion_of("above 2x own generation 0 or acc below 0.5, at the first crossing", "ppl")
    assert isinstance(read, AnyOf)
    assert [(one.metric, one.confirm) for one in read.any_of] == [("ppl", 0), ("acc", 0)]


@pytest.mark.parametrize(
    ("text", "confirm", "complaint"),
    [
        ("", None, "says nothing"),
        ("twice generation 0", None, "one of above, below and outside is needed"),
        ("above", None, "one of above, below and outside|a number is needed"),
        ("above twice own generation 0", None, "a number is needed after above, not 'twice own generation 0'"),
        ("above 2x", None, "2x of what"),
        ("above 2x own generation 1", None, "'x own generation 1' is not understood after above 2"),
        ("below 75%", None, "'%' is not understood"),
        ("above 2x own generation 0 or", None, "is not understood"),
        ("above 0x own generation 0", None, "threshold must be above 0"),
        ("outside 2 own generation 0", None, "needs two numbers"),
        ("above 1 to 2", None, "two numbers are for direction: outside"),
        ("outside 2x to 0.5x own generation 0", None, "the first number must be the lower one"),
        ("above 3, confirmed by 2 further generations", 1, "--confirm 1 says otherwise"),
        ("above 3 or above 3", None, "two entries are the same"),
        ("below 0.5 beyond chance (0.25)", None, "chance needs a generation 0"),
    ],
)
def test_mistakes(text: str, confirm: int | None, complaint: str) -> None:
    """One line that quotes the text and says what is wrong."""
    with pytest.raises(UserError, match=complaint) as error:
        criterion_of(text, "ppl", confirm, source="--criterion")
    assert str(error.value).startswith(f"--criterion {text!r}: ")
    assert "\n" not in str(error.value)
