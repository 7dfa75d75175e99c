from __future__ import annotations

import numpy as np
import pytest

from tests.method.material import METHODS, Vectors, calibrated, clusters, pools, searched, texts
from zsvec.method.calibration import LOG_COUNT
from zsvec.method.predict.scoring import Scoring


def uneven(rng: np.random.Generator, most: int = 40) -> tuple[Vectors, np.ndarray, np.ndarray]:
    """References of twelve categories, 3 or many of each; and other images of the same categories, as many of each."""
    centres = rng.normal(size=(12, 16))
    images: dict[str, dict[str, list[float]]] = {}
    queries, truth = [], []
    for c, centre in enumerate(centres):
        count = 3 if c % 2 else most
        vectors = 0.45 * centre + rng.normal(size=(count + 40, 16))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        images[f"{c:02d}"] = {f"{c:02d}-{i:03d}": vector.tolist() for i, vector in enumerate(vectors[:count])}
        queries.append(vectors[count:])
        truth += [c] * 40
    return images, np.concatenate(queries), np.array(truth)


@pytest.mark.parametrize("aggregation", ["top_mean", "max"])
def test_categories_of_few_references_are_answered_as_often_as_others(aggregation: str) -> None:
    shares, bare = [], []
    for seed in range(5):
        images, queries, truth = uneven(np.random.default_rng(seed))
        made, _ = calibrated({"clip:image": images}, aggregation)
        found = searched({"clip:image": images}, {"clip": queries}, calibration=made)
        scoring = Scoring(temperatures={"clip:image": 0.07}, aggregation=aggregation, fusion="log_linear_views")
        answers = scoring.scores(found).fused.argmax(axis=1)
        shares.append(np.mean(answers % 2))
        bare.append(np.mean(found.experts[0].similarities.aggregate(aggregation, 5).argmax(axis=1) % 2))
        assert made.aggregations.coefficients["clip:image"][LOG_COUNT] < 0
        assert np.mean(answers == truth) > 0.3
    assert np.mean(bare) < 0.3  # half of the images are of these categories
    assert np.mean(shares) == pytest.approx(0.5, abs=0.12)


def test_equal_numbers_have_no_offset() -> None:
    for aggregation in METHODS:
        rng = np.random.default_rng(6)
        experts = {"clip:image": clusters(rng, dict.fromkeys("abc", 8), 1.0), "clip:text": texts(rng, "abc")}
        made, _ = calibrated(experts, aggregation)
        for pool in pools(made):
            assert all(LOG_COUNT not in by_name for by_name in pool.coefficients.values())


def test_a_category_that_has_no_image_is_not_one_of_few_images() -> None:
    # The evidence is neutral, independent of the offset of other categories.
    rng = np.random.default_rng(7)
    images, queries, _ = uneven(rng)
    words = texts(rng, [*images, "text alone"])
    made, _ = calibrated({"clip:image": images, "clip:text": words})
    found = searched({"clip:image": images, "clip:text": words}, {"clip": queries}, calibration=made)
    fused = Scoring(temperatures={"clip:image": 0.07, "clip:text": 0.07}).scores(found).fused
    assert np.isfinite(fused).all()
    assert 0 < fused[:, -1].mean() < 0.3


def test_an_offset_is_no_part_of_the_share_of_an_expert() -> None:
    images, _, _ = uneven(np.random.default_rng(8))
    made, _ = calibrated({"clip:image": images})
    by_name = dict(made.plain.coefficients["clip:image"])
    assert by_name.pop(LOG_COUNT)
    assert made.plain.shares["clip:image"] == pytest.approx(
        sum(by_name.values()) * made.experts["clip:image"].spread, rel=1e-6
    )


def test_a_category_of_one_image_is_not_learned_to_be_never_right() -> None:
    # No image of this category can be left out. As a wrong answer to all others, its mean probability was 0.05.
    shares = []
    for seed in range(5):
        images, queries, truth = uneven(np.random.default_rng(seed))
        many = {name: vectors for name, vectors in images.items() if len(vectors) > 3}
        experts = {"clip:image": {**many, "one": dict(list(images["01"].items())[:1])}}
        made, _ = calibrated(experts)
        found = searched(experts, {"clip": queries[truth == 1]}, calibration=made)
        fused = Scoring(temperatures={"clip:image": 0.07}).scores(found).fused
        shares.append(fused[:, found.categories.index("one")].mean())
        assert made.classwise is not None
        assert LOG_COUNT not in made.classwise.coefficients["clip:image"]  # the other categories have equal numbers
    assert np.mean(shares) > 0.12
