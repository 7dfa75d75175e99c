"""A process that is killed at any instant leaves whole categories, and can be run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.store import changer
from tests.store.importer import BATCH, NAMES, batches, write_all
from tests.store.material import FINGERPRINTS, Key, copies, live_copies, vectors
from tests.store.support import EdgeDeployment, ServerDeployment, fast_folder
from zsvec.store import Store, open_store

ROOT = Path(__file__).parents[2]

# The references of each category in a store.
State = dict[str, dict[Key, NDArray[np.float32]]]


def states() -> list[State]:
    """The store after each batch, from none on."""
    found: list[State] = [{}]
    for batch in batches():
        stored = found[-1]
        found.append({**stored, **{w.name: {**stored.get(w.name, {}), **vectors(w.references)} for w in batch}})
    return found


STATES = states()


@pytest.fixture(scope="module")
def killed() -> Iterator[Callable[[Path, int, float], int]]:
    """Runs the importer, kills it some seconds after so many lines, and returns the acknowledged batches."""
    command = [sys.executable, "-m", "tests.store.importer"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def run(folder: Path, lines: int, delay: float) -> int:
            print(folder, file=asked, flush=True)
            said: list[str] = []
            for line in told:
                if line.startswith("ended "):
                    assert line in (f"ended {-signal.SIGKILL}\n", "ended 0\n")
                    return -(-len(said[1:]) // BATCH)  # acknowledged before the first line of the batch
                said.append(line)
                if len(said) == lines:
                    time.sleep(delay)  # the instant is the point
                    with suppress(ProcessLookupError):
                        os.kill(int(said[0].removeprefix("ready ")), signal.SIGKILL)
            raise AssertionError("the importer has ended")

        yield run
        process.kill()


def assert_whole(folder: Path, acknowledged: int) -> None:
    """Each category is as after the last acknowledged batch, or after the next."""
    deployment = EdgeDeployment(folder)
    store = Store(deployment.backend(), deployment.namespace)
    assert store.incomplete() == []
    stored = {category.name: vectors(store.stored(category.name)) for category in store.categories()}
    before, after = STATES[acknowledged], STATES[min(acknowledged + 1, len(STATES) - 1)]
    for name in stored | before:
        assert any(same(stored.get(name), state.get(name)) for state in (before, after)), name
    assert live_copies(store) <= copies(store)
    deployment.close()


def assert_complete(folder: Path) -> None:
    """The whole import is there, and nothing else."""
    deployment = EdgeDeployment(folder)
    store = deployment.open()
    assert store.incomplete() == []
    stored = {category.name: vectors(store.stored(category.name)) for category in store.categories()}
    assert stored.keys() == STATES[-1].keys()
    assert all(same(stored[name], STATES[-1][name]) for name in stored)
    encoders = Counter(encoder for references in stored.values() for encoder, _, _ in references)
    assert deployment.sizes() == encoders
    assert store.gc().total() == 0
    assert live_copies(store) == copies(store)
    deployment.close()
    assert deployment.collections() == {f"zsvec__{name}" for name in ("catalog", "images", *FINGERPRINTS)}


def same(some: dict[Key, NDArray[np.float32]] | None, others: dict[Key, NDArray[np.float32]] | None) -> bool:
    if some is None or others is None:
        return some is others
    return some.keys() == others.keys() and all(np.array_equal(some[key], others[key]) for key in some)


def instants() -> list[tuple[int, float]]:
    """Lines said and seconds thereafter: while the store is made, then anywhere in the import."""
    draw = random.Random(20240711)
    making = [(1, draw.uniform(0, 0.12)) for _ in range(5)]
    return [*making, *((draw.randint(2, len(NAMES) + 10), draw.uniform(0, 0.004)) for _ in range(15))]


@pytest.mark.parametrize(("lines", "delay"), instants())
def test_killed_import(killed: Callable[[Path, int, float], int], lines: int, delay: float) -> None:
    with fast_folder() as parent:
        folder = parent / "store"
        assert_whole(folder, killed(folder, lines, delay))
        assert len(list(write_all(folder))) == sum(map(len, batches()))
        assert_complete(folder)


def test_import_that_is_killed_again_and_again(killed: Callable[[Path, int, float], int]) -> None:
    draw = random.Random(1859)
    with fast_folder() as parent:
        folder, acknowledged = parent / "store", 0
        for lines in (1, 1, 10, 22, 35, 48):
            acknowledged = max(acknowledged, killed(folder, lines, draw.uniform(0, 0.02)))
            assert_whole(folder, acknowledged)
        list(write_all(folder))
        collect(folder)
        assert_complete(folder)


def collect(folder: Path) -> None:
    """Collects garbage of a writer killed before the commit, after another killed right after one."""
    deployment = EdgeDeployment(folder)
    deployment.open().gc()
    deployment.close()


# All that changes a store


class Changer:
    """`tests.store.changer`, for one store.

    Args:
        process: Process of the changer.
        location: Location of the store.
        namespace: Namespace of the store.
        seed: Seed of the changes and of the instants of kills.
        pause: Largest time from a line to a kill, in seconds.
    """

    def __init__(self, process: subprocess.Popen[str], location: str, namespace: str, seed: int, pause: float) -> None:
        self._process, self._location, self._namespace, self._seed = process, location, namespace, seed
        self._draw, self._pause = random.Random(seed), pause
        self.done = 0  # changes that are in the store
        self.killed: Counter[str] = Counter()  # by kind of the next change

    def run(self) -> None:
        """Makes the next changes until a kill, and checks the store."""
        made = changer.changes(self._seed)
        acknowledged = self._until_killed(self._draw.randint(1, 9), self._draw.uniform(0, self._pause))
        before = made[acknowledged - 1].after if acknowledged else changer.State()
        after = made[min(acknowledged, len(made) - 1)].after
        with open_store(self._location, namespace=self._namespace) as store:
            found = changer.found(store)
        assert changer.is_one_of(found, before, after), (acknowledged, found)
        # A change that is not done is made again, except a removal.
        self.done = acknowledged + (found == after)

    def _until_killed(self, lines: int, delay: float) -> int:
        """Changes that were acknowledged by then."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        print(self._location, self._namespace, self._seed, self.done, file=asked, flush=True)
        pid, acknowledged = int(told.readline().removeprefix("ready ")), self.done
        for number, line in enumerate(told, 1):
            if line.startswith("ended "):
                assert line in (f"ended {-signal.SIGKILL}\n", "ended 0\n")
                if line != "ended 0\n" and acknowledged < changer.CHANGES:
                    self.killed[changer.changes(self._seed)[acknowledged].what] += 1
                return acknowledged
            acknowledged = int(line) + 1
            if number == lines:
                time.sleep(delay)  # the instant is the point
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        raise AssertionError("the changer has ended")


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.store.changer"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def kill_until_done(process: subprocess.Popen[str], location: str, namespace: str, seed: int, pause: float) -> Changer:
    """No acknowledged change is lost, none is torn, and nothing comes back."""
    killed = Changer(process, location, namespace, seed, pause)
    while killed.done < changer.CHANGES:
        killed.run()
    with changer.opened(location, namespace) as store:
        store.gc(grace=0)
        assert store.gc(grace=0).total() == 0
        assert changer.found(store) == changer.changes(seed)[-1].after
        assert not [finding for finding in store.check_up() if "garbage" in finding.what]
        assert live_copies(store) == copies(store)
    return killed


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_while_it_changes_an_embedded_store(process: subprocess.Popen[str], seed: int) -> None:
    with fast_folder() as parent:
        killed = kill_until_done(process, str(parent / "store"), "zsvec", seed, pause=0.01)
    assert killed.killed.total() > 5


def test_killed_while_it_changes_a_store_on_a_server(process: subprocess.Popen[str], server: ServerDeployment) -> None:
    killed = kill_until_done(process, server.url, server.namespace, 3, pause=0.1)
    assert killed.killed.total() > 5
