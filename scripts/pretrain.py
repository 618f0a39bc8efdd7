"""Make a pretrained model with this project's own recursion: generation 0 of a study, as a checkpoint folder.

    python scripts/pretrain.py llama-docs [--work FOLDER]
    python scripts/pretrain.py STUDY.yaml --to FOLDER [--work FOLDER]

The first makes the preset llama-docs and puts it into the package. Its text is the prose of docstrings, of CPython and
of packages in ``requirements-cpu.lock``, a document a file of source: ``WORK/docstrings.jsonl``. None of it is the
quickstart's, which is `pydoc_data.topics`. Its study is beside the model. The second trains whatever a study says, e.g.
scripts/wikitext2_5m.yaml. It trains without Ray, on OMP_NUM_THREADS cores; its stages are in WORK (runs/pretrain).
"""

import argparse
import ast
import hashlib
import json
import re
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import load_study

PRESET = Path(__file__).parents[1] / "fortifai_ray" / "families" / "language" / "presets" / "llama-docs"
PACKAGES = ("mlflow", "numpy", "pandas", "ray", "sklearn", "sqlalchemy", "torch", "transformers")
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "pydoc_data", "encodings", "_vendor", "vendor"}
_LEFT_OUT |= {"thirdparty_files", "thirdparty"}
_SHORTEST = 80  # characters of a paragraph
_LETTERS = 0.9  # share of letters and spaces: less is code, a table or a formula
_NO_PROSE = (">>>", "...", "..", "#", ":", "|", "+-", "$", "@", "-", "*")  # how a line of something else begins


def documents(root: Path) -> Iterator[list[str]]:
    """The paragraphs of each source file below ``root``, in the order of the files' names and lines."""
    for file in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(file.relative_to(root).parts[:-1]):
            yield [paragraph for docstring in _docstrings(file) for paragraph in _prose(docstring)]


def _docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [tree, *sorted((n for n in ast.walk(tree) if isinstance(n, kinds)), key=lambda node: node.lineno)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _prose(docstring: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", docstring):
        lines = [line.rstrip() for line in part.splitlines() if line.strip()]
        text = " ".join(part.split())
        if any(line.lstrip().startswith(_NO_PROSE) for line in lines) or "http" in text or not text.isascii():
            continue
        letters = sum(character.isalpha() or character == " " for character in text)
        if len(text) >= _SHORTEST and text[0].isalpha() and text[-1] in ".:!?" and letters >= _LETTERS * len(text):
            yield "\n".join(lines)


def collect(target: Path) -> str:
    """Write the text into ``target``, each paragraph once; returns its SHA-256."""
    places = [find_spec(name) for name in PACKAGES]
    roots = [Path(spec.origin).parent for spec in places if spec is not None and spec.origin is not None]
    seen: set[str] = set()
    rows = []
    for root in [Path(sysconfig.get_path("stdlib")), *roots]:
        for paragraphs in documents(root):
            new = [text for text in dict.fromkeys(paragraphs) if text not in seen]
            seen.update(new)
            if new:
                rows.append(json.dumps({"text": "\n\n".join(new)}))
    target.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return hashlib.sha256(target.read_bytes()).hexdigest()


def pretrain(study_file: Path, target: Path, storage: Path, text: Path | None = None) -> float:
    """Train generation 0 of a study, on ``text`` where it is given; put model and tokenizer into the folder ``target``.

    Returns the perplexity per token of its held-out documents.

    Raises:
        UserError: the study, or its text, cannot be read.
    """
    study = load_study(study_file, [] if text is None else [f"corpus.path={text}"])
    recipe: Any = study.chains[0].recipe
    store = StageStore(storage)
    prepared = recipe.prepare(store, study.source)
    print(*recipe.describe(prepared, store), sep="\n")
    family = recipe.build(prepared, Steps(store), InProcess())
    human = recipe.regime.training_set(family.human(), [], 0)
    model = family.fit(human, recipe.loss, start_from=family.init(None, 0), generation=0)
    target.mkdir(parents=True, exist_ok=True)
    for folder in (family.corpus.tokenizer_path, model.path):
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    return family.evaluate(model, generation=0).outputs["perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="llama-docs, or a study file")
    parser.add_argument("--to", type=Path, help="the folder of the model; llama-docs goes into the package")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    given = parser.parse_args()
    study, target, text = Path(given.study), given.to, None
    if (given.study == "llama-docs") == (target is not None):
        parser.error("give llama-docs, or a study file and --to FOLDER")
    given.work.mkdir(parents=True, exist_ok=True)
    if target is None:
        study, target, text = PRESET / "pretrain.yaml", PRESET, given.work.absolute() / "docstrings.jsonl"
        print(f"{text}: SHA-256 {collect(text)}")
    try:
        print(f"held-out perplexity {pretrain(study, target, given.work.absolute(), text):.1f}")
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
