"""A category is seen whole or not at all under concurrent writes, crashes and damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.search.support import (
    EVERYTHING,
    NAMES,
    REFERENCES,
    STATE,
    TOP_M,
    Floats,
    State,
    answer,
    assert_answers,
    by_expert,
    every_way,
    fill,
    memory_and_qdrant,
    norms_of,
    paint,
    painted,
    present_of,
    queries,
    searcher,
    truth,
)
from tests.store.material import FINGERPRINTS, add, references, unit_vector, write_of
from tests.store.support import Crash, Deployment, Hooked
from zsvec.errors import StoreError
from zsvec.method.similarities import SearchResult
from zsvec.store import Reference, Store, Write
from zsvec.store.backends.base import Put, Where
from zsvec.store.names import record_id

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


def write_and_die(backend: Hooked, store: Store, name: str, asked: Mapping[str, np.ndarray]) -> None:
    """Leave references that equal the first query, three for each encoder, of a writer that did not come to commit."""

    def die(*_: Any) -> None:
        raise Crash

    nearer = [Reference(e, "image", f"{e}{i}", "garbage", asked[e][0]) for e in FINGERPRINTS for i in range(3)]
    backend.hooks["commit"] = die
    with pytest.raises(Crash):
        store.write([Write(name=name, references=nearer)])


@every_way
def test_uncommitted_references_are_not_seen(backend: Hooked, store: Store, way: str) -> None:
    """Uncommitted references that are nearest, and fill the limit."""
    state = {"red panda": references(images=["1", "2"]), "lynx": references(images=["3"])}
    fill(store, state)
    asked = queries(1)
    for name in ("red panda", "never committed"):
        write_and_die(backend, store, name, asked)

    assert_answers(searcher(store, way), state)
    found = searcher(store, way, limit=7).search(asked, nearest=9)
    assert found.categories == ("lynx", "red panda")
    assert {n.source for e in found.experts for neighbors in e.nearest for n in neighbors} <= {"1", "2", "3"}
    for aggregation in ("max", "mean"):
        for expert, categories in truth(state, asked, aggregation).items():
            got = answer(found, aggregation)[expert]
            assert all((got[name] >= values - 2e-6).all() for name, values in categories.items())


@every_way
def test_uncommitted_references_take_no_places(backend: Hooked, store: Store, way: str) -> None:
    """Though all that a query may fetch is of a writer that died."""
    state = {"red panda": references(images=["1", "2"]), "lynx": references(images=["3"])}
    fill(store, state)
    asked = queries(1)
    write_and_die(backend, store, "never committed", asked)

    found = searcher(store, way, limit=3).search(asked, nearest=3)
    assert [expert.name for expert in found.experts] == ["clip:image", "dino:image"]
    for expert in found.experts:
        assert sorted(neighbor.source for neighbor in expert.nearest[0]) == ["1", "2", "3"]
    for aggregation in ("max", "mean"):
        got = answer(found, aggregation)
        for expert_name, categories in truth(state, asked, aggregation).items():
            for name, values in categories.items():
                np.testing.assert_allclose(got[expert_name][name], values, atol=2e-6)


@memory_and_qdrant
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("encoder", FINGERPRINTS)
def test_a_category_that_lacks_references_stops_no_other(backend: Hooked, store: Store, way: str, encoder: str) -> None:
    fill(store, STATE)
    write_ids = list(store.category("images only").write_ids)
    backend.delete(store.collection(encoder), Where(match={"gen": write_ids}))
    assert store.incomplete() == ["images only"]

    searching = searcher(store, way)
    for _ in range(2):
        assert searching.search(queries(), nearest=1).incomplete == ("images only",)
        assert_answers(searching, {name: stored for name, stored in STATE.items() if name != "images only"})

    store.write([Write(name="images only", references=STATE["images only"], replace=True)])
    assert searching.search(queries(), nearest=1).incomplete == ()
    assert_answers(searching, STATE)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_a_category_is_answered_from_its_last_whole_state(backend: Hooked, store: Store, way: str) -> None:
    fill(store, STATE)
    searching = searcher(store, way)
    assert_answers(searching, STATE)
    store.write([write_of("images only", ["one more"])])
    write_ids = list(store.category("images only").write_ids)
    backend.delete(store.collection("dino"), Where(match={"gen": write_ids[-1:]}))
    assert searching.search(queries(), nearest=1).incomplete == ("images only",)
    assert_answers(searching, STATE)

    store.write([write_of("images only", ["another"], replace=True)])
    assert_answers(searching, {**STATE, "images only": references(images=["another"])})


@memory_and_qdrant
def test_a_manifest_that_cannot_be_read_stops_no_other(backend: Hooked, store: Store, way: str) -> None:
    fill(store, STATE)
    searching = searcher(store, way)
    add(store, "of a later version", ["1"])
    place = record_id("category", "of a later version")
    catalog = store.collection("catalog")
    manifest = dict(backend.retrieve(catalog, [place])[place])
    del manifest["writes"]
    backend.put(catalog, [Put(place, manifest, {"version": 1})])

    assert searching.search(queries(), nearest=1).incomplete == ("of a later version",)
    assert_answers(searching, STATE)
    assert store.info()["unreadable"] == ["of a later version"]
    with pytest.raises(StoreError, match="'of a later version' cannot be read"):
        store.gc(grace=0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt follows at once."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def seen_versions(found: SearchResult, versions: Sequence[int]) -> dict[str, int]:
    """The visible version of each category: equal and whole in every expert."""
    seen: dict[str, set[int]] = {name: set() for name in found.categories}
    assert [expert.name for expert in found.experts] == ["clip:image", "clip:text", "dino:image", "dino:text"]
    for expert in found.experts:
        encoder = expert.name.split(":")[0]
        assert [found.categories[position] for position in expert.coverage] == list(found.categories)
        assert list(expert.similarities.counts) == list(present_of(expert.similarities))
        assert list(expert.similarities.counts) == [REFERENCES] * len(found.categories)
        np.testing.assert_allclose(norms_of(expert.similarities), 1, atol=1e-5)
        cosine = np.array([paint(encoder, version) @ paint(encoder, 0) for version in versions])
        largest, mean = (expert.similarities.aggregate(method, 1)[0] for method in ("max", "mean"))
        np.testing.assert_allclose(largest, mean, atol=2e-6)  # the references of each are all the same
        for name, value in zip(found.categories, largest, strict=True):
            nearest = int(np.abs(cosine - value).argmin())
            assert cosine[nearest] == pytest.approx(value, abs=1e-5)
            seen[name].add(versions[nearest])
        shown = {(neighbor.category, neighbor.source) for neighbor in expert.nearest[0]}
        assert len(shown) == len(found.categories)
        for name, source in shown:
            seen[name].add(int(source))
    assert all(len(shown) == 1 for shown in seen.values())
    return {name: shown.pop() for name, shown in seen.items()}


ASKED = {encoder: paint(encoder, 0)[None] for encoder in FINGERPRINTS}


@memory_and_qdrant
def test_category_that_changes_during_a_search_is_seen_whole(
    deployment: Deployment, backend: Hooked, store: Store, writer: Store, way: str
) -> None:
    """Whichever call of the search the change comes before."""
    for action in ["replace", "remove", "replace and remove", "add again"]:
        position = 0
        came = True
        while came:
            store.write([painted(name, 0) for name in NAMES])
            searching = searcher(store, way)
            expected = [dict.fromkeys(NAMES, 0), change("lynx", action)]

            def come_between(*_: Any, action: str = action, **__: Any) -> None:
                for version in range(1, 4) if action != "remove" else ():
                    if action == "add again":
                        writer.remove("lynx")
                    writer.write([painted("lynx", version)])
                if "remove" in action:
                    writer.remove("lynx")

            at = backend.calls.total() + position
            backend.hooks[at] = come_between
            found = searching.search(ASKED, nearest=EVERYTHING)
            came = backend.hooks.pop(at, None) is None

            assert seen_versions(found, range(4)) in expected
            after = seen_versions(searching.search(ASKED, nearest=EVERYTHING), range(4))
            assert after == expected[came]
            position += 1
        assert position > 4


def change(name: str, action: str) -> dict[str, int]:
    """Versions of the categories after a change."""
    return {other: 3 if other == name else 0 for other in NAMES if not (other == name and "remove" in action)}


@memory_and_qdrant
def test_search_ends_though_a_category_changes_all_the_time(
    backend: Hooked, store: Store, writer: Store, way: str
) -> None:
    """A change before each of the first calls: more than one attempt makes."""
    store.write([painted(name, 0) for name in NAMES])
    searching = searcher(store, way)
    last = 40
    for call in range(last):

        def come_between(*_: Any, version: int = call + 1, **__: Any) -> None:
            writer.write([painted("wolf", version)])

        backend.hooks[backend.calls.total() + call] = come_between
    found = searching.search(ASKED, nearest=EVERYTHING)

    seen = seen_versions(found, range(last + 1))
    assert (seen["lynx"], seen["red panda"]) == (0, 0)
    assert seen["wolf"] > 0


def near(asked: Mapping[str, Floats], version: str, n: int) -> list[Reference]:
    """References nearer to the images than any others."""
    return [
        Reference(encoder, "image", source, source, vector / np.linalg.norm(vector))
        for encoder, rows in asked.items()
        for source in (f"{version} {i}" for i in range(n))
        for vector in (row + 0.3 * unit_vector(len(row), f"{encoder} {source}") for row in rows)
    ]


@pytest.mark.parametrize(
    ("way", "limit"), [("numpy", EVERYTHING), ("device", EVERYTHING), ("qdrant", EVERYTHING), ("qdrant", 6)]
)
def test_bounds_hold_for_changes_during_a_search(
    deployment: Deployment, backend: Hooked, store: Store, writer: Store, way: str, limit: int
) -> None:
    """Each category is entirely in its old or in its new state: counts, norms and similarities."""
    asked = queries(1)
    others = {name: STATE[name] for name in ("both", "images only", "text only")}
    before = {"lynx": near(asked, "old", 3), "wolf": near(asked, "one", 2), **others}
    after = {**before, "lynx": near(asked, "new", 12), "wolf": [*before["wolf"], *near(asked, "two", 5)]}
    position = 0
    came = True
    while came:
        fill(store, before)
        searching = searcher(store, way, limit=limit)

        def come_between(*_: Any, **__: Any) -> None:
            writer.write([Write(name="lynx", references=after["lynx"], replace=True)])
            writer.write([Write(name="wolf", references=after["wolf"])])

        at = backend.calls.total() + position
        backend.hooks[at] = come_between
        found = searching.search(asked, nearest=limit)
        came = backend.hooks.pop(at, None) is None

        for name in before:
            assert shows(found, name, before, asked) or shows(found, name, after, asked), (position, name)
        position += 1
    assert position > 4


def shows(found: SearchResult, name: str, state: State, asked: Mapping[str, Floats]) -> bool:
    """Whether an answer fits a state of a category: exact for found references, and nowhere too small."""
    assert name in found.categories
    position = found.categories.index(name)
    stored = by_expert({name: state[name]})
    for expert in found.experts:
        if (position in expert.coverage) != (expert.name in stored):
            return False
        if expert.name not in stored:
            continue
        column = list(expert.coverage).index(position)
        vectors = np.stack([reference.vector for reference in stored[expert.name][name]])
        cosine = vectors @ asked[expert.name.split(":")[0]][0]
        best = expert.similarities.aggregate("max", TOP_M)[0, column]
        if (
            expert.similarities.counts[column] != len(vectors)
            or abs(norms_of(expert.similarities)[column] - np.linalg.norm(vectors.mean(axis=0))) > 1e-5
            or expert.similarities.aggregate("mean", TOP_M)[0, column] < cosine.mean() - 2e-6
            or best < cosine.max() - 2e-6
            or (present_of(expert.similarities)[column] and best > cosine.max() + 2e-6)
        ):
            return False
    return True


@memory_and_qdrant
def test_categories_are_seen_whole_while_a_thread_replaces_them(store: Store, writer: Store, way: str) -> None:
    store.write([painted(name, 0) for name in NAMES])
    versions = range(15)
    searching = searcher(store, way)
    searched = threading.Event()

    def write() -> None:
        for version in versions[1:]:
            for name in NAMES:
                writer.write([painted(name, version)])
                searched.wait(0.05)  # in the middle of a search, most often
                searched.clear()

    def search() -> list[dict[str, int]]:
        seen = []
        while not writing.done():
            seen.append(seen_versions(searching.search(ASKED, nearest=EVERYTHING), versions))
            searched.set()
        return seen

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        seen_by = [task.result() for task in [pool.submit(search), pool.submit(search)]]
    writing.result()
    for seen in seen_by:
        assert len({versions_then["wolf"] for versions_then in seen}) > 1
        assert all(earlier[name] <= later[name] for earlier, later in pairwise(seen) for name in NAMES)
    last = seen_versions(searching.search(ASKED, nearest=EVERYTHING), versions)
    assert last == dict.fromkeys(NAMES, versions[-1])
