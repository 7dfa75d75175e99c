from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from tests.method.material import logits, searched
from zsvec.method.calibration import Calibration, ExpertCalibration, LogLinear
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.novelty import (
    OFFSET,
    SLOPE,
    WORD_OFFSET,
    WORD_SLOPE,
    distances,
    early_thresholds,
    evidence_thresholds,
    image_novelty,
    is_unknown,
    largest_probability,
    novelty,
    prior_novelty,
    prior_odds,
    word_deviations,
)
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


def untold(given: Logits) -> Any:
    return np.full(len(given.pooled), NAN)


def test_categories_that_other_experts_cover_have_thresholds_of_their_own_however_many_experts() -> None:
    names = [f"e{i}:image" for i in range(70)]
    coverage = np.ones((70, 2), dtype=bool)
    coverage[64:, 1] = False
    thresholds = {pattern(names, coverage[:, 0]): 5.0, pattern(names, coverage[:, 1]): 1.0}
    # Of an image of each: below the one threshold, above the other.
    given = said(names, coverage, [[2.0, 0.0], [0.0, 2.0]], thresholds=thresholds)
    np.testing.assert_array_equal(evidence_thresholds(given, per_category=False), [5.0, 1.0])
    got = image_novelty(given, prior=untold(given), words=untold(given), unknown_above=None, per_category=False)
    assert got.unknown.tolist() == [True, False]
    assert got.novelty[0] > got.threshold[0]
    assert got.novelty[1] < got.threshold[1]


def test_images_are_ranked_by_the_experts_of_their_category() -> None:
    quantiles = {"x:image+x:text": [1.0, 2.0, 3.0], "x:text": [-1.0, 0.0, 1.0]}
    pooled = [[2.5, 0.0, -9.0], [0.5, 0.6, -9.0], [5.0, 0.0, -9.0], [0.5, 0.0, -9.0], [0.0, 0.0, 9.0]]
    given = said(TWO, COVERAGE, pooled, "abc", quantiles=quantiles)
    got = image_novelty(given, prior=untold(given), words=untold(given), unknown_above=None, per_category=False)
    np.testing.assert_array_equal(got.rank, [0.5, 0.5, 0.75, 0.0, NAN])
    got = image_novelty(given, prior=None, words=untold(given), unknown_above=None, per_category=False)
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
        got = image_novelty(
            given, prior=untold(given), words=untold(given), unknown_above=unknown_above, per_category=False
        )
        np.testing.assert_allclose(got.novelty, [0.75, 0.25, 0.5], atol=1e-12)
        np.testing.assert_array_equal(got.threshold, threshold)
        assert got.unknown.tolist() == unknown


def test_the_prior_holds_where_no_threshold_is_learned() -> None:
    # a has a threshold; b and c have none, and c has no reference image.
    evidence = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    prior = np.array([0.9, 0.9, 0.2, NAN])
    given = said(TWO, COVERAGE, evidence, "abc", thresholds={"x:image+x:text": 3.0})
    got = image_novelty(given, prior=prior, words=untold(given), unknown_above=None, per_category=False)
    np.testing.assert_allclose(got.novelty, [1 / (1 + np.exp(6)), 0.9, 0.2, 1 / (1 + np.exp(9 - LN3))])
    np.testing.assert_array_equal(got.threshold, [0.5, 0.5, 0.5, NAN])
    assert got.unknown.tolist() == [False, True, False, False]


def learned(images: int, **wrong: float | None) -> Calibration:
    experts = {f"{name}:image": ExpertCalibration(0.1, 0.1, images, None, mean) for name, mean in wrong.items()}
    return Calibration(1, "mean", 5, 0.05, images, experts, LogLinear({}), LogLinear({}))


def test_the_prior_by_hand() -> None:
    # Image experts x and y; x covers a and b, y covers a alone. The evidence names the nearest category.
    given = said(["x:image", "y:image"], [[1, 1, 0], [1, 0, 0]], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], "abc")
    similarities = {
        "x:image": {"mean": np.array([[0.5, 0.3, NAN], [0.2, 0.7, NAN], [0.2, 0.2, NAN]])},
        "y:image": {"mean": np.array([[0.9, NAN, NAN], [0.1, NAN, NAN], [0.1, NAN, NAN]])},
    }
    temperatures = {"x:image": 0.1, "y:image": 0.2}
    got = prior_novelty(given, similarities, learned(4, x=0.3, y=0.5), temperatures)
    # a: (0.5 - 0.3) / 0.1 = 2 and (0.9 - 0.5) / 0.2 = 2 temperatures; b: (0.7 - 0.3) / 0.1 = 4 of x; c: none.
    odds = np.array([SLOPE * 2 + OFFSET, SLOPE * 4 + OFFSET, NAN])
    np.testing.assert_allclose(got, 1 / (1 + np.exp(odds)))
    assert got[0] > got[1]
    # Without similarities to wrong categories, y does not count: a is 2 temperatures away under x.
    alone = prior_novelty(given, similarities, learned(4, x=0.3, y=None), temperatures)
    np.testing.assert_allclose(alone, got)
    assert np.isnan(prior_novelty(given, similarities, learned(4, x=None, y=None), temperatures)).all()


def test_the_prior_limits_probabilities_while_there_are_few_references() -> None:
    prior = np.array([0.0, 0.5, 1.0, NAN])
    table = {0: [1.0, 0.75, 0.5, 1.0], 50: [1.0, 0.875, 0.75, 1.0], 100: [1.0] * 4, 5000: [1.0] * 4}
    for images, largest in table.items():
        np.testing.assert_allclose(largest_probability(prior, learned(images, x=0.3), 2), largest)


def test_without_a_calibration_there_is_no_novelty_and_nothing_is_unknown() -> None:
    for unknown_above in [None, 0.0, 0.5]:
        given = said(TWO, COVERAGE, [[-100.0] * 3] * 2, "abc")
        got = image_novelty(given, prior=None, words=untold(given), unknown_above=unknown_above, per_category=True)
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


def test_deviations_from_words_by_hand() -> None:
    # The encoder x has texts of a and b, y has a text of a alone, and z has no words. Nearest are a, b and c.
    given = said(
        ["x:text", "y:text", "z:text", "x:image"],
        [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]],
        [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]],
        "abc",
    )
    for expert in given.found.experts:
        expert.encoder = expert.name[0]  # type: ignore[misc]
    axes = np.eye(3, dtype=np.float32)
    images = np.array([[0.0, 0.2, 0.4], [0.1, 0.3, 0.5], [0.0, 0.2, 0.4]], np.float32)
    given.found.queries = dict.fromkeys("xyz", images)  # type: ignore[misc]
    given.found.words = {"x": axes[1:], "y": axes}  # type: ignore[misc]
    given.found.described = frozenset()  # type: ignore[misc]
    similarities = {
        "x:text": {"mean": np.array([[0.6, 0.1, NAN], [0.1, 0.3, NAN], [0.5, 0.5, NAN]])},
        "y:text": {"mean": np.array([[0.2, NAN, NAN], [0.2, NAN, NAN], [0.2, NAN, NAN]])},
        "z:text": {"mean": np.full((3, 3), 0.9)},
        "x:image": {"mean": np.full((3, 3), 0.9)},
    }
    got = word_deviations(given, similarities, "mean")
    # x: words have mean 0.3 and deviation 0.1 for the first image, 0.4 and 0.1 for the second; two categories compete.
    # y: the mean is 0.2, and one category competes with one word, which is at the mean.
    chance = np.sqrt(2 * np.log(2))
    np.testing.assert_allclose(got, [(3 - chance + 0) / 2, -1 - chance, NAN], rtol=1e-5)
    given.found.described = frozenset("a")  # type: ignore[misc]
    np.testing.assert_allclose(word_deviations(given, similarities, "mean"), [NAN, -1 - chance, NAN], rtol=1e-5)
    given.found.words = {"x": axes[[1, 1]]}  # type: ignore[misc]
    assert np.isnan(word_deviations(given, similarities, "mean")).all()  # equal words tell nothing
    given.found.words = {}  # type: ignore[misc]
    assert np.isnan(word_deviations(given, similarities, "mean")).all()


def test_words_join_the_prior_and_give_way_to_images() -> None:
    by_words, by_images = WORD_SLOPE * 1.5 + WORD_OFFSET, np.log(4)
    both = (by_words + by_images) / np.sqrt(2)
    for prior, words, share, expected in [
        (NAN, 1.5, 0.0, by_words),
        (NAN, 1.5, 0.75, by_words),
        (0.2, NAN, 0.75, by_images),
        (0.2, 1.5, 0.0, both),
        (0.2, 1.5, 0.75, 0.75 * by_images + 0.25 * both),
        (NAN, NAN, 0.75, NAN),
    ]:
        got = prior_odds(np.array([prior]), np.array([words]), np.array([share]))
        np.testing.assert_allclose(got, [expected])
    assert np.isfinite(prior_odds(np.array([0.0, 1.0]), np.zeros(2), np.zeros(2))).all()


def test_the_basis_names_the_evidence() -> None:
    # a has images and a text, b a text. The columns: prior, words, and the early share of categories with images.
    for calibrated, nearest, prior, words, share, basis in [
        (True, "a", NAN, NAN, 0.0, "references"),
        (True, "a", 0.3, NAN, 0.0, "references"),
        (True, "a", 0.3, 1.0, 0.0, "both"),
        (True, "a", NAN, 1.0, 0.0, "words"),
        (True, "a", NAN, 1.0, 0.5, "both"),
        (True, "a", 0.3, 1.0, 1.0, "references"),
        (True, "b", NAN, 1.0, 0.0, "words"),
        (False, "a", NAN, 1.0, 0.0, None),
        (False, "b", NAN, 1.0, 0.0, "words"),
        (False, "b", NAN, NAN, 0.0, None),
    ]:
        pattern_of_a = "x:image+x:text"
        pool: Any = {"thresholds": {pattern_of_a: 3.0}} if share == 1 else {}
        pool |= {"early": {pattern_of_a: [3.0, share]}} if 0 < share < 1 else {}
        given = said(TWO, COVERAGE, [[1.0, 0.0, 0.0] if nearest == "a" else [0.0, 1.0, 0.0]], "abc", **pool)
        got = image_novelty(
            given,
            prior=np.array([prior]) if calibrated else None,
            words=np.array([words]),
            unknown_above=None,
            per_category=False,
        )
        assert got.basis == [basis]
        assert np.isnan(got.novelty[0]) == (basis is None)
        assert np.isnan(got.threshold[0]) == (basis is None or bool(np.isnan([prior, words]).all()))


def test_an_early_threshold_counts_by_its_share() -> None:
    given = said(TWO, COVERAGE, [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]], "abc", early={"x:image+x:text": [3.0, 0.25]})
    np.testing.assert_array_equal(early_thresholds(given), [[3.0, NAN, NAN], [0.25, 0.0, 0.0]])
    prior = np.array([0.8, 0.8])
    got = image_novelty(given, prior=prior, words=untold(given), unknown_above=None, per_category=False)
    odds = 0.25 * 2 + 0.75 * np.log(0.25)  # 2 nats above the threshold, and 4 to 1 for a new image
    np.testing.assert_allclose(got.novelty, [1 / (1 + np.exp(odds)), 0.8])


@forall(
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=20, unique=True).map(sorted),
    prior=st.floats(0.001, 0.999),
    words=st.floats(-5, 5) | st.just(NAN),
    evidence=st.floats(-10, 10),
)
def test_novelty_moves_from_the_prior_to_the_threshold_without_a_jump(
    shares: list[float], prior: float, words: float, evidence: float
) -> None:
    def odds(share: float) -> float:
        by_pattern = "x:image+x:text"
        pool: Any = {"thresholds": {by_pattern: 3.0}} if share == 1 else {"early": {by_pattern: [3.0, share]}}
        given = said(TWO, COVERAGE, [[evidence, -99.0, -99.0]], "abc", **pool)
        novel = image_novelty(
            given, prior=np.array([prior]), words=np.array([words]), unknown_above=None, per_category=False
        ).novelty
        return float(np.log(novel / (1 - novel))[0])

    first, last = odds(0), odds(1)
    assert first == pytest.approx(-prior_odds(np.array([prior]), np.array([words]), np.zeros(1))[0], abs=1e-6)
    assert last == pytest.approx(3.0 - evidence, abs=1e-6)
    by_images = np.log(prior / (1 - prior))
    steepest = abs(last - by_images) + 2 * abs(by_images - first)  # of the polynomial in the share
    for a, b in pairwise(shares):
        assert abs(odds(b) - odds(a)) <= (b - a) * steepest + 1e-6
