"""The loss as a module in Lightning's and torchtitan's training: the gradients of this package's own training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.losses.test_causal_lm import make
from tests.losses.test_hugging_face import LLAMA, check_step, half_kept, labelled, own_gradients


@pytest.mark.parametrize("form", ["whole logits", "fused", "accumulated"])
def test_lightning(form: str, tmp_path: Path) -> None:
    """In ``training_step``; accumulated over batches of a row each, which Lightning gives equal weight, as sums."""
    import pytorch_lightning as lightning

    model = make(LLAMA)
    loss = half_kept(model)
    _, expected = own_gradients(model, loss)
    tokens, labels = labelled()
    count = int((labels[:, 1:] != -100).sum())

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = model, loss.as_module("sum" if form == "accumulated" else "mean")

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            rows, targets = batch[0], batch[1][:, 1:]
            if form == "fused":
                hidden = self.model.base_model(rows).last_hidden_state[:, :-1]
                return self.criterion(hidden, self.model.lm_head.weight, targets)
            summed = self.criterion(self.model(rows).logits[:, :-1], targets)
            return summed * len(tokens) / count if form == "accumulated" else summed

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    rows = 1 if form == "accumulated" else len(tokens)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=1, accumulate_grad_batches=len(tokens) // rows, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = DataLoader(TensorDataset(tokens, labels), batch_size=rows)
    check_step(model, expected, lambda: trainer.fit(Module(), data))
