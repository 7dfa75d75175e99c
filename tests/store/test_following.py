"""Stores that follow another: content, transfers, changes in the folder, interruptions, and an untrusted source."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.material import FINGERPRINTS, add, content_hash, pictured, vectors, write_of
from tests.store.support import Crash, Deployment, Hooked
from tests.store.test_copying import (
    DINO,
    IMAGES,
    READS,
    Shared,
    altered,
    calibrate,
    content,
    filled,
    new_target,
    opened,
    place_of_rex,
)
from tests.store.test_odd_records import ODD, damaged, paths
from tests.store.test_switching import copied
from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError, StoreUnavailableError, ZSVecError
from zsvec.store import Cursor, Move, Store, following, switching
from zsvec.store.backends.base import Points, Where
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog import changefeed
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.schema import intent_payload
from zsvec.store.names import record_id
from zsvec.types import Category, Fingerprint

DEPLOYMENTS = ("edge", "memory")  # of the store that follows
CATALOG = "zsvec__catalog"
NAMES = ["cat", "dog", "text only", "without copies"]


@pytest.fixture
def backend() -> Hooked:
    """Of the source, past which another handle writes."""
    return Hooked(Shared())


@pytest.fixture
def source(backend: Hooked) -> Store:
    """Writes to the store that is followed."""
    return filled(opened(backend.inner))


@pytest.fixture
def reader(source: Store, backend: Hooked) -> Store:
    """Reads the store that is followed."""
    return Store(backend, source.namespace)


@pytest.fixture
def target(reader: Store) -> Store:
    target = new_target()
    target.sync_from(reader.follower())
    return target


def shown(store: Store) -> dict[str, Any]:
    """All that a folder must have of the store that it follows."""
    found = content(store)
    del found["inbox"]
    return found


def assert_in_step(source: Store, target: Store) -> None:
    assert shown(target) == shown(source)
    assert target.encoders() == source.encoders()
    assert target.labels() == source.labels()
    assert target.incomplete() == []
    assert not target.gc(grace=0)
    for category in source.categories():
        there, here = vectors(target.stored(category.name)), vectors(source.stored(category.name))
        assert there.keys() == here.keys()
        for key, vector in here.items():
            np.testing.assert_allclose(there[key], vector, atol=1e-6)


def names(categories: tuple[Category, ...]) -> list[str]:
    return [category.name for category in categories]


def manifest(store: Store, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = store._backend.retrieve(CATALOG, [record_id("category", name)])
    return found[record_id("category", name)]


# Content


def test_a_new_store_gets_all_but_inbox_and_history(deployment: Deployment, source: Store, reader: Store) -> None:
    target = Store(deployment.backend(), deployment.namespace)
    committed: list[Category] = []
    synced = target.sync_from(reader.follower(), on_commit=committed.append)
    assert_in_step(source, target)
    assert (synced.complete, synced.calibration, synced.removed, synced.own) == (True, True, (), ())
    assert list(synced.categories) == committed == target.categories()
    assert target.info()["calibration"] == "current"
    assert list(target.inbox.read()) == []
    assert target.changes() == []


def test_the_source_is_only_read(source: Store, reader: Store, backend: Hooked) -> None:
    target, follower = new_target(), reader.follower()
    for change in (
        lambda: None,
        lambda: add(source, "dog", ["new"]),
        lambda: source.move(Move(source="dog", target="cat", hashes=[content_hash("new")])),
        lambda: source.remove("cat"),
        lambda: add(target, "dog", ["local"]),
        lambda: calibrate(source, scale=2.0),
    ):
        change()
        target.sync_from(follower)
        assert_in_step(source, target)
    assert set(backend.calls) <= READS


def test_every_change_follows(deployment: Deployment, source: Store, reader: Store) -> None:
    target, follower = Store(deployment.backend(), deployment.namespace), reader.follower()
    target.sync_from(follower)
    changes: dict[str, Callable[[], object]] = {
        "an image": lambda: add(source, "dog", ["new"]),
        "replaced": lambda: source.write([pictured("cat", ["kit"], ["purrs"], replace=True)]),
        "metadata": lambda: source.write([write_of("dog", metadata={"legs": 4})]),
        "a parent": lambda: source.write([write_of("dog", parent="animal")]),
        "a reference less": lambda: source.remove_references("dog", [content_hash("rex")]),
        "moved": lambda: source.move(Move(source="dog", target="cat", hashes=[content_hash("new")])),
        "renamed": lambda: source.move(Move(source="dog", target="hound", new=True)),
        "removed": lambda: source.remove("text only"),
        "added again": lambda: add(source, "text only", texts=["again"]),
        "an old name": lambda: add(source, "old", ["another"]),
    }
    for what, change in changes.items():
        change()
        assert target.sync_from(follower).complete, what
        assert_in_step(source, target)
        assert target.sync_from(reader.follower()).categories == ()  # another process finds nothing to do


def test_a_removed_category_is_named(source: Store, reader: Store, target: Store) -> None:
    source.remove("dog")
    synced = target.sync_from(reader.follower())
    assert (synced.removed, synced.categories, synced.own) == (("dog",), (), ())
    is_withdrawn = target.withdrawn("dog")
    assert is_withdrawn is not None
    assert is_withdrawn(content_hash("anything"))


def test_the_labels_follow(source: Store, reader: Store, target: Store) -> None:
    source.bind(FINGERPRINTS, labels="many")
    target.sync_from(reader.follower())
    assert target.labels() == "many"


# Only what has changed is transferred


def test_without_news_one_request_is_sent(source: Store, reader: Store, backend: Hooked) -> None:
    target, follower = new_target(), reader.follower()
    first = target.sync_from(follower)
    backend.calls.clear()
    again = target.sync_from(follower)
    assert backend.calls == {"scroll": 1}
    assert again == replace(first, categories=(), size=0)


def test_a_category_with_another_image_gets_this_alone(source: Store, reader: Store) -> None:
    source.write([pictured("many", map(str, range(60)))])
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    before = target.category("many").write_ids
    source.write([pictured("many", ["new"])])
    synced = target.sync_from(follower)
    bytes_of_one = sum(4 * fingerprint.dim for fingerprint in FINGERPRINTS.values())
    small = source.image(content_hash("new"))
    assert small is not None
    assert synced.size == bytes_of_one + len(small.content)
    assert target.category("many").write_ids[:-1] == before
    assert_in_step(source, target)


def test_metadata_and_marks_transfer_no_reference(source: Store, reader: Store) -> None:
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    for change, changed in (
        (lambda: source.write([write_of("dog", metadata={"a": 1})]), ["dog"]),
        (lambda: source.keep("dog", [content_hash("rex")], "duplicates"), []),
    ):
        change()
        synced = target.sync_from(follower)
        assert (names(synced.categories), synced.size) == (changed, 0)
        assert_in_step(source, target)


def test_marks_alone_leave_the_calibration_current(source: Store, reader: Store, target: Store) -> None:
    source.keep("dog", [content_hash("rex")], "duplicates")
    assert target.sync_from(reader.follower()).categories == ()
    assert (source.info()["calibration"], target.info()["calibration"]) == ("current", "current")


def test_many_writes_that_become_one(source: Store, reader: Store) -> None:
    target, follower = new_target(), reader.follower()
    for number in range(40):  # from 32 on, the source copies all references into one write
        add(source, "dog", [str(number)])
        target.sync_from(follower)
    assert_in_step(source, target)
    assert len(target.category("dog").write_ids) == len(source.category("dog").write_ids)


def test_another_process_goes_on_from_the_cursor(source: Store, reader: Store, target: Store) -> None:
    looked: list[Where] = []

    class Noting(Hooked):
        def __getattr__(self, name: str) -> Any:
            def scroll(collection: str, where: Where, **options: Any) -> Any:
                looked.append(where)
                return self.inner.scroll(collection, where, **options)

            return scroll if name == "scroll" else super().__getattr__(name)

    add(source, "dog", ["new"])
    newest = source.category("cat").rev
    target.sync_from(Store(Noting(source._backend), "zsvec").follower())
    assert_in_step(source, target)
    commits = [where for where in looked if "kind" in where.match]
    assert commits
    assert all(where.since is not None and where.since > newest - 2_000_000 for where in commits)


@pytest.mark.parametrize("same_process", [False, True])
def test_a_commit_below_the_cursor_is_found_by_the_next_comparison(
    source: Store, reader: Store, same_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    before = manifest(source, "dog")
    add(source, "dog", ["new"])
    altered(source, CATALOG, record_id("category", "dog"), rev=before["rev"] - 5_000_000)  # the writer was killed
    new = follower if same_process else reader.follower()
    assert target.sync_from(new).categories == ()
    monkeypatch.setattr(following, "WHOLE_EVERY_S", 0.0)
    new._whole_due = 0.0
    assert names(target.sync_from(follower if same_process else reader.follower()).categories) == ["dog"]
    assert_in_step(source, target)


# The calibration


def test_the_calibration_follows(source: Store, reader: Store, target: Store) -> None:
    follower = reader.follower()
    add(source, "dog", ["new"])
    assert target.sync_from(follower).calibration
    assert target.info()["calibration"] == source.info()["calibration"] == "stale"
    calibrate(source, scale=2.5)
    synced = target.sync_from(follower)
    assert (synced.categories, synced.calibration) == ((), True)
    assert (target.calibration() or {})["scale"] == 2.5
    assert target.info()["calibration"] == source.info()["calibration"] == "current"


def test_a_calibration_of_the_folder_is_replaced(source: Store, reader: Store, target: Store) -> None:
    add(target, "dog", ["local"])
    calibrate(target, scale=7.0)
    assert target.sync_from(reader.follower()).calibration
    assert_in_step(source, target)
    assert target.info()["calibration"] == "current"


def test_a_folder_with_own_categories_keeps_its_calibration(source: Store, reader: Store, target: Store) -> None:
    add(target, "own", ["mine"])
    calibrate(target, scale=7.0)
    follower = reader.follower()
    assert target.sync_from(follower).calibration is False
    assert (target.calibration() or {})["scale"] == 7.0
    target.remove("own")
    assert target.sync_from(follower).calibration
    assert (target.calibration() or {})["scale"] == (source.calibration() or {})["scale"]
    assert target.info()["calibration"] == "current"


def test_a_source_without_a_calibration() -> None:
    source = opened(Shared())
    add(source, "a", ["b"])
    assert new_target().sync_from(source.follower()).calibration is None


def test_a_run_that_failed_at_the_calibration_is_news(
    source: Store, reader: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    add(source, "dog", ["new"])
    calibrate(source, scale=2.5)

    def cut(_: Catalog) -> Any:
        raise StoreUnavailableError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "calibration_record", cut)
        with pytest.raises(StoreUnavailableError):
            target.sync_from(follower)
    assert follower.has_news()
    assert target.sync_from(follower).calibration
    assert (target.calibration() or {})["scale"] == 2.5
    assert not follower.has_news()


# Changes in the folder


@pytest.mark.parametrize("same_process", [False, True])
def test_changes_of_followed_categories_are_reverted(source: Store, reader: Store, same_process: bool) -> None:
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    changes: dict[str, Callable[[], object]] = {
        "an image": lambda: add(target, "dog", ["local"]),
        "replaced": lambda: add(target, "dog", ["local"], replace=True),
        "metadata": lambda: target.write([write_of("cat", metadata={"local": 1})]),
        "a reference less": lambda: target.remove_references("cat", [content_hash("tom")]),
        "moved": lambda: target.move(Move(source="cat", target="dog", hashes=[content_hash("tom")])),
        "removed": lambda: target.remove("dog"),
        "marked": lambda: target.keep("dog", [content_hash("rex")], "duplicates"),
    }
    for what, change in changes.items():
        change()
        synced = target.sync_from(follower if same_process else reader.follower())
        assert (synced.complete, synced.own, synced.removed) == (True, (), ()), what
        assert_in_step(source, target)


def test_a_category_that_was_changed_here_and_removed_there(source: Store, reader: Store, target: Store) -> None:
    add(target, "dog", ["local"])
    source.remove("dog")
    assert target.sync_from(reader.follower()).removed == ("dog",)
    add(target, "dog", ["mine"])  # from now on the folder's own
    follower = reader.follower()
    for _ in range(2):
        synced = target.sync_from(follower)
        assert (synced.removed, synced.own, synced.complete) == ((), ("dog",), True)
    assert target.category("dog").images == 1
    add(source, "dog", ["theirs"])
    synced = target.sync_from(follower)
    assert (synced.different, synced.complete) == (("dog",), False)
    assert target.category("dog").images == 1
    assert target.sync_from(follower).different == ("dog",)
    target.remove("dog")
    follower._whole_due = 0.0
    assert names(target.sync_from(follower).categories) == ["dog"]


def test_own_categories_stay_and_equal_ones_are_followed(source: Store, reader: Store) -> None:
    target = new_target()
    target.copy_from(source)
    add(target, "own", ["mine"])
    add(target, "dog", ["local"])
    before = target.category("cat").write_ids
    follower = reader.follower()
    synced = target.sync_from(follower)
    assert (synced.different, synced.own) == (("dog",), ("dog", "own"))
    assert (synced.categories, synced.size, target.category("cat").write_ids) == ((), 0, before)
    source.remove("cat")
    synced = target.sync_from(follower)
    assert (synced.removed, synced.different) == (("cat",), ("dog",))
    assert [category.name for category in target.categories()] == ["dog", "own", "text only", "without copies"]
    assert target.incomplete() == []


def test_a_lost_reference_of_the_folder_comes_back_with_the_next_change(
    source: Store, reader: Store, target: Store
) -> None:
    [page] = target._backend.scroll(DINO, Where(match={"category": "without copies"}))
    target._backend.drop(DINO, page.ids[:1])
    assert target.incomplete() == ["without copies"]
    add(source, "without copies", ["new"])
    target.sync_from(reader.follower())
    assert_in_step(source, target)


# Ends that do not belong together


def test_another_store_is_refused(source: Store, reader: Store, target: Store) -> None:
    before = shown(target)
    with pytest.raises(StoreError, match="follows another store"):
        target.sync_from(filled(opened(Shared())).follower())
    assert shown(target) == before
    add(source, "dog", ["new"])
    target.sync_from(reader.follower())
    assert_in_step(source, target)


@pytest.mark.parametrize("same_process", [False, True])
def test_a_store_that_takes_the_place_of_the_source_is_refused(same_process: bool) -> None:
    backend = Shared()
    source = filled(opened(backend))
    target, follower = new_target(), source.follower()
    target.sync_from(follower)
    before = shown(target)
    for collection in list(backend._collections):
        backend.remove(collection)
    with pytest.raises(StoreError, match="there is no store"):
        target.sync_from(follower if same_process else source.follower())
    add(opened(backend), "other", ["x"])
    for _ in range(2):
        with pytest.raises(StoreError, match="follows another store"):
            target.sync_from(follower if same_process else source.follower())
    assert shown(target) == before


def test_a_source_that_was_switched_is_refused(source: Store, reader: Store) -> None:
    source.remove("without copies")  # its images cannot be embedded again
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    before = shown(target)
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    now = source.current()
    now.remove("cat")
    assert follower.has_news()
    for _ in range(2):  # the second time after the deletion of the old namespace
        for one in (follower, reader.follower(), now.follower()):
            for _ in range(2):
                with pytest.raises(StoreError, match="was switched to other encoders"):
                    target.sync_from(one)
            assert one.has_news()
        now.gc(grace=0)
    assert shown(target) == before
    assert new_target().sync_from(now.follower()).complete


def test_a_switch_in_progress_or_undone_changes_nothing(source: Store, reader: Store) -> None:
    source.remove("without copies")
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    with switching.closed(source._catalog, 1):
        assert target.sync_from(follower).complete
    source = Store(source._backend, "zsvec", history=60.0)
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    device = new_target()
    device.sync_from(source.current().follower())
    source.current().undo(change=source.current().changes()[0].id)
    add(source, "dog", ["new"])
    for one in (follower, reader.follower()):
        assert target.sync_from(one).complete
        assert_in_step(source, target)
    for one in (reader.follower(), Store(reader._backend, "zsvec.1").follower()):
        with pytest.raises(StoreError, match="was switched to other encoders"):
            device.sync_from(one)


def test_other_encoders_are_refused(source: Store, reader: Store) -> None:
    other = Fingerprint(model="other/clip", revision="9", dim=16, preprocessing="resize 224")
    target = opened(clip=other)
    with pytest.raises(EncoderMismatchError, match=r"(?s)test/clip.*other/clip"):
        target.sync_from(reader.follower())
    assert target.categories() == []


def test_ends_that_cannot_be(source: Store, reader: Store) -> None:
    with pytest.raises(InvalidInputError):
        Store(Shared(), "zsvec").sync_from(reader.follower())
    with pytest.raises(InvalidInputError):
        opened().follower()
    target = new_target()
    with pytest.raises(StoreError, match="there is no store"):
        target.sync_from(Store(Shared(), "zsvec").follower())
    assert target.encoders() == {}


# Interruptions and other writers


def versions(seed: int) -> dict[str, list[str]]:
    """Images of each category in one state of the source, in which most categories differ from the other states."""
    draw = random.Random(seed)
    return {f"c{i}": [f"c{i} {seed} {j}" for j in range(draw.randint(1, 4))] for i in range(12)}


def states_of(store: Store) -> dict[str, list[str]]:
    return {
        category.name: sorted({one.source for one in store.stored(category.name)}) for category in store.categories()
    }


def test_a_connection_cut_at_any_request_leaves_each_category_old_or_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.copying._AT_ONCE", 8)
    inner = Shared()
    source = opened(inner)
    source.write([write_of(name, images) for name, images in versions(0).items()])
    target = new_target()
    target.sync_from(source.follower())
    draw, mixed, cut = random.Random(1), 0, 0
    for seed in range(1, 21):
        old, new = states_of(target), versions(seed)
        source.write([write_of(name, images, replace=True) for name, images in new.items()])
        backend = Hooked(inner)

        def end(*_: Any, **__: Any) -> None:
            raise StoreUnavailableError("cut")

        backend.hooks[draw.randrange(40)] = end
        try:
            target.sync_from(Store(backend, "zsvec").follower())
        except StoreUnavailableError:
            cut += 1
        now = states_of(target)
        assert now.keys() == old.keys()
        mixed += sum(now[name] not in (old[name], sorted(new[name])) for name in now)
        assert target.incomplete() == []
        target.sync_from(source.follower())
        assert states_of(target) == {name: sorted(images) for name, images in new.items()}
        assert not target.gc(grace=0)
    assert mixed == 0
    assert cut >= 10


def test_a_follower_goes_on_after_a_kill_at_any_call(
    source: Store, reader: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.copying._AT_ONCE", 4)
    counting = Hooked(MemoryBackend())
    Store(counting, "zsvec").sync_from(reader.follower())
    whole = content(source)["categories"]
    for dies_at in random.Random(1).sample(range(counting.calls.total() - 5), 25):
        inner = MemoryBackend()
        backend = Hooked(inner)
        backend.dies_at = dies_at
        with pytest.raises(Crash):
            Store(backend, "zsvec").sync_from(reader.follower())
        target = Store(inner, "zsvec")
        for category in target.categories():
            assert content(target)["categories"][category.name] == whole[category.name]
        assert target.sync_from(reader.follower()).complete
        assert_in_step(source, target)


def test_a_category_that_is_replaced_meanwhile_is_read_again(source: Store, reader: Store) -> None:
    target = new_target()

    def replace_dog(categories: Any) -> Any:
        if "cat" in [category.name for category in categories]:  # the first round
            add(source, "dog", ["new"], replace=True)
            source.gc(grace=0)
        yield from categories

    synced = target.sync_from(reader.follower(), track=replace_dog)
    assert synced.complete
    assert_in_step(source, target)


def test_what_is_replaced_is_deleted_at_once_and_cannot_be_undone(source: Store, reader: Store) -> None:
    target = Store(MemoryBackend(), "zsvec", history=60.0)
    follower = reader.follower()
    target.sync_from(follower)
    before = target.count("dino")
    source.write([pictured("dog", ["other"], replace=True)])
    target.sync_from(follower)
    assert target.changes() == []
    assert target.count("dino") == before - 1  # rex and felix, then one other


# Damage and untrusted records


@pytest.mark.parametrize(
    "changes",
    [{"hash": "../../etc/passwd"}, {"source": None}, {"gen": []}, {"vector": np.full(8, np.nan, np.float32)}],
    ids=lambda changes: str(changes)[:20],
)
def test_an_unusable_reference_leaves_its_category_as_it_is(
    source: Store, reader: Store, changes: dict[str, Any]
) -> None:
    target, follower = new_target(), reader.follower()
    target.sync_from(follower)
    before = shown(target)["categories"]
    add(source, "cat", ["new"])
    source.write([pictured("dog", ["rex"], replace=True)])
    altered(source, DINO, place_of_rex(source), **changes)
    synced = target.sync_from(follower)
    assert (list(synced.damaged), synced.complete, synced.calibration) == (["dog"], False, False)
    assert names(synced.categories) == ["cat"]
    assert shown(target)["categories"]["dog"] == before["dog"]
    assert list(target.sync_from(follower).damaged) == ["dog"]
    assert list(target.sync_from(reader.follower()).damaged) == ["dog"]
    source.write([pictured("dog", ["max"], replace=True)])
    assert target.sync_from(follower).complete
    assert_in_step(source, target)


deep: Any = "x"
for _ in range(100):
    deep = [deep]
HUGE = ["x" * 70_000, [[[]]] * 500, {"k" * 5000: 1}, 10**400, deep, ["\ud800"]]


class Lying(Shared):
    """Another handle of a store, which gives wrong answers.

    Attributes:
        draw: Decides which answers are wrong.
    """

    def __init__(self, inner: Shared, draw: random.Random) -> None:
        super().__init__()
        self._collections = inner._collections
        self.draw = draw
        self._rate = draw.choice([0.02, 0.1])

    def _lies(self, share: float = 0.1) -> bool:
        return self.draw.random() < share * self._rate

    def _record(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._lies():  # of another place, or of another collection
            places = self.draw.choice([found for found in self._collections.values() if found])
            return deepcopy(self.draw.choice([record for _, record in places.values()]))
        if record and self._lies(1.0):
            return damaged(record, self.draw.choice(list(paths(record))), self.draw.choice([*ODD, *HUGE]))
        return record

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        others = self.draw.sample(list(self._collections.get(collection, ())), 1) if self._lies() else []
        found = super().retrieve(collection, [*ids, *others]).items()
        return {place: self._record(record) for place, record in found if not self._lies()}

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Any = None, limit: int | None = None
    ) -> Iterator[Points]:
        collection = self.draw.choice(list(self._collections)) if self._lies() else collection
        where = Where() if self._lies() else where
        for page in super().scroll(collection, where, vectors=vectors, fields=fields, limit=limit):
            rows = list(page.rows)
            if vectors and self._lies():
                rows = [[1.0, 0.0]] * len(rows)
            odd = [None, [], [1.0], [math.nan] * 8, [1e38] * 8, [1e300] * 8, {"a": [1.0]}, {}, "x", [[1.0]]]
            yield Points(
                ids=[self.draw.choice(page.ids) if self._lies() else place for place in page.ids],
                rows=[self.draw.choice(odd) if vectors and self._lies() else row for row in rows],
                payloads=[self._record(record) for record in page.payloads],
            ).chosen([row for row in range(len(rows)) if not self._lies()])


@pytest.fixture(scope="module")
def honest() -> Iterator[Shared]:
    """A store that has records of most kinds."""
    backend = Shared()
    opened(backend)
    filled(Store(backend, "zsvec", history=86_400.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changefeed, "PAUSES", ())
        yield backend


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), is_new=st.booleans())
def test_a_source_that_lies_leaves_whole_categories_and_those_of_the_folder(
    honest: Shared, seed: int, is_new: bool
) -> None:
    target = new_target()
    if not is_new:
        target.sync_from(Store(honest, "zsvec").follower())
        add(target, "own", ["mine"])
        before = manifest(target, "own"), vectors(target.stored("own")).keys()
    follower = Store(Lying(honest, random.Random(seed)), "zsvec").follower()
    for _ in range(2):
        with suppress(ZSVecError):
            target.sync_from(follower)
    if not is_new:
        assert (manifest(target, "own"), vectors(target.stored("own")).keys()) == before
    assert target.incomplete() == []
    for encoder, fingerprint in target.encoders().items():
        stored = [page.vectors for page in target._backend.scroll(f"zsvec__{encoder}", Where(), vectors=True)]
        assert all(some.shape[1] in (0, fingerprint.dim) for some in stored)


@pytest.mark.parametrize("encoders", [5, {"clip": 5}, {"clip": {"dim": "8"}}, {"clip": {"unknown": 1}}], ids=str)
def test_encoders_that_differ_between_two_answers_are_refused(
    source: Store, reader: Store, backend: Hooked, encoders: Any
) -> None:
    record = source._backend.retrieve(CATALOG, [record_id("store")])[record_id("store")]

    def lie(*_: Any) -> None:
        altered(source, CATALOG, record_id("store"), encoders=encoders)
        backend.hooks["retrieve"] = tell

    def tell(*_: Any) -> None:
        altered(source, CATALOG, record_id("store"), encoders=record["encoders"])

    follower, target = reader.follower(), new_target()
    backend.hooks["retrieve"] = lie
    with pytest.raises(StoreError):
        target.sync_from(follower)
    assert target.encoders() == {}
    assert target.sync_from(follower).complete


def test_records_of_other_kinds_are_left_out(source: Store, reader: Store, target: Store, backend: Hooked) -> None:
    place = "11111111-1111-4111-8111-111111111111"
    store = source._catalog.state([]).store
    intent = intent_payload(place, store, 2**52, {"dog": ["w"]}, {})
    inner: Any = backend.inner
    retrieve, scroll = inner.retrieve, inner.scroll
    inner._collections[CATALOG][place] = (None, intent)
    add(source, "dog", ["new"])
    inner.retrieve = lambda collection, ids: retrieve(collection, [*ids, record_id("store"), place])
    inner.scroll = lambda collection, _, **options: scroll(collection, Where(), **options)
    assert names(target.sync_from(reader.follower()).categories) == ["dog"]
    del inner.retrieve, inner.scroll
    assert_in_step(source, target)


def test_vectors_of_another_dimension_leave_their_category_as_it_is(
    source: Store, reader: Store, target: Store
) -> None:
    add(source, "dog", ["new"])
    for place, (_, payload) in list(source._backend._collections[DINO].items()):  # type: ignore[attr-defined]
        if payload["category"] == "dog":
            altered(source, DINO, place, vector=np.array([1.0, 0.0], np.float32))
    before = shown(target)["categories"]
    assert list(target.sync_from(reader.follower()).damaged) == ["dog"]
    assert shown(target)["categories"] == before


@pytest.mark.parametrize("changes", [{"hash": []}, {"hash": 5}, {"hash": "\ud800"}, {"hash": content_hash("other")}])
def test_a_copy_of_an_image_that_was_not_asked_for_is_left_out(
    source: Store, reader: Store, backend: Hooked, changes: dict[str, Any]
) -> None:
    [place, *_] = source._backend._collections[IMAGES]  # type: ignore[attr-defined]
    altered(source, IMAGES, place, **changes)
    inner: Any = backend.inner
    scroll = inner.scroll

    def all_images(collection: str, where: Where, **options: Any) -> Any:
        return scroll(collection, Where() if collection == IMAGES else where, **options)

    inner.scroll = all_images
    target = new_target()
    assert target.sync_from(reader.follower()).complete
    copies = target._backend._collections[IMAGES].values()  # type: ignore[attr-defined]
    assert changes["hash"] not in [payload["hash"] for _, payload in copies]


def test_an_unreadable_manifest_is_named_and_its_category_stays(source: Store, reader: Store, target: Store) -> None:
    altered(source, CATALOG, record_id("category", "dog"), texts=5, version=99)
    for follower in (reader.follower(), reader.follower()):  # the cursor of the first is not kept
        altered(source, CATALOG, record_id("category", "dog"), rev=manifest(source, "cat")["rev"] + 1)
        synced = target.sync_from(follower)
        assert list(synced.damaged) == ["dog"]
        assert target.sync_from(follower).damaged == synced.damaged
    assert [category.name for category in target.categories()] == NAMES


def test_names_that_are_not_in_their_stored_form_are_left_out(source: Store, reader: Store) -> None:
    add(source, " padded ", ["x"])
    target = new_target()
    assert list(target.sync_from(reader.follower()).damaged) == [" padded "]
    assert [category.name for category in target.categories()] == NAMES


def test_forged_ids_of_writes_do_not_reach_the_folder(source: Store, reader: Store, target: Store) -> None:
    stolen = source.category("cat").write_ids
    before = shown(target)["categories"]
    forged = {"writes": [*stolen, "x" * 100_000], "version": 50, "rev": source.category("cat").rev + 10_000}
    altered(source, CATALOG, record_id("category", "dog"), **forged)
    follower = reader.follower()
    assert list(target.sync_from(follower).damaged) == ["dog"]
    assert shown(target)["categories"] == before
    source.remove("cat")
    target.sync_from(follower)
    assert target.incomplete() == []


def test_a_state_of_many_writes_is_kept_small(source: Store, reader: Store, target: Store) -> None:
    category = source.category("dog")
    writes = [*category.write_ids, *(f"{number:064}" for number in range(1000))]
    altered(source, CATALOG, record_id("category", "dog"), writes=writes, version=category.version + 1)
    follower = reader.follower()
    follower._whole_due = 0.0
    target.sync_from(follower)
    assert manifest(target, "dog")["followed"]["writes"] == []
    assert manifest(target, "dog")["followed"]["version"] == category.version + 1
    assert target.incomplete() == []


@pytest.mark.parametrize(
    "follows",
    [None, 5, {}, {"store": 5}, {"store": "ID", "newest": -1}, {"store": "ID", "newest": "a", "before": 0}],
    ids=str,
)
def test_a_damaged_record_of_the_folder_costs_a_comparison(
    source: Store, reader: Store, target: Store, follows: Any
) -> None:
    store = source._catalog.store() or {}
    if isinstance(follows, dict) and follows.get("store") == "ID":
        follows = {**follows, "store": store["id"]}
    altered(target, CATALOG, record_id("store"), follows=follows)
    add(source, "dog", ["new"])
    assert names(target.sync_from(reader.follower()).categories) == ["dog"]
    assert_in_step(source, target)


@pytest.mark.parametrize("followed", [5, {}, {"version": "1"}, {"version": 1, "writes": [5], "changed": 0}], ids=str)
def test_a_damaged_state_in_the_folder_is_read_again(
    source: Store, reader: Store, target: Store, followed: Any
) -> None:
    altered(target, CATALOG, record_id("category", "dog"), followed=followed)
    assert target.sync_from(reader.follower()).complete
    assert_in_step(source, target)
    assert manifest(target, "dog")["followed"]["version"] == source.category("dog").version


def test_a_damaged_manifest_of_the_folder_stops_only_its_category(source: Store, reader: Store, target: Store) -> None:
    altered(target, CATALOG, record_id("category", "dog"), texts=5)
    add(source, "dog", ["new"])
    add(source, "cat", ["new"])
    synced = target.sync_from(reader.follower())
    assert (list(synced.damaged), names(synced.categories)) == (["dog"], ["cat"])


def test_a_store_that_follows_can_be_copied(source: Store, target: Store) -> None:
    copy = new_target()
    assert copy.copy_from(target).complete
    assert_in_step(source, copy)
    assert all("followed" not in manifest(copy, name) for name in NAMES)
    assert copy.look(Cursor(), {}).categories
