from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zsvec.method.arrays import largest, product

prop = settings(deadline=None, max_examples=100)


def test_largest_by_hand() -> None:
    values = np.array([[0.1, 0.5, 0.3, 0.5], [0.2, 0.2, 0.2, 0.1]])
    assert largest(values, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert largest(values, 9).tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]
    assert values.tolist() == [[0.1, 0.5, 0.3, 0.5], [0.2, 0.2, 0.2, 0.1]]


def test_product_by_hand() -> None:
    a, b = np.array([[1, 2], [3, 4]], dtype=np.float32), np.array([[5, 6], [7, 8], [9, 0]], dtype=np.float32)
    assert product(a, b).tolist() == [[17, 23, 9], [39, 53, 27]]


def test_product_does_not_warn_where_the_processor_reports_an_invalid_operation() -> None:
    a, b = np.array([[np.inf, 1]], dtype=np.float32), np.array([[0, 2]], dtype=np.float32)
    assert np.isnan(product(a, b)).all()  # infinity times 0 reports it on every processor


@prop
@given(st.integers(0, 4), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_largest_is_a_stable_sort(n: int, m: int, k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 5, (n, m)).astype(np.float32)  # many ties
    before = values.copy()
    expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(largest(values, k), expected)
    np.testing.assert_array_equal(values, before)
