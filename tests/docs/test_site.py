"""The documentation as a site: it builds without the network, every page is in it, and every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
MKDOCS = Path(sys.executable).parent / "mkdocs"


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_has_a_place() -> None:
    """Tutorial, how-to pages, reference and explanation: a new page of docs/ is put under one of them, once."""
    nav = pages(yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(nav) == len(set(nav))
    assert {path.name for path in (PROJECT / "docs").glob("*.md")} <= set(nav)
    beside = {name for name in nav if not (PROJECT / "docs" / name).is_file()} - {"index.md"}  # index: the README
    assert all((PROJECT / name).is_file() for name in beside)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: MkDocs ends with an error for a link or an anchor that leads nowhere."""
    if not MKDOCS.is_file():
        pytest.skip("no mkdocs in this environment: make setup puts it there")
    folder = tmp_path_factory.mktemp("site")
    nowhere = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [str(MKDOCS), "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=PROJECT,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_opens_offline(site: Path) -> None:
    """No page loads a script, a style, a font or a picture from elsewhere."""
    source, style = r"<(?:script|img|iframe)[^>]*\ssrc=", r"<link[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*\shref="
    loads = re.compile(rf"(?:{source}|{style})\"(?:https?:)?//")
    assert not [page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))]


def test_links_lead_to_files_of_the_site(site: Path) -> None:
    """Also those to study files, to pages beside docs/ and from them, and to headings."""
    broken = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"<a[^>]*\shref=\"([^\"#:]*)(?:#([^\"]*))?\"", text):
            path = page.parent / target if target else page
            path = path / "index.html" if path.is_dir() else path
            there = path.is_file() and (
                not anchor or path.suffix != ".html" or f'id="{anchor}"' in path.read_text(encoding="utf-8")
            )
            if not there and page.name != "404.html":
                broken.append((page.name, target, anchor))
    assert not broken


def test_reference_and_first_page_are_there(site: Path) -> None:
    """The README is the first page; functions are described from their docstrings."""
    assert "Two commands" in (site / "index.html").read_text(encoding="utf-8")
    assert "open_study" in (site / "api.html").read_text(encoding="utf-8")
    assert (site / "sweeps" / "bertrand2023_stability.yaml").is_file()
