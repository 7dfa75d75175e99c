"""A moved image is never in no category, and in the end in one, after any kill or delay."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, references, write_of
from tests.store.simulated import HOURS, Faults, Process, SimulatedBackend, World, simulated_time  # noqa: F401
from tests.store.test_histories import assert_no_garbage, searcher_of
from zsvec.errors import ConflictError, InvalidInputError, StoreError, StoreUnavailableError
from zsvec.store import Move, Store, transfer
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog import commit, schema
from zsvec.store.catalog.catalog import Catalog

pytestmark = pytest.mark.usefixtures("simulated_time")

NAMES = ("here", "there", "elsewhere")
ITEMS = [f"image {i}" for i in range(6)]
TWICE = ITEMS[:2]  # in two categories from the beginning


class Moves:
    """Images that several processes move between categories, and concurrent reads.

    Attributes:
        wrong: Wrong reads.
    """

    def __init__(self, seed: int, faults: Faults, history: float = 0.0, *, many: bool = False) -> None:
        self.world = World(seed, faults)
        self.history = history
        self.many = many
        self.wrong: list[str] = []
        self.moved = self.undone = self.refused = self.seen = self.twice = 0
        store = Store(SimulatedBackend(self.world), "zsvec")  # without history
        store.bind(FINGERPRINTS)
        begin = {"here": ITEMS, "there": TWICE, "elsewhere": []}
        store.write([write_of(name, [f"of {name}", *begin[name]]) for name in NAMES])

    def open(self, process: Process | None = None) -> Store:
        return Store(SimulatedBackend(self.world, process), "zsvec", history=self.history, by="Ann")

    def moves(self, process: Process) -> None:
        """Move for ever."""
        store, random = self.open(process), self.world.random
        while True:
            source, target = random.sample(NAMES, 2)
            hashes = {reference.hash for item in random.sample(ITEMS, 2) for reference in references(images=[item])}
            try:
                known = {key[2] for key in store.keys(source)}
                if hashes & known:
                    store.move(Move(source=source, target=target, hashes=hashes & known))
                    self.moved += 1
            except (StoreUnavailableError, ConflictError, InvalidInputError):
                self.refused += 1

    def moves_many(self, process: Process) -> None:
        """Move between several pairs at once, in circles too, for ever."""
        store, random = self.open(process), self.world.random
        pairs = [(source, target) for source in NAMES for target in NAMES if source != target]
        while True:
            items = iter(random.sample(ITEMS, len(ITEMS)))
            try:
                known = {name: {key[2] for key in store.keys(name)} for name in NAMES}
                moves = [
                    Move(source=source, target=target, hashes=hashes)
                    for source, target in random.sample(pairs, random.randint(2, len(pairs)))
                    if (hashes := {references(images=[next(items)])[0].hash} & known[source])
                ]
                if moves:
                    store.move_many(moves)
                    self.moved += len(moves) > 1
            except (StoreUnavailableError, ConflictError, InvalidInputError):
                self.refused += 1

    def takes_back(self, process: Process) -> None:
        """Take changes back for ever."""
        store, random = self.open(process), self.world.random
        while True:
            try:
                store.undo(random.choice([None, *NAMES]))
                self.undone += 1
            except (StoreError, InvalidInputError):
                self.refused += 1

    def writes(self, process: Process) -> None:
        """Add to the categories for ever."""
        store, random = self.open(process), self.world.random
        while True:
            if self.many:  # else a move between many pairs is hardly ever done: each write of one category defeats it
                process.asleep_until = self.world.steps + random.randint(0, 1500)
                process.wait()
            try:
                store.write([write_of(random.choice(NAMES), [f"{process.name} {random.getrandbits(20)}"])])
            except (StoreUnavailableError, ConflictError):
                self.refused += 1

    def reads(self, process: Process) -> None:
        """Read for ever, and begin anew at times."""
        while True:
            searcher = searcher_of(self.open(process))
            for _ in range(self.world.random.randint(1, 40)):
                try:
                    found, _ = searcher.references()
                except StoreUnavailableError:
                    continue
                if not searcher._snapshot.catalog.keys() >= set(NAMES):
                    continue  # a first look may miss a category with differing replicas
                self.seen += 1
                for expert, indexed in found.items():
                    times = [indexed.sources.count(item) for item in ITEMS]
                    self.twice += max(times[len(TWICE) :]) > 1
                    if min(times) < 1:
                        self.wrong.append(f"{process.name} sees {ITEMS[times.index(0)]} nowhere in {expert}")

    def collects(self, process: Process) -> None:
        """Collect garbage for ever, as early as can be."""
        store = self.open(process)
        while True:
            process.asleep_until = self.world.steps + self.world.random.randint(0, 200)
            process.wait()
            try:
                store.gc(grace=self.world.random.choice([0, None]))
            except StoreUnavailableError:
                self.refused += 1

    def run(self, steps: int) -> None:
        """Processes come and go, and in the end all is well."""
        moves = [self.moves_many] * 3 if self.many else [self.moves] * 3
        kinds = [*moves, self.writes, *[self.reads] * 2, self.collects]
        if self.history:
            kinds += [self.takes_back] * 2
        skews = [self.world.random.uniform(-2, 2) * HOURS for _ in kinds]
        self.world.live(kinds, skews, steps, lambda: bool(self.wrong))
        self.check()

    def check(self) -> None:
        """After all transfers and undos, each image is in one category, without garbage."""
        store = self.open()
        store.gc()  # finishes transfers
        for _ in store.changes():
            for name in NAMES:
                with suppress(InvalidInputError):  # until there is nothing that can be
                    store.undo(name)
        assert [change for change in store.changes() if not change.undone and change.what != "undo"] == []
        store.gc(grace=float("-inf"))
        assert store.incomplete() == []
        places: dict[str, list[str]] = {item: [] for item in ITEMS}
        for name in NAMES:
            for source in {reference.source for reference in store.stored(name)} & set(ITEMS):
                places[source].append(name)
        assert all(len(places[item]) == 1 for item in ITEMS if item not in TWICE), places
        assert all(len(places[item]) in (1, 2) for item in TWICE), places
        assert_no_garbage(store, self.world)


@pytest.mark.parametrize("many", [False, True], ids=["one pair", "many pairs"])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_moves(seed: int, replaced: bool, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_WRITERS_KEPT", 2)  # many write while one sleeps
    moves = Moves(seed, Faults(kill=0.002, replaced=replaced), many=many)
    moves.run(20_000)
    assert moves.wrong == []
    assert moves.moved
    assert moves.seen > 50


@pytest.mark.parametrize("many", [False, True], ids=["one pair", "many pairs"])
@pytest.mark.parametrize("seed", range(4))
def test_random_moves_that_are_taken_back(seed: int, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_WRITERS_KEPT", 2)
    moves = Moves(seed, Faults(kill=0.002), history=6 * HOURS, many=many)
    moves.run(20_000)
    assert moves.wrong == []
    assert moves.undone
    assert moves.seen > 50


def test_a_move_whose_manifests_were_read_in_part_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first read after the move misses the target. By the second, others have written to the source many times."""
    backend = MemoryBackend()
    store = Store(backend, "zsvec")
    store.bind(FINGERPRINTS)
    store.write([write_of("here", ITEMS), write_of("there", TWICE)])
    missed = []

    def publish(catalog: Catalog, manifests: Mapping[str, Any], unchanged: Container[str] = ()) -> Mapping[str, Any]:
        found = commit.publish(catalog, manifests, unchanged)
        if missed or manifests.keys() != {"here", "there"}:
            return found
        missed.append("there")
        for number in range(10):
            Store(backend, "zsvec").write([write_of("here", [f"later {number}"])])
        return {"here": found["here"]}

    monkeypatch.setattr(transfer, "publish", publish)
    moved = {reference.hash for reference in references(images=ITEMS[:3])}
    target = store.move(Move(source="here", target="there", hashes=moved))
    assert (target.name, target.images, missed) == ("there", 3, ["there"])
    assert moved <= {key[2] for key in store.keys("there")}
    assert not moved & {key[2] for key in store.keys("here")}
