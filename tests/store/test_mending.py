"""References that are removed and moved, against a plain model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.store.material import add, content_hash, references, sources, write_of
from tests.store.support import Deployment
from zsvec.errors import (
    CategoryNotFoundError,
    ConflictError,
    InvalidInputError,
    StoreUnavailableError,
    VersionConflictError,
)
from zsvec.store import Move, Renamed, Store, transfer
from zsvec.store.backends.base import Put
from zsvec.store.catalog.commit import publish
from zsvec.store.catalog.schema import expected
from zsvec.store.names import record_id

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


def hashes(*contents: str) -> list[str]:
    return [content_hash(content) for content in contents]


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_some_references_are_removed_and_the_others_stay(store: Store) -> None:
    add(store, "red panda", images=["a", "b"], texts=["reddish", "arboreal"])
    before = {reference.key: reference.vector.tolist() for reference in store.stored("red panda")}
    category = store.remove_references("red panda", hashes("a", "reddish"))
    assert category == store.category("red panda")
    assert category.texts == ("arboreal",)
    assert category.references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert sources(store, "red panda") == {"clip:image": ["b"], "clip:text": ["arboreal"], "dino:image": ["b"]}
    for reference in store.stored("red panda"):
        assert reference.vector.tolist() == pytest.approx(before[reference.key], abs=1e-6)
    store.gc(0)
    assert store.gc(0).total() == 0
    assert store.incomplete() == []


@pytest.mark.parametrize("gone", [["a", "b"], ["c"], ["a", "c"]])
def test_missing_or_all_references_cannot_be_removed(store: Store, gone: list[str]) -> None:
    add(store, "red panda", images=["a", "b"])
    before = store.category("red panda")
    with pytest.raises((ConflictError, InvalidInputError), match=r"(has|would have) no reference"):
        store.remove_references("red panda", hashes(*gone))
    assert store.category("red panda") == before
    with pytest.raises(CategoryNotFoundError):
        store.remove_references("fox", hashes("a"))


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_references_move(store: Store) -> None:
    add(store, "cat", images=["tom", "pluto"], texts=["meows"])
    add(store, "dog", images=["rex", "pluto"], metadata={"barks": True})
    moved = store.move(Move(source="cat", target="dog", hashes=hashes("pluto", "tom")))
    assert moved == store.category("dog")
    assert moved.metadata == {"barks": True}
    assert sources(store, "dog") == {name: ["pluto", "rex", "tom"] for name in ("clip:image", "dino:image")}
    assert sources(store, "cat") == {"clip:text": ["meows"]}
    store.move(Move(source="dog", target="fox", hashes=hashes("rex")))
    assert sources(store, "fox") == {"clip:image": ["rex"], "dino:image": ["rex"]}
    assert store.incomplete() == []


def test_references_that_the_target_has_already_are_only_removed(store: Store) -> None:
    add(store, "cat", images=["tom", "pluto"])
    add(store, "dog", images=["pluto"])
    before = store.category("dog")
    moved = store.move(Move(source="cat", target="dog", hashes=hashes("pluto")))
    assert (moved.write_ids, moved.references) == (before.write_ids, before.references)
    assert sources(store, "cat") == {"clip:image": ["tom"], "dino:image": ["tom"]}


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_category_is_merged_and_renamed(store: Store) -> None:
    add(store, "cat", images=["tom"], texts=["cat"], metadata={"legs": 4, "says": "meow"})
    add(store, "dog", images=["rex"], texts=["dog"], metadata={"says": "woof"})
    merged = store.move(Move(source="cat", target="dog"))
    assert merged.texts == ("dog", "cat")
    assert merged.metadata == {"legs": 4, "says": "woof"}
    assert [category.name for category in store.categories()] == ["dog"]
    with pytest.raises(CategoryNotFoundError):
        store.move(Move(source="cat", target="dog"))
    add(store, "cat", images=["felix"])
    with pytest.raises(InvalidInputError, match="there is a category 'cat' already: merge"):
        store.move(Move(source="dog", target="cat", new=True))
    by_name = Renamed("dog", "canine", hashes("dog"), references(texts=["canine"]))
    renamed = store.move(Move(source="dog", target="canine", new=True, renamed=by_name))
    assert renamed.texts == ("canine", "cat")
    assert sources(store, "canine") == {
        "clip:image": ["rex", "tom"],
        "clip:text": ["canine", "cat"],
        "dino:image": ["rex", "tom"],
    }
    store.move(Move(source="canine", target="dog", new=True))  # where there was one
    assert {category.name for category in store.categories()} == {"cat", "dog"}
    assert store.incomplete() == []


def test_a_copy_that_two_move_to_each_other_stays(open_store: Callable[..., Store]) -> None:
    first = open_store()
    stores = [first, first if first._catalog.exclusive else open_store()]
    for number in range(5):
        names = [f"cat {number}", f"dog {number}"]
        for name in names:
            add(stores[0], name, images=[f"of {name}", "both"])
        moves = [Move(source=a, target=b, hashes=hashes("both")) for a, b in (names, reversed(names))]
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(store.move, move) for store, move in zip(stores, moves, strict=True)]
            refused = [future.exception() for future in done]
        assert all(error is None or isinstance(error, InvalidInputError) for error in refused)
        there = [name for name in names if "both" in sources(stores[0], name)["clip:image"]]
        assert len(there) == 1


def test_many_moves_at_once(store: Store) -> None:
    """A category passes on what it had before, and keeps what it gains."""
    add(store, "cat", images=["tom", "rex", "both"])
    add(store, "dog", images=["pluto", "felix", "both"])
    hashes_of = {("cat", "dog"): ["rex", "both"], ("dog", "cat"): ["felix", "both"], ("dog", "fox"): ["pluto"]}
    moves = [Move(source=a, target=b, hashes=hashes(*some)) for (a, b), some in hashes_of.items()]
    before = store.categories()
    for wrong in (Move(source="cat", target="fox", hashes=hashes("nobody")), Move(source="ape", target="fox")):
        with pytest.raises((InvalidInputError, CategoryNotFoundError)):
            store.move_many([*moves, wrong])
    with pytest.raises(ConflictError):
        store.move_many([*moves[:1], Move(source="cat", target="fox", hashes=hashes("tom"))])
    assert store.categories() == before
    moved = store.move_many(moves)
    assert moved == [store.category(name) for name in ("dog", "cat", "fox")]
    found = {name: sources(store, name)["clip:image"] for name in ("cat", "dog", "fox")}
    assert found == {"cat": ["both", "felix", "tom"], "dog": ["both", "rex"], "fox": ["pluto"]}
    withdrawn = {name: store.withdrawn(name) for name in found}
    assert withdrawn["fox"] is None
    assert withdrawn["cat"] is not None
    assert [withdrawn["cat"](one) for one in hashes("rex", "felix", "both")] == [True, False, False]
    assert store.incomplete() == []
    copies_of_both = [Move(source=a, target=b, hashes=hashes("both")) for a, b in (("cat", "dog"), ("dog", "cat"))]
    exchanged = store.move_many(copies_of_both)
    assert [one.references for one in exchanged] == [one.references for one in (moved[0], moved[1])]


def test_a_text_that_is_added_while_a_category_is_renamed_stays(store: Store) -> None:
    add(store, "dog", texts=["dog"], images=["rex"])
    renamed = Renamed("dog", "hound", hashes("dog"), references(texts=["hound"]))
    add(store, "dog", texts=["barks"])
    assert store.move(Move(source="dog", target="hound", new=True, renamed=renamed)).texts == ("hound", "barks")
    assert sources(store, "hound")["clip:text"] == ["barks", "hound"]


def test_a_transfer_to_a_category_that_cannot_be_read_stops_no_writer_of_the_other(store: Store) -> None:
    add(store, "cat", images=["tom"])
    add(store, "dog", images=["rex"])
    (record,) = (m for m in store._catalog.manifests() if m["category"] == "dog")
    damaged = {**record, "version": 2, "texts": None}
    store._catalog.put([Put(record_id("category", "dog"), damaged, expected(record))])
    add(store, "cat", images=["felix"])
    assert sources(store, "cat")["clip:image"] == ["felix", "tom"]


MARK: Mapping[str, Any] = {"id": "x", "at": "lion", "since": 1, "needs": [], "gains": None, "loses": None}
FORGED: Mapping[str, Mapping[str, Any]] = {
    "no mark": {"cat": 3, "dog": []},
    "of itself": {"cat": {**MARK, "at": "cat", "others": {}, "won": False}},
    "of nobody": {"cat": {**MARK, "at": "nobody"}},
    "of another": {"cat": MARK, "dog": {**MARK, "needs": ["nobody"]}},
    "of each other": {"cat": {**MARK, "at": "dog"}, "dog": {**MARK, "at": "cat"}},
    "with others that are not marked": {"cat": {**MARK, "at": "cat", "others": {"dog": 1}, "won": False}},
    "won with others that are not marked": {"cat": {**MARK, "at": "cat", "others": {"dog": 1}, "won": True}},
    "of later": {"cat": {**MARK, "since": 2**52}},
    "won with others of later": {"cat": {**MARK, "at": "cat", "others": {"dog": 2**52}, "won": True}},
    "won with nobody": {"cat": {**MARK, "at": "cat", "others": {"nobody": 1}, "won": True}},
    "with no step": {"cat": {**MARK, "gains": {"kind": "manifest", "category": "cat", "version": 1, "rev": 1}}},
}


def forge(store: Store, name: str, **fields: Any) -> None:
    """Replaces fields of a manifest, as anyone who can write to the catalog may."""
    record = store._catalog.state([name]).manifests[name]
    forged = {**record, "version": record["version"] + 1, **fields}
    store._catalog.put([Put(record_id("category", name), forged, expected(record))])


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_mark_of_a_transfer_stops_no_writer(store: Store, kind: str) -> None:
    for name in ("cat", "dog", "lion"):
        add(store, name, images=["tom", "pluto"])
    for name, mark in FORGED[kind].items():
        forge(store, name, transfer=mark)
    store.move(Move(source="cat", target="fox", hashes=hashes("tom")))
    for name in ("cat", "dog", "lion"):
        add(store, name, images=["felix"])
    store.gc(0)
    assert sources(store, "cat")["clip:image"] == ["felix", "pluto"]
    assert sources(store, "dog")["clip:image"] == sources(store, "lion")["clip:image"] == ["felix", "pluto", "tom"]
    assert store.incomplete() == []


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_mark_of_a_transfer_stops_no_erasure_and_no_garbage_collection(store: Store, kind: str) -> None:
    for name in ("cat", "dog", "lion"):
        add(store, name, images=["tom", "pluto"])
    for name, mark in FORGED[kind].items():
        forge(store, name, transfer=mark)
    store.gc(0)
    for name, mark in FORGED[kind].items():
        forge(store, name, transfer=mark)
    [digest] = hashes("tom")
    assert store.forget(digest).categories == ("cat", "dog", "lion")
    assert [sources(store, name)["clip:image"] for name in ("cat", "dog", "lion")] == [["pluto"]] * 3


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_mark_of_later_stops_a_writer_while_a_replica_may_have_missed_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "lion"):
        add(store, name, images=["tom"])
    forge(store, "cat", transfer=FORGED["of later"]["cat"])
    backend: Any = store._backend
    with monkeypatch.context() as patch:
        patch.setattr(backend.inner, "is_whole", lambda _: False)
        with pytest.raises(StoreUnavailableError, match="'lion'"):
            add(store, "cat", images=["felix"])
        add(store, "lion", images=["felix"])
    add(store, "cat", images=["felix"])
    assert sources(store, "cat")["clip:image"] == ["felix", "tom"]


@pytest.mark.parametrize("requires", [None, 3, "x", [], {"a": "x"}, {"a": -1}, {"a": None}])
def test_forged_requirements_stop_no_writer(store: Store, requires: Any) -> None:
    add(store, "cat", images=["tom", "pluto"])
    forge(store, "cat", requires=requires)
    store.move(Move(source="cat", target="dog", hashes=hashes("tom")))
    add(store, "cat", images=["felix"])
    assert sources(store, "cat")["clip:image"] == ["felix", "pluto"]


@pytest.mark.parametrize("deployment", ["local"], indirect=True)  # no other process can write to an embedded store
def test_a_category_that_is_damaged_during_a_transfer_stops_no_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        add(store, name, images=["tom", "pluto"])

    def damaging(*args: Any) -> Any:
        if "cat" in args[1]:  # at the end
            forge(store, "dog", version="1")
            args = (args[0], store._catalog.state(["cat", "dog"]).manifests)
        return publish(*args)

    monkeypatch.setattr("zsvec.store.transfer.publish", damaging)
    monkeypatch.setattr("zsvec.store.catalog.commit._LOOKS", 2)
    with pytest.raises(StoreUnavailableError):
        store.move(Move(source="cat", target="dog", hashes=hashes("tom")))
    add(store, "cat", images=["felix"])
    assert sources(store, "cat")["clip:image"] == ["felix", "pluto"]


class KilledError(Exception):
    """The process ends here."""


@contextmanager
def killed_when_won(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kills the writer of a transfer when the coordinator says that the transfer is won."""
    steps = iter([transfer._next])

    def dying(*args: Any) -> Any:
        if step := next(steps, None):
            return step(*args)
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(transfer, "_next", dying)
        yield


def test_a_mark_that_stayed_hides_no_running_transfer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some categories still have the mark of a transfer that was cancelled, with the same coordinator."""
    stale = [f"stale {number}" for number in range(8)]  # whichever mark is read last
    add(store, "cat", images=["stays", "tom"])
    for name in ("dog", *stale):
        add(store, name, images=[f"of {name}"])
    for name in stale:
        forge(store, name, transfer={**MARK, "at": "cat"})
    with killed_when_won(monkeypatch):
        store.move(Move(source="cat", target="dog", hashes=hashes("tom")))
    store.write([write_of(name, [f"of {name}", "new"]) for name in (*stale, "dog")])
    assert sources(store, "dog")["clip:image"] == ["new", "of dog", "tom"]
    assert sources(store, "cat")["clip:image"] == ["stays"]
    add(store, "cat", images=["felix"])


@pytest.mark.parametrize("deployment", ["local"], indirect=True)  # no other process can write to an embedded store
@pytest.mark.parametrize("new", [True, False])
def test_a_move_returns_what_it_has_committed_not_what_came_later(
    store: Store, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, *, new: bool
) -> None:
    add(store, "cat", images=["stays", "tom"])
    if not new:
        add(store, "dog", images=["rex"])
    other, finish = deployment.another(store), transfer._finish

    def finished(*args: Any) -> None:
        finish(*args)
        add(other, "dog", images=["felix"])

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_finish", finished)
        moved = store.move(Move(source="cat", target="dog", hashes=hashes("tom")))
    assert moved.references["clip:image"] == 2 - new
    with pytest.raises(VersionConflictError), store.expecting("dog", {moved.version}):
        pass
    later = store.move(Move(source="cat", target="dog", hashes=None))
    assert later == store.category("dog")
    with store.expecting("dog", {later.version}):
        add(store, "dog", images=["fido"])


@pytest.mark.parametrize("damage", [{"version": "1"}, {"texts": None}])
@pytest.mark.parametrize("name", ["cat", "dog"])
def test_a_won_transfer_with_a_damaged_category_loses_nothing_of_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch, damage: Mapping[str, Any], name: str
) -> None:
    add(store, "cat", images=["stays", "tom"])
    add(store, "dog", images=["rex"])
    with killed_when_won(monkeypatch):
        store.move(Move(source="cat", target="dog", hashes=hashes("tom")))
    forge(store, name, **damage)
    readable = "dog" if name == "cat" else "cat"
    before = sources(store, readable)["clip:image"]
    add(store, readable, images=["felix"])
    assert sources(store, readable)["clip:image"] == sorted([*before, "felix"])


@pytest.mark.parametrize("found", [None, 3, "x", {}, ["a" * 16]])
def test_foreign_withdrawals_stop_no_writer(store: Store, found: Any) -> None:
    add(store, "cat", images=["tom", "felix"])
    (record,) = (m for m in store._catalog.manifests() if m["category"] == "cat")
    forged = {**record, "version": 2, "withdrawn": found, "retired": found}
    store._catalog.put([Put(record_id("category", "cat"), forged, expected(record))])
    assert store.withdrawn("cat") is None
    store.remove_references("cat", hashes("tom"))
    is_withdrawn = store.withdrawn("cat")
    assert is_withdrawn is not None
    assert [is_withdrawn(digest) for digest in hashes("tom", "felix")] == [True, False]


def test_a_category_remembers_a_limited_number_of_withdrawals(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.catalog.marks.MARKS_KEPT", 2)
    add(store, "cat", images=["tom", "felix", "sylvester", "garfield"])
    for content in ("tom", "felix", "sylvester"):
        store.remove_references("cat", hashes(content))
    assert store.category("cat").withdrawn == tuple(digest[:16] for digest in hashes("felix", "sylvester"))


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_kept_finding_is_remembered_and_follows_its_category(open_store: Callable[..., Store]) -> None:
    store = open_store(history=86_400.0)
    add(store, "cat", images=["tom", "felix", "stays"])
    add(store, "lion", images=["leo"])
    tom, felix, leo = hashes("tom", "felix", "leo")
    writes, again = store.category("cat").write_ids, len(store.changes())
    for _ in range(2):  # the second time changes nothing
        kept = store.keep("cat", [tom, felix], "label")
        assert (kept.write_ids, kept.version) == (writes, 2)
        assert len(store.changes()) == again + 1
    store.keep("lion", [leo], "outlier")
    with pytest.raises(InvalidInputError):
        store.keep("lion", [tom], "label")
    is_kept = store.kept()
    assert [is_kept("label", "cat", digest) for digest in (tom, felix, leo)] == [True, True, False]
    assert [is_kept(kind, "lion", leo) for kind in ("outlier", "label")] == [True, False]
    add(store, "cat", images=["new"])
    store.remove_references("cat", [felix])
    add(store, "cat", images=["felix"])  # is judged anew
    store.move(Move(source="cat", target="pet", new=True))
    store.move(Move(source="lion", target="pet"))
    is_kept = store.kept()
    assert [is_kept("label", "pet", digest) for digest in (tom, felix, leo)] == [True, False, False]
    assert is_kept("outlier", "pet", leo)
    assert not is_kept("label", "cat", tom)
    store.undo()
    store.undo()
    assert store.kept()("label", "cat", tom)
    assert store.kept()("outlier", "lion", leo)
    store.move(Move(source="cat", target="lion", hashes=[tom]))
    assert not store.kept()("label", "lion", tom)
    store.undo()
    assert store.kept()("label", "cat", tom)
    store.undo(change=next(change.id for change in store.changes() if change.categories == ("lion",)))
    assert not store.kept()("outlier", "lion", leo)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, indirect=True)
def test_a_replaced_image_is_no_longer_kept(open_store: Callable[..., Store]) -> None:
    store = open_store()
    add(store, "cat", images=["tom", "felix"])
    store.keep("cat", hashes("tom", "felix"), "label")
    add(store, "cat", images=["felix", "new"], replace=True)
    add(store, "cat", images=["tom"])  # is judged anew
    is_kept = store.kept()
    assert [is_kept("label", "cat", digest) for digest in hashes("tom", "felix")] == [False, True]


def test_kept_findings_are_limited_and_may_be_forged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.catalog.marks.MARKS_KEPT", 2)
    add(store, "cat", images=["tom", "felix", "sylvester"])
    for content in ("tom", "felix", "sylvester"):
        store.keep("cat", hashes(content), "label")
    assert [store.kept()("label", "cat", digest) for digest in hashes("tom", "felix", "sylvester")] == [
        False,
        True,
        True,
    ]
    for forged in (None, 3, "x", {}, ["a" * 17]):
        (record,) = (m for m in store._catalog.manifests() if m["category"] == "cat")
        changed = {**record, "version": record["version"] + 1, "kept": forged}
        store._catalog.put([Put(record_id("category", "cat"), changed, expected(record))])
        assert not store.kept()("label", "cat", hashes("felix")[0])
        store.keep("cat", hashes("tom"), "label")
        assert store.kept()("label", "cat", hashes("tom")[0])


@dataclass
class Model:
    """The expected contents of each category by modality, metadata, and what an import leaves out of each category."""

    categories: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    withdrawn: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    retired: set[str] = field(default_factory=set)

    def add(self, name: str, contents: Mapping[str, set[str]]) -> None:
        there = self.categories.setdefault(name, {"image": set(), "text": set()})
        for modality, some in contents.items():
            there[modality] |= some
            self.withdrawn[name] -= some
        self.retired.discard(name)
        self.metadata.setdefault(name, {})

    def take(self, name: str, some: set[str]) -> dict[str, set[str]]:
        there = self.categories[name]
        taken = {modality: contents & some for modality, contents in there.items()}
        self.withdrawn[name] |= some
        self.categories[name] = {modality: contents - some for modality, contents in there.items()}
        if not any(self.categories[name].values()):
            del self.categories[name]
            self.retired.add(name)
        return taken

    def contents(self, name: str) -> set[str]:
        return set().union(*self.categories.get(name, {}).values())


class Changes:
    """Random changes of a store and of a model."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.model, self.random = store, Model(), random.Random(seed)

    def some(self, name: str) -> set[str]:
        there = sorted(self.model.contents(name))
        return set(self.random.sample(there, self.random.randint(1, len(there))))

    def add(self, name: str, _: str, /) -> None:
        image, text = f"image {self.random.randint(0, 9)}", f"text {self.random.randint(0, 3)}"
        add(self.store, name, images=[image], texts=[text])
        self.model.add(name, {"image": {image}, "text": {text}})

    def remove(self, name: str, _: str, /) -> None:
        some = self.some(name)
        with refused(some == self.model.contents(name)):
            self.store.remove_references(name, hashes(*some))
            self.model.take(name, some)

    def move(self, name: str, other: str, /) -> None:
        some = self.some(name)
        with refused(some == self.model.contents(name)):
            self.store.move(Move(source=name, target=other, hashes=hashes(*some)))
            self.model.add(other, self.model.take(name, some))

    def merge(self, name: str, other: str, /, *, new: bool = False) -> None:
        with refused(new and other in self.model.categories):
            self.store.move(Move(source=name, target=other, new=new))
            metadata = {**self.model.metadata.pop(name), **self.model.metadata.get(other, {})}
            self.model.add(other, self.model.take(name, self.model.contents(name)))
            self.model.metadata[other] = metadata

    def rename(self, name: str, other: str, /) -> None:
        self.merge(name, other, new=True)

    def describe(self, name: str, _: str, /) -> None:
        self.model.metadata[name] = {"number": self.random.random()}
        self.store.write([write_of(name, metadata=self.model.metadata[name])])

    def drop(self, name: str, _: str, /) -> None:
        self.store.remove(name)
        self.model.take(name, self.model.contents(name))
        del self.model.metadata[name]

    def change(self) -> None:
        name, other = self.random.sample("abcd", 2)
        ways: list[Callable[[str, str], None]] = [self.add] * 2
        if name in self.model.categories:
            ways += [self.remove, self.move, self.move, self.merge, self.rename, self.describe, self.drop]
        self.random.choice(ways)(name, other)


def refused(wanted: bool) -> AbstractContextManager[object]:
    return pytest.raises((ConflictError, InvalidInputError)) if wanted else nullcontext()


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_are_those_of_a_plain_model(store: Store, seed: int) -> None:
    changes = Changes(store, seed)
    for _ in range(40):
        changes.change()
        assert_as(store, changes.model)
    store.gc(0)
    assert store.gc(0).total() == 0
    assert store.incomplete() == []
    assert_as(store, changes.model)


def assert_as(store: Store, model: Model) -> None:
    found = {category.name: category for category in store.categories()}
    assert found.keys() == model.categories.keys()
    every = {*(f"image {number}" for number in range(10)), *(f"text {number}" for number in range(4))}
    for name in "abcd":
        is_withdrawn = store.withdrawn(name) or (lambda _: False)
        left_out = {content for content in every if is_withdrawn(content_hash(content))}
        assert left_out == (every if name in model.retired else model.withdrawn[name])
    for name, contents in model.categories.items():
        expected = {"clip:image": contents["image"], "dino:image": contents["image"], "clip:text": contents["text"]}
        assert sources(store, name) == {e: sorted(s) for e, s in sorted(expected.items()) if s}
        assert set(found[name].texts) == contents["text"]
        assert found[name].metadata == model.metadata[name]
        assert found[name].references == {e: len(s) for e, s in expected.items() if s}
