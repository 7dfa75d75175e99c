"""A program that changes stores in every way there is, for `test_kill` to kill.

``python -m tests.store.changer`` reads lines of a location, a namespace, a seed and a number: a process for
each line opens that store, and makes the changes of the seed from that number on. A process prints ``ready PID``, and
the number of each acknowledged change. The end is printed as ``ended`` with the exit code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any

from tests.forking import say, serve
from tests.store.material import FINGERPRINTS, copies, live_copies, pictured
from zsvec.errors import CategoryNotFoundError
from zsvec.store import Store, open_store
from zsvec.types import CALIBRATION_FORMAT

CHANGES = 60
_NAMES = [f"category {i}" for i in range(6)]


@dataclass(frozen=True)
class State:
    """Content of a store.

    Attributes:
        categories: The sources of each category's texts and images.
        calibration: Revision of the calibration; 0 for none.
    """

    categories: Mapping[str, frozenset[str]] = field(default_factory=dict)
    calibration: int = 0


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        what: Kind of the change.
        make: The change.
        after: The store after the change.
    """

    what: str
    make: Callable[[Store], object]
    after: State


@cache
def changes(seed: int) -> tuple[Change, ...]:
    draw, state, made = random.Random(seed), State(), []
    for number in range(CHANGES):
        made.append(_change(draw, state, number))
        state = made[-1].after
    return tuple(made)


def _change(draw: random.Random, before: State, number: int) -> Change:
    there = sorted(before.categories)
    what = draw.choice(["add", "add", "extend", "replace", "remove", "calibrate", "gc", "close", "flush"])
    if what in ("add", "extend", "replace") or (what == "remove" and not there):
        names = draw.sample(_NAMES, draw.randint(1, 3))
        images = [f"image {number}-{i}" for i in range(draw.randint(1, 4))]
        writes = [pictured(name, images, [f"text {number}"], replace=what == "replace") for name in names]
        after = dict(before.categories)
        for name in names:
            kept = frozenset[str]() if what == "replace" else after.get(name, frozenset())
            after[name] = kept | {*images, f"text {number}"}
        return Change(what, lambda store: store.write(writes), replace(before, categories=after))
    if what == "remove":
        name = draw.choice(there)
        left = {other: sources for other, sources in before.categories.items() if other != name}
        return Change(what, lambda store: store.remove(name), replace(before, categories=left))
    if what == "calibrate":
        calibration = {"format": CALIBRATION_FORMAT, "revision": number + 1, "temperatures": [1.5] * 20}
        after_it = replace(before, calibration=number + 1)
        return Change(what, lambda store: store.keep_calibration(calibration), after_it)
    if what == "gc":
        return Change(what, lambda store: store.gc(grace=0), before)
    if what == "flush":
        return Change(what, lambda store: store.flush(), before)
    return Change(what, Store.close, before)


def opened(location: str, namespace: str) -> Store:
    store = open_store(location, namespace=namespace)
    store.bind(FINGERPRINTS)
    return store


def make_changes(location: str, namespace: str, seed: str, first: str) -> None:
    """Make the changes of a seed from one on, and say which are made."""
    store = opened(location, namespace)
    for number, change in enumerate(changes(int(seed))):
        if number >= int(first):
            try:
                change.make(store)
            except CategoryNotFoundError:  # a server may have got a removal just before the client was killed
                if (change.what, number) != ("remove", int(first)):
                    raise
            store = opened(location, namespace) if change.what == "close" else store
            say(str(number))
    store.close()


def found(store: Store) -> State:
    """Content of a complete store."""
    assert store.incomplete() == []
    assert live_copies(store) <= copies(store)
    categories: dict[str, Any] = {}
    for category in store.categories():
        stored = store.stored(category.name)
        if not stored:  # removed by a late request of a killed writer
            continue
        of_experts: dict[str, set[str]] = {}
        for reference in stored:
            of_experts.setdefault(f"{reference.encoder}:{reference.modality}", set()).add(reference.source)
        assert of_experts["clip:image"] == of_experts["dino:image"]
        categories[category.name] = frozenset(of_experts["clip:text"] | of_experts["clip:image"])
    return State(categories, int((store.calibration() or {}).get("revision", 0)))


def is_one_of(state: State, before: State, after: State) -> bool:
    names = state.categories.keys() | before.categories.keys() | after.categories.keys()
    return state.calibration in (before.calibration, after.calibration) and all(
        state.categories.get(name) in (before.categories.get(name), after.categories.get(name)) for name in names
    )


if __name__ == "__main__":
    import_module("zsvec.store.backends.edge.backend")
    import_module("zsvec.store.backends.server.backend")
    serve(lambda line: make_changes(*line.split()))
