"""Adapters: the model they belong to stays loaded, each answers as its merged weights do, and none is mistaken."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.helpers import ENGINE, GREEDY, LONG, ask, make_adapter, make_checkpoint, make_prompts, needs_vllm
from fortifai_ray.engines.checkpoints import AdapterFiles, is_adapter, load_causal_lm, whole_model
from fortifai_ray.engines.engine import EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.storage.store import StageKey, StageStore

ADAPTED = ENGINE.model_copy(update={"lora_rank": 4})
PROMPTS = make_prompts(6, LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` with a tied head, and the adapters ``few``, ``other`` (query and value) and ``all`` (every layer)."""
    root = tmp_path_factory.mktemp("adapters")
    base = make_checkpoint(root / "base", 0, tied=True)
    make_adapter(root / "few", base, 1, ["q_proj", "v_proj"])
    make_adapter(root / "other", base, 2, ["q_proj", "v_proj"])
    make_adapter(root / "all", base, 3, "all-linear")
    return root


@pytest.fixture(scope="module")
def merged(folder: Path) -> dict[str, list[list[int]]]:
    """What the Hugging Face engine answers, which merges."""
    answers, engine = {}, HuggingFaceEngine(ENGINE)
    engine.start(folder / "base")
    for name in ("few", "other", "all", "base"):
        engine.load(folder / name)
        answers[name] = engine.generate(PROMPTS, [0] * 6, GREEDY)
    return answers


@pytest.mark.parametrize("name", ["few", "all"])
def test_merged_weights_give_the_adapters_logits(folder: Path, name: str) -> None:
    """PEFT's own adapter over the model against the merged weights.

    Both compute each of a layer's outputs as a sum of about 200 float32 terms, in another order: an error of 2**-24 of
    the terms' size each, adding up as a random walk, in two layers of seven matrices; amplified by the norms at most a
    few times. The logits of order 10 so agree to 1e-4 with room, and an adapter that is not there is off by 1 or more.
    """
    tokens = torch.tensor(make_prompts(3, 60))
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with torch.inference_mode():
        without = base(tokens).logits
        over = PeftModel.from_pretrained(base, str(folder / name)).eval()(tokens).logits
        together = load_causal_lm(folder / name, torch.float32)(tokens).logits
    assert (over - without).abs().max() > 1
    assert (together - over).abs().max() < 1e-4


def test_an_adapter_is_rounded_once(folder: Path) -> None:
    """In bfloat16 what is merged is the float32 sum, rounded: small steps of training are not lost in large weights."""
    exact, rounded = load_causal_lm(folder / "few", torch.float32), load_causal_lm(folder / "few", "bfloat16")
    for (name, parameter), other in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert other.equal(parameter.to(torch.bfloat16)), name


def test_whose_adapter_it_is_must_stand_beside_it(folder: Path, tmp_path: Path) -> None:
    """One line for an adapter that lost its model; and the name in its file cannot lead elsewhere."""
    assert (is_adapter(folder / "few"), is_adapter(folder / "base")) == (True, False)
    assert whole_model(folder / "few") == whole_model(folder / "base") == folder / "base"
    alone = shutil.copytree(folder / "few", tmp_path / "alone")
    with pytest.raises(WeightsError, match="base, is not beside alone"):
        whole_model(alone)
    config = alone / "adapter_config.json"
    config.write_text(config.read_text().replace('"base"', '"../base"'))
    with pytest.raises(WeightsError, match="is not beside"):
        whole_model(alone)


def test_a_tensor_that_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    """PEFT only warns, and would leave the random matrix that it began with."""
    broken = _broken(folder, tmp_path)
    with pytest.raises(WeightsError, match=r"lacks or does not fit .*v_proj\.lora_B"):
        load_causal_lm(broken, torch.float32)


def _broken(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "base", tmp_path / "base")
    broken = shutil.copytree(folder / "few", tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    return broken


def test_an_adapters_files_bring_its_models(tmp_path: Path) -> None:
    """What travels to another node is both stages' hashes: there the model is fetched together with the adapter."""
    store = StageStore(tmp_path / "runs")

    def write(target: Path) -> dict[str, Any]:
        (target / "file").touch()
        return {}

    from fortifai_ray.storage.store import StageFiles

    base, adapter = (store.step(StageKey(kind, 1, {}), write) for kind in ("model", "fit"))
    fetched = []
    watched = StageFiles(base, store.storage)
    object.__setattr__(base, "where", lambda: fetched.append("base") or store.path(base.hash))
    files = AdapterFiles(adapter, store.storage, watched)
    assert files.path == adapter.path
    assert fetched == ["base"]
    there = pickle.loads(pickle.dumps(files))
    assert (there.path, there.base.path) == (adapter.path.absolute(), base.path.absolute())


@needs_vllm
@pytest.mark.ray
def test_vllm_answers_by_adapters_as_by_merged_weights(
    pool: EnginePool, folder: Path, merged: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    """Greedy tokens over and over among three adapters and the bare model, by one engine that starts once.

    A stale adapter, one of another's slices left over, or a prefix cache of another's would show. The model's weights
    are taken away after the first call: adapters are swapped over what the engine holds.
    """
    root = shutil.copytree(folder, tmp_path / "stages")
    assert len({str(answer) for answer in merged.values()}) == 4
    assert ask(pool, root / "few", PROMPTS, GREEDY, engine=ADAPTED).generated_ids.to_pylist() == merged["few"]
    starts = pool.state().starts
    (root / "base" / "model.safetensors").rename(tmp_path / "away")
    for name in ("all", "few", "other", "few", "all"):
        answer = ask(pool, root / name, PROMPTS, GREEDY, engine=ADAPTED)
        assert answer.weights_version == name
        assert answer.generated_ids.to_pylist() == merged[name]
    (tmp_path / "away").rename(root / "base" / "model.safetensors")
    for name in ("base", "other"):
        assert ask(pool, root / name, PROMPTS, GREEDY, engine=ADAPTED).generated_ids.to_pylist() == merged[name]
    assert pool.state().starts == starts


@needs_vllm
@pytest.mark.ray
def test_vllm_refuses_adapters_that_are_not_whole(
    pool: EnginePool, folder: Path, merged: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    """A tensor that lacks, and an engine without room for adapters; afterwards it answers right."""
    with pytest.raises(Exception, match=r"v_proj|lora"):
        ask(pool, _broken(folder, tmp_path), PROMPTS, GREEDY, engine=ADAPTED)
    assert ask(pool, folder / "other", PROMPTS, GREEDY, engine=ADAPTED).generated_ids.to_pylist() == merged["other"]
    with pytest.raises(WeightsError, match="started without lora_rank"):
        ask(pool, folder / "few", PROMPTS, GREEDY)


def test_the_key_is_left_out_where_it_is_not_set() -> None:
    """Corpora that were written before adapters were known are found again."""
    assert "lora_rank" not in EngineConfig().model_dump(mode="json")
    assert EngineConfig(**ADAPTED.model_dump()) == ADAPTED
