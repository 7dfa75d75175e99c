from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import coloured, fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.method.predict import transduction
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.scoring import Scoring
from zsvec.method.predict.transduction import NEIGHBORS, WORTH, transduce
from zsvec.method.quality.scenes import TWIN
from zsvec.types import Prediction

ROUNDS = 10

prop = settings(deadline=None, max_examples=40)


def unit(vectors: Any) -> np.ndarray:
    rows = np.array(vectors, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def sure(evidence: np.ndarray) -> float:
    """Mean confidence."""
    return float(softmax(evidence).max(axis=1).mean())


def smoothed(evidence: Any, views: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    vectors = [np.asarray(view, dtype=np.float32) for view in views]
    return transduce(np.array(evidence, dtype=np.float64), vectors, np.array(shares, dtype=np.float64))


def pictures(views: Sequence[np.ndarray]) -> list[list[int]]:
    """Images that are copies by all views, and copies of copies."""
    vectors = [view.astype(np.float32) for view in views]
    left, out = set(range(len(views[0]))), []
    while left:
        found = [left.pop()]
        for i in found:
            more = {j for j in left if all(float(v[i] @ v[j]) >= TWIN for v in vectors)}
            found += sorted(more)
            left -= more
        out.append(sorted(found))
    return sorted(out)


def slowly(evidence: np.ndarray, views: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """The evidence before rescaling, one picture after the other."""
    groups = pictures(views)
    n, n_categories = len(groups), evidence.shape[1]
    mass = [[np.mean([softmax(evidence)[i, c] for i in group]) for c in range(n_categories)] for group in groups]
    importance = [sum(one[c] / max(1, sum(other[c] for other in mass)) for c in range(n_categories)) for one in mass]
    graph = np.zeros((n, n))
    for view, share in zip(views, shares, strict=True):
        means = [np.mean([view[i].astype(np.float32) for i in group], axis=0, dtype=np.float64) for group in groups]
        centre = sum(w * mean for w, mean in zip(importance, means, strict=True)) / sum(importance)
        for p in range(n):
            others = sorted((-cosine(means[p] - centre, means[q] - centre), q) for q in range(n) if q != p)
            for negative, q in others[:NEIGHBORS]:
                graph[p, q] += share**2 / sum(s**2 for s in shares) * max(0, -negative) / NEIGHBORS
    moved = evidence
    for _ in range(ROUNDS):
        z = [np.mean([softmax(moved)[i] for i in group], axis=0) for group in groups]
        after = evidence.copy()
        for p, group in enumerate(groups):
            for i in group:
                after[i] += WORTH * sum(graph[p, q] * z[q] for q in range(n))
        moved = after
    return moved


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Evidence, vectors of the images by encoder, and the shares of these; some images are copies."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_categories = draw(st.integers(2, 12)), draw(st.integers(2, 4))
    evidence = rng.normal(scale=draw(st.sampled_from([0.1, 3.0, 10.0])), size=(n, n_categories))
    original = np.where(rng.random(n) < 0.2, rng.integers(n, size=n), np.arange(n))
    views = [unit(rng.normal(size=(n, draw(st.integers(3, 8)))))[original] for _ in range(draw(st.integers(1, 3)))]
    return evidence, views, [draw(st.sampled_from([0.2, 1.0, 3.0])) for _ in views]


@prop
@given(batches(), st.sampled_from([1, 2, 5, 256]))
def test_equals_one_picture_after_the_other(case: tuple[np.ndarray, list[np.ndarray], list[float]], block: int) -> None:
    evidence, views, shares = case
    before = evidence.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transduction, "_BLOCK", block)
        got = smoothed(evidence, views, shares)
    if len(pictures(views)) == 1:
        np.testing.assert_array_equal(got, evidence)
        return
    expected = slowly(evidence, views, shares)
    # One factor keeps the mean confidence of the batch.
    factor = float((got * expected).sum() / (expected**2).sum())
    assert factor > 0
    np.testing.assert_allclose(got, factor * expected, atol=1e-4 * np.abs(expected).max())
    assert sure(got) == pytest.approx(sure(evidence), abs=1e-6)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(evidence, before)


@prop
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(
    case: tuple[np.ndarray, list[np.ndarray], list[float]], random: Any
) -> None:
    evidence, views, shares = case
    order = list(range(len(evidence)))
    random.shuffle(order)
    shuffled = smoothed(evidence[order], [view[order] for view in views], shares)
    np.testing.assert_allclose(shuffled, smoothed(evidence, views, shares)[order], atol=1e-6)


@prop
@given(batches())
def test_an_image_alone_is_left_as_it_is(case: tuple[np.ndarray, list[np.ndarray], list[float]]) -> None:
    evidence, views, shares = case
    np.testing.assert_array_equal(smoothed(evidence[:1], [view[:1] for view in views], shares), evidence[:1])


def test_by_hand() -> None:
    # Two pairs on opposite sides of their centre: each image has one neighbour, at 20 degrees. The difference of
    # the evidence of the two categories is 1 for one image of each pair, and 0 for the other.
    pairs = at(10, -10, 170, 190)
    got = smoothed([[1, 0], [0, 0], [0, 1], [0, 0]], [pairs], [1.0])
    worth = WORTH * np.cos(np.radians(20)) / NEIGHBORS
    u, v = 1.0, 0.0
    for _ in range(ROUNDS):
        u, v = 1 + worth * np.tanh(v / 2), worth * np.tanh(u / 2)  # tanh(x / 2) = p - (1 - p)
    differences = got[:, 0] - got[:, 1]
    assert differences[0] / differences[1] == pytest.approx(u / v)
    np.testing.assert_allclose(differences[:2], -differences[2:])
    confidence = 1 / (1 + np.exp(-differences[:2]))
    assert confidence.mean() == pytest.approx((1 / (1 + np.exp(-1)) + 1 / 2) / 2)
    assert differences[1] > 0.1


def test_no_image() -> None:
    assert smoothed(np.empty((0, 2)), [np.empty((0, 2))], [1.0]).shape == (0, 2)


def test_an_uncovered_category_stays_impossible() -> None:
    evidence = np.array([[2.0, -np.inf, 0.0], [1.0, -np.inf, 0.0], [0.0, -np.inf, 2.0]])
    got = smoothed(evidence, [at(10, 25, 180)], [1.0])
    assert (got[:, 1] == -np.inf).all()
    assert np.isfinite(got[:, [0, 2]]).all()
    assert sure(got) == pytest.approx(sure(evidence))


def test_an_image_follows_its_agreeing_neighbours() -> None:
    crowd = at(0, 10, 20, 30, 40, 160, 170, 180, 190, 200)
    evidence = np.repeat([[2.0, 0.0], [0.0, 2.0]], 5, axis=0)
    evidence[2] = [0.0, 0.5]
    assert smoothed(evidence, [crowd], [1.0]).argmax(axis=1).tolist() == [0] * 5 + [1] * 5


def test_an_image_that_is_far_from_all_takes_nothing() -> None:
    near = unit(np.hstack([at(10, 25, 155, 170), np.full((4, 1), -0.2)]))
    views = [np.concatenate([near, [[0.0, 0.0, 1.0]]])]
    evidence = np.array([[2.0, 0], [1, 0], [0, 1], [0, 2], [0.3, 0.0]])
    got = smoothed(evidence, views, [1.0])
    ratio = (got[:, 0] - got[:, 1]) / (evidence[:, 0] - evidence[:, 1])
    assert (ratio[:4] > 1.05 * ratio[4]).all()  # but for the factor of the batch
    np.testing.assert_allclose(got[4], ratio[4] * evidence[4])


def test_an_encoder_that_tells_nothing_of_categories_is_not_asked() -> None:
    rng = np.random.default_rng(0)
    evidence, views = rng.normal(size=(8, 3)), [unit(rng.normal(size=(8, 5))) for _ in range(2)]
    one = smoothed(evidence, views[:1], [1.0])
    np.testing.assert_allclose(smoothed(evidence, views, [1.0, 0.0]), one)
    np.testing.assert_allclose(smoothed(evidence, views, [1.0, 1e-3]), one, atol=1e-5)
    assert np.abs(smoothed(evidence, views, [1.0, 1.0]) - one).max() > 0.01
    np.testing.assert_allclose(smoothed(evidence, views, [0.0, 0.0]), evidence)


def test_copies_are_answered_as_one_image_is() -> None:
    for n in [2, 32, 500]:
        evidence = np.tile([1.0, 0.5], (n, 1))
        np.testing.assert_array_equal(smoothed(evidence, [np.repeat(at(40), n, axis=0)], [1.0]), evidence)


def test_copies_count_once_for_others_and_not_for_each_other() -> None:
    views, evidence = at(0, 30, 180), np.array([[2.0, 0.3], [0.1, 0.2], [0.3, 2.0]])
    once = smoothed(evidence, [views], [1.0])
    copied = [0] * 20 + [1, 2]
    often = smoothed(evidence[copied], [views[copied]], [1.0])
    # The mean confidence is over more images; ratios stay the same.
    np.testing.assert_allclose(often[[0, 20, 21]] / once, often[0, 0] / once[0, 0], rtol=1e-9)
    np.testing.assert_allclose(often[:20], often[[0] * 20])


def test_from_which_cosine_an_image_is_a_copy() -> None:
    for closeness, vouches in [(TWIN - 1e-3, True), (TWIN + 1e-3, False)]:
        degrees = float(np.degrees(np.arccos(closeness)))
        evidence = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
        got = smoothed(evidence, [at(0, degrees, 180)], [1.0])
        assert (got[1, 0] - got[1, 1] > 0.1) == vouches
        # A copy is a copy for all encoders.
        both = smoothed(evidence, [at(0, degrees, 180), at(0, 90, 180)], [1.0, 0.0])
        assert both[1, 0] - both[1, 1] > 0.1


def test_frequent_and_rare_categories_both_gain() -> None:
    """Clusters of two categories, of which one may be frequent, with evidence that is weak and often wrong."""
    for shares in [[0.9, 0.1], [0.5, 0.5]]:
        rng = np.random.default_rng(1)
        before, after, rare_before, rare_after = [], [], [], []
        for _ in range(20):
            truth = rng.choice(2, 200, p=shares)
            views = [unit(rng.normal(size=(2, 16))[truth] + 0.5 * rng.normal(size=(200, 16)))]
            evidence = np.eye(2)[truth] + rng.normal(size=(200, 2))
            got = smoothed(evidence, views, [1.0])
            for found, every, rare in ((evidence, before, rare_before), (got, after, rare_after)):
                right = found.argmax(axis=1) == truth
                every.append(right.mean())
                rare.append(right[truth == 1].mean())
        assert np.mean(after) > np.mean(before) + 0.05
        assert np.mean(rare_after) > np.mean(rare_before)


# ---- as a strategy of fusion


def answers(folder: Path, images: Sequence[Any], *, alone: bool, **settings: Any) -> list[Prediction]:
    with open_classifier(folder, **settings) as clf:
        if alone:
            return [clf.classify(image, top_k=10) for image in images]
        return clf.classify(list(images), top_k=10)


def fill(folder: Path, **settings: Any) -> None:
    with open_classifier(folder, **settings) as clf:
        for colour in ("red", "green", "blue"):
            clf.add_category(colour, texts=[f"all {colour}"], images=[coloured(colour, seed) for seed in range(2)])
        clf.add_category("cat", texts=["a feline"])


IMAGES = [coloured(colour, 100 + i) for i, colour in enumerate(["red", "orange", "blue", "white", "purple", "purple"])]


def rankings(predictions: Sequence[Prediction]) -> list[dict[str, float]]:
    return [dict(prediction.ranking) for prediction in predictions]


@pytest.mark.parametrize("calibration", ["auto", "off"])
@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_one_image_is_answered_as_without_it(calibration: str, index: str) -> None:
    for aggregation in ["top_mean", "prototype"]:
        options = {"calibration": calibration, "index": index, "aggregation": aggregation}
        with fast_folder() as folder:
            fill(folder, **options)
            alone = answers(folder, IMAGES, alone=True, fusion="transductive", **options)
            others = answers(folder, IMAGES, alone=True, fusion="log_linear_gda", **options)
            together = answers(folder, IMAGES, alone=False, fusion="transductive", **options)
        for one, other in zip(rankings(alone), rankings(others), strict=True):
            assert one == pytest.approx(other, abs=1e-6)
        assert [p.label for p in alone] == [p.label for p in others]
        assert any(
            one != pytest.approx(other, abs=1e-4)
            for one, other in zip(rankings(together), rankings(alone), strict=True)
        )


@pytest.mark.parametrize("calibration", ["auto", "off"])
def test_a_batch_that_is_not_compared_with_everything(calibration: str) -> None:
    options = {"calibration": calibration, "index": "qdrant", "neighbors": 2}
    with fast_folder() as folder:
        fill(folder, calibration=calibration)
        together = answers(folder, IMAGES, alone=False, fusion="transductive", **options)
        alone = answers(folder, IMAGES, alone=True, fusion="transductive", **options)
        others = answers(folder, IMAGES, alone=False, fusion="log_linear", **options)
    assert {prediction.fusion for prediction in together} == {"transductive"}
    for one, other in zip(rankings(alone), rankings(others), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert any(
        one != pytest.approx(other, abs=1e-4) for one, other in zip(rankings(together), rankings(alone), strict=True)
    )


def test_novelty_is_that_of_the_image_alone() -> None:
    with fast_folder() as folder:
        fill(folder)
        together = answers(folder, IMAGES, alone=False, fusion="transductive")
        others = answers(folder, IMAGES, alone=False, fusion="log_linear_views")
    assert [p.novelty for p in together] == pytest.approx([p.novelty for p in others])


def test_only_experts_that_compare_images_with_images_are_asked() -> None:
    with fast_folder() as folder, open_classifier(folder) as clf:
        clf.add_category("cat", texts=["a feline"])
        clf.add_category("dog", texts=["a canine"])
        queries: dict[str, Any] = {"clip": at(10, 20) @ np.eye(2, 32), "dino": at(10, 20) @ np.eye(2, 16)}
        found = clf._searcher.search(queries, 1)
        scores = [
            Scoring(temperatures={"clip:text": 0.1}, fusion=fusion).scores(found).fused
            for fusion in ("transductive", "log_linear_views")
        ]
    np.testing.assert_array_equal(scores[0], scores[1])
