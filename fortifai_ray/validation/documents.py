"""YAML files as people write them: anchors and merge keys work, and every mistake has its line and column.

Plain scalars are read so that none is misread in silence: ``1e-3`` is a number (YAML 1.1 makes it text), ``1:30`` and
``2024-01-01`` are text (YAML 1.1 makes them 90 and a date), and ``010`` is refused (8 in YAML 1.1, 10 in YAML 1.2).
Keys are text, and a mapping has each of them once.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.reader import Reader

from fortifai_ray.errors import UserError

_TAG = "tag:yaml.org,2002:"
_MERGE, _TEXT = f"{_TAG}merge", f"{_TAG}str"
_KINDS = {"bool": "true or false", "int": "a number", "float": "a number", "null": "nothing"}
_IGNORED = "x-"  # keys at the top of a file that begin so are there for their anchors, as in Compose files
_DEEPEST = 64  # levels; a study has fewer than ten
_GROWTH = 1_000_000  # characters that aliases may add: what is longer is a mistake, or an attack


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file; ``what`` it should be is for messages.

    Keys at the top that begin with ``x-`` are left out: they are there for their anchors. Raises :class:`UserError`.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); give the path of {what}") from error
    value = parse_yaml(content, str(path))
    return {k: v for k, v in value.items() if not k.startswith(_IGNORED)} if isinstance(value, dict) else value


def parse_yaml(content: str | bytes, source: str) -> Any:
    """The value of a YAML document: dicts with keys of text, lists, text, numbers, truth values and None.

    Raises :class:`UserError` as coming from ``source``, with line and column.
    """
    try:
        text = content if isinstance(content, str) else _decoded(content)
        _refuse_control_characters(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, {}, 0)
            return _unshared(loader.construct_document(node))
        finally:
            loader.dispose()
    except _Mistake as mistake:
        raise UserError(f"{source}: {mistake}") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{source}: {_described(error)}") from None
    except RecursionError:
        raise UserError(f"{source}: is not valid YAML: it is nested too deeply") from None


def dump_yaml(value: Any, *, flow: bool = False) -> str:
    """YAML that :func:`parse_yaml` reads as the same value, as does every other reader of YAML 1.1.

    ``flow``: as in ``{kind: tce}``, in one line but for text of several.
    """
    style = {"default_flow_style": True, "width": 1e9} if flow else {"default_flow_style": False}
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style))


class _Mistake(Exception):
    """A mistake at a place of the document."""

    def __init__(self, mark: yaml.Mark | None, message: str) -> None:
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        super().__init__(where + message)


def _described(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's error in one line; it shows the lines around the place otherwise."""
    problem, mark = str(error.problem or ""), error.problem_mark or error.context_mark
    if "another document" in problem:
        return str(_Mistake(mark, "a second document begins here (---): one file holds one"))
    if "'\\t'" in problem:
        return str(_Mistake(mark, "is not valid YAML: a tab; indent with spaces"))
    if "for merging" in problem:
        return str(_Mistake(mark, "<< takes a mapping or a list of mappings, such as *base or [*base, *other]"))
    return str(_Mistake(mark, f"is not valid YAML: {' '.join(filter(None, [error.context, problem]))}"))


def _decoded(content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Mistake(None, f"line {line}: is not UTF-8 text: save the file as UTF-8") from None


def _refuse_control_characters(text: str) -> None:
    if found := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise _Mistake(None, f"line {line}: is not valid YAML: the control character {found.group()!a}")


class _Refused(ValueError):
    """A scalar that is refused, and what would be right."""


class _Loader(yaml.SafeLoader):
    """YAML's plain types alone, unambiguous scalars, and mappings whose keys are text and differ."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (none of PyYAML's: below are ours)
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        _check_keys(node)  # before merging, which makes what is overridden look as if it were given twice
        return node


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise where a key is no text, or is given twice. A merge key is given once, too: it takes a list."""
    first: dict[str, yaml.Mark] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Mistake(key.start_mark, "a key is text, not a list or a mapping")
        name, colon, rest = key.value.partition(":")
        if node.flow_style and colon and rest and value.start_mark.index == value.end_mark.index:
            raise _Mistake(key.start_mark, f"a space is needed after the colon: {{{name}: {rest}}}")
        if key.tag not in (_TEXT, _MERGE):
            kind = _KINDS.get(key.tag.removeprefix(_TAG), "no text")
            raise _Mistake(
                key.start_mark, f'the key {key.value or "(none)"} is read as {kind}: write "{key.value}" in quotes'
            )
        if key.value in first:
            more = "; give it once, with a list: <<: [*one, *other]" if key.tag == _MERGE else ""
            where = first[key.value].line + 1
            raise _Mistake(
                key.start_mark, f"is not valid YAML: the key {key.value!r} is given twice (first in line {where}){more}"
            )
        first[key.value] = key.start_mark


def _measure(node: yaml.Node, sizes: dict[int, tuple[int, int]], written: dict[str, int], level: int) -> int:
    """A node's characters with all aliases written out; ``sizes`` are those of nodes met, with their depths.

    Raises where an anchor contains itself, or where aliases of aliases make a small file a huge one.
    """
    if level + sizes.get(id(node), (0, 0))[1] > _DEEPEST:
        raise _Mistake(node.start_mark, f"is nested more than {_DEEPEST} levels deep, or an anchor contains itself")
    if id(node) not in sizes:
        if isinstance(node, yaml.ScalarNode):
            parts, size = [], len(node.value) + 1
        else:
            pairs = isinstance(node, yaml.MappingNode)
            parts, size = [part for item in node.value for part in (item if pairs else [item])], 1
        written["all"] = written.get("all", 0) + size
        size += sum(_measure(part, sizes, written, level + 1) for part in parts)
        sizes[id(node)] = size, 1 + max((sizes[id(part)][1] for part in parts), default=0)
    if (size := sizes[id(node)][0]) > written["all"] + _GROWTH:
        raise _Mistake(node.start_mark, f"aliases make this {size:,} characters long: write out less")
    return size


def _unshared(value: Any) -> Any:
    """The value with a copy of its own for each alias, so that a change at one place is none at another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that either kind of reader would take for something else, ``1e-3`` among it."""


# Scalars: how a plain one is recognised, and what it becomes.

_SCALARS: tuple[tuple[str, str, str], ...] = (  # type, pattern, first characters
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:[0-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


def _int(text: str) -> int:
    digits = text.lstrip("+-").replace("_", "")
    if re.fullmatch(r"0[0-9]+", digits):
        raise _Refused(f'{text} is ambiguous (YAML 1.1 reads octal): leave the zero out, or write "{text}" for text')
    if len(digits) > 100:
        raise _Refused(f"a number of {len(digits)} digits is too large")
    return int(digits, 0) * (-1 if text.startswith("-") else 1)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    special = plain.removeprefix("-").removeprefix("+") in (".inf", ".nan")
    value = float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    if not special and value in (float("inf"), float("-inf")):
        raise _Refused(f'{text} is too large for a number; write "{text}" for text')
    return value


def _text(text: str) -> str:
    if re.search("[\ud800-\udfff]", text):
        raise _Refused("half of a surrogate pair is no text")
    return text


def _add_scalar(name: str, build: Callable[[str], Any]) -> None:
    def construct(loader: _Loader, node: Any) -> Any:
        try:
            return build(str(loader.construct_scalar(node)))
        except _Refused as error:
            raise _Mistake(node.start_mark, str(error)) from None
        except (ValueError, KeyError):  # of a scalar with a tag, such as !!int many
            raise _Mistake(node.start_mark, f"this is not {_KINDS.get(name, 'text')}") from None

    _Loader.add_constructor(_TAG + name, construct)


def _no_constructor(loader: _Loader, node: yaml.Node) -> Any:
    tag = node.tag.replace(_TAG, "!!")
    raise _Mistake(node.start_mark, f"the tag {tag} has no meaning here: leave it out")


for _name, _pattern, _first in _SCALARS:
    _characters = [character.strip("\0") for character in _first]
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _characters)
for _name, _build in {
    "null": lambda text: None,
    "bool": lambda text: yaml.SafeLoader.bool_values[text.lower()],
    "int": _int,
    "float": _float,
    "str": _text,
    "merge": _text,  # as a value, << is text
}.items():
    _add_scalar(_name, _build)
for _name in ("seq", "map"):
    _Loader.yaml_constructors[_TAG + _name] = getattr(yaml.SafeLoader, f"construct_yaml_{_name}")
_Loader.add_constructor(None, _no_constructor)
