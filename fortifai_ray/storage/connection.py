"""The way to an object store: pyarrow's filesystem for its address, tried out before anything else is done.

Credentials are those that the AWS SDK finds: the environment's, a profile's, the instance's role. The endpoint is
``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` where either is set: pyarrow heeds them only for addresses that it
parses itself, and there its retries cannot be set.
"""

import os
import posixpath
import uuid
from functools import lru_cache
from urllib.parse import urlsplit

from pyarrow import fs

from fortifai_ray.errors import UserError
from fortifai_ray.storage.objects import Objects, is_transient

_ATTEMPTS = 5  # of the SDK, at each request, within those of Objects: a busy moment costs no second upload
_CONNECT_SECONDS = 5.0
_REQUEST_SECONDS = 60.0


def connect(uri: str) -> Objects:
    """The files under ``uri``, once per process and address; a file is written there and removed again.

    Raises :class:`UserError` where the bucket is not there, the credentials are missing or refused, or nothing answers.
    """
    return _connected(uri, _endpoint())


@lru_cache
def _connected(uri: str, endpoint: str | None) -> Objects:
    _probe(uri, *_open(uri, endpoint, 2))
    return Objects(*_open(uri, endpoint, _ATTEMPTS))


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _open(uri: str, endpoint: str | None, attempts: int) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    try:
        if parts.scheme != "s3":
            return fs.FileSystem.from_uri(uri)
        system = _s3(parts.netloc, endpoint, attempts)
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--storage {uri}: cannot be opened ({_reason(error)}); an address is s3://BUCKET/PREFIX"
        ) from (error)
    return system, parts.netloc + parts.path


def _s3(bucket: str, endpoint: str | None, attempts: int) -> fs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _probe(uri: str, filesystem: fs.FileSystem, root: str) -> None:
    """Write where stages will be written: listing alone would not tell whether that is allowed."""
    name = posixpath.join("stages", f".write-{uuid.uuid4().hex}")
    objects = Objects(filesystem, root, final=("NETWORK_CONNECTION",))  # a busy service is waited for, no service not
    try:
        objects.write(name, b"")
        objects.delete(name)
    except OSError as error:
        raise UserError(f"--storage {uri}: {_advice(uri, error)}") from error


def _advice(uri: str, error: OSError) -> str:
    text, bucket = str(error), urlsplit(uri).netloc
    if "NO_SUCH_BUCKET" in text:
        return f"there is no bucket {bucket}; create it, or correct its name"
    given = bool(os.environ.get("AWS_ACCESS_KEY_ID"))
    if any(word in text for word in ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT", "INVALID_CLIENT", "EXPIRED_TOKEN")):
        return (
            "the credentials are refused; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN "
            "where they are temporary), or unset them where the instance has a role"
        )
    if "ACCESS_DENIED" in text or "HTTP status 403" in text:
        if given:
            return f"these credentials may not write to {bucket}; they need to get, put, delete and list its objects"
        return (
            "no credentials were found, or not ones that may write; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or run where the instance has a role"
        )
    if is_transient(error):
        return (
            f"the object store does not answer ({_reason(error)}); check AWS_ENDPOINT_URL, AWS_REGION and the network"
        )
    return f"cannot be written ({_reason(error)})"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text.partition("AWS Error ")[2] or text)[:160]
