"""A hook of MkDocs: pages and files of the site that lie beside ``docs/``, and the links to them.

The README is the site's first page; SECURITY.md, CONTRIBUTING.md, CHANGELOG.md and the READMEs of two folders are pages
under their own paths; study files and the like are files. So each text has one owner, and its links hold on the site
as in the repository.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", "benchmarks/README.md")
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what lies beside ``docs/``: the pages, and the files that any page links to."""
    files.append(File.generated(config, "index.md", content=_moved("README.md", (PROJECT / "README.md").read_text())))
    for page in PAGES:
        files.append(File.generated(config, page, content=_moved(page, (PROJECT / page).read_text("utf-8"))))
    known = {file.src_uri for file in files}
    pages = [file for file in files if file.is_documentation_page()]
    linked = {target for file in pages for target in _targets(file.src_uri, file.content_string)}
    for target in sorted(linked - known):
        if (PROJECT / target).is_file():
            files.append(File.generated(config, target, abs_src_path=str(PROJECT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links from ``docs/`` to what lies beside it: there is no folder between them on the site."""
    return markdown if page.file.generated_by else _moved(f"docs/{page.file.src_uri}", markdown)


def _moved(page: str, text: str) -> str:
    """The text of a page of the repository with its links as they are on the site, where ``docs/`` is the root."""
    here = posixpath.dirname(_on_site(page))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        return f"{match[1]}{posixpath.relpath(_on_site(target), here or '.')}{match[3] or ''}{match[4]}"

    return _LINK.sub(link, text)


def _on_site(path: str) -> str:
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _targets(page: str, text: str) -> set[str]:
    """Where the links of a page of the site lead, from its root; those of ``docs/`` may still begin with ``../``."""
    folder = posixpath.dirname(page)
    joined = (posixpath.normpath(posixpath.join(folder, match[2])) for match in _LINK.finditer(text))
    return {target.removeprefix("../") for target in joined}
