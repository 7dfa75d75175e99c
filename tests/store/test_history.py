"""Changes and undo against a plain model, and killed processes."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, content_hash, copies, live_copies, pictured, write_of
from tests.store.support import Crash, Deployment, EdgeDeployment, Hooked, LocalDeployment, fast_folder
from zsvec.errors import ConflictError, InvalidInputError
from zsvec.store import Move, Store, open_store
from zsvec.store import store as store_module
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.schema import expected
from zsvec.store.names import record_id

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share

DAY = 86_400.0
NAMES = ("here", "there", "elsewhere")


@dataclass(frozen=True)
class Category:
    images: frozenset[str] = frozenset()
    texts: tuple[str, ...] = ()
    metadata: tuple[tuple[str, Any], ...] = ()


State = Mapping[str, Category]


def state_of(store: Store) -> dict[str, Category]:
    found = {}
    for category in store.categories():
        by_encoder: dict[str, set[str]] = {encoder: set() for encoder in FINGERPRINTS}
        texts = set()
        for reference in store.stored(category.name):
            if reference.modality == "text":
                texts.add(reference.source)
            else:
                by_encoder[reference.encoder].add(reference.source)
        assert by_encoder["clip"] == by_encoder["dino"]
        assert texts == set(category.texts)
        metadata = tuple(sorted(category.metadata.items()))
        found[category.name] = Category(frozenset(by_encoder["clip"]), tuple(sorted(category.texts)), metadata)
    return found


@dataclass
class Model:
    """The expected categories, and the changes that can be undone.

    Attributes:
        now: By name.
        done: Changes in effect, oldest first: each category before, ``None`` if absent.
    """

    now: dict[str, Category] = field(default_factory=dict)
    done: list[dict[str, Category | None]] = field(default_factory=list)

    def become(self, after: State, touched: Collection[str]) -> None:
        names = {*touched, *(name for name in {*self.now, *after} if self.now.get(name) != after.get(name))}
        if names:
            self.done.append({name: self.now.get(name) for name in names})
            self.now = dict(after)

    def last(self, name: str | None) -> dict[str, Category | None] | None:
        return next((change for change in reversed(self.done) if name is None or name in change), None)

    def can_undo(self, change: dict[str, Category | None]) -> bool:
        later = self.done[self._place(change) + 1 :]
        return not any(change.keys() & other.keys() for other in later)

    def take_back(self, change: dict[str, Category | None]) -> None:
        self.now = self.without(change)
        del self.done[self._place(change)]

    def _place(self, change: dict[str, Category | None]) -> int:
        return next(i for i, other in enumerate(self.done) if other is change)

    def without(self, change: Mapping[str, Category | None]) -> dict[str, Category]:
        after: dict[str, Category | None] = {**self.now, **change}
        return {name: category for name, category in after.items() if category is not None}


@dataclass(frozen=True)
class Step:
    """An operation on a store.

    Attributes:
        what: Description.
        act: The operation.
        after: The expected categories; ``None`` if the operation is refused.
        undoes: The undone change.
        touched: Categories with a new version, though perhaps of equal content.
    """

    what: str
    act: Callable[[Store], object]
    after: State | None
    undoes: dict[str, Category | None] | None = None
    touched: Collection[str] = ()


def steps(model: Model, chance: random.Random) -> Step:  # noqa: C901 - one branch a kind of step
    """A random step."""
    name, other = chance.sample(NAMES, 2)
    there = model.now.get(name)
    images = frozenset(f"image {i}" for i in chance.sample(range(8), chance.randint(1, 3)))
    kinds = ["replace", "remove", "forget", "move", "move", "exchange", "exchange", "merge", "rename", "metadata"]
    what = chance.choice(["add"] * 3 + kinds)
    if chance.random() < 0.35:
        what = "undo"
    now = dict(model.now)
    if what == "undo":
        which = chance.choice([None, name])
        change = model.last(which)
        if change is None or not model.can_undo(change):
            return Step(f"undo {which}", lambda store: store.undo(which), None)
        return Step(f"undo {which}", lambda store: store.undo(which), model.without(change), change)
    if what == "exchange" and there is not None:
        return exchange(model, [name, other, *({*NAMES} - {name, other})], there.images & images)
    if what == "add" or there is None:
        old = there or Category()
        texts = tuple(sorted({*old.texts, f"text {chance.randint(0, 3)}"}))
        now[name] = Category(old.images | images, texts, old.metadata)
        return Step(f"add {name}", lambda store: store.write([pictured(name, sorted(images), texts)]), now)
    if what == "replace":
        now[name] = Category(images, ("new",), ())
        write = pictured(name, sorted(images), ["new"], replace=True)
        return Step(f"replace {name}", lambda store: store.write([write]), now, touched=[name])
    if what == "metadata":
        metadata = {"n": chance.randint(0, 2)}
        now[name] = Category(there.images, there.texts, tuple(metadata.items()))
        return Step(f"metadata {name}", lambda store: store.write([write_of(name, metadata=metadata)]), now)
    if what == "remove":
        del now[name]
        return Step(f"remove {name}", lambda store: store.remove(name), now)
    gone = there.images & images
    hashes = [content_hash(image) for image in gone]
    if what == "forget":
        kept = Category(there.images - gone, there.texts, there.metadata)
        now[name] = kept
        fits = gone and (kept.images or kept.texts)
        return Step(
            f"remove {gone} of {name}",
            lambda store: store.remove_references(name, hashes or ["none"]),
            now if fits else None,
        )
    target = model.now.get(other, Category())
    if what == "move":
        now[name] = Category(there.images - gone, there.texts, there.metadata)
        now[other] = Category(target.images | gone, target.texts, target.metadata)
        fits = gone and (now[name].images or now[name].texts)
        move = Move(source=name, target=other, hashes=hashes or ["none"])
        said = f"move {gone} from {name} to {other}"
        return Step(said, lambda store: store.move(move), now if fits else None, touched=[name, other])
    new = what == "rename"
    texts = tuple(sorted({*there.texts, *target.texts}))
    metadata = dict(there.metadata) | dict(target.metadata)
    del now[name]
    now[other] = Category(there.images | target.images, texts, tuple(sorted(metadata.items())))
    move = Move(source=name, target=other, new=new)
    return Step(
        f"{what} {name} as {other}", lambda store: store.move(move), None if new and other in model.now else now
    )


def exchange(model: Model, names: Sequence[str], gone: frozenset[str]) -> Step:
    """Two categories exchange images, and one image goes from the first to the third."""
    first, second, _ = names
    back = model.now.get(second, Category()).images & frozenset(f"image {i}" for i in range(4))
    moved = dict(
        zip(((first, second), (second, first), (first, names[2])), ({*gone}, {*back}, set[str]()), strict=True)
    )
    if gone:
        last = max(gone)
        moved[first, second].remove(last)
        moved[first, names[2]].add(last)
    pairs = {pair: some for pair, some in moved.items() if some}
    now = dict(model.now)
    for name in {name for pair in pairs for name in pair}:
        there = model.now.get(name, Category())
        lost = {image for (source, _), some in pairs.items() if source == name for image in some}
        won = {image for (_, target), some in pairs.items() if target == name for image in some}
        now[name] = replace(there, images=frozenset((there.images - lost) | won))
    moves = [Move(source=a, target=b, hashes=[*map(content_hash, some)]) for (a, b), some in pairs.items()]
    fits = moves and all(now[move.source].images or now[move.source].texts for move in moves)
    return Step(
        f"exchange {pairs}",
        lambda store: exchanged(store, moves),
        now if fits else None,
        touched={name for pair in pairs for name in pair},
    )


def exchanged(store: Store, moves: Sequence[Move]) -> None:
    if not moves:
        raise InvalidInputError("nothing to move")
    store.move_many(moves)


def played(store: Store, model: Model, step: Step) -> None:
    """Do a step, and compare."""
    if step.after is None:
        with pytest.raises((InvalidInputError, ConflictError)):
            step.act(store)
    else:
        step.act(store)
        taken(model, step)
    assert state_of(store) == model.now, step.what


def taken(model: Model, step: Step) -> None:
    assert step.after is not None
    if step.undoes is not None:
        model.take_back(step.undoes)
    else:
        model.become(step.after, step.touched)


@pytest.fixture
def store(deployment: Deployment) -> Store:
    return deployment.open(history=DAY, by="Ann")


@pytest.mark.parametrize(
    ("deployment", "seed"), [*itertools.product(DEPLOYMENTS, range(4)), ("server", 0)], indirect=["deployment"]
)
def test_random_changes_are_taken_back(store: Store, seed: int) -> None:
    model, chance = Model(), random.Random(seed)
    for i in range(60):
        played(store, model, steps(model, chance))
        if i % 20 == 0:
            store.gc(None if i % 40 else 3600.0)
    while model.done:
        change = model.done[-1]
        played(store, model, Step("undo", lambda store: store.undo(), model.without(change), change))
    with pytest.raises(InvalidInputError, match="no change"):
        store.undo()
    assert store.incomplete() == []
    assert copies(store) >= live_copies(store)
    store.gc(float("-inf"))
    assert store.gc(float("-inf")).total() == 0
    assert store.changes() == []


@pytest.mark.parametrize("seed", range(9))
def test_random_changes_with_a_killed_writer(deployment: Deployment, seed: int) -> None:
    """Each step is done or not at all, acknowledged steps stay, and done ones can be undone."""
    backend = deployment.backend()
    store, model, chance = deployment.open(backend, history=DAY, by="Ann"), Model(), random.Random(seed)
    killed = 0
    for _ in range(80):
        step = steps(model, chance)
        if step.after in (None, model.now) or chance.random() < 0.3:
            played(store, model, step)
            continue
        dying = Hooked(backend.inner)
        writer = Store(dying, deployment.namespace, history=DAY, by="Ann")
        assert step.after is not None
        dying.dies_at = chance.randint(0, 25)
        try:
            step.act(writer)
            done = True
        except Crash:
            killed += 1
            done = False
        store = deployment.open(backend, history=DAY, by="Ann")  # another process
        store.gc()
        found = state_of(store)
        assert found == (dict(step.after) if done else found), step.what
        assert found in (dict(step.after), model.now), step.what
        if found == dict(step.after):
            taken(model, step)
        assert store.incomplete() == []
        assert copies(store) >= live_copies(store)
    assert killed > 10
    while model.done:
        change = model.done[-1]
        played(store, model, Step("undo", lambda store: store.undo(), model.without(change), change))
    store.gc(float("-inf"))
    assert store.gc(float("-inf")).total() == 0


# An undo of several categories

CHANGES: dict[str, Callable[[Store], object]] = {
    "one write": lambda store: store.write(
        [
            pictured("here", ["new"], replace=True),
            pictured("there", ["new"]),
            pictured("elsewhere", ["new"], ["text"]),
            pictured("made", ["new"]),
        ]
    ),
    "several writes": lambda store: (
        store.write([pictured("here", ["new"]), pictured("there", ["new"])]),
        store.move(Move(source="there", target="elsewhere", hashes=[content_hash("there")])),
        store.write([pictured("here", ["newer"], replace=True), pictured("made", ["new"])]),
    ),
    "a move in a circle": lambda store: store.move_many(
        [
            Move(source=source, target=target, hashes=[content_hash(source)])
            for source, target in zip(NAMES, (*NAMES[1:], "made"), strict=True)
        ]
        + [Move(source="elsewhere", target="here", hashes=[content_hash("old")])]
    ),
}


def imported(backend: Hooked, namespace: str, change: str) -> tuple[Store, State]:
    """A store with a change of four categories, and the state before."""
    store = Store(backend, namespace, history=DAY, by="Ann")
    store.bind(FINGERPRINTS)
    store.write([pictured(name, [name, "old"]) for name in NAMES])
    before = state_of(store)
    ahead = time.time_ns() + 3600 * 10**9
    with pytest.MonkeyPatch.context() as patch, store.one_change("import"):
        patch.setattr(time, "time_ns", lambda: ahead)
        CHANGES[change](store)
    return store, before


@pytest.mark.parametrize("deployment", ["edge", "memory", "local", "server"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["undo", "undo of the undo", "by category"])
def test_an_undo_that_is_killed_is_finished_by_the_next_process(deployment: Deployment, change: str, how: str) -> None:
    """After every call, and listed after a change by a clock that ran ahead."""
    backend, finished = deployment.backend(), 0
    category = "here" if how == "by category" else None
    for survived in itertools.count():
        store, before = imported(backend, f"{deployment.namespace}-{survived}", change)
        after, to_undo = state_of(store), store.changes()[0].id
        if how == "undo of the undo":
            store.undo()
            before, after, to_undo = after, before, store.changes()[0].id
        if category and change != "a move in a circle":  # which is undone as a whole
            before = {**after, category: before[category]}
        dying = Hooked(backend.inner)
        writer = Store(dying, store.namespace, history=DAY, by="Ann")
        dying.dies_at = survived
        try:
            writer.undo(category, None if category else to_undo)
            died = False
        except Crash:
            died = True
        again = Store(backend, store.namespace, history=DAY, by="Ann")
        again.bind(FINGERPRINTS)
        found, told = state_of(again), again.changes()
        assert found in ([before, after] if died else [before]), survived
        [same] = [one for one in told if one.id == to_undo]
        if not category:
            assert same.undone == (found == before), survived
        assert again.incomplete() == []
        if found == before:
            finished += died
            assert told[0].what == "undo"
            again.undo(change=told[0].id)
            assert state_of(again) == after
        again.gc(float("-inf"))
        assert again.gc(float("-inf")).total() == 0
        assert not again._catalog.scroll(Where(match={"kind": "undo"}))
        deployment.drop(store)
        if not died:
            break
    assert finished > 3


def test_an_undo_that_is_killed_is_finished_when_an_embedded_store_is_opened() -> None:
    """Also by a process that only reads."""
    with fast_folder() as parent:
        deployment = EdgeDeployment(parent / "store")
        backend = deployment.backend()
        store, before = imported(backend, deployment.namespace, "several writes")
        after = state_of(store)

        def die(*_: object) -> None:
            raise Crash

        backend.hooks["commit"] = lambda *_: backend.hooks.update({"commit": die})
        with suppress(Crash):
            store.undo()
        assert state_of(store) not in (before, after)
        deployment.close()
        with open_store(str(parent / "store"), namespace=deployment.namespace) as opened:
            assert state_of(opened) == before
            assert [change.undone for change in opened.changes() if change.what == "import"] == [True]


@pytest.mark.parametrize("change", CHANGES)
def test_a_writer_during_an_undo_finishes_the_undo_first(deployment: Deployment, change: str) -> None:
    """Whichever call of the undo the other writer comes before, all categories are taken back, or none."""
    if not deployment.shared:
        pytest.skip("no other process can write")
    backend, together = deployment.backend(), 0
    for position in itertools.count():
        store, before = imported(backend, f"{deployment.namespace}-{position}", change)
        after, to_undo = state_of(store), store.changes()[0].id
        other = Store(deployment.backend(), store.namespace, history=DAY, by="Ann")
        act = partial(Context().run, other.write, [pictured("here", ["late"])])  # no part of the undo
        backend.hooks[backend.calls.total() + position] = lambda *_, act=act, **__: act()
        try:
            store.undo(change=to_undo)
            was = before
        except InvalidInputError:  # the other writer came first
            was = after
        came = not any(isinstance(hook, int) for hook in backend.hooks)
        backend.hooks.clear()
        late = {"late"} if came else set()
        assert state_of(store) == {**was, "here": replace(was["here"], images=was["here"].images | late)}, position
        assert store.incomplete() == []
        together += came and was is before
        if not came:
            break
    assert together > 3


# Collectors, dead writers and enemies


def test_references_replaced_during_collection_can_be_brought_back(deployment: Deployment) -> None:
    """Written by a process without history, so that only the replacing change names the references."""
    if not deployment.shared:
        pytest.skip("no other process can write")
    old, store, other = deployment.open(), deployment.open(history=DAY, by="Ann"), deployment.open()
    old.write([pictured("cat", ["tom"])])
    settle = other._collector._settle

    def settled(*args: Any, **options: Any) -> Counter[str]:
        store.remove("cat")
        return settle(*args, **options)

    other._collector._settle = settled  # type: ignore[method-assign]
    other.gc()
    store.undo("cat")
    assert state_of(store) == {"cat": Category(frozenset({"tom"}))}


@pytest.mark.parametrize("committed", [False, True])
def test_references_replaced_by_a_dead_writer_without_history_are_needed(
    deployment: Deployment, committed: bool
) -> None:
    backend = deployment.backend()
    old = deployment.open(backend)
    old.write([pictured("cat", ["tom"])])
    dying = Hooked(backend.inner)
    writer = Store(dying, deployment.namespace)

    def die(*_: object) -> None:
        raise Crash

    if committed:
        dying.hooks["commit"] = lambda *_: dying.hooks.update({"state": die, "retrieve": die})
    else:
        dying.hooks["commit"] = die
    with pytest.raises(Crash):
        writer.write([pictured("cat", ["felix"], replace=True)])
    store = deployment.open(backend, history=DAY, by="Ann")
    was = state_of(store)
    store.remove("cat")
    store.gc()
    store.undo()
    assert state_of(store) == was == {"cat": Category(frozenset({"felix" if committed else "tom"}))}
    store.gc(float("-inf"))
    assert store.gc(float("-inf")).total() == 0


def test_changes_made_at_once_over_the_same_categories_are_taken_back_by_category(deployment: Deployment) -> None:
    store = deployment.open(history=DAY, by="Ann")
    store.write([pictured("cat", ["tom"]), pictured("dog", ["rex"])])
    other = deployment.open(history=DAY, by="Ann") if deployment.shared else store
    with store.one_change("import"):
        store.write([pictured("cat", ["a"])])
        cause = store_module._BLOCK.set(None)
        with other.one_change("import"):
            other.write([pictured("cat", ["b"])])
            other.write([pictured("dog", ["b"])])
        store_module._BLOCK.reset(cause)
        store.write([pictured("dog", ["a"])])
    with pytest.raises(InvalidInputError, match="take them back by category"):
        store.undo()
    for name in ("cat", "dog", "cat", "dog"):
        store.undo(name)
    assert {name: category.images for name, category in state_of(store).items()} == {"cat": {"tom"}, "dog": {"rex"}}


ODD: dict[str, dict[str, Any]] = {
    "before is no object": {"before": {"cat": 5}},
    "before has no writes": {"before": {"cat": {"version": 1}}},
    "replaced are numbers": {"replaced": {"cat": 5}},
    "writes are texts": {"writes": {"cat": "x"}},
    "undoes a list": {"undoes": ["x"]},
    "no version": {"version": None},
    "an intent without version": {"kind": "intent", "version": None, "rev": 0},
    "an old intent of numbers": {"kind": "intent", "rev": 0, "before": {"cat": 5}, "replaced": {"cat": 5}},
    "moved from itself": {"moved": ["cat", "cat"]},
    "in another place": {"id": "somewhere else"},
    "takes itself back": {"undoes": "00000000-0000-4000-8000-000000000000"},
    "huge": {"what": "x" * 100_000, "by": "\x1b[31m" * 1000},
}


@pytest.mark.parametrize("odd", ODD)
def test_a_foreign_record_stops_no_other_category(odd: str) -> None:
    for named in (False, True):
        deployment = LocalDeployment()
        use_with_record(deployment, ODD[odd], named=named)
        deployment.close()


def use_with_record(deployment: Deployment, odd: dict[str, Any], *, named: bool) -> None:
    store = deployment.open(history=DAY, by="Ann")
    store.write([pictured("cat", ["tom", "felix"]), pictured("dog", ["rex"])])
    place, catalog = "00000000-0000-4000-8000-000000000000", store._catalog
    now, state = time.time_ns() // 1000, catalog.state(["cat"])
    payload = {"kind": "change", "id": place, "store": state.store, "version": 1, "rev": now, "until": now + 10**12}
    payload |= {"writes": {}, "replaced": {}, "what": "add", "change": place, "before": {"cat": None}} | odd
    catalog.put([Put(place, {key: value for key, value in payload.items() if value is not None})])
    if named:
        manifest = state.manifests["cat"]
        changed = {**manifest, "version": manifest["version"] + 1, "change": place}
        catalog.put([Put(record_id("category", "cat"), changed, expected(manifest))])
    assert isinstance(store.changes(), list)
    store.write([pictured("dog", ["lassie"])])
    with suppress(InvalidInputError):
        store.undo("cat")
    store.undo("dog")
    store.forget(content_hash("rex"))
    assert list(store.check_up())
    for grace in (None, 0, float("-inf")):
        store.gc(grace)
    assert store.incomplete() == []
