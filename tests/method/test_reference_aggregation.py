from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from zsvec.method.predict import reference_aggregation as module
from zsvec.method.predict.reference_aggregation import AGGREGATIONS, Similarities, aggregate_experts
from zsvec.method.similarities import ExpertSimilarities, SearchResult

METHODS = ["max", "mean", "prototype", "top_mean"]

prop = settings(deadline=None, max_examples=50)


def table(
    *categories: ArrayLike,
    counts: Sequence[int] | None = None,
    norms: Sequence[float] | None = None,
    bound: Sequence[float] | None = None,
) -> Similarities:
    """Similarities of categories, each given as the row of its present references for every image."""
    blocks = [np.array(rows, dtype=np.float32) for rows in categories]
    present = [block.shape[1] for block in blocks]
    n_images = len(blocks[0])
    return Similarities(
        values=np.concatenate(blocks, axis=1),
        starts=np.cumsum([0, *present], dtype=np.intp),
        counts=np.array(present if counts is None else counts, dtype=np.intp),
        norms=np.ones(len(blocks), dtype=np.float32) if norms is None else np.array(norms, dtype=np.float32),
        bound=np.full(n_images, -1, dtype=np.float32) if bound is None else np.array(bound, dtype=np.float32),
    )


def blocks_of(s: Similarities) -> list[np.ndarray]:
    return [s.values[:, start:end] for start, end in zip(s.starts, s.starts[1:], strict=False)]


def naive(s: Similarities, method: str, m: int) -> np.ndarray:
    """One category of one image at a time, in double precision; an absent reference is at the bound."""
    out = np.empty((len(s.values), len(s.counts)))
    for c, block in enumerate(blocks_of(s)):
        for i, row in enumerate(block.astype(float)):
            every = sorted([*row, *[float(s.bound[i])] * (s.counts[c] - len(row))], reverse=True)
            assert len(every) == s.counts[c]
            average = sum(every) / len(every)
            out[i, c] = {
                "max": every[0],
                "mean": average,
                "prototype": min(max(average / float(s.norms[c]), -1.0), 1.0),
                "top_mean": sum(every[:m]) / len(every[:m]),
            }[method]
    return out


# ---- tables worked by hand: 2 images and 3 categories of 1, 2 and 3 references

COMPLETE = table(
    [[0.9], [-0.2]],
    [[0.5, 0.7], [0.3, 0.1]],
    [[0.2, 0.6, 0.4], [0.8, -0.4, 0.2]],
    norms=[1.0, 0.8, 0.5],
)

# Image 0: nothing absent is nearer than 0.1; image 1: than -0.5. The last category has no reference at all here.
PARTIAL = table(
    [[0.9], [-0.2]],  # 1 of 2
    [[0.5, 0.7], [0.3, 0.1]],  # 2 of 4
    [[0.2, 0.6, 0.4], [0.8, -0.4, 0.2]],  # 3 of 3
    [[], []],  # 0 of 2
    counts=[2, 4, 3, 2],
    norms=[1.0, 0.5, 0.5, 0.8],
    bound=[0.1, -0.5],
)


def test_every_reference_present() -> None:
    for method, m, expected in [
        ("max", 1, [[0.9, 0.7, 0.6], [-0.2, 0.3, 0.8]]),
        ("mean", 1, [[0.9, 0.6, 0.4], [-0.2, 0.2, 0.2]]),
        ("prototype", 1, [[0.9, 0.75, 0.8], [-0.2, 0.25, 0.4]]),
        ("top_mean", 1, [[0.9, 0.7, 0.6], [-0.2, 0.3, 0.8]]),
        ("top_mean", 2, [[0.9, 0.6, 0.5], [-0.2, 0.2, 0.5]]),
        ("top_mean", 3, [[0.9, 0.6, 0.4], [-0.2, 0.2, 0.2]]),
        ("top_mean", 50, [[0.9, 0.6, 0.4], [-0.2, 0.2, 0.2]]),
    ]:
        got = COMPLETE.aggregate(method, m)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_absent_references_count_as_the_floor() -> None:
    for method, m, expected in [
        ("max", 1, [[0.9, 0.7, 0.6, 0.1], [-0.2, 0.3, 0.8, -0.5]]),
        # (0.9 + 0.1) / 2 · (0.5 + 0.7 + 2 · 0.1) / 4 · 0.4 · 0.1; and (-0.2 - 0.5) / 2 · (0.3 + 0.1 - 2 · 0.5) / 4 …
        ("mean", 1, [[0.5, 0.35, 0.4, 0.1], [-0.35, -0.15, 0.2, -0.5]]),
        ("prototype", 1, [[0.5, 0.7, 0.8, 0.125], [-0.35, -0.3, 0.4, -0.625]]),
        ("top_mean", 1, [[0.9, 0.7, 0.6, 0.1], [-0.2, 0.3, 0.8, -0.5]]),
        ("top_mean", 2, [[0.5, 0.6, 0.5, 0.1], [-0.35, 0.2, 0.5, -0.5]]),
        # three of four: (0.5 + 0.7 + 0.1) / 3 and (0.3 + 0.1 - 0.5) / 3; the third category is all there
        ("top_mean", 3, [[0.5, 1.3 / 3, 0.4, 0.1], [-0.35, -0.1 / 3, 0.2, -0.5]]),
        ("top_mean", 4, [[0.5, 0.35, 0.4, 0.1], [-0.35, -0.15, 0.2, -0.5]]),
        ("top_mean", 50, [[0.5, 0.35, 0.4, 0.1], [-0.35, -0.15, 0.2, -0.5]]),
    ]:
        np.testing.assert_allclose(PARTIAL.aggregate(method, m), expected, atol=1e-6)


def test_the_floor_is_no_reference_of_a_complete_category() -> None:
    for method, m, expected in [
        ("max", 1, [[0.3, 0.7]]),
        ("mean", 1, [[0.2, 0.7]]),
        ("prototype", 1, [[0.4, 0.7]]),
        ("top_mean", 1, [[0.3, 0.7]]),
        ("top_mean", 2, [[0.25, 0.7]]),
        ("top_mean", 9, [[0.2, 0.7]]),
    ]:
        # The first category is complete and below the bound, the second has only an absent reference.
        s = table([[0.1, 0.2, 0.3]], [[]], counts=[3, 1], norms=[0.5, 1.0], bound=[0.7])
        np.testing.assert_allclose(s.aggregate(method, m), expected, atol=1e-6)


def test_an_absent_reference_can_be_nearer_than_a_present_one() -> None:
    for method, m, expected in [
        ("max", 1, 0.7),
        ("mean", 1, 0.5),
        ("top_mean", 1, 0.7),
        ("top_mean", 2, 0.5),
        ("prototype", 1, 0.625),
    ]:
        s = table([[0.3]], counts=[2], norms=[0.8], bound=[0.7])
        np.testing.assert_allclose(s.aggregate(method, m), [[expected]], atol=1e-6)


def test_no_images() -> None:
    for method in METHODS:
        s = table(np.empty((0, 3)), np.empty((0, 70)))
        got = s.aggregate(method, 2)
        assert got.shape == (0, 2)
        assert got.dtype == np.float32


def test_aggregations_by_name() -> None:
    assert sorted(AGGREGATIONS) == METHODS
    summaries = [aggregation.summary for aggregation in AGGREGATIONS.values()]
    assert len(set(summaries)) == len(summaries)
    assert all(summary and "\n" not in summary for summary in summaries)


def test_experts_are_aggregated_into_the_columns_of_their_coverage() -> None:
    nearest = [(), ()]
    found = SearchResult(
        ("a", "b", "c", "d"),
        (
            ExpertSimilarities(name="x:image", coverage=np.arange(3), similarities=COMPLETE, nearest=nearest),
            ExpertSimilarities(
                name="y:text",
                coverage=np.array([1, 3]),
                similarities=table([[0.1], [0.2]], [[0.3], [0.4]]),
                nearest=nearest,
            ),
        ),
    )
    got = aggregate_experts(found, {"y:text": ["mean"], "x:image": ["max", "mean", "max"]}, 5, {})
    assert {expert: list(by_name) for expert, by_name in got.items()} == {
        "x:image": ["max", "mean"],
        "y:text": ["mean"],
    }
    assert list(got) == ["x:image", "y:text"]
    assert {values.dtype for by_name in got.values() for values in by_name.values()} == {np.dtype(np.float32)}
    nan = np.nan
    np.testing.assert_allclose(got["x:image"]["max"], [[0.9, 0.7, 0.6, nan], [-0.2, 0.3, 0.8, nan]], atol=1e-6)
    np.testing.assert_allclose(got["x:image"]["mean"], [[0.9, 0.6, 0.4, nan], [-0.2, 0.2, 0.2, nan]], atol=1e-6)
    np.testing.assert_allclose(got["y:text"]["mean"], [[nan, 0.1, nan, 0.3], [nan, 0.2, nan, 0.4]], atol=1e-6)


# ---- prototype, against vectors


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(n, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_prototype_is_the_cosine_to_the_normalised_mean_by_hand() -> None:
    # The references (1, 0) and (0, 1) have the mean (1/2, 1/2), of length √½ and direction 45°.
    s = table([[1.0, 0.0], [0.6, 0.8]], norms=[np.sqrt(0.5)])
    np.testing.assert_allclose(s.aggregate("prototype", 1), [[np.cos(np.pi / 4)], [1.4 / np.sqrt(2)]], atol=1e-6)


def test_prototype_is_the_cosine_to_the_normalised_mean_of_vectors() -> None:
    for sizes in [(1, 2, 3), (5, 1, 90, 12), (300,)]:
        rng = np.random.default_rng(sum(sizes))
        images, references = unit(rng, 7, 16), [unit(rng, n, 16) for n in sizes]
        means = np.stack([vectors.mean(axis=0) for vectors in references])
        norms = np.linalg.norm(means, axis=1)
        s = table(*(images @ vectors.T for vectors in references), norms=list(norms))
        np.testing.assert_allclose(s.aggregate("prototype", 1), images @ (means / norms[:, None]).T, atol=1e-5)


def test_prototype_stays_a_cosine() -> None:
    for present, norm, expected in [
        ([0.9, 0.9], 0.8, 1.0),  # two more at the bound of 0.9: more than any cosine
        ([-0.9, -0.9], 0.1, 0.0),  # -0.9 and 0.9 cancel
        ([0.9], 0.0, 1.0),  # a mean of length 0 has no direction; finite all the same
    ]:
        s = table([present], counts=[2 * len(present)], norms=[norm], bound=[0.9])
        np.testing.assert_allclose(s.aggregate("prototype", 1), [[expected]], atol=1e-6)


def test_references_that_cancel_are_at_most_a_cosine_away() -> None:
    # v and -v: the similarities cancel up to rounding, and so does the length of the mean.
    s = table([[0.3, np.nextafter(np.float32(-0.3), np.float32(0))]], norms=[0.0])
    assert np.abs(s.aggregate("prototype", 1)).max() <= 1.0


# ---- long categories


def test_long_categories_match_one_pass_per_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for m in [1, 2, 5, 64, 65, 99, 100, 101, 1000]:
        rng = np.random.default_rng(m)
        sizes, counts = [100, 1, 0, 65, 64, 3, 70], [100, 4, 2, 65, 90, 3, 71]
        blocks = [rng.uniform(-0.5, 1, size=(4, n)) for n in sizes]
        s = table(*blocks, counts=counts, bound=[-0.5, -0.6, -0.7, -0.9])
        assert max(sizes) > module._LONG
        by_partition = s.aggregate("top_mean", m)
        np.testing.assert_allclose(by_partition, naive(s, "top_mean", m), atol=1e-5)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_LONG", 10_000)
            np.testing.assert_array_equal(by_partition, s.aggregate("top_mean", m))


def test_long_category_by_hand() -> None:
    for size in [64, 65, 66, 500]:
        # 0, 1/size, 2/size … in disorder: the mean of the best three is the second of them.
        row = np.random.default_rng(size).permutation(size) / size
        s = table([row], [[0.5]])
        np.testing.assert_allclose(s.aggregate("top_mean", 3), [[(size - 2) / size, 0.5]], atol=1e-6)


# ---- properties

cosines = st.floats(-1, 1, width=32)


@st.composite
def tables(draw: st.DrawFn, *, complete: bool = False) -> Similarities:
    n_images = draw(st.integers(1, 3))
    sizes = draw(
        st.lists(
            st.tuples(st.integers(0, 6), st.integers(0, 0 if complete else 3)).filter(any)
            if not complete
            else st.tuples(st.integers(1, 6), st.just(0)),
            min_size=1,
            max_size=5,
        )
    )
    n_values = sum(present for present, _ in sizes)
    rows = st.lists(cosines, min_size=n_values, max_size=n_values)
    values = np.array([draw(rows) for _ in range(n_images)], dtype=np.float32).reshape(n_images, n_values)
    starts = np.cumsum([0, *(present for present, _ in sizes)], dtype=np.intp)
    return Similarities(
        values=values,
        starts=starts,
        counts=np.array([present + absent for present, absent in sizes], dtype=np.intp),
        norms=np.array([draw(st.floats(0.0625, 1, width=32)) for _ in sizes], dtype=np.float32),
        bound=np.array([draw(cosines) for _ in range(n_images)], dtype=np.float32),
    )


def with_changes(s: Similarities, **changes: Any) -> Similarities:
    return Similarities(
        **{name: changes.get(name, getattr(s, name)) for name in ("values", "starts", "counts", "norms", "bound")}
    )


methods = st.sampled_from(METHODS)
ms = st.integers(1, 9)


@prop
@given(tables(), methods, ms)
def test_equals_one_category_at_a_time(s: Similarities, method: str, m: int) -> None:
    got = s.aggregate(method, m)
    assert got.dtype == np.float32
    assert got.shape == (len(s.values), len(s.counts))
    np.testing.assert_allclose(got, naive(s, method, m), atol=1e-5)


@prop
@given(tables(), ms, st.integers(0, 6))
def test_partition_changes_nothing(s: Similarities, m: int, long: int) -> None:
    with patch.object(module, "_LONG", long):
        got = s.aggregate("top_mean", m)
    np.testing.assert_array_equal(got, s.aggregate("top_mean", m))


@prop
@given(tables(), methods, ms)
def test_inputs_are_left_as_they_are(s: Similarities, method: str, m: int) -> None:
    names = ("values", "starts", "counts", "norms", "bound")
    before = {name: getattr(s, name).copy() for name in names}
    for name in names:
        getattr(s, name).flags.writeable = False
    with patch.object(module, "_LONG", 2):
        s.aggregate(method, m)
    for name in names:
        np.testing.assert_array_equal(getattr(s, name), before[name])


@prop
@given(tables(), methods, ms, st.randoms(use_true_random=False))
def test_order_of_references_does_not_matter(s: Similarities, method: str, m: int, random: object) -> None:
    shuffled = []
    for block in blocks_of(s):
        columns = list(range(block.shape[1]))
        random.shuffle(columns)  # type: ignore[attr-defined]
        shuffled.append(block[:, columns])
    other = with_changes(s, values=np.concatenate(shuffled, axis=1))
    atol = 0.0 if method in ("max", "top_mean") else 1e-5  # those two do not even round differently
    np.testing.assert_allclose(other.aggregate(method, m), s.aggregate(method, m), rtol=0, atol=atol)


@prop
@given(tables(complete=True), methods, ms, st.integers(0, 30))
def test_omitted_references_are_never_underestimated(s: Similarities, method: str, m: int, kept: int) -> None:
    # A search that keeps the `kept` nearest references of one image knows a bound of the others, the next one.
    for row in range(len(s.values)):
        values = s.values[[row]]
        nearest = np.sort(np.argsort(-values[0], kind="stable")[:kept])
        rest = np.delete(values[0], nearest)
        owners = np.searchsorted(s.starts, nearest, side="right") - 1
        found = Similarities(
            values=values[:, nearest],
            starts=np.cumsum([0, *np.bincount(owners, minlength=len(s.counts))], dtype=np.intp),
            counts=s.counts,
            norms=s.norms,
            bound=np.array([rest.max(initial=-1)], dtype=np.float32),
        )
        everything = with_changes(s, values=values, bound=s.bound[[row]])
        got, full = found.aggregate(method, m), everything.aggregate(method, m)
        assert (got >= full - 1e-5).all()
        if len(rest) == 0:
            np.testing.assert_array_equal(got, full)
