"""Both ways of searching a store give the answers of plain numpy, whatever happens to the store meanwhile."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encoders.support import needs_gpu
from tests.store.material import FINGERPRINTS, add, reference, references, unit_vector, write_of
from tests.store.support import Crash, Deployment, EdgeDeployment, Hooked, LocalDeployment, fast_folder
from zsvec.encoders import mirror_on, rows_times_rows
from zsvec.errors import StoreError
from zsvec.method.aggregation import aggregate
from zsvec.method.calibration import Calibration, ExpertCalibration, LogLinear
from zsvec.method.similarities import Found, References
from zsvec.search.searcher import Hold, InProcess, Searcher
from zsvec.store import Reference, Store, Write, edge
from zsvec.store.base import Points, Where
from zsvec.store.schema import record_id

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

Floats = NDArray[np.float32]
# What a store holds: the references of each category.
State = Mapping[str, Sequence[Reference]]
# Similarities of the images, by expert and category.
Answer = dict[str, dict[str, Floats]]

METHODS = [
    *("mirror", "qdrant", "mirror beside encoders", "mirror on torch"),
    pytest.param("mirror on a gpu", marks=needs_gpu),
]
BESIDE_ENCODERS: Hold = partial(InProcess, product=rows_times_rows)
HOLDS: Mapping[str, Callable[[], Hold]] = {
    "mirror beside encoders": lambda: BESIDE_ENCODERS,
    "mirror on torch": lambda: mirror_on("cpu", "float32"),
    "mirror on a gpu": lambda: mirror_on("auto", "float32"),
}
EVERYTHING = 1000
TOP_M = 3


@pytest.fixture(params=["edge", "memory"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with fast_folder() as folder:
        opened = EdgeDeployment(folder / "store") if request.param == "edge" else LocalDeployment()
        yield opened
        opened.close()


@pytest.fixture
def backend(deployment: Deployment) -> Hooked:
    return deployment.backend()


@pytest.fixture
def store(deployment: Deployment, backend: Hooked) -> Store:
    return deployment.open(backend)


@pytest.fixture
def writer(deployment: Deployment, store: Store) -> Store:
    """Another handle where there can be one."""
    return deployment.another(store)


def searcher(store: Store, method: str, *, limit: int = EVERYTHING, budget: int = 0, norms: bool = True) -> Searcher:
    hold = HOLDS.get(method, lambda: InProcess)
    return Searcher(store, method=method.split()[0], budget=budget, limit=limit, norms=norms, hold=hold)


def queries(n: int = 5) -> dict[str, Floats]:
    """The same images to each encoder."""
    dims = {encoder: fingerprint.dim for encoder, fingerprint in FINGERPRINTS.items()}
    asked = {encoder: [unit_vector(dim, f"{encoder} query {i}") for i in range(n)] for encoder, dim in dims.items()}
    return {encoder: np.array(rows, dtype=np.float32).reshape(n, dims[encoder]) for encoder, rows in asked.items()}


# The oracle


def by_expert(state: State) -> dict[str, dict[str, list[Reference]]]:
    """References of each expert and category; the same content of a category once."""
    found: dict[str, dict[str, list[Reference]]] = {}
    for name, held in state.items():
        for one in {r.key: r for r in held}.values():
            found.setdefault(f"{one.encoder}:{one.modality}", {}).setdefault(name, []).append(one)
    return found


def cosines(state: State, asked: Mapping[str, Floats]) -> dict[str, dict[str, Floats]]:
    """Of each expert and category, ``(n_images, n_references)``."""
    return {
        expert: {name: asked[expert.split(":")[0]] @ np.stack([r.vector for r in of]).T for name, of in names.items()}
        for expert, names in by_expert(state).items()
    }


def truth(state: State, asked: Mapping[str, Floats], method: str) -> Answer:
    experts = by_expert(state)
    norms = {
        expert: {name: np.linalg.norm(np.mean([r.vector for r in of], axis=0)) for name, of in names.items()}
        for expert, names in experts.items()
    }

    def one(expert: str, name: str, values: Floats) -> Floats:
        if method == "max":
            return values.max(axis=1)
        if method == "top_mean":
            return np.sort(values, axis=1)[:, -TOP_M:].mean(axis=1)
        if method == "prototype":
            return values.mean(axis=1) / norms[expert][name]
        return values.mean(axis=1)

    return {
        expert: {name: one(expert, name, values) for name, values in names.items()}
        for expert, names in cosines(state, asked).items()
    }


def answer(found: Found, method: str) -> Answer:
    return {
        expert.name: dict(
            zip(
                [found.categories[position] for position in expert.categories],
                aggregate(expert.similarities, method, TOP_M).T,
                strict=True,
            )
        )
        for expert in found.experts
    }


def assert_same(got: Answer, expected: Answer) -> None:
    assert {expert: sorted(of) for expert, of in got.items()} == {expert: sorted(of) for expert, of in expected.items()}
    for expert, of in expected.items():
        for name, values in of.items():
            np.testing.assert_allclose(got[expert][name], values, atol=2e-6, err_msg=f"{expert} {name}")


def assert_answers(searcher: Searcher, state: State) -> None:
    """The searcher sees exactly this."""
    asked = queries()
    found = searcher.search(asked, nearest=3)
    assert found.categories == tuple(sorted(state))
    assert_same(answer(found, "mean"), truth(state, asked, "mean"))
    assert_same(answer(found, "max"), truth(state, asked, "max"))


STATE: State = {
    "text only": references(texts=["one", "two", "three", "four", "five"]),
    "images only": references(images=["1", "2"]),
    "both": references(["six"], ["3", "4", "5", "6"]),
    "one encoder only": [reference("dino", "image", "7")],
    "a single reference": [reference("clip", "image", "8")],
    "duplicates": references(["seven", "seven"], ["9", "9", "1"]),
    "many": references(images=[f"many {i}" for i in range(70)]),
    "nothing": [],
    "Üñîçödé 🐼": references(["acht"], ["10"]),
}


def fill(store: Store, state: State) -> None:
    store.write([Write(name=name, references=held, replace=True) for name, held in state.items()])


# Answers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("aggregation", ["mean", "max", "top_mean", "prototype"])
def test_answers_are_those_of_plain_numpy(store: Store, method: str, aggregation: str) -> None:
    fill(store, STATE)
    asked = queries()
    found = searcher(store, method).search(asked, nearest=4)

    assert found.categories == tuple(sorted(STATE))
    assert [expert.name for expert in found.experts] == ["clip:image", "clip:text", "dino:image"]
    assert_same(answer(found, aggregation), truth(STATE, asked, aggregation))
    for expert in found.experts:
        assert list(expert.categories) == sorted(expert.categories)


@pytest.mark.parametrize("method", METHODS)
def test_nearest_references_are_named(store: Store, method: str) -> None:
    fill(store, STATE)
    asked = queries()
    found = searcher(store, method).search(asked, nearest=4)

    for expert in found.experts:
        encoder, modality = expert.name.split(":")
        held = [
            (float(query @ r.vector), name, r.source, i)
            for i, query in enumerate(asked[encoder])
            for name, of in STATE.items()
            for r in {r.key: r for r in of}.values()
            if (r.encoder, r.modality) == (encoder, modality)
        ]
        for i, neighbors in enumerate(expert.nearest):
            expected = sorted((one for one in held if one[3] == i), reverse=True)[:4]
            assert [n.similarity for n in neighbors] == pytest.approx([one[0] for one in expected], abs=2e-6)
            assert {(n.category, n.source) for n in neighbors} <= {
                (name, source) for similarity, name, source, j in held if j == i and similarity > expected[-1][0] - 1e-5
            }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nearest", [0, 1, EVERYTHING])
def test_any_number_of_nearest_references(store: Store, method: str, nearest: int) -> None:
    state = {"red panda": references(["a"], ["1", "2", "3"])}
    fill(store, state)
    found = searcher(store, method).search(queries(2), nearest)

    assert {e.name: [len(neighbors) for neighbors in e.nearest] for e in found.experts} == {
        "clip:image": [min(nearest, 3)] * 2,
        "clip:text": [min(nearest, 1)] * 2,
        "dino:image": [min(nearest, 3)] * 2,
    }
    assert_same(answer(found, "mean"), truth(state, queries(2), "mean"))


@pytest.mark.parametrize("method", METHODS)
def test_no_category_and_no_image(deployment: Deployment, backend: Hooked, method: str) -> None:
    store = Store(backend, deployment.namespace)
    searching = searcher(store, method)
    assert searching.search(queries(), nearest=1) == Found((), ())
    assert searching.method == method.split()[0]

    store.bind(FINGERPRINTS)
    assert searching.search(queries(), nearest=1) == Found((), ())

    add(store, "red panda", ["1", "2"], ["a"])
    found = searching.search(queries(0), nearest=1)
    assert found.categories == ("red panda",)
    for expert in found.experts:
        assert list(expert.nearest) == []
        assert aggregate(expert.similarities, "max", 1).shape == (0, 1)
    assert_answers(searching, {"red panda": references(["a"], ["1", "2"])})


@pytest.mark.parametrize("limit", [1, 4, 20])
def test_limited_search_gives_bounds(store: Store, limit: int) -> None:
    """What was fetched is exact; for what was not, the most that it can be."""
    fill(store, STATE)
    asked = queries()
    found = searcher(store, "qdrant", limit=limit).search(asked, nearest=limit)
    every = {method: (answer(found, method), truth(STATE, asked, method)) for method in ("max", "mean", "top_mean")}

    for got, true in every.values():
        for expert, of in true.items():
            assert got[expert].keys() == of.keys()
            assert all((got[expert][name] >= values - 2e-6).all() for name, values in of.items())
    got, true = every["max"]
    for expert in found.experts:
        for i, neighbors in enumerate(expert.nearest):
            fetched = {neighbor.category for neighbor in neighbors}
            floor = neighbors[-1].similarity
            for name, values in got[expert.name].items():
                expected = true[expert.name][name][i] if name in fetched else floor
                assert values[i] == pytest.approx(expected, abs=2e-6)
    # Where all that counts was fetched, so is the mean of the best exact.
    got, true = every["top_mean"]
    for expert in found.experts:
        for i, neighbors in enumerate(expert.nearest):
            for name, values in got[expert.name].items():
                if sum(neighbor.category == name for neighbor in neighbors) >= TOP_M:
                    assert values[i] == pytest.approx(true[expert.name][name][i], abs=2e-6)


def test_limit_that_is_just_enough_is_exact(store: Store) -> None:
    fill(store, STATE)
    most = max(sum(len(of) for of in names.values()) for names in by_expert(STATE).values())
    assert_answers(searcher(store, "qdrant", limit=most), STATE)


# Changes


@pytest.mark.parametrize("method", METHODS)
def test_next_batch_sees_what_was_committed(store: Store, writer: Store, method: str) -> None:
    searching = searcher(store, method)
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


@pytest.mark.parametrize("method", METHODS)
def test_compaction_changes_no_answer(store: Store, writer: Store, method: str) -> None:
    searching = searcher(store, method)
    for i in range(40):
        add(writer, "red panda", [str(i)])
        if i % 10 == 9 or 30 < i < 35:
            assert_answers(searching, {"red panda": references(images=[str(image) for image in range(i + 1)])})


def test_auto_switches_at_the_budget(store: Store, writer: Store) -> None:
    searching = searcher(store, "auto", budget=8)
    add(writer, "a", ["1", "2"], ["text"])  # 5 references
    state = {"a": references(["text"], ["1", "2"])}
    assert_answers(searching, state)
    assert searching.method == "mirror"

    add(writer, "b", ["1"], ["text"])  # 8: just within
    state["b"] = references(["text"], ["1"])
    assert_answers(searching, state)
    assert searching.method == "mirror"

    add(writer, "b", [], ["another"])  # 9
    state["b"] = [*state["b"], *references(["another"])]
    assert_answers(searching, state)
    assert searching.method == "qdrant"

    add(writer, "a", ["3"], replace=True)  # 6
    state["a"] = references(images=["3"])
    assert_answers(searching, state)
    assert searching.method == "mirror"


@pytest.mark.parametrize("budget", [3, 100])
def test_auto_survives_that_everything_is_removed(store: Store, writer: Store, budget: int) -> None:
    searching = searcher(store, "auto", budget=budget)
    add(writer, "a", ["1", "2"])
    assert_answers(searching, {"a": references(images=["1", "2"])})
    writer.remove("a")
    assert_answers(searching, {})
    assert searching.method == "mirror"
    add(writer, "b", ["3"])
    assert_answers(searching, {"b": references(images=["3"])})


class Recording(Hooked):
    """Remembers which references were fetched with their vectors."""

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
    ("method", "norms", "limit", "fetches"),
    [
        ("mirror", False, 100, True),
        ("qdrant", True, 2, True),
        ("qdrant", False, 2, False),
        pytest.param("qdrant", False, 100, True, id="every reference is seen"),
    ],
)
def test_only_what_changed_is_fetched(
    deployment: Deployment, method: str, norms: bool, limit: int, fetches: bool
) -> None:
    backend = Recording(deployment)
    store = deployment.open(backend)
    fill(store, STATE)
    searching = searcher(store, method, norms=norms, limit=limit)
    everything = [
        (name, r.modality, r.source) for names in by_expert(STATE).values() for name, of in names.items() for r in of
    ]
    searching.search(queries(), nearest=1)
    assert backend.taken() == (sorted(everything) if fetches else [])

    before = backend.calls.copy()
    searching.search(queries(), nearest=1)
    assert backend.taken() == []
    assert (backend.calls - before)["query"] == (0 if method == "mirror" else 3)
    assert backend.calls["retrieve"] == before["retrieve"]

    add(store, "images only", ["20"])
    backend.taken()
    searching.search(queries(), nearest=1)
    new = [("images only", "image", "20")] * 2
    old = [("images only", "image", source) for source in ("1", "2")] * 2
    assert backend.taken() == {"mirror": sorted(new), "qdrant": sorted([*old, *new]) if fetches else []}[method]

    store.remove("images only")
    searching.search(queries(), nearest=1)
    assert backend.taken() == []


@pytest.mark.parametrize("method", METHODS)
def test_commit_between_two_pages_of_the_catalog_is_not_missed(
    deployment: Deployment, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.edge._PAGE", 2)
    monkeypatch.setattr("zsvec.store.server._PAGE", 2)
    names = sorted("abcdef", key=lambda name: record_id("category", name))  # the order of the pages
    backend = Interrupted(deployment)
    store = deployment.open(backend)
    fill(store, {name: references(images=["1"]) for name in names})
    searching = searcher(store, method)

    backend.after_page = lambda: store.write([write_of(name, ["2"]) for name in (names[0], names[-1])])
    searching.search(queries(), nearest=1)

    assert backend.after_page is None
    sources = {name: ["1", "2"] if name in (names[0], names[-1]) else ["1"] for name in names}
    assert_answers(searching, {name: references(images=of) for name, of in sources.items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_catalog_of_a_folder_is_read_in_one_instant(store: Store, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that commits meanwhile has to wait, or the commit would be missed where its ``rev`` is not the last."""
    monkeypatch.setattr("zsvec.store.edge._PAGE", 2)
    names = sorted("abcdef", key=lambda name: record_id("category", name))
    fill(store, {name: references(images=["1"]) for name in names})
    searching = searcher(store, method)
    later = threading.Thread(
        target=store.write, args=([write_of(name, ["2"]) for name in (names[0], names[-1])],), daemon=True
    )
    requests: list[Where] = []
    filter_of = edge._filter

    def slow_filter(where: Where) -> Any:
        if threading.current_thread() is not later and where.since is not None:
            requests.append(where)
            if len(requests) == 2:
                later.start()
                later.join(0.3)
        return filter_of(where)

    monkeypatch.setattr(edge, "_filter", slow_filter)
    searching.search(queries(), nearest=1)
    later.join()

    sources = {name: ["1", "2"] if name in (names[0], names[-1]) else ["1"] for name in names}
    assert_answers(searching, {name: references(images=of) for name, of in sources.items()})


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


# Calibration


def calibration_of(store: Store, **changes: Any) -> Calibration:
    """One as if it were made from all that is committed."""
    pool = LogLinear({"clip:image": {"top_mean": 3.0}}, {"clip:image": 0.5})
    values: dict[str, Any] = {
        "revision": max(category.rev for category in store.categories(since=0)),
        "aggregation": "top_mean",
        "top_m": TOP_M,
        "false_unknown_rate": 0.05,
        "images": 4,
        "experts": {"clip:image": ExpertCalibration(0.1, 0.2, 4, 0.75)},
        "plain": pool,
        "views": pool,
    }
    return Calibration(**(values | changes))


def state_of(searching: Searcher) -> tuple[Calibration | None, bool]:
    found = searching.search(queries(1), nearest=1)
    return found.calibration, found.stale


@pytest.mark.parametrize("method", METHODS)
def test_next_batch_uses_the_calibration_that_was_kept(store: Store, writer: Store, method: str) -> None:
    fill(store, STATE)
    searching = searcher(store, method)
    assert state_of(searching) == (None, False)

    for i in range(1, 4):
        kept = calibration_of(writer, images=i)
        writer.keep_calibration(kept.to_dict())
        assert state_of(searching) == (kept, False)
        assert state_of(searching) == (kept, False)
        assert state_of(searcher(store, method)) == (kept, False)

    writer.keep_calibration({})
    assert state_of(searching) == (None, False)
    assert_answers(searching, STATE)


CHANGES: Mapping[str, Callable[[Store], Any]] = {
    "new": lambda s: add(s, "new", ["11"]),
    "more": lambda s: add(s, "both", ["12"]),
    "replaced": lambda s: add(s, "both", ["13"], replace=True),
    "removed": lambda s: s.remove("many"),
    "added again": lambda s: add(s, "many", ["14"]),
}


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_stale_after_a_change_and_until_the_next(store: Store, writer: Store, method: str) -> None:
    fill(store, STATE)
    kept = calibration_of(writer)
    writer.keep_calibration(kept.to_dict())
    searching = searcher(store, method)
    assert state_of(searching) == (kept, False)
    for i, change in enumerate(CHANGES.values()):
        change(writer)
        assert state_of(searching) == (kept, True)
        assert state_of(searcher(store, method)) == (kept, True)
        assert state_of(searching) == (kept, True)
        kept = calibration_of(writer, images=i)
        writer.keep_calibration(kept.to_dict())
        assert state_of(searching) == (kept, False)
        assert state_of(searcher(store, method)) == (kept, False)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_that_was_overtaken_by_a_change_is_stale(store: Store, writer: Store, method: str) -> None:
    fill(store, STATE)
    searching = searcher(store, method)
    made = calibration_of(writer)
    add(writer, "both", ["11"])
    writer.keep_calibration(made.to_dict())
    assert state_of(searching) == (made, True)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_of_another_format_is_none(store: Store, writer: Store, method: str) -> None:
    fill(store, STATE)
    searching = searcher(store, method)
    made = calibration_of(writer)
    for kept, expected in [
        ({**made.to_dict(), "format": 99}, None),
        (made.to_dict(), made),
        ({"format": 99, "revision": "new", "experts": 3}, None),
        ({"format": None}, None),
    ]:
        writer.keep_calibration({})  # what the other version writes is not compared with what is there
        writer.keep_calibration(kept)
        assert state_of(searching) == (expected, False)
        assert state_of(searcher(store, method)) == (expected, False)
    add(writer, "both", ["11"])
    assert state_of(searching) == (None, False)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_that_comes_between_is_seen_then_or_next_time(
    backend: Hooked, store: Store, writer: Store, method: str
) -> None:
    """Whichever call of a search it comes before."""
    fill(store, STATE)
    for position in itertools.count():
        before, after = calibration_of(writer, images=1), calibration_of(writer, images=2)
        writer.keep_calibration(before.to_dict())
        searching = searcher(store, method)

        def come_between(*_: Any, after: Calibration = after, **__: Any) -> None:
            writer.keep_calibration(after.to_dict())

        at = backend.calls.total() + position
        backend.hooks[at] = come_between
        seen = state_of(searching)
        came = backend.hooks.pop(at, None) is None

        assert seen in [(before, False), (after, False)]
        assert state_of(searching) == (after if came else before, False)
        if not came:
            break
    assert position > 1


def vectors_of(of: References) -> dict[str, dict[str, tuple[list[float], str]]]:
    """Vector and source of each reference, by category and hash."""
    assert list(of.names) == sorted(of.names)
    assert of.starts[0] == 0
    assert of.starts[-1] == len(of.vectors) == len(of.hashes) == len(of.sources)
    return {
        name: {
            of.hashes[row]: (of.vectors[row].tolist(), of.sources[row]) for row in range(of.starts[i], of.starts[i + 1])
        }
        for i, name in enumerate(of.names)
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
        for i, (name, held) in enumerate(sorted(names.items())):
            assert {digest: source for digest, (_, source) in found[name].items()} == {r.hash: r.source for r in held}
            for one in held:
                np.testing.assert_allclose(found[name][one.hash][0], one.vector, atol=1e-6)
            norm = np.linalg.norm(np.mean([r.vector for r in held], axis=0))
            assert got[expert].norms[i] == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [2, EVERYTHING])
def test_references_are_all_that_is_committed(store: Store, writer: Store, method: str, limit: int) -> None:
    def newest() -> int:
        return max(category.rev for category in writer.categories(since=0))

    searching = searcher(store, method, limit=limit, norms=False)
    assert searching.references() == ({}, 0)
    state = dict(STATE)
    fill(store, state)
    assert_references(searching, state, newest())
    assert_references(searching, state, newest())

    add(writer, "both", ["11"])
    state["both"] = [*state["both"], *references(images=["11"])]
    assert_references(searching, state, newest())

    writer.keep_calibration(calibration_of(writer).to_dict())
    assert_references(searching, state, newest())

    writer.remove("many")
    del state["many"]
    assert_references(searching, state, newest())
    assert searching.method == method.split()[0]
    found = searching.search(queries(), nearest=1)
    assert found.categories == tuple(sorted(state))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("action", ["replace", "remove", "replace and remove", "add again"])
def test_references_of_a_category_that_changes_meanwhile_are_whole(
    backend: Hooked, store: Store, writer: Store, method: str, action: str
) -> None:
    """Whichever call the change comes before."""
    for position in itertools.count():
        store.write([painted(name, 0) for name in NAMES])
        before = max(category.rev for category in store.categories(since=0))
        searching = searcher(store, method)

        def come_between(*_: Any, **__: Any) -> None:
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
            tuple((name, *{source for _, source in held.values()}, len(held)) for name, held in vectors_of(of).items())
            for of in got.values()
        }
        rest = (("red panda", "0", REFERENCES), ("wolf", "0", REFERENCES))
        old = {(("lynx", "0", REFERENCES), *rest)}
        new = {rest} if "remove" in action else {(("lynx", "2", REFERENCES), *rest)}
        assert shown in (old, new)
        revision = max(category.rev for category in store.categories(since=0))
        assert seen == (revision if shown == new else before)
        if not came:
            break
    assert position > 2


@pytest.mark.parametrize("method", METHODS)
def test_lost_references_cannot_be_given(backend: Hooked, store: Store, method: str) -> None:
    fill(store, STATE)
    backend.delete(store.collection("dino"), Where(match={"gen": list(store.category("images only").write_ids)}))
    with pytest.raises(StoreError, match="lacks references of 'images only'"):
        searcher(store, method).references()


@pytest.mark.parametrize("norms", [True, False])
def test_a_search_is_exact_unless_something_was_left_out(store: Store, norms: bool) -> None:
    fill(store, STATE)
    most = max(sum(len(of) for of in names.values()) for names in by_expert(STATE).values())
    for limit in (1, 4, 20, most - 1):
        assert not searcher(store, "qdrant", limit=limit, norms=norms).search(queries(), nearest=1).exact
    for limit in (most + 1, EVERYTHING):
        assert searcher(store, "qdrant", limit=limit, norms=norms).search(queries(), nearest=1).exact
    assert searcher(store, "mirror", limit=1, norms=norms).search(queries(), nearest=1).exact


def test_a_search_is_not_exact_where_each_image_found_another_reference(store: Store) -> None:
    held = references(images=["1", "2"])
    fill(store, {"red panda": held[:1] + held[2:3], "lynx": held[1:2] + held[3:]})
    asked = {e: np.stack([r.vector for r in held if r.encoder == e]) for e in FINGERPRINTS}
    found = searcher(store, "qdrant", limit=1).search(asked, nearest=1)
    assert [list(expert.similarities.present) for expert in found.experts] == [[1, 1]] * 2
    assert not found.exact
    assert searcher(store, "qdrant", limit=3).search(asked, nearest=1).exact


def test_a_search_that_grows_beyond_the_limit_is_not_exact_any_more(store: Store, writer: Store) -> None:
    fill(store, {"red panda": references(images=["1", "2"])})
    searching = searcher(store, "qdrant", limit=3, norms=False)
    assert searching.search(queries(), nearest=1).exact
    add(writer, "lynx", ["3", "4"])
    assert not searching.search(queries(), nearest=1).exact
    writer.remove("lynx")
    assert searching.search(queries(), nearest=1).exact


# What must never be seen


def write_and_die(backend: Hooked, store: Store, name: str, asked: Mapping[str, np.ndarray]) -> None:
    """Leave references that equal the first query, three for each encoder, of a writer that did not come to commit."""

    def die(*_: Any) -> None:
        raise Crash

    nearer = [Reference(e, "image", f"{e}{i}", "garbage", asked[e][0]) for e in FINGERPRINTS for i in range(3)]
    backend.hooks["put"] = die
    with pytest.raises(Crash):
        store.write([Write(name=name, references=nearer)])


@pytest.mark.parametrize("method", METHODS)
def test_uncommitted_references_are_not_seen(backend: Hooked, store: Store, method: str) -> None:
    """Though they are nearer than all others, and fill the limit."""
    state = {"red panda": references(images=["1", "2"]), "lynx": references(images=["3"])}
    fill(store, state)
    asked = queries(1)
    for name in ("red panda", "never committed"):
        write_and_die(backend, store, name, asked)

    assert_answers(searcher(store, method), state)
    found = searcher(store, method, limit=7).search(asked, nearest=9)
    assert found.categories == ("lynx", "red panda")
    assert {n.source for e in found.experts for neighbors in e.nearest for n in neighbors} <= {"1", "2", "3"}
    for aggregation in ("max", "mean"):
        for expert, of in truth(state, asked, aggregation).items():
            assert all((answer(found, aggregation)[expert][name] >= values - 2e-6).all() for name, values in of.items())


@pytest.mark.parametrize("method", METHODS)
def test_uncommitted_references_take_no_places(backend: Hooked, store: Store, method: str) -> None:
    """Though all that a query may fetch is of a writer that died."""
    state = {"red panda": references(images=["1", "2"]), "lynx": references(images=["3"])}
    fill(store, state)
    asked = queries(1)
    write_and_die(backend, store, "never committed", asked)

    found = searcher(store, method, limit=3).search(asked, nearest=3)
    assert [expert.name for expert in found.experts] == ["clip:image", "dino:image"]
    for expert in found.experts:
        assert sorted(neighbor.source for neighbor in expert.nearest[0]) == ["1", "2", "3"]
    for aggregation in ("max", "mean"):
        for expert, of in truth(state, asked, aggregation).items():
            for name, values in of.items():
                np.testing.assert_allclose(answer(found, aggregation)[expert][name], values, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoder", FINGERPRINTS)
def test_lost_references_are_an_error(backend: Hooked, store: Store, method: str, encoder: str) -> None:
    fill(store, STATE)
    write_ids = list(store.category("images only").write_ids)
    backend.delete(store.collection(encoder), Where(match={"gen": write_ids}))
    assert store.incomplete() == ["images only"]

    searching = searcher(store, method)
    for _ in range(2):
        with pytest.raises(StoreError, match="lacks references of 'images only'") as caught:
            searching.search(queries(), nearest=1)
    assert store.location in str(caught.value)

    store.remove("images only")
    assert_answers(searching, {name: held for name, held in STATE.items() if name != "images only"})


# While others write

NAMES = ("lynx", "red panda", "wolf")
REFERENCES = 4  # of a category and expert


def painted(name: str, version: int) -> Write:
    """A category all of whose references are alike, and tell its version."""
    return Write(
        name=name,
        references=[
            Reference(encoder, modality, f"{version} {i}", str(version), paint(encoder, version))
            for encoder in FINGERPRINTS
            for modality in ("text", "image")
            for i in range(REFERENCES)
        ],
        replace=True,
    )


def paint(encoder: str, version: int) -> Floats:
    return unit_vector(FINGERPRINTS[encoder].dim, f"{encoder} version {version}")


def seen_versions(found: Found, versions: Sequence[int]) -> dict[str, int]:
    """Which version of each category the answer to version 0 shows: the same, and whole, in every expert."""
    seen: dict[str, set[int]] = {name: set() for name in found.categories}
    assert [expert.name for expert in found.experts] == ["clip:image", "clip:text", "dino:image", "dino:text"]
    for expert in found.experts:
        encoder = expert.name.split(":")[0]
        assert [found.categories[position] for position in expert.categories] == list(found.categories)
        assert list(expert.similarities.counts) == list(expert.similarities.present)
        assert list(expert.similarities.counts) == [REFERENCES] * len(found.categories)
        np.testing.assert_allclose(expert.similarities.norms, 1, atol=1e-5)
        cosine = np.array([paint(encoder, version) @ paint(encoder, 0) for version in versions])
        largest, mean = (aggregate(expert.similarities, method, 1)[0] for method in ("max", "mean"))
        np.testing.assert_allclose(largest, mean, atol=2e-6)  # the references of each are all the same
        for name, value in zip(found.categories, largest, strict=True):
            nearest = int(np.abs(cosine - value).argmin())
            assert cosine[nearest] == pytest.approx(value, abs=1e-5)
            seen[name].add(versions[nearest])
        shown = {(neighbor.category, neighbor.source) for neighbor in expert.nearest[0]}
        assert len(shown) == len(found.categories)
        for name, source in shown:
            seen[name].add(int(source))
    assert all(len(of) == 1 for of in seen.values())
    return {name: of.pop() for name, of in seen.items()}


ASKED = {encoder: paint(encoder, 0)[None] for encoder in FINGERPRINTS}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("action", ["replace", "remove", "replace and remove", "add again"])
def test_category_that_changes_during_a_search_is_seen_whole(
    deployment: Deployment, backend: Hooked, store: Store, writer: Store, method: str, action: str
) -> None:
    """Whichever call of the search the change comes before."""
    position = 0
    came = True
    while came:
        store.write([painted(name, 0) for name in NAMES])
        searching = searcher(store, method)
        expected = [dict.fromkeys(NAMES, 0), change("lynx", action)]

        def come_between(*_: Any, **__: Any) -> None:
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
    """Versions of the categories after it."""
    return {other: 3 if other == name else 0 for other in NAMES if not (other == name and "remove" in action)}


@pytest.mark.parametrize("method", METHODS)
def test_search_ends_though_a_category_changes_all_the_time(
    backend: Hooked, store: Store, writer: Store, method: str
) -> None:
    """It changes before each of the first calls, which is more than one attempt makes."""
    store.write([painted(name, 0) for name in NAMES])
    searching = searcher(store, method)
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
    ("method", "limit"),
    [("mirror", EVERYTHING), ("mirror on torch", EVERYTHING), ("qdrant", EVERYTHING), ("qdrant", 6)],
)
def test_bounds_hold_for_what_changes_during_a_search(
    deployment: Deployment, backend: Hooked, store: Store, writer: Store, method: str, limit: int
) -> None:
    """Each category is as it was before the changes or as it was after them: counts, norms and similarities."""
    asked = queries(1)
    others = {name: STATE[name] for name in ("both", "images only", "text only")}
    before = {"lynx": near(asked, "old", 3), "wolf": near(asked, "one", 2), **others}
    after = {**before, "lynx": near(asked, "new", 12), "wolf": [*before["wolf"], *near(asked, "two", 5)]}
    position = 0
    came = True
    while came:
        fill(store, before)
        searching = searcher(store, method, limit=limit)

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


def shows(found: Found, name: str, state: State, asked: Mapping[str, Floats]) -> bool:
    """Whether an answer is one for this state of a category: exact where it was found, and nowhere too small."""
    assert name in found.categories
    position = found.categories.index(name)
    held = by_expert({name: state[name]})
    for expert in found.experts:
        if (position in expert.categories) != (expert.name in held):
            return False
        if expert.name not in held:
            continue
        column = list(expert.categories).index(position)
        vectors = np.stack([reference.vector for reference in held[expert.name][name]])
        cosine = vectors @ asked[expert.name.split(":")[0]][0]
        best = aggregate(expert.similarities, "max", TOP_M)[0, column]
        if (
            expert.similarities.counts[column] != len(vectors)
            or abs(expert.similarities.norms[column] - np.linalg.norm(vectors.mean(axis=0))) > 1e-5
            or aggregate(expert.similarities, "mean", TOP_M)[0, column] < cosine.mean() - 2e-6
            or best < cosine.max() - 2e-6
            or (expert.similarities.present[column] and best > cosine.max() + 2e-6)
        ):
            return False
    return True


@pytest.mark.parametrize("method", METHODS)
def test_categories_are_seen_whole_while_a_thread_replaces_them(store: Store, writer: Store, method: str) -> None:
    store.write([painted(name, 0) for name in NAMES])
    versions = range(15)
    searching = searcher(store, method)
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
        assert len({of["wolf"] for of in seen}) > 1
        assert all(earlier[name] <= later[name] for earlier, later in pairwise(seen) for name in NAMES)
    last = seen_versions(searching.search(ASKED, nearest=EVERYTHING), versions)
    assert last == dict.fromkeys(NAMES, versions[-1])
