"""One S3 server for these tests, and a storage of its own for each."""

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

SERVER = Path(__file__).with_name("s3_server.py")


class S3:
    """The server, and what a test does to it behind the project's back."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def control(self, what: str, value: float | int) -> int:
        """Tell the server what to do; returns the number of requests that it had."""
        with urllib.request.urlopen(f"{self.url}/-/{what}?{value}", data=b"") as answer:
            return int(answer.read())

    def requests(self) -> int:
        """How many requests came so far."""
        return self.control("requests", 0)

    def refused(self) -> int:
        """How many of them were answered with 503."""
        return self.control("refused", 0)

    def filesystem(self) -> fs.S3FileSystem:
        """A client of the tests' own."""
        return fs.S3FileSystem(
            endpoint_override=self.url,
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def files(self, uri: str) -> dict[str, bytes]:
        """Everything below an address."""
        root = uri.removeprefix("s3://")
        found = self.filesystem().get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        files = [info.path for info in found if info.type == fs.FileType.File]
        return {path.removeprefix(f"{root}/"): self.filesystem().open_input_file(path).read() for path in files}

    def put(self, uri: str, content: bytes) -> None:
        """Write a file."""
        with self.filesystem().open_output_stream(uri.removeprefix("s3://")) as stream:
            stream.write(content)

    def delete(self, uri: str) -> None:
        """Remove a file."""
        self.filesystem().delete_file(uri.removeprefix("s3://"))


@contextmanager
def start_server(environment: Mapping[str, str] | None = None) -> Iterator[S3]:
    """A server, in a process of its own, without buckets."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=inherited | dict(environment or {}),
    )
    assert process.stdout is not None
    try:
        yield S3(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The server of these tests, with a bucket."""
    with start_server() as s3:
        s3.filesystem().create_dir("studies")
        yield s3


@pytest.fixture
def s3(s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with the environment that a user sets up; what is cached goes into the test's own folder."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for fault in ("busy", "busy-seconds", "signed"):
        s3_server.control(fault, 0)
    return s3_server


@pytest.fixture
def storage(s3: S3) -> str:
    """An empty storage on the server."""
    return f"s3://studies/{uuid.uuid4().hex[:8]}"
