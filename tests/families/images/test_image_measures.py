"""What is measured of samples, against cases whose value is known; and the classifier that names their classes."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fortifai_ray.families.images.config import DataConfig
from fortifai_ray.families.images.data import HumanData, prepare_data
from fortifai_ray.families.images.evaluation import (
    class_entropy,
    classes_present,
    classify,
    coverage,
    prepare_classifier,
    sliced_wasserstein,
    trace_of_covariance,
)
from fortifai_ray.families.images.family import picture
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore


def test_the_wasserstein_distance_of_a_shift_is_known() -> None:
    """Moved by v, each projection moves by v·θ: √ mean (v·θ)², near ‖v‖/√d over the 128 directions; 0 for itself.

    (v·θ)² has mean ‖v‖²/d and, in two dimensions, relative standard deviation √½: four standard errors over 128.
    """
    rows = np.random.default_rng(0).normal(size=(500, 2))
    assert sliced_wasserstein(rows, rows[::-1]) == 0.0
    found = sliced_wasserstein(rows, rows + np.array([3.0, 4.0]))
    assert found**2 == pytest.approx(25 / 2, rel=4 * math.sqrt(0.5 / 128))


def test_the_wasserstein_distance_of_a_scaling_is_known() -> None:
    """N(0, I) against N(0, ¼I): every projection's quantiles differ by half, so the distance is ½ up to sampling.

    The same 2,000 rows scaled: √ mean (x·θ/2)², whose relative standard error is √(2/4,000)/2.
    """
    rows = np.random.default_rng(0).normal(size=(2000, 2))
    assert sliced_wasserstein(rows, rows / 2) == pytest.approx(0.5, rel=4 * math.sqrt(2 / 4000) / 2)


def test_coverage_is_what_the_paper_expects() -> None:
    """1 − (n−1)…(n−k)/((2n−1)…(2n−k)) for two samples of one distribution (Naeem et al. 2020, lemma 2); 0 where they
    are far apart; and half where one of two modes is lost.

    Human rows depend on each other little: five standard errors of 2,000 independent ones.
    """
    rng = np.random.default_rng(0)
    n, k = 2000, 5
    human, samples = rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert coverage(human, samples) == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / n))
    assert coverage(human, samples + 100) == 0.0
    two_modes = np.concatenate([human, human + 100])
    assert coverage(two_modes, np.concatenate([samples, samples])) == pytest.approx(expected / 2, abs=0.02)


def test_classes_are_counted() -> None:
    """ln K for an even histogram, 0 for one class; a class with less than a tenth of an even share is not present."""
    even = np.repeat(np.arange(10), 50)
    assert class_entropy(even, 10) == pytest.approx(math.log(10))
    assert (class_entropy(np.zeros(9, dtype=int), 10), classes_present(even, 10)) == (0.0, 10.0)
    assert class_entropy(np.array([0, 1, 1, 1]), 2) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    rare = np.concatenate([np.zeros(995, dtype=int), np.full(5, 7)])  # 5 of 1,000: an even share is 100, a tenth is 10
    assert classes_present(rare, 10) == 1.0


def test_the_trace_is_the_total_variance() -> None:
    """Against NumPy's covariance matrix."""
    rows = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3]
    assert trace_of_covariance(rows) == pytest.approx(np.trace(np.cov(rows.T, bias=True)))


def test_the_classifier_knows_the_digits(digits: HumanData, tmp_path: Path) -> None:
    """Nineteen in twenty held-out digits, from weights that are plain arrays; trained once."""
    steps = Steps(StageStore(tmp_path))
    stage = prepare_classifier(digits, steps)
    assert stage is not None
    assert stage.outputs["classes"] == 10
    assert digits.held_out_labels is not None
    assert (classify(digits.held_out, stage.path) == digits.held_out_labels).mean() == stage.outputs["accuracy"] > 0.95
    again = prepare_classifier(digits, steps)
    assert again is not None
    assert (again.hash, again.reused) == (stage.hash, True)


def test_the_classifier_knows_two_classes_and_none(tmp_path: Path) -> None:
    """Two moons, which scikit-learn tells apart with one output; the swiss roll has no classes to know."""
    store = StageStore(tmp_path)
    moons = prepare_classifier(prepare_data(DataConfig(source="moons", samples=1000), store), Steps(store))
    assert moons is not None
    assert moons.outputs["accuracy"] > 0.95
    assert prepare_classifier(prepare_data(DataConfig(source="swiss_roll", samples=1000), store), Steps(store)) is None


def test_a_picture_shows_the_samples() -> None:
    """A grid in which each image stands where it should; a plot with ink where the points are; nothing of nothing."""
    images = np.zeros((70, 8, 8), dtype=np.uint8)
    images[9] = 255  # second row, second column
    grid = np.asarray(Image.open(io.BytesIO(picture(images) or b"")))
    cell = grid.shape[0] // 8
    assert grid.shape == (8 * cell + 1, 8 * cell + 1)
    assert (grid[cell + 1 : 2 * cell, cell + 1 : 2 * cell] == 255).all()
    assert (grid == 255).sum() == (cell - 1) ** 2
    plot = np.asarray(Image.open(io.BytesIO(picture(np.array([[2.0, 2.0], [50.0, 0.0]], dtype=np.float32)) or b"")))
    rows, columns = np.nonzero(plot < 255)
    assert rows.max() < plot.shape[0] / 4  # upwards and to the right; what lies outside the limits is left out
    assert columns.min() > 3 * plot.shape[1] / 4
    assert picture(np.zeros((0, 8, 8), dtype=np.uint8)) is None
