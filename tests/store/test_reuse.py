"""Vectors that a store has already, found by content hash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from tests.store.material import FINGERPRINTS, add, content_hash, reference, write_of
from tests.store.support import Deployment
from zsvec.errors import StoreUnavailableError
from zsvec.store import InboxImage, Reference, Store
from zsvec.store.backends.base import Put
from zsvec.store.catalog.schema import expected
from zsvec.store.names import record_id
from zsvec.types import Category, Modality

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

OpenStore = Callable[..., Store]


def found(store: Store, *contents: str, modality: Modality = "image", encoders: tuple[str, ...] = ()) -> set[str]:
    """The contents with vectors, which are checked."""
    names = encoders or (*FINGERPRINTS,)
    hashes = {content_hash(content): content for content in contents}
    vectors = store.stored_vectors().find(names, modality, hashes)
    for digest, one in vectors.items():
        assert one.vectors.keys() == set(names)
        for encoder, vector in one.vectors.items():
            assert vector.dtype == np.float32
            np.testing.assert_allclose(vector, reference(encoder, modality, hashes[digest]).vector, atol=1e-6)
    return {hashes[digest] for digest in vectors}


def test_a_vector_of_any_category_is_found(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    assert found(store, "a") == set()
    store.write([write_of("red panda", ["a", "b"], ["b"]), write_of("lynx", ["a", "c"])])
    other = deployment.another(store)
    assert found(other, "a", "b", "c", "x") == {"a", "b", "c"}
    assert found(other, "a", "b", modality="text", encoders=("clip",)) == {"b"}
    assert found(other) == set()


def holders(store: Store, *contents: str) -> dict[str, frozenset[str]]:
    """Content and the categories that have the content, as found beside the vectors."""
    hashes = {content_hash(content): content for content in contents}
    found = store.stored_vectors().find((*FINGERPRINTS,), "image", hashes)
    return {hashes[digest]: one.categories for digest, one in found.items()}


def test_the_categories_of_a_content_are_found(open_store: OpenStore) -> None:
    store = open_store(history=60.0)
    store.write([write_of("red panda", ["a", "b"]), write_of("lynx", ["a", "c", "d"])])
    store.remove_references("lynx", {content_hash("c")})
    assert holders(store, *"abcd") == {"a": {"red panda", "lynx"}, "b": {"red panda"}, "c": set(), "d": {"lynx"}}


def test_an_image_that_waits_in_the_inbox_is_found(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a"])
    vectors = {encoder: reference(encoder, "image", "b").vector for encoder in FINGERPRINTS}
    store.inbox.put([InboxImage(hash=content_hash("b"), source="b", added=datetime.now(UTC), vectors=vectors)])
    other = deployment.another(store)
    assert found(other, "a", "b", "x") == {"a", "b"}
    assert found(other, "b", encoders=("dino",)) == {"b"}
    assert found(other, "b", modality="text", encoders=("clip",)) == set()
    assert holders(other, "b") == {"b": frozenset()}


@pytest.mark.parametrize("deployment", ["memory"], indirect=True)
def test_a_key_without_rights_on_the_inbox_finds_references(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a"])

    def refused(*_: object) -> None:
        raise StoreUnavailableError

    backend.hooks["exists"] = refused
    assert found(store, "a", "x") == {"a"}
    assert "exists" not in backend.hooks


def test_a_content_that_one_encoder_lacks_is_not_found(open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["a"]), replace(write_of("lynx"), references=[reference("dino", "image", "b")])])
    assert found(store, "a", "b") == {"a"}
    assert found(store, "a", "b", encoders=("dino",)) == {"a", "b"}


def test_a_removed_reference_is_found_as_long_as_it_can_come_back(open_store: OpenStore) -> None:
    store = open_store(history=60.0)
    store.write([write_of("red panda", ["a", "b"]), write_of("lynx", ["c"])])
    store.remove_references("red panda", {content_hash("a")})
    store.remove("lynx")
    add(store, "owl", ["d"])
    vectors = store.stored_vectors()
    assert vectors.find(FINGERPRINTS, "image", [content_hash("a")]).keys() == {content_hash("a")}
    store.remove("owl")
    assert vectors.find(FINGERPRINTS, "image", [content_hash("d")]).keys() == {content_hash("d")}  # reads what is new
    assert found(store, *"abcd") == set("abcd")
    store.gc(grace=0)
    assert found(store, *"abcd") == {"b"}


def test_a_forgotten_image_is_not_found(open_store: OpenStore) -> None:
    store = open_store(history=60.0)
    add(store, "red panda", ["a", "b"])
    store.remove_references("red panda", {content_hash("b")})
    for content in "ab":
        store.forget(content_hash(content))
    assert found(store, "a", "b") == set()


def test_references_that_were_never_committed_are_not_found(open_store: OpenStore) -> None:
    """Those of a dropped store may be vectors of another encoder."""
    store = open_store(history=60.0)
    add(store, "red panda", ["a"])
    store.remove("red panda")
    add(store, "lynx", ["b"])
    for name in ("red panda", "lynx", "never seen"):
        stray = Category(name=name, version=1, rev=0, write_ids=("a write",), texts=(), references={})
        store._references.put([(stray, [reference(encoder, "image", f"of {name}") for encoder in FINGERPRINTS])])
    assert found(store, "a", "b", "of red panda", "of lynx", "of never seen") == {"a", "b"}


@pytest.mark.parametrize("deployment", ["memory"], indirect=True)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 3.0])
def test_a_vector_that_is_none_is_not_found(open_store: OpenStore, bad: float) -> None:
    """As an untrusted writer may leave it; another category has a good one."""
    store = open_store()
    dim = FINGERPRINTS["dino"].dim
    forged = Reference("dino", "image", content_hash("a"), "a", np.full(dim, bad, dtype=np.float32))
    store.write([replace(write_of("red panda"), references=[reference("clip", "image", "a"), forged])])
    assert found(store, "a") == set()
    add(store, "lynx", ["a"])
    assert found(store, "a") == {"a"}


def test_a_damaged_manifest_hides_its_category_alone(open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["a"]), write_of("lynx", ["b"])])
    manifest = store._catalog.state(["lynx"]).manifests["lynx"]
    store._catalog.put([Put(record_id("category", "lynx"), {**manifest, "writes": 7}, expected(manifest))])
    assert found(store, "a", "b") == {"a"}


@pytest.mark.parametrize("deployment", ["memory"], indirect=True)
def test_a_search_for_new_contents_takes_one_request(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a"])
    backend.calls.clear()
    assert found(store, *(f"new {i}" for i in range(200))) == set()
    assert backend.calls == {"scroll": 1, "exists": 1}  # of the first encoder, and of the inbox
    backend.calls.clear()
    assert found(store, "a") == {"a"}
    assert backend.calls == {"scroll": 2, "retrieve": 2}  # of each encoder, its references and the manifest
