from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.method.material import logits, searched
from zsvec.method.calibration import LogLinear
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.novelty import distances, evidence_thresholds, image_novelty, is_unknown, novelty
from zsvec.method.predict.opinion_pool import pattern

NAN = np.nan


def test_novelty_is_one_half_at_the_threshold_and_falls_with_evidence() -> None:
    got = novelty(np.array([2.0, 2.0 + np.log(3), 2.0 - np.log(3), -1e4, 1e4]), np.full(5, 2.0))
    np.testing.assert_allclose(got, [0.5, 0.25, 0.75, 1.0, 0.0], atol=1e-12)


def test_unknown_is_above_the_threshold() -> None:
    got = is_unknown(np.array([0.5, np.nextafter(0.5, 1), 0.2, 0.9, NAN]), np.array([0.5, 0.5, 0.1, NAN, 0.5]))
    assert got.tolist() == [False, True, True, False, False]


def said(names: list[str], coverage: Any, pooled: Any, categories: str = "ab", **pool: Any) -> Logits:
    nearest = [()] * len(pooled)
    found: Any = SimpleNamespace(
        experts=[SimpleNamespace(name=name, modality=name.split(":")[1], nearest=nearest) for name in names],
        categories=tuple(categories),
    )
    return logits(np.array(coverage, dtype=bool), found=found, pooled=np.array(pooled), pool=LogLinear({}, **pool))


def test_categories_that_other_experts_cover_have_thresholds_of_their_own_however_many_experts() -> None:
    names = [f"e{i}:image" for i in range(70)]
    coverage = np.ones((70, 2), dtype=bool)
    coverage[64:, 1] = False
    thresholds = {pattern(names, coverage[:, 0]): 5.0, pattern(names, coverage[:, 1]): 1.0}
    # Of an image of each: below the one threshold, above the other.
    given = said(names, coverage, [[2.0, 0.0], [0.0, 2.0]], thresholds=thresholds)
    np.testing.assert_array_equal(evidence_thresholds(given, per_category=False), [5.0, 1.0])
    got = image_novelty(given, calibrated=True, unknown_above=None, per_category=False)
    assert got.unknown.tolist() == [True, False]
    assert got.novelty[0] > got.threshold[0]
    assert got.novelty[1] < got.threshold[1]


def test_images_are_ranked_by_the_experts_of_their_category() -> None:
    quantiles = {"x:image+x:text": [1.0, 2.0, 3.0], "x:text": [-1.0, 0.0, 1.0]}
    pooled = [[2.5, 0.0, -9.0], [0.5, 0.6, -9.0], [5.0, 0.0, -9.0], [0.5, 0.0, -9.0], [0.0, 0.0, 9.0]]
    given = said(TWO, COVERAGE, pooled, "abc", quantiles=quantiles)
    got = image_novelty(given, calibrated=True, unknown_above=None, per_category=False)
    np.testing.assert_array_equal(got.rank, [0.5, 0.5, 0.75, 0.0, NAN])
    got = image_novelty(given, calibrated=False, unknown_above=None, per_category=False)
    assert np.isnan(got.rank).all()


TWO = ["x:image", "x:text"]
# a is covered by both, b by the text alone, c by neither.
COVERAGE = [[1, 0, 0], [1, 1, 0]]
BY_PATTERN = {"x:image+x:text": 3.0, "x:text": 1.0}


def test_thresholds_of_categories() -> None:
    for per_category, own, expected in [
        (False, {"a": 7.0}, [3.0, 1.0, NAN]),
        (True, {"a": 7.0}, [7.0, 1.0, NAN]),
        (True, {"b": 2.0, "c": 4.0}, [3.0, 2.0, 4.0]),
        (True, {}, [3.0, 1.0, NAN]),
    ]:
        given = said(TWO, COVERAGE, [[0.0] * 3], "abc", thresholds=BY_PATTERN, category_thresholds=own)
        np.testing.assert_array_equal(evidence_thresholds(given, per_category=per_category), expected)


LN3 = np.log(3)


def test_novelty_of_images() -> None:
    for unknown_above, threshold, unknown in [
        (None, [0.5, 0.5, NAN], [True, False, False]),
        (0.0, [0.0, 0.0, 0.0], [True, True, True]),
        (0.2, [0.2, 0.2, 0.2], [True, True, True]),
        (0.8, [0.8, 0.8, 0.8], [False, False, False]),
        (1.0, [1.0, 1.0, 1.0], [False, False, False]),
    ]:
        # ln 3 below the threshold of a, ln 3 above that of b, and at the odds of three categories: c has no threshold.
        evidence = [[3 - LN3, 0, 0], [0, 1 + LN3, 0], [-9, -9, LN3]]
        given = said(TWO, COVERAGE, evidence, "abc", thresholds=BY_PATTERN)
        got = image_novelty(given, calibrated=True, unknown_above=unknown_above, per_category=False)
        np.testing.assert_allclose(got.novelty, [0.75, 0.25, 0.5], atol=1e-12)
        np.testing.assert_array_equal(got.threshold, threshold)
        assert got.unknown.tolist() == unknown


def test_without_a_calibration_there_is_no_novelty_and_nothing_is_unknown() -> None:
    for unknown_above in [None, 0.0, 0.5]:
        given = said(TWO, COVERAGE, [[-100.0] * 3] * 2, "abc")
        got = image_novelty(given, calibrated=False, unknown_above=unknown_above, per_category=True)
        np.testing.assert_array_equal(got.novelty, [NAN, NAN])
        np.testing.assert_array_equal(got.threshold, [NAN, NAN])
        assert got.unknown.tolist() == [False, False]
        np.testing.assert_array_equal(got.distance, [2.0, 2.0])  # nothing was found


def test_the_distance_is_that_under_the_encoder_that_sees_the_image_farthest() -> None:
    experts = {
        "x:image": {"a": {"1": (1.0, 0.0), "2": (0.6, 0.8)}},
        "y:image": {"a": {"3": (1.0, 0.0)}, "b": {"4": (-0.6, -0.8)}},
        "y:text": {"b": {"t": (-1.0, 0.0)}},  # texts do not count where there are images
    }
    x, y = np.array([[1, 0], [0, 1], [1, 0]]), np.array([[0, 1], [1, 0], [-1, 0]])
    # The largest cosines are 1, 0.8, 1 under x, and 0, 1, 0.6 under y.
    np.testing.assert_allclose(distances(searched(experts, {"x": x, "y": y})), [1.0, 0.2, 0.4], atol=1e-6)


def test_the_distance_is_that_to_a_text_where_there_are_no_images() -> None:
    experts = {"x:text": {"a": {"t": (0.6, 0.8)}}}
    found = searched(experts, {"x": np.array([[1, 0], [0, 1], [-0.6, -0.8]])})
    np.testing.assert_allclose(distances(found), [0.4, 0.2, 2.0], atol=1e-6)
