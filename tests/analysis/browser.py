"""A page of an exported notebook in headless Chromium: the charts that were drawn, and what went wrong.

The browser is driven by Chromium's own protocol, since a notebook's page draws its charts after it was loaded, inside
shadow roots, which no dump of the DOM shows.
"""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect

# What is drawn so far; `all` is everything below a root, shadow roots included.
_STATE = """(() => {
  const all = (root, what) => [...root.querySelectorAll('*')].flatMap(
    (one) => [...(one.matches(what) ? [one] : []), ...(one.shadowRoot ? all(one.shadowRoot, what) : [])]);
  const inked = (one) => one.tagName === 'CANVAS'
    ? one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some((value) => value)
    : one.querySelector('path, text') !== null;
  const charts = all(document, '.vega-embed svg.marks, .vega-embed canvas.marks');
  const pictures = all(document, 'img[src^="data:image/png"]');
  const inside = all(document, '*').filter((one) => one.shadowRoot).map((one) => one.shadowRoot.textContent);
  return JSON.stringify({
    charts: charts.filter((one) => one.getBoundingClientRect().width > 100 && inked(one)).length,
    images: pictures.filter((one) => one.naturalWidth > 0).length,
    text: [document.body?.innerText, ...inside].join('\\n'),
  });
})()"""


@dataclass
class Page:
    """What a browser made of a page: charts with something drawn, pictures loaded, all text, what went wrong."""

    charts: int
    images: int
    text: str
    errors: list[str]
    requested: list[str]


@dataclass
class Browser:
    """One headless Chromium and its one tab."""

    socket: Any
    _number: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)

    def open(self, url: str, charts: int = 0, images: int = 0, picture: Path | None = None) -> Page:
        """Open an address and wait until so many charts and images are there (or half a minute is over)."""
        self._events.clear()
        self.call("Page.navigate", url=url)
        deadline, settled = time.monotonic() + 30, 0
        while settled < 2 and time.monotonic() < deadline:
            time.sleep(0.3)
            answer = self.call("Runtime.evaluate", expression=_STATE)
            assert "exceptionDetails" not in answer, answer
            state = json.loads(answer["result"]["value"])
            whole = state["charts"] >= charts and state["images"] >= images and len(state["text"]) > 500
            settled = settled + 1 if whole else 0
        if picture is not None:
            shot = self.call("Page.captureScreenshot", format="png")
            picture.write_bytes(base64.b64decode(shot["data"]))
        return Page(state["charts"], state["images"], state["text"], self._errors(), self._requested())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command and its result; events that come meanwhile are kept."""
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._events.append(message)

    def _errors(self) -> list[str]:
        """Exceptions, errors in the console, and addresses that failed to load."""
        errors: list[str] = []
        for event in self._events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                errors.append(json.dumps(params["exceptionDetails"])[:500])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                errors.append(json.dumps(params["args"])[:500])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return errors

    def _requested(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]


@contextmanager
def started(chromium: str, profile: Path) -> Iterator[Browser]:
    """Chromium with a profile of its own; no name but loopback's resolves in it."""
    quiet = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
        "--hide-scrollbars",
    ]
    quiet += ["--disable-component-update", "--disable-default-apps", "--disable-extensions", "--window-size=1280,5200"]
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        *quiet,
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab(profile), max_size=None) as socket:
            found = Browser(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                found.call(f"{domain}.enable")
            yield found
    finally:
        process.terminate()
        process.wait(timeout=30)


def _tab(profile: Path) -> str:
    """The address of Chromium's tab, once it has written its port down."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.1)
        port = profile / "DevToolsActivePort"
        if port.is_file() and port.read_text().strip():
            with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json", timeout=10) as answer:
                pages = [one for one in json.loads(answer.read()) if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
    raise AssertionError("chromium did not start within half a minute")
