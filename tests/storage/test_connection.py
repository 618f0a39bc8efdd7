"""A wrong bucket, wrong credentials or no service: one line, at once, and before anything is started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.storage.objects import Objects, connect, is_transient

from .conftest import S3, start_server


def complaint(uri: str) -> str:
    with pytest.raises(UserError) as error:
        connect(uri)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bucket_that_is_not_there(s3: S3) -> None:
    """The bucket's name is said."""
    assert "there is no bucket no-such-bucket" in complaint("s3://no-such-bucket/a")


def test_nothing_that_answers(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong endpoint is not waited for as a busy one is."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "check AWS_ENDPOINT_URL" in complaint("s3://studies/a")


def test_wrong_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server that checks them: what is wrong is said, what they are is not."""
    with start_server({"INITIAL_NO_AUTH_ACTION_COUNT": "2"}) as strict:
        strict.filesystem().create_dir("studies")  # two requests: those that need no credentials
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        said = complaint("s3://studies/a")
    assert "credentials are refused" in said
    assert not any(value in said for name, value in strict.environment.items() if "KEY" in name)


def test_missing_credentials(s3: S3, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the environment nor from an instance: which variables would be right."""
    s3.control("signed", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no credentials were found" in complaint(storage)


def test_a_busy_service_is_waited_for(s3: S3, storage: str) -> None:
    """503 for a while, as S3 answers who asks too often: the call takes longer, and succeeds."""
    objects = connect(storage)
    s3.control("busy-seconds", 2)
    started = time.monotonic()
    objects.write("file", b"content")
    assert time.monotonic() - started > 1.5, "the service was busy that long"
    s3.control("busy", 3)
    assert objects.read("file") == b"content"


def test_patience_ends(s3: S3, storage: str) -> None:
    """A service that never answers is an error in the end, pyarrow's own."""
    objects = Objects(s3.filesystem(), storage.removeprefix("s3://"), patience=0.1)
    s3.control("busy", 1000)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        objects.write("file", b"content")


def test_what_the_disk_says_is_not_asked_again() -> None:
    """A full disk stays full, and an access that was denied stays denied."""
    assert not is_transient(OSError(28, "No space left on device"))
    assert not is_transient(OSError("AWS Error ACCESS_DENIED during PutObject operation"))
    assert is_transient(OSError("AWS Error SLOW_DOWN during PutObject operation (HTTP status 503)"))


def test_a_storage_in_a_folder_loads_nothing_for_object_stores(tmp_path: Path) -> None:
    """Everyday use does not load what only object stores need."""
    code = (
        "import sys, fortifai_ray.storage.store as s; s.StageStore(sys.argv[1]); sys.exit('pyarrow.fs' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0
