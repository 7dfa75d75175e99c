from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from zsvec.method.predict.logits import entropy, logsumexp, softmax

LN2 = 0.6931471805599453
NAN = np.nan

prop = settings(deadline=None, max_examples=100)

# ---- softmax


def test_softmax_by_hand() -> None:
    for logits, expected in [
        ([0.0, np.log(3)], [0.25, 0.75]),
        ([np.log(1), np.log(2), np.log(5)], [0.125, 0.25, 0.625]),
        ([7.0, 7.0, 7.0, 7.0], [0.25] * 4),
        ([5.0], [1.0]),
        ([0.0, -0.0], [0.5, 0.5]),
        ([-0.0, NAN, 0.0], [0.5, 0.0, 0.5]),
        ([0.0, NAN, np.log(3)], [0.25, 0.0, 0.75]),
        ([NAN, -1e6, NAN], [0.0, 1.0, 0.0]),
        ([NAN, NAN], [0.0, 0.0]),
    ]:
        np.testing.assert_allclose(softmax(np.array(logits)), expected, atol=1e-15)


def test_softmax_of_extreme_logits() -> None:
    cases: list[tuple[list[float], list[float]]] = [
        ([3e38, -3e38, 0.0], [1, 0, 0]),
        ([3e38, 3e38, -3e38], [0.5, 0.5, 0]),
        ([-3e38, -3e38], [0.5, 0.5]),
        ([1e-38, 0.0, -1e-38], [1 / 3] * 3),
        ([1000.0, 999.0], [1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))]),
        ([-3e38, NAN, 3e38], [0, 0, 1]),
    ]
    for logits, expected in cases:
        np.testing.assert_allclose(softmax(np.array(logits, dtype=np.float32)), expected, atol=1e-12)


def test_softmax_at_the_limits_of_the_temperature() -> None:
    for temperature, expected in [(1e-12, [0.0, 0.5, 0.5, 0.0]), (1e12, [1 / 3, 1 / 3, 1 / 3, 0.0])]:
        logits = np.array([0.2, 0.6, 0.6, NAN], dtype=np.float32) / np.float32(temperature)
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-9)


def test_softmax_is_per_row_and_double() -> None:
    logits = np.array([[[0.0, np.log(3)], [NAN, 2.0]], [[NAN, NAN], [1.0, 1.0]]], dtype=np.float32)
    got = softmax(logits)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[[0.25, 0.75], [0.0, 1.0]], [[0.0, 0.0], [0.5, 0.5]]], atol=1e-7)


@prop
@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(NAN), min_size=1, max_size=8),
    st.floats(-1e4, 1e4, width=32),
)
def test_softmax_sums_to_one_and_ignores_shifts(logits: list[float], shift: float) -> None:
    row = np.array(logits, dtype=np.float64)
    before = row.copy()
    p = softmax(row)
    np.testing.assert_array_equal(row, before)
    assert (p[np.isnan(row)] == 0).all()
    assert p.sum() == pytest.approx(0.0 if np.isnan(row).all() else 1.0, abs=1e-12)
    np.testing.assert_allclose(softmax(row + shift), p, atol=1e-9)
    np.testing.assert_allclose(softmax(row[~np.isnan(row)]), p[~np.isnan(row)], atol=1e-12)


# ---- logsumexp


def test_logsumexp_by_hand() -> None:
    for logits, expected in [
        ([0.0, np.log(3)], np.log(4)),
        ([7.0] * 4, 7 + 2 * LN2),
        ([5.0], 5.0),
        ([-np.inf, 2.0], 2.0),
        ([1000.0, -1000.0], 1000.0),
        ([-1000.0, -1000.0], -1000 + LN2),
        ([1e300, -1e300], 1e300),
    ]:
        np.testing.assert_allclose(logsumexp(np.array([logits, logits])), [expected] * 2, rtol=1e-15)
        assert logsumexp(np.array(logits)).shape == ()


@prop
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 2**32))
def test_logsumexp_is_that_of_scipy(rows: int, n: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(2, rows, n))
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[..., 0] = scale
    np.testing.assert_allclose(logsumexp(logits), special.logsumexp(logits, axis=-1), rtol=1e-12, atol=1e-14)


# ---- entropy


def test_entropy_by_hand() -> None:
    for p, nats in [
        ([0.5, 0.5, 0.0], LN2),
        ([1.0, 0.0, 0.0], 0.0),
        ([0.5, 0.25, 0.25], 1.5 * LN2),
        ([0.25] * 4, 2 * LN2),
        ([0.1] * 10, np.log(10)),
        ([0.9, 0.1], 0.3250829733914482),
        ([1 - 2**-20, 2**-20], 20 * LN2 * 2**-20 + 2**-20),  # up to 2^-41
        ([1.0], 0.0),
        ([1 - 5e-324, 5e-324], 0.0),
    ]:
        got = entropy(np.array([[p]]))
        assert got.shape == (1, 1)
        assert not np.signbit(got)  # no entropy of -0.0
        np.testing.assert_allclose(got, [[nats]], atol=1e-12)
