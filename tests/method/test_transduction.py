from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import coloured, fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.method.scenes import TWIN
from zsvec.method.scoring import Scoring
from zsvec.method.transduction import ANCHOR, Prototypes, transduce
from zsvec.types import Prediction

ROUNDS = 5

prop = settings(deadline=None, max_examples=40)


@dataclass(frozen=True)
class Expert:
    """What `Prototypes` sums up.

    Attributes:
        coefficient: Nats per unit of cosine.
        references: By column of the evidence, ``(n_references, dim)``, unit rows.
        images: ``(n_images, dim)``, unit rows.
    """

    coefficient: float
    references: dict[int, np.ndarray]
    images: np.ndarray

    def prototypes(self) -> Prototypes:
        covered = sorted(self.references)
        vectors = [self.references[c].astype(np.float32) for c in covered]
        images = self.images.astype(np.float32)
        return Prototypes(
            coefficient=self.coefficient,
            categories=np.array(covered, dtype=np.intp),
            counts=np.array([len(rows) for rows in vectors], dtype=np.intp),
            means=np.stack([(images @ rows.T).mean(axis=1) for rows in vectors], axis=1),
            norms=np.array([np.linalg.norm(rows.mean(axis=0)) for rows in vectors], dtype=np.float32),
            gram=images @ images.T,
        )


def unit(vectors: Any) -> np.ndarray:
    rows = np.array(vectors, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def copies_of(i: int, images: np.ndarray) -> set[int]:
    """The image, its copies, and theirs."""
    found = {i}
    while more := {j for j in range(len(images)) for k in found if float(images[j] @ images[k]) >= TWIN} - found:
        found |= more
    return found


def slowly(evidence: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    """The same by moving every prototype for every image, one vector at a time; copies of the image do not move it."""
    n_images, n_categories = evidence.shape
    moved = evidence.copy()
    for _ in range(ROUNDS):
        assigned = np.zeros(evidence.shape)
        for i in range(n_images):
            likelihood = [np.exp(moved[i, c] - moved[i].max()) for c in range(n_categories)]
            for c in range(n_categories):
                assigned[i, c] = likelihood[c] / sum(likelihood)
        moved = evidence.copy()
        for expert in experts:
            for c, references in expert.references.items():
                cap = min(1.0, ANCHOR * len(references) / sum(assigned[:, c]))
                before = np.sum(references, axis=0)
                for i in range(n_images):
                    after = before.copy()
                    for j in range(n_images):
                        if j not in copies_of(i, expert.images):
                            after += cap * assigned[j, c] * expert.images[j]
                    moved[i, c] += expert.coefficient * (
                        cosine(expert.images[i], after) - cosine(expert.images[i], before)
                    )
    return moved


def fast(evidence: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    return transduce(evidence, [expert.prototypes() for expert in experts])


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, list[Expert]]:
    """Evidence, and the experts that compare images; some cover only some categories."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_images, n_categories = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    evidence = rng.normal(scale=draw(st.sampled_from([0.1, 3.0, 30.0])), size=(n_images, n_categories))
    experts = []
    for _ in range(draw(st.integers(1, 3))):
        dim = draw(st.integers(3, 8))
        centres = rng.normal(size=(n_categories, dim))
        covered = draw(st.sets(st.integers(0, n_categories - 1)))
        experts.append(
            Expert(
                coefficient=draw(st.sampled_from([0.5, 5.0])),
                references={
                    c: unit(centres[c] + 0.5 * rng.normal(size=(draw(st.integers(1, 3)), dim))) for c in sorted(covered)
                },
                images=unit(centres[rng.integers(n_categories, size=n_images)] + rng.normal(size=(n_images, dim))),
            )
        )
    return evidence, [expert for expert in experts if expert.references]


@prop
@given(batches())
def test_it_is_what_moving_the_prototypes_gives(case: tuple[np.ndarray, list[Expert]]) -> None:
    evidence, experts = case
    before = evidence.copy()
    got = fast(evidence, experts)
    np.testing.assert_allclose(got, slowly(evidence, experts), atol=2e-4)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(evidence, before)


@prop
@given(batches())
def test_an_image_alone_is_left_as_it_is(case: tuple[np.ndarray, list[Expert]]) -> None:
    evidence, experts = case
    alone = [replace(expert, images=expert.images[:1]) for expert in experts]
    np.testing.assert_allclose(fast(evidence[:1], alone), evidence[:1], atol=1e-5)


@prop
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(case: tuple[np.ndarray, list[Expert]], random: Any) -> None:
    evidence, experts = case
    order = list(range(len(evidence)))
    random.shuffle(order)
    shuffled = [replace(expert, images=expert.images[order]) for expert in experts]
    np.testing.assert_allclose(fast(evidence[order], shuffled), fast(evidence, experts)[order], atol=2e-4)


def test_no_expert_and_no_image() -> None:
    evidence = np.array([[1.0, 2.0], [0.0, -np.inf]])
    np.testing.assert_array_equal(transduce(evidence, []), evidence)
    assert fast(np.empty((0, 2)), [Expert(1.0, {0: at(0)}, np.empty((0, 2)))]).shape == (0, 2)


def test_a_category_that_nobody_covers_stays_impossible() -> None:
    expert = Expert(5.0, {0: at(0), 2: at(90)}, at(10, 20, 80))
    evidence = np.array([[2.0, -np.inf, 0.0], [2.0, -np.inf, 0.0], [0.0, -np.inf, 2.0]])
    got = fast(evidence, [expert])
    assert (got[:, 1] == -np.inf).all()
    assert np.isfinite(got[:, [0, 2]]).all()
    assert (got[:, [0, 2]] != evidence[:, [0, 2]]).all()


def test_a_batch_with_a_shift_is_answered_rightly() -> None:
    # Everything is turned by some 20 degrees: an image of a at 50 is nearer to the reference of b.
    expert = Expert(30.0, {0: at(0), 1: at(90)}, at(15, 20, 25, 50, 95, 105, 110))
    truth = [0, 0, 0, 0, 1, 1, 1]
    evidence = 30.0 * expert.images @ np.concatenate([at(0), at(90)]).T
    assert evidence.argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert fast(evidence, [expert]).argmax(axis=1).tolist() == truth


def test_an_image_that_is_far_from_all_is_left_as_it_is() -> None:
    near = np.hstack([at(10, 20, 80, 100), np.zeros((4, 1))])
    stranger = np.array([[0.0, 0.0, 1.0]])
    corners = np.eye(3)
    expert = Expert(20.0, {0: corners[:1], 1: corners[1:2]}, np.concatenate([near, stranger]))
    evidence = 20.0 * expert.images @ corners[:2].T
    got = fast(evidence, [expert])
    np.testing.assert_allclose(got[-1], evidence[-1], atol=1e-5)
    assert np.abs(got[:-1] - evidence[:-1]).max(axis=1).min() > 0.05
    assert got.argmax(axis=1)[:-1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("references", [1, 4])
def test_however_many_images_weigh_little_more_than_the_references(references: int) -> None:
    # All images are 40 degrees from the references and about 12 from each other, so none is a copy of another. All
    # are surely of the one category: its prototype is that of `ANCHOR` more for each reference.
    n, spread = 1000, 0.2
    axis = np.eye(1, n + 2)[0] * np.cos(np.radians(40)) + np.eye(1, n + 2, 1)[0] * np.sin(np.radians(40))
    own = np.hstack([np.zeros((n, 2)), np.eye(n)])  # of each image, at right angles to all else
    images = np.cos(spread) * axis + np.sin(spread) * own
    expert = Expert(1.0, {0: np.repeat(np.eye(1, n + 2), references, axis=0)}, images)
    got = fast(np.zeros((n, 1)), [expert])
    # The images' mean is cos(spread) * axis, but for what is their own and vanishes in it.
    prototype = np.eye(1, n + 2)[0] + ANCHOR * np.cos(spread) * axis
    expected = cosine(images[0], prototype) - cosine(images[0], np.eye(1, n + 2)[0])
    np.testing.assert_allclose(got, expected, atol=3e-3)
    few = fast(np.zeros((2, 1)), [replace(expert, images=expert.images[:2])])
    assert 0.01 < few[0, 0] < got[0, 0]


@pytest.mark.parametrize("n", [2, 32, 2000])
def test_copies_are_answered_as_one_image_is(n: int) -> None:
    expert = Expert(20.0, {0: at(0, 10), 1: at(90)}, np.repeat(at(40), n, axis=0))
    evidence = np.tile([1.0, 0.5], (n, 1))
    np.testing.assert_allclose(fast(evidence, [expert]), evidence, atol=1e-4)


def test_copies_vouch_for_others_but_not_for_each_other() -> None:
    expert = Expert(5.0, {0: at(0), 1: at(90)}, at(30, 30, 30, 55))
    evidence = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.1, 0.0]])
    got = fast(evidence, [expert])
    np.testing.assert_allclose(got, slowly(evidence, [expert]), atol=2e-4)
    assert got[3, 0] - got[3, 1] > evidence[3, 0] - evidence[3, 1]


@pytest.mark.parametrize(("closeness", "vouches"), [(TWIN - 1e-3, True), (TWIN + 1e-3, False)])
def test_from_which_cosine_an_image_is_a_copy(closeness: float, vouches: bool) -> None:
    degrees = float(np.degrees(np.arccos(closeness)))
    expert = Expert(5.0, {0: at(0)}, at(40, 40 + degrees))
    evidence = np.zeros((2, 1))
    assert (np.abs(fast(evidence, [expert])) > 1e-2).all() == vouches
    np.testing.assert_allclose(fast(evidence, [expert]), slowly(evidence, [expert]), atol=2e-4)


@pytest.mark.parametrize("nearly", [0.0, 1e-8, 1e-6])
def test_references_that_point_in_opposite_directions_move_nothing_far(nearly: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        half = unit(rng.normal(size=(2, 8)))
        opposite = unit(-half + nearly * rng.normal(size=half.shape))
        expert = Expert(10.0, {0: np.concatenate([half, opposite]), 1: half}, unit(rng.normal(size=(4, 8))))
        evidence = rng.normal(size=(4, 2))
        # A cosine changes by 2 at most.
        assert np.abs(fast(evidence, [expert]) - evidence).max() <= 2 * expert.coefficient + 1e-3


# ---- as a strategy of fusion


def answers(folder: Path, images: Sequence[Any], *, alone: bool, **settings: Any) -> list[Prediction]:
    with open_classifier(folder, **settings) as clf:
        if alone:
            return [clf.classify(image, top_k=10) for image in images]
        return clf.classify(list(images), top_k=10)


def fill(folder: Path, **settings: Any) -> None:
    with open_classifier(folder, **settings) as clf:
        for colour in ("red", "green", "blue"):
            clf.add_category(colour, [f"all {colour}"], [coloured(colour, seed) for seed in range(3)])
        clf.add_category("cat", ["a feline"])


IMAGES = [coloured(colour, 100 + i) for i, colour in enumerate(["red", "orange", "blue", "white", "purple", "purple"])]


def rankings(predictions: Sequence[Prediction]) -> list[dict[str, float]]:
    return [dict(prediction.ranking) for prediction in predictions]


@pytest.mark.parametrize("calibration", ["auto", "off"])
@pytest.mark.parametrize("index", ["memory", "qdrant"])
@pytest.mark.parametrize("aggregation", ["top_mean", "prototype"])
def test_one_image_is_answered_as_without_it(calibration: str, index: str, aggregation: str) -> None:
    options = {"calibration": calibration, "index": index, "aggregation": aggregation}
    with fast_folder() as folder:
        fill(folder, **options)
        alone = answers(folder, IMAGES, alone=True, fusion="transductive", **options)
        others = answers(folder, IMAGES, alone=True, fusion="log_linear_views", **options)
        together = answers(folder, IMAGES, alone=False, fusion="transductive", **options)
    for one, other in zip(rankings(alone), rankings(others), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert [p.label for p in alone] == [p.label for p in others]
    assert any(
        one != pytest.approx(other, abs=1e-3) for one, other in zip(rankings(together), rankings(alone), strict=True)
    )


@pytest.mark.parametrize("calibration", ["auto", "off"])
def test_a_batch_that_is_not_compared_with_everything_is_answered_as_without_it(calibration: str) -> None:
    options = {"calibration": calibration, "index": "qdrant", "neighbors": 2}
    with fast_folder() as folder:
        fill(folder, calibration=calibration)
        together = answers(folder, IMAGES, alone=False, fusion="transductive", **options)
        others = answers(folder, IMAGES, alone=False, fusion="log_linear_views", **options)
    assert together == others


def test_both_searches_give_a_batch_the_same_answer() -> None:
    with fast_folder() as folder:
        fill(folder)
        by = [
            answers(folder, IMAGES, alone=False, fusion="transductive", index=index) for index in ("memory", "qdrant")
        ]
    for one, other in zip(*map(rankings, by), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_a_batch_of_copies_is_answered_as_the_single_image_is(index: str) -> None:
    with fast_folder() as folder:
        fill(folder)
        singles = answers(folder, IMAGES, alone=True, fusion="transductive", index=index)
        batches = [answers(folder, [image] * 32, alone=False, fusion="transductive", index=index) for image in IMAGES]
    for single, copies in zip(singles, batches, strict=True):
        assert len(copies) == 32
        for prediction in copies:
            assert prediction.label == single.label
            assert dict(prediction.ranking) == pytest.approx(dict(single.ranking), abs=1e-3)


def test_novelty_is_that_of_the_image_alone() -> None:
    with fast_folder() as folder:
        fill(folder)
        together = answers(folder, IMAGES, alone=False, fusion="transductive")
        others = answers(folder, IMAGES, alone=False, fusion="log_linear_views")
    assert [p.novelty for p in together] == pytest.approx([p.novelty for p in others])


def test_only_experts_that_compare_images_with_images_are_asked() -> None:
    with fast_folder() as folder, open_classifier(folder) as clf:
        clf.add_category("cat", ["a feline"])
        clf.add_category("dog", ["a canine"])
        queries: dict[str, Any] = {"clip": at(10, 20) @ np.eye(2, 32), "dino": at(10, 20) @ np.eye(2, 16)}
        found = clf._searcher.search(queries, 1)
        scores = [
            Scoring(temperatures={"clip:text": 0.1}, fusion=fusion).scores(found).fused
            for fusion in ("transductive", "log_linear_views")
        ]
    np.testing.assert_array_equal(scores[0], scores[1])
