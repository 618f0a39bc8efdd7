"""Documents packed into one block do not see each other where ``training.document_mask`` says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from executors import executor

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.models import keep_documents_apart, positions
from fortifai_ray.families.language.training import train
from fortifai_ray.losses import CrossEntropy

END = 7
_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,  # so that a token more in the context shows
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED = {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 1}
KEPT_APART = {
    "llama": transformers.LlamaConfig(**_GROUPED),
    "qwen2": transformers.Qwen2Config(**_GROUPED),
    "gemma3": transformers.Gemma3TextConfig(**_GROUPED, head_dim=16, sliding_window=3),
}


def make(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_positions_begin_anew_with_each_document() -> None:
    """An end-of-text token is the first of what follows; several in a row are documents of one token."""
    tokens = torch.tensor([[3, 4, END, 5, 6], [END, 3, END, END, 4]])
    assert positions(tokens, END).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 1]]


@pytest.mark.parametrize("name", KEPT_APART)
@torch.no_grad()
def test_a_packed_document_is_scored_as_if_alone(name: str) -> None:
    """Logits of each of three documents in a row, against those of the document by itself, left to right."""
    model = make(KEPT_APART[name])
    documents = [[1, 2, 3, 4], [END, 9, 11, 12, 13, 20], [END, 30, 31]]
    row = torch.tensor([[token for document in documents for token in document]])
    alone = torch.cat([model(torch.tensor([document])).logits[0] for document in documents])
    joined = model(row).logits[0]
    keep_documents_apart(model, END)
    apart = model(row).logits[0]
    # Two layers in float32: sums of some hundred terms in another order.
    tolerance = 1000 * torch.finfo(torch.float32).eps * float(alone.abs().max())
    assert (apart - alone).abs().max() <= tolerance
    assert (joined - alone).abs().max() > 100 * tolerance, "without the mask they do see each other"


def test_a_model_that_attends_across_documents_is_refused() -> None:
    """OPT takes the positions and builds a mask that knows nothing of them: seen by trying, not by its name."""
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
    config = transformers.OPTConfig(**{k: v for k, v in _SHAPE.items() if k != "initializer_range"}, **sizes)
    with pytest.raises(UserError, match=r"training\.document_mask: OPTForCausalLM attends across"):
        keep_documents_apart(make(config), END)


def test_training_keeps_documents_apart(model: Path, corpus: Corpus, tmp_path: Path) -> None:
    """The first step's loss is the mean over all targets, each document scored by itself in float64."""
    tokens = np.array(corpus.blocks(corpus.train, 64)[:2])
    tokens[0, [10, 40]] = tokens[1, 25] = corpus.end_of_text
    blocks = Blocks(tokens, np.array([64, 64]))
    settings = TrainingConfig(batch_size=2, block_size=64, document_mask=True)
    with pytest.raises(ValueError, match="the token that ends a document"):
        train(executor(), model, tmp_path, blocks, CrossEntropy(), settings, 0)
    train(executor(), model, tmp_path, blocks, CrossEntropy(), settings, 0, end_of_text=corpus.end_of_text)

    network: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    sums, targets = 0.0, 0
    with torch.no_grad():
        for row in tokens:
            starts = sorted({0, *np.flatnonzero(row == corpus.end_of_text).tolist()})
            for start, stop in zip(starts, [*starts[1:], len(row) - 1], strict=True):
                document = torch.from_numpy(row[start : stop + 1]).long()[None]
                log_p = network(document[:, :-1]).logits.log_softmax(-1)[0]
                sums -= float(log_p.gather(1, document[0, 1:, None]).sum())
                targets += stop - start
    assert targets == 2 * 63
    assert np.load(tmp_path / "losses.npy")[0] == pytest.approx(sums / targets, rel=1e-5)
