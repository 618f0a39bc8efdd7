"""A page in headless Chromium: what it became, what its console said and what it asked the network for."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# Chromium's own errands, which no flag stops entirely; by exact name, so that nothing a page could ask for hides here.
_OWN_ERRANDS = {"clients2.google.com", "update.googleapis.com", "accounts.google.com"}
_OWN_ADDRESSES = {  # even of a blank page: the first since version 150, the second after seconds on a busy machine
    ("www.google.com", "/async/folae"),
    ("android.clients.google.com", "/checkin"),
}


@dataclass
class Opened:
    """What a browser made of a page: its final DOM, its console's messages and the addresses it asked for."""

    dom: str
    console: list[str]
    requested: list[str]

    @property
    def problems(self) -> list[str]:
        """Script errors, and whatever the content security policy had to stop."""
        bad = re.compile(r"Uncaught|Error|Refused|violates|Content Security Policy|Failed", re.IGNORECASE)
        return [message for message in self.console if bad.search(message)]


def open_in(chromium: str, page: Path, folder: Path, fragment: str = "") -> Opened:
    """Open a file and wait until its scripts have rested; ``folder`` takes the browser's profile and log."""
    log = folder / "net.json"
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"]
    command = [chromium, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [
        "--virtual-time-budget=20000",
        "--window-size=1280,2400",
        "--dump-dom",
        f"{page.as_uri()}#{fragment}" if fragment else page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    requested = re.findall(r'"url":\s*("(?:[^"\\]|\\.)*")', log.read_text(errors="replace"))
    addresses = {json.loads(url) for url in requested}
    return Opened(done.stdout, console, [url for url in sorted(addresses) if not _is_own(url)])


def _is_own(url: str) -> bool:
    parts = urlsplit(url)
    return parts.hostname in _OWN_ERRANDS or (parts.hostname, parts.path) in _OWN_ADDRESSES
