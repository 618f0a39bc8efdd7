"""Chains of VAEs and diffusion models from end to end: sizes, seeds, what is stored, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_recipes import DIFFUSION, VAE, make_recipe, prepared
from pydantic import ValidationError

from fortifai_ray.chain.recursion import Generation, recursion
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.families.images.family import ImageFamily
from fortifai_ray.families.images.recipe import ImageRecipe
from fortifai_ray.recipe.curation import Surplexity, Verifier
from fortifai_ray.recipe.family import Collapsed, Synthetic
from fortifai_ray.recipe.recipe import recipe_type
from fortifai_ray.recipe.regimes import TrainingSet
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageStore


def run(recipe: ImageRecipe, folder: Path) -> list[Generation[Stage]]:
    """A whole chain, in a store of its own."""
    return list(recursion(recipe, build(recipe, folder), lambda history: False))


def build(recipe: ImageRecipe, folder: Path) -> ImageFamily:
    store, human = prepared(recipe, folder)
    recipe.check(human, store, "study.yaml")
    return recipe.build(human, Steps(store), InProcess())


def outputs(generation: Generation[Stage]) -> dict[str, Any]:
    """All that was measured of a generation."""
    assert generation.model is not None
    assert generation.scores is not None
    return {**generation.model.outputs, **generation.scores.outputs}


def written(generation: Generation[Stage]) -> np.ndarray:
    assert generation.synthetic is not None
    return np.load(generation.synthetic.stage.path / "samples.npy")


@pytest.mark.parametrize(("content", "shape"), [(VAE, (8, 8)), (DIFFUSION, (2,))], ids=["vae", "diffusion"])
def test_a_chain_goes_from_end_to_end(content: dict[str, Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    """Two generations: every metric that the recipe names is there and finite, corpora and pictures are stored, and a
    second run computes nothing."""
    recipe = make_recipe(content)
    assert recipe_type(content["family"]["kind"]) is ImageRecipe
    first, second = run(recipe, tmp_path)
    for generation in (first, second):
        assert generation.collapse_reason is None
        found = outputs(generation)
        assert all(math.isfinite(found[name]) for name in recipe.metrics)
    assert (first.data.human_size, first.data.synthetic_size) == (200, 0)
    assert (second.data.human_size, second.data.synthetic_size) == (0, 200)
    assert written(first).shape == (200, *shape)
    family = build(recipe, tmp_path)
    for generation in (first, second):  # the last one wrote only what a person would want to look at
        assert generation.synthetic is not None
        assert (generation.synthetic.stage.path / "samples.png").read_bytes() == family.picture(generation.synthetic)
    store = StageStore(tmp_path)
    steps = Steps(store, replay=True)
    again = recipe.build(recipe.prepare(store, ""), steps, InProcess())
    assert len(list(recursion(recipe, again, lambda history: False))) == 2
    assert steps.computed == 0


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    """In another store, to the last bit; another seed gives others, and other human samples."""
    recipe = make_recipe(VAE)
    a, b = run(recipe, tmp_path / "a"), run(recipe, tmp_path / "b")
    for one, two in zip(a, b, strict=True):
        assert np.array_equal(written(one), written(two))
        assert [outputs(one)[name] for name in recipe.metrics] == [outputs(two)[name] for name in recipe.metrics]
    other = run(make_recipe(VAE, seed=1), tmp_path / "a")
    assert not np.array_equal(written(a[0]), written(other[0]))
    assert a[0].data.describe() != other[0].data.describe()


def test_chains_of_other_losses_and_ratios_are_paired(tmp_path: Path) -> None:
    """The same human samples, starting weights and noise, whatever the loss and the ratio: a TCE that truncates nothing
    gives cross entropy's own samples, and a chain that needs fewer samples has the first of them."""
    plain = run(make_recipe(VAE), tmp_path)
    same = run(make_recipe(VAE, loss={"kind": "tce", "gamma": 1.0}), tmp_path)
    assert np.array_equal(written(plain[0]), written(same[0]))
    half = run(make_recipe(VAE, regime={"kind": "mixed", "synthetic_ratio": 0.5}), tmp_path)
    assert half[0].model == plain[0].model
    assert np.array_equal(written(half[0]), written(plain[0])[:100])
    assert (half[1].data.human_size, half[1].data.synthetic_size) == (100, 100)


def test_accumulate_trains_on_everything_so_far(tmp_path: Path) -> None:
    """200, 400 and 600 samples, and as many steps as they take."""
    generations = run(make_recipe(DIFFUSION, regime={"kind": "accumulate"}, generations=3), tmp_path)
    assert [g.data.human_size + g.data.synthetic_size for g in generations] == [200, 400, 600]
    assert [outputs(g)["targets"] for g in generations] == [3 * n * 2 for n in (200, 400, 600)]
    assert [outputs(g)["steps"] for g in generations] == [12, 24, 36]


@pytest.mark.parametrize("init", ["scratch", "previous"])
def test_training_starts_where_it_is_told(init: str, tmp_path: Path) -> None:
    """New weights each generation, none of them the last one's; or on from the last generation."""
    recipe = make_recipe(VAE, training={**VAE["training"], "init": init})
    family = build(recipe, tmp_path)
    start = family.init(None, 0)
    model = family.fit(TrainingSet((family.human().first,)), recipe.loss, start_from=start, generation=0)
    following = family.init(model, 1)
    assert (following == model) == (init == "previous")
    assert following.hash != start.hash


def test_what_cannot_be_trained_or_scored_is_a_collapse(tmp_path: Path) -> None:
    """An empty training set, weights that are not numbers: a reason each, also from the store."""
    recipe = make_recipe(VAE)
    family = build(recipe, tmp_path)
    start = family.init(None, 0)
    with pytest.raises(Collapsed, match="training set is empty"):
        family.fit(TrainingSet(()), recipe.loss, start_from=start, generation=1)
    from fortifai_ray.families.images.models import load_identity, load_model, save_model

    model = load_model(start.path)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (tmp_path / "broken").mkdir()
    save_model(model, load_identity(start.path), tmp_path / "broken")
    broken = Stage("broken", tmp_path / "broken", {})
    data = TrainingSet((family.human().first,))
    for _ in range(2):
        with pytest.raises(Collapsed, match="training diverged: the gradient is not finite at step 0"):
            family.fit(data, recipe.loss, start_from=broken, generation=0)
        with pytest.raises(Collapsed, match="elbo is nan"):
            family.evaluate(broken, generation=0)


@pytest.mark.parametrize("content", [VAE, DIFFUSION], ids=["vae", "diffusion"])
def test_curation_keeps_the_best(content: dict[str, Any], tmp_path: Path) -> None:
    """Of 400 samples the 200 likeliest under generation 0, or the 200 that surprise their writer most."""
    scored = {}
    for curation in (Verifier(), Surplexity()):
        recipe = make_recipe(content, curation=curation.model_dump())
        first, second = run(recipe, tmp_path)
        assert first.curated is not None
        assert first.model is not None
        assert (len(written(first)), first.curated.pool.size, second.data.synthetic_size) == (400, 200, 200)
        kept = np.load(first.curated.stage.path / "samples.npy")
        scored[curation.kind] = np.sort(build(recipe, tmp_path).score(first.model, written(first)))
        chosen = {row.tobytes() for row in kept}
        scores = build(recipe, tmp_path).score(first.model, written(first))
        inside = np.array([row.tobytes() in chosen for row in written(first)])
        if curation.kind == "verifier":
            assert scores[inside].min() >= scores[~inside].max()
        else:
            assert scores[inside].max() <= scores[~inside].min()
    assert np.array_equal(scored["verifier"], scored["surplexity"])  # the same samples, other choices


def test_the_last_generation_writes_what_a_picture_needs(tmp_path: Path) -> None:
    """64 images, also where nothing follows."""
    family = build(make_recipe(VAE), tmp_path)
    synthetic: Synthetic[Stage] = family.generate(family.init(None, 0), 0.0, generation=0)
    assert synthetic.pool.size == 64


def mistake(**changes: Any) -> str:
    with pytest.raises(ValidationError) as error:
        make_recipe(VAE, **changes)
    return str(error.value)


def test_a_users_mistake_is_said() -> None:
    """In the recipe, before anything is read."""
    assert "Bernoulli pixels" in mistake(family={"kind": "vae", "data": {"source": "moons"}})
    assert "exactly one of source and path" in mistake(family={"kind": "vae", "data": {}})
    assert "there is no nowhere" in mistake(family={"kind": "vae", "data": {"path": "nowhere"}})
    assert "lovasz needs" in mistake(loss={"kind": "lovasz"})
    assert "more than the 10 timesteps" in mistake(family={"kind": "diffusion", "timesteps": 10, "sampling_steps": 11})
    assert "number of points of a shape" in mistake(
        family={"kind": "vae", "data": {"source": "digits", "samples": 500}}
    )
    assert "Extra inputs" in mistake(training={"epoch": 3})
    assert "tag" in mistake(family={"kind": "gan"})


def test_too_few_human_samples_are_said(tmp_path: Path) -> None:
    """What the regime uses up, what there is, and where; and a broken file with the key that names it."""
    recipe = make_recipe(VAE, samples_per_generation=500, regime={"kind": "incremental"}, generations=4)
    store, human = prepared(recipe, tmp_path / "store")
    with pytest.raises(
        UserError, match=r"study.yaml: samples_per_generation: incremental uses 2000 .* 14\d\d are not held out"
    ):
        recipe.check(human, store, "study.yaml")
    (tmp_path / "a-images-idx3-ubyte").write_bytes(b"none")
    broken = make_recipe(VAE, family={"kind": "vae", "data": {"path": str(tmp_path)}})
    with pytest.raises(UserError, match=r"study.yaml: family.data: .*a-images-idx3-ubyte: not an IDX file"):
        broken.prepare(store, "study.yaml")


def test_defaults_suit_the_family_and_its_data(data_dir: Path) -> None:
    """Filled in as numbers, so that what a study resolved to can be read; what is given stays."""
    mnist = {"kind": "vae", "data": {"path": str(data_dir / "mnist")}}
    filled = [
        ImageRecipe.model_validate({"family": family, "generations": 1})
        for family in ({"kind": "vae"}, mnist, {"kind": "diffusion", "data": {"source": "moons"}})
    ]
    assert [(r.samples_per_generation, r.training.epochs) for r in filled] == [(1000, 60), (5000, 12), (2000, 100)]
    given = make_recipe(VAE, training={"init": "previous", "epochs": 5}, samples_per_generation=10)
    assert (given.samples_per_generation, given.training.epochs, given.training.init) == (10, 5, "previous")
    for recipe in (*filled, given):
        assert ImageRecipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Path(filled[1].located().family.data.path or "").is_absolute()
