"""Reference images beside each other: pictures that are there more than once, and nearest other images."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.method.material import Vectors, references, stores
from zsvec.method.quality import neighborhoods as module
from zsvec.method.quality.neighborhoods import Neighborhoods, neighborhoods
from zsvec.method.quality.scenes import spreads


def compared(vectors: Vectors, spread: Mapping[str, float] | None = None) -> Neighborhoods:
    stored = references(vectors)
    return neighborhoods(stored, spreads(stored) if spread is None else spread)


def pictures(found: Neighborhoods) -> set[frozenset[tuple[str, str]]]:
    """The images of each picture that is there more than once."""
    groups: dict[int, set[tuple[str, str]]] = {}
    for key, picture in zip(found.keys, found.pictures.tolist(), strict=True):
        groups.setdefault(picture, set()).add(key)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


# Unit vectors of the plane. The first components are cosines to the first, and 0.96 · 0.8 + 0.28 · 0.6 = 0.936.
FIRST, NEAR, FAR, FARTHER = (1.0, 0.0), (0.96, 0.28), (0.8, 0.6), (0.6, 0.8)


def test_spreads_by_hand() -> None:
    found = spreads(references({"a": {"1": FIRST, "2": FAR}, "b": {"3": FIRST}, "c": {"4": FIRST, "5": FARTHER}}))
    assert found == pytest.approx({"a": 0.2, "c": 0.4})


def test_the_same_picture_by_hand() -> None:
    # A quarter of the median distance of .2 is .05: cosines from .95 on.
    found = compared({"a": {"1": FIRST, "2": FAR}, "b": {"3": NEAR}})
    assert found.keys == [("a", "1"), ("a", "2"), ("b", "3")]
    assert pictures(found) == {frozenset({("a", "1"), ("b", "3")})}
    np.testing.assert_allclose(found.likeness, [0.96, np.nan, 0.96], atol=1e-6)
    # Images of the same picture are no neighbours.
    np.testing.assert_allclose(found.nearest, [0.8, (0.8 + 0.936) / 2, 0.936], atol=1e-6)


def test_same_picture_depends_on_the_spread_of_categories() -> None:
    assert pictures(compared({"a": {"1": FIRST, "2": NEAR}}, {"a": 0.15})) == set()
    assert len(pictures(compared({"a": {"1": FIRST, "2": NEAR}}, {"a": 0.17}))) == 1
    assert len(pictures(compared({"a": {"1": FIRST, "2": NEAR}}, {"a": 0.01, "b": 0.17, "c": 9.0}))) == 1


def test_same_picture_is_transitive() -> None:
    found = compared({"a": {"1": FIRST}, "b": {"2": NEAR}, "c": {"3": FAR}}, {"a": 0.27})
    assert pictures(found) == {frozenset({("a", "1"), ("b", "2"), ("c", "3")})}
    np.testing.assert_allclose(found.likeness, [0.96, 0.936, 0.936], atol=1e-6)


def test_without_two_images_of_a_category_the_content_alone_tells() -> None:
    found = compared({"a": {"x": FIRST}, "b": {"x": FIRST}, "c": {"y": FIRST}})
    assert pictures(found) == {frozenset({("a", "x"), ("b", "x")})}
    np.testing.assert_allclose(found.likeness, [1, 1, np.nan], atol=1e-6)


def test_the_mean_of_the_three_nearest() -> None:
    angles = [0.0, 0.5, 1.0, 1.5, 2.0]
    found = compared({"a": {str(a): (float(np.cos(a)), float(np.sin(a))) for a in angles}})
    assert found.nearest[0] == pytest.approx(np.cos([0.5, 1.0, 1.5]).mean(), abs=1e-6)
    assert found.nearest[2] == pytest.approx(np.cos([0.5, 0.5, 1.0]).mean(), abs=1e-6)


def test_one_image_has_no_neighbour() -> None:
    found = compared({"a": {"x": FIRST}})
    assert pictures(found) == set()
    assert np.isnan(found.nearest).all()


@given(stores())
def test_blocks_of_any_size_say_the_same(experts: Mapping[str, Vectors]) -> None:
    whole = compared(experts["clip:image"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 1)
        single = compared(experts["clip:image"])
    np.testing.assert_array_equal(whole.pictures, single.pictures)
    np.testing.assert_allclose(whole.likeness, single.likeness, atol=1e-6)
    np.testing.assert_allclose(whole.nearest, single.nearest, atol=1e-6)


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_on_a_circle_a_picture_ends_where_a_gap_is_wide(n: int, seed: int) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2, n))
    gaps = np.cos(np.diff(angles))
    if (abs(gaps - 0.95) < 1e-5).any():
        return
    vectors = {f"{i:02d}": (float(np.cos(angle)), float(np.sin(angle))) for i, angle in enumerate(angles)}
    found = compared({"a": vectors}, {"a": 0.2})
    np.testing.assert_array_equal(np.diff(found.pictures) != 0, gaps < 0.95)


def test_a_store_that_is_one_picture_takes_no_quadratic_memory() -> None:
    n = 3000
    stored = references({"a": {f"{i:05d}": FIRST for i in range(n)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 10 * n)  # ten images at a time with all
        tracemalloc.start()
        found = neighborhoods(stored, {"a": 0.2})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (found.pictures == 0).all()
    assert peak < 10 * n * 100 < n * n * 4
