"""Every example of a study file on a page is one, and a reader's own code there does what the page says of it.

A fragment is tried in a study: in the shipped one that BASE names, else in the page's own whole one, else in the
quickstart.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fortifai_ray
from fortifai_ray.study.shipped import folder

PROJECT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = re.compile(r"# (my_\w+\.py)\n")
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
BASE = {"claims.md": "bertrand2023_stability", "ecosystems.md": "ecosystem_tce", "extending.md": "quickstart"}
BESIDE = {
    "curation.md": ("my_rewards.py", "def politeness(items):\n    return [text.count('please') for text in items]\n")
}


def blocks(page: Path, language: str) -> list[str]:
    """A page's examples in a language, but for those that leave something out."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [block for kind, block in found if kind == language and not re.search(r"^[^#\n]*…", block, re.MULTILINE)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's own folder, with texts. Its modules are forgotten afterwards."""
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "one.txt").write_text("Once upon a time.")
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def write_own(page: Path, place: Path) -> None:
    """The modules of the page's reader: those that it shows, and those that it only names."""
    for block in blocks(page, "python"):
        if named := OWN.match(block):
            (place / named[1]).write_text(block, encoding="utf-8")
    if page.name in BESIDE:
        name, code = BESIDE[page.name]
        (place / name).write_text(code, encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_the_study_files_of_a_page(page: Path, elsewhere: Path) -> None:
    """A whole study loads, and so does a fragment in the place of those keys of a study."""
    write_own(page, elsewhere)
    contents = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    shipped = (folder() / f"{BASE.get(page.name, 'quickstart')}.yaml").read_text(encoding="utf-8")
    own = [] if page.name in BASE else [one for one in contents if "name" in one]
    base = own[0] if own else yaml.safe_load(shipped)
    for content in contents:
        keys: dict[str, Any] = {"claims": content} if isinstance(content, list) else content
        fortifai_ray.load_study(keys if "name" in keys else base | keys)


def test_a_family_of_ones_own(elsewhere: Path) -> None:
    """The one of docs/extending.md runs a chain."""
    write_own(PROJECT / "docs" / "extending.md", elsewhere)
    from my_families import Laplace  # type: ignore[import-not-found]

    family, rng = Laplace(), np.random.default_rng(0)
    model = family.fit(family.human(10_000, rng))
    assert family.evaluate(model)["scale_ratio"] == pytest.approx(1.0, abs=0.05)  # standard error 1/√10,000 of b
    assert len(family.generate(model, 5, rng)) == 5
