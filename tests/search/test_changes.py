"""A search is in step with the catalog, and reads only changes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.search.support import STATE, assert_answers, by_expert, every_way, fill, memory_and_qdrant, queries, searcher
from tests.store.material import FINGERPRINTS, add, references, write_of
from tests.store.support import Deployment, Hooked
from zsvec.errors import EncoderMismatchError
from zsvec.store import Points, Store
from zsvec.store.backends.base import Where
from zsvec.store.backends.edge import backend as edge
from zsvec.store.backends.server.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


@every_way
def test_next_batch_sees_commits(store: Store, writer: Store, way: str) -> None:
    searching = searcher(store, way)
    state = dict(STATE)
    fill(store, state)
    assert_answers(searching, state)

    add(writer, "new", ["11"], ["nine"])
    state["new"] = references(["nine"], ["11"])
    assert_answers(searching, state)

    add(writer, "both", ["12", "13"])
    state["both"] = [*state["both"], *references(images=["12", "13"])]
    assert_answers(searching, state)

    add(writer, "text only", ["14"], replace=True)
    state["text only"] = references(images=["14"])
    assert_answers(searching, state)

    writer.remove("many")
    del state["many"]
    assert_answers(searching, state)

    writer.remove("duplicates")
    add(writer, "duplicates", ["15"])
    state["duplicates"] = references(images=["15"])
    assert_answers(searching, state)

    add(writer, "nothing", [], ["ten"])
    state["nothing"] = references(["ten"])
    add(writer, "both", metadata={"only": "this changes"})
    assert_answers(searching, state)

    for name in state:
        writer.remove(name)
    assert_answers(searching, {})

    add(writer, "many", ["16"])
    assert_answers(searching, {"many": references(images=["16"])})


@memory_and_qdrant
def test_compaction_changes_no_answer(store: Store, writer: Store, way: str) -> None:
    searching = searcher(store, way)
    for i in range(40):
        add(writer, "red panda", [str(i)])
        if i % 10 == 9 or 30 < i < 35:
            assert_answers(searching, {"red panda": references(images=[str(image) for image in range(i + 1)])})


def test_auto_switches_at_the_budget(store: Store, writer: Store) -> None:
    searching = searcher(store, "auto", budget=8)
    add(writer, "a", ["1", "2"], ["text"])  # 5 references
    state = {"a": references(["text"], ["1", "2"])}
    assert_answers(searching, state)
    assert searching.kind == "memory"

    add(writer, "b", ["1"], ["text"])  # 8: just within
    state["b"] = references(["text"], ["1"])
    assert_answers(searching, state)
    assert searching.kind == "memory"

    add(writer, "b", [], ["another"])  # 9
    state["b"] = [*state["b"], *references(["another"])]
    assert_answers(searching, state)
    assert searching.kind == "qdrant"

    add(writer, "a", ["3"], replace=True)  # 6
    state["a"] = references(images=["3"])
    assert_answers(searching, state)
    assert searching.kind == "memory"


@pytest.mark.parametrize("budget", [3, 100])
def test_auto_survives_that_everything_is_removed(store: Store, writer: Store, budget: int) -> None:
    searching = searcher(store, "auto", budget=budget)
    add(writer, "a", ["1", "2"])
    assert_answers(searching, {"a": references(images=["1", "2"])})
    writer.remove("a")
    assert_answers(searching, {})
    assert searching.kind == "memory"
    add(writer, "b", ["3"])
    assert_answers(searching, {"b": references(images=["3"])})


class Recording(Hooked):
    """Records references that are fetched with vectors."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment.backend().inner)
        self.fetched: list[tuple[str, str, str]] = []

    def scroll(self, *args: Any, vectors: bool = False, **kwargs: Any) -> Iterator[Points]:
        self.calls["scroll"] += 1
        for page in self.inner.scroll(*args, vectors=vectors, **kwargs):
            if vectors:
                self.fetched += [(p["category"], p["modality"], p["source"]) for p in page.payloads]
            yield page

    def taken(self) -> list[tuple[str, str, str]]:
        taken, self.fetched = sorted(self.fetched), []
        return taken


@pytest.mark.parametrize(
    ("way", "norms", "limit", "fetches"),
    [
        ("numpy", False, 100, True),
        ("qdrant", True, 2, True),
        ("qdrant", False, 2, False),
        pytest.param("qdrant", False, 100, True, id="every reference is seen"),
    ],
)
def test_only_changes_are_fetched(deployment: Deployment, way: str, norms: bool, limit: int, fetches: bool) -> None:
    backend = Recording(deployment)
    store = deployment.open(backend)
    fill(store, STATE)
    searching = searcher(store, way, norms=norms, limit=limit)
    everything = [
        (name, r.modality, r.source)
        for categories in by_expert(STATE).values()
        for name, stored in categories.items()
        for r in stored
    ]
    searching.search(queries(), nearest=1)
    assert backend.taken() == (sorted(everything) if fetches else [])

    before = backend.calls.copy()
    searching.search(queries(), nearest=1)
    assert backend.taken() == []
    assert (backend.calls - before)["query"] == (0 if way == "numpy" else 3)
    assert backend.calls["retrieve"] == before["retrieve"]

    add(store, "images only", ["20"])
    backend.taken()
    searching.search(queries(), nearest=1)
    new = [("images only", "image", "20")] * 2
    old = [("images only", "image", source) for source in ("1", "2")] * 2
    assert backend.taken() == {"numpy": sorted(new), "qdrant": sorted([*old, *new]) if fetches else []}[way]

    store.remove("images only")
    searching.search(queries(), nearest=1)
    assert backend.taken() == []


class EmptyPages(Hooked):
    """Gives pages without points between the others, as shards of a cluster do."""

    def scroll(self, *args: Any, **kwargs: Any) -> Iterator[Points]:
        empty = Points([], np.empty((0, 0), dtype=np.float32), [])
        yield empty
        for page in self.inner.scroll(*args, **kwargs):
            yield page
            yield empty


@memory_and_qdrant
def test_pages_may_be_empty(deployment: Deployment, way: str) -> None:
    store = deployment.open(EmptyPages(deployment.backend().inner))
    fill(store, STATE)
    searching = searcher(store, way)
    assert_answers(searching, STATE)
    store.remove("images only")
    assert_answers(searching, {name: stored for name, stored in STATE.items() if name != "images only"})


@memory_and_qdrant
def test_a_reference_that_says_it_is_of_a_category_without_manifest_is_of_none(
    backend: Hooked, store: Store, way: str
) -> None:
    fill(store, STATE)
    (page,) = backend.scroll(store.collection("clip"), Where(match={"category": "both"}), vectors=True)
    forged = [{**payload, "category": "nobody's"} for payload in page.payloads]
    others = [str(uuid.uuid4()) for _ in forged]
    backend.upsert(store.collection("clip"), replace(page, ids=others, payloads=forged))
    assert_answers(searcher(store, way), STATE)


def filled_with_six(store: Store, deployment: Deployment) -> list[str]:
    """The names of six new categories, in the order of the pages of the catalog."""
    fill(store, {name: references(images=["1"]) for name in "abcdef"})
    return [record["category"] for record in deployment.points("catalog").values() if record["kind"] == "manifest"]


class Interrupted(Hooked):
    """Does something, once, after the first page of the catalog was read."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment.backend().inner)
        self.after_page: Callable[[], Any] | None = None

    def scroll(self, collection: str, *args: Any, **kwargs: Any) -> Iterator[Points]:
        for page in self.inner.scroll(collection, *args, **kwargs):
            yield page
            if self.after_page and collection.endswith("__catalog"):
                act, self.after_page = self.after_page, None
                act()


@pytest.mark.parametrize("deployment", ["edge", "local"], indirect=True)
@pytest.mark.parametrize("way", ["numpy", "qdrant"])
def test_commit_between_two_pages_of_the_catalog_is_not_missed(
    deployment: Deployment, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.backends.edge.backend._PAGE", 2)
    monkeypatch.setattr(Limits, "of", classmethod(lambda cls, _: cls(page=2)))
    backend = Interrupted(deployment)
    store = deployment.open(backend)
    names = filled_with_six(store, deployment)
    searching = searcher(store, way)
    searching.search(queries(), nearest=1)
    begun = time.time_ns()

    def act() -> None:
        for seconds, name in enumerate((names[0], names[-1]), 10):
            monkeypatch.setattr(time, "time_ns", lambda: begun + seconds * 10**10)  # noqa: B023
            add(store, name, ["2"])

    add(store, names[2], ["3"])  # else there would be nothing to look for
    backend.after_page = act
    for _ in range(2):
        searching.search(queries(), nearest=1)

    assert backend.after_page is None
    sources = {name: ["1", "2"] if name in (names[0], names[-1]) else ["1"] for name in names} | {names[2]: ["1", "3"]}
    assert_answers(searching, {name: references(images=images) for name, images in sources.items()})


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
@pytest.mark.parametrize("way", ["numpy", "qdrant"])
def test_catalog_of_a_folder_is_read_in_one_instant(
    deployment: Deployment, store: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A concurrent commit has to wait, or a commit with a ``rev`` before the last would be missed."""
    monkeypatch.setattr("zsvec.store.backends.edge.backend._PAGE", 2)
    names = filled_with_six(store, deployment)
    searching = searcher(store, way)
    later = threading.Thread(
        target=store.write, args=([write_of(name, ["2"]) for name in (names[0], names[-1])],), daemon=True
    )
    requests: list[Where] = []
    filter_of = edge._filter

    def slow_filter(where: Where) -> Any:
        if threading.current_thread() is not later and where.or_match is not None:
            requests.append(where)
            if len(requests) == 2:
                later.start()
                later.join(0.3)
        return filter_of(where)

    monkeypatch.setattr(edge, "_filter", slow_filter)
    searching.search(queries(), nearest=1)
    later.join()

    sources = {name: ["1", "2"] if name in (names[0], names[-1]) else ["1"] for name in names}
    assert_answers(searching, {name: references(images=images) for name, images in sources.items()})


# Fingerprints


@memory_and_qdrant
def test_fingerprints_are_checked_when_categories_have_changed(
    store: Store, writer: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[object] = []
    monkeypatch.setattr(store, "check_fingerprints", checked.append)
    searching = searcher(store, way)

    def checks() -> int:
        checked.clear()
        searching.search(queries(), 1, fingerprints=FINGERPRINTS)
        assert all(fingerprints is FINGERPRINTS for fingerprints in checked)
        return len(checked)

    assert checks() == 0
    add(writer, "lynx", ["1"])
    assert (checks(), checks()) == (1, 0)
    add(writer, "lynx", ["2"])
    searching.references()  # takes the change over, and knows no encoders
    assert (checks(), checks()) == (1, 0)
    searching.search(queries(), 1)
    assert checks() == 0


@memory_and_qdrant
def test_references_of_other_encoders_are_not_searched(store: Store, writer: Store, way: str) -> None:
    others = {**FINGERPRINTS, "dino": replace(FINGERPRINTS["dino"], revision="another")}
    add(writer, "lynx", ["1"])
    searching = searcher(store, way)
    for _ in range(2):
        with pytest.raises(EncoderMismatchError, match="dino"):
            searching.search(queries(), 1, fingerprints=others)
    searching.search(queries(), 1, fingerprints=FINGERPRINTS)
