"""Random histories of many processes at one server: every acknowledged commit is in the next batch of every reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, copies, live_copies, pictured, unit_vector
from tests.store.simulated import HOURS, Faults, Process, SimulatedBackend, World, simulated_time  # noqa: F401
from zsvec.errors import CategoryNotFoundError, ConflictError, StoreError, StoreUnavailableError
from zsvec.search.searcher import Searcher
from zsvec.store import Store, writing
from zsvec.store.backends.base import Where
from zsvec.store.catalog import commit
from zsvec.store.collector import Collector
from zsvec.types import KeepImages

pytestmark = pytest.mark.usefixtures("simulated_time")

GROWING = ("red panda", "lynx")  # only added to
CHANGING = ("otter", "fox", "seal")  # replaced and removed as well
QUERIES = {name: unit_vector(fingerprint.dim, "query")[None] for name, fingerprint in FINGERPRINTS.items()}


class History:
    """Events in a world, and expected reads.

    Attributes:
        acknowledged: The ``rev`` of each category that every batch must see which begins now, or a later one.
        added: Sources that were added to growing categories and acknowledged.
        wrong: Wrong reads.
    """

    def __init__(self, seed: int, faults: Faults, images: KeepImages, skew: float = 2 * HOURS) -> None:
        self.world = World(seed, faults)
        self.skew = skew  # seconds by which clocks are wrong at most
        self.acknowledged: dict[str, int] = defaultdict(int)
        self.added: dict[str, set[str]] = defaultdict(set)
        self.wrong: list[str] = []
        self.batches = self.commits = self.refused = self.collected = 0
        self.open().bind(FINGERPRINTS, images=images)

    def open(self, process: Process | None = None) -> Store:
        return Store(SimulatedBackend(self.world, process), "zsvec")

    def writes(self, process: Process) -> None:
        """Write for ever."""
        store, random = self.open(process), self.world.random
        while True:
            new = f"{process.name} {random.getrandbits(40)}"
            name = random.choice(CHANGING)
            operations: list[Callable[[], Any]] = [
                partial(self.add, store, random.choice(GROWING), new),
                partial(store.write, [pictured(name, [new], replace=True)]),
                partial(store.write, [pictured(each, [new]) for each in CHANGING]),
                partial(store.remove, name),
            ]
            try:
                done = random.choices(operations, [4, 2, 2, 1])[0]()
            except (StoreUnavailableError, ConflictError, CategoryNotFoundError):
                self.refused += 1
                continue
            for category in done or ():
                self.acknowledged[category.name] = max(self.acknowledged[category.name], category.rev)
            self.commits += 1

    def add(self, store: Store, name: str, source: str) -> Any:
        done = store.write([pictured(name, [source])])
        self.added[name].add(source)
        return done

    def reads(self, process: Process) -> None:
        """Search for ever, and begin anew at times."""
        while True:
            searcher = searcher_of(self.open(process))
            for _ in range(self.world.random.randint(1, 40)):
                must = dict(self.acknowledged)
                try:
                    searcher.search(QUERIES, nearest=1)
                except StoreUnavailableError:
                    continue
                self.batches += 1
                for name, rev in must.items():
                    category = searcher._snapshot.catalog.get(name)
                    seen = category.rev if category else self.world.removals.get(name, 0)
                    if seen < rev:
                        self.wrong.append(f"{process.name} sees {name} of {seen}, and {rev} was acknowledged")

    def collects(self, process: Process) -> None:
        """Collect garbage for ever, as early as can be."""
        store = self.open(process)
        while True:
            process.asleep_until = self.world.steps + self.world.random.randint(0, 200)
            process.wait()
            try:
                self.collected += store.gc(grace=self.world.random.choice([0, None])).total()
            except StoreUnavailableError:
                self.refused += 1

    def run(self, steps: int) -> None:
        """Processes come and go, and in the end all is well."""
        skews = [self.world.random.uniform(-1, 1) * self.skew for _ in range(9)]
        kinds = [*[self.writes] * 5, *[self.reads] * 3, self.collects]
        self.world.live(kinds, skews, steps, lambda: bool(self.wrong))
        self.check()

    def check(self) -> None:
        """All that was acknowledged is there, whole, and without garbage."""
        store = self.open()
        assert store.incomplete() == []
        there = {category.name: category for category in store.categories()}
        for name, sources in self.added.items():
            found = {reference.source for reference in store.stored(name)}
            if sources - found:
                self.wrong.append(f"{name} has lost {sorted(sources - found)}")
        searcher = searcher_of(store)
        found_ = searcher.search(QUERIES, nearest=1)
        assert found_.categories == tuple(sorted(there))
        assert found_.incomplete == ()
        store.gc(grace=float("-inf"))
        assert_no_garbage(store, self.world)
        assert copies(store) == (live_copies(store) if store.keeps_images() else set())
        assert store.incomplete() == []


def assert_no_garbage(store: Store, world: World) -> None:
    """All references that there are are counted by a category."""
    counted = dict.fromkeys(FINGERPRINTS, 0)
    for category in store.categories():
        for expert, n in category.references.items():
            counted[expert.partition(":")[0]] += n
    assert {name: world.server.count(f"zsvec__{name}", Where()) for name in FINGERPRINTS} == counted


def searcher_of(store: Store) -> Searcher:
    return Searcher(store, kind="memory", budget=0, neighbors=10, norms=False)


@pytest.mark.parametrize("seed", range(5))
def test_random_histories(seed: int) -> None:
    history = History(seed, Faults(kill=0.001), images="small")
    history.run(24_000)
    assert history.wrong == []
    assert history.batches > 150
    assert history.commits > 40
    assert history.collected > 10


# Known defects, which these histories find


def no_second_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "publish", lambda _, manifests, *__: manifests)


def what_does_not_show_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = commit._outcome

    def judged(*args: Any) -> str:
        said = outcome(*args)
        return "lost" if said == "unknown" else said

    monkeypatch.setattr(commit, "_outcome", judged)


def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchanged(_: Collector, names: Iterable[str], manifests: Mapping[str, Any]) -> dict[str, Any]:
        return {name: manifests[name] for name in names if name in manifests}

    monkeypatch.setattr(Collector, "fence", unchanged)


# With faults and clocks by which at least one of ten histories shows the defect.
DEFECTS = [
    (no_second_stamp, Faults(pause=0.03), 0.0),
    (what_does_not_show_is_lost, Faults(pause=0.05, late=0.05, dropped=0.5), 2 * HOURS),
    (no_fence, Faults(kill=0.001), 2 * HOURS),
]


@pytest.mark.parametrize(("defect", "faults", "skew"), DEFECTS)
def test_random_histories_find_known_defects(
    defect: Callable[[pytest.MonkeyPatch], None], faults: Faults, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    for seed in range(100, 700):  # "no_second_stamp" is found in 2 to 4 of 100 histories
        history = History(seed, faults, "none", skew)
        try:
            history.run(4_000)
        except (AssertionError, StoreError):
            return
        if history.wrong:
            return
    pytest.fail(f"{defect.__name__} was not found")
