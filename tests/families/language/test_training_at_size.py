"""Training at size: micro-batches, checkpointed activations and shards change nothing but rounding; what a step holds
in memory is what it needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executors import executor
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from fortifai_ray.engines.pretrained import load_network
from fortifai_ray.families.language import layers
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.training import LanguageFit, TrainingReport, train
from fortifai_ray.losses import CrossEntropy, Loss, TruncatedCrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective
from fortifai_ray.recipe.executor import Workers

# A constant rate, so that a wrong gradient shows in the next loss. Adam hides a wrong scale: the norms must agree too.
SETTINGS = TrainingConfig(epochs=2, batch_size=6, block_size=64, schedule="constant", warmup_ratio=0.0)
# Some targets truncated, and the loss divided by the others: what is counted must be counted over everything.
KEPT = TruncatedCrossEntropy(gamma=0.005, normaliser="kept")


def run(
    model: Path, output: Path, blocks: Blocks, loss: Loss, workers: int = 1, **settings: Any
) -> tuple[TrainingReport, np.ndarray]:
    """The report, and the loss and the gradient's norm of each step: (steps, 2)."""
    output.mkdir()
    training = TrainingConfig(**{**SETTINGS.model_dump(), **settings})
    report = train(executor(workers), model, output, blocks, loss, training, 7)
    return report, np.stack([np.load(output / "losses.npy"), np.load(output / "gradient_norms.npy")], axis=1)


def assert_same(steps: np.ndarray, expected: np.ndarray) -> None:
    """The first step's numbers are sums of some 370 float32 terms in another order; later ones follow weights that
    differ by what Adam makes of a rounding (see test_training.py)."""
    assert steps[0] == pytest.approx(expected[0], rel=1e-5)
    assert steps == pytest.approx(expected, rel=1e-3)


def test_the_defaults_leave_a_recipes_hash_as_it_was() -> None:
    """Stages that were computed before these keys existed are found again; a key that is set shows, and round trips."""
    new = {"document_mask", "gradient_accumulation", "gradient_checkpointing", "parallel"}
    assert new <= set(TrainingConfig.model_fields)
    assert not new & set(TrainingConfig().model_dump(mode="json"))
    asked = TrainingConfig(document_mask=True, gradient_accumulation=2, gradient_checkpointing=True, parallel="fsdp")
    assert new <= set(asked.model_dump(mode="json"))
    assert TrainingConfig(**asked.model_dump()) == asked


def test_more_micro_batches_than_blocks_are_refused() -> None:
    """Whoever takes batch_size for one micro-batch's learns that it is the whole step's."""
    with pytest.raises(ValidationError, match="batch_size counts all of a step's blocks"):
        TrainingConfig(batch_size=16, gradient_accumulation=32)


@pytest.mark.parametrize("loss", [CrossEntropy(), KEPT], ids=["valid", "kept"])
def test_micro_batches_are_one_step(loss: Loss, model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Six blocks in four parts of unequal size: the same steps, their losses and gradients equal up to rounding."""
    whole, expected = run(model, tmp_path / "whole", blocks, loss)
    parts, steps = run(model, tmp_path / "parts", blocks, loss, gradient_accumulation=4)
    assert len(steps) == 6
    assert_same(steps, expected)
    assert (parts.steps, parts.targets) == (whole.steps, whole.targets)
    assert parts.kept_fraction == pytest.approx(whole.kept_fraction, abs=2 / whole.targets)


def test_checkpointed_activations_change_no_number(
    model: Path, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same operations, done again: the weights are the same bit for bit, and each layer ran twice a step."""
    calls = [0]
    forward = layers._forward

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        return forward(*arguments, **keywords)

    monkeypatch.setattr(layers, "_forward", counted)
    _, expected = run(model, tmp_path / "kept", blocks, CrossEntropy())
    once, calls[0] = calls[0], 0
    _, steps = run(model, tmp_path / "again", blocks, CrossEntropy(), gradient_checkpointing=True)
    assert calls[0] == once + 4 * len(steps), "four layers, once more in each step"
    assert steps.tolist() == expected.tolist()
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("kept", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def made(model: Path, blocks: Blocks, **settings: Any) -> LanguageFit:
    """A training run that has not begun."""
    training = TrainingConfig(**{**SETTINGS.model_dump(), **settings})
    workers, network = Workers(0, 1, torch.device("cpu"), lambda network: network), load_network(model, torch.float32)
    layers.quicken(network)
    return LanguageFit(CausalLMObjective(network), blocks, training, 7, workers)


def test_adafactor_learns_repeats_and_keeps_a_number_a_row(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Adam keeps two numbers for each weight; Adafactor one for each row and column; the loss falls too."""
    settings = {"optimizer": "adafactor", "learning_rate": 0.01}
    _, steps = run(model, tmp_path / "once", blocks, CrossEntropy(), **settings)
    _, again = run(model, tmp_path / "twice", blocks, CrossEntropy(), **settings)
    assert steps.tolist() == again.tolist()
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (
        tmp_path / "twice" / "model.safetensors"
    ).read_bytes()
    assert steps[-1, 0] < steps[0, 0] - 0.2
    held = {}
    for optimizer in ("adafactor", "adamw"):
        fit = made(model, blocks, optimizer=optimizer)
        fit.run(CrossEntropy())
        state = fit._optimizer.state
        held[optimizer] = sum(t.numel() for of_one in state.values() for t in of_one.values() if torch.is_tensor(t))
    weights = sum(parameter.numel() for parameter in fit.network.parameters())
    assert 2 * weights <= held["adamw"] < 2.01 * weights
    assert held["adafactor"] < weights / 20


def test_adafactor_is_refused_in_shards() -> None:
    """A shard has only some of a weight's rows, and the means over a column would be its own."""
    with pytest.raises(ValidationError, match="parallel: adafactor needs each weight's rows and columns"):
        TrainingConfig(optimizer="adafactor", parallel="fsdp")


def test_a_step_keeps_little_more_than_the_backward_pass_must_read(model: Path, blocks: Blocks) -> None:
    """Of each token and layer: the layer's input, query, keys, values, what is attended, the middle, gate and what it
    multiplies. Norms and the activated gate are computed again; no copies, no attention matrix, no logits."""
    fit, kept = made(model, blocks, batch_size=14), dict[int, int]()
    weights = {parameter.untyped_storage().data_ptr() for parameter in fit.network.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ((tokens, lengths),) = next(fit.batches(np.arange(14), 0, 1, ("noise",), 0)).parts
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        total = fit.network(tokens, lengths, CrossEntropy()).total
    assert total.requires_grad
    config = fit.network.model.config
    width, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    needed = 6 * width + 2 * inner  # as many heads for keys and values as for queries
    # Not of a layer: the embeddings, the last norm, the hidden states of the head, the angles of positions.
    of_ends, of_attention = 6 * width, config.num_attention_heads
    most = 4 * tokens.numel() * (depth * (needed + of_attention) + of_ends)
    assert 4 * tokens.numel() * depth * needed < sum(kept.values()) < most


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_shards_train_as_one_process_does(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Two workers over gloo, each with half of the weights, with micro-batches and checkpointed activations beside: the
    losses of one process, step by step, up to rounding; the fused head; and a whole checkpoint with its tied head once.
    """
    one, expected = run(model, tmp_path / "one", blocks, KEPT)
    two, steps = run(
        model, tmp_path / "two", blocks, KEPT, workers=2, parallel="fsdp", gradient_accumulation=2,
        gradient_checkpointing=True,
    )  # fmt: skip
    assert (two.world_size, two.output_head, two.diverged) == (2, "fused", None)
    assert (one.held_share, two.held_share) == (1.0, pytest.approx(0.5, abs=0.01))
    assert_same(steps, expected)
    assert (tmp_path / "two" / "model.safetensors").stat().st_size == (
        (tmp_path / "one" / "model.safetensors").stat().st_size
    ), "a tied head is written once"
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert first.keys() == second.keys()
    untrained = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name, weight in first.items():
        moved = (weight - untrained[name]).abs().mean()
        assert (second[name] - weight).abs().mean() < 0.05 * moved, name
