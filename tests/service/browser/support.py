"""A service in a process of its own, with real photographs, and browsers that look at its pages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.qdrant import DEADLINE
from zsvec.service.auth.guard import COOKIE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[4] / "shared" / "data") / "caltech24"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CATEGORIES = ("ant", "ketch", "pagoda")
_IMAGES = 4  # of each category
PATIENCE = 60_000  # milliseconds for what a page is expected to show

needs_a_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: install it (apt-get install chromium)")
needs_photos = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data"
)


def photo_of(category: str, number: int = 0) -> Path:
    """A photograph that no store has."""
    return sorted((DATA / "photos" / category).iterdir())[number]


@dataclass(frozen=True)
class Service:
    """What runs in its own process.

    Attributes:
        address: Of its first page.
        log: The file that it writes its log to.
        key: One that may write; empty where nobody is asked for one.
        zsvec: Runs a command with its store, once it has ended, and gives what that prints.
    """

    address: str
    log: Path
    key: str
    zsvec: Callable[..., str]

    def restore(self) -> None:
        """Take back all that was changed since the store was imported."""
        with httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.key or 'none'}"}) as client:
            for change in client.get("/v1/history").json():
                if not change["undone"] and change["what"] not in ("undo", "import"):
                    assert client.post("/v1/undo", json={"change": change["id"]}).status_code == 200


class Services:
    """Starts and ends services over one store at a time.

    Args:
        folder: For stores, logs, and what would be a user's.
    """

    def __init__(self, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZSVEC_", "XDG_"))}
        user = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CONFIG", "STATE")}
        # What was measured of the encoders on this host need not be measured again.
        cache = os.environ.get("XDG_CACHE_HOME")
        self._environment = {**kept, **user, "ZSVEC_PROFILE": "offline", "HF_HUB_OFFLINE": "1"}
        if cache:
            self._environment["XDG_CACHE_HOME"] = cache
        self._folder = folder
        self._work = folder / "work"
        self._work.mkdir()

    def _command(self, store: Path, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "zsvec", "--store", str(store), *arguments]

    def run(self, store: Path, *arguments: str) -> str:
        command = self._command(store, *arguments)
        return subprocess.run(
            command, env=self._environment, cwd=self._work, check=True, capture_output=True, text=True, timeout=DEADLINE
        ).stdout

    def imported(self) -> Path:
        """A store with a few references of each category."""
        for category in CATEGORIES:
            folder = self._folder / "references" / category
            folder.mkdir(parents=True)
            for image in sorted((DATA / "references" / category).iterdir())[:_IMAGES]:
                shutil.copy(image, folder)
        store = self._folder / "store"
        self.run(store, "import", str(self._folder / "references"))
        return store

    def start(self, store: Path, stack: ExitStack, *, key: str = "", keys: str = "") -> Service:
        """A service that is ready, until the stack ends.

        Args:
            store: A folder that no other process has open.
            stack: Ends it.
            key: One of its keys, that may write.
            keys: All of them, as ``ZSVEC_SERVE_KEYS`` has them.
        """
        log = self._folder / f"{store.name}.log"
        environment = {**self._environment, **({"ZSVEC_SERVE_KEYS": keys} if keys else {})}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self._command(store, "serve", "--port", "0"), env=environment, cwd=self._work, stderr=stream
            )
        stack.callback(_end, process)
        while not (found := re.search(r"http://\S+/", log.read_text())):
            assert process.poll() is None, log.read_text()
            _wait(process)
        while httpx.get(f"{found.group()}health/ready").status_code != 200:
            _wait(process)
        return Service(found.group(), log, key, lambda *arguments: self.run(store, *arguments))


def _wait(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE)


class Opened:
    """Opens pages as different people do, and remembers what their consoles said."""

    def __init__(self, browser: Browser, service: Service) -> None:
        self._browser = browser
        self._service = service
        self.said: list[str] = []

    def __call__(self, path: str = "/", *, width: int = 1280, stranger: bool = False, **options: Any) -> Page:
        """A page, as it is when it has come; to a stranger, who has no key."""
        context = self._browser.new_context(
            base_url=self._service.address, viewport={"width": width, "height": 860}, reduced_motion="reduce", **options
        )
        context.set_default_timeout(PATIENCE)
        if self._service.key and not stranger:
            context.add_cookies([{"name": COOKIE, "value": self._service.key, "url": self._service.address}])
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(path)
        return page

    def forget_refusals(self) -> None:
        """What a browser itself, and htmx, say of an answer that is a problem, or of none."""
        self.said = [line for line in self.said if not line.startswith(("Failed to load resource", "Response Status"))]

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.said.append(message.text)
