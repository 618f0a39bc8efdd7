"""Training: one train function whatever the number of workers, exact losses, checkpoints anybody can load."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executors import executor
from transformers import AutoModelForCausalLM

from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.scoring import perplexity
from fortifai_ray.families.language.training import TrainingReport, train, version
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, LovaszSoftmax, TruncatedCrossEntropy
from fortifai_ray.sweep.ray_executor import RayExecutor

SETTINGS = TrainingConfig(epochs=2, batch_size=6, learning_rate=1e-3)


@pytest.fixture(scope="module")
def blocks(corpus: Corpus) -> Blocks:
    """Twenty blocks of unequal length: batches hold unequal numbers of targets, and the last one 2 of 6 rows."""
    lengths = np.full(20, 128)
    lengths[[3, 8, 15]] = [40, 2, 1]
    return Blocks(np.array(corpus.blocks(corpus.train, 128)[:20]), lengths)


def run(model: Path, output: Path, blocks: Blocks, loss: Loss, workers: int = 1) -> TrainingReport:
    output.mkdir()
    return train(executor(workers), model, output, blocks, loss, SETTINGS, 7)


def test_the_first_loss_is_the_models_own(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """The first step's loss is the mean over the batch's real targets, recomputed here in float64, row by row."""
    run(model, tmp_path / "out", blocks, CrossEntropy())
    from fortifai_ray.seeds import generator

    batch = generator(7, "epoch", 0).permutation(20)[:6]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    sums, targets = 0.0, 0
    for row in batch:
        tokens = torch.from_numpy(blocks.tokens[row][: blocks.lengths[row]]).long()[None]
        log_p = network(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])
        sums, targets = sums - float(log_p.sum().detach()), targets + log_p.shape[0]
    # Sums of some 600 float32 terms of size 6: rounding of one part in 2**24 each, adding up as a random walk would.
    tolerance = 2**-24 * 25 * 6
    assert np.load(tmp_path / "out" / "losses.npy")[0] == pytest.approx(sums / targets, abs=tolerance * 10)


@pytest.mark.parametrize("loss", [CrossEntropy(), TruncatedCrossEntropy(gamma=0.005, normaliser="kept")])
def test_blocks_are_weighed(model: Path, blocks: Blocks, tmp_path: Path, loss: Loss) -> None:
    """Each step divides weighed sums by weighed counts: a block of weight 0 is as good as left out, and weights that
    are all alike change nothing but rounding."""
    seen, alike = np.arange(20) < 12, Blocks(blocks.tokens, blocks.lengths, np.full(20, 0.3))
    weighed = Blocks(blocks.tokens, blocks.lengths, np.where(seen, 2.0, 0.0))
    gone = Blocks(blocks.tokens, np.where(seen, blocks.lengths, 1))
    for name, given in {"plain": blocks, "alike": alike, "weighed": weighed, "gone": gone}.items():
        run(model, tmp_path / name, given, loss)
    steps = {name: np.load(tmp_path / name / "losses.npy") for name in ("plain", "alike", "weighed", "gone")}
    assert steps["alike"] == pytest.approx(steps["plain"], abs=1e-4)
    assert steps["weighed"] == pytest.approx(steps["gone"], abs=1e-4)
    assert steps["weighed"] != pytest.approx(steps["plain"], abs=1e-2)


def test_training_repeats_bit_for_bit(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """The same step gives the same weights: what lets a killed sweep end with the same table."""
    for name in ("a", "b"):
        run(model, tmp_path / name, blocks, CrossEntropy())
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_and_hands_on_an_ordinary_checkpoint(
    model: Path, corpus: Corpus, blocks: Blocks, tmp_path: Path
) -> None:
    """Perplexity on what was trained on falls; the folder has safetensors and no pickle."""
    run(model, tmp_path / "out", blocks, CrossEntropy())
    text = blocks.tokens[:3]
    assert (
        perplexity(tmp_path / "out", text, batch_size=2).perplexity < perplexity(model, text, batch_size=2).perplexity
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropy(), 3),
        (TruncatedCrossEntropy(gamma=1.0), 3),
        (LovaszSoftmax(), 3),
        (TruncatedCrossEntropy(gamma=0.99, normaliser="kept"), 4),
        (DynamicTruncatedCrossEntropy(variant="intended", alpha=1.0), 4),
    ],
)
def test_losses_that_truncate_have_a_version_of_their_own(loss: Loss, expected: int) -> None:
    """What leaves dropped targets out of the last layer's backward pass computes no other loss's stages again."""
    assert version(loss) == expected


def test_a_step_that_keeps_few_targets_is_a_step(
    model: Path, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half of the targets are kept, training goes the same way as where all tokens are computed backwards."""
    loss = TruncatedCrossEntropy(gamma=0.0019)
    report = run(model, tmp_path / "few", blocks, loss)
    assert 0.1 < report.kept_fraction < 0.55, "γ is about the median of the starting model"
    monkeypatch.setattr("fortifai_ray.families.language.layers._FEW", 0.0)
    run(model, tmp_path / "all", blocks, loss)
    few, every = (np.load(tmp_path / name / "gradient_norms.npy") for name in ("few", "all"))
    assert few[0] == pytest.approx(every[0], rel=1e-5)
    assert few == pytest.approx(every, rel=1e-3)  # after Adam's steps (see test_training_at_size.py)


def test_truncation_is_reported(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """A γ below nearly every probability of an untrained model (1/512 or so) keeps next to nothing."""
    report = run(model, tmp_path / "low", blocks, TruncatedCrossEntropy(gamma=1e-4))
    assert report.kept_fraction < 0.05
    full = run(model, tmp_path / "full", blocks, CrossEntropy())
    assert full.kept_fraction == 1.0
    assert full.output_head == "fused"
    assert full.steps == 8
    assert full.targets == 2 * int((blocks.lengths - 1).sum())
    assert full.world_size == 1


def test_a_loss_that_is_not_finite_is_a_finding(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Weights that overflow end the training with a reason, not with a crash."""
    network = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        network.get_input_embeddings().weight.fill_(float("nan"))
    network.save_pretrained(tmp_path / "broken")
    report = run(tmp_path / "broken", tmp_path / "out", blocks, CrossEntropy())
    assert report.diverged is not None
    assert "step 0" in report.diverged


def test_the_target_probabilities_are_logged(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """A histogram of every target of every epoch lies in the folder; mean and quartiles agree with it to a bin."""
    report = run(model, tmp_path / "out", blocks, CrossEntropy())
    histogram = json.loads((tmp_path / "out" / "target_probability.json").read_text())
    edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
    assert counts.sum() == report.targets
    low, high = (counts * edges[:-1]).sum() / counts.sum(), (counts * edges[1:]).sum() / counts.sum()
    assert low <= report.mean_target_probability <= high
    below = np.cumsum(counts) / counts.sum()
    quartiles = (report.target_probability_q25, report.target_probability_median, report.target_probability_q75)
    for level, value in zip((0.25, 0.5, 0.75), quartiles, strict=True):
        assert value is not None
        found = int(np.searchsorted(below, level))
        assert edges[found] <= value <= edges[found + 1]


def test_the_dynamic_threshold_is_set_and_logged_each_epoch(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """γ follows the model: an untrained one gives every target about 1/512, one that has learnt something gives more.

    The first is recomputed here from its definition, on the whole training set (all 20 blocks are the sample).
    """
    loss = DynamicTruncatedCrossEntropy(variant="intended", alpha=1.0)
    report = run(model, tmp_path / "out", blocks, loss)
    network = AutoModelForCausalLM.from_pretrained(model)
    probabilities = []
    for row, length in zip(blocks.tokens, blocks.lengths, strict=True):
        tokens = torch.from_numpy(row[:length]).long()[None]
        with torch.no_grad():
            probabilities += (
                network(tokens).logits.softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None]).flatten().tolist()
            )
    first, second = report.gamma_by_epoch
    assert first == pytest.approx(np.mean(probabilities) + np.std(probabilities), rel=1e-5)
    assert first < second <= 1.0
    assert 0.5 < report.kept_fraction < 1.0
    clamped = run(model, tmp_path / "clamped", blocks, loss.model_copy(update={"alpha": 1e6}))
    assert clamped.gamma_by_epoch == [1.0, 1.0]
    assert clamped.kept_fraction == 1.0


def test_the_loss_is_divided_by_what_the_normaliser_counts(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """The first step's loss over the kept targets is that over the valid ones, divided by the share kept."""
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": 20})  # one step
    reports = {}
    for normaliser in ("valid", "kept"):
        (tmp_path / normaliser).mkdir()
        loss = TruncatedCrossEntropy(gamma=0.002, normaliser=normaliser)
        reports[normaliser] = train(executor(), model, tmp_path / normaliser, blocks, loss, settings, 7)
    valid, kept = reports["valid"], reports["kept"]
    assert valid.steps == 1
    assert 0.1 < valid.kept_fraction == kept.kept_fraction < 0.9
    assert kept.train_loss == pytest.approx(valid.train_loss / valid.kept_fraction, rel=1e-6)


@pytest.mark.parametrize("normaliser", ["valid", "kept"])
def test_a_short_step_weighs_its_share_where_it_is_asked_to(
    model: Path, blocks: Blocks, tmp_path: Path, normaliser: Any
) -> None:
    """Two of six blocks are left for the last step: its gradient is a third, whatever the loss is divided by and
    however many micro-batches; the steps before it, and the losses, are the same."""
    norms, losses, loss = {}, {}, TruncatedCrossEntropy(gamma=0.005, normaliser=normaliser)
    for short in ("mean", "share"):
        keys = {"epochs": 1, "gradient_accumulation": 2, "short_steps": short, "learning_rate": 1e-4}
        (tmp_path / short).mkdir()
        settings = SETTINGS.model_copy(update=keys)
        train(executor(), model, tmp_path / short, blocks, loss, settings, 7)
        norms[short], losses[short] = (
            np.load(tmp_path / short / f"{name}.npy") for name in ("gradient_norms", "losses")
        )
    assert len(norms["mean"]) == 4
    assert np.array_equal(losses["share"], losses["mean"])
    assert np.array_equal(norms["share"][:3], norms["mean"][:3])
    assert norms["share"][3] == pytest.approx(norms["mean"][3] / 3, rel=1e-5)
    assert "short_steps" not in TrainingConfig(short_steps="mean").model_dump()


def test_lovasz_trains_by_the_plain_path(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """A loss that is not pointwise: finite, below 1 (each class's Jaccard loss is), and every target counts as kept."""
    report = run(model, tmp_path / "out", blocks, LovaszSoftmax())
    assert report.diverged is None
    assert 0.0 < report.train_loss < 1.0
    assert report.kept_fraction == 1.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_two_workers_agree_with_one(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """A real two-worker TorchTrainer over gloo: the same losses, step by step, as one process with the same batches.

    Each worker takes its rows in two micro-batches, of which the last alone is reduced over the workers. The same
    float32 terms are summed in another order, so a step differs by rounding; the optimiser (AdamW divides by the
    gradient's size) can turn a rounding of a near-zero gradient into a full step of one weight. Eight steps at a rate
    of at most 1e-3 leave the mean loss within 1e-4.
    """
    # Some targets truncated, and the loss divided by the others: the counts must be over both workers.
    loss = TruncatedCrossEntropy(gamma=0.005, normaliser="kept")
    one = run(model, tmp_path / "one", blocks, loss)
    (tmp_path / "two").mkdir()
    parts = SETTINGS.model_copy(update={"gradient_accumulation": 2})
    two = train(executor(2), model, tmp_path / "two", blocks, loss, parts, 7)
    assert (one.world_size, two.world_size) == (1, 2)
    assert 0.0 < one.kept_fraction < 1.0
    assert two.targets == one.targets
    first, second = (np.load(tmp_path / name / "losses.npy") for name in ("one", "two"))
    assert second[0] == pytest.approx(first[0], rel=1e-6)
    assert second == pytest.approx(first, abs=1e-4)
    assert two.kept_fraction == pytest.approx(one.kept_fraction, abs=2 / one.targets)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_two_workers_do_not_hang_where_nothing_is_kept(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """Every target truncated, and in some steps a worker without rows: each still takes part in every reduction.

    Gradients of exactly 0, and no weight decay: the weights come out as they went in.
    """
    one_row = Blocks(blocks.tokens[:5], blocks.lengths[:5])
    settings = TrainingConfig(epochs=1, batch_size=2, weight_decay=0.0)
    loss = TruncatedCrossEntropy(gamma=1e-9, normaliser="kept")
    (tmp_path / "out").mkdir()
    report = train(executor(2), model, tmp_path / "out", one_row, loss, settings, 7)
    assert (report.world_size, report.diverged, report.kept_fraction, report.train_loss) == (2, None, 0.0, 0.0)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_ray_training_is_the_same_bit_for_bit(model: Path, blocks: Blocks, tmp_path: Path) -> None:
    """The in-process executor and Ray Train's local mode run one loop: files of equal content."""
    for name, by in (("here", executor()), ("ray", RayExecutor())):
        (tmp_path / name).mkdir()
        train(by, model, tmp_path / name, blocks, TruncatedCrossEntropy(gamma=0.005), SETTINGS, 7)
    for file in ("model.safetensors", "losses.npy", "target_probability.json"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()
