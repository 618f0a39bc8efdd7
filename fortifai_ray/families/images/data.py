"""The human samples, read and split once as a stage in the store, and the samples of a regime's draws.

Images are uint8 of shape (n, side, side), points float32 of shape (n, 2); models convert them. This runs before
anything is started, so it imports neither torch nor Ray.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.families.images.config import DataConfig
from fortifai_ray.recipe.pools import TrainingSet
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.store import Stage, StageKey, StageStore

VERSION = 1  # bump when the same files give other samples
SAMPLES_FILE = "samples.npy"
_POINTS = 20_000


@dataclass(frozen=True)
class HumanData:
    """Prepared human samples in the store."""

    stage: Stage

    @property
    def hash(self) -> str:
        return self.stage.hash

    @cached_property
    def train(self) -> np.ndarray:
        """Samples to train on, in the order in which they were read: of shape (n, …)."""
        return np.load(self.stage.path / "train.npy", mmap_mode="r")

    @cached_property
    def held_out(self) -> np.ndarray:
        """Samples to score on, in a fixed random order: of shape (m, …)."""
        return np.load(self.stage.path / "held_out.npy")

    @cached_property
    def train_labels(self) -> np.ndarray | None:
        """Classes of :attr:`train`: int64 of shape (n,), from 0; None where samples have none."""
        return self._labels("train_labels.npy")

    @cached_property
    def held_out_labels(self) -> np.ndarray | None:
        """Classes of :attr:`held_out`."""
        return self._labels("held_out_labels.npy")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (side, side) or (2,)."""
        return tuple(self.held_out.shape[1:])

    def _labels(self, name: str) -> np.ndarray | None:
        file = self.stage.path / name
        return np.load(file) if file.is_file() else None


def prepare_data(config: DataConfig, store: StageStore) -> HumanData:
    """The stage of the human samples, computed if the store lacks it.

    Raises :class:`UserError` for files that cannot be read, or samples that cannot be split or modelled.
    """
    samples, labels = read_samples(config)
    digest = hashlib.sha256(np.ascontiguousarray(samples).tobytes())
    digest.update(b"" if labels is None else labels.astype("<i8").tobytes())
    key = StageKey("human", VERSION, {"samples": digest.hexdigest(), "held_out": config.held_out})

    def compute(folder: Path) -> dict[str, Any]:
        train, held_out = split(samples, config.held_out)
        for name, rows in (("train", train), ("held_out", held_out)):
            np.save(folder / f"{name}.npy", samples[rows])
            if labels is not None:
                np.save(folder / f"{name}_labels.npy", labels[rows].astype(np.int64))
        return {"train": len(train), "held_out": len(held_out), "shape": list(samples.shape[1:])}

    return HumanData(store.step(key, compute))


def open_data(stage_hash: str, store: StageStore) -> HumanData:
    """Samples that another process prepared; the files that they came from need not be accessible here."""
    stage = store.open(stage_hash)
    if stage is None:
        raise RuntimeError(f"the samples {stage_hash} were removed from the store after the sweep began: run it again")
    return HumanData(stage)


def read_samples(config: DataConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """All human samples, and their classes if they have any."""
    if config.is_shape:
        assert config.source is not None
        return shape_points(config.source, config.samples or _POINTS)
    if config.path is not None:
        images, labels = read_images(Path(config.path))
        where = config.path
    else:
        images, labels = _digits()
        where = "digits"
    _check_images(images, where)
    classes = np.unique(labels, return_inverse=True)[1]  # from 0, whatever their names
    return (np.where(images > 127, 255, 0).astype(np.uint8) if config.binarise else images), classes


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _check_images(images: np.ndarray, where: str) -> None:
    rows, columns = images.shape[1:]
    if rows != columns or rows % 4 or not rows:
        raise UserError(f"{where}: images of {rows}×{columns} pixels; squares with a side divisible by 4 are needed")
    if len(images) < 100:
        raise UserError(f"{where}: {len(images)} images; at least 100 are needed, to train and to score on")


def shape_points(name: str, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """``count`` points of a shape, float32 of shape (count, 2), and the classes of those that have any.

    scikit-learn's generators with a fixed seed, centred and scaled alike on both axes, so that the mean variance of an
    axis is 1 and the shape is kept.
    """
    points, labels = _SHAPES[name](count, derive_seed(0, "shape", name) % 2**32)
    points = points - points.mean(0)
    return (points / np.sqrt(points.var(0).mean())).astype(np.float32), labels


def _blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    from sklearn.datasets import make_blobs

    angle = np.arange(5) * (2 * np.pi / 5)  # five modes, well apart, so that a lost one shows
    centres = 4.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points, labels = make_blobs(count, centers=centres, cluster_std=0.6, random_state=seed)[:2]
    return points, labels


def _circles(count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    from sklearn.datasets import make_circles

    return make_circles(count, noise=0.04, factor=0.5, random_state=seed)


def _moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    from sklearn.datasets import make_moons

    return make_moons(count, noise=0.06, random_state=seed)


def _swiss_roll(count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    from sklearn.datasets import make_swiss_roll

    return make_swiss_roll(count, noise=0.4, random_state=seed)[0][:, [0, 2]], None


_SHAPES: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]] = {
    "blobs": _blobs,
    "circles": _circles,
    "moons": _moons,
    "swiss_roll": _swiss_roll,
}


def split(samples: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, ascending, and rows held out, in random order: ``held_out`` of the distinct samples.

    A function of the samples alone. Duplicates go to the same side, so that nothing leaks; one of each is held out.
    """
    flat = np.ascontiguousarray(samples).reshape(len(samples), -1)
    rows = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise UserError("data: all samples are identical; at least two distinct ones are needed")
    # np.unique sorts by content: restore the order read, so that the split does not follow the pixels.
    first = first[np.argsort(first)]
    count = min(max(1, round(held_out * len(first))), len(first) - 1)
    chosen = first[generator(0, "held_out").permutation(len(first))[:count]]
    return np.flatnonzero(~np.isin(which, which[chosen])), chosen


def fetch_samples(training_set: TrainingSet, human: HumanData, synthetic: Mapping[str, Path]) -> np.ndarray:
    """The samples of a training set, draw by draw: shape (n, …). ``synthetic`` maps a pool's stage to its folder."""
    parts = []
    for draw in training_set.draws:
        pool = read_written(synthetic[draw.pool.stage]) if draw.pool.synthetic else human.train
        parts.append(pool[draw.items])
    return np.concatenate(parts)


def read_written(folder: Path) -> np.ndarray:
    """The samples of a synthetic corpus, in the order in which they were written."""
    return np.load(folder / SAMPLES_FILE, mmap_mode="r")


# IDX files, the format of MNIST: a magic number with type and rank, the sizes, then the bytes.

_UNSIGNED_BYTE = 0x08


def read_idx(file: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not: uint8, of the shape in its header.

    Raises :class:`UserError` for a file of another format, or an incomplete one.
    """
    content = _read(file)
    if len(content) < 4 or content[:2] != b"\x00\x00":
        raise UserError(f"{file}: not an IDX file: it does not begin with two zero bytes")
    kind, rank = content[2], content[3]
    if kind != _UNSIGNED_BYTE or rank == 0:
        raise UserError(f"{file}: holds IDX type 0x{kind:02x} of rank {rank}; unsigned bytes (0x08) are needed")
    start = 4 + 4 * rank
    if len(content) < start:
        raise UserError(f"{file}: ends within its header; a complete IDX file is needed")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, offset=4))
    wanted = start + int(np.prod(shape, dtype=object))
    if len(content) != wanted:
        raise UserError(f"{file}: has {len(content)} bytes, but its header of shape {shape} requires {wanted}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise UserError(f"{file}: cannot be read ({error}); a complete IDX file, gzipped or not, is needed") from error


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 of shape (n, rows, columns), and labels, uint8 of shape (n,), of a folder or a file of images.

    Every ``…-images-idx3-ubyte`` file of a folder is read, in the order of their names; the labels of each are beside
    it, in ``…-labels-idx1-ubyte``, as for MNIST. Raises :class:`UserError`.
    """
    files = [path] if path.is_file() else sorted(path.glob("*images-idx3-ubyte*"))
    if not files:
        raise UserError(f"{path}: holds no *-images-idx3-ubyte file, gzipped or not")
    pairs = [_read_pair(file) for file in files]
    shapes = {images.shape[1:] for images, _ in pairs}
    if len(shapes) > 1:
        raise UserError(f"{path}: holds images of unequal sizes: {sorted(shapes)}")
    return np.concatenate([images for images, _ in pairs]), np.concatenate([labels for _, labels in pairs])


def _read_pair(file: Path) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(file)
    if images.ndim != 3:
        raise UserError(f"{file}: has rank {images.ndim}; images of rank 3 (number, rows, columns) are needed")
    name = file.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    beside = [label for label in (file.with_name(name), file.with_name(f"{name}.gz")) if label.is_file()]
    if not beside or beside[0] == file:
        raise UserError(f"{file}: its labels must be beside it, in {name} or {name}.gz")
    labels = read_idx(beside[0])
    if labels.shape != (len(images),):
        raise UserError(f"{beside[0]}: labels of shape {labels.shape} for {len(images)} images")
    return images, labels
