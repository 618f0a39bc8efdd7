"""Adapters in training: over a model that stays as it is, in a folder of their own, with every way of training."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executors import executor
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.errors import UserError
from fortifai_ray.families.language import training as training_module
from fortifai_ray.families.language.adapters import adapted_layers
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import LoraConfig, ModelConfig, TrainingConfig
from fortifai_ray.families.language.models import skeleton
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.families.language.scoring import perplexity
from fortifai_ray.families.language.training import TrainingReport, train
from fortifai_ray.losses import CrossEntropy, Loss, TruncatedCrossEntropy

LORA = LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj"))
SETTINGS = TrainingConfig(
    epochs=2, batch_size=6, block_size=64, learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, lora=LORA
)
KEPT = TruncatedCrossEntropy(gamma=0.005, normaliser="kept")


@pytest.fixture(scope="module")
def root(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, as a store has one: ``base`` in it."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(model, folder / "base")
    return folder


def run(
    root: Path, name: str, blocks: Blocks, loss: Loss, start: str = "base", workers: int = 1, **settings: Any
) -> tuple[TrainingReport, np.ndarray]:
    """The report, and the loss and the gradient's norm of each step: (steps, 2)."""
    (root / name).mkdir()
    training = TrainingConfig(**{**SETTINGS.model_dump(), **settings})
    report = train(executor(workers), root / start, root / name, blocks, loss, training, 7)
    return report, np.stack([np.load(root / name / f) for f in ("losses.npy", "gradient_norms.npy")], axis=1)


def test_the_default_leaves_a_recipes_hash_as_it_was() -> None:
    """Stages without adapters are found again; the order of targets makes no other recipe."""
    assert "lora" not in TrainingConfig().model_dump(mode="json")
    assert TrainingConfig(**SETTINGS.model_dump()) == SETTINGS
    assert LoraConfig(targets=("v_proj", "q_proj")) == LORA.model_copy(update={"rank": 16, "alpha": 32})
    assert LoraConfig(targets="all-linear").targets == "all-linear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": "q_proj"}, r"all-linear, or a list of layers' names such as \[q_proj, v_proj\], not 'q_proj'"),
        ({"targets": []}, "a list of layers' names"),
        ({"targets": ["q_proj", "lm_head"]}, "lm_head: the output head stays as it is"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"ranks": 4}, "ranks"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    """A line that says what would be right."""
    with pytest.raises(ValidationError, match=message):
        LoraConfig(**given)


def test_new_random_weights_are_not_adapted() -> None:
    """``scratch`` is a new model each generation, also of a pretrained one: noise, which an adapter hardly changes."""
    recipe = {
        "family": {"kind": "language", "model": {"preset": "llama-tiny"}},
        "corpus": {"source": "pydoc"},
        "generations": 2,
    }
    with pytest.raises(ValidationError, match="base or previous is right"):
        LanguageRecipe(**recipe, training={"init": "scratch", "lora": {}})
    pretrained = {**recipe, "family": {"kind": "language", "model": {"preset": "llama-docs"}}}
    with pytest.raises(ValidationError, match="base or previous is right"):
        LanguageRecipe(**pretrained, training={"init": "scratch", "lora": {}})
    for init in ("base", "previous"):
        written = LanguageRecipe(**recipe, training={"init": init, "lora": {"rank": 4}}, engine={"kind": "vllm"})
        assert written.writer.lora_rank == 4
    assert LanguageRecipe(**recipe, training={"lora": {}}, engine={"kind": "huggingface"}).writer.lora_rank is None
    with pytest.raises(ValidationError, match=r"engine.lora_rank: it is that of training\.lora"):
        LanguageRecipe(**recipe, engine={"lora_rank": 4})


def test_a_layer_that_is_not_there_is_told_before_anything_starts() -> None:
    """From the model's shape alone: no weights are made for it."""
    network = skeleton(ModelConfig(preset="llama-tiny"))
    assert network is not None
    assert next(network.parameters()).is_meta
    assert {name.rpartition(".")[2] for name in adapted_layers(network, LORA)} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"^training\.lora\.targets: query is no linear layer of LlamaForCausalLM"):
        adapted_layers(network, LoraConfig(targets=("query",)))
    assert skeleton(ModelConfig(hub="some/model")) is None


@pytest.mark.parametrize("name", ["query", "embed_tokens"])
def test_a_layer_that_is_not_there_is_told(root: Path, blocks: Blocks, tmp_path: Path, name: str) -> None:
    """PEFT's own message is a paragraph; embeddings would drag a tied head along."""
    settings = SETTINGS.model_copy(update={"lora": LORA.model_copy(update={"targets": ("q_proj", name)})})
    with pytest.raises(UserError, match=f"{name} is no linear layer .*it has down_proj, gate_proj, k_proj, o_proj"):
        train(executor(), root / "base", tmp_path, blocks, CrossEntropy(), settings, 7)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"], ids=["few", "all"])
@pytest.mark.parametrize("loss", [CrossEntropy(), KEPT], ids=["ce", "tce"])
def test_the_adapter_learns_and_the_model_stays(
    root: Path, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Loss, targets: Any
) -> None:
    """By the fused head; every weight of the model bit for bit as it was, and on the disk the adapter alone."""
    trained = []
    save = training_module.save_adapter
    monkeypatch.setattr(training_module, "save_adapter", lambda *a: trained.append(a[0]) or save(*a))
    name = f"{loss.kind}-{targets[0]}"
    report, _ = run(root, name, blocks, loss, epochs=4, lora=LoraConfig(rank=4, alpha=8, targets=targets))
    assert (report.output_head, report.diverged) == ("fused", None)
    before = AutoModelForCausalLM.from_pretrained(root / "base").state_dict()
    after = {key.replace(".base_layer.", "."): value for key, value in trained[0].state_dict().items()}
    assert all(after[key].equal(value) for key, value in before.items())
    scores = [perplexity(root / folder, blocks.tokens, batch_size=7).perplexity for folder in ("base", name)]
    assert scores[1] < 0.98 * scores[0]
    files = {path.name: path.stat().st_size for path in (root / name).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} < files.keys()
    assert "model.safetensors" not in files
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
    ranks = sum(tensor.numel() for tensor in load_file(root / name / "adapter_model.safetensors").values())
    assert files["adapter_model.safetensors"] < 4 * ranks + 20_000


def test_checkpointed_activations_change_no_number(root: Path, blocks: Blocks) -> None:
    """The frozen embedding below the first checkpoint must not cut the adapters off: the same numbers bit for bit."""
    _, expected = run(root, "kept", blocks, CrossEntropy())
    _, steps = run(root, "again", blocks, CrossEntropy(), gradient_checkpointing=True)
    assert steps.tolist() == expected.tolist()
    first, second = (load_file(root / name / "adapter_model.safetensors") for name in ("kept", "again"))
    assert all(first[name].equal(second[name]) for name in first)
    configs = [(root / name / "adapter_config.json").read_text() for name in ("kept", "again")]
    assert configs[0] == configs[1], "what is stored is the same from run to run"


def test_previous_goes_on_from_the_adapter(root: Path, blocks: Blocks) -> None:
    """The next generation's first loss is that of the last one's merged weights; its adapter is of the same model."""
    whole = Blocks(blocks.tokens, np.full(14, 64))
    run(root, "first", whole, CrossEntropy(), epochs=4)
    _, steps = run(root, "second", whole, CrossEntropy(), start="first", batch_size=14)
    # 882 float32 losses of size 6, each of a forward pass in another order: see test_training.py
    assert steps[0, 0] == pytest.approx(
        np.log(perplexity(root / "first", whole.tokens, batch_size=14).perplexity), rel=1e-5
    )
    for name in ("first", "second"):
        assert '"base_model_name_or_path": "base"' in (root / name / "adapter_config.json").read_text()


def test_a_new_adapter_changes_nothing_yet(root: Path, blocks: Blocks) -> None:
    """B begins at zero: the first loss is the model's own, so that all that is lost later is the training's."""
    _, without = run(root, "whole", blocks, CrossEntropy(), lora=None)
    _, steps = run(root, "new", blocks, CrossEntropy(), lora=LORA.model_copy(update={"targets": "all-linear"}))
    assert steps[0, 0] == pytest.approx(without[0, 0], rel=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_train_the_adapter_that_one_does(root: Path, blocks: Blocks, parallel: str) -> None:
    """Over gloo, whole or in shards (frozen weights are sharded too), with micro-batches and checkpointed activations:
    the same steps up to rounding, and the same adapter up to what Adam makes of it (see test_training.py)."""
    _, expected = run(root, f"one-{parallel}", blocks, KEPT)
    two, steps = run(
        root, f"two-{parallel}", blocks, KEPT, workers=2, parallel=parallel, gradient_accumulation=2,
        gradient_checkpointing=True,
    )  # fmt: skip
    assert (two.world_size, two.output_head, two.diverged) == (2, "fused", None)
    assert two.held_share == pytest.approx(0.5 if parallel == "fsdp" else 1.0, abs=0.01)
    assert steps[0] == pytest.approx(expected[0], rel=1e-5)
    assert steps == pytest.approx(expected, rel=1e-3)
    first, second = (load_file(root / f"{name}-{parallel}/adapter_model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in (name for name in first if "lora_B" in name):  # which began at 0
        assert (second[name] - first[name]).abs().mean() < 0.05 * first[name].abs().mean(), name
    assert load_causal_lm(root / f"two-{parallel}", "float32") is not None
