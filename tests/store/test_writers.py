"""Several writers, and writers that die: an acknowledged write is never lost, a torn one never seen."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, add, content_hash, sources, write_of
from tests.store.support import LASTING, Crash, Deployment, Hooked
from zsvec.errors import CategoryNotFoundError, ConflictError, VersionConflictError
from zsvec.store import Cursor, Move, Store
from zsvec.store.backends.base import Points
from zsvec.store.names import record_id
from zsvec.types import CALIBRATION_FORMAT

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local", "server")

Operation = Callable[[Store], Any]


@pytest.fixture
def backend(deployment: Deployment) -> Hooked:
    return deployment.backend()


@pytest.fixture
def store(deployment: Deployment, backend: Hooked) -> Store:
    """A store with one category and a hooked backend."""
    store = deployment.open(backend)
    add(store, "red panda", ["old"], ["old text"])
    return store


@pytest.fixture
def other(deployment: Deployment, store: Store) -> Store:
    """A second writer's handle."""
    return deployment.another(store)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt follows at once."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def images(store: Store, name: str = "red panda") -> list[str]:
    """Sources of a category's images, which every encoder must have alike."""
    found = sources(store, name)
    assert found.get("clip:image") == found.get("dino:image")
    return found.get("clip:image", [])


def assert_no_garbage(deployment: Deployment, store: Store) -> None:
    """Every point is one that a manifest counts, and the other way round; where others may read, after a while."""
    counted = dict.fromkeys(FINGERPRINTS, 0)
    for category in store.categories():
        for expert, count in category.references.items():
            counted[expert.rpartition(":")[0]] += count
    assert deployment.sizes(after=store) == counted
    assert store.incomplete() == []


# Lost races

RACES: dict[str, tuple[Operation, Operation, list[str], int]] = {
    # this write, an earlier commit of another writer, final images, final version
    "add, add": (
        lambda s: add(s, "red panda", ["mine"]),
        lambda s: add(s, "red panda", ["theirs"]),
        ["mine", "old", "theirs"],
        3,
    ),
    "add, replace": (
        lambda s: add(s, "red panda", ["mine"]),
        lambda s: add(s, "red panda", ["theirs"], replace=True),
        ["mine", "theirs"],
        3,
    ),
    "add, remove": (lambda s: add(s, "red panda", ["mine"]), lambda s: s.remove("red panda"), ["mine"], 3),
    "add, the same": (
        lambda s: add(s, "red panda", ["both"]),
        lambda s: add(s, "red panda", ["both"]),
        ["both", "old"],
        2,
    ),
    "replace, add": (
        lambda s: add(s, "red panda", ["mine"], replace=True),
        lambda s: add(s, "red panda", ["theirs"]),
        ["mine"],
        3,
    ),
    "replace, replace": (
        lambda s: add(s, "red panda", ["mine"], replace=True),
        lambda s: add(s, "red panda", ["theirs"], replace=True),
        ["mine"],
        3,
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_lost_race_is_run_again(deployment: Deployment, backend: Hooked, store: Store, other: Store, race: str) -> None:
    mine, theirs, expected, version = RACES[race]
    backend.hooks["commit"] = lambda *_: theirs(other)
    mine(store)

    assert images(store) == expected == images(other)
    assert store.category("red panda").version == version
    assert_no_garbage(deployment, store)


CHANGES: dict[str, Operation] = {
    "add": lambda s: add(s, "red panda", ["mine"]),
    "add nothing new": lambda s: add(s, "red panda", ["old"]),
    "replace": lambda s: add(s, "red panda", ["mine"], replace=True),
    "remove": lambda s: s.remove("red panda"),
    "remove a reference": lambda s: s.remove_references("red panda", [content_hash("old")]),
    "keep": lambda s: s.keep("red panda", [content_hash("old")], "label"),
    "move a reference": lambda s: s.move(Move(source="red panda", target="lynx", hashes=[content_hash("old")])),
    "rename": lambda s: s.move(Move(source="red panda", target="lynx", new=True)),
    "gain": lambda s: s.move(Move(source="cat", target="red panda")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_an_expected_version_loses_to_any_other(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, change: str
) -> None:
    add(store, "cat", ["a cat"])
    hook = "retrieve" if change == "add nothing new" else "commit"
    with pytest.raises(VersionConflictError, match="'red panda'"), store.expecting("red panda", {1}):
        backend.hooks[hook] = lambda *_: Context().run(add, other, "red panda", ["theirs"])  # as another thread would
        CHANGES[change](store)

    assert images(store) == ["old", "theirs"] == images(other)
    assert images(store, "cat") == ["a cat"]
    assert {category.name for category in store.categories()} == {"cat", "red panda"}
    assert_no_garbage(deployment, store)


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_the_expected_version_is_made_and_later_ones_follow(
    deployment: Deployment, store: Store, other: Store, change: str
) -> None:
    add(store, "cat", ["a cat"])
    with store.expecting("red panda", {1}):
        CHANGES[change](store)
        if change not in ("add nothing new", "remove", "rename"):
            add(other, "red panda", ["theirs"])  # in between
            store.remove("red panda")
    assert_no_garbage(deployment, store)


def ahead(act: Callable[[], Any]) -> None:
    """Does something by a clock that is ten minutes ahead. After an hour, a collector would fence the writer."""
    late = time.time_ns() + 600 * 10**9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: late)
        act()


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
@pytest.mark.parametrize("change", ["add", "replace", "remove", "remove a reference", "keep"])
def test_own_commit_that_a_read_omits_is_no_conflict(
    backend: Hooked, store: Store, other: Store, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is read again, because it gets a new rev after a commit by a clock that runs ahead."""
    place, omitted = record_id("category", "red panda"), Counter[str]()

    def retrieve(collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        found = backend.inner.retrieve(collection, ids)
        omitted.update({place} & set(ids))
        if omitted[place] == 2:  # the first shows the commit
            return {identifier: record for identifier, record in found.items() if identifier != place}
        return found

    def theirs(*_: Any) -> None:
        ahead(lambda: Context().run(add, other, "lynx", ["theirs"]))
        monkeypatch.setattr(backend, "retrieve", retrieve, raising=False)

    add(store, "red panda", ["stays"])
    backend.hooks["commit"] = theirs
    with store.expecting("red panda", {2}):
        CHANGES[change](store)
    assert omitted[place] > 2
    if change == "remove":
        assert [category.name for category in other.categories()] == ["lynx"]
    else:  # committed once, and given a new rev
        assert other.category("red panda").version == 4


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_calibration_is_stale_after_the_commit_of_a_paused_writer(
    backend: Hooked, store: Store, other: Store
) -> None:
    """Another writer, which finds that nothing is new, gives the commit a new rev before its own writer does."""

    def theirs(*_: Any) -> None:
        ahead(lambda: add(other, "lynx", ["theirs"]))
        revision = other.category("lynx").rev
        other.keep_calibration({"format": CALIBRATION_FORMAT, "revision": revision})
        assert other.info()["calibration"] == "current"
        backend.hooks["newest"] = lambda *_: add(other, "red panda", ["mine"])

    backend.hooks["commit"] = theirs
    add(store, "red panda", ["mine"])
    assert not backend.hooks
    assert other.info()["calibration"] == "stale"


def test_version_that_is_not_there_is_refused_at_once(store: Store, backend: Hooked) -> None:
    before = backend.calls["put"]
    for name, versions in {"red panda": {0, 2}, "lynx": {1}}.items():
        with pytest.raises(VersionConflictError), store.expecting(name, versions):
            add(store, name, ["mine"])
    assert backend.calls["put"] == before


def test_only_one_of_two_writers_creates_a_category(backend: Hooked, store: Store, other: Store) -> None:
    def theirs(*_: Any) -> None:
        with other.expecting("lynx", {0}):
            add(other, "lynx", ["theirs"])

    backend.hooks["commit"] = theirs
    with pytest.raises(VersionConflictError), store.expecting("lynx", {0}):
        add(store, "lynx", ["mine"])
    assert images(store, "lynx") == ["theirs"]
    store.remove("lynx")
    with store.expecting("lynx", {0}):  # a tombstone is no category
        add(store, "lynx", ["mine"])
    assert images(store, "lynx") == ["mine"]


def test_replacing_by_the_same_changes_nothing(store: Store, other: Store) -> None:
    same: dict[str, Any] = {"images": ["a", "b"], "texts": ["text"], "metadata": {"a": 1}, "replace": True}
    add(store, "lynx", **same)
    before = store.category("lynx")
    add(other, "lynx", **same)
    assert store.category("lynx") == before
    for changed in ({"metadata": {"a": True}}, {"metadata": {}}, {"images": ["a"]}, {"texts": ["text", "more"]}):
        before = store.category("lynx")
        add(other, "lynx", **{**same, **changed})
        assert store.category("lynx").write_ids != before.write_ids


GONE: dict[str, Operation] = {
    "the category": lambda s: s.remove("red panda"),
    "the reference": lambda s: s.remove_references("red panda", [content_hash("old")]),
}


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("images_of_mine", [[], ["mine"]], ids=["nothing new", "something new"])
def test_write_that_counts_on_a_reference_is_refused_when_another_removes_it(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, gone: str, images_of_mine: list[str]
) -> None:
    hook = "commit" if images_of_mine else "retrieve"  # a write of nothing new only looks
    backend.hooks[hook] = lambda *_: GONE[gone](other)
    mine = write_of("red panda", images_of_mine, needs=frozenset({content_hash("old")}))
    with pytest.raises(ConflictError, match="'red panda'"):
        store.write([write_of("lynx", ["a"]), mine])
    assert images(store, "lynx") == ["a"]
    assert {category.name for category in store.categories()} == {"lynx", *(["red panda"] if "ref" in gone else [])}
    assert_no_garbage(deployment, store)


def test_metadata_of_a_category_that_another_removes_are_refused(backend: Hooked, store: Store, other: Store) -> None:
    backend.hooks["commit"] = lambda *_: other.remove("red panda")
    with pytest.raises(ConflictError, match="'red panda'"):
        store.write([write_of("red panda", metadata={"a": 1}, needs=frozenset())])
    assert store.categories() == []


def test_replacement_without_references_to_keep_is_refused(backend: Hooked, store: Store, other: Store) -> None:
    def theirs(*_: Any) -> None:
        other.remove_references("red panda", [content_hash("old")])

    backend.hooks["commit"] = theirs
    with pytest.raises(ConflictError, match="no reference"):
        store.write([write_of("red panda", replace=True, keeps=frozenset({"image"}))])
    assert sources(store, "red panda") == {"clip:text": ["old text"]}


@pytest.mark.parametrize("new", [False, True], ids=["merge", "rename"])
def test_merge_of_a_category_that_another_removes_is_not_acknowledged(
    backend: Hooked, store: Store, other: Store, new: bool
) -> None:
    """The category is gone then, as if the merge had been carried out by another writer."""

    def theirs(*_: Any) -> None:
        other.remove("red panda")
        add(other, "lynx", ["theirs"])

    if not new:
        add(store, "lynx", ["mine"])
    backend.hooks["commit"] = theirs
    with pytest.raises(CategoryNotFoundError, match="'red panda'"):
        store.move(Move(source="red panda", target="lynx", new=new))
    assert "theirs" in images(store, "lynx")


@pytest.mark.parametrize("hashes", [None, [content_hash("old")]], ids=["rename", "move"])
def test_move_to_a_new_category_that_loses_to_an_addition_is_run_again(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, hashes: list[str] | None
) -> None:
    backend.hooks["commit"] = lambda *_: add(other, "red panda", ["theirs"])
    store.move(Move(source="red panda", target="lynx", hashes=hashes))
    assert images(other, "lynx") == (["old"] if hashes else ["old", "theirs"])
    assert_no_garbage(deployment, store)


def test_category_that_both_create_has_the_references_of_both(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    backend.hooks["commit"] = lambda *_: add(other, "lynx", ["theirs"], ["their text"])
    add(store, "lynx", ["mine"], ["my text"])

    assert images(other, "lynx") == ["mine", "theirs"]
    assert store.category("lynx").texts == ("their text", "my text")
    assert store.category("lynx").version == 2
    assert_no_garbage(deployment, store)


def test_removal_after_a_lost_race(deployment: Deployment, backend: Hooked, store: Store, other: Store) -> None:
    backend.hooks["commit"] = lambda *_: add(other, "red panda", ["theirs"])
    store.remove("red panda")

    assert other.categories() == []
    assert_no_garbage(deployment, store)


def test_removal_of_a_category_that_another_removes_first(backend: Hooked, store: Store, other: Store) -> None:
    backend.hooks["commit"] = lambda *_: other.remove("red panda")
    with pytest.raises(CategoryNotFoundError):
        store.remove("red panda")


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
@pytest.mark.parametrize("successors", [1, 10])
def test_commit_is_recognised_though_others_follow_at_once(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, successors: int
) -> None:
    theirs = [str(i) for i in range(successors)]

    def follow(*_: Any) -> None:
        for source in theirs:
            add(other, "red panda", [source])

    def after_put(*_: Any) -> None:
        backend.hooks["retrieve"] = follow

    backend.hooks["commit"] = after_put
    [category] = store.write([write_of("red panda", ["mine"])])

    assert category.version == 2  # of this commit, not of one that the caller has not seen
    assert store.category("red panda").version == 2 + successors
    assert images(store) == sorted(["mine", "old", *theirs])
    assert_no_garbage(deployment, store)


@pytest.mark.usefixtures("impatient")
def test_writer_that_always_loses_gives_up(deployment: Deployment, backend: Hooked, store: Store, other: Store) -> None:
    acknowledged: list[str] = []

    def interfere(*_: Any) -> None:
        source = f"theirs {len(acknowledged):02}"
        add(other, "red panda", [source])
        acknowledged.append(source)
        backend.hooks["commit"] = interfere

    backend.hooks["commit"] = interfere
    with pytest.raises(ConflictError, match=r"'red panda'.*at each of \d+ attempts.*try again"):
        add(store, "red panda", ["mine"])
    backend.hooks.clear()

    assert len(acknowledged) > 3
    assert images(store) == ["old", *acknowledged]
    assert_no_garbage(deployment, store)


@pytest.mark.usefixtures("impatient")
def test_conflict_about_one_category_keeps_the_others(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    def interfere(*_: Any) -> None:
        add(other, "red panda", [str(time.monotonic_ns())])
        backend.hooks["commit"] = interfere

    backend.hooks["commit"] = interfere
    with pytest.raises(ConflictError, match="'red panda'") as caught:
        store.write([write_of("lynx", ["a"]), write_of("red panda", ["mine"])])
    backend.hooks.clear()

    assert "lynx" not in str(caught.value)
    assert images(other, "lynx") == ["a"]
    assert "mine" not in images(other)
    assert_no_garbage(deployment, store)


@pytest.mark.usefixtures("impatient")
def test_images_that_are_written_again_count_once(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    store = Store(backend, deployment.namespace, history=3600)
    backend.hooks["commit"] = lambda *_: add(other, "red panda", ["theirs"])
    with store.one_change("import") as change:
        store.write([write_of("lynx", ["a", "b"]), write_of("red panda", ["mine"])])
    assert "theirs" in images(store)
    [found] = [one for one in store.changes() if one.id == change]
    assert (found.images, found.categories) == (3, ("lynx", "red panda"))
    undone = store.undo("lynx", change)
    assert undone.id == change
    assert next(iter(store.changes())).images == 2


def test_many_threads_add_to_one_category(deployment: Deployment, store: Store) -> None:
    writers = [deployment.another(store) for _ in range(4)]

    def work(writer: int) -> None:
        for i in range(10):
            add(writers[writer], "red panda", [f"{writer} {i}"])

    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(work, range(len(writers))))

    assert images(store) == sorted(["old", *(f"{w} {i}" for w in range(4) for i in range(10))])
    assert store.category("red panda").version == 41
    assert_no_garbage(deployment, store)


def test_many_threads_write_everything_else(deployment: Deployment, store: Store) -> None:
    """Each thread has one category in the end."""
    writers = [deployment.another(store) for _ in range(4)]

    def work(writer: int) -> None:
        name = f"category {writer}"
        for i in range(5):
            add(writers[writer], name, ["a", "b"], [str(i)], replace=True)
            add(writers[writer], name, ["c"])
            writers[writer].remove(name)
            add(writers[writer], name, [f"last of {writer}"])

    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(work, range(len(writers))))

    for writer, handle in enumerate(writers):
        assert images(store, f"category {writer}") == [f"last of {writer}"]
        stamps = handle.stats()["second_stamps"]  # of a commit that took a second, on a busy machine
        assert store.category(f"category {writer}").version == 20 + stamps
    assert_no_garbage(deployment, store)


# Writers that die

DEADLY: dict[str, tuple[Operation, list[str] | None]] = {
    # a write, and the images of the category after it
    "add": (lambda s: add(s, "red panda", ["new", "newer"], ["new text"]), ["new", "newer", "old"]),
    "replace": (lambda s: add(s, "red panda", ["new", "newer"], ["new text"], replace=True), ["new", "newer"]),
    "remove": (lambda s: s.remove("red panda"), None),
    "several": (
        lambda s: s.write([write_of("lynx", ["1", "2"]), write_of("red panda", ["new"]), write_of("fox", ["3"])]),
        ["new", "old"],
    ),
    "compaction": (lambda s: add(s, "many", ["new"]), ["old"]),
}


@LASTING
@pytest.mark.parametrize("operation", DEADLY)
def test_writer_may_die_between_any_two_calls(
    deployment: Deployment, backend: Hooked, store: Store, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.writing._WRITES_KEPT", 3)
    act, after = DEADLY[operation]
    for survived in itertools.count():
        reset(deployment, store)
        before = contents(store)
        died = dies(backend, survived, lambda: act(store))

        assert store.incomplete() == []
        seen = contents(store)
        if not died:
            break
        try:
            act(store)
        except CategoryNotFoundError:  # removed before the writer died
            assert operation == "remove"
        done = contents(store)
        for name in seen | before | done:
            assert seen.get(name) in (before.get(name), done.get(name))
        assert (images(store) if "red panda" in done else None) == after
        store.gc(grace=0)
        assert_no_garbage(deployment, store)
    assert survived > 4


def dies(backend: Hooked, calls: int, act: Callable[[], Any]) -> bool:
    """Whether a writer that dies after so many calls dies; then another process goes on."""
    backend.dies_at = backend.calls.total() + calls
    try:
        act()
    except Crash:
        return True
    finally:
        backend.dies_at = None
    return False


def reset(deployment: Deployment, store: Store) -> None:
    deployment.clear(store)
    add(store, "red panda", ["old"], ["old text"])
    for i in range(3):
        add(store, "many", [str(i)])


def contents(store: Store) -> dict[str, Any]:
    return {category.name: (category.texts, sources(store, category.name)) for category in store.categories()}


def test_first_writer_may_die_between_any_two_calls(deployment: Deployment, backend: Hooked) -> None:
    for survived in itertools.count():
        store = Store(backend, f"{deployment.namespace}-{survived}")
        died = dies(backend, survived, partial(store.bind, FINGERPRINTS))

        assert store.categories() == []
        assert store.gc().total() == 0
        store.check(FINGERPRINTS)
        store.check_fingerprints(FINGERPRINTS)
        store.bind(FINGERPRINTS)
        add(store, "red panda", ["a"])
        assert images(store) == ["a"]
        assert store.encoders() == FINGERPRINTS
        deployment.drop(store)
        if not died:
            break
    assert survived > 4


def test_two_first_writers_at_once(deployment: Deployment, backend: Hooked) -> None:
    """Another writer comes before any call of a first bind, and both succeed."""
    for position in itertools.count():
        namespace = f"{deployment.namespace}-{position}"
        mine, theirs = Store(backend, namespace), Store(backend.inner, namespace)

        def come_first(*_: Any, theirs: Store = theirs, **__: Any) -> None:
            theirs.bind(FINGERPRINTS)
            add(theirs, "red panda", ["theirs"])

        backend.hooks[backend.calls.total() + position] = come_first
        mine.bind(FINGERPRINTS)
        if backend.hooks.pop(backend.calls.total(), None):
            break
        add(mine, "red panda", ["mine"])
        assert images(mine) == ["mine", "theirs"]
        deployment.drop(mine)
    assert position > 4


@pytest.mark.parametrize("encoder", FINGERPRINTS)
def test_torn_references_are_not_seen(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, encoder: str
) -> None:
    before = contents(store)

    def tear(collection: str, points: Points) -> None:
        if collection != store.collection(encoder):
            backend.hooks["upsert"] = tear
            return
        backend.inner.upsert(collection, Points(points.ids[:1], points.vectors[:1], points.payloads[:1]))
        raise Crash

    backend.hooks["upsert"] = tear
    with pytest.raises(Crash):
        store.write([write_of("red panda", ["new", "newer"], replace=True), write_of("lynx", ["a", "b"])])

    assert deployment.sizes()[encoder] > len(before["red panda"][1].get(f"{encoder}:image", [])) + (encoder == "clip")
    assert contents(other) == before
    assert other.incomplete() == []


# Calibration


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("others", [1, 3])
def test_calibration_that_loses_a_race_is_committed_after_the_winner(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, before: int, others: int
) -> None:
    for _ in range(before):
        store.keep_calibration({"by": "old"})
    came: list[int] = []

    def come_first(*_: Any) -> None:
        other.keep_calibration({"by": "them"})
        came.append(1)
        if len(came) < others:
            backend.hooks["commit"] = come_first

    backend.hooks["commit"] = come_first
    store.keep_calibration({"by": "me"})

    assert len(came) == others
    assert store.calibration() == other.calibration() == {"by": "me"}
    assert deployment.points("catalog")[record_id("calibration")]["version"] == before + others + 1


@pytest.mark.usefixtures("impatient")
def test_calibration_that_always_loses_gives_up(backend: Hooked, store: Store, other: Store) -> None:
    came: list[int] = []

    def interfere(*_: Any) -> None:
        came.append(len(came))
        other.keep_calibration({"by": came[-1]})
        backend.hooks["commit"] = interfere

    backend.hooks["commit"] = interfere
    with pytest.raises(ConflictError, match=r"calibration.*at each of \d+ attempts.*try again"):
        store.keep_calibration({"by": "me"})
    backend.hooks.clear()

    assert len(came) > 3
    assert store.calibration() == {"by": came[-1]}
    assert images(store) == ["old"]


def test_categories_and_calibrations_do_not_conflict(backend: Hooked, store: Store, other: Store) -> None:
    backend.hooks["commit"] = lambda *_: other.keep_calibration({"by": "them"})
    [category] = store.write([write_of("red panda", ["mine"])])
    assert category.version == 2
    assert store.calibration() == {"by": "them"}

    backend.hooks["commit"] = lambda *_: add(other, "red panda", ["theirs"])
    puts = backend.calls["put"]
    store.keep_calibration({"by": "me"})
    assert backend.calls["put"] - puts == (3 if other is store else 1)  # theirs: an intent and a commit
    assert store.calibration() == {"by": "me"}
    assert images(store) == ["mine", "old", "theirs"]


@pytest.mark.parametrize("before", [0, 1])
def test_calibration_survives_a_writer_that_dies(backend: Hooked, store: Store, before: int) -> None:
    for _ in range(before):
        store.keep_calibration({"by": "old"})
    kept = store.calibration()
    for survived in itertools.count():
        died = dies(backend, survived, lambda: store.keep_calibration({"by": "new"}))
        assert store.calibration() in (kept, {"by": "new"})
        assert images(store) == ["old"]
        if not died:
            break
    assert store.calibration() == {"by": "new"}
    assert survived > 2


def test_many_threads_calibrate(deployment: Deployment, store: Store) -> None:
    writers = [deployment.another(store) for _ in range(4)]

    def work(writer: int) -> None:
        for i in range(3):
            writers[writer].keep_calibration({"by": [writer, i]})

    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(work, range(len(writers))))

    assert store.calibration() in [{"by": [writer, 2]} for writer in range(4)]


# Garbage


def leave_garbage(backend: Hooked, store: Store, name: str = "red panda") -> int:
    """The number of references that a writer leaves which dies before the commit."""

    def die(*_: Any) -> None:
        raise Crash

    backend.hooks["commit"] = die
    with pytest.raises(Crash):
        add(store, name, ["garbage", "more garbage"])
    return 4


def test_garbage_is_collected_on_request(deployment: Deployment, backend: Hooked, store: Store, other: Store) -> None:
    before = contents(store)
    left = leave_garbage(backend, store) + leave_garbage(backend, store, "never committed")

    assert contents(other) == before
    assert other.gc(grace=0).total() == left
    assert other.gc(grace=0).total() == 0
    assert contents(other) == before
    assert_no_garbage(deployment, store)


def test_young_garbage_may_belong_to_a_writer_at_work(
    deployment: Deployment, backend: Hooked, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave_garbage(backend, store)
    assert store.gc().total() == (0 if deployment.shared else left)

    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3500 * 10**9)
    assert store.gc().total() == 0
    monkeypatch.setattr(time, "time_ns", lambda: now + 3700 * 10**9)
    assert store.gc().total() == (left if deployment.shared else 0)
    assert_no_garbage(deployment, store)


def test_writes_take_the_garbage_of_dead_writers_away(
    deployment: Deployment, backend: Hooked, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_garbage(backend, store)
    with_garbage = deployment.sizes()
    if deployment.shared:
        then, later = time.time_ns() + 3700 * 10**9, time.monotonic() + 3700
        monkeypatch.setattr(time, "time_ns", lambda: then)
        monkeypatch.setattr(time, "monotonic", lambda: later)
    add(store, "lynx", ["a"])

    assert with_garbage == {"clip": 4, "dino": 3}
    assert deployment.sizes() == {"clip": 3, "dino": 2}
    assert images(store) == ["old"]


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_collection_of_garbage_spares_a_writer_at_work(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    collected: list[int] = []
    backend.hooks["commit"] = lambda *_: collected.append(other.gc().total())
    add(store, "red panda", ["new"])

    assert collected == [0]
    assert images(other) == ["new", "old"]
    assert_no_garbage(deployment, store)


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_writer_that_slept_too_long_begins_anew(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    """Asleep before any call, while the collector deletes the references to commit."""
    collected: list[int] = []
    for position in itertools.count():
        reset(deployment, store)
        backend.hooks[backend.calls.total() + position] = lambda *_, **__: collected.append(other.gc(grace=0).total())
        store.write([write_of("red panda", ["new"], replace=True), write_of("lynx", ["a"])])
        if backend.hooks.pop(backend.calls.total(), None) or backend.hooks:
            break
        assert (images(store), images(store, "lynx")) == (["new"], ["a"])
        assert_no_garbage(deployment, store)
    backend.hooks.clear()
    assert max(collected) == 4


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_collector_that_slept_spares_later_commits(
    deployment: Deployment, backend: Hooked, store: Store, other: Store
) -> None:
    """Asleep before any call."""
    for position in itertools.count():
        reset(deployment, store)
        leave_garbage(backend, store)
        backend.hooks[backend.calls.total() + position] = lambda *_, **__: add(other, "red panda", ["new"])
        store.gc(grace=0)
        if backend.hooks:
            break
        assert images(store) == ["new", "old"]
        assert store.incomplete() == []
        assert_no_garbage(deployment, store)
    backend.hooks.clear()
    assert position > 8


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_commit_on_a_late_commit_of_a_dead_writer_is_seen(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W chooses a rev, sleeps, and lands. X plans on that, chooses, sleeps, lands and dies. W finds what X has left."""
    clock = [time.time_ns()]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    beside = deployment.backend()
    x, reader = deployment.open(beside), deployment.open()
    known = {category.name: category.version for category in reader.categories()}
    cursor = reader.look(Cursor(), {}).cursor

    def others_go_on(*_: Any) -> None:
        nonlocal cursor
        for _round in range(2):
            clock[0] += 10 * 10**9
            add(other, "fox", [str(clock[0])])
            look = reader.look(cursor, known)
            known.update({category.name: category.version for category in look.categories})
            cursor = look.cursor

    def die(*_: Any, **__: Any) -> None:
        raise Crash

    def x_dies(*_: Any) -> None:
        others_go_on()
        beside.hooks["retrieve"] = die

    def x_writes(*_: Any) -> None:
        beside.hooks["commit"] = x_dies
        with pytest.raises(Crash):
            add(x, "red panda", ["x"])

    def w_sleeps(*_: Any) -> None:
        others_go_on()
        backend.hooks["retrieve"] = x_writes

    backend.hooks["commit"] = w_sleeps
    add(store, "red panda", ["w"])

    [seen] = reader.look(cursor, known).categories
    assert seen == store.category("red panda")
    assert images(store) == ["old", "w", "x"]


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_second_stamps_are_counted(
    deployment: Deployment, backend: Hooked, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer with a fast clock comes between plan and commit."""
    real = time.time_ns

    def ahead(*_: Any) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() + 30 * 10**9)
        add(other, "lynx", ["1"])
        monkeypatch.setattr(time, "time_ns", real)

    assert store.stats() == {"second_stamps": 0, "unknown_outcomes": 0, "healed_records": 0}
    backend.hooks["commit"] = ahead
    add(store, "wolf", ["1"])
    assert store.stats() == {"second_stamps": 1, "unknown_outcomes": 0, "healed_records": 0}
    assert other.stats() == {"second_stamps": 0, "unknown_outcomes": 0, "healed_records": 0}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_unknown_outcomes_are_counted(backend: Hooked, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read after the commit does not show the commit."""
    retrieve = backend.inner.retrieve
    backend.hooks["commit"] = lambda *_: monkeypatch.setattr(
        backend.inner, "retrieve", lambda *asked: next(looks, None) or retrieve(*asked)
    )
    looks = iter(
        [{record_id("store"): retrieve(store.collection("catalog"), [record_id("store")])[record_id("store")]}]
    )
    add(store, "wolf", ["1"])
    assert store.stats()["unknown_outcomes"] == 1
    assert images(store, "wolf") == ["1"]
