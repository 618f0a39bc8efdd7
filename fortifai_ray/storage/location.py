"""A storage as the user names it: a folder, or the address of an object store."""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fortifai_ray.errors import UserError

STAGES, DATABASE, ARTIFACTS = "stages", "mlflow.db", "mlartifacts"  # what lies in a storage beside its studies
_WITH_IT = ("-journal", "-wal", "-shm")  # SQLite's files beside a database
_SCHEME = re.compile(r"(s3|gs|gcs|abfss?|az|hdfs|file|https?)(:(?!/)|//|:/$)", re.IGNORECASE)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/+(.*)", re.DOTALL)


@dataclass(frozen=True)
class Storage:
    """Where the studies are stored, and the ``study`` that uses it, if any.

    ``uri`` identifies it on any machine: ``s3://bucket/prefix``, or a folder's absolute path. ``folder`` is where its
    files are on this machine: the folder itself, or the cache of an object store. Unpickled in another process, a
    storage has that process's folder.
    """

    uri: str
    folder: Path
    remote: bool
    study: str | None = None

    @classmethod
    def of(cls, value: "str | Path | Storage") -> "Storage":
        """The storage that ``value`` names: ``~`` is the home, and nothing else is expanded. An address that became a
        path (``s3:/bucket``) is read as an address.

        Raises :class:`UserError` for no name at all, a file, a home that there is not, and for an address that is
        misspelt, is not S3's, lacks its bucket or holds credentials.
        """
        if isinstance(value, Storage):
            return value
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"storage: a folder or s3://BUCKET/PREFIX is needed, not {value!r}")
        text = str(value)
        if not text.strip() or not text.isprintable():
            raise UserError(f"storage {text!r}: names no folder; give one such as runs, or s3://BUCKET/PREFIX")
        address = _ADDRESS.fullmatch(text)
        if address is None:
            if _SCHEME.match(text):
                raise UserError(f"storage {text}: is no address; it is written s3://BUCKET/PREFIX, or file:///FOLDER")
            return cls._local(Path(value))
        scheme, rest = address[1].lower(), address[2].rstrip("/")
        if scheme == "file":
            if re.match(r"file://[^/]", text, re.IGNORECASE):
                raise UserError(f"storage {text}: names another machine; a folder of this one is file:///FOLDER")
            return cls._local(Path("/" + unquote(rest)))
        if scheme != "s3":  # the rest of it may hold credentials
            raise UserError(
                f"storage {scheme}://…: such a store is not known; give a folder, or s3://BUCKET/PREFIX (any store "
                "that speaks S3, at AWS_ENDPOINT_URL)"
            )
        uri = f"{scheme}://{rest}"
        _check_address(uri)
        return cls(uri, cache_root() / _cache_name(uri), remote=True)

    @classmethod
    def _local(cls, given: Path) -> "Storage":
        try:
            folder = given.expanduser()
        except RuntimeError as error:
            raise UserError(f"storage {given}: there is no such home; give the folder's whole path") from error
        if folder.is_file():
            raise UserError(f"storage {given}: is a file, and cannot be written to as a folder; give a folder")
        return cls(str(folder.absolute()), folder, remote=False)

    def for_study(self, name: str) -> "Storage":
        """The same storage, for a study whose use of stages is recorded, so that ``fortifai gc`` keeps them."""
        return replace(self, study=name)

    @property
    def tracking_note(self) -> str | None:
        """A line that says where MLflow's database is, for a storage that cannot hold it; else None.

        SQLite needs a file that can be locked and written in place, which no object can: the runs of a study on an
        object store go to the storage's folder on the machine that runs the sweep, unless ``MLFLOW_TRACKING_URI`` is
        set.
        """
        if not self.remote or os.environ.get("MLFLOW_TRACKING_URI", "").strip():
            return None
        return (
            f"MLflow: {self.uri} cannot hold its database: the runs are in {self.folder} on this machine; "
            "set MLFLOW_TRACKING_URI to have them elsewhere"
        )

    def __str__(self) -> str:
        return self.uri if self.remote else str(self.folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return _there, (self.uri, self.study)


def _there(uri: str, study: str | None) -> Storage:
    return replace(Storage.of(uri), study=study)


def reserved(name: str) -> bool:
    """Whether no study may have this name: something else of a storage has it, in letters of any case."""
    taken = (STAGES, DATABASE, ARTIFACTS, *(DATABASE + end for end in _WITH_IT))
    return name.casefold() in taken or name.endswith(".")  # some disks keep neither the case nor a last dot


def split_study(value: str | Path) -> tuple[Storage, str]:
    """Split ``STORAGE/NAME`` into the storage and the study's name.

    Raises :class:`UserError` where the name is missing.
    """
    storage = Storage.of(value)
    if not storage.remote:
        folder = Path(storage.uri)
        return Storage.of(folder.parent), folder.name
    parent, _, name = storage.uri.rpartition("/")
    if parent.endswith("/"):
        raise UserError(f"{value}: this names a bucket; the address of a study is s3://BUCKET/PREFIX/NAME")
    return Storage.of(parent), name


def _check_address(uri: str) -> None:
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        clean = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise UserError(
            f"--storage {clean}: an address must not hold credentials; put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or use the instance's role"
        )
    if not parts.netloc:
        raise UserError(f"--storage {uri}: names no bucket; an address is s3://BUCKET/PREFIX")


def cache_root() -> Path:
    home = os.environ.get("FORTIFAI_CACHE", "").strip()
    if home:
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser().absolute() / "fortifai"


def _cache_name(uri: str) -> str:
    """A readable name, made unique: a bucket of the same name at another endpoint is another storage."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{endpoint} {uri}".encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', urlsplit(uri).netloc + urlsplit(uri).path).strip('-')[:60]}-{digest}"
