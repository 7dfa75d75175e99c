"""A service over a store in memory with three colours, for the API and for pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.service.support import asked, visitor
from tests.support import coloured_store, isolated  # noqa: F401
from zsvec.classifier import Classifier


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Three images of each of three colours."""
    with coloured_store(3) as classifier:
        yield classifier


@pytest.fixture
def client(classifier: Classifier) -> Iterator[TestClient]:
    """A client of a service without keys."""
    with asked(classifier) as client:
        yield client


@pytest.fixture
def browser(classifier: Classifier) -> Iterator[TestClient]:
    """A browser that visits a service without keys."""
    with visitor(classifier) as client:
        yield client
