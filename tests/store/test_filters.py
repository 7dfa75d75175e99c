"""Filters within what a collection allows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zsvec.store.backends.base import Where
from zsvec.store.backends.server.conversion import filter_of, parts
from zsvec.store.backends.server.limits import Limits

FIVE = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("values", "conditions", "expected"),
    [
        (256, None, [FIVE]),
        (2, None, [FIVE]),
        (256, 2, [FIVE]),
        (2, 4, [FIVE]),  # three conditions for the five, one for the modality
        (2, 3, [("a", "b", "c", "d"), ("e",)]),
        (2, 2, [("a", "b"), ("c", "d"), ("e",)]),
        (1, 2, [("a",), ("b",), ("c",), ("d",), ("e",)]),
        (2, 1, [("a", "b"), ("c", "d"), ("e",)]),  # less is not possible, and refused by the server
    ],
)
def test_a_filter_of_too_many_conditions_becomes_several(
    values: int, conditions: int | None, expected: Sequence[tuple[str, ...]]
) -> None:
    where = Where(match={"modality": "image", "gen": FIVE})
    limits = Limits(values=values, conditions=conditions)
    assert [part.match for part in parts(where, limits)] == [{"modality": "image", "gen": gen} for gen in expected]
    for part in parts(where, limits):
        assert len(filter_of(part, limits).model_dump()["must"]) == 2


def test_points_left_out_take_conditions_too() -> None:
    where, limits = Where(match={"gen": FIVE}), Limits(values=2, conditions=3)
    assert [part.match["gen"] for part in parts(where, limits)] == [FIVE]
    assert [part.match["gen"] for part in parts(where, limits, without=3)] == [("a", "b"), ("c", "d"), ("e",)]


def test_a_filter_without_lists_is_not_split() -> None:
    limits = Limits(conditions=1)
    for where in (Where(), Where(match={"kind": "store"}), Where(match={"gen": FIVE}, or_match={"kind": "store"})):
        assert parts(where, limits) == [where]


def test_no_values_match_nothing() -> None:
    assert parts(Where(match={"gen": ()}), Limits(conditions=1)) == [Where(match={"gen": ()})]
