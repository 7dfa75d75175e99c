"""A forgotten image is in no category, copy, change, write of another process, and in no file."""

from __future__ import annotations

import itertools
import random
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.store.material import FINGERPRINTS, add, content_hash, jpeg, pictured, sources, unit_vector
from tests.store.support import Crash, Deployment, EdgeDeployment, Hooked
from zsvec.errors import ConflictError, InvalidInputError, StoreUnavailableError, VersionConflictError
from zsvec.store import InboxImage, Move, Store
from zsvec.store.backends.base import Put, Where
from zsvec.store.backends.memory import MemoryBackend

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share

DAY = 86_400.0
GONE = content_hash("gone")
MARK = GONE[:16]  # in a manifest, once the image was moved or removed


@pytest.fixture
def store(deployment: Deployment) -> Store:
    return deployment.open(history=DAY)


def mentions(store: Store, what: str) -> list[str]:
    """Collections of the store with a payload in which this is said, committed or not."""
    names = [*FINGERPRINTS, "images", "catalog"]
    return [
        name
        for name in names
        for page in store._backend.scroll(store.collection(name), Where())
        for payload in page.payloads
        if what in str(payload)
    ]


def traces(store: Store) -> list[str]:
    """As `mentions`, with the inbox."""
    return mentions(store, MARK) + [one.hash for one in store.inbox.read(labelled=True)]


def filled(store: Store) -> None:
    """Categories that have had the image in all ways: as one of several, alone, moved, replaced and removed."""
    store.write([pictured("cat", ["gone", "tom"], ["meows"]), pictured("dog", ["rex"])])
    store.keep("cat", [GONE], "label")
    store.write([pictured("alone", ["gone"])])
    store.keep("alone", [GONE], "outlier")
    store.write([pictured("replaced", ["gone", "other"])])
    store.write([pictured("replaced", ["new"], replace=True)])
    store.write([pictured("removed", ["gone", "one more"])])
    store.remove("removed")
    store.write([pictured("from", ["gone", "stays"])])
    store.move(Move(source="from", target="to", hashes=[GONE]))


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_forgotten_image_is_in_no_category_and_no_collection(store: Store) -> None:
    filled(store)
    assert {"clip", "dino", "images"} <= set(mentions(store, GONE))
    assert store.forget(GONE).categories == ("alone", "cat", "to")
    assert mentions(store, MARK) == []
    assert store.image(GONE) is None
    assert store.image(content_hash("tom")) is not None
    assert [category.name for category in store.categories()] == ["cat", "dog", "from", "replaced"]
    assert sources(store, "cat") == {"clip:image": ["tom"], "clip:text": ["meows"], "dino:image": ["tom"]}
    assert store.incomplete() == []
    assert store.forget(GONE).categories == ()


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_undo_brings_back_all_but_the_forgotten_image(store: Store) -> None:
    filled(store)
    store.forget(GONE)
    for change in store.changes():
        if change.final:
            continue
        store.undo(change=change.id)
        assert mentions(store, MARK) == []
        assert store.incomplete() == []
    assert store.categories() == []
    filled(store)  # the image may be added again
    store.forget(GONE)
    store.undo("removed")
    assert sources(store, "removed") == {"clip:image": ["one more"], "dino:image": ["one more"]}
    store.undo("replaced")
    assert sources(store, "replaced") == {"clip:image": ["other"], "dino:image": ["other"]}


def test_forgetting_cannot_be_undone(store: Store) -> None:
    store.write([pictured("cat", ["gone", "tom"])])
    store.forget(GONE)
    (forgotten,) = [change for change in store.changes() if change.what == "forget"]
    assert forgotten.categories == ("cat",)
    assert forgotten.final
    for change in (forgotten.id, None):
        with pytest.raises(InvalidInputError, match=forgotten.id[:8]):
            store.undo(change=change)


def test_a_forget_that_loses_every_attempt_is_no_success(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write([pictured("cat", ["gone", "tom"])])
    store.write([pictured("cat", ["new"], replace=True)])
    put = store._catalog.put

    def lost(puts: Sequence[Put]) -> None:
        """Others always replace the records of changes first."""
        put([replace(one, expected={"version": 0}) if "forgotten" in one.payload else one for one in puts])

    with monkeypatch.context() as patch:
        patch.setattr(store._catalog, "put", lost)
        with pytest.raises(ConflictError):
            store.forget(GONE)
    store.forget(GONE)
    assert mentions(store, MARK) == []
    store.undo(change=next(change.id for change in store.changes() if not change.final))
    assert sources(store, "cat") == {"clip:image": ["tom"], "dino:image": ["tom"]}


def test_a_text_of_the_same_hash_stays(store: Store) -> None:
    add(store, "cat", images=["tom"], texts=["gone"])
    assert store.forget(GONE).categories == ()
    assert sources(store, "cat")["clip:text"] == ["gone"]


def test_two_images_of_one_write_are_forgotten_one_after_the_other(store: Store) -> None:
    store.write([pictured("cat", ["gone", "gone too", "tom"])])
    store.write([pictured("cat", ["new"], replace=True)])
    store.forget(GONE)
    store.forget(content_hash("gone too"))
    store.undo(change=next(change.id for change in store.changes() if not change.final))
    assert sources(store, "cat") == {"clip:image": ["tom"], "dino:image": ["tom"]}


def test_a_writer_at_work_loses_and_begins_anew(deployment: Deployment) -> None:
    """The writer has written the image again, and is about to commit."""
    if not deployment.shared:
        pytest.skip("no other process can write")
    store, backend = deployment.open(history=DAY), deployment.backend()
    store.write([pictured("cat", ["gone", "tom", "other"])])
    writer = deployment.open(backend, history=DAY)

    def forget(*_: object) -> None:
        store.forget(GONE)

    backend.hooks["commit"] = forget
    writer.remove_references("cat", [content_hash("other")])
    assert sources(store, "cat") == {"clip:image": ["tom"], "dino:image": ["tom"]}
    assert mentions(store, MARK) == []
    assert store.incomplete() == []


def test_a_category_that_loses_its_other_references_meanwhile_is_removed(deployment: Deployment) -> None:
    if not deployment.shared:
        pytest.skip("no other process can write")
    backend = deployment.backend()
    store, other = deployment.open(backend, history=DAY), deployment.open(history=DAY)
    store.write([pictured("cat", ["gone", "tom"])])

    def remove_tom(*_: object) -> None:
        other._writer.remove_references("cat", [content_hash("tom")])  # a write that began before the erasure

    backend.hooks["commit"] = remove_tom
    assert store.forget(GONE).categories == ("cat",)
    assert store.categories() == []
    assert mentions(store, MARK) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_forgets_at_the_second_time(deployment: Deployment, seed: int) -> None:
    backend, chance = deployment.backend(), random.Random(seed)
    store = deployment.open(backend, history=DAY)
    for _ in range(8):
        filled(store)
        dying = Hooked(backend.inner)
        dying.dies_at = chance.randint(0, 60)
        with pytest.raises(Crash):
            while True:
                Store(dying, deployment.namespace, history=DAY).forget(GONE)
        store = deployment.open(backend, history=DAY)
        assert store.incomplete() == []
        store.forget(GONE)
        assert mentions(store, MARK) == []
        assert store.incomplete() == []
        store.undo("cat", next(one.id for one in store.changes() if not one.final and "cat" in one.categories))
        store.gc(0)


@pytest.mark.parametrize("deployment", ["edge", "memory", "local"], indirect=True)
def test_an_erasure_that_is_killed_is_finished_by_the_next_write(deployment: Deployment) -> None:
    """After every call."""
    backend, finished = deployment.backend(), 0
    for survived in itertools.count():
        store = Store(backend, f"{deployment.namespace}-{survived}", history=DAY)
        store.bind(FINGERPRINTS)
        store.write([pictured("cat", ["gone", "tom"]), pictured("dog", ["rex"])])
        store.move(Move(source="cat", target="dog", hashes=[GONE]))
        store.inbox.put([waits("gone")])
        before = traces(store)
        dying = Hooked(backend.inner)
        dying.dies_at, died = survived, True
        try:
            Store(dying, store.namespace, history=DAY).forget(GONE)
            died = False
        except Crash:
            pass
        again = Store(backend, store.namespace, history=DAY)
        again.write([pictured("other", ["another"])])
        left = traces(again)
        assert left in ([[], before] if died else [[]]), survived
        assert again.incomplete() == []
        finished += died and not left
        assert not again._catalog.scroll(Where(match={"kind": "erasure"}))
        for change in again.changes():
            if not left and not change.final:
                again.undo(change=change.id)
                assert mentions(again, MARK) == []
        deployment.drop(store)
        if not died:
            break
    assert finished > 10


def test_an_erasure_that_fails_at_first_is_finished_by_a_later_write_of_the_process() -> None:
    backend = MemoryBackend()
    store = Store(backend, "zsvec", history=DAY)
    store.bind(FINGERPRINTS)
    store.write([pictured("cat", ["gone", "tom"])])
    dying = Hooked(backend)
    dying.dies_at = 6
    with pytest.raises(Crash):
        Store(dying, "zsvec", history=DAY).forget(GONE)
    assert store._catalog.scroll(Where(match={"kind": "erasure"}))

    def fails(*_: object, **__: object) -> None:
        raise StoreUnavailableError("the disk is full")

    full = Hooked(backend)
    writer = Store(full, "zsvec", history=DAY)
    full.hooks["put"] = fails
    with suppress(StoreUnavailableError):
        writer.write([pictured("other", ["another"])])
    assert traces(store)
    writer.write([pictured("other", ["one more"])])
    assert traces(store) == []


@pytest.mark.parametrize("expected", ["cat", "cow", "dog"])
def test_a_forget_that_finds_another_version_than_expected_changes_nothing(expected: str) -> None:
    store = Store(MemoryBackend(), "zsvec", history=DAY)
    store.bind(FINGERPRINTS)
    names = ("cat", "cow", "dog")
    for name in names:
        store.write([pictured(name, ["gone", name])])
    with pytest.raises(VersionConflictError), store.expecting(expected, {1}):
        late = Store(store._backend, "zsvec", history=DAY)
        Context().run(late.write, [pictured(expected, ["late"])])
        store.forget(GONE)
    assert store.holders({GONE}) == {GONE: {*names}}
    assert not store._catalog.scroll(Where(match={"kind": "erasure"}))


@pytest.mark.parametrize("first", ["forget", "undo"])
def test_an_undo_beside_an_erasure_never_brings_the_image_back(deployment: Deployment, first: str) -> None:
    """Whichever call of the one the other comes before."""
    if not deployment.shared:
        pytest.skip("no other process can write")
    backend, beside = deployment.backend(), 0
    for position in itertools.count():
        store = Store(backend, f"{deployment.namespace}-{position}", history=DAY)
        store.bind(FINGERPRINTS)
        store.write([pictured("cat", ["gone", "tom"]), pictured("dog", ["rex"])])
        store.write([pictured("cat", ["new"], replace=True)])
        replaced = store.changes()[0].id
        other = Store(deployment.backend(), store.namespace, history=DAY)
        acts: dict[str, Callable[[Store], object]] = {
            "forget": partial(Store.forget, content_hash=GONE),
            "undo": partial(Store.undo, change=replaced),
        }
        act = partial(Context().run, acts["undo" if first == "forget" else "forget"], other)  # no part of the first
        backend.hooks[backend.calls.total() + position] = lambda *_, act=act, **__: act()
        acts[first](store)
        came = not any(isinstance(hook, int) for hook in backend.hooks)
        assert mentions(store, MARK) == [], position
        if came or first == "undo":
            assert sources(store, "cat")["clip:image"] == ["tom"], position
        assert store.incomplete() == []
        deployment.drop(store)
        if not came:
            break
        beside += 1
    assert beside > 10


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_forgotten_image_is_in_no_inbox(store: Store) -> None:
    waiting = [waits("gone"), waits("waits")]
    store.inbox.put(waiting)
    store.inbox.put([waits("dismissed"), waits("labelled")])
    store.remove_from_inbox([content_hash("dismissed")])
    store.remove_from_inbox([content_hash("labelled")], "cat")
    for content in ("gone", "dismissed", "labelled"):
        assert store.forget(content_hash(content)).points == 1
        assert store.changes()[0].final
        assert mentions(store, content_hash(content)) == []
    assert [image.hash for image in store.inbox.read(labelled=True)] == [content_hash("waits")]
    assert store.inbox.small(GONE) is None


def waits(content: str) -> InboxImage:
    vectors = {name: unit_vector(f.dim, f"{name} image {content}") for name, f in FINGERPRINTS.items()}
    added = datetime.now(UTC)
    return InboxImage(hash=content_hash(content), source=content, added=added, vectors=vectors, content=jpeg(content))


def test_the_bytes_of_a_forgotten_image_are_in_no_file(tmp_path: Path) -> None:
    deployment = EdgeDeployment(tmp_path / "store")
    store = deployment.open(history=DAY)
    filled(store)
    store.inbox.put([waits("gone"), waits("waits")])
    store.close()

    def files_with(what: bytes) -> list[str]:
        return [path.name for path in (tmp_path / "store").rglob("*") if path.is_file() and what in path.read_bytes()]

    traces = [
        GONE.encode(),
        MARK.encode(),
        unit_vector(16, "clip image gone").tobytes(),
        unit_vector(8, "dino image gone").tobytes(),
    ]
    traces.append(b64encode(jpeg("gone"))[40:-40])
    assert all(files_with(trace) for trace in traces)
    store = deployment.open(history=DAY)
    store.forget(GONE)
    assert not any(files_with(trace) for trace in traces)
    store.close()
    assert not any(files_with(trace) for trace in traces)
    assert files_with(content_hash("tom").encode())
    store = deployment.open(history=DAY)
    assert store.incomplete() == []
    (image,) = store.inbox.read(vectors=True)
    assert image.vectors["clip"].tolist() == unit_vector(16, "clip image waits").tolist()
    deployment.close()
