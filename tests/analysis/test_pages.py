"""The exported pages in a browser: every chart is drawn, nothing raises, nothing is fetched from elsewhere."""

import os
from pathlib import Path

import pytest

from .browser import Browser
from .studies import NOTEBOOKS

# With the results that ship: charts of each notebook, and pictures in the explorer (two losses of eight generations,
# as latent vectors and as samples).
CHARTS = {"collapse_onset": 5, "phase_diagram": 1, "what_collapses_first": 3, "theory": 1, "explorer": 0}
PICTURES = {"explorer": 32}
WORDS = {
    "collapse_onset": ["Log-rank tests against the baseline", "What can be concluded", "Under KL divergence above 0.5"],
    "phase_diagram": ["read off the grid", "synthetic ratio r"],
    "what_collapses_first": [
        "tails: tail coverage",
        "facts: KR accuracy",
        "grammar: BLiMP accuracy",
        "repetition: distinct 3",
    ],
    "theory": ["gaussian_replace_mean_variance", "How well they agree"],
    "explorer": ["Prompt: “", "The same latent vectors in every generation"],
}


def test_every_notebook_is_looked_at() -> None:
    """A sixth notebook needs an entry here."""
    assert sorted(CHARTS) == sorted(WORDS) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_page_is_drawn_whole(name: str, browser: Browser, served: str, tmp_path: Path) -> None:
    """Charts with ink in them, pictures that load, the words that tell what they mean, and no error.

    Set ``FORTIFAI_SCREENSHOTS`` to a folder to look at the pages.
    """
    folder = Path(os.environ.get("FORTIFAI_SCREENSHOTS", tmp_path))
    page = browser.open(f"{served}/{name}.html", CHARTS[name], PICTURES.get(name, 0), folder / f"{name}.png")
    assert page.errors == []
    assert page.charts == CHARTS[name]
    assert page.images >= PICTURES.get(name, 0)
    assert [words for words in WORDS[name] if words not in page.text] == []
    assert [url for url in page.requested if not url.startswith((served, "data:", "blob:"))] == []


def test_a_page_with_an_error_is_found_out(browser: Browser, served: str, exported: Path) -> None:
    """The check above can fail: a script that raises, and an address that is not there, are both seen."""
    broken = f"<img src='{served}/nothing.png'><script>throw new Error('planted')</script><p>{'text ' * 200}</p>"
    (exported / "broken.html").write_text(broken, encoding="utf-8")
    page = browser.open(f"{served}/broken.html")
    assert any("planted" in error for error in page.errors)
    assert any("nothing.png" in error for error in page.errors)
    assert page.charts == 0
