"""A chain on an object store is exported from any machine: its tables, its stages and the tokenizer are fetched."""

from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.export.export import export
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.mirror import StudyMirror
from tests.export.conftest import TEXTS, swept

from .conftest import S3


def test_from_an_object_store(s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the study's address or with the beginning of an id; a stage that is gone there is one line."""
    place = Storage.of(storage)
    swept(storage, **TEXTS | {"vary": {}, "generations": 1})
    StudyMirror(place, "texts").push()
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another"))
    export(f"{storage}/texts", str(tmp_path / "by-address"))
    export("texts", str(tmp_path / "by-name"), storage=storage, what=("corpus",))
    assert (tmp_path / "by-address" / "model.safetensors").is_file()
    assert (tmp_path / "by-address" / "tokenizer.json").is_file()
    assert (tmp_path / "by-name" / "data").is_dir()
    for name in s3.files(f"{storage}/stages"):
        if name.endswith("/model.safetensors"):
            s3.delete(f"{storage}/stages/{name}")
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "a-third"))
    with pytest.raises(UserError, match="sweep the study again") as error:
        export(f"{storage}/texts", str(tmp_path / "lost"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no study or chain of this name"):
        export(f"{storage}/text", str(tmp_path / "lost"))
