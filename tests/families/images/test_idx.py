"""IDX files: MNIST as it is, and what is said of files that are not whole."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from image_recipes import idx, write_pair

from fortifai_ray.errors import UserError
from fortifai_ray.families.images.data import read_idx, read_images


def test_mnist_is_read(data_dir: Path) -> None:
    """Ten thousand images of 28×28 with their labels: the counts by class, and what the first one is, are known."""
    images, labels = read_images(data_dir / "mnist")
    assert (images.shape, images.dtype, labels.shape) == ((10_000, 28, 28), np.uint8, (10_000,))
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels[:4].tolist() == [7, 2, 1, 0]
    assert 32 < images.mean() < 35  # MNIST's mean grey is 0.13 of 255
    by_file = read_images(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert np.array_equal(by_file[0], images)


def test_all_files_of_a_folder_count(tmp_path: Path) -> None:
    """MNIST's own two parts, in the order of their names; gzipped or not."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (3, 8, 8)), rng.integers(0, 256, (2, 8, 8))
    write_pair(tmp_path, "train", second, np.array([1, 0]))
    write_pair(tmp_path, "t10k", first, np.array([2, 3, 4]))
    images, labels = read_images(tmp_path)
    assert np.array_equal(images, np.concatenate([first, second]))
    assert labels.tolist() == [2, 3, 4, 1, 0]


WHOLE = idx(np.zeros((2, 4, 4)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (WHOLE[:2] + b"\x0d" + WHOLE[3:], "type 0x0d"),
        (WHOLE[:10], "ends within its header"),
        (WHOLE[:-1], "has 47 bytes, but its header of shape"),
        (WHOLE + b"\0", "has 49 bytes"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b garbage", "cannot be read"),
    ],
)
def test_a_broken_file_is_said(tmp_path: Path, content: bytes, complaint: str) -> None:
    """One line that names the file."""
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        read_idx(file)
    assert str(file) in str(error.value)


def test_missing_or_unequal_files_are_said(tmp_path: Path) -> None:
    """No images, no labels, too few labels, images of two sizes."""
    with pytest.raises(UserError, match=r"holds no \*-images-idx3-ubyte"):
        read_images(tmp_path)
    images = tmp_path / "a-images-idx3-ubyte"
    images.write_bytes(idx(np.zeros((2, 4, 4))))
    with pytest.raises(UserError, match="labels must be beside it, in a-labels-idx1-ubyte"):
        read_images(tmp_path)
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.zeros(3)))
    with pytest.raises(UserError, match=r"labels of shape \(3,\) for 2 images"):
        read_images(images)
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.zeros(2)))
    write_pair(tmp_path, "b", np.zeros((2, 8, 8)), np.zeros(2))
    with pytest.raises(UserError, match="unequal sizes"):
        read_images(tmp_path)
    images.write_bytes(idx(np.zeros((2, 4))))
    with pytest.raises(UserError, match="has rank 2"):
        read_images(images)
