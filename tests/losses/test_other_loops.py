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


try:
    from torchtitan.components.loss import BaseLoss
except ImportError:  # it asks for datasets before 4.8: this is its contract, as version 0.3.0 has it

    class BaseLoss:  # type: ignore[no-redef]
        """Divides the sum that ``fn`` gives of a microbatch by the targets of the step, over all processes."""

        fn: Any

        def __call__(self, pred: Any, labels: Any, global_valid_tokens: Any = None) -> tuple[torch.Tensor, dict]:
            loss = self.fn(pred, labels)
            return (loss if global_valid_tokens is None else loss / global_valid_tokens), {}


class Truncated(BaseLoss):
    def __init__(self, loss: Any) -> None:
        self.fn = loss.as_module(reduction="sum")


@pytest.mark.parametrize("flat", [False, True], ids=["rows", "packed"])
def test_torchtitan(flat: bool) -> None:
    """As the loss function of its trainer, over microbatches of a row each; packed, as its later versions have them."""
    model = make(LLAMA)
    loss = half_kept(model)
    _, expected = own_gradients(model, loss)
    tokens, labels = labelled()
    count, criterion = (labels[:, 1:] != -100).sum(), Truncated(loss)

    def step() -> None:
        for row, targets in zip(tokens, labels[:, 1:], strict=True):
            pred, of = model(row[None]).logits[:, :-1], targets[None]
            scaled, _ = criterion(pred.flatten(0, 1), of.flatten(), count) if flat else criterion(pred, of, count)
            scaled.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad

    check_step(model, expected, step)
