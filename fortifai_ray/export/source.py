"""What is exported: a chain by its name on the command line, and the files of its stages."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG
from fortifai_ray.errors import UserError, in_short
from fortifai_ray.results.chain import ChainResults, find_chain
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import read_table
from fortifai_ray.storage.location import Storage, split_study
from fortifai_ray.storage.mirror import opened_study
from fortifai_ray.storage.store import MANIFEST, StageLost, StageStore
from fortifai_ray.validation import hint

_ID = re.compile(r"[0-9a-f]{4,}", re.IGNORECASE)  # four digits tell the chains of a study apart, as a rule


@contextmanager
def opened_chain(
    name: str, storage: str, *, cell: str | None = None, seed: int | None = None
) -> Iterator[tuple[ChainResults, Storage]]:
    """The chain of a name, and its storage.

    Args:
        name: ``STORAGE/STUDY`` or ``STORAGE/STUDY/ID``; without ``STORAGE/`` where it is in ``storage``, and there an
            id alone will do. The beginning of an id suffices.
        storage: where names without one are looked for.
        cell: its cell, and ``seed`` its seed (:func:`~fortifai_ray.results.chain.find_chain`).

    Raises:
        UserError: there is no such study or chain, or several chains answer to it.
    """
    study, chain_id = _located(name, storage)
    with opened_study(study) as folder:
        yield find_chain(open_study(folder), chain_id, cell=cell, seed=seed), split_study(study)[0]


def _located(name: str, storage: str) -> tuple[str, str | None]:
    """The study's address in a chain's name, and the id in it."""
    text = name.rstrip("/")
    for whole in dict.fromkeys((text, f"{storage.rstrip('/')}/{text}")):
        parent, _, last = whole.rpartition("/")
        if _is_study(whole):
            return whole, None
        if parent and not parent.endswith(("/", ":")) and _is_study(parent):
            return parent, last
    place = Storage.of(storage)
    there = [] if place.remote or not place.folder.is_dir() else [p for p in place.folder.iterdir() if p.is_dir()]
    studies = [folder for folder in there if _is_study(folder)]
    if _ID.fullmatch(text):
        found = [study for study in studies if _has_chain(study, text.lower())]
        if len(found) > 1:
            raise UserError(f"{name}: chains of several studies begin so: {', '.join(f'{s}/{text}' for s in found)}")
        if found:
            return str(found[0]), text
    known = sorted(study.name for study in studies)
    named = "; a chain is named STORAGE/STUDY/ID, or STORAGE/STUDY with --cell and --seed"
    near = hint(text.rpartition("/")[2], known, f"{named} (--storage where it is not in runs)")
    raise UserError(f"{name}: there is no study or chain of this name, here or in {storage}{near}")


def _is_study(address: str | Path) -> bool:
    place = Storage.of(address)
    if not place.remote:
        return (place.folder / "study.yaml").is_file()
    from fortifai_ray.storage.objects import connect

    return connect(place.uri).read("study.yaml") is not None


def _has_chain(study: Path, beginning: str) -> bool:
    try:
        table = read_table(study, "generations", columns=["chain_id"])
    except UserError:  # of an older version, say: it is told where the study is named
        return False
    return table is not None and bool(table["chain_id"].str.starts_with(beginning).any())


class Stages:
    """The stages of a storage, by their hashes: their files here, and what their manifests say."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._store = StageStore(storage)

    def folder(self, stage_hash: str, what: str) -> Path:
        """The folder of a stage's files, whole and intact; that of an adapter with its model's beside it.

        Raises:
            UserError: it is gone or damaged; ``what`` it holds is for the message.
        """
        log = logging.getLogger("fortifai_ray.storage")
        before, log.level = log.level, logging.ERROR  # a damaged stage is told below
        try:
            stage = self._store.open(stage_hash)
            folder = None if stage is None else stage.path
        except StageLost as error:
            raise UserError(f"{what}: {in_short(error)}: sweep the study again, which makes it anew") from error
        finally:
            log.level = before
        if folder is None:
            raise UserError(
                f"{what}: its stage {stage_hash} in {self.storage} is gone or damaged (gc removes stages that no study "
                "needs; a damaged one is set aside): sweep the study again, which makes it anew"
            )
        if (folder / ADAPTER_CONFIG).is_file():
            base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
            self.folder(base, f"the model that the adapter of {what} belongs to")
        return folder

    def manifest(self, folder: Path) -> dict[str, Any]:
        """The manifest in a stage's folder."""
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
