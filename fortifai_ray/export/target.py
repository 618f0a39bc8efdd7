"""Where an export goes: a folder, or a repository of the Hugging Face hub. Neither takes the place of anything else."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.export.provenance import What

MARK = "fortifai_export.json"  # what an export is of, and which files it has
_HUB = "hub:"
_NOT_OURS = {".gitattributes", "README.md"}  # what the hub itself puts into a new repository


def target_of(text: str, what: What, *, public: bool = False) -> Target:
    """The target that ``--to`` names: ``hub:NAME``, or a folder.

    Raises:
        UserError: it is neither.
    """
    if text.startswith(_HUB):
        return HubRepository(text.removeprefix(_HUB), what, public)
    if not text.strip():
        raise UserError("--to: names nothing; give a folder, or hub:NAME for a repository of the Hugging Face hub")
    if "://" in text:
        raise UserError(
            f"--to {text}: an address is no place for an export; give a folder of this machine, or hub:NAME"
        )
    return Folder(Path(text).expanduser())


class Target(ABC):
    """A place for one export."""

    name: str  # as its user names it, and as others load it

    @abstractmethod
    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where the export cannot go there: it is no place, or something else has it."""

    @abstractmethod
    def publish(self, folder: Path, identity: Mapping[str, Any]) -> str:
        """Put the files of ``folder`` there; returns where they are."""


def _marked(folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """Write the mark into a folder; returns the names of its files, the mark last."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / MARK).write_text(json.dumps({**identity, "files": files}, indent=1) + "\n", encoding="utf-8")
    return [*files, MARK]


def _refuse_others(place: str, mark: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` unless a place that is taken holds an export of the same thing."""
    if mark is None:
        raise UserError(f"--to {place}: is not empty, and holds no export of fortifai; give another, or empty it")
    if any(mark.get(key) != value for key, value in identity.items()):
        held = f"the {mark.get('what')} of generation {mark.get('generation')} of chain {mark.get('chain_id')}"
        raise UserError(f"--to {place}: holds another export, {held}; give another place, or empty it")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


class Folder(Target):
    """A folder of this machine, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def check(self, identity: Mapping[str, Any]) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--to {self.path}: is a file; give a folder")
        try:
            here = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if not path.is_dir()}
            mark = _parsed((self.path / MARK).read_text(encoding="utf-8")) if MARK in here else None
            self._check_room()
        except OSError as error:
            raise UserError(f"--to {self.path}: cannot be used ({error.strerror}); give another folder") from error
        if not here:
            return
        _refuse_others(self.name, mark, identity)
        if others := sorted(here - {*(mark or {}).get("files", ()), MARK}):
            raise UserError(
                f"--to {self.path}: holds {others[0]}, which is no part of the export; move it, or give another folder"
            )

    def _check_room(self) -> None:
        """Whether a folder can be written there: it, or the nearest above it that there is."""
        near = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not near.is_dir():
            raise NotADirectoryError(0, f"{near} is a file")
        if not os.access(near, os.W_OK | os.X_OK):
            raise PermissionError(0, f"{near} may not be written")

    def publish(self, folder: Path, identity: Mapping[str, Any]) -> str:
        before = _parsed((self.path / MARK).read_text(encoding="utf-8")) if (self.path / MARK).is_file() else None
        files = _marked(folder, identity)
        for name in (MARK, *(before or {}).get("files", ())):
            (self.path / name).unlink(missing_ok=True)
        for name in files:  # the mark last: half an export is none
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(self.path / name)
        return self.name

    @property
    def beside(self) -> Path:
        """The folder in which it lies or will lie, made where it is missing: files are moved from there at once."""
        parent = self.path.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        return parent


class HubRepository(Target):
    """A repository of the Hugging Face hub, at ``HF_ENDPOINT`` where that is set; private unless ``public``."""

    def __init__(self, name: str, what: What, public: bool) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"--to hub:{name}: is no name of a repository: {in_short(error)}") from error
        self.name, self._public = name, public
        self._kind = "dataset" if what == "corpus" else "model"
        self._api = HfApi()

    def check(self, identity: Mapping[str, Any]) -> None:
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise UserError(f"--to hub:{self.name}: HF_HUB_OFFLINE is set; unset it, or export into a folder")
        if not get_token():
            raise UserError(
                f"--to hub:{self.name}: there is no token for the hub: run `hf auth login`, or set HF_TOKEN to a token "
                "that may write"
            )
        try:
            self._check_repository(identity)
        except _hub_errors() as error:
            raise self._refused(error) from error

    def _check_repository(self, identity: Mapping[str, Any]) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        user = self._api.whoami()["name"]
        if "/" not in self.name:
            self.name = f"{user}/{self.name}"
        try:
            there = {*self._api.list_repo_files(self.name, repo_type=self._kind)} - _NOT_OURS
        except RepositoryNotFoundError:
            return
        if there:
            mark = self._api.hf_hub_download(self.name, MARK, repo_type=self._kind) if MARK in there else None
            content = _parsed(Path(mark).read_text(encoding="utf-8")) if mark else None
            _refuse_others(f"hub:{self.name}", content, identity)

    def publish(self, folder: Path, identity: Mapping[str, Any]) -> str:
        _marked(folder, identity)
        message = f"{identity['what']} of generation {identity['generation']} of chain {identity['chain_id']}"
        try:
            private = None if self._public else True
            made = self._api.create_repo(self.name, repo_type=self._kind, private=private, exist_ok=True)
            self._api.upload_folder(repo_id=self.name, folder_path=folder, repo_type=self._kind, commit_message=message)
        except _hub_errors() as error:
            raise self._refused(error) from error
        return str(made)

    def _refused(self, error: BaseException) -> UserError:
        where = self._api.endpoint
        return UserError(
            f"--to hub:{self.name}: {where} did not take it ({in_short(error).rstrip('.')}); check the network, the "
            "token's rights and HF_ENDPOINT, or export into a folder"
        )


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: ``OSError`` and the errors of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
