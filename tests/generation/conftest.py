"""Every test of generation has the key of the fake server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.generation.fake_openai import KEY
from zsvec.generation.access import KEY_VARIABLE


@pytest.fixture(scope="module", autouse=True)
def quick_clients(one_certificate: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(one_certificate))
        yield


@pytest.fixture(autouse=True)
def the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
