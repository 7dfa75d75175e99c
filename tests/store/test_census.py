"""A census keeps in step with commits of any handle, and reads nothing twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.store.material import add, commits
from tests.store.support import Deployment
from zsvec.store import Census, Points, Store
from zsvec.store.backends.edge.backend import EdgeBackend

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share

OpenStore = Callable[..., Store]


def counted(store: Store) -> tuple[int, dict[str, int], int]:
    """The oracle: all there is, read again."""
    categories = store.categories()
    total: Counter[str] = Counter()
    for category in categories:
        total.update(category.references)
    return len(categories), dict(total), max((category.rev for category in commits(store)), default=0)


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_in_step_with_other_handles(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    writer = deployment.another(store)
    census = Census(store)
    rng = random.Random(0)
    there: set[str] = set()
    for step in range(60):
        name = rng.choice("abcd")
        if name in there and rng.random() < 0.4:
            writer.remove(name)
            there.discard(name)
        else:
            images = [f"{step} {i}" for i in range(rng.randint(0, 3))]
            add(writer, name, images, ["a text"] if not images or rng.random() < 0.5 else [], replace=True)
            there.add(name)
        if rng.random() < 0.6:
            assert census.update() == counted(store)
    assert census.update() == counted(store)


def test_reads_only_changes(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    for name in "abcde":
        add(store, name, [name])
    census = Census(store)
    census.update()
    add(store, "f", ["f"])
    read: list[str] = []
    look = store.look

    def noting(*args: Any, **options: Any) -> Any:
        found = look(*args, **options)
        read.extend(category.name for category in found.categories)
        return found

    monkeypatch.setattr(store, "look", noting)
    categories, references, revision = census.update()
    assert (categories, set(references.values())) == (6, {6})
    assert read == ["f"]
    assert revision == store.category("f").rev


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_opening_reads_few_removed_categories(
    deployment: Deployment, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may have many more removed categories than present ones."""
    store = open_store()
    names = [f"removed {i}" for i in range(20)]
    for name in ["kept", *names]:
        add(store, name, [name])
    for name in names:
        store.remove(name)
    revision = max(category.rev for category in commits(store))
    store.close()
    read: list[str] = []
    scroll = EdgeBackend.scroll

    def noting(*args: Any, **options: Any) -> Iterator[Points]:
        for page in scroll(*args, **options):
            read.extend(payload["category"] for payload in page.payloads if payload.get("kind") == "manifest")
            yield page

    monkeypatch.setattr(EdgeBackend, "scroll", noting)
    store = deployment.open()
    census = Census(store)
    assert census.update() == (1, {"clip:image": 1, "dino:image": 1}, revision)
    assert [category.name for category in store.categories()] == ["kept"]
    assert len(read) <= 4
    store.remove("kept")
    assert census.update() == (0, {}, max(category.rev for category in commits(store)))


def test_of_nothing(open_store: OpenStore) -> None:
    assert Census(open_store()).update() == (0, {}, 0)
