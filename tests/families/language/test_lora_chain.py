"""Whole chains of adapters: real training, real engines, a store that holds the model once and is found again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.chain.recursion import Generation, recursion
from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageStore
from fortifai_ray.sweep.ray_executor import RayExecutor

RECIPE: dict[str, Any] = {
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 2048},
    "regime": {"kind": "replace"},
    "decoding": {"temperature": 0.8, "max_new_tokens": 48, "context_tokens": 16},
    "training": {"batch_size": 8, "block_size": 64, "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8}},
    "engine": {"max_num_seqs": 64},
    "generations": 2,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pool(ray_instance: str) -> Iterator[EnginePool]:
    """One engine, vLLM's where that is installed."""
    created = EnginePool.create(1, name="adapters", namespace="tests-adapters", num_cpus=0.5)
    yield created
    created.shutdown()


def run(recipe: LanguageRecipe, store: StageStore, pool: EnginePool | None) -> tuple[list[Generation[Stage]], Steps]:
    steps = Steps(store, replay=pool is None)
    family = recipe.build(recipe.prepare(store, "test"), steps, RayExecutor(pool=pool))
    return list(recursion(recipe, family, lambda history: False)), steps


@pytest.mark.ray
@pytest.mark.parametrize(
    ("loss", "init"), [({"kind": "cross_entropy"}, "previous"), ({"kind": "tce", "gamma": 0.3}, "base")]
)
def test_a_chain_of_adapters(store: StageStore, pool: EnginePool, loss: dict[str, Any], init: str) -> None:
    """Two generations by Ray Train and the engines: each stores an adapter and names the one model, which is whole and
    as it was; the second learns from the first's text; and run again, nothing is computed."""
    recipe = LanguageRecipe(**{**RECIPE, "loss": loss, "training": {**RECIPE["training"], "init": init}})
    generations, steps = run(recipe, store, pool)
    assert [g.collapse_reason for g in generations] == [None, None]
    assert steps.computed >= 6
    assert generations[1].data.human_size == 0
    assert generations[1].data.synthetic_size >= 2048
    folders = [g.model.path for g in generations if g.model is not None]
    names = [_base(folder) for folder in folders]
    assert names[0] == names[1]
    assert store.open(names[0]) is not None, "found whole, by its checksums"
    whole = (folders[0].parent / names[0] / "model.safetensors").stat().st_size
    for folder in folders:
        assert (folder / "adapter_model.safetensors").stat().st_size < whole / 20
        assert not list(folder.glob("model*"))
    states = [load_causal_lm(folder, "float32").state_dict() for folder in (*folders, folders[0].parent / names[0])]
    moved = {name for name in states[2] if not states[0][name].equal(states[2][name])}
    assert moved == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(4) for part in "qv"}
    assert any(not states[1][name].equal(states[0][name]) for name in moved)

    again, resumed = run(recipe, StageStore(store.storage), None)
    assert (resumed.computed, resumed.reused) == (0, steps.computed + steps.reused)
    for before, after in zip(generations, again, strict=True):
        assert before.scores is not None
        assert after.scores is not None
        assert before.scores.outputs["perplexity"] == after.scores.outputs["perplexity"]


@pytest.mark.ray
def test_both_chains_share_their_model(store: StageStore, pool: EnginePool) -> None:
    """Losses and seeds of adapters over one model store it once: so many chains take little room."""
    found = []
    for loss in ({"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.5}):
        generations, _ = run(LanguageRecipe(**{**RECIPE, "loss": loss, "generations": 1}), store, pool)
        assert generations[0].model is not None
        found.append(_base(generations[0].model.path))
    assert found[0] == found[1]


def _base(folder: Path) -> str:
    from fortifai_ray.engines.checkpoints import whole_model

    return whole_model(folder).name
