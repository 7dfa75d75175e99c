"""Predictions for a set from the evidence of each image and of similar images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from zsvec.method.predict import together as module
from zsvec.method.predict.together import Batch, together
from zsvec.method.predict.tree import Tree
from zsvec.types import Prediction

# Three images of each category, and one beside those of a, with a little more evidence for b.
PROBABILITIES = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3 + [[0.45, 0.55]])
DEGREES = [0, 12, 24, 120, 132, 144, 36]


def at(degrees: Sequence[float]) -> Any:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def a_batch(rows: slice = slice(None), **changes: Any) -> Batch:
    made = {
        "categories": ("a", "b"),
        "fused": PROBABILITIES[rows],
        "vectors": {"clip": at(DEGREES)[rows]},
        "shares": {"clip": 1.0},
    }
    return Batch(**{**made, **changes})


def alone(*, unknown: bool = False) -> list[Prediction]:
    def one(source: int, p: float) -> Prediction:
        ranking = tuple(sorted((("a", p), ("b", 1 - p)), key=lambda pair: -pair[1]))
        nearest = ranking[0][0]
        label = None if unknown else nearest
        return Prediction(
            source=str(source),
            label=label,
            nearest=nearest,
            probability=ranking[0][1],
            unknown=unknown,
            novelty=0.4,
            ranking=ranking,
        )

    return [one(i, float(p)) for i, p in enumerate(PROBABILITIES[:, 0])]


def test_an_image_in_doubt_gets_the_category_of_similar_images() -> None:
    found = together(alone(), [a_batch()], 2)
    assert [one.label for one in alone()] == ["a"] * 3 + ["b"] * 4
    assert [one.label for one in found] == ["a"] * 3 + ["b"] * 3 + ["a"]
    for one, before in zip(found, alone(), strict=True):
        assert (one.source, one.novelty, one.nearest) == (before.source, before.novelty, one.ranking[0][0])
        assert sum(p for _, p in one.ranking) == pytest.approx(1)
        assert one.probability == one.ranking[0][1]
    means = [np.mean([one.probability for one in some if one.probability]) for some in (found, alone())]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    assert [len(one.ranking) for one in together(alone(), [a_batch()], 1)] == [1] * 7


@pytest.mark.parametrize("size", [7, 3])
def test_a_path_leads_to_the_new_category(size: int) -> None:
    tree = Tree.of(("a", "b"), {"a": "x", "b": "y"})
    batches = [a_batch(slice(first, first + size), tree=tree) for first in range(0, 7, size)]
    found = together(alone(), batches, 2)
    assert [one.path[-1] for one in found] == [one.ranking[0] for one in found]
    assert [[name for name, _ in one.path] for one in found] == [["x", "a"]] * 3 + [["y", "b"]] * 3 + [["x", "a"]]
    for one in together(alone(unknown=True), batches, 2):
        assert one.path == (({"a": "x", "b": "y"}[str(one.nearest)], one.probability),)
    mixed = together(alone(), [a_batch(slice(3)), a_batch(slice(3, 7), tree=tree)], 2)
    assert [len(one.path) for one in mixed] == [0] * 3 + [2] * 4


def test_an_unknown_image_stays_unknown() -> None:
    found = together(alone(unknown=True), [a_batch()], 2)
    assert [(one.label, one.unknown) for one in found] == [(None, True)] * 7
    assert [one.nearest for one in found] == ["a"] * 3 + ["b"] * 3 + ["a"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_do_not_matter(size: int) -> None:
    batches = [a_batch(slice(first, first + size)) for first in range(0, 7, size)]
    for one, other in zip(together(alone(), batches, 2), together(alone(), [a_batch()], 2), strict=True):
        assert dict(one.ranking) == pytest.approx(dict(other.ranking))


def test_a_category_that_comes_later_has_no_probability_before() -> None:
    wider = np.insert(PROBABILITIES[4:] * 0.8, 1, 0.2, axis=1)  # a, aa, b
    batches = [a_batch(slice(4)), a_batch(slice(4, 7), categories=("a", "aa", "b"), fused=wider)]
    found = together(alone(), batches, 3)
    assert [dict(one.ranking)["aa"] for one in found[:4]] == [0] * 4
    assert all(0.05 < dict(one.ranking)["aa"] < 0.3 for one in found[4:])
    assert [sum(p for _, p in one.ranking) for one in found] == pytest.approx([1] * 7)


def test_without_reference_images_nothing_changes() -> None:
    assert together(alone(), [a_batch(vectors={}, shares={})], 2) == alone()
    first, second = a_batch(slice(4), vectors={}, shares={}), a_batch(slice(4, 7))
    assert together(alone(), [first, second], 2) == alone()  # the first reference image came after the first batch


def test_an_encoder_counts_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def transduce(evidence: Any, vectors: Any, shares: Any, worth: float) -> Any:
        given.append((vectors, shares))
        return evidence

    monkeypatch.setattr(module, "transduce", transduce)
    views = {"clip": at(DEGREES), "dino": at([0] * 7)}
    batches = [
        a_batch(rows, vectors={name: view[rows] for name, view in views.items()}, shares={"clip": clip, "dino": 2.0})
        for rows, clip in ((slice(3), 1.0), (slice(3, 7), 3.0))
    ]
    together(alone(), batches, 2)
    ((vectors, shares),) = given
    np.testing.assert_array_equal(vectors[0], views["clip"])
    np.testing.assert_array_equal(vectors[1], views["dino"])
    assert shares.tolist() == [2.0, 2.0]


def test_neighbours_count_more_in_a_set_with_more_images_of_a_category(monkeypatch: pytest.MonkeyPatch) -> None:
    worth: list[float] = []

    def transduce(evidence: Any, vectors: Any, shares: Any, value: float) -> Any:
        worth.append(value)
        return evidence

    monkeypatch.setattr(module, "transduce", transduce)
    for fused, times in (([[0.5, 0.5]], 20), ([[1.0, 0.0]], 20), ([[1.0, 0.0], [0.0, 1.0]], 40), ([[0.5, 0.5]], 1)):
        n = len(fused) * times
        views = {"clip": np.ones((n, 1), dtype=np.float32)}
        set_of_images = a_batch(fused=np.array(fused * times), vectors=views)
        together([Prediction(source=str(i)) for i in range(n)], [set_of_images], 1)
    # 10, 20, 40 and half an image of each of the categories that the set seems to have
    assert worth == pytest.approx([5 * 10 / 20, 5 * 20 / 30, 5 * 40 / 50, 5 * 0.5 / 10.5])
