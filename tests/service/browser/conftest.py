"""Browsers and the services that they look at; each is started once.

They end with this package: while Playwright runs, its thread has an event loop, in which no other test can start one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.browser.support import CHROMIUM, PATIENCE, Opened, Service, Services
from tests.service.page_support import SECRETS

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return Services(tmp_path_factory.mktemp("services"))


@pytest.fixture(scope="package")
def photo_store(services: Services) -> Path:
    """Made once; services get copies of it."""
    return services.imported()


@pytest.fixture(scope="package")
def service(services: Services, photo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that asks for a key."""
    copy = shutil.copytree(photo_store, tmp_path_factory.mktemp("served") / "store")
    keys = ",".join(f"{name}:{name}:{key}" for name, key in SECRETS.items())
    with ExitStack() as stack:
        yield services.start(copy, stack, key=SECRETS["write"], keys=keys)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        playwright.expect.set_options(timeout=PATIENCE)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Browser, service: Service) -> Iterator[Opened]:
    """Opens pages of the service. When the test ends, none may have had an error or broken the policy of contents."""
    opened = Opened(chromium, service)
    yield opened
    for context in chromium.contexts:
        context.close()
    service.restore()
    assert opened.said == []
