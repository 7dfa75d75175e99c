from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsvec.method import rows as module
from zsvec.method.rows import Floats, Rows

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


def pieces(lengths: list[int], dim: int = 3) -> list[Floats]:
    numbers = np.arange(sum(lengths) * dim, dtype=np.float32).reshape(-1, dim)
    return [piece.copy() for piece in np.split(numbers, np.cumsum(lengths)[:-1])]


@given(lengths=sizes, few=st.integers(1, 6), start=st.integers(0, 80), length=st.integers(0, 80))
def test_pieces_are_one_below_the_other(lengths: list[int], few: int, start: int, length: int) -> None:
    given, whole = pieces(lengths), np.concatenate(pieces(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", few)
        rows = Rows.of_pieces(given)
    assert len(rows) == len(whole)
    assert rows.dim == 3
    start, end = min(start, len(whole)), min(start + length, len(whole))
    np.testing.assert_array_equal(rows.take(start, end), whole[start:end])
    some = np.random.default_rng(length).integers(0, len(whole), (2, 5))
    np.testing.assert_array_equal(rows.pick(some), whole[some])
    assert all(len(a) >= few or len(b) >= few for a, b in zip(rows.blocks, rows.blocks[1:], strict=False))
    np.testing.assert_array_equal(rows.joined(), whole)
    assert len(rows.blocks) == 1
    np.testing.assert_array_equal(rows.pick(some), whole[some])


def test_only_what_is_short_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEW", 4)
    before = Rows(pieces([20]))
    new = np.ones((1, 3), dtype=np.float32)
    after = Rows.of_pieces([*before.between(0, 10), new, *before.between(12, 20)])
    assert [len(block) for block in after.blocks] == [10, 1, 8]
    assert [np.shares_memory(block, before.blocks[0]) for block in after.blocks] == [True, False, True]
    again = Rows.of_pieces([*after.between(0, 10), new, new, *after.between(11, 13), *after.between(15, 19)])
    assert [len(block) for block in again.blocks] == [10, 4, 4]
    assert [np.shares_memory(block, before.blocks[0]) for block in again.blocks] == [True, False, True]


def test_what_is_hardly_used_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEW", 4)
    before = Rows(pieces([20]))
    more, less = (
        Rows.of_pieces([*before.between(0, 10)]),
        Rows.of_pieces([*before.between(0, 5), *before.between(8, 12)]),
    )
    assert np.shares_memory(more.blocks[0], before.blocks[0])
    assert not any(np.shares_memory(block, before.blocks[0]) for block in less.blocks)
    np.testing.assert_array_equal(less.joined(), np.concatenate([before.take(0, 5), before.take(8, 12)]))
