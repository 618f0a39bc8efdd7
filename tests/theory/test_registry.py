"""The registry: every shipped study has its closed forms, with the arguments that its recipes determine."""

import json
from pathlib import Path

import pytest

from fortifai_ray.study.study import load_study
from fortifai_ray.theory.registry import CLOSED_FORMS, closed_form, closed_forms_of, evaluate

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "sweeps"
PREDICTIONS = json.loads((HERE / "predictions.json").read_text())
"""Study, cell, quantity and closed form: its value at the last generation, from when arguments were written by hand."""


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_cell_of_a_shipped_study_keeps_its_predictions(name: str) -> None:
    cells, file = {}, SWEEPS / f"{name}.yaml"
    for cell in load_study(file, [] if "\nsearch:" in file.read_text() else ["vary.seed=[0]"]).cells:
        forms = closed_forms_of(cell.recipe.flat())
        last = cell.recipe.generations - 1
        values = {f"{f.title} by {f.name}{f' ({f.limit})' if f.limit else ''}": f.at(last) for f in forms}
        if values:
            cells[" ".join(key for key in cell.keys.split() if not key.startswith("seed=")) or "the recipe"] = values
    assert {cell: list(values) for cell, values in cells.items()} == {
        cell: list(values) for cell, values in PREDICTIONS[name].items()
    }
    for cell, values in cells.items():
        assert values == pytest.approx(PREDICTIONS[name][cell], rel=1e-12)


def test_a_closed_form_is_registered_where_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decorator: its parameters are read off the recipe by name, and it is offered where it holds."""
    monkeypatch.setattr("fortifai_ray.theory.registry.CLOSED_FORMS", forms := dict(CLOSED_FORMS))

    @closed_form("modes", family="gmm", regime="replace", when=lambda recipe: recipe["family.dim"] == 2)
    def modes_left(n: int, generation: int, components: int, tolerance: float = 0.5) -> float:
        return components - tolerance * generation / n

    recipe = {"family.kind": "gmm", "family.components": 3, "family.dim": 2, "samples_per_generation": 10}
    [prediction] = closed_forms_of(recipe)
    assert (prediction.title, prediction.name, prediction.at(4)) == ("mean of modes", "modes_left", 3 - 0.2)
    assert closed_forms_of(recipe | {"family.dim": 3}) == []
    assert closed_forms_of(recipe | {"regime.kind": "accumulate"}) == []
    assert evaluate("modes_left", {"components": 5}, recipe, 4) == 5 - 0.2
    assert forms["modes_left"].arguments(recipe) == {"n": 10, "components": 3}


def test_sets_of_several_fractions_have_no_closed_form_of_another_regime() -> None:
    """Its growing form has one, which does not hold for it; a set of one synthetic fraction is `replace`."""
    recipe = {"family.kind": "gaussian", "regime.kind": "incremental", "samples_per_generation": 20}
    names = [{form.name for form in closed_forms_of(recipe | {"regime.fractions": s})} for s in (None, 1, 3)]
    assert names[0] == {"gaussian_incremental_mean_variance"}
    assert names[1] == {form.name for form in closed_forms_of(recipe | {"regime.kind": "replace"})}
    assert names[2] == set()
