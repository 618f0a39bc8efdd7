"""A server that stands for the Hugging Face hub: what its client asks for to make a repository and to commit files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """The repositories: by kind and name, their files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.url = ""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port, without repositories."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answered("GET")

    def do_HEAD(self) -> None:
        self._answered("HEAD")

    def do_POST(self) -> None:
        self._answered("POST")

    def _answered(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer, headers = self._answer(path, body)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(content)

    def _answer(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "orgs": []}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked.get('organization') or 'someone'}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            self.hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            return 200, {"url": f"{self.hub.url}/{name}", "name": name.partition("/")[2]}, {}
        parts = path.strip("/").split("/")
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            return self._repository("/".join(parts[1:4]), parts[4:], body)
        kind = "datasets" if parts[0] == "datasets" else "models"  # files: /NAME/resolve/main/FILE
        place = parts.index("resolve")
        files = self.hub.repositories.get(f"{kind}/{'/'.join(parts[place - 2 : place])}", {})
        content = files.get("/".join(parts[place + 2 :]))
        if content is None:
            return 404, {}, {"X-Error-Code": "EntryNotFound"}
        return 200, content, {"ETag": '"one"', "X-Repo-Commit": "c" * 40}

    def _repository(self, name: str, asked: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = self.hub.repositories.get(name)
        if files is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if asked[:1] == ["preupload"]:
            wanted = json.loads(body)["files"]
            return 200, {"files": [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in wanted]}, {}
        if asked[:1] == ["commit"]:
            for line in (json.loads(line) for line in body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            made = {"commitUrl": f"{self.hub.url}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40}
            return 200, made, {}
        if asked[:1] == ["tree"]:
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "o"} for path in files], {}
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": name.partition("/")[2], "sha": "c" * 40, "siblings": siblings, "private": True}, {}
