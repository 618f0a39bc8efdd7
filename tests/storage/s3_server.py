"""A real S3 server on loopback (moto's), which can be told to answer 503 for a while, and counts its requests.

Run as a program it prints its port. ``/-/busy?N`` lets the next N requests answer 503, ``/-/busy-seconds?S`` all those
of the next S seconds; ``/-/signed?1`` refuses what is not signed, as S3 does and moto does not;
``/-/requests`` tells how many requests came so far, ``/-/refused`` how many of them were answered with 503.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Faulty:
    """An S3 service with faults on demand."""

    def __init__(self, service: Callable[..., Iterable[bytes]]) -> None:
        self._service = service
        self._busy, self._busy_until, self._signed = 0, 0.0, False
        self._requests, self._refused = 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, value = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path.startswith("/-/"):
            return self._control(path, value, start_response)
        self._requests += 1
        if self._busy > 0 or time.monotonic() < self._busy_until:
            self._busy -= 1
            self._refused += 1
            return _refuse(environ, start_response, "503 Slow Down", _SLOW_DOWN)
        if self._signed and "HTTP_AUTHORIZATION" not in environ:
            return _refuse(environ, start_response, "403 Forbidden", _DENIED)
        return self._service(environ, start_response)

    def _control(self, path: str, value: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if path == "/-/busy":
            self._busy = int(value)
        elif path == "/-/busy-seconds":
            self._busy_until = time.monotonic() + float(value)
        elif path == "/-/signed":
            self._signed = value == "1"
        answer = str(self._refused if path == "/-/refused" else self._requests).encode()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


def _refuse(environ: dict[str, Any], start_response: Callable[..., Any], status: str, answer: bytes) -> Iterable[bytes]:
    get_input_stream(environ).read()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))])
    return [answer]


class _KeepAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # as S3 speaks it

    def log(self, *_: Any) -> None:
        """Nothing."""


if __name__ == "__main__":
    service = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, service, threaded=True, request_handler=_KeepAlive)
    print(server.server_port, flush=True)
    server.serve_forever()
