"""Every example of ``docs/losses.md`` runs as it stands, on a model made on the spot."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SHAPE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


def given(folder: Path) -> dict[str, Any]:
    """What the page says a reader's script has."""
    tokens = torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    config = transformers.LlamaConfig(**SHAPE, num_attention_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    settings: dict[str, Any] = {"output_dir": str(folder), "max_steps": 1, "report_to": [], "use_cpu": True}
    return {
        "model": transformers.LlamaForCausalLM(config),
        "arguments": transformers.TrainingArguments(**settings, save_strategy="no", disable_tqdm=True),
        "data": [{"input_ids": row, "labels": row} for row in tokens],
        "rows": tokens,
        "parts": tokens.split(2),
        "settings": settings,
    }


def for_trl(names: dict[str, Any]) -> None:
    """The further names of the example for TRL."""
    import datasets
    from tokenizers import Tokenizer, models
    from trl import SFTConfig

    words = Tokenizer(models.WordLevel({str(i): i for i in range(40)}, unk_token="0"))
    names["tokenizer"] = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    names["sft_arguments"] = SFTConfig(**names["settings"], bf16=False)
    names["sft_data"] = datasets.Dataset.from_dict({"input_ids": names["rows"].tolist()})


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    """And it does something: the model is trained, or has gradients."""
    names = given(tmp_path)
    if "trl" in example:
        for_trl(names)
    before = [parameter.detach().clone() for parameter in names["model"].parameters()]
    exec(compile(example, PAGE.name, "exec"), names)
    parameters = list(names["model"].parameters())
    moved = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert moved or "trl" in example or all(p.grad is not None for p in parameters)


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 5
