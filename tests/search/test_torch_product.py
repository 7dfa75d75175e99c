"""Products of matrices on a CPU, by numpy and by the threads of the encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zsvec.method.arrays import product as by_numpy
from zsvec.search.torch_index import product

Floats = NDArray[np.float32]

PRODUCTS = [by_numpy, product]


def normal(*shape: int) -> Floats:
    return np.random.default_rng(list(shape)).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_by_hand(product: Callable[[Floats, Floats], Floats]) -> None:
    a = np.array([[1, 2], [0, 1], [3, 0], [1, 1], [2, 2]], dtype=np.float32)
    b = np.array([[1, 0], [2, 1], [0, -1]], dtype=np.float32)
    assert product(a, b).tolist() == [[1, 4, -2], [0, 1, -1], [3, 6, 0], [1, 3, -1], [2, 6, -2]]


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_of_any_shape(product: Callable[[Floats, Floats], Floats]) -> None:
    for n, m, d in [
        (1, 10, 8),
        (3, 10, 8),
        (4, 1, 1),
        (5, 3, 2),
        (32, 1000, 384),
        (33, 8193, 7),
        (300, 20_000, 33),
        (0, 5, 4),
    ]:
        a, b = normal(n, d), normal(m, d)
        found = product(a, b)
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((n, m), np.float32, True)
        np.testing.assert_allclose(found, a.astype(np.float64) @ b.astype(np.float64).T, atol=1e-5 * np.sqrt(d))


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_of_read_only_vectors(product: Callable[[Floats, Floats], Floats]) -> None:
    a, b = normal(8, 4), normal(9, 4)
    a.flags.writeable = False  # vectors of images may be read-only; references are not
    np.testing.assert_allclose(product(a, b), a @ b.T, atol=1e-6)


@pytest.fixture(params=["autocast", "bfloat16 by default", "another device by default"])
def program_around(request: pytest.FixtureRequest) -> Iterator[None]:
    """Settings of torch by a host program."""
    if request.param == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    elif request.param == "bfloat16 by default":
        torch.set_default_dtype(torch.bfloat16)
        yield
        torch.set_default_dtype(torch.float32)
    else:
        with torch.device("meta"):
            yield


@pytest.mark.usefixtures("program_around")
def test_products_ignore_settings_of_the_host_program() -> None:
    a, b = normal(8, 40), normal(9, 40)
    np.testing.assert_allclose(product(a, b), a @ b.T, atol=1e-5)
