from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zsvec.method.fusion import CONFIDENCES, confidences, entropy, fuse, log_linear, neutral_evidence, pattern, softmax

LN2 = 0.6931471805599453
NAN = np.nan

prop = settings(deadline=None, max_examples=100)


def fused(
    experts: Sequence[Sequence[float]], weights: Sequence[float], known: Sequence[Sequence[bool]] | None = None
) -> np.ndarray:
    """The fused distribution of one image. A probability of NaN: the expert does not know the category."""
    p = np.array(experts, dtype=np.float64)
    knows = ~np.isnan(p) if known is None else np.array(known)
    (row,) = fuse(np.where(knows, p, 0.0)[:, None, :], knows, np.array(weights, dtype=np.float64)[:, None])
    return row


def imbalance(q: np.ndarray, p: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far ``q`` is from q(c) · Σ_{e knows c} w_e = Σ_{e knows c} w_e · p_e(c) · q(K_e), over all weights."""
    out = np.zeros(len(q))
    for c in range(len(q)):
        for e in np.flatnonzero(known[:, c]):
            out[c] += weights[e] * (q[c] - p[e, c] * q[known[e]].sum())
    return out / weights.sum()


def solved(p: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same equations as one dense linear system over the categories, Σ q = 1 in the place of the last."""
    n = p.shape[1]
    a = np.diag(weights @ known)
    for e in range(len(p)):
        a -= weights[e] * np.outer(p[e], known[e])
    a[-1] = 1.0
    return np.linalg.solve(a, np.eye(n)[-1])


def walked(p: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same distribution by a long walk: a random expert, by weight, draws anew if it knows where we are."""
    step = np.zeros((p.shape[1], p.shape[1]))
    for e, share in enumerate(weights / weights.sum()):
        for c in range(len(step)):
            step[c] += share * (p[e] if known[e, c] else np.eye(len(step))[c])
    for _ in range(40):  # 2^40 steps
        step = step @ step
        step /= step.sum(axis=1, keepdims=True)
    return step[0]


# ---- softmax


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, np.log(3)], [0.25, 0.75]),
        ([np.log(1), np.log(2), np.log(5)], [0.125, 0.25, 0.625]),
        ([7.0, 7.0, 7.0, 7.0], [0.25] * 4),
        ([5.0], [1.0]),
        ([0.0, -0.0], [0.5, 0.5]),
        ([-0.0, NAN, 0.0], [0.5, 0.0, 0.5]),
        ([0.0, NAN, np.log(3)], [0.25, 0.0, 0.75]),
        ([NAN, -1e6, NAN], [0.0, 1.0, 0.0]),
        ([NAN, NAN], [0.0, 0.0]),
    ],
)
def test_softmax_by_hand(logits: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(softmax(np.array(logits)), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([3e38, -3e38, 0.0], [1, 0, 0]),
        ([3e38, 3e38, -3e38], [0.5, 0.5, 0]),
        ([-3e38, -3e38], [0.5, 0.5]),
        ([1e-38, 0.0, -1e-38], [1 / 3] * 3),
        ([1000.0, 999.0], [1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))]),
        ([-3e38, NAN, 3e38], [0, 0, 1]),
    ],
)
def test_softmax_of_extreme_logits(logits: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(softmax(np.array(logits, dtype=np.float32)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1e-12, [0.0, 0.5, 0.5, 0.0]), (1e12, [1 / 3, 1 / 3, 1 / 3, 0.0])],
)
def test_softmax_at_the_limits_of_the_temperature(temperature: float, expected: list[float]) -> None:
    logits = np.array([0.2, 0.6, 0.6, NAN], dtype=np.float32) / np.float32(temperature)
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-9)


def test_softmax_is_per_row_and_double() -> None:
    logits = np.array([[[0.0, np.log(3)], [NAN, 2.0]], [[NAN, NAN], [1.0, 1.0]]], dtype=np.float32)
    got = softmax(logits)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[[0.25, 0.75], [0, 1]], [[0, 0], [0.5, 0.5]]], atol=1e-7)


@prop
@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(NAN), min_size=1, max_size=8),
    st.floats(-1e4, 1e4, width=32),
)
def test_softmax_sums_to_one_and_ignores_what_is_added_to_all(logits: list[float], shift: float) -> None:
    row = np.array(logits, dtype=np.float64)
    before = row.copy()
    p = softmax(row)
    np.testing.assert_array_equal(row, before)
    assert (p[np.isnan(row)] == 0).all()
    assert p.sum() == pytest.approx(0.0 if np.isnan(row).all() else 1.0, abs=1e-12)
    np.testing.assert_allclose(softmax(row + shift), p, atol=1e-9)
    np.testing.assert_allclose(softmax(row[~np.isnan(row)]), p[~np.isnan(row)], atol=1e-12)


# ---- entropy and confidence

EVEN, SURE, QUARTERS = [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("p", "nats"),
    [
        (EVEN, LN2),
        (SURE, 0.0),
        (QUARTERS, 1.5 * LN2),
        ([0.25] * 4, 2 * LN2),
        ([0.1] * 10, np.log(10)),
        ([0.9, 0.1], 0.3250829733914482),
        ([1 - 2**-20, 2**-20], 20 * LN2 * 2**-20 + 2**-20),  # up to 2^-41
        ([1.0], 0.0),
        ([1 - 5e-324, 5e-324], 0.0),
    ],
)
def test_entropy_by_hand(p: list[float], nats: float) -> None:
    got = entropy(np.array([[p]]))
    assert got.shape == (1, 1)
    assert not np.signbit(got)  # nobody wants to read an entropy of -0.0
    np.testing.assert_allclose(got, [[nats]], atol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("max", [0.5, 1.0, 0.5, 1 / 3]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1e6, 1 / (1.5 * LN2 + 1e-6), 1 / (np.log(3) + 1e-6)]),
        ("neg_exp_entropy", [0.5, 1.0, 2**-1.5, 1 / 3]),
        ("fixed", [0.7, 0.7, 0.7, 0.7]),
    ],
)
def test_confidences_by_hand(method: str, expected: list[float]) -> None:
    p = np.array([[EVEN, SURE, QUARTERS, [1 / 3] * 3]])
    got = confidences(p, np.ones((1, 3), dtype=bool), method, np.array([0.7]))
    np.testing.assert_allclose(got, [expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("max", [0.5, 1e-6, 1.0]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1e-6, 1e6]),
        ("neg_exp_entropy", [0.5, 1e-6, 1.0]),
        ("fixed", [3.0, 1e-6, 0.25]),
    ],
)
def test_an_expert_that_knows_one_category_is_silent(method: str, expected: list[float]) -> None:
    p = np.array([[EVEN], [SURE], [SURE]])
    known = np.array([[True, True, True], [True, False, False], [True, True, False]])
    fixed = np.array([3.0, 2.0, 0.25])
    got = confidences(p, known, method, fixed)
    np.testing.assert_allclose(got, np.array(expected)[:, None], rtol=1e-12)
    np.testing.assert_array_equal(fixed, [3.0, 2.0, 0.25])


def test_fixed_confidences_are_the_same_for_every_image() -> None:
    p = np.full((2, 3, 2), 0.5)
    got = confidences(p, np.ones((2, 2), dtype=bool), "fixed", np.array([3.0, 0.25]))
    np.testing.assert_array_equal(got, [[3.0, 3.0, 3.0], [0.25, 0.25, 0.25]])


def test_confidences_by_name() -> None:
    assert sorted(CONFIDENCES) == ["inverse_entropy", "max", "neg_exp_entropy"]


# ---- fusion, every expert knowing every category: the paper's formula


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("max", [0.5, 0.75]),
        ("inverse_entropy", [1 / (LN2 + 1e-6), 1 / (0.5623351446188083 + 1e-6)]),
        ("neg_exp_entropy", [0.5, 0.5698767642386944]),  # exp(-H) of (1/4, 3/4) is 3^(3/4) / 4
        ("fixed", [1.0, 3.0]),
    ],
)
def test_full_coverage_is_the_papers_formula(method: str, weights: list[float]) -> None:
    p, known = np.array([[[0.5, 0.5]], [[0.25, 0.75]]]), np.ones((2, 2), dtype=bool)
    w = confidences(p, known, method, np.array([1.0, 3.0]))
    np.testing.assert_allclose(w[:, 0], weights, rtol=1e-12)
    a, b = weights
    expected = [(0.5 * a + 0.25 * b) / (a + b), (0.5 * a + 0.75 * b) / (a + b)]
    np.testing.assert_allclose(fuse(p, known, w), [expected], rtol=1e-12)


def test_full_coverage_table() -> None:
    # max: text 0.5, image 0.7 → 0.25 + 0.14, 0.15 + 0.49, 0.10 + 0.07, all over 1.2
    p = np.array([[[0.5, 0.3, 0.2]], [[0.2, 0.7, 0.1]]])
    known = np.ones((2, 3), dtype=bool)
    w = confidences(p, known, "max", np.ones(2))
    np.testing.assert_allclose(fuse(p, known, w), [[0.325, 0.64 / 1.2, 0.17 / 1.2]], rtol=1e-12)


def test_images_are_fused_on_their_own() -> None:
    p = np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.1, 0.9], [0.3, 0.7]]])
    w = np.array([[1.0, 3.0], [1.0, 1.0]])
    got = fuse(p, np.ones((2, 2), dtype=bool), w)
    np.testing.assert_allclose(got, [[0.3, 0.7], [0.75, 0.25]], rtol=1e-12)


def test_one_expert_is_its_own_fusion() -> None:
    np.testing.assert_allclose(fused([[0.2, 0.5, 0.3]], [1e-6]), [0.2, 0.5, 0.3], rtol=1e-12)
    np.testing.assert_allclose(fused([[0.2, NAN, 0.8]], [1e6]), [0.2, 0.0, 0.8], rtol=1e-12)


# ---- fusion, some experts knowing only some categories

EXTREME = [(1, 1), (1, 1e6), (1e6, 1), (1e-6, 1e6), (1e6, 1e-6)]


@pytest.mark.parametrize("weights", EXTREME)
def test_a_category_that_only_text_knows_keeps_its_probability(weights: tuple[float, float]) -> None:
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


@pytest.mark.parametrize("weights", EXTREME)
def test_two_experts_sharing_one_category(weights: tuple[float, float]) -> None:
    # Each fixes a ratio to the shared B: A : B = 1 : 3 and C : B = 4 : 1. So A : B : C = 1 : 3 : 12.
    q = fused([[0.25, 0.75, NAN], [NAN, 0.2, 0.8]], weights)
    np.testing.assert_allclose(q, [1 / 16, 3 / 16, 12 / 16], rtol=1e-7)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 5, 0.2), (1e-3, 1, 1e3), (1e3, 1e-3, 1), (2, 1e-3, 1e3)])
def test_a_chain_of_overlapping_experts(weights: tuple[float, ...]) -> None:
    p = np.array([[0.5, 0.3, 0.2, NAN, NAN], [NAN, 0.1, 0.6, 0.3, NAN], [NAN, NAN, 0.25, 0.25, 0.5]])
    known, w = ~np.isnan(p), np.array(weights, dtype=float)
    filled = np.where(known, p, 0.0)
    expected = solved(filled, known, w)
    np.testing.assert_allclose(walked(filled, known, w), expected, rtol=1e-6)
    np.testing.assert_allclose(fused(p, weights), expected, rtol=1e-8)


@pytest.mark.parametrize("weights", EXTREME)
def test_disjoint_experts_are_heard_equally(weights: tuple[float, float]) -> None:
    q = fused([[0.9, 0.1, NAN, NAN, NAN], [NAN, NAN, 0.2, 0.3, 0.5]], weights)
    np.testing.assert_allclose(q, [0.45, 0.05, 0.1, 0.15, 0.25], rtol=1e-9)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1e6, 1, 1e-6), (1e-6, 1e6, 1)])
def test_three_disjoint_experts_get_a_third_each(weights: tuple[float, ...]) -> None:
    q = fused([[0.5, 0.5, NAN, NAN], [NAN, NAN, 1.0, NAN], [NAN, NAN, NAN, 1.0]], weights)
    np.testing.assert_allclose(q, [1 / 6, 1 / 6, 1 / 3, 1 / 3], rtol=1e-9)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 3, 1e6), (1e6, 1, 1e-6)])
def test_experts_of_the_same_categories_are_one_voice_beside_a_disjoint_one(weights: tuple[float, ...]) -> None:
    a, b, _ = weights
    q = fused([[0.9, 0.1, NAN], [0.3, 0.7, NAN], [NAN, NAN, 1.0]], weights)
    first = (0.9 * a + 0.3 * b) / (a + b)
    np.testing.assert_allclose(q, [first / 2, (1 - first) / 2, 0.5], rtol=1e-9)


@pytest.mark.parametrize("weight", [1e-6, 1.0, 1e6])
def test_an_expert_of_one_shared_category_changes_nothing(weight: float) -> None:
    without = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [1, 2])
    with_it = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [NAN, NAN, 1.0]], [1, 2, weight])
    np.testing.assert_allclose(with_it, without, rtol=1e-7)


@pytest.mark.parametrize("weight", [1e-6, 1.0, 1e6])
def test_an_expert_of_one_category_of_its_own_leaves_the_ratios_of_the_others(weight: float) -> None:
    without = fused([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [1, 2])
    with_it = fused([[0.5, 0.3, 0.2, NAN], [0.1, 0.2, 0.7, NAN], [NAN, NAN, NAN, 1.0]], [1, 2, weight])
    np.testing.assert_allclose(with_it[:3] / with_it[:3].sum(), without, rtol=1e-9)


@pytest.mark.parametrize("weights", EXTREME)
def test_a_category_that_nobody_knows_has_zero(weights: tuple[float, float]) -> None:
    p = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    q = fused([[*row, NAN] for row in p], weights)
    assert q[3] == 0
    np.testing.assert_allclose(q[:3], fused(p, weights), rtol=1e-9)


def test_two_images_with_partial_coverage() -> None:
    known = np.array([[True, True, True], [False, True, True]])
    p = np.array([[[0.9, 0.05, 0.05], [0.4, 0.2, 0.4]], [[0, 1, 0], [0, 0.75, 0.25]]])
    got = fuse(p, known, np.array([[1.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_allclose(got, [[0.9, 0.075, 0.025], [0.4, 0.6 * 31 / 48, 0.6 * 17 / 48]], rtol=1e-9)


# ---- properties

Case = tuple[np.ndarray, np.ndarray, np.ndarray]  # probabilities (e, n, c), known (e, c), confidence (e, n)


def draw_weights(draw: st.DrawFn, n_experts: int, n_images: int, decades: float = 6) -> np.ndarray:
    exponents = st.lists(st.floats(-decades, decades), min_size=n_images, max_size=n_images)
    return 10 ** np.array([draw(exponents) for _ in range(n_experts)])


@st.composite
def cases(draw: st.DrawFn, *, full: bool = False) -> Case:
    n_experts, n_images, n_categories = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    coverage = st.lists(st.booleans(), min_size=n_categories, max_size=n_categories).filter(any)
    known = np.array([[True] * n_categories if full else draw(coverage) for _ in range(n_experts)])
    row = st.lists(st.floats(-100, 100, width=32), min_size=n_categories, max_size=n_categories)
    logits = np.array([[draw(row) for _ in range(n_images)] for _ in range(n_experts)], dtype=np.float32)
    logits[np.broadcast_to(~known[:, None, :], logits.shape)] = NAN
    return softmax(logits), known, draw_weights(draw, n_experts, n_images)


@prop
@given(cases())
def test_rows_are_distributions(case: Case) -> None:
    p, known, w = case
    inputs = [p.copy(), known.copy(), w.copy()]
    q = fuse(p, known, w)
    assert q.dtype == np.float64
    assert q.shape == p.shape[1:]
    assert np.isfinite(q).all()
    assert ((q >= 0) & (q <= 1)).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-12)
    assert (q[:, ~known.any(axis=0)] == 0).all()
    for after, before in zip((p, known, w), inputs, strict=True):
        np.testing.assert_array_equal(after, before)


@prop
@given(cases())
def test_satisfies_its_equation(case: Case) -> None:
    p, known, w = case
    q = fuse(p, known, w)
    for i in range(len(q)):
        assert np.abs(imbalance(q[i], p[:, i], known, w[:, i])).max() < 1e-12


@prop
@given(cases(full=True))
def test_full_coverage_is_the_weighted_mean(case: Case) -> None:
    p, known, w = case
    expected = sum(w[e][:, None] * p[e] for e in range(len(p))) / w.sum(axis=0)[:, None]
    np.testing.assert_allclose(fuse(p, known, w), expected, rtol=1e-9, atol=1e-300)
    # The way of partial coverage agrees, taken because of one more category that nobody knows.
    wider = fuse(np.pad(p, ((0, 0), (0, 0), (0, 1))), np.pad(known, ((0, 0), (0, 1))), w)
    np.testing.assert_allclose(wider[:, :-1], expected, rtol=1e-9, atol=1e-12)


@prop
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_categories_permutes_the_result(case: Case, random: object) -> None:
    p, known, w = case
    order = list(range(p.shape[2]))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(fuse(p[..., order], known[:, order], w), fuse(p, known, w)[:, order], atol=1e-9)


@prop
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_experts_does_not_matter(case: Case, random: object) -> None:
    p, known, w = case
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(fuse(p[order], known[order], w[order]), fuse(p, known, w), atol=1e-9)


@prop
@given(cases())
def test_the_unit_of_confidence_does_not_matter(case: Case) -> None:
    p, known, w = case
    np.testing.assert_allclose(fuse(p, known, 1024 * w), fuse(p, known, w), rtol=1e-9, atol=1e-15)


@prop
@given(cases(), st.integers(2, 4), st.data())
def test_identical_experts_fuse_to_themselves(case: Case, copies: int, data: st.DataObject) -> None:
    p, known, _ = case
    w = draw_weights(data.draw, copies, p.shape[1])
    q = fuse(np.repeat(p[:1], copies, axis=0), np.repeat(known[:1], copies, axis=0), w)
    np.testing.assert_allclose(q, p[0], rtol=1e-9, atol=1e-15)


@prop
@given(st.data())
def test_experts_that_agree_where_they_overlap_fuse_to_what_they_agree_on(data: st.DataObject) -> None:
    # One distribution; one expert knows all of it, the others some categories and the same ratios.
    n_categories, n_others = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    parts = data.draw(st.lists(st.floats(1e-3, 1), min_size=n_categories, max_size=n_categories))
    coverage = st.lists(st.booleans(), min_size=n_categories, max_size=n_categories).filter(any)
    known = np.array([[True] * n_categories, *(data.draw(coverage) for _ in range(n_others))])
    truth = np.array(parts) / sum(parts)
    p = np.where(known, truth, 0.0)
    p /= p.sum(axis=1, keepdims=True)
    q = fuse(p[:, None, :], known, draw_weights(data.draw, n_others + 1, 1))
    np.testing.assert_allclose(q[0], truth, rtol=1e-6)


@prop
@given(st.data())
def test_overlapping_windows_match_the_linear_system(data: st.DataObject) -> None:
    # Experts of three neighbouring categories each, the next one a step further: all are connected.
    n_experts = data.draw(st.integers(2, 5))
    known = np.array([[e <= c < e + 3 for c in range(n_experts + 2)] for e in range(n_experts)])
    row = st.lists(st.floats(0.05, 1), min_size=n_experts + 2, max_size=n_experts + 2)
    p = np.where(known, [data.draw(row) for _ in range(n_experts)], 0.0)
    p /= p.sum(axis=1, keepdims=True)
    w = draw_weights(data.draw, n_experts, 1, decades=1)[:, 0]
    q = fuse(p[:, None, :], known, w[:, None])
    np.testing.assert_allclose(q[0], solved(p, known, w), rtol=1e-7)


@prop
@given(cases(full=True), st.data())
def test_only_text_knows_one_category(case: Case, data: st.DataObject) -> None:
    # All experts but the first forget the first category: it keeps the probability the first gives it.
    p, known, w = case
    assume(p.shape[2] > 1)
    known = known.copy()
    known[1:, 0] = False
    logits = np.log(np.maximum(p, 1e-6))  # mixed enough for the rest to be reached
    logits[1:, :, 0] = NAN
    p = softmax(logits)
    np.testing.assert_allclose(fuse(p, known, w)[:, 0], p[0, :, 0], rtol=1e-6)


@prop
@given(cases(full=True), st.sampled_from(["max", "inverse_entropy", "neg_exp_entropy"]))
def test_an_uninformative_expert_keeps_the_order(case: Case, method: str) -> None:
    # Only if it knows every category: it adds the same to all.
    p, known, _ = case
    n_categories = p.shape[2]
    ones = np.ones(len(p) + 1)
    before = fuse(p, known, confidences(p, known, method, ones[1:]))
    more = np.concatenate([p, np.full((1, *p.shape[1:]), 1 / n_categories)])
    known = np.concatenate([known, np.ones((1, n_categories), dtype=bool)])
    after = fuse(more, known, confidences(more, known, method, ones))
    for i, best in enumerate(before.argmax(axis=1)):
        assert after[i, best] == pytest.approx(after[i].max(), abs=1e-12)
    rank = np.argsort(before, axis=1)
    assert (np.diff(np.take_along_axis(after, rank, axis=1), axis=1) >= -1e-12).all()


def test_an_uninformative_expert_of_some_categories_can_change_the_order() -> None:
    # It says that B and C are equally likely, which speaks against B. A is not its business.
    alone = fused([[0.4, 0.45, 0.15]], [1])
    assert alone.argmax() == 1
    np.testing.assert_allclose(fused([[0.4, 0.45, 0.15], [NAN, 0.5, 0.5]], [1, 1]), [0.4, 0.375, 0.225], rtol=1e-9)


@prop
@given(cases(), st.sampled_from(["max", "inverse_entropy", "neg_exp_entropy", "fixed"]))
def test_confidences_are_positive_and_finite(case: Case, method: str) -> None:
    p, known, w = case
    got = confidences(p, known, method, w[:, 0])
    assert got.shape == p.shape[:2]
    assert np.isfinite(got).all()
    assert (got > 0).all()
    lower, upper = {
        "max": (1 / p.shape[2], 1),
        "inverse_entropy": (1 / (np.log(p.shape[2]) + 1e-6), 1e6),
        "neg_exp_entropy": (1 / p.shape[2], 1),
        "fixed": (1e-6, 1e6),
    }[method]
    comparing = known.sum(axis=1) > 1
    assert (got[comparing] >= lower * (1 - 1e-9)).all()
    assert (got[comparing] <= upper * (1 + 1e-9)).all()
    np.testing.assert_array_equal(got[~comparing], np.full_like(got[~comparing], 1e-6))


# ---- log-linear fusion

Pool = tuple[np.ndarray, tuple[str, ...], dict[str, float]]  # evidence, experts, neutral

TWO = ("a:image", "a:text")


def pooled(
    evidence: Sequence[Sequence[float]] | np.ndarray, neutral: Mapping[str, float], experts: Sequence[str] = TWO
) -> np.ndarray:
    """Of one image."""
    return log_linear(np.array(evidence, dtype=np.float64)[:, None, :], experts, neutral)[0]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([True, False, False], "dino:image"),
        ([True, True, False], "clip:text+dino:image"),
        ([True, True, True], "clip:image+clip:text+dino:image"),
        ([False, False, False], ""),
    ],
)
def test_pattern(chosen: list[bool], expected: str) -> None:
    assert pattern(["dino:image", "clip:text", "clip:image"], np.array(chosen)) == expected


def test_log_linear_of_full_coverage_by_hand() -> None:
    # (1/2, 1/4, 1/4) · (1/8, 3/8, 1/2) = (2, 3, 4) / 32
    logs = np.log([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]])
    got = pooled(logs, {"a:image+a:text": -1.5})
    np.testing.assert_allclose(got, np.log([2 / 32, 3 / 32, 4 / 32]) + 1.5, rtol=1e-12)
    np.testing.assert_allclose(softmax(got), [2 / 9, 3 / 9, 4 / 9], rtol=1e-12)


def test_log_linear_of_partial_coverage_by_hand() -> None:
    neutral = {"a:image": 0.5, "a:text": 0.25, "a:image+a:text": 1.0}
    got = pooled([[2.0, 3.0, NAN, NAN], [1.0, NAN, 4.0, NAN]], neutral)
    np.testing.assert_allclose(got, [2 + 1 - 1, 3 + 0.25 - 1, 4 + 0.5 - 1, -np.inf], rtol=1e-12)


def test_log_linear_without_neutral_evidence_takes_the_mean_likelihood() -> None:
    # Of the image expert (2 + 4) / 2 = 3, of the text (1 + 5 + 6) / 3 = 4, of both 12.
    got = pooled(np.log([[2, 4, NAN], [1, 5, 6]]), {})
    np.testing.assert_allclose(got, np.log([2 / 12, 20 / 12, 6 * 3 / 12]), rtol=1e-12)


def test_what_is_named_together_goes_before_what_is_named_alone() -> None:
    evidence = np.log([[[2.0, 4.0]], [[1.0, 5.0]], [[1.0, 1.0]]])
    experts, neutral = ("x", "y", "z"), {"x+y": 7.0, "y": 2.0}
    for chosen, expected in [
        ([True, True, False], 7.0),
        ([False, True, False], 2.0),
        ([True, False, False], np.log(3)),
        ([False, True, True], 2.0),
        ([True, True, True], np.log(3) + 2.0),  # independent of each other, though two of them have a name
    ]:
        got = neutral_evidence(evidence, experts, neutral, np.array(chosen))
        np.testing.assert_allclose(got, [expected], rtol=1e-12)


def test_neutral_evidence_is_of_each_image_and_of_what_is_known() -> None:
    evidence = np.log([[[2.0, 4.0, NAN], [1.0, 1.0, NAN]], [[NAN] * 3, [NAN] * 3]])
    np.testing.assert_allclose(neutral_evidence(evidence, TWO, {}, np.array([True, False])), np.log([3, 1]))
    np.testing.assert_array_equal(neutral_evidence(evidence, TWO, {}, np.array([False, True])), [0, 0])


@st.composite
def pools(draw: st.DrawFn, *, named: bool = False) -> Pool:
    """Evidence, the experts, and neutral evidence of some of their sets, or of all."""
    n_experts, n_images, n_categories = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    experts = tuple("abcd"[:n_experts])
    nats = st.floats(-30, 30)
    evidence = np.array([[[draw(nats) for _ in range(n_categories)] for _ in range(n_images)] for _ in experts])
    for row in evidence:
        row[:, draw(st.lists(st.booleans(), min_size=n_categories, max_size=n_categories))] = NAN
    sets = [np.array([bits >> e & 1 for e in range(n_experts)], dtype=bool) for bits in range(1, 2**n_experts)]
    return evidence, experts, {pattern(experts, chosen): draw(nats) for chosen in sets if named or draw(st.booleans())}


@prop
@given(pools())
def test_log_linear_is_the_product_of_the_experts(case: Pool) -> None:
    evidence, experts, neutral = case
    evidence = np.nan_to_num(evidence)
    product = np.prod([softmax(of) for of in evidence], axis=0)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(log_linear(evidence, experts, neutral)), expected, rtol=1e-9, atol=1e-12)


@prop
@given(pools(), st.randoms(use_true_random=False))
def test_order_of_experts_and_categories_does_not_matter_to_log_linear(case: Pool, random: object) -> None:
    evidence, experts, neutral = case
    of, columns = list(range(len(experts))), list(range(evidence.shape[2]))
    random.shuffle(of)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    before = evidence.copy()
    got = log_linear(evidence[of][..., columns], [experts[e] for e in of], neutral)
    np.testing.assert_allclose(got, log_linear(evidence, experts, neutral)[:, columns], atol=1e-9)
    np.testing.assert_array_equal(evidence, before)


@prop
@given(pools())
def test_what_nobody_knows_and_nothing_else_is_impossible(
    case: Pool,
) -> None:
    evidence, experts, neutral = case
    got = log_linear(evidence, experts, neutral)
    assert got.dtype == np.float64
    unknown = np.isnan(evidence).all(axis=0)
    assert (got[unknown] == -np.inf).all()
    assert np.isfinite(got[~unknown]).all()


@prop
@given(pools(named=True), st.data())
def test_a_category_that_lacks_an_expert_leaves_the_others_as_they_are(case: Pool, data: st.DataObject) -> None:
    evidence, experts, neutral = case
    has = data.draw(st.lists(st.booleans(), min_size=len(experts), max_size=len(experts)))
    column = np.where(np.array(has)[:, None, None], data.draw(st.floats(-30, 30)), NAN)
    more = np.concatenate([evidence, np.broadcast_to(column, (*evidence.shape[:2], 1))], axis=2)
    got = log_linear(more, experts, neutral)
    np.testing.assert_allclose(got[:, :-1], log_linear(evidence, experts, neutral), atol=1e-9)


@prop
@given(pools(), st.data())
def test_neutral_evidence_is_as_good_as_none(case: Pool, data: st.DataObject) -> None:
    evidence, experts, _ = case
    neutral = {pattern(experts, one): data.draw(st.floats(-30, 30)) for one in np.eye(len(experts), dtype=bool)}
    said = np.array([neutral[expert] for expert in experts])[:, None, None]
    filled = np.where(np.isnan(evidence), said, evidence)
    known = ~np.isnan(evidence).all(axis=(0, 1))
    got = log_linear(evidence, experts, neutral)
    np.testing.assert_allclose(got[:, known], log_linear(filled, experts, neutral)[:, known], atol=1e-9)


@prop
@given(pools())
def test_weights_of_one_are_none(case: Pool) -> None:
    evidence, experts, neutral = case
    got = log_linear(evidence, experts, neutral, np.ones(evidence.shape[:2]))
    np.testing.assert_array_equal(got, log_linear(evidence, experts, neutral))


@prop
@given(pools(), st.data())
def test_a_weight_multiplies_the_evidence_of_an_expert(case: Pool, data: st.DataObject) -> None:
    evidence, experts, neutral = case
    evidence = np.nan_to_num(evidence)
    weights = 2.0 ** np.array([[data.draw(st.integers(-3, 3)) for _ in row] for row in evidence])
    weighted = softmax(log_linear(evidence, experts, neutral, weights))
    np.testing.assert_allclose(
        weighted, softmax(log_linear(evidence * weights[..., None], experts, neutral)), atol=1e-9
    )
    chosen = data.draw(st.integers(0, len(experts) - 1))
    double, louder = np.ones(weights.shape), evidence.copy()
    double[chosen] = 2
    louder[chosen] *= 2
    difference = log_linear(evidence, experts, neutral, double) - log_linear(louder, experts, neutral)
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-9)


@prop
@given(pools(), st.integers(-3, 3))
def test_equal_weights_multiply_the_evidence(case: Pool, power: int) -> None:
    evidence, experts, neutral = case
    got = log_linear(evidence, experts, neutral, np.full(evidence.shape[:2], 2.0**power))
    np.testing.assert_allclose(got, 2.0**power * log_linear(evidence, experts, neutral), atol=1e-9)


@prop
@given(pools(), st.data())
def test_weighted_evidence_is_finite_where_anybody_knows_a_category(case: Pool, data: st.DataObject) -> None:
    evidence, experts, neutral = case
    weights = np.array([[data.draw(st.floats(1e-6, 1e3)) for _ in row] for row in evidence])
    got = log_linear(evidence, experts, neutral, weights)
    unknown = np.isnan(evidence).all(axis=0)
    assert (got[unknown] == -np.inf).all()
    assert np.isfinite(got[~unknown]).all()


def test_weighted_evidence_of_partial_coverage_by_hand() -> None:
    # Who lacks a category says the neutral evidence with its own weight, and all together with the mean of theirs.
    neutral = {"a:image": 0.5, "a:text": 0.25, "a:image+a:text": 1.0}
    evidence = np.array([[[2.0, 3.0, NAN, NAN]], [[1.0, NAN, 4.0, NAN]]])
    got = log_linear(evidence, TWO, neutral, np.array([[3.0], [0.5]]))
    np.testing.assert_allclose(got, [[6 + 0.5 - 1.75, 9 + 0.125 - 1.75, 2 + 1.5 - 1.75, -np.inf]], rtol=1e-12)
