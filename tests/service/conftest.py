"""A service over a store in memory, that has three colours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.service.support import asked
from tests.support import coloured_store, isolated  # noqa: F401
from zsvec.classifier import Classifier


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Three images of each of three colours."""
    with coloured_store(3) as classifier:
        yield classifier


@pytest.fixture
def client(classifier: Classifier) -> Iterator[TestClient]:
    """Asks a service that wants no key."""
    with asked(classifier) as client:
        yield client
