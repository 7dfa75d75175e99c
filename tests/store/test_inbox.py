"""The inbox of a store, and foreign points in it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.store.material import FINGERPRINTS, content_hash, unit_vector, write_of
from tests.store.support import LASTING, Deployment
from zsvec.errors import StoreError
from zsvec.inputs.small import small_copy
from zsvec.store import InboxImage, Store
from zsvec.store.backends.base import Points, Where
from zsvec.store.collections.inbox import Removal

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share

OpenStore = Callable[..., Store]

NOW = datetime.now(UTC).replace(microsecond=0)


def vectors_of(content: str) -> dict[str, Any]:
    return {name: unit_vector(one.dim, f"{name} {content}") for name, one in FINGERPRINTS.items()}


def image(content: str, /, **changes: Any) -> InboxImage:
    given: dict[str, Any] = {
        "hash": content_hash(content),
        "source": f"{content}.jpg",
        "added": NOW,
        "width": 640,
        "height": 480,
        "vectors": vectors_of(content),
        "content": small_copy(Image.new("RGB", (32, 24), "red")),
    }
    return InboxImage(**{**given, **changes})


def by_hash(store: Store, *, vectors: bool = False) -> dict[str, InboxImage]:
    return {one.hash: one for one in store.inbox.read(vectors=vectors)}


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_images_are_read_back(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    assert store.inbox.read() == []
    store.inbox.put([image("a", why="uncertain"), image("b", content=None, why="all")])
    found = deployment.another(store).inbox.read(vectors=True)
    assert {one.hash for one in found} == {content_hash("a"), content_hash("b")}
    one = by_hash(store, vectors=True)[content_hash("a")]
    assert (one.source, one.added, one.width, one.height, one.why) == ("a.jpg", NOW, 640, 480, "uncertain")
    assert one.state == "waiting"
    assert one.vectors.keys() == FINGERPRINTS.keys()
    for name, vector in vectors_of("a").items():
        np.testing.assert_allclose(one.vectors[name], vector, atol=1e-6)
        assert one.vectors[name].dtype == np.float32
    assert by_hash(store)[content_hash("a")].vectors == {}
    assert [one.hash for one in store.inbox.read([content_hash("b"), content_hash("x")])] == [content_hash("b")]

    small = store.inbox.small(content_hash("a"))
    assert small is not None
    assert (small.hash, small.content, small.source) == (content_hash("a"), image("a").content, "a.jpg")
    assert store.inbox.small(content_hash("b")) is None


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_an_image_that_is_kept_again_takes_its_place(open_store: OpenStore) -> None:
    store = open_store()
    store.inbox.put([image("a"), image("b")])
    store.inbox.put([image("a", removals=(Removal("dismissed"),), content=None)])
    assert {one.hash: one.state for one in store.inbox.read()} == {
        content_hash("a"): "dismissed",
        content_hash("b"): "waiting",
    }
    assert store.inbox.small(content_hash("a")) is None
    store.inbox.delete([content_hash("a"), content_hash("x")])
    assert by_hash(store).keys() == {content_hash("b")}
    store.inbox.clear()
    assert store.inbox.read() == []
    store.inbox.put([image("c")])
    assert by_hash(store).keys() == {content_hash("c")}


def test_reading_makes_no_collection(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["a"])])
    store.inbox.read()
    store.inbox.small(content_hash("a"))
    store.inbox.delete([content_hash("a")])
    store.inbox.clear()
    assert not store._backend.exists(f"{deployment.namespace}__inbox")


def test_nothing_that_classifies_sees_it(open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["a"])])
    before = store.info()
    store.inbox.put([image("b")])
    after = store.info()
    assert [before[key] for key in ("categories", "references", "encoders")] == [
        after[key] for key in ("categories", "references", "encoders")
    ]
    assert store.holders({content_hash("a"), content_hash("b")}) == {content_hash("a"): {"red panda"}}


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_holders_are_the_categories_that_have_an_image_now(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["a", "b"], ["a"]), write_of("lynx", ["a"]), write_of("owl", ["c"])])
    wanted = {content_hash(one) for one in "abcx"}
    assert store.holders(wanted) == {
        content_hash("a"): {"red panda", "lynx"},
        content_hash("b"): {"red panda"},
        content_hash("c"): {"owl"},
    }
    store.remove("lynx")
    store.remove_references("red panda", {content_hash("b")})
    assert deployment.another(store).holders(wanted) == {content_hash("a"): {"red panda"}, content_hash("c"): {"owl"}}


# Ownership


@LASTING
def test_a_foreign_collection_is_refused(deployment: Deployment) -> None:
    name = f"{deployment.namespace}__inbox"
    deployment.make_foreign(name)
    before = deployment.content(name)
    store = Store(deployment.backend(), deployment.namespace)
    store.bind(FINGERPRINTS)
    writes: list[Callable[[], None]] = [lambda: store.inbox.put([image("a")]), store.inbox.create]
    for write in writes:
        with pytest.raises(StoreError, match=r"already has a collection .*__inbox.* that zsvec did not make"):
            write()
    assert store.inbox.read() == []
    store.close()
    assert deployment.content(name) == before


def test_images_of_a_store_that_was_dropped_are_not_shown(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.inbox.put([image("a"), image("b")])
    catalog = f"{deployment.namespace}__catalog"
    store._backend.remove(catalog)
    again = Store(store._backend, deployment.namespace)
    again.bind(FINGERPRINTS)
    assert again.inbox.read() == []
    again.inbox.put([image("b"), image("c")])
    assert by_hash(again).keys() == {content_hash("b"), content_hash("c")}
    assert again._backend.count(f"{deployment.namespace}__inbox", Where()) == 2


def test_images_of_a_dropped_store_with_other_encoders(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.inbox.put([image("a")])
    for collection in ("catalog", "clip", "dino"):
        store._backend.remove(f"{deployment.namespace}__{collection}")
    again = Store(store._backend, deployment.namespace)
    again.bind({"clip": FINGERPRINTS["dino"]})
    kept = image("b", vectors={"clip": unit_vector(8, "b")})
    again.inbox.put([kept])
    assert [one.hash for one in again.inbox.read(vectors=True)] == [kept.hash]


# Foreign points


@pytest.mark.parametrize("deployment", DEPLOYMENTS, indirect=True)
def test_removed_images_are_deleted_once_an_undo_no_longer_needs_them(open_store: OpenStore) -> None:
    store = open_store(history=0.2)
    store.write([write_of("cat", ["felix"])])
    store.inbox.put([image("labelled"), image("dismissed"), image("waiting")])
    store.remove_from_inbox([content_hash("labelled")], "cat")
    store.remove_from_inbox([content_hash("dismissed")])
    assert len(store.inbox.read(labelled=True)) == 3
    time.sleep(0.3)
    store._collector._due = 0.0
    store.write([write_of("dog", ["rex"])])
    left = {one.hash: one.state for one in store.inbox.read(labelled=True)}
    assert left == {content_hash("dismissed"): "dismissed", content_hash("waiting"): "waiting"}
    copies = [store.inbox.small(content_hash(name)) for name in ("dismissed", "waiting")]
    assert [copy is not None for copy in copies] == [False, True]


# Writers at the same time

EARLIER, DISMISSAL, LABEL = (str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ("earlier", "dismissal", "label"))

STEPS: dict[str, Callable[[Store, str], Any]] = {
    "dismiss": lambda store, digest: store.inbox.remove([digest], Removal("dismissed", DISMISSAL)),
    "dismiss for good": lambda store, digest: store.inbox.remove([digest], Removal("dismissed")),
    "label": lambda store, digest: store.inbox.remove([digest], Removal("labelled", LABEL)),
    "undo": lambda store, digest: store.inbox.switch(EARLIER, undone=True),
    "settle": lambda store, digest: store.inbox.settle(store.inbox.read(labelled=True)),
    "drop copies": lambda store, digest: store.inbox.drop_copies(),
    "ask": lambda store, digest: store.inbox.ask(digest),
    "forget": lambda store, digest: store.inbox.forget(digest),
}
"""Writes of the inbox, by name. The image was dismissed earlier, and the record of that change is gone."""


@pytest.mark.parametrize("deployment", ["edge", "memory", "local", "server"], indirect=True)
def test_two_writers_at_once_leave_what_they_leave_one_after_the_other(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = deployment.backend()
    monkeypatch.setattr(backend.inner, "rewrite", lambda _: None)  # slow, and changes no point
    store = deployment.open(backend)
    other = deployment.another(store)

    def left(first: str, then: str, at: int | None = None) -> tuple[Any, int]:
        """The image after two writes, the second one before call `at` of the first, and the calls of the first."""
        store.inbox.put([image("a", why="uncertain", removals=(Removal("dismissed", EARLIER),))])
        begun = backend.calls.total()
        if at is not None:
            backend.hooks[begun + at] = lambda *_, **__: STEPS[then](other, content_hash("a"))
        STEPS[first](store, content_hash("a"))
        calls = backend.calls.total() - begun
        if at is None:
            STEPS[then](other, content_hash("a"))
        found, small = store.inbox.read(labelled=True, vectors=True), store.inbox.small(content_hash("a"))
        store.inbox.delete([content_hash("a")])
        return [(one.state, set(one.removals), one.why, small is None) for one in found], calls

    for first, then in product(STEPS, repeat=2):
        before, calls = left(first, then)
        orders = [before, left(then, first)[0]]
        for at in range(calls):
            assert left(first, then, at)[0] in orders, (first, then, at)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, indirect=True)
def test_dropping_images_deletes_the_copies_of_images_that_wait(open_store: OpenStore) -> None:
    store = open_store(history=60)
    store.write([write_of("cat", ["felix"])])
    store.inbox.put([image("labelled"), image("waiting")])
    store.remove_from_inbox([content_hash("labelled")], "cat")
    store.drop_images()
    assert len(store.inbox.read(labelled=True)) == 2
    assert [store.inbox.small(content_hash(name)) for name in ("labelled", "waiting")] == [None, None]


def test_a_damaged_image_is_none(open_store: OpenStore) -> None:
    store = open_store()
    damages: list[dict[str, Any]] = [
        *({"hash": value} for value in (7, None)),
        *({"added": value} for value in ("yesterday", "2026-01-01T00:00:00", 10**15, ["2026-01-01T00:00:00+00:00"])),
    ]
    store.inbox.put([image("a"), *(image(str(damage)) for damage in damages)])
    for damage in damages:
        _overwrite(store, content_hash(str(damage)), damage)
    assert {one.hash for one in store.inbox.read(vectors=True)} == {content_hash("a")}


def test_damage_that_an_image_survives(open_store: OpenStore) -> None:
    store = open_store()
    damages: list[dict[str, Any]] = [
        *({"small": value} for value in (None, "no base64 at all!", "aGVsbG8=")),
        {"width": "x", "height": [1]},
        {"source": 3},
        {"why": {"x": 1}},
        *({"removals": value} for value in (True, "yes", [1, None], {EARLIER: 1})),
        *({"removals": {EARLIER: {"how": how}}} for how in (None, 7, ["labelled"], "erased")),
        *({"removals": {record: {"how": "labelled"}}} for record in ("x", "{" + "0" * 32 + "}")),
    ]
    for damage in damages:
        store.inbox.put([image("a")])
        _overwrite(store, content_hash("a"), damage)
        [one] = store.inbox.read(vectors=True)
        assert isinstance(one.source, str)
        assert isinstance(one.width, int)
        assert one.why == "asked"
        assert one.state == "waiting"
        if "small" in damage:
            assert store.inbox.small(one.hash) is None


@pytest.mark.parametrize("added", [NOW + timedelta(days=10_000), NOW - timedelta(days=10_000)])
def test_a_time_that_cannot_be(open_store: OpenStore, added: datetime) -> None:
    """By a clock that is ahead, an image would stay for ever."""
    store = open_store()
    store.inbox.put([image("a", added=added)])
    [one] = store.inbox.read()
    assert one.added <= datetime.now(UTC)


def _overwrite(store: Store, digest: str, damage: dict[str, Any]) -> None:
    name = store.inbox.name
    for page in store._backend.scroll(name, Where(match={"hash": digest}), vectors=True):
        rows = [dict(row) for row in page.rows]
        store._backend.upsert(name, Points(page.ids, rows, [{**payload, **damage} for payload in page.payloads]))
