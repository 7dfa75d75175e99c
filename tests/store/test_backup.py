"""A store is restored from snapshots of collections at several instants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import httpx
import pytest

from tests.store.material import FINGERPRINTS, add, sources
from tests.store.support import ServerDeployment
from zsvec.errors import StoreError
from zsvec.store import Store

COLLECTIONS = ("catalog", *FINGERPRINTS)


@pytest.fixture
def rest(server: ServerDeployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/collections", timeout=60) as client:
        yield client


def back_up(rest: httpx.Client, collection: str) -> bytes:
    snapshots = f"{collection}/snapshots"
    name = rest.post(snapshots).raise_for_status().json()["result"]["name"]
    return rest.get(f"{snapshots}/{name}").raise_for_status().content


def restore(rest: httpx.Client, collection: str, snapshot: bytes) -> None:
    rest.post(
        f"{collection}/snapshots/upload", params={"priority": "snapshot"}, files={"snapshot": snapshot}
    ).raise_for_status()


def copied(server: ServerDeployment, rest: httpx.Client, *, first: str, write: Callable[[], object]) -> Store:
    """A copy of the store, restored from snapshots between the first and second of which another client writes."""
    snapshots: dict[str, bytes] = {}
    for collection in sorted(COLLECTIONS, key=first.__ne__):
        if len(snapshots) == 1:
            write()
        snapshots[collection] = back_up(rest, f"{server.namespace}__{collection}")
    copy = f"{server.namespace}-copy"
    for collection in reversed(COLLECTIONS):
        restore(rest, f"{copy}__{collection}", snapshots[collection])
    return Store(server.backend(), copy)


@pytest.fixture
def store(server: ServerDeployment) -> Store:
    store = server.open()
    for name in ("replaced", "kept"):
        add(store, name, ["1", "2"], ["text"])
    return store


def state(store: Store) -> Mapping[str, Mapping[str, list[str]]]:
    return {category.name: sources(store, category.name) for category in store.categories()}


def test_an_older_catalog_names_existing_references(server: ServerDeployment, rest: httpx.Client, store: Store) -> None:
    """Without later deletions; later writes are garbage."""
    before = state(store)

    def write() -> None:
        add(store, "added", ["3"])
        add(store, "replaced", ["4"], replace=True)

    copy = copied(server, rest, first="catalog", write=write)
    assert [category.name for category in copy.categories()] == ["kept", "replaced"]
    assert set(copy.incomplete()) <= {"replaced"}
    assert sources(copy, "kept") == before["kept"]
    copy.remove("replaced")
    add(copy, "replaced", ["1", "2"], ["text"])
    with pytest.raises(StoreError, match="'added'"):  # as if the manifest was lost
        copy.gc(grace=0)
    add(copy, "added", ["3"])
    copy.remove("added")
    copy.gc(grace=0)
    assert "garbage" not in [finding.what for finding in copy.check_up()]
    assert copy.incomplete() == []
    assert state(copy) == before


def test_a_newer_catalog_names_missing_references(server: ServerDeployment, rest: httpx.Client, store: Store) -> None:
    copy = copied(server, rest, first="clip", write=lambda: add(store, "added", ["3"]))
    assert copy.incomplete() == ["added"]


def test_a_store_without_writers_is_restored_whole(server: ServerDeployment, rest: httpx.Client, store: Store) -> None:
    copy = copied(server, rest, first="dino", write=lambda: None)
    assert (copy.incomplete(), state(copy)) == ([], state(store))
    add(copy, "added", ["3"])
    assert state(copy).keys() == {"added", *state(store)}
