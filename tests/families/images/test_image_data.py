"""Human samples: nothing held out is trained on, shapes are what they say, draws are the samples drawn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_recipes import write_pair

from fortifai_ray.errors import UserError
from fortifai_ray.families.images.config import SHAPES, DataConfig
from fortifai_ray.families.images.data import HumanData, fetch_samples, prepare_data, shape_points, split
from fortifai_ray.recipe.regimes import Draw, Pool, TrainingSet
from fortifai_ray.storage.store import StageStore


@given(
    arrays(np.uint8, st.tuples(st.integers(2, 40), st.just(2)), elements=st.integers(0, 3)).filter(
        lambda rows: len(np.unique(rows, axis=0)) > 1
    )
)
def test_no_sample_is_on_both_sides(rows: np.ndarray) -> None:
    """Also not as a copy; both sides have some; one of each held-out sample; the same split each time."""
    train, held_out = split(rows, 0.3)
    sides = [{tuple(row) for row in rows[side]} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == len(np.unique(rows, axis=0))
    assert min(map(len, sides)) >= 1
    assert len(sides[1]) == len(held_out)
    assert all(np.array_equal(a, b) for a, b in zip((train, held_out), split(rows, 0.3), strict=True))


def test_the_digits_are_whole(digits: HumanData) -> None:
    """1,797 images, a fifth of the distinct ones held out, classes kept with their images."""
    assert digits.shape == (8, 8)
    assert len(digits.train) + len(digits.held_out) == 1797
    assert len(digits.held_out) == round(0.2 * 1797)
    assert digits.train.dtype == np.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 255)
    from sklearn.datasets import load_digits

    source = load_digits()
    known = {image.tobytes(): label for image, label in zip(source.images.astype(np.uint8), source.target, strict=True)}
    assert digits.held_out_labels is not None
    back = np.rint(digits.held_out / (255 / 16)).astype(np.uint8)
    assert [known[image.tobytes()] for image in back] == digits.held_out_labels.tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_standardised_and_always_the_same(name: str) -> None:
    """Mean 0 and mean variance 1, to float32's rounding (2⁻²⁴ a sample, which adds up as a random walk at most)."""
    points, labels = shape_points(name, 1000)
    assert (points.shape, points.dtype) == ((1000, 2), np.float32)
    assert points.mean(0, dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert points.var(0, dtype=np.float64).mean() == pytest.approx(1, abs=1e-6)
    assert (labels is None) == (name == "swiss_roll") == (not DataConfig(source=name).labelled)  # type: ignore[arg-type]
    assert np.array_equal(points, shape_points(name, 1000)[0])


def test_binarised_pixels_are_cut_at_one_half(tmp_path: Path, digits: HumanData) -> None:
    """0 or 255; a data set of its own."""
    cut = prepare_data(DataConfig(source="digits", binarise=True), StageStore(tmp_path))
    assert set(np.unique(cut.train)) == {0, 255}
    assert cut.hash != digits.hash


def test_the_stage_is_that_of_the_content(tmp_path: Path, data_dir: Path) -> None:
    """A folder and the file in it are the same samples; another share held out is not."""
    store = StageStore(tmp_path)
    folder = prepare_data(DataConfig(path=str(data_dir / "mnist")), store)
    assert folder.shape == (28, 28)
    file = data_dir / "mnist" / "t10k-images-idx3-ubyte.gz"
    assert prepare_data(DataConfig(path=str(file)), store).hash == folder.hash
    assert prepare_data(DataConfig(path=str(file), held_out=0.1), store).hash != folder.hash


def test_a_training_set_is_what_was_drawn(digits: HumanData, tmp_path: Path) -> None:
    """Human and synthetic parts one after the other, in the order of their draws."""
    written = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "samples.npy", written)
    human = Draw(Pool("h", np.ones(len(digits.train)), synthetic=False), np.array([7, 3, 11]))
    synthetic = Draw(Pool("s", np.ones(5), synthetic=True), np.array([4, 0]))
    samples = fetch_samples(TrainingSet((human, synthetic)), digits, {"s": tmp_path})
    assert np.array_equal(samples, np.concatenate([digits.train[[7, 3, 11]], written[[4, 0]]]))


def test_images_that_cannot_be_modelled_are_said(tmp_path: Path) -> None:
    """Sides that cannot be halved twice, too few images."""
    for shape, complaint in (((200, 6, 6), "6×6 pixels; squares"), ((50, 8, 8), "50 images; at least 100")):
        write_pair(tmp_path, "a", np.zeros(shape), np.zeros(shape[0]))
        with pytest.raises(UserError, match=complaint):
            prepare_data(DataConfig(path=str(tmp_path)), StageStore(tmp_path / "store"))
    write_pair(tmp_path, "a", np.zeros((200, 8, 8)), np.zeros(200))
    with pytest.raises(UserError, match="all samples are identical"):
        prepare_data(DataConfig(path=str(tmp_path)), StageStore(tmp_path / "store"))
