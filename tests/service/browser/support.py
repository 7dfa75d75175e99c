"""Services in their own processes with real photographs, and browsers that open their pages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.qdrant import DEADLINE
from tests.service.support import SECRETS
from zsvec.service.auth.guard import COOKIE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[4] / "shared" / "data") / "caltech24"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CATEGORIES = ("ant", "ketch", "pagoda")
_IMAGES = 4  # of each category
BLANK = "about:blank"  # for `Page.route`, which sees the requests of an open page late
PATIENCE = 60_000  # milliseconds for an expectation
SERVE_KEYS = ",".join(f"{name}:{name}:{key}" for name, key in SECRETS.items())

needs_a_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: install it (apt-get install chromium)")
needs_photos = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data"
)


def photo_of(category: str, number: int = 0) -> Path:
    """A photograph that is in no store."""
    return sorted((DATA / "photos" / category).iterdir())[number]


@dataclass(frozen=True)
class Service:
    """A service in its own process.

    Attributes:
        address: URL of the first page.
        log: File of the log.
        key: Key to write; empty for a service without keys.
        zsvec: Runs a command on the store after the service has ended, and returns the output.
    """

    address: str
    log: Path
    key: str
    zsvec: Callable[..., str]

    def restore(self) -> None:
        """Undoes all changes since the import."""
        with httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.key or 'none'}"}) as client:
            for change in client.get("/v1/history").json()["items"]:
                if not change["undone"] and change["what"] not in ("undo", "import"):
                    assert client.post("/v1/undo", json={"change": change["id"]}).status_code == 200


class Services:
    """Starts and ends services.

    Args:
        folder: Folder for stores, logs and user settings.
    """

    def __init__(self, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZSVEC_", "XDG_"))}
        user = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CONFIG", "STATE")}
        # Reuses the measured throughput of the encoders.
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
        """Creates a store with a few references of each category."""
        for category in CATEGORIES:
            folder = self._folder / "references" / category
            folder.mkdir(parents=True)
            for image in sorted((DATA / "references" / category).iterdir())[:_IMAGES]:
                shutil.copy(image, folder)
        store = self._folder / "store"
        self.run(store, "import", str(self._folder / "references"))
        return store

    def start(self, store: Path, stack: ExitStack, *, key: str = "", keys: str = "", keep: str = "none") -> Service:
        """Starts a service, which is ready, until the stack ends; with keys, on request.

        Args:
            store: Folder of the store.
            stack: Ends the service.
            key: A key to write.
            keys: Value of ``ZSVEC_SERVE_KEYS``.
            keep: Images that the inbox keeps.
        """
        log = self._folder / f"{store.name}.log"
        environment = {**self._environment, **({"ZSVEC_SERVE_KEYS": keys} if keys else {})}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self._command(store, "serve", "--port", "0", "--keep", keep),
                env=environment,
                cwd=self._work,
                stderr=stream,
            )
        stack.callback(_end, process)
        end = time.monotonic() + DEADLINE
        while not ((found := re.search(r"http://\S+/", log.read_text())) and _is_ready(found.group())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return Service(found.group(), log, key, lambda *arguments: self.run(store, *arguments))


def numbers(service: Service) -> dict[str, int]:
    """Number of photos of each category."""
    headers = {"Authorization": f"Bearer {service.key or 'none'}"}
    found = httpx.get(f"{service.address}v1/categories", headers=headers).json()["items"]
    return {one["category"]: max(n for expert, n in one["references"].items() if "image" in expert) for one in found}


def _is_ready(address: str) -> bool:
    return httpx.get(f"{address}health/ready", timeout=DEADLINE).status_code == 200


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE)


def violations(page: Page) -> list[tuple[str, str]]:
    """Returns violations of accessibility rules, with their elements; and a scroll bar of the page, if any."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth") > 0
    return [(one["id"], node["html"]) for one in found for node in one["nodes"]] + [("too wide", "")] * too_wide


def drop_on(target: Locator, *paths: Path) -> None:
    """Drops files and folders of this machine, as a file manager does."""
    box = target.bounding_box()
    assert box
    data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
    session = target.page.context.new_cdp_session(target.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
        session.send("Input.dispatchDragEvent", event)


def until(page: Page, happened: Callable[[], object]) -> None:
    """Lets the page go on until something has happened; fails after `PATIENCE`."""
    end = time.monotonic() + PATIENCE / 1000
    while not happened():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


def drop(page: Page, *photos: Path) -> Locator:
    """Chooses photos on the page Classify, and returns their rows once all are answered."""
    page.set_input_files("#chosen", [str(photo) for photo in photos])
    page.locator(".answer .actions").nth(len(photos) - 1).wait_for(state="attached")
    return page.locator(".answer")


class HeldAnswer:
    """Holds the answer to the next POST to a path, which the service has carried out by then.

    The page is blank as yet: the requests of an open page may pass unseen for a while.
    """

    def __init__(self, page: Page, path: str) -> None:
        self._page = page
        self._paused: list[str] = []
        self._network = page.context.new_cdp_session(page)
        self._network.on("Fetch.requestPaused", self._hold)
        patterns = [{"urlPattern": f"*{path}", "requestStage": "Response"}]
        self._network.send("Fetch.enable", {"patterns": patterns})

    def _hold(self, paused: Any) -> None:
        if paused["request"]["method"] == "POST":
            self._paused.append(paused["requestId"])
        else:
            self._network.send("Fetch.continueRequest", {"requestId": paused["requestId"]})

    def wait(self) -> None:
        until(self._page, lambda: self._paused)

    def release(self) -> None:
        self._network.send("Fetch.continueRequest", {"requestId": self._paused.pop()})
        self._network.send("Fetch.disable")

    def lose(self) -> None:
        """Ends the connection instead."""
        self._network.send("Fetch.failRequest", {"requestId": self._paused.pop(), "errorReason": "ConnectionClosed"})
        self._network.send("Fetch.disable")


# Messages stay until a slow machine has found them.
_LASTING = """
    const set = window.setTimeout;
    window.setTimeout = (call, delay, ...more) => set(call, delay === 8000 ? 600000 : delay, ...more);
"""


class Opened:
    """Opens pages, and collects errors of their consoles."""

    def __init__(self, browser: Browser, service: Service) -> None:
        self._browser = browser
        self._service = service
        self.said: list[str] = []

    def __call__(
        self, path: str = "/", *, width: int = 1280, stranger: bool = False, lasting: bool = True, **options: Any
    ) -> Page:
        """Opens a page, such as `BLANK`; with `stranger`, without a key; unless `lasting`, with messages that leave."""
        context = self._browser.new_context(
            base_url=self._service.address, viewport={"width": width, "height": 860}, reduced_motion="reduce", **options
        )
        context.set_default_timeout(PATIENCE)
        if self._service.key and not stranger:
            context.add_cookies([{"name": COOKIE, "value": self._service.key, "url": self._service.address}])
        if lasting:
            context.add_init_script(_LASTING)
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(path)
        return page

    def forget_refusals(self) -> None:
        """Removes the messages of the browser and of htmx about refused or failed requests."""
        self.said = [
            line for line in self.said if not line.startswith(("Failed to load resource", "Response Status", "htmx:"))
        ]

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.said.append(message.text)
