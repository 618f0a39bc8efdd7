"""Histories on an object store: copied here, to be read as those of a folder are."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.histories.trackers import EVENTS, OFFLINE
from fortifai_ray.results.schema import table_path
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.stage import stays_inside
from fortifai_ray.validation import hint


@contextmanager
def copied(address: str) -> Iterator[Path]:
    """A file, or of a folder the files that are read of a history, as long as the context; its messages name the
    address.

    Args:
        address: ``s3://BUCKET/PREFIX/NAME``.

    Raises:
        UserError: nothing is there, or the store does not answer or refuses.
    """
    uri = Storage.of(address).uri
    parent, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="fortifai-history-") as folder:
        try:
            yield _fetched(parent, name, Path(folder))
        except OSError as error:
            raise UserError(f"{uri}: cannot be read: {in_short(error)}") from error
        except UserError as error:
            raise UserError(str(error).replace(folder, parent).replace(f"--storage {parent}:", f"{uri}:")) from error


def _fetched(parent: str, name: str, folder: Path) -> Path:
    from fortifai_ray.storage.objects import for_reading

    if parent in ("s3:/", ""):
        raise UserError(f"s3://{name}: this names a bucket; the address of a history is s3://BUCKET/PREFIX/NAME")
    objects, target = for_reading(parent), folder / name
    if objects.exists(name):
        objects.download(name, target)
        return target
    below = [one.name for one in objects.entries(name, recursive=True)]
    wanted = [one for one in below if stays_inside(one) and _is_read(folder / one, target)]
    if not below:
        beside = [*(one.name for one in objects.entries("")), *objects.folders("")]
        raise UserError(f"{target}: not found{hint(name, beside, '; give a file or a folder of runs', listed=False)}")
    target.mkdir()
    for one in wanted:
        (folder / one).parent.mkdir(parents=True, exist_ok=True)
        objects.download(one, folder / one)
    return target


def _is_read(file: Path, folder: Path) -> bool:
    """Whether a file in a folder belongs to its history, rather than being a checkpoint of it, say."""
    return file == table_path(folder, "generations") or file.match(EVENTS) or file.match(OFFLINE)
