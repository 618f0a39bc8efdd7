"""The house: one order of the rooms, few modules at the top, files of a size to be read, no crumbs."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "fortifai_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.stem for path in PACKAGE.iterdir()}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def module(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fortifai_ray"):
            names = {f"{node.module}.{name.name}" for name in node.names}
            rooms = node.module == "fortifai_ray" and all(n.partition(".")[2] in ROOMS for n in names)
            found |= names if rooms else {str(node.module), *names}  # a room alone does not need the package's names
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_imports_point_one_way() -> None:
    """The contract in pyproject.toml: no import runs upwards, so no circle of rooms is possible."""
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_room_is_in_the_order() -> None:
    """A new package or module at the top takes its place in the contract."""
    contract = (PROJECT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.importlinter]")[2]
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not {room for room in rooms - {"__init__", "__pycache__"} if f"fortifai_ray.{room}" not in contract}


def test_no_circle_of_modules() -> None:
    """Inside a room, too, no module leads back to itself by its imports."""
    known = {module(path): path for path in FILES}
    graph = {
        name: {target for target in imported(path) & known.keys() if target != name} for name, path in known.items()
    }
    done: set[str] = set()
    for start in graph:
        _walk(start, graph, [], done)


def _walk(name: str, graph: dict[str, set[str]], trail: list[str], done: set[str]) -> None:
    assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
    if name not in done:
        for target in sorted(graph[name]):
            _walk(target, graph, [*trail, name], done)
        done.add(name)


def test_few_modules_at_the_top_and_few_files_in_all() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    assert len(FILES) <= 301
    assert sum(map(lines, FILES)) <= 50_100


def test_files_are_neither_crumbs_nor_novels() -> None:
    """At most 400 lines; one of fewer than 40 has more than one importer."""
    importers: dict[str, int] = defaultdict(int)
    for path in FILES:
        for name in imported(path):
            importers[name] += 1
    assert not [str(path) for path in FILES if lines(path) > 400]
    small = [path for path in FILES if lines(path) < 40 and path.name not in ("__init__.py", "__main__.py")]
    assert not [str(path) for path in small if importers[module(path)] <= 1]


def test_ray_is_known_to_the_sweep_and_the_engines_alone() -> None:
    """Families train, score and generate through an executor; the rest knows no Ray at all."""
    rooms = {
        path.relative_to(PACKAGE).parts[0] for path in FILES if any(n.split(".")[0] == "ray" for n in _outside(path))
    }
    assert rooms <= {"sweep", "engines", "doctor.py"}


def _outside(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def test_nothing_trusts_the_code_of_a_checkpoint() -> None:
    """Wherever it can be said, it is said: transformers asks at the terminal where it is not."""
    said = {
        (path.name, ast.unparse(node.value))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
    }
    assert {value for _, value in said} == {"False"}
    assert {name for name, _ in said} >= {"pretrained.py", "vllm_engine.py", "harness.py"}


def test_one_door_to_transformers() -> None:
    """What reads a checkpoint goes through ``engines/pretrained.py``: nothing of it is run, and no tensor made up."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(node.value))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    elsewhere = {(path, name) for path, name in found if path != "engines/pretrained.py"}
    assert elsewhere == {
        ("engines/checkpoints.py", "LoraConfig"),  # of an adapter's own JSON
        ("engines/soundness.py", "kind"),  # handed to pretrained.loaded
        ("engines/gguf_files.py", "kind"),  # handed to pretrained.loaded
        ("engines/gguf_files.py", "AutoConfig"),  # a GGUF holds keys and tensors, and no code
        ("engines/gguf_files.py", "AutoTokenizer"),
    }
