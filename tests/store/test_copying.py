"""Copies of whole stores: content, repetition, interruption, damage, and records of an untrusted source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.store.material import ADDED, FINGERPRINTS, add, content_hash, jpeg, pictured, unit_vector, vectors, write_of
from tests.store.support import Crash, Deployment, EdgeDeployment, Hooked, fast_folder
from zsvec.errors import EncoderMismatchError, StoreError
from zsvec.store import Cursor, InboxImage, Move, Store
from zsvec.store.backends.base import Points, Where
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog.marks import MARKS_KEPT
from zsvec.store.collections.inbox import Removal
from zsvec.store.names import point_id, record_id
from zsvec.types import CALIBRATION_FORMAT, Category, Copied, Fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

CATALOG, IMAGES, DINO = (f"zsvec__{name}" for name in ("catalog", "images", "dino"))
READS = {"check", "exists", "retrieve", "scroll", "count", "newest", "within"}


class Shared(MemoryBackend):
    """As a server: other processes may write."""

    exclusive = False


class Measuring(MemoryBackend):
    """Notes the largest number of points in one request."""

    largest = 0

    def upsert(self, collection: str, points: Points) -> None:
        self.largest = max(self.largest, len(points.ids))
        super().upsert(collection, points)


def opened(backend: Any = None, **fingerprints: Fingerprint) -> Store:
    store = Store(backend or MemoryBackend(), "zsvec")
    store.bind({**FINGERPRINTS, **fingerprints}, profile="offline")
    return store


def new_target() -> Store:
    return Store(MemoryBackend(), "zsvec")


def filled(store: Store) -> Store:
    """Categories with all that there can be, a calibration, and images that wait."""
    writes = [
        pictured("cat", ["tom", "felix"], ["meows", "purrs"], metadata={"legs": 4, "deep": {"a": [1.5, None]}}),
        pictured("dog", ["rex"], ["barks"]),
        write_of("text only", texts=["words"]),
        write_of("without copies", ["x", "y"]),
        pictured("old", ["z"]),
    ]
    detailed = [
        replace(one, prompt="a photo of it", group="burst", added=ADDED, by="Ann") for one in writes[0].references
    ]
    store.write([replace(writes[0], references=detailed), *writes[1:]])
    store.write([pictured("cat", ["late"])])  # a second write
    store.move(Move(source="cat", target="dog", hashes=[content_hash("felix")]))
    store.remove("old")
    store.keep("dog", [content_hash("rex")], "outliers")
    waiting = InboxImage(
        hash=content_hash("waits"),
        source="waits.png",
        added=ADDED,
        width=4,
        height=3,
        why="uncertain",
        vectors={name: unit_vector(one.dim, "waits") for name, one in FINGERPRINTS.items()},
        content=jpeg("waits"),
    )
    store.inbox.put(
        [waiting, replace(waiting, hash=content_hash("no"), removals=(Removal("dismissed"),), content=None)]
    )
    calibrate(store)
    return store


def calibrate(store: Store, **values: Any) -> None:
    revision = max(category.rev for category in store.look(Cursor(), {}).categories)
    store.keep_calibration({"format": CALIBRATION_FORMAT, "revision": revision, "scale": 1.25, **values})


def content(store: Store) -> dict[str, Any]:
    """All of a store that a copy must have, without what a commit chooses."""
    found: dict[str, Any] = {}
    for category in store.look(Cursor(), {}).categories:
        stored = store.stored(category.name)
        marks = sorted(category.withdrawn), sorted(category.kept), category.retired
        described = sorted(
            (*one.key, one.source, one.prompt or "", one.group or "", str(one.added), one.by or "") for one in stored
        )
        found[category.name] = (category.texts, category.metadata, category.references, marks, described)
    hashes = {one.hash for category in store.categories() for one in store.stored(category.name)}
    small = {digest: store.image(digest) for digest in sorted(hashes)}
    inbox = sorted(
        (image.hash, image.source, image.added, image.why, image.state, store.inbox.small(image.hash))
        for image in store.inbox.read()
    )
    calibration = {**(store.calibration() or {}), "revision": 0}
    return {"categories": found, "small": small, "inbox": inbox, "calibration": calibration, "profile": store.profile()}


def assert_same(source: Store, target: Store) -> None:
    assert content(target) == content(source)
    assert target.encoders() == source.encoders()
    assert target.incomplete() == []
    assert target.info()["calibration"] == source.info()["calibration"]
    for category in source.categories():
        there, here = vectors(target.stored(category.name)), vectors(source.stored(category.name))
        assert there.keys() == here.keys()
        for key, vector in here.items():
            np.testing.assert_allclose(there[key], vector, atol=1e-6)


def revisions(store: Store) -> dict[str, int]:
    """The last change of each category. A commit that is published again may get another version."""
    return {category.name: category.rev for category in store.look(Cursor(), {}).categories}


@pytest.fixture
def source() -> Store:
    return filled(opened())


# Content


def test_a_copy_has_all_but_the_history(deployment: Deployment, source: Store) -> None:
    target = Store(deployment.backend(), deployment.namespace)
    committed: list[Category] = []
    copied = target.copy_from(source, on_commit=committed.append)
    assert_same(source, target)
    assert copied.complete
    assert copied.calibration
    assert [category.name for category in copied.categories] == ["cat", "dog", "text only", "without copies"]
    assert list(copied.categories) == committed == target.categories()
    assert (copied.unchanged, copied.different, copied.damaged, copied.changed) == ((), (), {}, ())
    assert copied.inbox == 2
    numbers = sum(vector.size for name in revisions(source) for vector in vectors(source.stored(name)).values())
    assert copied.size == 4 * numbers + sum(len(jpeg(name)) for name in ("tom", "felix", "late", "rex"))
    assert not target.gc(grace=0)
    assert target.changes() == []


def test_a_target_without_small_copies_gets_none(deployment: Deployment, source: Store) -> None:
    target = Store(deployment.backend(), deployment.namespace)
    target.bind(FINGERPRINTS, images="none")
    assert target.copy_from(source).inbox == 2
    waiting = content_hash("waits")
    assert source.inbox.small(waiting) is not None
    assert target.inbox.small(waiting) is None
    assert [image.state for image in target.inbox.read([waiting])] == ["waiting"]
    assert all(target.image(one.hash) is None for one in source.stored("cat"))


def test_a_copy_back_has_all(deployment: Deployment, source: Store) -> None:
    middle = Store(deployment.backend(), deployment.namespace)
    middle.copy_from(source)
    other = Store(MemoryBackend(), "elsewhere")
    assert other.copy_from(middle).complete
    assert_same(middle, other)


def test_a_second_copy_changes_nothing(deployment: Deployment, source: Store) -> None:
    target = Store(deployment.backend(), deployment.namespace)
    first = target.copy_from(source)
    before, calibration = revisions(target), target.calibration()
    for replaces in (False, True):
        copied = target.copy_from(source, replaces=replaces)
        assert copied.complete
        assert copied.categories == ()
        assert copied.unchanged == tuple(category.name for category in first.categories)
        assert (copied.inbox, copied.size, copied.calibration) == (0, 0, True)
        assert (revisions(target), target.calibration()) == (before, calibration)


def test_the_source_is_only_read() -> None:
    backend = Hooked(MemoryBackend())
    source = filled(opened(backend))
    backend.calls.clear()
    new_target().copy_from(source)
    assert set(backend.calls) <= READS


def test_a_repeated_import_leaves_out_the_same_references_in_the_copy(source: Store) -> None:
    target = new_target()
    target.copy_from(source)
    for name, digest in {"cat": content_hash("felix"), "old": content_hash("anything")}.items():
        is_withdrawn = target.withdrawn(name)
        assert is_withdrawn is not None
        assert is_withdrawn(digest)
    add(source, "cat", ["new"])
    target.copy_from(source, replaces=True)
    source.remove_references("cat", [content_hash("new")])  # the content is as before, but for the mark
    target = new_target()
    target.copy_from(source)
    assert content(target) == content(source)


def test_marks_alone_are_copied(source: Store) -> None:
    target = new_target()
    target.copy_from(source)
    add(source, "dog", ["new"])
    source.remove_references("dog", [content_hash("new")])
    source.keep("cat", [content_hash("tom")], "outliers")
    copied = target.copy_from(source)
    assert (copied.categories, copied.complete) == ((), True)
    is_withdrawn = target.withdrawn("dog")
    assert is_withdrawn is not None
    assert is_withdrawn(content_hash("new"))
    assert target.kept()("outliers", "cat", content_hash("tom"))
    # The references of the source have changed, and changed back. Those of the target have not changed.
    assert (source.info()["calibration"], target.info()["calibration"]) == ("stale", "current")


def test_the_target_keeps_images_as_the_source_does() -> None:
    source = filled(opened())
    source.drop_images()
    target = new_target()
    target.copy_from(source)
    assert not target.keeps_images()
    bare = new_target()
    bare.bind(FINGERPRINTS, images="none")
    bare.copy_from(filled(opened()))
    assert not bare.keeps_images()
    chosen = new_target()
    chosen.copy_from(filled(opened()), images="none")
    assert not chosen.keeps_images()


def test_a_large_category_is_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.collections.images._AT_ONCE", 7)
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("zsvec.store.backends.edge.backend._PAGE", 10)
        deployment = EdgeDeployment(folder / "store")
        source = deployment.open()
        source.write([pictured("many", map(str, range(45))), *(pictured(f"few {i}", [str(i)]) for i in range(5))])
        backend = Measuring()
        target = Store(backend, "zsvec")
        assert target.copy_from(source).complete
        assert backend.largest == 10
        assert_same(source, target)
        deployment.close()


# A target that has categories


def test_a_category_that_differs_stays_unless_replaced(source: Store) -> None:
    target = new_target()
    add(opened_as(target), "dog", ["another"])
    add(target, "own", ["mine"])
    before = revisions(target)
    copied = target.copy_from(source)
    assert (copied.different, copied.only_target) == (("dog",), ("own",))
    assert not copied.complete
    assert [category.name for category in copied.categories] == ["cat", "text only", "without copies"]
    assert revisions(target).items() >= before.items()
    copied = target.copy_from(source, replaces=True)
    assert copied.complete
    assert [category.name for category in copied.categories] == ["dog"]
    theirs, ours = content(target)["categories"], content(source)["categories"]
    assert theirs == {**ours, "own": theirs["own"]}
    assert target.category("own").rev == before["own"]
    assert copied.calibration is False
    assert target.incomplete() == []


def opened_as(store: Store) -> Store:
    store.bind(FINGERPRINTS)
    return store


def test_a_replaced_category_can_be_restored(source: Store) -> None:
    target = Store(MemoryBackend(), "zsvec", history=60.0)
    add(opened_as(target), "dog", ["another"])
    before = vectors(target.stored("dog"))
    target.copy_from(source, replaces=True)
    assert target.changes()[0].what == "copy"
    target.undo()
    assert vectors(target.stored("dog")).keys() == before.keys()
    assert [category.name for category in target.categories()] == ["dog"]


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": ["other words"]},
        {"metadata": {"a": 1}},
        {"images": ["one", "more"]},
        {"images": []},
    ],
    ids=str,
)
def test_any_difference_counts(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"images": ["one"], "texts": ["words"], "metadata": {"a": 0}}
    source, target = opened(), opened()
    source.write([write_of("a", **given)])
    target.write([write_of("a", **{**given, **changes})])
    assert target.copy_from(source).different == ("a",)


def test_a_different_source_of_an_image_counts() -> None:
    source, target = opened(), opened()
    write = write_of("a", ["one"])
    source.write([write])
    target.write([replace(write, references=[replace(one, source="elsewhere") for one in write.references])])
    assert target.copy_from(source).different == ("a",)


def test_a_category_that_was_removed_from_one_of_both(source: Store) -> None:
    target = opened()
    add(target, "old", ["again"])  # removed from the source
    add(target, "cat", ["tom"])
    target.remove("cat")
    copied = target.copy_from(source)
    assert copied.complete
    assert [category.name for category in target.categories()] == ["cat", "dog", "old", "text only", "without copies"]
    assert target.category("old").images == 1


def test_other_encoders_are_refused_and_both_are_named(source: Store) -> None:
    other = Fingerprint(model="other/clip", revision="9", dim=16, preprocessing="resize 224")
    with pytest.raises(EncoderMismatchError, match=r"(?s)test/clip.*other/clip"):
        opened(clip=other).copy_from(source)
    with pytest.raises(EncoderMismatchError, match="another"):
        opened(another=other).copy_from(source)


def test_a_source_that_is_no_store() -> None:
    target = new_target()
    with pytest.raises(StoreError, match="there is no store"):
        target.copy_from(new_target())
    assert target.encoders() == {}


def test_the_calibration_of_a_target_with_other_content_stays(source: Store) -> None:
    target = opened()
    add(target, "own", ["mine"])
    calibrate(target, scale=7.0)
    assert target.copy_from(source).calibration is False
    assert (target.calibration() or {})["scale"] == 7.0
    assert target.info()["calibration"] == "stale"


def test_a_current_calibration_of_the_same_content_is_replaced_only_if_asked(source: Store) -> None:
    target = new_target()
    target.copy_from(source)
    calibrate(target, scale=7.0)
    assert target.copy_from(source).calibration is False
    assert (target.calibration() or {})["scale"] == 7.0
    assert target.copy_from(source, replaces=True).calibration
    assert_same(source, target)


def test_without_a_calibration_there_is_none_to_copy() -> None:
    source = opened()
    add(source, "a", ["b"])
    assert new_target().copy_from(source).calibration is None


# Interruptions and other writers


@pytest.mark.parametrize("shared", [False, True], ids=["embedded", "shared"])
def test_a_copy_goes_on_after_a_kill_at_any_call(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.copying._AT_ONCE", 4)
    source = filled(opened())
    kind = Shared if shared else MemoryBackend
    counting = Hooked(kind())
    Store(counting, "zsvec").copy_from(source)
    whole = content(source)["categories"]
    for dies_at in random.Random(1).sample(range(counting.calls.total() - 5), 25):
        inner = kind()
        backend = Hooked(inner)
        backend.dies_at = dies_at
        with pytest.raises(Crash):
            Store(backend, "zsvec").copy_from(source)
        target = Store(inner, "zsvec")
        for category in target.categories():
            assert content(target)["categories"][category.name] == whole[category.name]
        assert target.copy_from(source).complete
        assert_same(source, target)
        target.gc(grace=0)
        assert not target.gc(grace=0)
        assert_same(source, target)


def test_another_writer_of_the_target_wins(source: Store) -> None:
    inner = Shared()
    backend = Hooked(inner)
    target = Store(backend, "zsvec")
    opened_as(target)
    backend.hooks["commit"] = lambda *_: add(Store(inner, "zsvec"), "dog", ["theirs"])
    copied = target.copy_from(source)
    assert copied.different == ("dog",)
    assert [one.source for one in target.stored("dog")] == ["theirs", "theirs"]
    assert target.incomplete() == []


@pytest.mark.parametrize("replaced", [False, True])
def test_changes_of_the_source_during_the_copy_are_named(replaced: bool) -> None:
    inner = Shared()
    other = filled(opened(inner))
    backend = Hooked(inner)

    def change(*_: Any, **__: Any) -> None:
        add(other, "dog", ["new"], replace=replaced)
        other.gc(grace=0)

    target = new_target()
    store = Store(backend, "zsvec")
    target.copy_from(store, track=lambda categories: _then(categories, change))
    copied = new_target().copy_from(store, track=lambda categories: _then(categories, lambda: add(other, "cat", ["n"])))
    assert copied.changed == ("cat",)
    assert copied.damaged == {}
    assert not copied.complete
    assert not copied.calibration
    target.copy_from(store, replaces=True)
    assert content(target)["categories"] == content(store)["categories"]


def _then(categories: Sequence[Category], act: Callable[[], object]) -> Iterator[Category]:
    act()
    yield from categories


# Damage and untrusted records


def test_a_damaged_category_is_named_and_the_others_are_copied(deployment: Deployment) -> None:
    source = filled(deployment.open())
    lost = point_id("dino", "dog", "image", source.category("dog").write_ids[0], content_hash("rex"))
    source._backend.drop(f"{deployment.namespace}__dino", [lost])
    target = new_target()
    copied = target.copy_from(source)
    assert list(copied.damaged) == ["dog"]
    assert not copied.complete
    assert copied.calibration is False
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]
    assert not target.gc(grace=0)
    assert target.incomplete() == []


def altered(store: Store, collection: str, place: str, /, **changes: Any) -> None:
    """Changes the payload of a point past the store."""
    points = store._backend._collections[collection]  # type: ignore[attr-defined]
    vector, payload = points[place]
    points[place] = (changes.pop("vector", vector), {**payload, **changes})


def place_of_rex(source: Store) -> str:
    return next(
        identifier
        for page in source._backend.scroll(DINO, Where())
        for identifier, payload in zip(page.ids, page.payloads, strict=True)
        if payload["source"] == "rex" and payload["gen"] in source.category("dog").write_ids
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "x" * (2**20 + 1)},
        {"more": "x" * (2**20 + 1)},
        {"hash": "../../etc/passwd"},
        {"hash": ""},
        {"hash": "A" * 64},
        {"hash": 5},
        {"modality": "sound"},
        {"modality": "text"},
        {"source": None},
        {"gen": []},
        {"vector": np.full(8, np.nan, np.float32)},
        {"vector": np.full(8, np.inf, np.float32)},
        {"vector": np.zeros(8, np.float32)},
    ],
    ids=lambda changes: str(changes)[:20],
)
def test_an_unusable_reference_of_an_untrusted_source_stops_only_its_category(
    source: Store, changes: dict[str, Any]
) -> None:
    altered(source, DINO, place_of_rex(source), **changes)
    target = new_target()
    copied = target.copy_from(source)
    assert list(copied.damaged) == ["dog"]
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]
    assert target.incomplete() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": 5},
        {"added": "yesterday"},
        {"by": ["x"]},
        {"category": "../cat"},
        {"unknown": {"deep": [1]}},
        {"category": "x" * 10_000},
    ],
    ids=lambda changes: str(changes)[:20],
)
def test_odd_fields_do_not_reach_the_copy(source: Store, changes: dict[str, Any]) -> None:
    altered(source, DINO, place_of_rex(source), **changes)
    target = new_target()
    assert target.copy_from(source).complete
    [payload] = [p for page in target._backend.scroll(DINO, Where()) for p in page.payloads if p["source"] == "rex"]
    assert payload.keys() <= {"category", "modality", "gen", "hash", "source"}
    assert payload["category"] == "dog"
    assert target.copy_from(source).categories == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": ["x" * 20_001]},
        {"texts": [""]},
        {"metadata": {"a": "x" * 100_001}},
        {"metadata": {"a": 2**70}},
        {"texts": None},
        {"references": {"clip:image": 2**52}},
        {"references": {"../../x:image": 1}},
        {"references": {}},
        {"writes": ["not", "there"]},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_an_odd_manifest_stops_only_its_category(source: Store, changes: dict[str, Any]) -> None:
    altered(source, CATALOG, record_id("category", "dog"), **changes)
    target = new_target()
    copied = target.copy_from(source)
    assert list(copied.damaged) == ["dog"]
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]


@pytest.mark.parametrize("name", ["", " x", "..", "a\x1b[2J", "x" * 501, "a\u202eb", "cafe\u0301"])
def test_a_name_that_no_category_may_have_is_refused(source: Store, name: str) -> None:
    points = source._backend._collections[CATALOG]  # type: ignore[attr-defined]
    _, payload = points[record_id("category", "dog")]
    points[record_id("category", name)] = (None, {**payload, "category": name})
    target = new_target()
    copied = target.copy_from(source)
    assert list(copied.damaged) == [name]
    assert [category.name for category in target.categories()] == ["cat", "dog", "text only", "without copies"]


def test_too_many_marks_are_cut(source: Store) -> None:
    altered(source, CATALOG, record_id("category", "dog"), withdrawn="m" * 16 + "0123456789abcdef" * (MARKS_KEPT + 5))
    marks = "".join(f"{i:016}" for i in range(MARKS_KEPT + 5))
    altered(source, CATALOG, record_id("category", "cat"), withdrawn=marks)
    target = new_target()
    assert target.copy_from(source).complete
    assert len(target.category("cat").withdrawn) == MARKS_KEPT
    before = revisions(target)
    assert target.copy_from(source).complete
    assert revisions(target) == before


@pytest.mark.parametrize(
    "encoders",
    [
        {"../../x": {}},
        {"catalog": {}},
        {"a__b": {}},
        {"clip": {"dim": 10**9}},
        {"clip": {"dim": "16"}},
        {"clip": {"dim": 0}},
        {"clip": {"dim": True}},
        {"clip": {"model": 5}},
        {"clip": {"more": 1}},
        {"clip": 5},
        5,
    ],
    ids=str,
)
def test_encoders_of_an_untrusted_source_are_checked_before_a_collection_is_made(source: Store, encoders: Any) -> None:
    fingerprint = {"model": "m", "revision": None, "dim": 16, "preprocessing": "p"}
    forged = encoders
    if isinstance(encoders, dict):
        forged = {name: {**fingerprint, **one} if isinstance(one, dict) else one for name, one in encoders.items()}
    altered(source, CATALOG, record_id("store"), encoders=forged)
    backend = MemoryBackend()
    with pytest.raises((StoreError, ValueError, Exception)) as raised:
        Store(backend, "zsvec").copy_from(source)
    assert "zsvec" in type(raised.value).__module__
    assert backend._collections == {}


def test_a_forged_small_copy_is_left_out(source: Store) -> None:
    for page in list(source._backend.scroll(IMAGES, Where())):
        for place, payload in zip(page.ids, page.payloads, strict=True):
            if payload["source"] == "rex":
                altered(source, IMAGES, place, small="bm90IGEgSlBFRw==")
    target = new_target()
    assert target.copy_from(source).complete
    assert target.image(content_hash("rex")) is None
    assert target.image(content_hash("tom")) is not None


def test_a_damaged_calibration_is_not_copied(source: Store) -> None:
    altered(source, CATALOG, record_id("calibration"), fitted="x")
    assert new_target().copy_from(source).calibration is None


# Any history


@pytest.mark.parametrize("seed", range(30))
def test_a_copy_of_any_store_is_equal_and_a_second_one_changes_nothing(seed: int) -> None:
    """Source and target change between copies; with `replaces`, categories of the source become equal."""
    draw = random.Random(seed)
    source, target = opened(Shared()), Store(Shared() if seed % 2 else MemoryBackend(), "zsvec")
    for _ in range(4):
        for _ in range(draw.randint(1, 6)):
            changed(source, draw)
        if target.encoders() and draw.random() < 0.5:
            changed(target, draw)
        assert copy_of(source, target).complete
        before = revisions(target)
        calibration = target.calibration()
        copied = copy_of(source, target)
        assert (copied.complete, copied.categories, revisions(target)) == (True, (), before)
        assert target.calibration() == calibration
        assert target.incomplete() == []
        ours, theirs = content(source)["categories"], content(target)["categories"]
        for category in source.categories():
            *here, (withdrawn, kept, _), described = ours[category.name]
            *there, (copied_withdrawn, copied_kept, _), copied_described = theirs[category.name]
            assert (here, described) == (there, copied_described)
            assert set(withdrawn) <= set(copied_withdrawn)
            assert set(kept) <= set(copied_kept)


def copy_of(source: Store, target: Store) -> Copied:
    return target.copy_from(source, replaces=True)


def changed(store: Store, draw: random.Random) -> None:
    names = [category.name for category in store.categories()]
    name, image = draw.choice("abcd"), str(draw.randint(0, 9))
    act = draw.choice(["add", "add", "replace", "remove", "take", "move", "keep", "calibrate"])
    if act in ("add", "replace") or name not in names:
        write = pictured(name, [image, str(draw.randint(0, 9))], [f"text {image}"] if draw.random() < 0.3 else [])
        store.write([replace(write, replace=act == "replace", metadata={"n": image})])
    elif act == "remove":
        store.remove(name)
    elif act == "calibrate":
        calibrate(store, scale=draw.random())
    else:
        hashes = sorted({one.hash for one in store.stored(name)})
        if len(hashes) > 1 and act == "take":
            store.remove_references(name, hashes[:1])
        elif act == "keep":
            store.keep(name, hashes[:1], "outliers")
        elif len(hashes) > 1:
            store.move(Move(source=name, target=name + "2", hashes=hashes[:1]))
