"""References of a store by expert and category, and category means."""

from __future__ import annotations

import itertools
import time
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.method.material import background
from tests.search.support import (
    EVERYTHING,
    NAMES,
    REFERENCES,
    STATE,
    State,
    by_expert,
    every_way,
    fill,
    means,
    memory_and_qdrant,
    newest_rev,
    painted,
    queries,
    searcher,
)
from tests.search.test_calibration import calibration_of
from tests.store.material import add, references
from tests.store.support import Hooked
from zsvec.method.predict.reference_aggregation import Similarities
from zsvec.method.similarities import ExpertSimilarities, References
from zsvec.search import layout
from zsvec.search.base import Change
from zsvec.search.searcher import Searcher
from zsvec.store import Reference, Store, Write
from zsvec.store.backends.base import Where

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


def vectors_of(indexed: References) -> dict[str, dict[str, tuple[list[float], str]]]:
    """Vector and source of each reference, by category and hash."""
    assert list(indexed.names) == sorted(indexed.names)
    assert indexed.starts[0] == 0
    assert indexed.starts[-1] == len(indexed.vectors) == len(indexed.hashes) == len(indexed.sources)
    return {
        name: {
            indexed.hashes[row]: (indexed.vectors[row].tolist(), indexed.sources[row])
            for row in range(indexed.starts[i], indexed.starts[i + 1])
        }
        for i, name in enumerate(indexed.names)
    }


def assert_references(searching: Searcher, state: State, revision: int) -> None:
    got, seen = searching.references()
    expected = by_expert(state)
    assert seen == revision
    assert got.keys() == expected.keys()
    for expert, names in expected.items():
        found = vectors_of(got[expert])
        assert found.keys() == names.keys()
        assert len(got[expert].vectors) == sum(map(len, names.values()))
        for i, (name, stored) in enumerate(sorted(names.items())):
            assert {digest: source for digest, (_, source) in found[name].items()} == {r.hash: r.source for r in stored}
            for one in stored:
                np.testing.assert_allclose(found[name][one.hash][0], one.vector, atol=1e-6)
            norm = np.linalg.norm(np.mean([r.vector for r in stored], axis=0))
            assert got[expert].norms[i] == pytest.approx(norm, abs=1e-6)


@memory_and_qdrant
@pytest.mark.parametrize("limit", [2, EVERYTHING])
def test_references_are_all_that_is_committed(store: Store, writer: Store, way: str, limit: int) -> None:
    searching = searcher(store, way, limit=limit, norms=False)
    assert searching.references() == ({}, 0)
    state = dict(STATE)
    fill(store, state)
    assert_references(searching, state, newest_rev(writer))
    assert_references(searching, state, newest_rev(writer))

    add(writer, "both", ["11"])
    state["both"] = [*state["both"], *references(images=["11"])]
    assert_references(searching, state, newest_rev(writer))

    writer.keep_calibration(calibration_of(writer).to_dict())
    assert_references(searching, state, newest_rev(writer))

    writer.remove("many")
    del state["many"]
    assert_references(searching, state, newest_rev(writer))
    assert searching.kind == ("qdrant" if way == "qdrant" else "memory")
    found = searching.search(queries(), nearest=1)
    assert found.categories == tuple(sorted(state))


@pytest.fixture(params=[0, 1000], ids=["all", "few"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0, all references are read even if most are not wanted."""
    monkeypatch.setattr(layout, "_FEW", request.param)


@memory_and_qdrant
@pytest.mark.usefixtures("few")
def test_references_of_a_category_that_changes_meanwhile_are_whole(
    backend: Hooked, store: Store, writer: Store, way: str
) -> None:
    """Whichever call the change comes before."""
    for action in ["replace", "remove", "replace and remove", "add again"]:
        for position in itertools.count():
            store.write([painted(name, 0) for name in NAMES])
            before = newest_rev(store)
            searching = searcher(store, way)

            def come_between(*_: Any, action: str = action, **__: Any) -> None:
                for version in range(1, 3) if action != "remove" else ():
                    if action == "add again":
                        writer.remove("lynx")
                    writer.write([painted("lynx", version)])
                if "remove" in action:
                    writer.remove("lynx")

            at = backend.calls.total() + position
            backend.hooks[at] = come_between
            got, seen = searching.references()
            came = backend.hooks.pop(at, None) is None

            shown = {
                tuple(
                    (name, *{source for _, source in rows.values()}, len(rows))
                    for name, rows in vectors_of(one).items()
                )
                for one in got.values()
            }
            rest = (("red panda", "0", REFERENCES), ("wolf", "0", REFERENCES))
            old = {(("lynx", "0", REFERENCES), *rest)}
            new = {rest} if "remove" in action else {(("lynx", "2", REFERENCES), *rest)}
            assert shown in (old, new)
            revision = newest_rev(store)
            assert seen == (revision if shown == new else before)
            if not came:
                break
        assert position > 2


@memory_and_qdrant
@pytest.mark.usefixtures("few")
def test_references_are_given_without_a_category_that_lacks_some(
    backend: Hooked, store: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    fill(store, STATE)
    backend.delete(store.collection("dino"), Where(match={"gen": list(store.category("images only").write_ids)}))
    found, _ = searcher(store, way).references()
    assert {name for references in found.values() for name in references.names} == STATE.keys() - {
        "images only",
        "nothing",
    }


@memory_and_qdrant
@pytest.mark.usefixtures("few")
def test_references_are_given_without_a_category_that_has_too_many(
    backend: Hooked, store: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    fill(store, STATE)
    (page,) = store.references("dino", store.category("images only").write_ids)
    rows = [row for row, payload in enumerate(page.payloads) if payload["modality"] == "image"][:1]
    backend.upsert(store.collection("dino"), replace(page.chosen(rows), ids=[str(uuid.uuid4())]))
    found, _ = searcher(store, way).references()
    assert {name for references in found.values() for name in references.names} == STATE.keys() - {
        "images only",
        "nothing",
    }


@pytest.mark.parametrize("number", [3, 2**40])
def test_a_manifest_that_counts_too_many_references_takes_no_memory(
    store: Store, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_FEW", 2)
    add(store, "lynx", ["1"])
    category = store.category("lynx")
    forged = replace(category, references={"clip:image": number})
    found = dict(layout.read(store, [Change(None, forged)]))
    assert len(found["clip:image"].hashes) == len(found["dino:image"].hashes) == 1


# Groups


def add_grouped(store: Store, name: str, groups: dict[str, str | None], *, replaces: bool = False) -> None:
    written = [replace(reference, group=groups[reference.source]) for reference in references(images=groups)]
    store.write([Write(name=name, references=written, replace=replaces)])


def groups_of(searching: Searcher) -> dict[str, dict[tuple[str, str], str | None]]:
    """By expert, the group of each image, by category and source."""
    found, _ = searching.references()
    groups = {}
    for expert, stored in found.items():
        images = zip(stored.labels, stored.sources, strict=True)
        groups[expert] = dict(zip(images, stored.groups or [None] * len(stored.sources), strict=True))
    return groups


@memory_and_qdrant
def test_groups_come_with_the_references(store: Store, way: str) -> None:
    searching = searcher(store, way)
    add_grouped(store, "plain", {"1": None, "2": None})
    assert [found.groups for found in searching.references()[0].values()] == [(), ()]
    add_grouped(store, "burst", {"3": "x", "4": "x", "5": None})
    expected = {("burst", "3"): "x", ("burst", "4"): "x", ("burst", "5"): None, ("plain", "1"): None}
    expected[("plain", "2")] = None
    assert groups_of(searching) == {"clip:image": expected, "dino:image": expected}
    add_grouped(store, "plain", {"6": "y"})
    expected[("plain", "6")] = "y"
    assert groups_of(searching) == groups_of(searcher(store, way)) == {"clip:image": expected, "dino:image": expected}
    add_grouped(store, "burst", {"3": "z"}, replaces=True)
    kept = {key: group for key, group in expected.items() if key[0] == "plain"} | {("burst", "3"): "z"}
    assert groups_of(searching) == {"clip:image": kept, "dino:image": kept}


@memory_and_qdrant
def test_a_group_that_is_no_text_is_none(backend: Hooked, store: Store, way: str) -> None:
    add_grouped(store, "burst", {"3": "x", "4": None})
    for page in backend.scroll(store.collection("clip"), Where(), vectors=True):
        payloads = [{**payload, "group": ["x"]} for payload in page.payloads]
        backend.upsert(store.collection("clip"), replace(page, payloads=payloads))
    assert set(groups_of(searcher(store, way))["clip:image"].values()) == {None}


# Statistics of categories


def test_statistics_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, 1], [0.6, 0.8]], dtype=np.float32)
    starts = np.array([0, 2, 4], dtype=np.intp)
    norms = np.linalg.norm([[0.5, 0.5], [0.3, 0.9]], axis=1).astype(np.float32)
    found = References(("a", "b"), vectors, starts, norms, tuple("1234"), tuple("1234"))
    assert found.class_means.means.dtype == np.float32
    np.testing.assert_array_equal(found.class_means.means, np.array([[0.5, 0.5], [0.3, 0.9]], dtype=np.float32))
    assert found.class_means.counts.tolist() == [2, 2]
    assert found.class_means is found.class_means
    assert found.root_means.means.sum(axis=1) == pytest.approx(
        [1, 0.5 + (0.6**0.5 + 0.8**0.5) / 1.4**0.5 / 2], abs=1e-6
    )
    assert found.sum_up(background(2)) is found.class_means
    assert found.sum_up(background(2, of_roots=True)) is found.root_means


def assert_statistics(searching: Searcher, state: State) -> None:
    found = searching.search(queries(), nearest=1)
    expected = means(state)
    assert [expert.name for expert in found.experts] == sorted(expected)
    for expert in found.experts:
        assert (expert.encoder, expert.modality) == tuple(expert.name.split(":"))
        statistics = expert.class_means(background(4))
        assert statistics is not None
        categories = [found.categories[position] for position in expert.coverage]
        assert statistics.means.dtype == np.float32
        np.testing.assert_allclose(
            statistics.means, np.stack([expected[expert.name][name] for name in categories]), atol=1e-6
        )
        np.testing.assert_array_equal(statistics.counts, expert.similarities.counts)
        # The prototype from the statistics equals the aggregation.
        length = np.linalg.norm(statistics.means, axis=1)
        prototype = found.queries[expert.encoder] @ (statistics.means / length[:, None]).T
        np.testing.assert_allclose(prototype, expert.similarities.aggregate("prototype", 1), atol=2e-6)


@every_way
def test_statistics_of_committed_references(store: Store, writer: Store, way: str) -> None:
    searching = searcher(store, way)
    state = dict(STATE)
    fill(store, state)
    assert_statistics(searching, state)

    add(writer, "both", ["11"])
    state["both"] = [*state["both"], *references(images=["11"])]
    add(writer, "text only", ["12"], replace=True)
    state["text only"] = references(images=["12"])
    writer.remove("many")
    del state["many"]
    assert_statistics(searching, state)


@pytest.mark.parametrize("way", ["numpy", "qdrant"])
def test_means_of_roots_are_there_where_no_component_is_negative(store: Store, way: str) -> None:
    state = {
        name: [replace(r, vector=np.abs(r.vector)) for r in found]
        for name, found in STATE.items()
        if name in ("both", "many")
    }
    fill(store, state)
    searching, taken = searcher(store, way), background(4, of_roots=True)
    for expert in searching.search(queries(), nearest=1).experts:
        found = expert.class_means(taken)
        assert found is not None
        expected = [
            np.mean([np.sqrt(r.vector / r.vector.sum()) for r in state[name] if _expert(r) == expert.name], axis=0)
            for name in ("both", "many")
            if any(_expert(r) == expert.name for r in state[name])
        ]
        np.testing.assert_allclose(found.means, np.stack(expected), atol=1e-6)
        assert expert.class_means(taken) is found
    fill(store, {"odd": references(images=["negative"])})
    # In memory, roots are taken with signs; means in Qdrant's snapshot are computed without.
    images = [e for e in searching.search(queries(), nearest=1).experts if e.modality == "image"]
    assert [expert.class_means(taken) is not None for expert in images] == [way == "numpy"] * 2


def _expert(reference: Reference) -> str:
    return f"{reference.encoder}:{reference.modality}"


def test_qdrant_has_statistics_where_vectors_were_read(store: Store) -> None:
    for norms, limit, read in [(True, 2, True), (False, 2, False), (False, EVERYTHING, True), (True, EVERYTHING, True)]:
        fill(store, STATE)
        found = searcher(store, "qdrant", norms=norms, limit=limit).search(queries(), nearest=1)
        assert [expert.class_means(background(4)) is not None for expert in found.experts] == [read] * 3


def test_an_answer_keeps_the_statistics_of_its_state(store: Store) -> None:
    for way in ("numpy", "qdrant"):
        fill(store, {"lynx": references(images=["1", "2"])})
        searching = searcher(store, way)
        found = searching.search(queries(), nearest=1)
        add(store, "lynx", ["3"], replace=True)
        searching.search(queries(), nearest=1)
        statistics = [expert.class_means(background(4)) for expert in found.experts]
        assert [kept.counts.tolist() for kept in statistics if kept] == [[2], [2]]


def test_answers_made_without_a_search_have_no_statistics() -> None:
    one = np.ones(1, dtype=np.float32)
    similarities = Similarities(one[None], np.array([0, 1]), np.array([1]), one, -one)
    nobody = ExpertSimilarities(name="a:b:text", coverage=np.array([0]), similarities=similarities, nearest=[])
    assert (nobody.class_means(background(1)), nobody.encoder, nobody.modality) == (None, "a:b", "text")
