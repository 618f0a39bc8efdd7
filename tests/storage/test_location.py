"""Which storage an address means, and what is refused."""

import pickle
from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.storage.location import Storage, reserved, split_study


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_folder_stays_as_it_was_given_and_is_told_to_others_by_its_whole_path() -> None:
    """A worker runs in another folder than the command line does."""
    storage = Storage.of("runs")
    assert (storage.folder, storage.uri, storage.remote) == (Path("runs"), str(Path("runs").absolute()), False)
    assert str(storage) == "runs"
    assert storage.tracking_note is None


def test_an_address_survives_being_made_a_path(cache: Path) -> None:
    """The command line makes paths of its arguments, which swallows a slash."""
    storage = Storage.of(Path("s3://bucket/a/b/"))
    assert storage.uri == "s3://bucket/a/b"
    assert storage == Storage.of("s3://bucket/a/b")
    assert storage.remote
    assert storage.folder.parent == cache


def test_a_file_address_is_its_folder() -> None:
    """``file:///data/runs`` needs no object store."""
    assert Storage.of("file:///data/my%20runs").folder == Path("/data/my runs")


def test_another_process_finds_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker on another machine has another home; the study that is at work goes with it."""
    sent = pickle.dumps(Storage.of("s3://bucket/a").for_study("tiny"))
    here, folder = Path("runs").absolute(), pickle.dumps(Storage.of("runs"))
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    there = pickle.loads(sent)
    assert (there.uri, there.study) == ("s3://bucket/a", "tiny")
    assert there.folder.parent == tmp_path / "elsewhere"
    assert pickle.loads(folder).folder == here


def test_storages_share_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prefixes, or one bucket's name at two endpoints, are two storages."""
    folders = {Storage.of("s3://bucket/a").folder, Storage.of("s3://bucket/a-b").folder}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert len({*folders, Storage.of("s3://bucket/a").folder}) == 3


def test_where_mlflow_goes_is_said_unless_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store holds no SQLite database: the user is told where the runs are."""
    note = Storage.of("s3://bucket/a").tracking_note
    assert note is not None
    assert str(Storage.of("s3://bucket/a").folder) in note
    assert "\n" not in note
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Storage.of("s3://bucket/a").tracking_note is None


@pytest.mark.parametrize("scheme", ["gs", "GS", "gcs", "abfss", "az", "hdfs", "https", "sftp", "mock", "nosuch"])
def test_stores_that_are_not_known_are_refused_at_once(scheme: str) -> None:
    """Some clients would look for their own service for minutes; what would be right is said."""
    for address in (f"{scheme}://key:topsecret@bucket/a", f"{scheme}:/bucket"):
        with pytest.raises(UserError, match=rf"{scheme.lower()}://….*s3://BUCKET/PREFIX") as error:
            Storage.of(address)
        assert "topsecret" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://AKIAEXAMPLE:topsecret@bucket/a", "s3://"])
def test_a_wrong_address_is_refused_and_no_secret_repeated(address: str) -> None:
    """Credentials on the command line end up in histories and process lists; an address without a bucket is none."""
    with pytest.raises(UserError) as error:
        Storage.of(address)
    assert "topsecret" not in str(error.value)
    assert "AKIAEXAMPLE" not in str(error.value)


def test_a_study_is_a_storage_and_a_name() -> None:
    """What ``fortifai report`` is given."""
    storage, name = split_study(Path("s3://bucket/a/quickstart"))
    assert (storage.uri, name) == ("s3://bucket/a", "quickstart")
    assert split_study("s3://bucket/quickstart")[0].uri == "s3://bucket"
    storage, name = split_study("runs/quickstart")
    assert (storage.folder, name) == (Path("runs").absolute(), "quickstart")
    with pytest.raises(UserError, match="BUCKET/PREFIX/NAME"):
        split_study("s3://bucket")


@pytest.mark.parametrize(
    "given",
    ["", " ", "\t", "a\nb", "a\x00b", "s3:bucket", "S3:bucket/a", "s3//bucket", "gs:bucket", "file:runs", "file://a/b"],
)
def test_what_names_no_storage_is_refused_in_one_line(given: str) -> None:
    """It would become a folder of that name, or the current folder itself."""
    with pytest.raises(UserError) as error:
        Storage.of(given)
    assert "\n" not in str(error.value)


def test_the_home_is_expanded_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves the ~ of ``--storage=~/x`` as it is; a ``$HOME`` that it left is a folder's name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage.of("~/x").folder == tmp_path / "x"
    assert Storage.of(Path("~/x")).uri == str(tmp_path / "x")
    assert split_study("~/x/tiny")[0].folder == tmp_path / "x"
    assert Storage.of("$HOME/x").folder == Path("$HOME/x")
    assert Storage.of("a~b").folder == Path("a~b")


def test_a_file_is_no_storage(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="is a file"):
        Storage.of(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["stages", "Stages", "STAGES", "mlflow.db", "MLflow.db", "mlflow.db-wal", "a."])
def test_names_that_a_storage_needs_itself(name: str) -> None:
    """A study of such a name would lie among the stages, and gc would remove it."""
    assert reserved(name)


@pytest.mark.parametrize("name", ["stages2", "my-stages", "mlflow", "mlflow.db2", "quickstart", "a.b"])
def test_other_names_are_free(name: str) -> None:
    assert not reserved(name)
