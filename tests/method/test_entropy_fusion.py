from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from tests.method.material import logits
from zsvec.method.predict.fusion import STRATEGIES, fuse
from zsvec.method.predict.logits import softmax

LN2 = 0.6931471805599453
NAN = np.nan

prop = settings(deadline=None, max_examples=50)


def fused(experts: ArrayLike, weights: Sequence[float], coverage: Sequence[Sequence[bool]] | None = None) -> np.ndarray:
    """The fused distribution of one image. A probability of NaN: the expert does not cover the category."""
    p = np.array(experts, dtype=np.float64)
    covered = ~np.isnan(p) if coverage is None else np.array(coverage)
    (row,) = fuse(np.where(covered, p, 0.0)[:, None, :], covered, np.array(weights, dtype=np.float64)[:, None])
    return row


def confidence_by(p: np.ndarray, coverage: np.ndarray, strategy: str, fixed: np.ndarray) -> np.ndarray:
    """The confidences of the experts under one of the paper's strategies."""
    return STRATEGIES[strategy].function(logits(coverage, probabilities=p, weights=fixed)).confidence


def imbalance(q: np.ndarray, p: np.ndarray, coverage: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far ``q`` is from q(c) · Σ_{e covers c} w_e = Σ_{e covers c} w_e · p_e(c) · q(K_e), over all weights."""
    out = np.zeros(len(q))
    for c in range(len(q)):
        for e in np.flatnonzero(coverage[:, c]):
            out[c] += weights[e] * (q[c] - p[e, c] * q[coverage[e]].sum())
    return out / weights.sum()


def solved(p: np.ndarray, coverage: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same equations as one dense linear system over the categories, Σ q = 1 in the place of the last."""
    n = p.shape[1]
    a = np.diag(weights @ coverage)
    for e in range(len(p)):
        a -= weights[e] * np.outer(p[e], coverage[e])
    a[-1] = 1.0
    return np.linalg.solve(a, np.eye(n)[-1])


# ---- confidence

EVEN, SURE, QUARTERS = [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]


def test_confidences_by_hand() -> None:
    for method, expected in [
        ("max_confidence", [0.5, 1.0, 0.5, 1 / 3]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1e6, 1 / (1.5 * LN2 + 1e-6), 1 / (np.log(3) + 1e-6)]),
        ("neg_exp_entropy", [0.5, 1.0, 2**-1.5, 1 / 3]),
        ("fixed", [0.7, 0.7, 0.7, 0.7]),
    ]:
        p = np.array([[EVEN, SURE, QUARTERS, [1 / 3] * 3]])
        got = confidence_by(p, np.ones((1, 3), dtype=bool), method, np.array([0.7]))
        np.testing.assert_allclose(got, [expected], rtol=1e-12)


def test_an_expert_that_covers_one_category_is_silent() -> None:
    for method, expected in [
        ("max_confidence", [0.5, 1e-6, 1.0]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1e-6, 1e6]),
        ("neg_exp_entropy", [0.5, 1e-6, 1.0]),
        ("fixed", [3.0, 1e-6, 0.25]),
    ]:
        p = np.array([[EVEN], [SURE], [SURE]])
        coverage = np.array([[True, True, True], [True, False, False], [True, True, False]])
        fixed = np.array([3.0, 2.0, 0.25])
        got = confidence_by(p, coverage, method, fixed)
        np.testing.assert_allclose(got, np.array(expected)[:, None], rtol=1e-12)
        np.testing.assert_array_equal(fixed, [3.0, 2.0, 0.25])


def test_fixed_confidences_are_the_same_for_every_image() -> None:
    p = np.full((2, 3, 2), 0.5)
    got = confidence_by(p, np.ones((2, 2), dtype=bool), "fixed", np.array([3.0, 0.25]))
    np.testing.assert_array_equal(got, [[3.0, 3.0, 3.0], [0.25, 0.25, 0.25]])


# ---- fusion, every expert covering every category: the paper's formula


def test_full_coverage_is_the_papers_formula() -> None:
    for method, weights in [
        ("max_confidence", [0.5, 0.75]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1 / (0.5623351446188083 + 1e-6)]),
        ("neg_exp_entropy", [0.5, 0.5698767642386944]),  # exp(-H) of (1/4, 3/4) is 3^(3/4) / 4
        ("fixed", [1.0, 3.0]),
    ]:
        p, coverage = np.array([[[0.5, 0.5]], [[0.25, 0.75]]]), np.ones((2, 2), dtype=bool)
        w = confidence_by(p, coverage, method, np.array([1.0, 3.0]))
        np.testing.assert_allclose(w[:, 0], weights, rtol=1e-12)
        a, b = weights
        expected = [(0.5 * a + 0.25 * b) / (a + b), (0.5 * a + 0.75 * b) / (a + b)]
        np.testing.assert_allclose(fuse(p, coverage, w), [expected], rtol=1e-12)


def test_full_coverage_table() -> None:
    # max: text 0.5, image 0.7 → 0.25 + 0.14, 0.15 + 0.49, 0.10 + 0.07, all over 1.2
    p = np.array([[[0.5, 0.3, 0.2]], [[0.2, 0.7, 0.1]]])
    coverage = np.ones((2, 3), dtype=bool)
    w = confidence_by(p, coverage, "max_confidence", np.ones(2))
    np.testing.assert_allclose(fuse(p, coverage, w), [[0.325, 0.64 / 1.2, 0.17 / 1.2]], rtol=1e-12)


def test_images_are_fused_on_their_own() -> None:
    p = np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.1, 0.9], [0.3, 0.7]]])
    w = np.array([[1.0, 3.0], [1.0, 1.0]])
    got = fuse(p, np.ones((2, 2), dtype=bool), w)
    np.testing.assert_allclose(got, [[0.3, 0.7], [0.75, 0.25]], rtol=1e-12)


def test_one_expert_is_its_own_fusion() -> None:
    np.testing.assert_allclose(fused([[0.2, 0.5, 0.3]], [1e-6]), [0.2, 0.5, 0.3], rtol=1e-12)
    np.testing.assert_allclose(fused([[0.2, NAN, 0.8]], [1e6]), [0.2, 0.0, 0.8], rtol=1e-12)


# ---- fusion, some experts covering only some categories

EXTREME = [(1, 1), (1, 1e6), (1e6, 1), (1e-6, 1e6), (1e6, 1e-6)]


def test_a_category_that_only_text_covers_keeps_its_probability() -> None:
    for weights in EXTREME:
        q = fused([[0.9, 0.05, 0.05], [NAN, 1.0, 0.0]], weights)
        assert q[0] == pytest.approx(0.9, abs=1e-9)
        # The other 0.1 is divided by the confidence-weighted conditionals, (1/2, 1/2) and (1, 0).
        text, image = weights
        np.testing.assert_allclose(q[1:], [0.1 * (text / 2 + image) / (text + image), 0.05 * text / (text + image)])


def test_partial_coverage_table() -> None:
    np.testing.assert_allclose(fused([[0.9, 0.05, 0.05], [NAN, 1.0, 0.0]], [1, 1]), [0.9, 0.075, 0.025], rtol=1e-9)
    # Of 0.6 that are not A: text says 1/3 and 2/3, image 3/4 and 1/4; with weights 1 and 3, 0.6458… and 0.3541…
    np.testing.assert_allclose(
        fused([[0.4, 0.2, 0.4], [NAN, 0.75, 0.25]], [1, 3]), [0.4, 0.6 * 31 / 48, 0.6 * 17 / 48], rtol=1e-9
    )


def test_two_experts_sharing_one_category() -> None:
    for weights in EXTREME:
        # Each fixes a ratio to the shared B: A : B = 1 : 3 and C : B = 4 : 1. So A : B : C = 1 : 3 : 12.
        q = fused([[0.25, 0.75, NAN], [NAN, 0.2, 0.8]], weights)
        np.testing.assert_allclose(q, [1 / 16, 3 / 16, 12 / 16], rtol=1e-7)


def test_a_chain_of_overlapping_experts() -> None:
    for weights in [(1, 1, 1), (1, 5, 0.2), (1e-3, 1, 1e3), (1e3, 1e-3, 1), (2, 1e-3, 1e3)]:
        p = np.array([[0.5, 0.3, 0.2, NAN, NAN], [NAN, 0.1, 0.6, 0.3, NAN], [NAN, NAN, 0.25, 0.25, 0.5]])
        coverage, w = ~np.isnan(p), np.array(weights, dtype=float)
        filled = np.where(coverage, p, 0.0)
        expected = solved(filled, coverage, w)
        np.testing.assert_allclose(fused(p, weights), expected, rtol=1e-8)


def test_disjoint_experts_are_heard_equally() -> None:
    for weights in EXTREME:
        q = fused([[0.9, 0.1, NAN, NAN, NAN], [NAN, NAN, 0.2, 0.3, 0.5]], weights)
        np.testing.assert_allclose(q, [0.45, 0.05, 0.1, 0.15, 0.25], rtol=1e-9)


def test_three_disjoint_experts_get_a_third_each() -> None:
    for weights in [(1, 1, 1), (1e6, 1, 1e-6), (1e-6, 1e6, 1)]:
        q = fused([[0.5, 0.5, NAN, NAN], [NAN, NAN, 1.0, NAN], [NAN, NAN, NAN, 1.0]], weights)
        np.testing.assert_allclose(q, [1 / 6, 1 / 6, 1 / 3, 1 / 3], rtol=1e-9)


def test_experts_of_the_same_categories_are_one_voice_beside_a_disjoint_one() -> None:
    for weights in [(1, 1, 1), (1, 3, 1e6), (1e6, 1, 1e-6)]:
        a, b, _ = weights
        q = fused([[0.9, 0.1, NAN], [0.3, 0.7, NAN], [NAN, NAN, 1.0]], weights)
        first = (0.9 * a + 0.3 * b) / (a + b)
        np.testing.assert_allclose(q, [first / 2, (1 - first) / 2, 0.5], rtol=1e-9)


def test_an_expert_of_one_shared_category_changes_nothing() -> None:
    for weight in [1e-6, 1.0, 1e6]:
        without = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [1, 2])
        with_it = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [NAN, NAN, 1.0]], [1, 2, weight])
        np.testing.assert_allclose(with_it, without, rtol=1e-7)


def test_an_expert_of_one_category_of_its_own_leaves_the_ratios_of_the_others() -> None:
    for weight in [1e-6, 1.0, 1e6]:
        without = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [1, 2])
        with_it = fused([[0.5, 0.3, 0.2, NAN], [0.1, 0.2, 0.7, NAN], [NAN, NAN, NAN, 1.0]], [1, 2, weight])
        np.testing.assert_allclose(with_it[:3] / with_it[:3].sum(), without, rtol=1e-9)


def test_an_uncovered_category_has_probability_zero() -> None:
    for weights in EXTREME:
        p = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
        q = fused([[*row, NAN] for row in p], weights)
        assert q[3] == 0
        np.testing.assert_allclose(q[:3], fused(p, weights), rtol=1e-9)


def test_two_images_with_partial_coverage() -> None:
    coverage = np.array([[True, True, True], [False, True, True]])
    p = np.array([[[0.9, 0.05, 0.05], [0.4, 0.2, 0.4]], [[0, 1, 0], [0, 0.75, 0.25]]])
    got = fuse(p, coverage, np.array([[1.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_allclose(got, [[0.9, 0.075, 0.025], [0.4, 0.6 * 31 / 48, 0.6 * 17 / 48]], rtol=1e-9)


# ---- properties

Case = tuple[np.ndarray, np.ndarray, np.ndarray]  # probabilities (e, n, c), coverage (e, c), confidence (e, n)


def draw_weights(draw: Callable[..., Any], n_experts: int, n_images: int, decades: float = 6) -> np.ndarray:
    exponents = st.lists(st.floats(-decades, decades), min_size=n_images, max_size=n_images)
    return 10 ** np.array([draw(exponents) for _ in range(n_experts)])


@st.composite
def cases(draw: st.DrawFn, *, full: bool = False) -> Case:
    n_experts, n_images, n_categories = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    some = st.lists(st.booleans(), min_size=n_categories, max_size=n_categories).filter(any)
    coverage = np.array([[True] * n_categories if full else draw(some) for _ in range(n_experts)])
    row = st.lists(st.floats(-100, 100, width=32), min_size=n_categories, max_size=n_categories)
    drawn = np.array([[draw(row) for _ in range(n_images)] for _ in range(n_experts)], dtype=np.float32)
    drawn[np.broadcast_to(~coverage[:, None, :], drawn.shape)] = NAN
    return softmax(drawn), coverage, draw_weights(draw, n_experts, n_images)


@prop
@given(cases())
def test_rows_are_distributions(case: Case) -> None:
    p, coverage, w = case
    inputs = [p.copy(), coverage.copy(), w.copy()]
    q = fuse(p, coverage, w)
    assert q.dtype == np.float64
    assert q.shape == p.shape[1:]
    assert np.isfinite(q).all()
    assert ((q >= 0) & (q <= 1)).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-12)
    assert (q[:, ~coverage.any(axis=0)] == 0).all()
    for after, before in zip((p, coverage, w), inputs, strict=True):
        np.testing.assert_array_equal(after, before)


@prop
@given(cases())
def test_satisfies_its_equation(case: Case) -> None:
    p, coverage, w = case
    q = fuse(p, coverage, w)
    for i in range(len(q)):
        assert np.abs(imbalance(q[i], p[:, i], coverage, w[:, i])).max() < 1e-12


@prop
@given(cases(full=True))
def test_full_coverage_is_the_weighted_mean(case: Case) -> None:
    p, coverage, w = case
    expected = sum(w[e][:, None] * p[e] for e in range(len(p))) / w.sum(axis=0)[:, None]
    np.testing.assert_allclose(fuse(p, coverage, w), expected, rtol=1e-9, atol=1e-300)
    # One more category without coverage selects the general formula, which agrees.
    wider = fuse(np.pad(p, ((0, 0), (0, 0), (0, 1))), np.pad(coverage, ((0, 0), (0, 1))), w)
    np.testing.assert_allclose(wider[:, :-1], expected, rtol=1e-9, atol=1e-12)


@prop
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_experts_does_not_matter(case: Case, random: object) -> None:
    p, coverage, w = case
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(fuse(p[order], coverage[order], w[order]), fuse(p, coverage, w), atol=1e-9)


@prop
@given(st.data())
def test_overlapping_windows_match_the_linear_system(data: st.DataObject) -> None:
    # Experts of three neighbouring categories each, the next one a step further: all are connected.
    n_experts = data.draw(st.integers(2, 5))
    coverage = np.array([[e <= c < e + 3 for c in range(n_experts + 2)] for e in range(n_experts)])
    row = st.lists(st.floats(0.05, 1), min_size=n_experts + 2, max_size=n_experts + 2)
    p = np.where(coverage, [data.draw(row) for _ in range(n_experts)], 0.0)
    p /= p.sum(axis=1, keepdims=True)
    w = draw_weights(data.draw, n_experts, 1, decades=1)[:, 0]
    q = fuse(p[:, None, :], coverage, w[:, None])
    np.testing.assert_allclose(q[0], solved(p, coverage, w), rtol=1e-7)


def test_an_uninformative_expert_of_some_categories_can_change_the_order() -> None:
    # B and C as equally likely speak against B, and not for or against A.
    alone = fused([[0.4, 0.45, 0.15]], [1])
    assert alone.argmax() == 1
    np.testing.assert_allclose(fused([[0.4, 0.45, 0.15], [NAN, 0.5, 0.5]], [1, 1]), [0.4, 0.375, 0.225], rtol=1e-9)


@prop
@given(cases(), st.sampled_from(["max_confidence", "inverse_entropy", "neg_exp_entropy", "fixed"]))
def test_confidences_are_positive_and_finite(case: Case, method: str) -> None:
    p, coverage, w = case
    got = confidence_by(p, coverage, method, w[:, 0])
    assert got.shape == p.shape[:2]
    assert np.isfinite(got).all()
    assert (got > 0).all()
    lower, upper = {
        "max_confidence": (1 / p.shape[2], 1),
        "inverse_entropy": (1 / (np.log(p.shape[2]) + 1e-6), 1e6),
        "neg_exp_entropy": (1 / p.shape[2], 1),
        "fixed": (1e-6, 1e6),
    }[method]
    comparing = coverage.sum(axis=1) > 1
    assert (got[comparing] >= lower * (1 - 1e-9)).all()
    assert (got[comparing] <= upper * (1 + 1e-9)).all()
    np.testing.assert_array_equal(got[~comparing], np.full_like(got[~comparing], 1e-6))
