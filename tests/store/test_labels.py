"""The number of categories that an image of a store may belong to."""

from __future__ import annotations

import pytest

from tests.store.material import FINGERPRINTS
from tests.store.support import Deployment
from zsvec.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


def test_a_store_remembers_what_was_asked_last(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    assert store.labels() == "one"  # there is no store
    store.bind(FINGERPRINTS)
    assert store.labels() == "one"
    store.bind(FINGERPRINTS, labels="many")
    store.bind(FINGERPRINTS)
    assert (store.labels(), store.info()["labels"]) == ("many", "many")
    store.bind(FINGERPRINTS, labels="one")
    assert store.labels() == "one"


def test_a_new_store_takes_the_setting(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    store.bind(FINGERPRINTS, labels="many")
    assert store.labels() == "many"
