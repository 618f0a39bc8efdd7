"""docs/smollm2.md is legible: a line a chain, its texts in order, and Markdown shows them as they were written."""

import importlib.util
from pathlib import Path
from typing import Any

import polars as pl

_SPEC = importlib.util.spec_from_file_location("smollm2", Path(__file__).parents[2] / "scripts" / "smollm2.py")
assert _SPEC is not None
assert _SPEC.loader is not None
smollm2: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(smollm2)


def test_the_page_of_a_study() -> None:
    """A chain that ended early leaves its cells empty; a text's own signs are no Markdown."""
    rows = [
        {"chain_id": "b", "generation": 0, "seed": 1, "training.lora.rank": 16, "loss.kind": "tce", "loss.gamma": 0.9,
         "perplexity": 48.21, "distinct_2": 0.517},
        *({"chain_id": "a", "generation": g, "seed": 0, "training.lora.rank": None, "loss.kind": "cross_entropy",
           "loss.gamma": None, "perplexity": 37.07 + g, "distinct_2": 0.4} for g in (1, 0)),
    ]  # fmt: skip
    texts = [
        {"chain_id": "a", "generation": g, "row": 0, "prompt_text": " In\n2008", "generated_text": f"<unk> *{g}* " * 99}
        for g in (1, 0)
    ]
    page = smollm2.page(pl.DataFrame(rows, infer_schema_length=None), pl.DataFrame(texts), "A note.")
    assert "| all weights | cross entropy | 0 | 37.1 | 38.1 | 0.40 | 0.40 |" in page
    assert "| LoRA, rank 16 | TCE 0.9 | 1 | 48.2 |  | 0.52 |  |" in page
    assert page.index("- **g0** \\<unk\\> \\*0\\*") < page.index("- **g1** \\<unk\\> \\*1\\*")
    assert "After “In 2008”:" in page
    assert "A note." in page
    assert max(map(len, page.splitlines())) < 600
