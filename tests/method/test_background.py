from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.method.material import background, references
from zsvec.method.predict import background as module
from zsvec.method.predict.background import ClassMeans, mean_reference
from zsvec.method.similarities import References

Counts = Mapping[str, int]


def stored(counts: Counts) -> References:
    """The same vectors for the same category and number."""
    return references({name: drawn(name, n) for name, n in counts.items()})


def drawn(name: str, n: int) -> Mapping[str, Sequence[float]]:
    rng = np.random.default_rng([ord(name), n])
    return {f"{name}{i}": vector.tolist() for i, vector in enumerate(rng.normal(size=(n, 4)))}


def test_by_hand() -> None:
    found = ClassMeans.of("ab", np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32), np.array([0, 2, 3]))
    assert found.means == pytest.approx(np.array([[0.5, 0.5], [0.6, 0.8]]))
    assert found.counts.tolist() == [2, 1]
    assert len(found) == 2


def test_seen_by_hand() -> None:
    means = np.array([[1.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 1.1]], np.float32)
    found = ClassMeans.of("ab", means, np.arange(3))
    seen = found.seen_from(background())
    assert found.seen_from(seen.background) is seen
    assert seen.along == pytest.approx(np.array([[1, 0], [0, 0]]))
    assert seen.lengths == pytest.approx([1, 1])
    assert seen.trust == pytest.approx([1 / 3, 1 / 3])  # 1 / (1 + 2 / 1)
    assert seen.halves == pytest.approx([2 / 18, 5 / 18])


counts = st.dictionaries(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(1, 3), min_size=1)


@given(before=counts, after=counts, of_roots=st.booleans())
def test_after_a_change_they_are_those_of_the_new_references(before: Counts, after: Counts, of_roots: bool) -> None:
    name = "root_means" if of_roots else "class_means"
    old, new = stored(before), stored(after)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert len(getattr(old, name)) == len(before)
    new.succeed(old, changed)
    got = new.__dict__[name]
    whole = ClassMeans.of(new.names, new.vectors, new.starts, of_roots=of_roots)
    assert got.of_roots is of_roots
    np.testing.assert_array_equal(got.means, whole.means)
    np.testing.assert_array_equal(got.counts, whole.counts)
    assert got.counts.tolist() == [after[name] for name in sorted(after)]


def test_a_change_computes_the_means_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = stored(dict.fromkeys("abcdefgh", 2)), stored({**dict.fromkeys("abcdefgh", 2), "e": 3})
    assert before.class_means.counts.tolist() == [2] * 8
    computed: list[int] = []

    def counting(vectors: np.ndarray) -> np.ndarray:
        computed.append(len(vectors))
        return mean_reference(vectors)

    monkeypatch.setattr(module, "mean_reference", counting)
    after.succeed(before, {"e"})
    assert after.class_means.counts.tolist() == [2, 2, 2, 2, 3, 2, 2, 2]
    assert computed == [3]


def test_unused_means_are_not_computed() -> None:
    before, after = stored({"a": 1}), stored({"a": 1, "b": 2})
    after.succeed(before, {"b"})
    assert not {"class_means", "root_means"} & after.__dict__.keys()
    assert after.class_means.counts.tolist() == [1, 2]
