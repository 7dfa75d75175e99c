"""References that count less do so in every way of searching, as a calibration that is kept says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.method.material import background
from tests.search.support import State, every_way, fill, memory_and_qdrant, queries, searcher
from tests.search.test_calibration import calibration_of
from tests.store.material import FINGERPRINTS, content_hash, references
from tests.store.support import Hooked
from zsvec.method.calibration import Calibration
from zsvec.method.predict.background import Background, roots
from zsvec.search.searcher import Searcher
from zsvec.store import Reference, Store, Write
from zsvec.store.backends.base import Points

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

EXPERT, DIM = "clip:image", FINGERPRINTS["clip"].dim
Weights = Mapping[str, Mapping[str, float]]
Means = tuple[np.ndarray, list[int]]
DOUBTS: Weights = {"lynx": {"1": 0.5, "3": 0.001}, "wolf": {"4": 0.25}, "nobody": {"1": 0.5}}


def pictures(*contents: str) -> list[Reference]:
    """References without negative components, whose roots Qdrant can sum up too."""
    return [replace(reference, vector=np.abs(reference.vector)) for reference in references(images=contents)]


def state() -> dict[str, list[Reference]]:
    return {
        "lynx": pictures("1", "2", "3"),
        "otter": pictures("1", "5", "6"),
        "wolf": pictures("4", "7", "8", "9"),
    }


def doubting(store: Store, weights: Weights, *, of_roots: bool = False) -> Background:
    """A calibration that is kept, and its background."""
    by_hash = {name: {content_hash(content): w for content, w in by.items()} for name, by in weights.items()}
    known = replace(background(DIM, of_roots=of_roots), weights=by_hash)
    made = replace(calibration_of(store), backgrounds={EXPERT: known})
    store.keep_calibration(made.to_dict())
    kept = Calibration.from_dict(store.calibration())
    assert kept is not None
    return kept.backgrounds[EXPERT]


def expected(stored: State, weights: Weights, *, of_roots: bool = False) -> Means:
    """The mean of each category, and how many references it counts."""
    means, counts = [], []
    for name in sorted(stored):
        images = [reference for reference in stored[name] if f"{reference.encoder}:{reference.modality}" == EXPERT]
        each = [weights.get(name, {}).get(reference.source, 1.0) for reference in images]
        vectors = np.stack([reference.vector for reference in images])
        means.append(np.average(roots(vectors) if of_roots else vectors, axis=0, weights=each))
        counts.append(max(1, round(sum(each))))
    return np.stack(means), counts


def weighed(searching: Searcher) -> Means:
    found = searching.search(queries(), nearest=1)
    assert found.calibration is not None
    (expert,) = (one for one in found.experts if one.name == EXPERT)
    means = expert.class_means(found.calibration.backgrounds[EXPERT])
    assert means is not None
    return np.stack([means.take(i) for i in range(len(means))]), means.counts.tolist()


def same(got: Means, wanted: Means) -> bool:
    return got[1] == wanted[1] and np.allclose(got[0], wanted[0], rtol=0, atol=1e-6)


def write(store: Store, name: str, some: Sequence[Reference], *, replace: bool = True) -> None:
    store.write([Write(name=name, references=some, replace=replace)])


@every_way
@pytest.mark.parametrize("of_roots", [False, True])
def test_means_are_weighed_as_the_calibration_says(store: Store, way: str, of_roots: bool) -> None:
    fill(store, state())
    doubting(store, DOUBTS, of_roots=of_roots)
    assert expected(state(), DOUBTS, of_roots=of_roots)[1] == [2, 3, 3]
    assert same(weighed(searcher(store, way)), expected(state(), DOUBTS, of_roots=of_roots))


@memory_and_qdrant
def test_weights_of_the_next_calibration_take_the_place_of_those_before(store: Store, writer: Store, way: str) -> None:
    fill(store, state())
    searching = searcher(store, way)
    for weights in (DOUBTS, {"otter": {"5": 0.1}}, {"otter": {"5": 0.2}, "lynx": {"1": 0.5}}, {}, DOUBTS):
        doubting(writer, weights)
        for _ in range(2):
            assert same(weighed(searching), expected(state(), weights))
        assert same(weighed(searcher(store, way)), expected(state(), weights))


CHANGES: Mapping[str, tuple[Callable[[Store], Any], Callable[[dict[str, list[Reference]]], Any]]] = {
    "a doubted category grows": (
        lambda s: write(s, "lynx", pictures("10"), replace=False),
        lambda stored: stored["lynx"].extend(pictures("10")),
    ),
    "a doubted category is replaced": (
        lambda s: write(s, "wolf", pictures("4", "11", "12")),
        lambda stored: stored.update(wolf=pictures("4", "11", "12")),
    ),
    "a doubted reference goes": (
        lambda s: s.remove_references("lynx", [content_hash("3")]),
        lambda stored: stored.update(lynx=pictures("1", "2")),
    ),
    "a doubted category goes": (lambda s: s.remove("wolf"), lambda stored: stored.pop("wolf")),
    "a category that was doubted before it was there": (
        lambda s: write(s, "nobody", pictures("1", "2", "3")),
        lambda stored: stored.update(nobody=pictures("1", "2", "3")),
    ),
    "another category comes": (
        lambda s: write(s, "ant", pictures("1", "2", "3")),
        lambda stored: stored.update(ant=pictures("1", "2", "3")),
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
@memory_and_qdrant
def test_weights_hold_for_what_categories_have_become(store: Store, writer: Store, way: str, change: str) -> None:
    stored = state()
    fill(store, stored)
    doubting(writer, DOUBTS)
    searching = searcher(store, way)
    assert same(weighed(searching), expected(stored, DOUBTS))
    commit, note = CHANGES[change]
    commit(writer)
    note(stored)
    assert same(weighed(searching), expected(stored, DOUBTS))
    assert same(weighed(searcher(store, way)), expected(stored, DOUBTS))


@pytest.mark.parametrize("deployment", ["edge", "local", "server"], indirect=True)
def test_only_references_of_doubted_categories_are_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, state())
    owners = {write_id: category.name for category in store.categories() for write_id in category.write_ids}
    read: set[str] = set()
    references = Store.references

    def watched(self: Store, encoder: str, write_ids: Sequence[str], **options: Any) -> Iterator[Points]:
        read.update(owners[write_id] for write_id in write_ids)
        return references(self, encoder, write_ids, **options)

    monkeypatch.setattr(Store, "references", watched)
    searching = searcher(store, "qdrant")

    def seen(weights: Weights) -> set[str]:
        read.clear()
        doubting(store, weights)
        searching.search(queries(), nearest=1)
        return set(read)

    assert seen({}) == {"lynx", "otter", "wolf"}
    assert seen({}) == set()
    assert seen(DOUBTS) == {"lynx", "wolf"}
    assert seen(DOUBTS) == set()
    assert seen({"otter": {"1": 0.5}}) == {"lynx", "otter", "wolf"}
    assert seen({}) == {"otter"}


@memory_and_qdrant
@pytest.mark.parametrize("after", ["replaced", "doubted"])
def test_a_category_is_weighed_whole_whenever_it_changes(
    backend: Hooked, store: Store, writer: Store, way: str, after: str
) -> None:
    """Whichever call of a search the change comes before."""
    for position in itertools.count():
        before = state()
        fill(writer, before)
        searching = searcher(store, way)
        searching.search(queries(), nearest=1)
        doubting(writer, DOUBTS)
        later, weights = dict(before), DOUBTS
        if after == "replaced":
            later["wolf"] = pictures("4", "11", "12")
        else:
            weights = {"wolf": {"4": 0.75, "9": 0.5}}

        def come_between(*_: Any, later: State = later, weights: Weights = weights, **__: Any) -> None:
            if weights is DOUBTS:
                write(writer, "wolf", later["wolf"])
            else:
                doubting(writer, weights)

        at = backend.calls.total() + position
        backend.hooks[at] = come_between
        seen = weighed(searching)
        came = backend.hooks.pop(at, None) is None
        allowed = [expected(before, DOUBTS), *([expected(later, weights)] if came else [])]
        assert any(same(seen, one) for one in allowed), (position, came)
        assert same(weighed(searching), allowed[-1])
        if not came:
            break
    assert position > {"numpy": 0, "qdrant": 2}[way]


def test_without_all_references_there_are_no_means_to_weigh(store: Store) -> None:
    fill(store, state())
    doubting(store, DOUBTS)
    searching = searcher(store, "qdrant", limit=2, norms=False)
    found = searching.search(queries(), nearest=1)
    assert found.calibration is not None
    assert [one.class_means(found.calibration.backgrounds[EXPERT]) for one in found.experts] == [None, None]
