"""Foreign and damaged records: each affects one category alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from typing import Any

import pytest

from tests.support import coloured, photo, two_encoders
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.errors import StoreError, ZSVecError
from zsvec.settings.settings import load_settings
from zsvec.store import Store, Write
from zsvec.store.backends.base import Where
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.names import record_id
from zsvec.types import CALIBRATION_FORMAT

NAMES = ("red", "green", "blue")
MISSING = object()
ODD: list[Any] = [
    *(None, MISSING, True, -1, 0, 2**53, 2**80, 1.5, float("nan"), float("inf"), 1e308, "", "x", "\ud800"),
    *([], {}, [[]], [None], [1], ["x"], {"a": 1}, {"red": None}, {"a": {"b": [1]}}, {"": ""}),
]
PLACES = {
    "change": "",  # the first
    "intent": "21111111-1111-4111-8111-111111111111",
    "undo": "11111111-1111-4111-8111-111111111111",
}
CATALOG, INBOX, IMAGES, REFERENCES = (f"zsvec__{name}" for name in ("catalog", "inbox", "images", "dino"))


class Shared(MemoryBackend):
    """As a server: other processes may write."""

    exclusive = False


def opened(backend: MemoryBackend) -> Classifier:
    encoders = EncoderSet(two_encoders())
    clf = Classifier(
        Store(backend, "zsvec", history=86_400.0),
        load_settings(store=":memory:"),
        load_encoders=lambda: encoders,
        temperatures={"clip:text": 0.01, "clip:image": 0.05, "dino:image": 0.05},
        prompts={},
    )
    clf._calibrator._automatic = False  # slow, and would replace a damaged calibration
    return clf


@pytest.fixture(scope="module")
def filled() -> MemoryBackend:
    """A store that has a record of every kind."""
    backend = Shared()
    clf = opened(backend)
    clf.add_categories(
        CategoryInput(name=name, images=[coloured(name, seed) for seed in range(4)], metadata={"a": [1]})
        for name in NAMES
    )
    clf.add_category("red", images=[photo(3)])
    moved = next(one.hash for one in clf.references.of("red") if one.modality == "image")
    clf.references.move(moved, source="red", target="green")
    clf.history.undo()
    clf.keep(photo(4))
    clf.calibrate()
    state = clf._store._catalog.state(["red"])
    was = {key: state.manifests["red"][key] for key in ("version", "writes", "references", "texts", "metadata")}
    always = {"store": state.store, "version": 1, "rev": 1, "change": "c", "until": 2**52, "by": "Ann"}
    records: list[dict[str, Any]] = [
        {"kind": "undo", "takes": [{"id": "x", "categories": ["red"]}]},
        {
            "kind": "intent",
            "writes": {"red": ["w1"]},
            "replaced": {"red": ["w0"]},
            "what": "add",
            "before": {"red": was, "green": None},
            "moved": ["red", "green"],
            "forgotten": ["x"],
            "undoes": "x",
        },
    ]
    for record in records:
        place = PLACES[record["kind"]]
        backend._collections[CATALOG][place] = (None, {**always, **record, "id": place})
    return backend


def places(backend: MemoryBackend, which: str) -> tuple[str, str]:
    """The collection and the id of a record."""
    fixed = {"store": record_id("store"), "calibration": record_id("calibration"), "red": record_id("category", "red")}
    if which in fixed:
        return CATALOG, fixed[which]
    if which in PLACES:
        [page] = backend.scroll(CATALOG, Where(match={"kind": which}))
        return CATALOG, PLACES[which] or page.ids[0]
    collection = {"inbox": INBOX, "image": IMAGES, "reference": REFERENCES}[which]
    [page] = backend.scroll(collection, Where())
    wanted = [i for i, one in zip(page.ids, page.payloads, strict=True) if one.get("category", "red") == "red"]
    return collection, wanted[0]


def paths(value: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each part of a record."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in parts if depth else ():
        yield (key,)
        yield from ((key, *more) for more in paths(part, depth - 1))


def damaged(record: Mapping[str, Any], path: tuple[Any, ...], odd: Any) -> dict[str, Any]:
    whole: Any = deepcopy(dict(record))
    part = whole
    for key in path[:-1]:
        part = part[key]
    if odd is MISSING:
        del part[path[-1]]
    else:
        part[path[-1]] = odd
    return dict(whole)


def copied(backend: MemoryBackend, *, exclusive: bool) -> MemoryBackend:
    copy = MemoryBackend() if exclusive else Shared()
    copy._collections = {name: dict(points) for name, points in backend._collections.items()}
    return copy


def shown(clf: Classifier) -> None:
    assert [category.to_dict() for category in clf.categories()]
    assert {"green", "blue"} <= {category.name for category in clf.categories()}


def answered(clf: Classifier) -> None:
    for name in ("green", "blue"):
        prediction = clf.classify(coloured(name, 1))
        assert prediction.nearest == name
        assert prediction.to_dict()


def followed(clf: Classifier) -> None:
    if not clf._store._backend.exclusive:
        target = Store(MemoryBackend(), "zsvec")
        target.sync_from(clf._store.follower())
        assert {"green", "blue"} <= {category.name for category in target.categories()}
        assert target.incomplete() == []


# Independent of the category red.
OTHERS: dict[str, Callable[[Classifier], object]] = {
    "list": shown,
    "classify": answered,
    "info": lambda clf: clf._store.info(),
    "show": lambda clf: [one.to_dict() for one in clf.references.of("blue")],
    "history": lambda clf: [change.to_dict() for change in clf.history],
    "inbox": lambda clf: [image.to_dict() for image in clf.inbox.rank()],
    "sync": followed,
    "doctor": lambda clf: list(clf._store.check_up()),
    "add": lambda clf: clf.add_category("blue", images=[photo(50)]),
    "new": lambda clf: clf.add_category("new", images=[photo(51)]),
    "undo": lambda clf: clf.history.undo("blue"),
}
# May be refused by an error of zsvec.
ALL: dict[str, Callable[[Classifier], object]] = {
    "undo": lambda clf: clf.history.undo(),
    "remove": lambda clf: clf.remove_category("red"),
    "gc": lambda clf: clf._store.gc(),
    "gc at once": lambda clf: clf._store.gc(0),
}


@pytest.mark.parametrize("exclusive", [False, True], ids=["shared", "embedded"])
@pytest.mark.parametrize(
    "which", ["store", "red", "calibration", "intent", "change", "undo", "inbox", "image", "reference"]
)
def test_an_odd_record_stops_nothing_else(filled: MemoryBackend, which: str, exclusive: bool) -> None:
    collection, place = places(filled, which)
    vector, record = filled._collections[collection][place]
    cases = [(path, odd) for path in paths(record) if path != ("small",) for odd in ODD]
    for path, odd in random.Random(which).sample(cases, min(len(cases), 25)):
        backend = copied(filled, exclusive=exclusive)
        backend._collections[collection][place] = (vector, damaged(record, path, odd))
        try:
            clf = opened(backend)
            for act in OTHERS.values():
                act(clf)
        except (ZSVecError, AssertionError) as exc:
            # Without the record of the store nothing can be read. In files, a record of no kind may be of any category.
            if which == "store" or (exclusive and path in {("kind",), ("category",)}):
                continue
            raise AssertionError(path, odd) from exc
        for act in ALL.values():
            try:
                act(clf)
            except ZSVecError:
                continue


# Past defects


def with_record(filled: MemoryBackend, which: str, **changes: Any) -> MemoryBackend:
    backend = copied(filled, exclusive=False)
    collection, place = places(backend, which)
    vector, record = backend._collections[collection][place]
    backend._collections[collection][place] = (vector, {**record, **changes})
    return backend


@pytest.mark.parametrize(
    "changes",
    [{"changed": [1]}, {"changed": float("nan")}, {"references": {"clip:image": "x"}}, {"writes": [[]]}, {"rev": None}],
    ids=str,
)
def test_a_damaged_manifest_is_named_and_its_category_answered_from_before(
    filled: MemoryBackend, changes: dict[str, Any]
) -> None:
    backend = copied(filled, exclusive=False)
    reader = opened(backend)
    assert reader.classify(coloured("red", 1)).nearest == "red"
    place = record_id("category", "red")
    vector, record = backend._collections[CATALOG][place]
    backend._collections[CATALOG][place] = (vector, {**record, "version": record["version"] + 1, **changes})
    assert reader.classify(coloured("red", 1)).nearest == "red"
    new = opened(backend)
    prediction = new.classify(coloured("red", 1))
    assert prediction.nearest != "red"
    assert prediction.incomplete == ("red",)
    assert new._store.info()["unreadable"] == ["red"]
    assert any("'red'" in finding.detail for finding in new._store.check_up())
    with pytest.raises(StoreError, match="'red'"):
        new._store.write([Write(name=name, references=new._store.stored("blue")) for name in ("red", "new")])
    assert "new" in {category.name for category in new.categories()}


@pytest.mark.parametrize("fitted", [None, [], "x", {"format": []}, {"format": CALIBRATION_FORMAT}, [{}]], ids=str)
def test_a_damaged_calibration_is_none_and_is_named(filled: MemoryBackend, fitted: Any) -> None:
    backend = with_record(filled, "calibration", fitted=fitted)
    clf = opened(backend)
    assert clf.classify(coloured("red", 1)).calibration == "none"
    assert clf._store.info()["calibration"] == "damaged"
    clf.calibrate()
    assert clf._store.info()["calibration"] == "current"


@pytest.mark.parametrize("changes", [{"version": "x"}, {"rev": None}, {"writers": None}, {"writers": 5}], ids=str)
def test_a_calibration_takes_the_place_of_an_odd_record(filled: MemoryBackend, changes: dict[str, Any]) -> None:
    clf = opened(with_record(filled, "calibration", **changes))
    clf.calibrate()
    assert clf._store.info()["calibration"] == "current"
    assert clf.classify(coloured("red", 1)).calibration == "current"


def test_garbage_of_a_damaged_category_stops_no_writer_of_another(filled: MemoryBackend) -> None:
    backend = copied(filled, exclusive=True)
    odd: dict[str, dict[str, Any]] = {record_id("category", "red"): {"texts": None}, PLACES["intent"]: {"what": 5}}
    for place, changes in odd.items():
        vector, record = backend._collections[CATALOG][place]
        backend._collections[CATALOG][place] = (vector, {**record, **changes})
    opened(backend).add_category("blue", images=[photo(50)])


def test_a_record_that_tells_of_no_change_is_named(filled: MemoryBackend) -> None:
    clf = opened(with_record(filled, "change", before=5))
    [finding] = [one for one in clf._store.check_up() if one.what == "records"]
    assert not finding.ok
    assert "1 record" in finding.detail


RECORD = {"version": 1, "rev": 1, "writes": {}, "replaced": {}, "change": "c", "until": 2**52, "takes": []}


@pytest.mark.parametrize("kind", ["intent", "change", "undo"])
def test_a_record_of_a_write_takes_no_place_of_another_kind(filled: MemoryBackend, kind: str) -> None:
    for which in ("red", "calibration", "store"):
        backend = copied(filled, exclusive=False)
        collection, place = places(backend, which)
        store = backend._collections[CATALOG][record_id("store")][1]["id"]
        backend._collections[collection][place] = (None, {**RECORD, "kind": kind, "id": place, "store": store})
        assert place in Catalog(backend, "zsvec").unreadable()
        source, target = Store(backend, "zsvec"), Store(MemoryBackend(), "zsvec")
        with pytest.raises(StoreError) if which in {"red", "store"} else nullcontext():
            source.category(which) if which == "red" else source.encoders()
        with suppress(StoreError):
            target.sync_from(source.follower())
        assert {category.name for category in target.categories()} <= {*NAMES} - {which}


def test_a_store_without_an_id_is_not_followed(filled: MemoryBackend) -> None:
    backend = copied(filled, exclusive=False)
    _, record = backend._collections[CATALOG][record_id("store")]
    backend._collections[CATALOG][record_id("store")] = (None, damaged(record, ("id",), MISSING))
    with pytest.raises(StoreError, match="damaged"):
        Store(MemoryBackend(), "zsvec").sync_from(Store(backend, "zsvec").follower())


def test_a_required_category_that_no_store_can_have_is_not_found(filled: MemoryBackend) -> None:
    backend = with_record(filled, "red", requires={"\ud800": 5})
    target = Store(MemoryBackend(), "zsvec")
    target.sync_from(Store(backend, "zsvec").follower())
    assert {"green", "blue"} <= {category.name for category in target.categories()}
