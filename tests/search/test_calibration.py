"""A search comes with the calibration that is kept with the store, and says whether categories have changed since."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from tests.search.support import STATE, TOP_M, assert_answers, fill, memory_and_qdrant, newest_rev, queries, searcher
from tests.store.material import add
from tests.store.support import Hooked
from zsvec.method.calibration import Calibration
from zsvec.search.searcher import Searcher
from zsvec.store import Store
from zsvec.types import CALIBRATION_FORMAT


def calibration_of(store: Store, *, images: int = 4) -> Calibration:
    """A calibration as if made from all commits."""
    pool = {
        "coefficients": {"clip:image": {"top_mean": 3.0}},
        "shares": {"clip:image": 0.6},
        "neutral": {"clip:image": 0.5},
        "thresholds": {},
        "category_thresholds": {},
        "learned": False,
    }
    made = Calibration.from_dict(
        {
            "format": CALIBRATION_FORMAT,
            "revision": newest_rev(store),
            "aggregation": "top_mean",
            "top_m": TOP_M,
            "false_unknown_rate": 0.05,
            "images": images,
            "experts": {"clip:image": {"temperature": 0.1, "spread": 0.2, "images": 4, "accuracy": 0.75, "wrong": 0.3}},
            "plain": pool,
            "aggregations": pool,
            "backgrounds": {},
        }
    )
    assert made is not None
    return made


def state_of(searching: Searcher) -> tuple[Calibration | None, bool]:
    found = searching.search(queries(1), nearest=1)
    return found.calibration, found.stale


def test_a_damaged_calibration_gives_way(store: Store) -> None:
    fill(store, STATE)
    kept = calibration_of(store)
    for revision in ("x", None, 1e30, [], {}):
        store.keep_calibration({**kept.to_dict(), "revision": revision})
        assert store.info()["calibration"] == "damaged"
        store.keep_calibration(kept.to_dict())
        assert Calibration.from_dict(store.calibration()) == kept
        store.keep_calibration({})


@memory_and_qdrant
def test_next_batch_uses_the_calibration_that_was_kept(store: Store, writer: Store, way: str) -> None:
    fill(store, STATE)
    searching = searcher(store, way)
    assert state_of(searching) == (None, False)

    for i in range(1, 4):
        kept = calibration_of(writer, images=i)
        writer.keep_calibration(kept.to_dict())
        assert state_of(searching) == (kept, False)
        assert state_of(searching) == (kept, False)
        assert state_of(searcher(store, way)) == (kept, False)

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


@memory_and_qdrant
def test_calibration_is_stale_after_a_change_and_until_the_next(store: Store, writer: Store, way: str) -> None:
    fill(store, STATE)
    kept = calibration_of(writer)
    writer.keep_calibration(kept.to_dict())
    searching = searcher(store, way)
    assert state_of(searching) == (kept, False)
    for i, change in enumerate(CHANGES.values()):
        change(writer)
        assert state_of(searching) == (kept, True)
        assert state_of(searcher(store, way)) == (kept, True)
        assert state_of(searching) == (kept, True)
        kept = calibration_of(writer, images=i)
        writer.keep_calibration(kept.to_dict())
        assert state_of(searching) == (kept, False)
        assert state_of(searcher(store, way)) == (kept, False)


@memory_and_qdrant
def test_calibration_that_was_overtaken_by_a_change_is_stale(store: Store, writer: Store, way: str) -> None:
    fill(store, STATE)
    searching = searcher(store, way)
    made = calibration_of(writer)
    add(writer, "both", ["11"])
    writer.keep_calibration(made.to_dict())
    assert state_of(searching) == (made, True)


@memory_and_qdrant
def test_calibration_of_another_format_is_none(store: Store, writer: Store, way: str) -> None:
    fill(store, STATE)
    searching = searcher(store, way)
    made = calibration_of(writer)
    for kept, expected in [
        ({**made.to_dict(), "format": 99}, None),
        (made.to_dict(), made),
        ({"format": 99, "revision": "new", "experts": 3}, None),
        ({"format": None}, None),
    ]:
        writer.keep_calibration({})  # the other version does not compare with the stored record
        writer.keep_calibration(kept)
        assert state_of(searching) == (expected, False)
        assert state_of(searcher(store, way)) == (expected, False)
    add(writer, "both", ["11"])
    assert state_of(searching) == (None, False)


@memory_and_qdrant
def test_calibration_that_comes_between_is_seen_then_or_next_time(
    backend: Hooked, store: Store, writer: Store, way: str
) -> None:
    """Before every call of a search."""
    fill(store, STATE)
    for position in itertools.count():
        before, after = calibration_of(writer, images=1), calibration_of(writer, images=2)
        writer.keep_calibration(before.to_dict())
        searching = searcher(store, way)

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
