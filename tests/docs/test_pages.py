"""The pages of ``docs/`` and the README: generated ones are what their sources give, links lead somewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from fortifai_ray import __version__
from fortifai_ray.study.study import make_study

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [
    PROJECT / "README.md",
    PROJECT / "SECURITY.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "CHANGELOG.md",
    PROJECT / "cluster" / "README.md",
    *(PROJECT / "docs").glob("*.md"),
]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
MODULE = re.compile(r"`(?:fortifai_ray|tests|benchmarks|scripts|sweeps|analysis|cluster)/[\w./*-]+`")


def test_generated_pages_are_what_their_sources_give() -> None:
    """A change of a key, a metric or a measured claim must reach its page: `make docs`."""
    check = [sys.executable, "scripts/docs.py", "--check"]
    done = subprocess.run(check, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_key_of_a_study_file_says_what_it_means() -> None:
    page = (PROJECT / "docs" / "studies.md").read_text(encoding="utf-8")
    silent = [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not silent


def test_the_example_of_a_study_file_is_one() -> None:
    page = (PROJECT / "docs" / "studies.md").read_text(encoding="utf-8")
    study = make_study(yaml.safe_load(page.split("```yaml")[1].split("```")[0]), "example")
    assert len(study.chains) == 2 * 2 * 2 * 100


def test_links_within_the_page_of_keys_lead_to_one_heading() -> None:
    page = (PROJECT / "docs" / "studies.md").read_text(encoding="utf-8")
    headings = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in HEADING.findall(page)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= set(headings)


def test_the_readme_is_short() -> None:
    """A newcomer reads it whole: at most 900 words."""
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_how_to_cite_names_this_version_and_licence() -> None:
    """One version: the package's, the metadata's and the citation's."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == project["version"] == __version__
    assert cited["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (PROJECT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_what_a_page_points_at_is_there(page: Path) -> None:
    """Links between pages, and files that a page names."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in LINK.findall(text) if "://" not in target]
    named = [PROJECT / name.strip("`") for name in MODULE.findall(text)]
    missing = [str(path) for path in [*links, *named] if not (path.exists() or list(path.parent.glob(path.name)))]
    assert not missing
