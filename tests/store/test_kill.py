"""An import that is killed at any instant leaves whole categories, and can be run again."""

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

from tests.store.importer import BATCH, NAMES, batches, write_all
from tests.store.material import FINGERPRINTS, Key, vectors
from tests.store.support import EdgeDeployment, fast_folder
from zsvec.store import Store

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
    """Runs the importer, and kills it some seconds after it has said so many lines: batches that it acknowledged."""
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
                    return -(-len(said[1:]) // BATCH)  # a batch is acknowledged before its first line
                said.append(line)
                if len(said) == lines:
                    time.sleep(delay)  # the instant is the point
                    with suppress(ProcessLookupError):
                        os.kill(int(said[0].removeprefix("ready ")), signal.SIGKILL)
            raise AssertionError("the importer has ended")

        yield run
        process.kill()


def assert_whole(folder: Path, acknowledged: int) -> None:
    """Each category is as one of two batches left it: the last acknowledged one, or that after it."""
    deployment = EdgeDeployment(folder)
    store = Store(deployment.backend(), deployment.namespace)
    assert store.incomplete() == []
    stored = {category.name: vectors(store.stored(category.name)) for category in store.categories()}
    before, after = STATES[acknowledged], STATES[min(acknowledged + 1, len(STATES) - 1)]
    for name in stored | before:
        assert any(same(stored.get(name), state.get(name)) for state in (before, after)), name
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
    assert store.gc() == 0
    deployment.close()
    assert deployment.collections() == {"zsvec__catalog", *(f"zsvec__{encoder}" for encoder in FINGERPRINTS)}


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
    """Delete what is left of a writer that was killed before its commit, if the next was killed right after its own."""
    deployment = EdgeDeployment(folder)
    deployment.open().gc()
    deployment.close()
