"""Browsers and services, each started once for this package.

While Playwright runs, its thread has an event loop, in which no other test can start one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.browser.support import CHROMIUM, PATIENCE, SERVE_KEYS, Opened, Service, Services
from tests.service.support import SECRETS

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return Services(tmp_path_factory.mktemp("services"))


@pytest.fixture(scope="package")
def photo_store(services: Services) -> Path:
    return services.imported()


@pytest.fixture(scope="package")
def service(services: Services, photo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys."""
    copy = shutil.copytree(photo_store, tmp_path_factory.mktemp("served") / "store")
    with ExitStack() as stack:
        yield services.start(copy, stack, key=SECRETS["write"], keys=SERVE_KEYS)


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
    """Opens pages of the service, and asserts that none had an error or violated the Content-Security-Policy."""
    opened = Opened(chromium, service)
    yield opened
    for context in chromium.contexts:
        context.close()
    service.restore()
    assert opened.said == []
