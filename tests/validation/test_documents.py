"""YAML as people write it: merge keys work, nothing is misread in silence, and each mistake has its line and column."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.validation import dump_yaml, parse_yaml, read_yaml

_DEFAULTS = "x-tce: &tce {kind: tce, gamma: 0.9}\nx-other: &other {gamma: 0.1, alpha: 2}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{<<: *tce}", {"kind": "tce", "gamma": 0.9}),
        ("{<<: *tce, gamma: 0.5}", {"kind": "tce", "gamma": 0.5}),  # an override is no duplicate
        ("{gamma: 0.5, <<: *tce}", {"kind": "tce", "gamma": 0.5}),  # wherever the merge key stands
        ("{<<: [*tce, *other]}", {"kind": "tce", "gamma": 0.9, "alpha": 2}),  # the earlier of a list wins
        ("{<<: [*other, *tce]}", {"kind": "tce", "gamma": 0.1, "alpha": 2}),
        ("{<<: [*other, *tce], gamma: 0.3}", {"kind": "tce", "gamma": 0.3, "alpha": 2}),
        ("{<<: {gamma: 1}, kind: tce}", {"kind": "tce", "gamma": 1}),
        ("{<<: []}", {}),
        ("[*tce, {<<: *tce, gamma: 0.5}, [{<<: *other}]]", None),  # in lists, also nested ones
        ("{a: &a {<<: *tce, gamma: 1}, b: &b {<<: *a, gamma: 2}, c: {<<: *b, gamma: 3}}", None),  # merges of merges
        ("{'<<': 1}", {"<<": 1}),  # in quotes it is a key
    ],
)
def test_merge_keys_work(text: str, value: Any) -> None:
    read = parse_yaml(f"{_DEFAULTS}loss: {text}", "s.yaml")["loss"]
    if value is not None:
        assert read == value
    elif isinstance(read, list):
        assert [read[0]["gamma"], read[1]["gamma"], read[2][0]["gamma"]] == [0.9, 0.5, 0.1]
    else:
        assert [part["gamma"] for part in read.values()] == [1, 2, 3]


def test_an_alias_is_a_copy() -> None:
    """A value put in at one place must not change another that an alias made of the same lines."""
    read = parse_yaml("a: &a {x: [1]}\nb: *a\nc: [*a]", "s.yaml")
    read["a"]["x"].append(2)
    assert read["b"] == read["c"][0] == {"x": [1]}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1e-3",
            "1e5",
            "0o17",
            "010",
            "1:30",
            "2024-01-01",
            "1_000",
            "yes",
            "y",
            "~",
            "",
            ".inf",
            "<<",
            "=",
            "0x1f",
            "- a",
        ),
        *(
            "a: b",
            "#",
            "x\ny",
            " pad ",
            "γ",
            "\u2028",
            "\0",
            "'",
            '"',
            "*a",
            "12e4567",
            "null",
            "!x",
            "5.",
            "+.5",
            "1e+3",
        ),
    ],
)
def test_text_survives_a_file(text: str) -> None:
    """A study as resolved is read again as it was: what looks like a number to any reader goes into quotes."""
    value = {"a": text, "b": [text, 1e-3, 1e-5, 3, None, True], text: {}}
    assert parse_yaml(dump_yaml(value), "s.yaml") == value
    assert parse_yaml(dump_yaml(value, flow=True), "s.yaml") == value
    assert yaml.safe_load(dump_yaml(value)) == value


def test_keys_for_anchors_are_left_out(tmp_path: Path) -> None:
    """Top-level keys that begin with x- hold anchors, as in Compose files; deeper ones are keys like any other."""
    file = tmp_path / "s.yaml"
    file.write_text(f"{_DEFAULTS}loss: {{<<: *tce, x-y: 1}}")
    assert read_yaml(file, "a study file") == {"loss": {"kind": "tce", "gamma": 0.9, "x-y": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("-2e-4", -2e-4),
        ("1.0e-3", 1e-3),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("-3", -3),
        ("0", 0),
        ("0x1f", 31),
        ("0o17", 15),
        ("0b11", 3),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("yes", True),
        ("Off", False),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("=", "="),
        ("<<", "<<"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("0o9", "0o9"),
        ("1.2.3", "1.2.3"),
        ("v1", "v1"),
        ("'1e-3'", "1e-3"),
        ("!!str 010", "010"),
        ("γ", "γ"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = parse_yaml(f"a: {text}", "s.yaml")["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: is not valid YAML: the key 'a' is given twice \(first in line 1\)"),
        (
            "a:\n  x: 1\n  y: {z: 1,\n      z: 2}",
            r"line 4, column 7: is not valid YAML: the key 'z' is given twice \(first in line 3\)",
        ),
        ("a: {x: 1, 'x': 2}", r"line 1, column 11: is not valid YAML: the key 'x' is given twice"),
        ("b: &b {x: 1}\na: {<<: *b, x: 1, x: 2}", r"line 2, column 19: is not valid YAML: the key 'x' is given twice"),
        (
            "b: &b {x: 1}\na:\n  <<: *b\n  <<: *b",
            r"line 4, column 3: is not valid YAML: the key '<<' is given twice.*<<: \[\*one, \*other\]",
        ),
        ("a: {<<: 3}", "line 1, column 9: << takes a mapping or a list of mappings"),
        ("a: {<<: [{}, 3]}", "line 1, column 14: << takes a mapping"),
        ("a: {<<: }", "line 1, column 8: << takes a mapping"),
        ("a: {<<: *none}", "line 1, column 9: is not valid YAML: found undefined alias"),
        ("on: 1", r'line 1, column 1: the key on is read as true or false: write "on" in quotes'),
        ("a:\n  1: x", 'line 2, column 3: the key 1 is read as a number: write "1" in quotes'),
        ("1e3: x", "the key 1e3 is read as a number"),
        ("~: x", "line 1, column 1: the key ~ is read as nothing"),
        ("? [1]\n: 2", "line 1, column 3: a key is text, not a list or a mapping"),
        ("{[1]: 2}", "line 1, column 2: a key is text"),
        ("{{a: 1}: 2}", "line 1, column 2: a key is text"),
        ("a: 010", r"line 1, column 4: 010 is ambiguous .* leave the zero out"),
        ("seeds: [001, 2]", "line 1, column 9: 001 is ambiguous"),
        ("a: 1e999", 'line 1, column 4: 1e999 is too large for a number; write "1e999" for text'),
        ("a: " + "9" * 5000, "line 1, column 4: a number of 5000 digits is too large"),
        ("a:\n\t- b", "line 2, column 1: is not valid YAML: a tab; indent with spaces"),
        ("a: 1\n---\nb: 2", r"line 2, column 1: a second document begins here \(---\): one file holds one"),
        ("a: [", "line 1, column 5: is not valid YAML"),
        ("a: '", "line 1, column 5: is not valid YAML"),
        ("a: b: c", "line 1, column 5: is not valid YAML: mapping values are not allowed here"),
        ("a: 1\n b: 2", "line 2, column 3: is not valid YAML"),
        ("a: !Ref b", "line 1, column 4: the tag !Ref has no meaning here: leave it out"),
        ("a: !!python/object/apply:os.system [x]", "line 1, column 4: the tag !!python"),
        ("a: !!binary aGk=", "the tag !!binary has no meaning here"),
        ("a: !!set {b, c}", "the tag !!set has no meaning here"),
        ("a: !!timestamp 2024-01-01", "the tag !!timestamp has no meaning here"),
        ("a: !!int many", "line 1, column 4: this is not a number"),
        ("a: !!float many", "line 1, column 4: this is not a number"),
        ("a: !!bool maybe", "line 1, column 4: this is not true or false"),
        ("a: !!str [1]", "line 1, column 4: is not valid YAML"),
        ('a: "\\ud800"', "line 1, column 4: half of a surrogate pair"),
        ("a: 1\nb: \x00", "line 2: is not valid YAML: the control character"),
        ("a: 1\nb: \udc80", "line 2: is not valid YAML: the control character"),
        (b"a: 1\nb: caf\xe9", "line 2: is not UTF-8 text: save the file as UTF-8"),
        (b"\xff\xfea", "line 1: is not UTF-8 text"),
        ("a: &a [*a]", "line 1, column 4: is nested more than 64 levels deep, or an anchor contains itself"),
        ("a: &a {<<: *a}", "an anchor contains itself"),
        ("a: &a {b: {c: [*a]}}", "an anchor contains itself"),
        ("[" * 100 + "]" * 100, "is nested more than 64 levels deep"),
        ("[" * 5000, "is nested too deeply"),
        ("%YAML 9.0\n--- a", "line 1, column 1: is not valid YAML"),
    ],
)
def test_a_mistake_has_its_place(text: str | bytes, complaint: str) -> None:
    """One line: the source, line and column, what is wrong and what would be right."""
    with pytest.raises(UserError, match=rf"^s\.yaml: {complaint}|^s\.yaml: .*{complaint}") as error:
        parse_yaml(text, "s.yaml")
    assert "\n" not in str(error.value)


def test_aliases_of_aliases_stay_small() -> None:
    """A "billion laughs" file of 300 bytes is refused before it is written out; a large plain one is read."""
    names = "abcdefghijkl"
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{two}: &{two} [{', '.join([f'*{one}'] * 10)}]" for one, two in itertools.pairwise(names)]
    with pytest.raises(UserError, match=r"line \d+, column 4: aliases make this [\d,]+ characters long"):
        parse_yaml("\n".join(laughs), "s.yaml")
    assert len(parse_yaml("a: [" + "1, " * 20_000 + "1]", "s.yaml")["a"]) == 20_001


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        ("a: 1\nb: γ".encode("utf-16"), {"a": 1, "b": "γ"}),
        (b"a: 1\r\nb:\r\n  - x\r\n", {"a": 1, "b": ["x"]}),
        (b"---\na: 1\n...\n", {"a": 1}),
        (b"", None),
        (b"# nothing\n", None),
        (b"- 1\n", [1]),
    ],
)
def test_ways_to_save_a_file(content: bytes, value: Any, tmp_path: Path) -> None:
    """A byte-order mark, UTF-16, Windows line ends, and marks of the document's begin and end."""
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    assert read_yaml(file, "a study file") == value


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(UserError, match=re.escape(str(path)) + r": cannot be read \(.*give the path of a study"):
            read_yaml(path, "a study file")
