"""A user's own family: one class for one chain, named by a dotted path."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_ray import theory
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic import Gaussian
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.user import UserFamily, validate_user_family
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import CrossEntropy, TruncatedCrossEntropy
from fortifai_ray.metrics import METRICS, Metric, metric
from fortifai_ray.recipe.regimes import Replace
from fortifai_ray.study.study import make_study

from .loops import assert_mean, run

NORMAL = '''
import numpy as np

from fortifai_ray.metrics import Metric


class Normal:
    """A Gaussian as a user would write it."""

    metrics = ("variance",)

    def __init__(self, std=1.0):
        if std <= 0:
            raise ValueError("std must be above 0")
        self.std = std

    def human(self, n, rng):
        return rng.normal(0.0, self.std, n)

    def fit(self, data, weights=None):
        mean = np.average(data, weights=weights, axis=0)
        return mean, np.average((data - mean) ** 2, weights=weights, axis=0)

    def evaluate(self, model):
        return {"variance": model[1].item() / self.std**2}

    def generate(self, model, n, rng):
        return rng.normal(model[0], np.sqrt(model[1]), (n, 1))

    def log_likelihood(self, model, data):
        return (-((data - model[0]) ** 2) / model[1] - np.log(model[1]))[:, 0] / 2
'''
COUNT = iter(range(1_000))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts a module with this source where it can be imported, and gives its name: a new one each time."""
    monkeypatch.syspath_prepend(tmp_path)

    def write_module(source: str) -> str:
        name = f"user_family_{next(COUNT)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write_module


def test_a_users_gaussian_collapses_as_the_theory_says(write: object) -> None:
    """One class of ten lines runs through the recursion, and meets the closed form."""
    family = validate_user_family({"kind": f"{write(NORMAL)}:Normal", "std": 3.0})
    assert family.metrics == (Metric("variance"),)
    scores = run(family, 10, range(600), 4, Replace())
    expected = theory.gaussian_replace_mean_variance(10, 3)
    assert_mean(scores["variance"][3], expected, 1 - expected)


def test_a_chain_draws_the_same_in_any_company_and_after_pickling(write: object) -> None:
    """Workers get the family by pickle, and chains in other batches."""
    family = validate_user_family({"kind": f"{write(NORMAL)}:Normal"})
    human = family.human(7, Streams((2, 5, 9), -1))
    assert human.shape == (3, 7, 1)
    again = pickle.loads(pickle.dumps(family))
    alone = again.human(7, Streams((5,), -1))
    assert np.array_equal(human[1], alone[0])
    drawn = family.generate(family.fit(human), 4, Streams((2, 5, 9), 0))
    assert np.array_equal(drawn[1], again.generate(again.fit(alone), 4, Streams((5,), 0))[0])


def test_tce_weighs_a_users_samples(write: object) -> None:
    """With fit(data, weights) and log_likelihood the losses serve a user's family as the ones built in."""
    family = validate_user_family({"kind": f"{write(NORMAL)}:Normal"})
    data = Gaussian().human(20, Streams((0, 1), 0))
    ours, kept = fit_with_loss(family, data, TruncatedCrossEntropy(gamma=0.5))
    theirs, _ = fit_with_loss(Gaussian(), data, TruncatedCrossEntropy(gamma=0.5))
    assert kept.tolist() == [0.5, 0.5]
    variances = [model[1].item() for model in ours["model"]]
    np.testing.assert_allclose(variances, theirs["covariance"][:, 0, 0], rtol=1e-12)


def test_the_source_is_part_of_the_identity(write: object) -> None:
    """A changed class is another family: the old one's stages are not reused for it."""
    first, second = write(NORMAL), write(NORMAL.replace("/ 2", "/ 2.0"))
    identities = [validate_user_family({"kind": f"{name}:Normal", "std": 2.0}).identity() for name in (first, second)]
    assert identities[0]["std"] == 2.0
    assert identities[0]["source"] != identities[1]["source"]


def test_a_user_declares_what_is_measured(write: object) -> None:
    """The class's own declaration is what criteria and charts ask for; a plain name claims nothing."""
    own = """metrics = (Metric("success_ratio", "share", "trials that succeed", scale="log"), "win_ratio", "entropy")"""
    name = write(NORMAL.replace('metrics = ("variance",)', own))
    family = validate_user_family({"kind": f"{name}:Normal"})
    assert [each.name for each in family.metrics] == ["success_ratio", "win_ratio", "entropy"]
    assert metric("success_ratio").definition == "trials that succeed"
    assert [metric(each.name).scale for each in family.metrics] == ["log", "linear", "linear"]
    assert family.metrics[2] is METRICS["entropy"]


@pytest.mark.parametrize(
    ("change", "settings", "key", "message"),
    [
        (("def fit(", "def train("), {}, "kind", "has no method fit"),
        (("def generate(self, model, n, rng)", "def generate(self, model)"), {}, "kind", "must take self and 3 more"),
        (('metrics = ("variance",)', "pass"), {}, "kind", "class attribute metrics"),
        (('metrics = ("variance",)', 'metrics = "variance"'), {}, "kind", "class attribute metrics"),
        (('("variance",)', '("variance", 2)'), {}, "kind", "names or Metric objects"),
        (('("variance",)', '(Metric("entropy", scale="log"),)'), {}, "kind", "entropy is a built-in metric"),
        (("", ""), {"sd": 1.0}, "sd", "unknown key: .* takes std"),
        (("", ""), {"std": -1.0}, "kind", "does not take these settings: std must be above 0"),
        (("class Normal", "class Norma"), {}, "kind", "did you mean Norma?"),
        (("import numpy as np", "import numpy as np\n1 / 0"), {}, "kind", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_wrong_class_is_refused_before_anything_starts(
    write: object, change: tuple[str, str], settings: dict[str, float], key: str, message: str
) -> None:
    """At the key that is wrong, with what would be right."""
    name = write(NORMAL.replace(*change, 1))
    with pytest.raises(ValidationError, match=message) as error:
        validate_user_family({"kind": f"{name}:Normal", **settings})
    assert error.value.errors()[0]["loc"] == (key,)


def test_a_missing_module_is_named() -> None:
    """Before anything starts, like every mistake of a study file."""
    with pytest.raises(ValidationError, match="there is no module nowhere_at_all"):
        validate_user_family({"kind": "nowhere_at_all:Normal"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return mean, np", "return mean * np.nan, np"), "fit returned a NaN on 6 samples"),
        (
            ("return mean, np", "raise RuntimeError('no luck')\n        return mean, np"),
            "fit failed: RuntimeError: no luck",
        ),
        (('{"variance"', '{"spread"'), "evaluate must return a number for each of variance .*, not spread"),
        (("model[1].item() / self.std**2}", '"much"}'), "evaluate must return numbers"),
        (("(n, 1))", "(n + 1, 1))"), r"generate must return 6 samples, \(n, …\): not the shape \(7, 1\)"),
    ],
)
def test_a_method_that_fails_is_named(write: object, change: tuple[str, str], message: str) -> None:
    """What is wrong in the user's code, not where this package stumbled over it."""
    family = validate_user_family({"kind": f"{write(NORMAL.replace(*change, 1))}:Normal"})
    data = family.human(6, Streams((0,), -1))

    def generation() -> None:
        model = family.fit(data)
        family.evaluate(model, data)
        family.generate(model, 6, Streams((0,), 0))

    with pytest.raises(UserError, match=message):
        generation()


def test_what_is_optional_is_asked_for_only_where_it_is_needed(write: object) -> None:
    """Without log_likelihood, weights or truth a family runs under cross entropy; what needs them says so."""
    name = write(
        NORMAL.replace("def log_likelihood", "def other").replace(", weights=None):", "):\n        weights = None")
    )
    family = validate_user_family({"kind": f"{name}:Normal"})
    data = family.human(6, Streams((0,), -1))
    assert fit_with_loss(family, data, CrossEntropy())[1].tolist() == [1.0]
    with pytest.raises(UserError, match="has no method log_likelihood"):
        fit_with_loss(family, data, TruncatedCrossEntropy(gamma=0.5))
    with pytest.raises(UserError, match=r"fit must take fit\(data, weights\)"):
        family.fit(data, np.ones((1, 6)))
    with pytest.raises(UserError, match="has no method truth"):
        family.truth()
    weighed = {"kind": "mixed", "synthetic_ratio": 0.5, "weights": {"human": 0.6}}
    content = {"name": "own", "family": {"kind": f"{name}:Normal"}, "regime": weighed, "generations": 2}
    criterion = {"metric": "variance", "threshold": 0.5, "direction": "below"}
    with pytest.raises(UserError, match=r"or regime\.weights"):
        make_study({**content, "collapse": criterion}, "own.yaml")
    assert isinstance(family, UserFamily)
