"""Everything that is sent to MLflow passes MLflow's own checks, and what it takes is left as it is."""

import pytest
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.utils.validation import _validate_batch_log_data, _validate_metric

from fortifai_ray.tracking.limits import as_text, batches, is_refusal, key, tag_value, whole_names

_GOOD = ("perplexity", "result/onset", "a b", "a.b-c:d", "x" * 250, "γ", ".a", "a/..b", "-", "0")
_BAD = (
    *("", ".", "..", "/", "//", "/a", "a/", "a//b", "a/./b", "a/../b", "../a", "./a"),
    *(
        "a@b",
        "a#b",
        "a\nb",
        "a\0b",
        "a\\b",
        "a,b",
        "🙂",
        "\ud800",
        "x" * 251,
        "x" * 5000,
        "/" * 300,
        "../" * 100,
    ),
)


@pytest.mark.parametrize("name", _GOOD)
def test_a_name_that_mlflow_takes_is_its_own_key(name: str) -> None:
    _validate_metric(name, 1.0, 0, 0)
    assert key(name) == name
    assert whole_names([name]) == {}


@pytest.mark.parametrize("name", _BAD, ids=repr)
def test_a_name_that_mlflow_refuses_gets_a_key_that_it_takes(name: str) -> None:
    """And a tag with the whole name, which MLflow takes, too."""
    with pytest.raises(MlflowException):
        _validate_metric(name, 1.0, 0, 0)
    _validate_metric(key(name), 1.0, 0, 0)
    tags = [RunTag(tag, tag_value(whole)) for tag, whole in whole_names([name]).items()]
    assert len(tags) == 1
    _validate_batch_log_data([Metric(key(name), 1.0, 0, 0)], [], tags)


def test_no_two_names_have_one_key() -> None:
    names = [*_GOOD, *_BAD, *(f"{'x' * 300}{number}" for number in range(100)), "a_b", "a/b"]
    assert len({key(name) for name in names}) == len(names)


def test_text_is_what_every_database_takes() -> None:
    """No NUL, which PostgreSQL refuses, and nothing without an encoding; what was cut says so."""
    assert as_text("a\0b") == "a␀b"
    as_text("\ud800").encode()
    assert tag_value("x" * 9000).endswith("x… (cut)")
    assert len(tag_value("x" * 9000)) == 8000
    assert as_text({"a": [1, None]}) == '{"a": [1, null]}'


def test_batches_keep_every_entry_in_order() -> None:
    entries = [RunTag(f"key{number}", "x" * (number * 100)) for number in range(230)]
    made = list(batches("tags", entries))
    assert [entry for batch in made for entry in batch] == entries
    assert all(len(batch) <= 100 for batch in made)
    assert list(batches("tags", [])) == []


def test_only_a_refusal_is_for_good() -> None:
    assert is_refusal(MlflowException("no", INVALID_PARAMETER_VALUE))
    assert not is_refusal(MlflowException("later", TEMPORARILY_UNAVAILABLE))
    assert not is_refusal(ConnectionError("later"))
