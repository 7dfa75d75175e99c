from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.method.material import all_means, background, references
from zsvec.method.predict import class_means as module
from zsvec.method.predict.class_means import ClassMeans
from zsvec.method.rows import Rows
from zsvec.method.similarities import References

Counts = Mapping[str, int]


def stored(counts: Counts) -> References:
    """The same vectors for the same category and number."""
    return references({name: drawn(name, n) for name, n in counts.items()})


def drawn(name: str, n: int) -> Mapping[str, Sequence[float]]:
    rng = np.random.default_rng([ord(name), n])
    return {f"{name}{i}": vector.tolist() for i, vector in enumerate(rng.normal(size=(n, 4)))}


def test_by_hand() -> None:
    found = ClassMeans.of("ab", Rows([np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)]), np.array([0, 2, 3]))
    assert all_means(found) == pytest.approx(np.array([[0.5, 0.5], [0.6, 0.8]]))
    assert found.counts.tolist() == [2, 1]
    assert len(found) == 2
    assert found.take(1) == pytest.approx([0.6, 0.8])
    assert found.dot(np.array([[1, 0], [0, 2]], np.float32)) == pytest.approx(np.array([[0.5, 0.6], [1, 1.6]]))
    with pytest.raises(IndexError):
        found.take(2)


def test_seen_by_hand() -> None:
    means = np.array([[1.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 1.1]], np.float32)
    found = ClassMeans.of("ab", Rows([means]), np.arange(3))
    (block,) = found.blocks
    seen = block.seen_from(background())
    assert seen.along == pytest.approx(np.array([[1, 0], [0, 0]]))
    assert seen.lengths == pytest.approx([1, 1])
    assert seen.trust == pytest.approx([1 / 3, 1 / 3])  # 1 / (1 + 2 / 1)
    assert seen.halves == pytest.approx([2 / 18, 5 / 18])


counts = st.dictionaries(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(1, 3), min_size=1)


@given(before=counts, after=counts, size=st.integers(1, 5), of_roots=st.booleans())
def test_after_a_change_they_are_those_of_the_new_references(
    before: Counts, after: Counts, size: int, of_roots: bool
) -> None:
    name = "root_means" if of_roots else "class_means"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", size)
        old, new = stored(before), stored(after)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        old_means = getattr(old, name)
        new.succeed(old, changed)
        got = new.__dict__[name]
        whole = ClassMeans.of(new.names, new.rows, new.starts, of_roots=of_roots)
    assert got.of_roots is of_roots
    np.testing.assert_array_equal(all_means(got), all_means(whole))
    np.testing.assert_array_equal(got.counts, whole.counts)
    assert got.counts.tolist() == [after[name] for name in sorted(after)]
    assert all(len(block.counts) for block in got.blocks)
    if not changed:
        assert got.blocks == old_means.blocks


def test_a_change_makes_one_block_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2)
    before, after = stored(dict.fromkeys("abcdefgh", 2)), stored({**dict.fromkeys("abcdefgh", 2), "e": 3})
    means = before.class_means
    assert [block.names[0] for block in means.blocks] == ["a", "c", "e", "g"]
    after.succeed(before, {"e"})
    assert [a is b for a, b in zip(after.class_means.blocks, means.blocks, strict=True)] == [True, True, False, True]
    assert after.class_means.counts.tolist() == [2, 2, 2, 2, 3, 2, 2, 2]


def test_means_that_nobody_asked_for_are_not_made() -> None:
    before, after = stored({"a": 1}), stored({"a": 1, "b": 2})
    after.succeed(before, {"b"})
    assert not {"class_means", "root_means"} & after.__dict__.keys()
    assert after.class_means.counts.tolist() == [1, 2]


# ---- references that count less than others


def test_weighted_means_by_hand() -> None:
    rows, starts = Rows([np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)]), np.array([0, 2, 3])
    found = ClassMeans.of("ab", rows, starts).weighed({0: np.array([1.0, 0.25], np.float32)}, rows, starts)
    assert all_means(found) == pytest.approx(np.array([[0.8, 0.2], [0.6, 0.8]]))
    assert found.counts.tolist() == [1, 1]  # 1.25 references
    roots = ClassMeans.of("ab", rows, starts, of_roots=True).weighed({1: np.array([0.5], np.float32)}, rows, starts)
    assert all_means(roots)[1] == pytest.approx(np.sqrt([0.6, 0.8]) / np.sqrt(1.4))


@pytest.mark.parametrize("size", [2, 2048])
def test_weights_of_one_do_nothing_and_others_only_to_their_category(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", size)
    some = stored(dict.fromkeys("abcdefg", 4))
    before = some.class_means
    for block in before.blocks:
        block.seen_from(background())
    ones = before.weighed({2: np.ones(4, np.float32), 6: np.ones(4, np.float32)}, some.rows, some.starts)
    np.testing.assert_allclose(all_means(ones), all_means(before), atol=1e-7)
    weights = np.array([1, 0.5, 0.001, 1], np.float32)
    after = before.weighed({3: weights}, some.rows, some.starts)
    expected = all_means(before).copy()
    expected[3] = np.average(some.vectors[12:16], axis=0, weights=weights)
    np.testing.assert_allclose(all_means(after), expected, atol=1e-6)
    assert after.counts.tolist() == [4, 4, 4, 3, 4, 4, 4]  # of 2.501


def test_references_are_weighed_as_the_background_says() -> None:
    some = references({"a": {"1": (1, 0), "2": (0, 1)}, "b": {"3": (1, 0), "1": (0, 1)}})
    plain = background(2)
    weighing = replace(plain, weights={"a": {"2": 0.25}, "b": {"2": 0.5}, "gone": {"1": 0.5}})
    assert some.sum_up(plain) is some.class_means
    found = some.sum_up(weighing)
    assert all_means(found) == pytest.approx(np.array([[0.8, 0.2], [0.5, 0.5]]))
    assert some.sum_up(weighing) is found
    other = some.sum_up(replace(plain, weights={"b": {"1": 0.25}}))
    assert all_means(other) == pytest.approx(np.array([[0.5, 0.5], [0.8, 0.2]]))
