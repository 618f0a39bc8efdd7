"""Which epoch's model is a generation's, by which measure; stochastic gradient descent and its schedule."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executors import executor
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from fortifai_ray.families.fitting import FitConfig, _make_optimizer
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.data import Blocks
from fortifai_ray.families.language.keeping import Measure
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.families.language.scoring import perplexity_value
from fortifai_ray.families.language.training import train
from fortifai_ray.losses import CrossEntropy

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 6, "block_size": 64, "learning_rate": 1e-3}


def told(folder: Path, values: list[float], seen: str) -> float:
    """The next of ``values`` for each folder it is called on, noted in the file ``seen``; draws from the generator."""
    torch.rand(5)
    count = len(Path(seen).read_text()) if Path(seen).exists() else 0
    Path(seen).write_text("x" * (count + 1))
    assert (folder / "model.safetensors").is_file() or (folder / "adapter_model.safetensors").is_file()
    return values[count]


def fit(model: Path, output: Path, blocks: Blocks, measure: Measure | None, **keys: Any) -> Any:
    output.mkdir()
    keep = "last" if measure is None else "best"
    return train(
        executor(),
        model,
        output,
        blocks,
        CrossEntropy(),
        TrainingConfig(**SETTINGS | keys, keep=keep),
        7,
        measure=measure,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("highest", "values", "kept"),
    [
        (True, [0.1, 0.3, 0.2], 1),
        (True, [0.3, 0.3, 0.3], 0),
        (False, [9.0, 8.0, 8.5], 1),
        (False, [9.0, 8.0, 7.0], 2),
        (False, [INF, 8.0, NAN], 1),
        (True, [NAN, NAN, 0.1], 2),
        (False, [NAN, INF, NAN], 1),
        (True, [NAN, NAN, NAN], 0),
    ],
)
def test_the_best_epoch_is_kept_and_nothing_else_changes(
    model: Path, blocks: Blocks, tmp_path: Path, highest: bool, values: list[float], kept: int
) -> None:
    """Its weights are those of a training of so many epochs, although measuring draws random numbers; the report says
    which it was. What measuring left is gone."""
    measure = Measure(highest, told, (values, str(tmp_path / "seen")))
    report = fit(model, tmp_path / "best", blocks, measure, schedule="constant", warmup_ratio=0.0)
    assert report.kept_epoch == kept
    assert report.epoch_values == [value if math.isfinite(value) else None for value in values]
    json.dumps(vars(report), allow_nan=False)
    fit(model, tmp_path / "plain", blocks, None, epochs=kept + 1, schedule="constant", warmup_ratio=0.0)
    best, plain = weights(tmp_path / "best"), weights(tmp_path / "plain")
    assert all(torch.equal(best[name], plain[name]) for name in plain)
    assert not (tmp_path / "best" / "epochs").exists()
    assert report.steps == 9


def test_held_out_perplexity_chooses_the_epoch_before_it_rises(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Each value is the perplexity of that epoch's model; a training that goes on too long is cut where it was best."""
    measure = Measure(False, perplexity_value, (blocks.tokens[:4],), {"batch_size": 4})
    few = Blocks(blocks.tokens[4:6], blocks.lengths[4:6])  # soon known by heart
    report = fit(model, tmp_path / "out", few, measure, epochs=12, learning_rate=1e-2)
    values = report.epoch_values
    assert report.kept_epoch == int(np.argmin(values)) < 11
    assert perplexity_value(tmp_path / "out", blocks.tokens[:4], batch_size=4) == pytest.approx(min(values), rel=1e-6)


def test_an_adapter_is_measured_beside_its_model(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """An adapter's epochs are read with the model they belong to, which is not copied."""
    measure = Measure(False, perplexity_value, (blocks.tokens[:4],), {"batch_size": 4})
    report = fit(model, tmp_path / "out", blocks, measure, lora={"rank": 2}, batch_size=14)
    assert len(report.epoch_values) == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not (tmp_path / "out" / "model.safetensors").exists()


def recipe(**keys: Any) -> LanguageRecipe:
    family = {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}}
    return LanguageRecipe(family=family, corpus={"source": "pydoc"}, generations=2, **keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"training": {"keep": "best"}}, None),
        ({"training": {"keep": "best", "keep_by": "perplexity"}}, None),
        (
            {
                "training": {"keep": "best", "keep_by": "kr_accuracy"},
                "evaluation": {"benchmarks": [{"task": "kr_test"}]},
            },
            None,
        ),
        (
            {"training": {"keep": "best", "keep_by": "kr_accuracy"}},
            r"kr_accuracy is not measured of a model .*needs the benchmark",
        ),
        ({"training": {"keep": "best", "keep_by": "perplexty"}}, "did you mean perplexity"),
        ({"training": {"keep": "best", "keep_by": "prompt_overlap"}}, "is not measured of a model"),
        ({"training": {"keep": "best", "keep_by": "train_loss"}}, "is not measured of a model"),
        ({"training": {"keep_by": "kr_accuracy"}}, "keep: best"),
        ({"training": {"keep": "first"}}, "last"),
    ],
)
def test_only_a_measure_of_the_model_may_choose(keys: dict[str, Any], said: str | None) -> None:
    """Refused with those that may; what chooses is said when a study starts, and the epoch is a column."""
    if said is not None:
        with pytest.raises(ValidationError, match=said):
            recipe(**keys)
        return
    made = recipe(**keys)
    assert any("too good as a measure" in line for line in made.notices)
    assert "kept_epoch" in made.metrics
    assert "kept_epoch" not in recipe().metrics
    assert made.chain_id != recipe().chain_id == recipe(training={"keep": "last"}).chain_id


def test_descent_is_pytorch_s(model: Path) -> None:
    """SGD with momentum, its rate rising as LinearLR has it: step by step over the epochs, against PyTorch's own."""
    settings = FitConfig(epochs=4, optimizer="sgd", learning_rate=0.5, schedule="rising", weight_decay=0.0)
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer, schedule = _make_optimizer(ours, settings, 4 * 3)
    other = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9)
    epochs = torch.optim.lr_scheduler.LinearLR(other, total_iters=4)
    random = torch.Generator().manual_seed(0)
    for _ in range(4):
        for _ in range(3):
            inputs = torch.randn(5, 3, generator=random)
            for network, stepper in ((ours, optimizer), (theirs, other)):
                stepper.zero_grad()
                network(inputs).square().mean().backward()
                assert optimizer.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
                stepper.step()
            schedule.step()
            torch.testing.assert_close(ours.weight, theirs.weight)
        epochs.step()
    assert FitConfig(momentum=0.9).model_dump() == FitConfig().model_dump()
