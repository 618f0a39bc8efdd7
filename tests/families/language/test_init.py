"""What a generation's training starts from, `training.init`: one meaning for every model, pretrained or not; starting
models share a stage only where they are the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.architectures import make_architecture
from engines.gguf_writing import make_llama, make_tokenizer, write_gguf
from safetensors.torch import load_file

from fortifai_ray.engines.checkpoints import architecture
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.engines.pretrained import WeightsError, causal_config, fresh_network, load_network, local_folder
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.family import LanguageFamily
from fortifai_ray.families.language.models import create_model, write_config
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageStore

FORMS = ("preset", "path", "gguf", "hub")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer: a GGUF's, so that it is in either form."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("init")
        patch.setenv("FORTIFAI_CACHE", str(root / "cache"))
        made = ModelConfig(path=str(write_gguf(root / "model.gguf", make_llama(), make_tokenizer()))).folder
        assert made is not None
        shutil.copytree(made, root / "folder")
    return root / "folder"


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A pretrained model in each form in which a study may name one."""
    if request.param == "preset":
        return ModelConfig(preset="llama-docs")
    if request.param == "path":
        return ModelConfig(path=str(folder))
    if request.param == "gguf":
        monkeypatch.setenv("FORTIFAI_CACHE", str(folder.parent / "cache"))
        return ModelConfig(path=str(folder.parent / "model.gguf"))
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = tmp_path / "models--somebody--whole"
    shutil.copytree(folder, root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    local_folder.cache_clear()
    return ModelConfig(hub="somebody/whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_scratch_is_random_weights_of_the_same_architecture(corpus: Corpus, model: ModelConfig, tmp_path: Path) -> None:
    """By the seed, in each form; an engine that starts from the configuration alone fits them."""
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        create_model(model, corpus, seed, tmp_path / name, scratch=True)
    create_model(model, corpus, 1, tmp_path / "base")
    write_config(model, corpus, tmp_path / "config")
    first, base = weights(tmp_path / "first"), weights(tmp_path / "base")
    assert equal(first, weights(tmp_path / "same"))
    assert not equal(first, weights(tmp_path / "other"))
    assert {name: one.shape for name, one in first.items()} == {name: one.shape for name, one in base.items()}
    assert architecture(tmp_path / "first") == architecture(tmp_path / "config") == architecture(tmp_path / "base")
    matrices = {name: one for name, one in first.items() if one.ndim == 2}
    spread = causal_config(tmp_path / "base").initializer_range
    for name, one in matrices.items():
        assert one.dtype == torch.float32
        # Of N independent normal numbers the standard deviation is known to 1/√(2N) of it: five of these.
        assert abs(float(one.std()) / spread - 1) < 5 / (2 * one.numel()) ** 0.5, name
        assert not torch.equal(one, base[name]), name
    ends = [load_network(tmp_path / name, "auto").generation_config.eos_token_id for name in ("first", "base")]
    assert ends[0] == ends[1]


def family(model: ModelConfig, init: str, store: StageStore, seed: int = 0) -> LanguageFamily:
    recipe = LanguageRecipe.model_validate(
        {
            "family": {"kind": "language", "model": model.model_dump(exclude_defaults=True)},
            "corpus": {"source": "pydoc", "train_tokens": 4096},
            "training": {"init": init, "block_size": 64},
            "generations": 3,
            "seed": seed,
        }
    )
    return LanguageFamily(recipe, prepare_corpus(CorpusConfig(source="pydoc"), model, store), Steps(store), InProcess())


@pytest.mark.parametrize("form", ["tiny", "pretrained"])
def test_starting_models_are_shared_where_they_are_the_same(form: str, folder: Path, tmp_path: Path) -> None:
    """Pretrained weights by all seeds and generations; random ones by none, but for llama-tiny's first under `base`."""
    model = (
        ModelConfig(preset="llama-tiny", vocab_size=512, layers=1) if form == "tiny" else ModelConfig(path=str(folder))
    )
    store, stages = StageStore(tmp_path), dict[tuple[str, int, int], str]()
    for init in ("scratch", "base", "previous"):
        for seed in (0, 1):
            previous: Stage | None = None
            for generation in (0, 1):
                stage = family(model, init, store, seed).init(previous, generation)
                stages[init, seed, generation] = stage.hash
                previous = stage
    of_scratch = {stages["scratch", seed, generation] for seed in (0, 1) for generation in (0, 1)}
    assert len(of_scratch) == 4
    for seed in (0, 1):
        assert stages["base", seed, 0] == stages["base", seed, 1] == stages["previous", seed, 0]
        assert stages["previous", seed, 1] == stages["previous", seed, 0], "what it was given"
    assert (stages["base", 0, 0] == stages["base", 1, 0]) == (form == "pretrained")
    assert (stages["base", 0, 0] in of_scratch) == (form == "tiny")


@pytest.mark.parametrize(
    ("model", "training", "said"),
    [
        (
            {"preset": "llama-docs"},
            {"init": "scratch"},
            "training.init: scratch begins each generation with new random",
        ),
        ({"preset": "llama-docs"}, {"init": "base"}, None),
        ({"preset": "llama-docs"}, {}, None),
        ({"preset": "llama-tiny"}, {"init": "scratch"}, None),
        ({"hub": "somebody/whole"}, {"init": "scratch"}, "architecture of somebody/whole, whose own are not used"),
    ],
)
def test_a_dry_run_says_that_weights_are_not_used(
    model: dict[str, Any], training: dict[str, Any], said: str | None
) -> None:
    """A model with weights of its own that begins without them may be a mistake."""
    recipe = LanguageRecipe.model_validate(
        {
            "family": {"kind": "language", "model": model},
            "corpus": {"source": "pydoc"},
            "training": training,
            "engine": {"kind": "huggingface"},
            "generations": 2,
        }
    )
    lines = [line for line in recipe.notices if "scratch" in line]
    assert lines == [] if said is None else said in lines[0]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "mamba", "opt"])
def test_any_architecture_begins_from_scratch(name: str, tmp_path: Path) -> None:
    """As transformers makes a new one: every number is finite, and it differs from one seed to the next."""
    folder = make_architecture(tmp_path / name, name)
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(dict(fresh_network(folder).named_parameters()))
    first, same, other = networks
    assert all(one.isfinite().all() and torch.equal(one, same[key]) for key, one in first.items())
    assert any(not torch.equal(one, other[key]) for key, one in first.items())


def test_a_configuration_that_makes_no_network_is_said(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config.replace('"hidden_act": "silu"', '"hidden_act": "sulu"'))
    with pytest.raises(WeightsError, match=r"config\.json cannot be used: hidden_act: sulu"):
        fresh_network(tmp_path / "model")
